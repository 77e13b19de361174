"""One run over the data that collects whatever statistics of whatever tensors are asked for.

Each statistic streams: it takes what a tensor was on some samples and keeps what it needs of it. Tensors inside the
model become outputs of a copy. So that they never fill the memory, a batch is run in parts that keep them within 32 MiB
together, which is also fastest: fresh memory costs more than the sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.data import Data, Feeds, Preprocess
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model

_MEMORY = 32 * 2**20  # bytes of the tensors of one run, all together


class Statistic(ABC):
    """What is kept of one tensor."""

    @abstractmethod
    def add(self, values: Array, samples: range) -> None:
        """Takes in the tensor `[samples * k, ...]` (float32, float64 where the model is) on consecutive samples.

        Values are finite. `k` is 1 but for models that fold windows or frames into the first axis.
        """


@dataclass(frozen=True)
class Probe:
    """A statistic of the tensor of that name."""

    tensor: str
    statistic: Statistic


@dataclass(frozen=True)
class Calibration:
    """Samples for criteria and recovery, and how they are run.

    Attributes:
        data: inputs and, where there are, labels.
        preprocess: how they become the model's input.
        batch: samples per run.
        device: "auto", "cpu" or "cuda".
        threads: of onnxruntime and torch; 0 leaves the choice to them.
    """

    data: Data
    preprocess: Preprocess = field(default_factory=Preprocess)
    batch: int = 64
    device: str = "cpu"
    threads: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def first(self, model: Model, samples: int = 16) -> list[dict[str, Array]]:
        """Return the first samples as one batch of feeds, for a proof on real inputs.

        Raises:
            OnnxPruneError: as `feeds`.
        """
        feed, _ = Feeds(model, self.data, self.preprocess, min(samples, self.batch))[0]
        return [feed]

    def feeds(self, model: Model) -> Feeds:
        """The data as a model takes it.

        Raises:
            OnnxPruneError: the model has several inputs, or the samples do not fit its input.
        """
        return Feeds(model, self.data, self.preprocess, self.batch)

    def collect(
        self, model: Model, probes: Sequence[Probe], *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Runs all samples through a model and fills the probes' statistics.

        Raises:
            OnnxPruneError: as `calibrate`.
        """
        feeds = self.feeds(model)
        batches = (feeds[i][0] for i in range(len(feeds)))
        calibrate(
            model, probes, batches, samples=len(self), device=self.device, threads=self.threads, progress=progress
        )


def calibrate(
    model: Model,
    probes: Sequence[Probe],
    feeds: Iterable[Mapping[str, Array]],
    *,
    samples: int | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Runs batches through a model and fills the statistics, in the order of the samples.

    Args:
        model: any; its graph is not changed. Where its batch is fixed, batches are run whole.
        probes: what to collect; several of one tensor cost one output.
        feeds: inputs of the model, a batch each.
        samples: how many there are, if the last batch is filled up with copies; those are left out.
        device: "auto", "cpu" or "cuda".
        threads: of onnxruntime; 0 leaves the choice to it.
        progress: called with (samples done, `samples`), where `samples` is given.

    Returns:
        How many samples were run.

    Raises:
        OnnxPruneError: no such tensor; no data, or data that does not fit the model (with the number of the batch); an
            activation that is not finite, with the node that computes it.
    """
    tensors = model.graph.tensors()
    wanted: dict[str, list[Statistic]] = {}
    for probe in probes:
        if not isinstance(tensors.get(probe.tensor), gs.Variable):
            raise unknown("tensor", probe.tensor, [n for n, t in tensors.items() if isinstance(t, gs.Variable)])
        wanted.setdefault(probe.tensor, []).append(probe.statistic)
    if not wanted:
        return 0
    session = Session(exposing(model, list(wanted)), device=device, threads=threads)
    fixed = any(not t.shape or (isinstance(t.shape[0], int) and t.shape[0] > 0) for t in model.graph.inputs)
    step = done = 0  # samples at a time, as soon as it is known; samples so far
    for i, feed in enumerate(feeds):
        length = 0 if fixed else _length(feed)
        if length and not step:
            step = max(1, _MEMORY // max(1, sum(v.nbytes for v in _run(session, _part(feed, 0, 1), i))))
        for part in [_part(feed, start, step) for start in range(0, length, step)] if length else [feed]:
            run = _length(part) or 1
            real = run if samples is None else min(run, samples - done)
            for (name, statistics), values in zip(wanted.items(), _run(session, part, i), strict=True):
                # In float64 no sum of finite float32 numbers overflows; opposite infinities make NaN.
                with np.errstate(all="ignore"):
                    finite = np.isfinite(values.sum(dtype=np.float64))
                if not finite:
                    raise OnnxPruneError(
                        f"the activation {name!r} is not finite on this data (batch {i})",
                        where=_producer(tensors[name]),
                        fix="check the data and how it is scaled (--mean, --std); a float16 model may overflow",
                    )
                own = values[: len(values) // run * real] if real < run and values.ndim else values
                for statistic in statistics:
                    statistic.add(own, range(done, done + real))
            done += real
            if progress is not None and samples is not None:
                progress(done, samples)
    if not done:
        raise OnnxPruneError("there is no data to measure on", fix="give at least one sample")
    return done


def exposing(model: Model, names: Sequence[str]) -> Model:
    """A copy whose outputs are the named tensors, as float32 (float64 where they are)."""
    copy = model.copy()
    graph = copy.graph
    tensors = graph.tensors()
    prefix = "onnxprune_statistics"
    while any(name.startswith(prefix) for name in tensors):
        prefix += "_"
    graph.outputs[:] = []
    for i, name in enumerate(names):
        # An output states its type, which files do not have to give for what is inside. Of 16 bits it only widens.
        dtype = np.float64 if tensors[name].dtype == np.float64 else np.float32
        out = gs.Variable(f"{prefix}_{i}", dtype)
        graph.nodes.append(gs.Node("Cast", out.name, {"to": dtype}, [tensors[name]], [out]))
        graph.outputs.append(out)
    # onnxruntime would run what nothing reads. Functions are shared with the original, so they stay as they are.
    graph.cleanup(recurse_functions=False)
    return copy


def _length(feed: Mapping[str, Array]) -> int:
    """How many samples all inputs have; 0 where they disagree (onnxruntime will say so)."""
    lengths = {len(v) if np.ndim(v) else 0 for v in feed.values()}
    return lengths.pop() if len(lengths) == 1 else 0


def _part(feed: Mapping[str, Array], start: int, count: int) -> dict[str, Array]:
    return {name: values[start : start + count] for name, values in feed.items()}


def _run(session: Session, feed: Mapping[str, Array], batch: int) -> list[Array]:
    try:
        return session.run(feed)
    except OnnxPruneError as err:
        fix = "check that the data fits the model's inputs"
        raise OnnxPruneError(err.what, where=f"batch {batch}", fix=fix) from err


def _producer(t: gs.Tensor) -> str:
    node = t.inputs[0] if t.inputs else None
    return f"input {t.name!r}" if node is None else f"{node.op} {node.name or t.name!r}"
