"""Error of the consumers of a group's channels when some are removed: the common part of `obs` and `thinet`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Group
from onnxprune.criteria.base import Array, ScoringContext
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Probe, Statistic
from onnxprune.execution.gram import BLOCK, Consumer, Gram, consumers, picked_positions, row_blocks
from onnxprune.ir.model import Array as Values

Indices = npt.NDArray[np.int64]

ROWS = 30_000  # per consumer; more change the choice little


@dataclass(frozen=True)
class StatisticLimits:
    """Limits of the statistics of consumers.

    Attributes:
        width: Inputs x kernel of a layer with a Gram matrix; above, it needs 200 MB and its inverse minutes.
        outputs: Sampled outputs of wider layers.
        memory: Bytes of Gram matrices at a time.
        block: Elements of rows of wider layers processed together.
    """

    width: int = 5_000
    outputs: int = 64
    memory: int = 2**30
    block: int = BLOCK


class Contributions(Statistic):
    """Second moments of each channel's contribution to sampled outputs, for layers too wide for a Gram matrix.

    Re-solving is then one factor for each channel.

    Args:
        consumer: Layer that reads the channels.
        wanted: Components of the channels.
        positions: Most output positions used in every sample.
        seed: Seed of the choice of outputs and positions.
        limits: Number of sampled outputs, and elements processed together.
    """

    def __init__(self, consumer: Consumer, wanted: Indices, positions: int, seed: int, limits: StatisticLimits) -> None:
        self.node, self.wanted, self.seed, self._block = consumer.node, positions, seed, limits.block
        self.blocks = [consumer.blocks(q, wanted) for q in range(self.node.groups)]
        each, groups = self.node.outputs // self.node.groups, self.node.groups
        self.weights = self.node.matrix(picked_positions(each, max(1, limits.outputs // groups), 0, seed))
        self._products = np.zeros((len(wanted), len(wanted)))
        # Sums use differences from the first mean, as in `Gram`.
        self._sums, self._origin = np.zeros((2, len(wanted), groups * self.weights.shape[2]))
        self.rows = 0

    def add(self, values: Values, samples: range) -> None:
        """Add the layer's input `[samples * k, ...]`."""
        width = max(self._sums.size, self.node.groups * self.node.inputs * self.node.kernel)
        for rows in row_blocks(self.node, values, samples, self.wanted, self.seed, width, self._block):
            parts = zip(rows.astype(np.float64), self.blocks, self.weights, strict=True)
            added = np.concatenate([np.stack([r[:, b] @ w[b] for b in blocks]) for r, blocks, w in parts], axis=2)
            if not self.rows:
                self._origin = added.mean(1)
            added -= self._origin[:, None]
            flat = added.reshape(len(added), -1)  # [channels, rows * outputs]
            self._products += flat @ flat.T
            self._sums += added.sum(1)
            self.rows += added.shape[1]

    def moments(self, centred: bool) -> Array:
        """Return the moments [channels, channels], summed over the sampled outputs."""
        shift = self._sums / self.rows
        mean = self._origin + shift
        found = self._products / self.rows - shift @ shift.T
        return np.asarray(found if centred else found + mean @ mean.T)


@dataclass(frozen=True)
class ConsumerProbe(Probe):
    """Probe of a layer's input; for a wide layer, of one group's channels in it."""

    statistic: Gram | Contributions
    consumer: Consumer
    group: str | None


@dataclass(frozen=True)
class ConsumerStatistics:
    """Consumer of a group, with the statistic of its input."""

    consumer: Consumer
    statistic: Gram | Contributions

    @property
    def centred(self) -> bool:
        """Return whether a shift of its outputs is free: the layer has a bias, or can get one."""
        return self.consumer.node.intercept

    def problems(self, group: Group, *, centred: bool) -> Iterator[tuple[Array, Array, list[Indices]]]:
        """Yield (moments [n, n], weight [n, outputs], indices of every channel) of independent linear maps.

        Args:
            group: Group whose channels are indexed.
            centred: Central second moments, else those about zero.
        """
        statistic = self.statistic
        if isinstance(statistic, Contributions):
            moments = statistic.moments(centred)
            yield moments, np.ones((len(moments), 1)), list(np.arange(len(moments))[:, None])
            return
        for q, weight in enumerate(self.consumer.node.matrix()):
            moments = statistic.covariance(q) if centred else statistic.moments(q)
            yield moments, weight, self.consumer.blocks(q, group.components)


def energy(moments: Array, weight: Array) -> float:
    """Return the mean square of a linear map's outputs (the variance for central moments), summed over outputs."""
    return float(np.sum(weight * (moments @ weight)))


def consumer_probes(context: ScoringContext, rows: int, seed: int, limits: StatisticLimits) -> list[ConsumerProbe]:
    """Return probes for all groups, if their statistics fit into memory together; else none.

    Raises:
        OnnxPruneError: The consumers of the groups have integer weights, which cannot be re-solved.
    """
    if context.groups and context.analysis.table.integer_weights and not consumers(context.analysis, context.groups):
        raise OnnxPruneError(
            "this criterion re-solves weights, and this model's are quantized",
            fix="prune the model before it is quantized, see docs/howto/quantized.md; or -c l2 without --data",
        )
    one = len(_portions(context, limits)) == 1
    return _probes(context, context.groups, rows, seed, limits) if one else []


