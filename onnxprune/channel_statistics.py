"""Mean and variance per channel of tensors inside a model, measured on data.

All of the tensors come out of one run of the model. So that they never fill the memory, a batch is run in parts that
keep them within 32 MiB together, which is also fastest: fresh memory costs more than the sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.model import Array, Model
from onnxprune.runtime import Session

Statistics = npt.NDArray[np.float64]

_MEMORY = 32 * 2**20  # bytes of the tensors of one run, all together
_BLOCK = 2**17  # elements made float64 at a time: 1 MiB stays in the CPU's cache


def measure_statistics(
    model: Model,
    names: Sequence[str],
    feeds: Iterable[Mapping[str, Array]],
    *,
    device: str = "cpu",
    threads: int = 0,
) -> dict[str, tuple[Statistics, Statistics]]:
    """The statistics that BatchNormalization keeps: over samples and positions, one pair per channel.

    Sums are taken in float64 and every sample counts once, however the batches are cut. The variance is the biased
    one. (Ioffe & Szegedy 2015 scale it by m / (m - 1) for inference; m is batch times positions.)

    Args:
        model: any; its graph is not changed. Where its batch is fixed, batches are run whole.
        names: tensors of its graph, floating, [N, C, ...].
        feeds: inputs of the model, a batch each.
        device: "auto", "cpu" or "cuda".
        threads: of onnxruntime; 0 leaves the choice to it.

    Returns:
        name -> (mean [C], variance [C]), float64.

    Raises:
        OnnxPruneError: no such tensor, or one without channels; no data, or data that does not fit the model (with the
            number of the batch); an activation that is not finite, with the node that computes it.
    """
    names = list(dict.fromkeys(names))
    if not names:
        return {}
    tensors = model.graph.tensors()
    for name in names:
        if not isinstance(tensors.get(name), gs.Variable):
            raise unknown("tensor", name, [n for n, t in tensors.items() if isinstance(t, gs.Variable)])
    session = Session(_exposing(model, names), device=device, threads=threads)
    sums: dict[str, _Sums] = {}
    fixed = any(not t.shape or (isinstance(t.shape[0], int) and t.shape[0] > 0) for t in model.graph.inputs)
    step = 0  # samples at a time, as soon as it is known
    for i, feed in enumerate(feeds):
        length = 0 if fixed else _length(feed)
        if length and not step:
            step = max(1, _MEMORY // max(1, sum(v.nbytes for v in _run(session, _part(feed, 0, 1), i))))
        for part in [_part(feed, start, step) for start in range(0, length, step)] if length else [feed]:
            for name, values in zip(names, _run(session, part, i), strict=True):
                if values.ndim < 2:
                    raise OnnxPruneError(f"the tensor {name!r} has no channels (its shape is {list(values.shape)})")
                if not sums.setdefault(name, _Sums.zero(values.shape[1])).add(values):
                    raise OnnxPruneError(
                        f"the activation {name!r} is not finite on this data (batch {i})",
                        where=_producer(tensors[name]),
                        fix="check the data and how it is scaled (--mean, --std); a float16 model may overflow",
                    )
    if not sums or any(not s.count for s in sums.values()):
        raise OnnxPruneError("there is no data to measure statistics on", fix="give at least one sample")
    return {name: s.statistics() for name, s in sums.items()}


@dataclass
class _Sums:
    """Sums of one tensor, per channel."""

    total: Statistics
    squares: Statistics
    count: int = 0

    @staticmethod
    def zero(channels: int) -> _Sums:
        return _Sums(np.zeros(channels), np.zeros(channels))

    def add(self, values: Array) -> bool:
        """Adds a batch [N, C, ...]; whether all of it is finite."""
        flat = (
            values.reshape(len(values), len(self.total), -1) if values.size else values.reshape(0, len(self.total), 1)
        )
        rows = max(1, _BLOCK // max(1, flat[:1].size))
        with np.errstate(all="ignore"):  # opposite infinities make NaN: seen below
            for i in range(0, len(flat), rows):
                wide = flat[i : i + rows].astype(np.float64)
                self.total += wide.sum((0, 2))
                self.squares += np.einsum("ncm,ncm->c", wide, wide)
        self.count += flat.size // max(1, len(self.total))
        return bool(np.isfinite(self.total).all() and np.isfinite(self.squares).all())

    def statistics(self) -> tuple[Statistics, Statistics]:
        """Mean and variance."""
        mean = self.total / self.count
        # A difference of float64 sums: what it loses is less than the rounding of float32 activations.
        return mean, np.maximum(self.squares / self.count - mean * mean, 0)


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


def _exposing(model: Model, names: Sequence[str]) -> Model:
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
