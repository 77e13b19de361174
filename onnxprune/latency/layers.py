"""Latency of every layer before and after pruning, with the reason for which a layer did not get faster.

A layer is expected to shrink like its MACs, or like the elements that it moves where it has none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, ClassVar

from onnxprune._utils.output.formatting import seconds
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import LayerTime, Runtime, block_of
from onnxprune.latency.runtimes.node_names import node_name
from onnxprune.ops import find
from onnxprune.planning.analyze import analyze

_SLACK = 0.15  # excess of the remaining time over the remaining work at which a layer counts as not faster
_SHORT = 15e-6  # seconds below which starting a kernel takes the time
_INTENSITY = 8  # MACs per element moved below which memory bounds a product
_RUNS = 20
_LAYOUT = re.compile(r"reorder|transpose|cast|convert|memcpy|copy|quantize", re.I)


@dataclass(frozen=True)
class LayerRow:
    """One layer in two models.

    Attributes:
        name: Node of the original, or the operator that the runtime inserted.
        op: Operator.
        before: Seconds per run in the original; None if it has no such layer.
        after: Seconds per run in the pruned model; None if it has no such layer.
        channels_before: Input and output channels in the original, "64 -> 128"; "" if unknown.
        channels_after: The same in the pruned model.
        work: Share of the layer's MACs that remains, or of the elements that it moves; None if unknown.
        kernel: Implementation in the pruned model.
        reason: Reason for which the time did not shrink like the work; "" if it did.
    """

    name: str
    op: str
    before: float | None
    after: float | None
    channels_before: str = ""
    channels_after: str = ""
    work: float | None = None
    kernel: str = ""
    reason: str = ""

    @property
    def lost(self) -> float:
        """Seconds in excess of the remaining work."""
        if self.after is None or not self.reason:
            return 0.0
        return max(0.0, self.after - (self.before or 0.0) * (self.work or 0.0))


@dataclass(frozen=True)
class LayerProfile:
    """Latency of every layer of two models in one runtime, the slowest of the original first.

    Attributes:
        runtime: Runtime and device.
        block: Block size of the runtime.
        layers: Layers.
        compared: True if there are two models.
    """

    runtime: str
    block: int
    layers: tuple[LayerRow, ...]
    compared: bool

    COLUMNS: ClassVar[tuple[str, ...]] = ("layer", "channels", "before", "after", "time", "work", "reason")

    def rows(self, most: int | None = None) -> list[list[str]]:
        """Return the cells of a table.

        Args:
            most: Largest number of layers; those behind are one row.
        """
        shown, rest = self.layers[:most], self.layers[most:] if most is not None else ()
        out = [_cells(r) for r in shown]
        if rest:
            before, after = (sum(getattr(r, k) or 0.0 for r in rest) for k in ("before", "after"))
            more = LayerRow(f"{len(rest)} more", "", before, after if self.compared else None)
            out.append(_cells(more))
        return out

    @property
    def before(self) -> float:
        """Seconds of all layers of the original."""
        return sum(r.before or 0.0 for r in self.layers)

    @property
    def after(self) -> float:
        """Seconds of all layers of the pruned model."""
        return sum(r.after or 0.0 for r in self.layers)

    def summary(self) -> list[str]:
        """Return the totals, and the seconds that each reason costs."""
        if not self.compared:
            return [f"all layers: {seconds(self.before)}"]
        out = [f"all layers: {seconds(self.before)} -> {seconds(self.after)} ({self.after / self.before:.3f})"]
        lost: dict[str, list[float]] = defaultdict(list)
        for row in self.layers:
            if row.lost > 0:
                lost[_CAUSES[_cause(row.reason)]].append(row.lost)
        for kind, times in sorted(lost.items(), key=lambda pair: -sum(pair[1])):
            layers = "1 layer" if len(times) == 1 else f"{len(times)} layers"
            out.append(f"{seconds(sum(times))} more than the work that remains: {kind} ({layers})")
        return out

    def as_dict(self) -> dict[str, Any]:
        """Return the profile as a JSON object."""
        return {
            "runtime": self.runtime, "block": self.block, "before": self.before,
            "after": self.after if self.compared else None,
            "rows": [{**asdict(r), "lost": r.lost} for r in self.layers],
        }  # fmt: skip


def profile_layers(
    original: Model, pruned: Model, runtime: Runtime, *, batch: int = 1, threads: int = 1, runs: int = _RUNS
) -> LayerProfile:
    """Profile two models and compare them layer by layer.

    Args:
        original: Model before pruning.
        pruned: Model after pruning; the same model for a profile of one.
        runtime: Runtime to profile in.
        batch: Samples per run.
        threads: CPU threads; 0: all cores.
        runs: Profiled runs of each model; the median counts.

    Raises:
        OnnxPruneError: The runtime has no times of layers, or refuses a model.
    """
    models = [original] if pruned is original else [original, pruned]
    sides = [_ProfiledModel(m, runtime, batch, threads, runs) for m in models]
    return compare_layers(sides, runtime)


def compare_layers(sides: Sequence[_ProfiledModel], runtime: Runtime) -> LayerProfile:
    """Return the rows of one or two profiled models."""
    block = block_of(runtime)
    first, second = sides[0], sides[1] if len(sides) > 1 else None
    names = dict.fromkeys([*first.seconds, *(second.seconds if second is not None else ())])
    rows = [_row(name, first, second, block) for name in names]
    rows.sort(key=lambda r: -max(r.before or 0.0, r.after or 0.0))
    return LayerProfile(str(runtime.describe()), block, tuple(rows), second is not None)


class _ProfiledModel:
    """One model with the times of its layers."""

    def __init__(self, model: Model, runtime: Runtime, batch: int, threads: int, runs: int) -> None:
        analysis = analyze(model)
        layers = runtime.profile(model, random_feeds(analysis, batch), threads=threads, runs=runs)
        if layers is None:
            raise OnnxPruneError(
                f"{runtime.describe().name} has no times of layers", fix="--profile needs onnxruntime or openvino"
            )
        self.seconds: dict[str, float] = defaultdict(float)
        self.ops: dict[str, str] = {}
        self.kernels: dict[str, str] = {}
        self.inserted: set[str] = set()
        self.work = dict(_work(analysis))
        for layer in layers:
            self._add(layer)

    def _add(self, layer: LayerTime) -> None:
        name = layer.nodes[0] if layer.nodes else f"({layer.op})"
        self.seconds[name] += layer.seconds
        if not layer.nodes:
            self.inserted.add(name)
        if name in self.work:
            self.ops[name] = self.work[name].op
        else:
            self.ops.setdefault(name, layer.op)
        # Of several kernels of one node the longest counts; reorders beside it are short.
        self.kernels.setdefault(name, layer.kernel or layer.op)


@dataclass(frozen=True)
class _LayerWork:
    """Work of one node: MACs, elements read and written, channels in and out."""

    op: str
    macs: int
    moved: int
    channels: tuple[int, ...]


def _work(analysis: Analysis) -> Iterator[tuple[str, _LayerWork]]:
    table = analysis.table
    for node in analysis.model.graph.nodes:
        tensors = [[t for t in side if t.name and not t.is_empty()] for side in (node.inputs, node.outputs)]
        try:
            shapes = [[tuple(int(n) for n in table.shape(t)) for t in side] for side in tensors]
        except KeyError:  # tensors inside bodies
            continue
        spec = find(node)
        macs = 0
        if spec is not None and spec.macs is not None and len(shapes[0]) == len(node.inputs):
            macs = int(spec.macs(node, shapes[0], shapes[1]))
        moved = sum(prod(s) for side in shapes for s in side)
        yield node_name(node), _LayerWork(node.op, macs, moved, _channels(shapes))


def _channels(shapes: Sequence[Sequence[tuple[int, ...]]]) -> tuple[int, ...]:
    """Return the channels of the first input and output: axis 1 of images, the last axis of others."""
    return tuple(s[0][1] if len(s[0]) > 3 else s[0][-1] for s in shapes if s and len(s[0]) > 1)


def _row(name: str, first: _ProfiledModel, second: _ProfiledModel | None, block: int) -> LayerRow:
    before = first.seconds.get(name) if name in first.seconds else None
    old, op = first.work.get(name), first.ops.get(name) or (second.ops[name] if second is not None else "")
    channels = _shown(old)
    if second is None:
        return LayerRow(name, op, before, None, channels, kernel=first.kernels.get(name, ""))
    after = second.seconds.get(name) if name in second.seconds else None
    new = second.work.get(name)
    work = _remaining(old, new)
    row = LayerRow(
        name, op, before, after, channels, _shown(new), work, second.kernels.get(name, first.kernels.get(name, ""))
    )
    inserted = name in first.inserted or name in second.inserted
    reason = _inserted_reason(row) if inserted else _reason(row, old, new, first.kernels.get(name, ""), block)
    return LayerRow(**{**asdict(row), "reason": reason})


def _remaining(old: _LayerWork | None, new: _LayerWork | None) -> float | None:
    if old is None or new is None:
        return None
    if old.macs:
        return new.macs / old.macs
    return new.moved / old.moved if old.moved else None


def _reason(row: LayerRow, old: _LayerWork | None, new: _LayerWork | None, kernel: str, block: int) -> str:
    """Return the reason for which a layer did not get faster; "" if it did."""
    if row.before is None or row.after is None or row.work is None or old is None or new is None:
        return "" if row.after is None or row.before is not None else "only in the pruned model"
    if row.work >= 1 - 1e-9:
        return "not pruned" if row.after >= (1 - _SLACK) * row.before else ""
    if row.after <= (row.work + _SLACK) * row.before:
        return ""
    odd = [n for n, m in zip(new.channels, old.channels, strict=False) if n % block and (n != m or m % block == 0)]
    if odd:
        return f"{odd[0]} channels are no multiple of {block}"
    if row.after < _SHORT:
        return "short: starting the kernel takes the time"
    if row.kernel and kernel and row.kernel != kernel:
        return f"another kernel: {row.kernel} instead of {kernel}"
    if not old.macs or new.macs / max(new.moved, 1) < _INTENSITY or _like_moved(row, old, new):
        return "memory-bound: the elements that it moves take the time"
    return "slower than its work"


def _like_moved(row: LayerRow, old: _LayerWork, new: _LayerWork) -> bool:
    """Return True if the time shrank like the elements that a layer moves."""
    assert row.before is not None
    assert row.after is not None
    return row.after <= (new.moved / max(old.moved, 1) + _SLACK) * row.before


def _inserted_reason(row: LayerRow) -> str:
    if not _LAYOUT.search(row.op):
        return ""
    if (row.after or 0.0) > (row.before or 0.0) * (1 - _SLACK) and row.after:
        return "reorders: the runtime changes the layout between layers"
    return ""


_CAUSES = {
    "unaligned": "unaligned counts of channels", "kernel": "another kernel", "new": "only in the pruned model",
    "short": "short", "memory": "memory-bound", "slower": "slower than its work", "reorder": "reorders",
    "not pruned": "not pruned",
}  # fmt: skip
"""Word of a cause in a table -> what it stands for, as reasons begin."""


def _cause(reason: str) -> str:
    """Return the word of a reason; "" for none."""
    if "no multiple" in reason:
        return "unaligned"
    return next((word for word, text in _CAUSES.items() if reason.startswith(text)), "")


def _shown(work: _LayerWork | None) -> str:
    return " -> ".join(map(str, work.channels)) if work is not None else ""


def _cells(row: LayerRow) -> list[str]:
    """Return the cells of a row: the output channels alone, shares of time and work, the word of the reason."""
    channels = [c.rpartition(" ")[2] for c in (row.channels_before, row.channels_after) if c]
    left = f"{row.after / row.before:.2f}" if row.before and row.after is not None else ""
    work = f"{row.work:.2f}" if row.work is not None else ""
    times = [seconds(t) if t is not None else "" for t in (row.before, row.after)]
    return [row.name, " -> ".join(dict.fromkeys(channels)), *times, left, work, _cause(row.reason)]