def consumer_statistics(
    context: ScoringContext, probes: Sequence[Probe], rows: int, seed: int, limits: StatisticLimits
) -> Iterator[list[tuple[Group, list[ConsumerStatistics]]]]:
    """Yield groups with their consumers, as many at a time as fit into memory.

    Args:
        context: Model, groups and samples.
        probes: Filled probes from `consumer_probes`. If empty, the samples are run for each portion.
        rows: Output positions of each layer, over all samples.
        seed: Seed of the choice of positions.
        limits: Limits of the statistics.
    """
    filled = [p for p in probes if isinstance(p, ConsumerProbe)]
    if filled:
        yield _known(context.groups, filled)
        return
    for groups in _portions(context, limits):
        own = _probes(context, groups, rows, seed, limits)
        context.calibration.collect(context.analysis.model, own, progress=context.progress)
        yield _known(groups, own)


def _known(groups: Sequence[Group], probes: Sequence[ConsumerProbe]) -> list[tuple[Group, list[ConsumerStatistics]]]:
    return [
        (
            g,
            [
                ConsumerStatistics(p.consumer, p.statistic)
                for p in probes
                if p.group in (None, g.name) and p.consumer.reads(g)
            ],
        )
        for g in groups
    ]


def _wide(consumer: Consumer, limits: StatisticLimits) -> bool:
    return consumer.node.inputs * consumer.node.kernel > limits.width


def _portions(context: ScoringContext, limits: StatisticLimits) -> list[list[Group]]:
    """Return groups, in order, in portions whose statistics fit into memory together."""
    found = consumers(context.analysis, context.groups)
    portions: list[list[Group]] = [[]]
    used = 0
    counted: set[str] = set()  # layers that also read an earlier group of the portion
    for group in context.groups:
        own = [c for c in found if c.reads(group)]
        need = sum(_bytes(c, group, limits) for c in own if c.node.output not in counted)
        if portions[-1] and used + need > limits.memory:
            portions.append([])
            used, counted = 0, set()
            need = sum(_bytes(c, group, limits) for c in own)
        portions[-1].append(group)
        used += need
        counted |= {c.node.output for c in own if not _wide(c, limits)}
    return portions


def _bytes(consumer: Consumer, group: Group, limits: StatisticLimits) -> int:
    """Return the bytes of a layer's statistic."""
    node = consumer.node
    return 8 * group.channels**2 if _wide(consumer, limits) else 8 * node.groups * (node.inputs * node.kernel) ** 2


def _probes(
    context: ScoringContext, groups: Sequence[Group], rows: int, seed: int, limits: StatisticLimits
) -> list[ConsumerProbe]:
    positions = ceil(rows / len(context.calibration))
    out = []
    for c in consumers(context.analysis, groups):
        if not _wide(c, limits):
            out.append(ConsumerProbe(c.tensor, Gram(c.node, positions, seed), c, None))
            continue
        out += [
            ConsumerProbe(c.tensor, Contributions(c, g.components, positions, seed, limits), c, g.name)
            for g in groups
            if c.reads(g)
        ]
    return out


@dataclass(frozen=True)
class RemovalOrder:
    """Removal order of a group's channels, and the increase of the consumers' squared error at each step.

    Attributes:
        channels: Indices in the group, [channels].
        error_increases: [channels], as shares of the consumers' output energies, summed over the consumers.
    """

    channels: Indices
    error_increases: Array


def ordered_scores(order: RemovalOrder) -> Array:
    """Return scores by channel, [channels], whose order is the removal order and whose sums are those of the rises.

    Rises may decrease; they are replaced by the nearest non-decreasing sequence (least squares, by pooling adjacent
    violators; Ayer et al. 1955), which is the lower convex hull of their running sums. Ties are broken in removal
    order by the smallest float64 steps.
    """
    sums: list[float] = []
    counts: list[int] = []
    for rise in order.error_increases.tolist():
        sums.append(rise)
        counts.append(1)
        while len(sums) > 1 and sums[-2] * counts[-1] >= sums[-1] * counts[-2]:
            sums[-2:] = [sums[-2] + sums[-1]]
            counts[-2:] = [counts[-2] + counts[-1]]
    values = np.repeat(np.array(sums) / np.array(counts), counts)
    for i in range(1, len(values)):
        if values[i] <= values[i - 1]:
            values[i] = np.nextafter(values[i - 1], np.inf)
    scores = np.empty(len(values))
    scores[order.channels] = values
    return scores


def check_rows(name: str, rows: object) -> None:
    """Raise if a number of positions is not a positive integer.

    Raises:
        OnnxPruneError: `rows` is not a positive integer.
    """
    if type(rows) is not int or rows < 1:
        raise OnnxPruneError(f"{name}: rows must be a number of positions, not {rows!r}", fix=f"rows={ROWS}")
