"""Descent on one block after the other, so that each block of the pruned model reproduces the original's output.

Before:  t -> Conv(W1) -> Relu -> Conv(W2) -> Add(t) -> z     W2 is solved for given W1
After:   W1 and W2 both minimize the mean square of z* - z, z* the original's z
Conditions: 1. a block lies between two places where one tensor of floats carries all data. 2. it holds two linear nodes
or more, because one alone is solved exactly by `reconstruct_weights`. 3. its error on held-out batches falls, otherwise
its weights are kept.

A block is fitted on the outputs of the blocks already fitted, without labels and without a pass through the whole model
(block reconstruction: Li et al. 2021, BRECQ, there for quantized weights). A second sweep fits up to three consecutive
blocks together towards the last one's output. It needs PyTorch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.ir.model import Array, Model
from onnxprune.plans import Plan
from onnxprune.recovery._activations import chain
from onnxprune.recovery._lockstep import PairedCursor

if TYPE_CHECKING:
    import torch
    from torch import fx

EPOCHS = 10
SPANS = (1, 3)  # blocks that are fitted together, sweep by sweep
_BATCH = 32  # most samples of a step
_BATCHES = 8  # least number of batches
_HOLDOUT_STRIDE = 5  # hold out every 5th batch
_RATE = 0.03  # learning rate, as a share of the root mean square of each weight
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SIZES = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_))

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedBlock:
    """Part of the pruned model between two cuts: a block, or several consecutive ones.

    Attributes:
        start: Index of its first node.
        stop: Index behind its last node.
        outputs: Tensors of floats that it hands on.
        last: Whether they are outputs of the model.
        first: First output of the first of several blocks; empty for one.
    """

    start: int
    stop: int
    outputs: tuple[str, ...]
    last: bool = False
    first: str = ""

    @property
    def name(self) -> str:
        """Return its first output, with that of the first of several blocks."""
        return f"{self.first} to {self.outputs[0]}" if self.first else self.outputs[0]


@dataclass(frozen=True)
class BlockSolution:
    """Result for one block, or several that were fitted together.

    Attributes:
        block: Its name, see `FittedBlock`.
        weights: New values by name of the constant; None keeps all.
        before: Squared error of its outputs on held-out batches with the old weights, as a share of their mean square.
        after: The same error with the new weights.
    """

    block: str
    weights: dict[str, Array] | None = field(repr=False)
    before: float
    after: float


@dataclass(frozen=True)
class ReconstructBlocks:
    """Descent on each block of a pruned model towards the original's outputs of that block.

    Args:
        plan: Channels that were removed.
        analysis: Coupling analysis of the original.
        calibration: Calibration data; labels are not needed.
        epochs: Passes over the samples for each block.
        seed: Seed of the order of the batches.
        memory: Most bytes of the inputs and targets of a block; beyond it batches are left out, evenly.
        known: Called with the name of each block; returns a solution from an earlier run, or None.
        done: Called with each solution and (blocks done, blocks in all).
    """

    plan: Plan
    analysis: Analysis
    calibration: Calibration = field(repr=False)
    epochs: int = EPOCHS
    seed: int = 0
    memory: int = 2**30
    known: Callable[[str], BlockSolution | None] | None = field(default=None, repr=False)
    done: Callable[[BlockSolution, int, int], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if type(self.epochs) is not int or self.epochs < 1:
            raise OnnxPruneError(f"epochs {self.epochs!r} must be a whole number of at least 1", fix=f"epochs={EPOCHS}")

    def __call__(self, model: Model) -> Model:
        """Return the model with fitted blocks.

        Raises:
            OnnxPruneError: PyTorch is missing, the model is not the original pruned by the plan, samples do not fit, or
                activations are not finite.
        """
        model = model.copy()
        tensors = model.graph.tensors()
        size = max(1, min(_BATCH, self.calibration.batch, len(self.calibration) // _BATCHES))
        samples = replace(self.calibration, batch=size)
        with PairedCursor(self.analysis, self.plan, model, samples) as cursor:
            blocks = find_blocks(cursor)
        sweeps = [joined(blocks, span) for span in SPANS]
        fitted = 0
        for sweep in filter(None, sweeps):
            with PairedCursor(self.analysis, self.plan, model, samples) as cursor:
                for block in sweep:
                    cursor.pruned_cursor.advance(block.start)
                    cursor.original_cursor.advance(_original_cut(cursor, block))
                    solution = self.known(block.name) if self.known is not None else None
                    if solution is None:
                        solution = self._fit(cursor, block)
                    for name, values in (solution.weights or {}).items():
                        tensors[name].values = values
                    fitted += 1
                    if self.done is not None:
                        self.done(solution, fitted, sum(map(len, sweeps)))
        return model

    def _fit(self, cursor: PairedCursor, block: FittedBlock) -> BlockSolution:
        """Return the weights of a block with the least error on held-out batches."""
        from onnxprune.torch_bridge import to_torch, write_back

        name = block.name
        segment = cursor.pruned_cursor.segments.segment(block.start, block.stop, block.outputs)
        own = _own_weights(cursor.pruned, block)
        try:
            module = to_torch(segment)
        except OnnxPruneError as err:
            _log.info("%s: %s", name, err.what)
            return BlockSolution(name, None, 0.0, 0.0)
        before, after = _Descent(module, own, self.epochs, self.seed).run(
            list(_batches(cursor, block, segment, self.memory))
        )
        if not after < before:
            return BlockSolution(name, None, before, before)
        tensors = write_back(module, segment).graph.tensors()
        found = {n: np.asarray(tensors[n].values) for n in own if n in tensors and isinstance(tensors[n], gs.Constant)}
        return BlockSolution(name, found, before, after)


def find_blocks(cursor: PairedCursor) -> list[FittedBlock]:
    """Return the blocks that pruning changed, in graph order: they end where one tensor of floats carries all data."""
    segments, changed, tensors = cursor.pruned_cursor.segments, cursor.changed(), cursor.pruned.graph.tensors()
    dtypes = segments.witness.dtypes
    outputs = tuple(n for n in segments.outputs if dtypes.get(n, np.dtype(np.float32)) not in _SIZES)
    blocks: list[FittedBlock] = []
    start = linear = 0
    for stop in range(1, len(segments.nodes) + 1):
        linear += segments.nodes[stop - 1].op in _LINEAR
        last = stop == len(segments.nodes)
        live = [n for n in segments.live(stop) if not last and dtypes.get(n, np.dtype(np.float32)) not in _SIZES]
        if not last and (linear < 2 or len(live) != 1 or segments.producer_index[live[0]] < start):
            continue
        if not last and segments.nodes[stop].op in ("Relu", "Clip", "BatchNormalization"):
            continue  # only what an activation passes on matters
        if not last and chain(tensors[live[0]], segments.outputs, segments.producer_index):
            continue
        handed = outputs if last else tuple(live)
        if linear and handed and changed.intersection(handed):
            blocks.append(FittedBlock(start, stop, handed, last))
        start, linear = stop, 0
    return blocks


def joined(blocks: Sequence[FittedBlock], span: int) -> list[FittedBlock]:
    """Return up to `span` consecutive blocks as one each, evenly; without what would remain a single block.

    The block at the model's outputs is not among them: classes are few numbers for the weights of several blocks, which
    fit the samples instead (ResNet-20 at half of its MACs: 84.55 % with it, 85.26 % without).
    """
    if span == 1:
        return [*blocks]
    inner = [b for b in blocks if not b.last]
    count = ceil(len(inner) / span)
    edges = [len(inner) * i // count for i in range(count + 1)] if count else []
    parts = [inner[i:j] for i, j in pairwise(edges)]
    return [replace(p[-1], start=p[0].start, first=p[0].outputs[0]) for p in parts if len(p) > 1]


def _original_cut(cursor: PairedCursor, block: FittedBlock) -> int:
    """Return a cut of the original before all nodes of a block; it may have nodes that the pruned model has not."""
    index = cursor.original_cursor.segments.producer_index
    nodes = cursor.pruned_cursor.segments.nodes[block.start : block.stop]
    return min((index[o.name] for n in nodes for o in n.outputs if o.name in index), default=0)


def _own_weights(model: Model, block: FittedBlock) -> set[str]:
    """Return the constants that only nodes of the block read."""
    inside: set[str] = set()
    outside: set[str] = set()
    for i, node in enumerate(model.graph.nodes):
        bodies = (t for body in node.subgraphs(recursive=True) for n in body.nodes for t in n.inputs)
        names = {t.name for t in (*node.inputs, *bodies) if isinstance(t, gs.Constant)}
        (inside if block.start <= i < block.stop else outside).update(names)
    return inside - outside


def _batches(
    cursor: PairedCursor, block: FittedBlock, segment: Model, memory: int
) -> Iterator[tuple[list[Array], list[Array]]]:
    """Yield the inputs of a block and the outputs that the original has there, batch by batch within the memory."""
    inputs = [t.name for t in segment.graph.inputs]
    stride = 1
    pairs = zip(cursor.pruned_cursor.values(inputs), cursor.original_cursor.values(block.outputs), strict=True)
    for i, (ours, theirs) in enumerate(pairs):
        if i == 0:
            each = sum(v.nbytes for v in (*ours.values(), *theirs.values()))
            stride = max(1, ceil(each * len(cursor.pruned_cursor) / memory))
        if i % stride == 0:
            yield [ours[n] for n in inputs], [_compressed(cursor, n, theirs[n]) for n in block.outputs]


def _compressed(cursor: PairedCursor, name: str, values: Array) -> Array:
    """Return the entries of a tensor of the original that the pruned model keeps."""
    for axis in range(len(cursor.analysis.table.variables.get(name) or ())):
        keep = cursor.analysis.keep(name, axis, cursor.kept)
        if keep is not None:
            values = np.compress(keep, values, axis)
    return values


class _Descent:
    """Adam on the weights of one block, with a rate for each weight in proportion to its size and a cosine schedule."""

    def __init__(self, module: fx.GraphModule, own: set[str], epochs: int, seed: int) -> None:
        import torch

        from onnxprune.torch_bridge import bindings

        self.module, self.epochs, self.seed = module.eval(), epochs, seed
        parameters = dict(module.named_parameters())
        groups = []
        for b in bindings(module):
            p = parameters.get(b.path)
            if p is None or b.kind != "trained":
                continue
            if b.initializer not in own:
                p.requires_grad_(False)
                continue
            groups.append({"params": [p], "lr": _RATE * max(float(p.detach().square().mean().sqrt()), 1e-3)})
        self.optimizer = torch.optim.Adam(groups) if groups else None

    def run(self, batches: Sequence[tuple[list[Array], list[Array]]]) -> tuple[float, float]:
        """Fit; keep the weights of the best epoch; return the held-out error before and after."""
        import torch

        stride = min(_HOLDOUT_STRIDE, len(batches))
        held = [b for i, b in enumerate(batches) if i % stride == stride - 1]
        used = [b for i, b in enumerate(batches) if i % stride != stride - 1]
        scale = sum(float(np.square(z, dtype=np.float64).sum()) for _, zs in held for z in zs)
        count = sum(prod(z.shape) for _, zs in held for z in zs)
        if self.optimizer is None or not used or not scale:
            return 0.0, 0.0
        before = best = self._error(held) / scale
        state = {k: v.clone() for k, v in self.module.state_dict().items()}
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.epochs * len(used))
        rng = np.random.default_rng(self.seed)
        for _ in range(self.epochs):
            for i in rng.permutation(len(used)):
                gaps, size = self._gaps(*used[i]), sum(prod(z.shape) for z in used[i][1])
                loss = sum(g.square().sum() for g in gaps) * (count / scale / max(1, size))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                schedule.step()
            error = self._error(held) / scale
            if error < best:
                best = error
                state = {k: v.clone() for k, v in self.module.state_dict().items()}
        self.module.load_state_dict(state)
        return before, best

    def _gaps(self, inputs: Sequence[Array], wanted: Sequence[Array]) -> list[torch.Tensor]:
        import torch

        found = self.module(*(torch.from_numpy(np.array(x)) for x in inputs))
        outputs = found if isinstance(found, tuple) else (found,)
        return [y - torch.from_numpy(np.array(z)) for y, z in zip(outputs, wanted, strict=True)]

    def _error(self, batches: Sequence[tuple[list[Array], list[Array]]]) -> float:
        import torch

        with torch.no_grad():
            return sum(float(g.double().square().sum()) for b in batches for g in self._gaps(*b))
