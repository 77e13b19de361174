"""Claims of the compiler about kept indices, as plain data that the checker does not trust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxprune.errors import VerificationError
from onnxprune.ir.model import Array

if TYPE_CHECKING:
    from onnxprune.analysis.coupling import Analysis
    from onnxprune.plans import Plan

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MaskSite:
    """Node input at which removed channels count as zero.

    Attributes:
        node: Name of the node's first output.
        index: Index of the input.
        axis: Axis of the input.
        rank: Rank of the input.
        kept: bool [size of the axis].
        zero: For quantized data, index of the input with the zero point, -1 for none; None for other data.
    """

    node: str
    index: int
    axis: int
    rank: int
    kept: Mask
    zero: int | None = None


@dataclass(frozen=True)
class StatisticSite:
    """Node that computes a statistic over channels and runs on the kept ones.

    Attributes:
        node: Name of the node's first output.
        kept: bool [size of the axis].
        inputs: (input, axis) pairs with the channel axis, the data first.
        outputs: (output, axis) pairs that still have the axis.
        counted: Whether the node sums and a constant after it divides by the count.
    """

    node: str
    kept: Mask
    inputs: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[int, int], ...]
    counted: bool


@dataclass(frozen=True)
class ZeroSite:
    """Operand of an addition that counts as zero, or of a Concat of which nothing is kept: a removed block's branch.

    Attributes:
        block: Name of the block.
        node: Result of the addition or Concat.
        index: Index of the operand.
    """

    block: str
    node: str
    index: int


@dataclass(frozen=True)
class Claims:
    """Kept indices, and the sites where removal is defined.

    Attributes:
        kept: Tensor or constant -> for each axis the kept indices, None if all are.
        masks: Masked contraction inputs.
        statistics: Nodes of inexact groups.
        dtypes: Element types of tensors; graphs are not cut at tensors without one.
        losses: (constant, axis) -> kept, for every axis that must lose channels by the plan.
        inexact: Names of inexact groups that lose channels.
        shapes: Shapes of tensors at sizes of the compiler's choice, for branches that no run of the checker executes.
        zeros: Removed blocks, as the plan itself states them.
    """

    kept: Mapping[str, tuple[Mask | None, ...]]
    masks: tuple[MaskSite, ...]
    statistics: tuple[StatisticSite, ...]
    dtypes: Mapping[str, np.dtype]
    losses: Mapping[tuple[str, int], Mask]
    inexact: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    zeros: tuple[ZeroSite, ...] = ()

    @classmethod
    def of(cls, analysis: Analysis, plan: Plan) -> Claims:
        """Return the claims of an analysis and a plan.

        Raises:
            VerificationError: A group does not lose the channels that the plan names.
        """
        bits = analysis.kept(plan)
        kept: dict[str, tuple[Mask | None, ...]] = {}
        done: dict[int, Mask | None] = {}
        table = analysis.table
        for name, axes in (*table.variables.items(), *table.constants.items()):
            masks: list[Mask | None] = []
            for labels in axes:
                if labels is not None and id(labels) not in done:
                    found: Mask = bits[analysis.component[labels]]
                    done[id(labels)] = None if found.all() else found
                masks.append(None if labels is None else done[id(labels)])
            if any(m is not None for m in masks):
                kept[name] = tuple(masks)
        sites = []
        for c in table.contractions:
            stays = bits[analysis.component[c.labels]]
            if not stays.all():
                zero = None if c.steps is None else c.steps[1]
                sites.append(MaskSite(c.output, c.input_index, c.axis, c.rank, stays, zero))
        statistics = []
        for s in table.statistics:
            stays = bits[analysis.component[s.labels]]
            if not stays.all():
                statistics.append(StatisticSite(s.output, stays, ((0, s.axis), *s.params), s.outputs, s.counted))
        losses: dict[tuple[str, int], Mask] = {}
        for name, removal in plan.groups.items():
            group = analysis[name]
            gone = np.zeros(group.channels, bool)
            gone[list(removal.removed)] = True
            if bits[group.components].tolist() != (~gone).tolist():
                raise VerificationError(
                    "the channels that are removed are not those of the plan", where=f"group {name!r}"
                )
            for constant, axis in group.sites if gone.any() else ():
                labels = table.constants[constant][axis]
                assert labels is not None
                stays = ~np.isin(analysis.component[labels], group.components[gone])
                losses[constant, axis] = losses.get((constant, axis), True) & stays
        planned = np.zeros(analysis.count, bool)
        for name, removal in plan.groups.items():
            planned[analysis[name].components[list(removal.removed)]] = True
        for name in plan.blocks:
            block = analysis.block(name)
            planned[block.components] = True
            for group in analysis.groups if block.channels else ():
                own = np.isin(group.components, block.channels)
                for constant, axis in group.sites if own.any() else ():
                    labels = table.constants[constant][axis]
                    assert labels is not None
                    stays = ~np.isin(analysis.component[labels], group.components[own])
                    losses[constant, axis] = losses.get((constant, axis), True) & stays
        if not bits[~planned].all():
            raise VerificationError("channels are removed that the plan does not name")
        inexact = tuple(g.name for g in analysis.inexact(plan))
        dtypes, shapes = dict(analysis.witness.dtypes), dict(analysis.witness.shapes)
        zeros = tuple(ZeroSite(name, b.output, b.operand) for name, b in plan.blocks.items())
        return cls(kept, tuple(sites), tuple(statistics), dtypes, losses, inexact, shapes, zeros)

    def removes(self, name: str) -> bool:
        """Return whether a tensor loses entries."""
        return name in self.kept

    def compress(self, name: str, values: Array) -> Array:
        """Return the kept entries of a tensor.

        Raises:
            VerificationError: The claim does not fit the tensor's shape.
        """
        axes = self.kept.get(name, ())
        if axes and len(axes) != values.ndim:
            raise VerificationError(
                f"it has {values.ndim} axes where {len(axes)} are claimed", where=f"tensor {name!r}"
            )
        for axis, kept in enumerate(axes):
            if kept is not None:
                values = np.take(values, np.flatnonzero(resized(kept, values.shape[axis], name)), axis)
        return values


def resized(kept: Mask, size: int, name: str) -> Mask:
    """Return the claim for another size of an axis that merges channels with a dynamic dimension.

    The claim has the form repeat(tile(part, t), r); of the two counts the outer one, usually a batch, follows the size.
    A wrong guess shows as a difference and never as a wrong proof: it is a claim like any other.

    Raises:
        VerificationError: The claim does not have this form.
    """
    if len(kept) == size:
        return kept
    changes = np.flatnonzero(np.diff(kept)) + 1
    inner = int(np.gcd.reduce([*changes.tolist(), len(kept)]))
    part = kept[::inner]
    period = next(p for p in range(1, len(part) + 1) if len(part) % p == 0 and (part.reshape(-1, p) == part[:p]).all())
    part, outer = part[:period], len(part) // period
    if size % (period * inner) == 0:
        return np.repeat(np.tile(part, size // (period * inner)), inner)
    if size % (period * outer) == 0:
        return np.repeat(np.tile(part, outer), size // (period * outer))
    raise VerificationError(
        f"{len(kept)} kept and removed indices are claimed for an axis of {size}", where=f"tensor {name!r}"
    )
