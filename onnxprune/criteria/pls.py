"""PLS-VIP: importance of feature maps for the classes, from one partial least squares regression over all layers.

Every feature map is pooled to one number per image (or a few). These columns X, of all layers side by side, and the
classes Y are standardized; a partial least squares with few components finds the directions of X that vary most with Y.
A column's VIP, variable importance in projection, is its share in them:

    for a = 1, 2, ...:  w_a = first left singular vector of X'Y,  t_a = X w_a,  q_a = Y't_a / t_a't_a,
                        X -= t_a p_a' with p_a = X't_a / t_a't_a,  Y -= t_a q_a'
    SS_a = (t_a't_a) (q_a'q_a),   VIP_j = sqrt(p sum_a SS_a w_ja^2 / sum_a SS_a)

The squares of all p VIP average 1; a constant column has 0. The singular vector is exact: NIPALS, the power iteration
of most implementations, stops early, and its result depends on the order of the classes.

X is never deflated. All of the above follows from C = X'Y and from products S v with S = X'X:

    t'Y = w'C,  X't = S w,  t't = w'S w;   after a component:  C -= (t't) p q',  S -= (t't) p p'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.feature_maps import FeatureSite, feature_sites
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.criteria.model_runs.block_losses import check_block_samples
from onnxprune.criteria.model_runs.block_pls import BlockImportance
from onnxprune.criteria.model_runs.block_runs import BlockScorer
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, Probe, Statistic

POOLS = ("max", "mean")

ROWS = 512  # samples whose products are computed at once
COLUMNS = 1024  # columns of a panel of X'X, which bounds the memory of an update
# Below this share of the first singular value, X'Y is rounding error.
_EXHAUSTED = 1e-10


def vip(x: NDArray[Any], y: NDArray[Any], components: int = 2) -> Array:
    """Return the VIP of every column of x for y.

    Args:
        x: `[n, p]` numbers, n >= 2.
        y: `[n, classes]` one-hot, or `[n]`, any numbers.
        components: Components of the regression; fewer are used if x or y is exhausted.

    Returns:
        `[p]` float64; zeros if nothing in x varies with y.

    Raises:
        OnnxPruneError: Shapes that do not fit, fewer than two rows, numbers that are not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    y = y[:, None] if y.ndim == 1 else y
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not x.size or not y.size:
        raise OnnxPruneError(f"PLS needs x [n, p] and y [n, classes], not {list(x.shape)} and {list(y.shape)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise OnnxPruneError("PLS needs finite numbers")
    sums = Products(len(x))
    sums.add(x, y)
    return sums.vip(components)


class Products:
    """Products of X and Y that PLS needs, from blocks of their rows.

    If there are fewer rows than columns the rows are stored, else the columns' products: `8 p min(n, p)` bytes.

    Args:
        rows: Number of rows in all.
        at_once: Rows whose products are computed at once.
        panel: Columns of X'X that are updated at once.
    """

    def __init__(self, rows: int, *, at_once: int = ROWS, panel: int = COLUMNS) -> None:
        self.rows, self.at_once, self.panel = rows, at_once, panel
        self.count = 0
        self.pending: list[Array] = []  # rows whose products are not computed yet

    def add(self, x: Array, y: Array) -> None:
        """Add rows, `[m, p]` and `[m, classes]` float64."""
        if not self.count:
            # Subtract the first row: a constant column is then exactly 0, and small variation is not lost in the
            # square of a large mean.
            self.x0, self.y0 = x[0].copy(), y[0].copy()
            p, classes = x.shape[1], y.shape[1]
            self.sum_x, self.sum_y, self.squares_y = np.zeros(p), np.zeros(classes), np.zeros(classes)
            self.cross = np.zeros((p, classes))
            self.keeps_rows = self.rows <= p
            self.kept = np.zeros((self.rows if self.keeps_rows else p, p))
        x, y = x - self.x0, y - self.y0
        self.sum_x += x.sum(0)
        self.sum_y += y.sum(0)
        self.squares_y += np.square(y).sum(0)
        self.cross += x.T @ y
        if self.keeps_rows:
            self.kept[self.count : self.count + len(x)] = x
        else:
            self.pending.append(x)
            if sum(map(len, self.pending)) >= self.at_once:
                self._multiply()
        self.count += len(x)

    def _multiply(self) -> None:
        """Add the pending rows' products to the lower half of X'X, panel by panel."""
        x = np.concatenate(self.pending) if self.pending else np.zeros((0, len(self.sum_x)))
        self.pending = []
        for start in range(0, x.shape[1], self.panel):
            panel = slice(start, start + self.panel)
            self.kept[start:, panel] += x[:, start:].T @ x[:, panel]

    def vip(self, components: int) -> Array:
        """Return the VIP of every column, [p].

        Raises:
            OnnxPruneError: Fewer than two rows.
        """
        n = self.count
        if n < 2:
            raise OnnxPruneError(f"PLS needs at least two samples; there are {n}")
        mean_x, mean_y = self.sum_x / n, self.sum_y / n
        if self.keeps_rows:
            kept = self.kept[:n]
            squares = np.einsum("np,np->p", kept, kept)
        else:
            self._multiply()
            for start in range(0, len(mean_x), self.panel):
                stop = start + self.panel
                self.kept[start:stop, stop:] = self.kept[stop:, start:stop].T
            squares = np.diagonal(self.kept)
        spread_x = _spread(squares, mean_x, n)
        spread_y = _spread(self.squares_y, mean_y, n)

        def product_of(v: Array) -> Array:
            """Return X'X v for the standardized X."""
            u = v / spread_x
            raw = self.kept[:n].T @ (self.kept[:n] @ u) if self.keeps_rows else self.kept @ u
            return np.asarray((raw - n * mean_x * (mean_x @ u)) / spread_x)

        cross = (self.cross - n * np.outer(mean_x, mean_y)) / np.outer(spread_x, spread_y)
        return _importance(cross, product_of, components)


def _spread(squares: Array, mean: Array, n: int) -> Array:
    """Return the standard deviation (ddof = 1) of columns; 1 for constant ones."""
    variance = (squares - n * mean**2) / (n - 1)
    return np.sqrt(np.where(variance > 0, variance, 1.0))


def _importance(cross: Array, product_of: Callable[[Array], Array], components: int) -> Array:
    """Return VIP from X'Y `[p, classes]` and the operator v -> X'X v, both of standardized columns."""
    past: list[tuple[float, Array]] = []  # t't and p of the components so far
    total, shares, first = 0.0, np.zeros(len(cross)), 0.0
    for _ in range(components):
        _, values, right = np.linalg.svd(cross, full_matrices=False)
        first = first or float(values[0])
        if not values[0] > _EXHAUSTED * first:
            break
        w = cross @ right[0]  # the left vector; exactly 0 for constant columns
        w /= np.linalg.norm(w)
        along = product_of(w) - sum((norm * p * (p @ w) for norm, p in past), np.zeros(len(w)))
        norm = float(w @ along)
        if norm <= 0:  # only by rounding: X is exhausted
            break
        p, q = along / norm, cross.T @ w / norm
        explained = norm * float(q @ q)
        shares += explained * w**2
        total += explained
        cross = cross - norm * np.outer(p, q)
        past.append((norm, p))
    return np.sqrt(len(cross) * shares / total) if total else shares


def threshold_rule(layers: Sequence[Array], share: float) -> tuple[float, list[NDArray[np.int64]]]:
    """Return the filters that the paper removes: those up to one threshold for all layers.

    The threshold is the score whose share of scores at or below it is nearest to `share` (in float64, as the original
    code counts; the first such score if two are equally near). At least one filter is therefore removed. A layer that
    would lose all of its filters loses none.

    Args:
        layers: Scores per layer.
        share: Share of all filters, from 0 to 1.

    Returns:
        The threshold, and per layer the filters to remove, ascending.

    Raises:
        OnnxPruneError: No scores, or a share out of range.
    """
    scores = np.concatenate([np.zeros(0), *layers])
    if not len(scores) or not 0 <= share <= 1:
        raise OnnxPruneError(
            f"cannot remove a share of {share!r} of {len(scores)} filters", fix="use a share from 0 to 1"
        )
    below = np.searchsorted(np.sort(scores), scores, side="right") / len(scores)
    threshold = float(scores[np.argmin(np.abs(below - share))])
    chosen = [np.flatnonzero(layer <= threshold) for layer in layers]
    return threshold, [c[:0] if len(c) == len(layer) else c for c, layer in zip(chosen, layers, strict=True)]


def pooled(values: NDArray[Any], axis: int, samples: int, *, pool: str = "max", grid: int = 1) -> Array:
    """Return each map as the largest (or mean) value of each of its cells.

    Args:
        values: `[samples * k, ...]`; the k maps of a sample are pooled together.
        axis: Axis of the channels.
        samples: Number of samples.
        pool: "max" or "mean".
        grid: Cells along each axis of a map, at most its length. Cells are those of adaptive pooling: the i-th of g
            on a length s covers floor(i s / g) to ceil((i + 1) s / g).

    Returns:
        `[samples, channels, cells]` float64.
    """
    maps = np.moveaxis(values, axis, 1)
    over = tuple(range(2, maps.ndim))
    cuts = [_cells(size, grid) for size in maps.shape[2:]]
    columns = [_pool(maps[(slice(None), slice(None), *cell)], over, pool) for cell in product(*cuts)]
    together = np.stack(columns, axis=2)
    return _pool(together.reshape(samples, -1, *together.shape[1:]), (1,), pool)


def _cells(size: int, grid: int) -> list[slice]:
    count = min(grid, size)
    return [slice(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _pool(values: NDArray[Any], axes: tuple[int, ...], pool: str) -> Array:
    return np.asarray(values.max(axes) if pool == "max" else values.mean(axes, np.float64), np.float64)


class _Columns:
    """Collector of the columns of all tensors for the same samples, which become rows of X.

    Args:
        labels: [n].
        tensors: Number of tensors.
    """

    def __init__(self, labels: NDArray[np.int64], tensors: int) -> None:
        self.labels, self.classes = labels, np.unique(labels)
        self.parts: list[Array | None] = [None] * tensors
        self.widths: list[int] = []
        self.sums = Products(len(labels))

    def add(self, place: int, columns: Array, samples: range) -> None:
        """Add the columns `[samples, p]` of one tensor; each tensor is added once before the next samples."""
        self.parts[place] = columns
        parts = [part for part in self.parts if part is not None]
        if len(parts) == len(self.parts):
            y = self.labels[samples.start : samples.stop, None] == self.classes
            self.widths = [part.shape[1] for part in parts]
            self.sums.add(np.concatenate(parts, axis=1), y.astype(np.float64))
            self.parts = [None] * len(self.parts)


class _Pooled(Statistic):
    """Statistic that pools the maps of one tensor's scored channels into the columns.

    Args:
        columns: Collector of the columns.
        place: Index of the tensor.
        site: Tensor and axis of the channels.
        wanted: Mask of the scored indices along the axis.
        rule: Criterion with the pooling parameters.
    """

    def __init__(
        self, columns: _Columns, place: int, site: FeatureSite, wanted: NDArray[np.bool_], rule: PlsVip
    ) -> None:
        self.columns, self.place, self.site, self.wanted, self.rule = columns, place, site, wanted, rule

    def add(self, values: NDArray[np.floating], samples: range) -> None:
        """Pool the tensor `[samples * k, ...]`."""
        cells = pooled(values, self.site.axis, len(samples), pool=self.rule.pool, grid=self.rule.grid)
        self.columns.add(self.place, cells[:, self.wanted].reshape(len(samples), -1), samples)


@register
@dataclass(frozen=True)
class PlsVip(DataCriterion):
    """`s_c = mean of VIP_j` over the columns j of channel c, in one regression on all of the scored groups.

    Maps are pooled before the nonlinearity and before residual additions, as in the paper. Scores depend on the set of
    scored groups: they share the VIP among them.

    Args:
        pool: "max" or "mean" of a map, or of each of its cells.
        grid: Cells along each axis of a map, each a separate column; 1: one column per channel.
        components: Components of the regression.
    """

    pool: str = "max"
    grid: int = 1
    components: int = 2

    name: ClassVar[str] = "pls_vip"
    title: ClassVar[str] = "importance in a partial least squares of classes on pooled feature maps, all layers at once"
    source: ClassVar[str] = "Jordao et al. 2020, Deep Network Compression Based on Partial Least Squares"
    needs: ClassVar[str] = "labels"
    default_normalize: ClassVar[str] = "none"
    forbids: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"normalize": "one regression ranks the channels of all layers, so its scores already share a scale"}
    )

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise OnnxPruneError(f"pls_vip: unknown pool {self.pool!r}", fix=f"choose from: {', '.join(POOLS)}")
        for name in ("grid", "components"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OnnxPruneError(
                    f"pls_vip: {name} must be a whole number of at least 1, not {value!r}", fix=f"{name}=2"
                )

    def block_scorer(self, analysis: Analysis, calibration: Calibration | None, count: int) -> BlockScorer:
        """Return the mean VIP of each block's outputs, as in Jordao et al. 2020, Discriminative Layer Pruning."""

        def pool(values: NDArray[Any], axis: int, samples: int) -> Array:
            return pooled(values, axis, samples, pool=self.pool, grid=self.grid)

        def importance(x: Array, y: Array) -> Array:
            products = Products(len(x))
            products.add(x, y)
            return products.vip(self.components)

        samples = check_block_samples(self.name, calibration, labels=True)
        return BlockImportance(analysis, samples, count, pool, importance)

    def least_samples(self, context: ScoringContext) -> int:
        return 2  # a standard deviation needs two

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        labels = context.running_labels
        if len(np.unique(labels)) < 2:
            raise OnnxPruneError(
                f"criterion 'pls_vip' needs two classes; all samples are of class {labels[0]}",
                fix="pass samples of at least two classes",
            )
        components = np.concatenate([np.zeros(0, np.int64), *(g.components for g in context.groups)])
        sites = [
            (site, np.isin(site.components, components))
            for site in feature_sites(context.analysis, context.groups, "linear")
        ]
        sites = [(site, wanted) for site, wanted in sites if wanted.any()]
        columns = _Columns(labels, len(sites))
        return [Probe(s.tensor, _Pooled(columns, i, s, wanted, self)) for i, (s, wanted) in enumerate(sites)]

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        statistics = [probe.statistic for probe in probes if isinstance(probe.statistic, _Pooled)]
        if not statistics:
            return []
        columns = statistics[0].columns
        each = np.split(columns.sums.vip(self.components), np.cumsum(columns.widths)[:-1])
        found = []
        for statistic, values in zip(statistics, each, strict=True):
            scores = np.zeros(len(statistic.wanted))
            scores[statistic.wanted] = values.reshape(statistic.wanted.sum(), -1).mean(1)
            found.append(SiteScores(statistic.site.components, scores))
        return found
