"""Statistics of intermediate tensors, collected in one run over the data.

Statistics are streaming: each updates itself from a tensor's values on some samples. Intermediate tensors become
outputs of a copy of the model. Batches are run in parts that keep these outputs within 32 MiB together, which bounds
memory and is fastest, because allocating fresh memory costs more than the sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.data import Data, Feeds, Preprocess
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model

MEMORY = 32 * 2**20
"""Bytes of all collected tensors of one run."""


class FeedReader:
    """Feeds one after the other, as a `CalibrationDataReader` of onnxruntime: None after the last.

    Args:
        feeds: Batches of a model's inputs.
        numbers: Batches to read, in order; default: all.
    """

    def __init__(self, feeds: Feeds, numbers: Sequence[int] | None = None) -> None:
        self._feeds = feeds
        self._numbers = list(range(len(feeds))) if numbers is None else list(numbers)
        self._stop = len(self._numbers)
        self._next = 0

    def get_next(self) -> dict[str, Array] | None:
        """Return the next feed, a dict of arrays by input name; None after the last."""
        if self._next >= self._stop:
            return None
        self._next += 1
        return self._feeds[self._numbers[self._next - 1]][0]

    def rewind(self) -> None:
        """Start again with the first feed."""
        self._next, self._stop = 0, len(self._numbers)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Read the feeds from one number to before another; the quantizer reads in such parts to save memory."""
        self._next, self._stop = start_index, min(end_index, len(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return iter(self.get_next, None)


class Statistic(ABC):
    """Statistic of one tensor, updated batch by batch."""

    @abstractmethod
    def add(self, values: Array, samples: range) -> None:
        """Add the tensor `[samples * k, ...]` (float32; float64 for float64 tensors) of consecutive samples.

        Values are finite. `k` is 1, except for models that fold windows or frames into the first axis.
        """


@dataclass(frozen=True)
class Probe:
    """Statistic to collect of the tensor with this name."""

    tensor: str
    statistic: Statistic


@dataclass(frozen=True)
class Calibration:
    """Samples for criteria and recovery, and how to run them.

    Statistics receive samples in the order of the batches: that of the data, or sizes one after the other.

    Attributes:
        data: Inputs and optional labels.
        preprocess: Conversion to the model's input.
        batch: Samples per run.
        device: "auto", "cpu" or "cuda".
        threads: Threads of onnxruntime and torch; 0: their defaults.
    """

    data: Data
    preprocess: Preprocess = field(default_factory=Preprocess)
    batch: int = 64
    device: str = "cpu"
    threads: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def spread(self, most: int) -> Calibration:
        """Return the same with at most so many samples, evenly spaced from the first to the last."""
        index = np.linspace(0, len(self) - 1, min(len(self), most)).astype(np.int64)
        return replace(self, data=self.data.take(index))

    def as_dict(self) -> dict[str, Any]:
        """Return name, number of samples, preprocessing and warnings, as JSON."""
        return {
            "name": self.data.name, "samples": len(self), "preprocess": self.preprocess.as_dict(),
            "warnings": list(self.data.warnings),
        }  # fmt: skip

    def first(self, model: Model, samples: int = 16) -> list[dict[str, Array]]:
        """Return the first samples as one batch of feeds, for verification on real inputs; of several sizes two.

        Raises:
            OnnxPruneError: See `feeds`.
        """
        feeds = self.feeds(model, min(samples, self.batch))
        return [feeds[i][0] for i in sorted({0, len(feeds) - 1 if feeds.mixed else 0})]

    def feeds(self, model: Model, batch: int | None = None) -> Feeds:
        """Return the data in the form of the model's inputs, in batches of one size.

        Raises:
            OnnxPruneError: The data does not match the model's inputs.
        """
        return Feeds(model, self.data, self.preprocess, batch or self.batch)

    def collect(self, model: Model, probes: Sequence[Probe], *, progress: Progress | None = None) -> None:
        """Run all samples through a model and update the probes' statistics.

        Raises:
            OnnxPruneError: See `calibrate`.
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
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> int:
    """Run batches through a model and update the statistics, in sample order.

    Args:
        model: Any model; its graph is not changed. A model with a fixed batch gets complete batches.
        probes: Statistics to collect; several of one tensor need one output.
        feeds: Batches of inputs.
        samples: Number of samples, if the last batch is padded with copies; these are excluded.
        device: "auto", "cpu" or "cuda".
        threads: Threads of onnxruntime; 0: its default.
        memory: Bytes of the collected tensors of one run; larger batches are run in parts.
        progress: Called with (samples done, `samples`) if `samples` is given.

    Returns:
        Number of samples run.

    Raises:
        OnnxPruneError: A tensor does not exist; there is no data, or it does not fit the model (names the batch); or
            an activation is not finite (names its producer).
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
    steps: dict[object, int] = {}  # samples per part, by the sizes of a batch
    done = 0  # samples
    for i, feed in enumerate(feeds):
        length = 0 if fixed else _length(feed)
        step = steps.get(sizes := tuple(np.shape(v)[1:] for v in feed.values()), 0)
        if length and not step:
            step = max(1, memory // max(1, sum(v.nbytes for v in _run(session, _part(feed, 0, 1), i))))
            steps[sizes] = step
        for part in [_part(feed, start, step) for start in range(0, length, step)] if length else [feed]:
            run = _length(part) or 1
            real = run if samples is None else min(run, samples - done)
            for (name, statistics), values in zip(wanted.items(), _run(session, part, i), strict=True):
                if not is_finite(values):
                    raise OnnxPruneError(
                        f"the activation {name!r} is not finite on this data (batch {i})",
                        where=_producer(tensors[name]),
                        fix="check the data and its scaling (--mean, --std); a float16 model may overflow",
                    )
                own = values[: len(values) // run * real] if real < run and values.ndim else values
                for statistic in statistics:
                    statistic.add(own, range(done, done + real))
            done += real
            if progress is not None and samples is not None:
                progress(done, samples)
    if not done:
        raise OnnxPruneError("the data has no samples", fix="pass at least one sample")
    return done


def is_finite(values: Array) -> bool:
    """Return whether all values of an array of floats are finite.

    A sum is not finite if one of its terms is not: opposite infinities give NaN. The sum of finite float32 numbers may
    overflow in their own type, which is faster, but not in float64.
    """
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values.sum(dtype=np.float64)))


def exposing(model: Model, names: Sequence[str]) -> Model:
    """Return a copy whose outputs are the named tensors, as float32 (float64 for float64 tensors)."""
    copy = model.copy()
    graph = copy.graph
    tensors = graph.tensors()
    prefix = "onnxprune_statistics"
    while any(name.startswith(prefix) for name in tensors):
        prefix += "_"
    graph.outputs[:] = []
    for i, name in enumerate(names):
        # Outputs need a declared type, which intermediate tensors may lack. The cast only widens 16-bit types.
        dtype = np.float64 if tensors[name].dtype == np.float64 else np.float32
        out = gs.Variable(f"{prefix}_{i}", dtype)
        graph.nodes.append(gs.Node("Cast", out.name, {"to": dtype}, [tensors[name]], [out]))
        graph.outputs.append(out)
    # Remove unused nodes, which onnxruntime would run. Functions are shared with the original and must not change.
    graph.cleanup(recurse_functions=False)
    return copy


def _length(feed: Mapping[str, Array]) -> int:
    """Return the common number of samples of all inputs; 0 if they disagree (onnxruntime raises then)."""
    lengths = {len(v) if np.ndim(v) else 0 for v in feed.values()}
    return lengths.pop() if len(lengths) == 1 else 0


def _part(feed: Mapping[str, Array], start: int, count: int) -> dict[str, Array]:
    return {name: values[start : start + count] for name, values in feed.items()}


def _run(session: Session, feed: Mapping[str, Array], batch: int) -> list[Array]:
    try:
        return session.run(feed)
    except OnnxPruneError as err:
        fix = "check that the data fit the inputs of the model"
        raise OnnxPruneError(err.what, where=f"batch {batch}", fix=fix) from err


def _producer(t: gs.Tensor) -> str:
    node = t.inputs[0] if t.inputs else None
    return f"input {t.name!r}" if node is None else f"{node.op} {node.name or t.name!r}"
