"""What the layers that read a group's channels lose when some of them go: the common part of `obs` and `thinet`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from onnxprune.calibration import Probe, Statistic
from onnxprune.coupling import Group
from onnxprune.criteria.base import Array, ScoringContext
from onnxprune.errors import OnnxPruneError
from onnxprune.gram import Consumer, Gram, consumers, picked_positions, row_blocks
from onnxprune.model import Array as Values

Indices = npt.NDArray[np.int64]

ROWS = 30_000  # per reading layer; more change the choice little
WIDE = 5_000  # inputs x kernel: beyond, a Gram matrix takes 200 MB and its inverse minutes
_MEMORY = 2**30  # bytes of Gram matrices at a time
_OUTPUTS = 64  # of a wide layer, looked at


class Contributions(Statistic):
    """For layers of too many inputs for a Gram matrix: second moments of what each channel adds to sampled outputs.

    Solving anew then means one factor for each channel.

    Args:
        consumer: the layer.
        wanted: components of the channels.
        positions: output positions looked at in every sample, at most.
        seed: of the choice of outputs and positions.
    """

    def __init__(self, consumer: Consumer, wanted: Indices, positions: int, seed: int) -> None:
        self.node, self.wanted, self.seed = consumer.node, positions, seed
        self.blocks = [consumer.blocks(q, wanted) for q in range(self.node.groups)]
        each, groups = self.node.outputs // self.node.groups, self.node.groups
        self.weights = self.node.matrix(picked_positions(each, max(1, _OUTPUTS // groups), 0, seed))
        self._products = np.zeros((len(wanted), len(wanted)))
        # Sums are of differences from the first mean, as in `Gram`.
        self._sums, self._origin = np.zeros((2, len(wanted), groups * self.weights.shape[2]))
        self.rows = 0

    def add(self, values: Values, samples: range) -> None:
        """Takes in the layer's input `[samples * k, ...]`."""
        width = max(self._sums.size, self.node.groups * self.node.inputs * self.node.kernel)
        for rows in row_blocks(self.node, values, samples, self.wanted, self.seed, width):
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
        """[channels, channels], summed over the sampled outputs."""
        shift = self._sums / self.rows
        mean = self._origin + shift
        found = self._products / self.rows - shift @ shift.T
        return np.asarray(found if centred else found + mean @ mean.T)


@dataclass(frozen=True)
class ConsumerProbe(Probe):
    """A probe of what a layer reads; for a wide layer, of one group's channels in it."""

    statistic: Gram | Contributions
    consumer: Consumer
    group: str | None


@dataclass(frozen=True)
class ConsumerStatistics:
    """A layer that reads a group, and what is known of what it reads."""

    consumer: Consumer
    statistic: Gram | Contributions

    @property
    def centred(self) -> bool:
        """Whether a shift of its outputs costs nothing: it has a bias, or takes one."""
        return self.consumer.node.intercept

    def problems(self, group: Group, *, centred: bool) -> Iterator[tuple[Array, Array, list[Indices]]]:
        """(moments [n, n], weight [n, outputs], indices of every channel) of independent linear maps.

        Args:
            group: whose channels.
            centred: central second moments, or those about zero.
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
    """Mean square of a linear map's outputs (their variance, if the moments are central), summed over the outputs."""
    return float(np.sum(weight * (moments @ weight)))


def consumer_probes(context: ScoringContext, rows: int, seed: int) -> list[ConsumerProbe]:
    """Probes for all groups, if what they collect fits into memory together; else none.

    Raises:
        OnnxPruneError: the layers that read the groups have weights of integers, which nothing is solved for.
    """
    table = context.analysis.table
    integers = table.quantized or any(root.dtype.kind in "iu" for root, _ in table.views.values())
    if context.groups and integers and not consumers(context.analysis, context.groups):
        raise OnnxPruneError(
            "this criterion solves for weights, and this model's are quantized",
            fix="score and prune the model before it is quantized, or choose another criterion",
        )
    return _probes(context, context.groups, rows, seed) if len(_portions(context)) == 1 else []


def consumer_statistics(
    context: ScoringContext, probes: Sequence[Probe], rows: int, seed: int
) -> Iterator[list[tuple[Group, list[ConsumerStatistics]]]]:
    """Groups with the layers that read them, as many at a time as fit into memory.

    Args:
        context: whose groups.
        probes: those from `reader_probes`, filled. Where they are none, the samples are run for each portion.
        rows: output positions of each layer, in all samples together.
        seed: of their choice.
    """
    filled = [p for p in probes if isinstance(p, ConsumerProbe)]
    if filled:
        yield _known(context.groups, filled)
        return
    for groups in _portions(context):
        own = _probes(context, groups, rows, seed)
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


def _wide(consumer: Consumer) -> bool:
    return consumer.node.inputs * consumer.node.kernel > WIDE


def _portions(context: ScoringContext) -> list[list[Group]]:
    """Groups whose statistics fit into memory together, in order."""
    found = consumers(context.analysis, context.groups)
    portions: list[list[Group]] = [[]]
    used = 0
    counted: set[str] = set()  # layers that an earlier group of the portion has read as well
    for group in context.groups:
        own = [c for c in found if c.reads(group)]
        need = sum(_bytes(c, group) for c in own if c.node.output not in counted)
        if portions[-1] and used + need > _MEMORY:
            portions.append([])
            used, counted = 0, set()
            need = sum(_bytes(c, group) for c in own)
        portions[-1].append(group)
        used += need
        counted |= {c.node.output for c in own if not _wide(c)}
    return portions


def _bytes(consumer: Consumer, group: Group) -> int:
    """Of a layer's statistic."""
    node = consumer.node
    return 8 * group.channels**2 if _wide(consumer) else 8 * node.groups * (node.inputs * node.kernel) ** 2


def _probes(context: ScoringContext, groups: Sequence[Group], rows: int, seed: int) -> list[ConsumerProbe]:
    positions = ceil(rows / len(context.calibration))
    out = []
    for c in consumers(context.analysis, groups):
        if not _wide(c):
            out.append(ConsumerProbe(c.tensor, Gram(c.node, positions, seed), c, None))
            continue
        out += [
            ConsumerProbe(c.tensor, Contributions(c, g.components, positions, seed), c, g.name)
            for g in groups
            if c.reads(g)
        ]
    return out


@dataclass(frozen=True)
class RemovalOrder:
    """In which order channels of a group go, and what each adds to the readers' squared error.

    Attributes:
        channels: places in the group, [channels].
        error_increases: [channels], as shares of the readers' output energies, summed over the readers.
    """

    channels: Indices
    error_increases: Array


def ordered_scores(order: RemovalOrder) -> Array:
    """Scores by channel whose order is the order of removal and whose sums are those of the rises, [channels].

    Rises need not grow; the nearest non-decreasing sequence (least squares, by pooling adjacent violators; Ayer et
    al. 1955) takes their place, which is the lower convex hull of their running sums. Ties are broken in the order of
    removal by the smallest steps that float64 knows.
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
    """Refuses a number of positions that makes no sense.

    Raises:
        OnnxPruneError: with what it must be.
    """
    if type(rows) is not int or rows < 1:
        raise OnnxPruneError(f"{name}: rows must be a number of positions, not {rows!r}", fix=f"rows={ROWS}")
