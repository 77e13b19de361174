"""Second moments of a linear node's inputs, and the output error after removing input channels.

With rows x of covariance G and weights W, removing a set S of inputs and re-solving the remaining ones by least squares
increases the squared error of the outputs by `tr(W_S' ([G^-1]_SS)^-1 W_S)`: Optimal Brain Surgeon (Hassibi & Stork
1993) with the exact Hessian of a linear layer, for blocks of inputs (a channel and its kernel) instead of single
weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.analysis.linear_layers import LinearNode, linear_node
from onnxprune.execution.calibration import Statistic
from onnxprune.ir.model import Array

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_SHARED = 64  # consecutive samples that share their positions
BLOCK = 2**22
"""Elements of rows processed together."""
_TOGETHER = 512  # rows multiplied together: adding the products of fewer costs more than computing them
PENDING = 128
"""Columns of delayed updates before they are applied."""


def picked_positions(positions: int, count: int, sample: int, seed: int = 0) -> Indices | None:
    """Return the positions that represent all positions of a tensor in a sample; None: all.

    They depend on the sample number only (and are shared by 64 consecutive samples), not on the batches.
    """
    if count >= positions:
        return None
    rng = np.random.default_rng([seed, sample // _SHARED])
    return np.sort(rng.choice(positions, count, replace=False))


def stretches(samples: range) -> list[range]:
    """Return the ranges of consecutive samples that share their positions."""
    inner = range((samples.start // _SHARED + 1) * _SHARED, samples.stop, _SHARED)
    return [range(a, b) for a, b in pairwise([samples.start, *inner, samples.stop])]


def row_blocks(
    node: LinearNode, values: Array, samples: range, positions: int, seed: int, width: int, block: int = BLOCK
) -> Iterator[Array]:
    """Yield rows of a node at selected positions of some samples, `[groups, n, inputs * kernel]` at a time.

    Args:
        node: Linear node.
        values: Its input, `[samples * k, ...]`.
        samples: Sample numbers.
        positions: Maximum number of positions per sample.
        seed: Seed of the selection.
        width: Elements computed per position; bounds n.
        block: Most elements computed at a time.
    """
    count = node.count(values)
    each = len(values) // max(1, len(samples))
    for part in stretches(samples):
        own = values[(part.start - samples.start) * each : (part.stop - samples.start) * each]
        picks = picked_positions(count, positions, part.start, seed)
        if picks is None:
            picks = np.arange(count)
        step = max(1, block // (max(1, len(own)) * width))
        for i in range(0, len(picks), step):
            yield node.rows(own, picks[i : i + step])


class Gram(Statistic):
    """Mean and second moments of a linear node's rows, [groups, inputs * kernel (twice)], in float64.

    Sums are of differences from the mean of the first rows, because inputs may vary much less than their magnitude.

    Args:
        node: Node whose input is passed to `add`.
        positions: Maximum number of output positions per sample.
        seed: Seed of the selection.
        block: Elements of rows processed together.
    """

    def __init__(self, node: LinearNode, positions: int, seed: int = 0, *, block: int = BLOCK) -> None:
        self.node, self.wanted, self.seed, self._block = node, positions, seed, block
        size = node.inputs * node.kernel
        self._triangles = [np.zeros((size, size), order="F") for _ in range(node.groups)]  # lower, of the products
        self._sums, self._origin = np.zeros((2, node.groups, size))
        self._waiting: list[Array] = []
        self._counted = 0
        self.rows = 0

    def add(self, values: Array, samples: range) -> None:
        """Add the node's input `[samples * k, ...]`."""
        for rows in row_blocks(self.node, values, samples, self.wanted, self.seed, self._sums.size, self._block):
            self.add_rows(rows)

    def add_rows(self, rows: Array) -> None:
        """Add rows [groups, n, inputs * kernel]."""
        self._waiting.append(rows)
        self.rows += rows.shape[1]
        if self.rows - self._counted >= _TOGETHER:
            self._count()

    def _count(self) -> None:
        """Add the products and sums of the waiting rows."""
        from scipy.linalg.blas import dsyrk  # slow import

        if self.rows == self._counted:
            return
        rows = np.concatenate(self._waiting, axis=1)
        if not self._counted:
            self._origin = rows.mean(1, dtype=np.float64)
        for g, own in enumerate(rows):
            wide = own - self._origin[g]
            self._triangles[g] = dsyrk(1.0, wide.T, beta=1.0, c=self._triangles[g], lower=True, overwrite_c=True)
            self._sums[g] += wide.sum(0)
        self._waiting, self._counted = [], self.rows

    @property
    def mean(self) -> Matrix:
        """Mean, [groups, inputs * kernel]."""
        self._count()
        return np.asarray(self._origin + self._sums / max(1, self.rows))

    def covariance(self, group: int = 0) -> Matrix:
        """Return the covariance of one group, [inputs * kernel, inputs * kernel]."""
        self._count()
        shift = self._sums[group] / max(1, self.rows)
        half = np.tril(self._triangles[group] / max(1, self.rows) - np.outer(shift, shift))
        return np.asarray(half + np.tril(half, -1).T)

    def moments(self, group: int = 0) -> Matrix:
        """Return the second moments about zero of one group, [inputs * kernel, inputs * kernel]."""
        return self.covariance(group) + np.outer(self.mean[group], self.mean[group])


def damped(covariance: Matrix, ridge: float) -> Matrix:
    """Return a covariance with `ridge` times its mean diagonal added to the diagonal, so that it is invertible."""
    out = covariance.copy()
    size = len(out)
    out[np.diag_indices(size)] += ridge * float(np.trace(covariance)) / size or 1.0
    return out


class Inverse:
    """Factored symmetric positive definite matrix; calling it solves for right-hand sides.

    Args:
        matrix: The matrix, in C order.
        overwrite: Use its memory for the factor, which saves a copy.
    """

    def __init__(self, matrix: Matrix, *, overwrite: bool = False) -> None:
        from scipy.linalg import cho_factor  # slow import

        # LAPACK works in place on Fortran order, which is that of the transpose; the matrix is symmetric.
        self._factor = cho_factor(
            matrix.T if overwrite else matrix, lower=True, overwrite_a=overwrite, check_finite=False
        )

    def __call__(self, right: Matrix) -> Matrix:
        """Return `matrix^-1 right`."""
        from scipy.linalg import cho_solve

        found: Matrix = cho_solve(self._factor, right, check_finite=False)
        return found

    @property
    def pivots(self) -> Vector:
        """Of a covariance: variance of each variable not explained by those before it, [n]."""
        return np.asarray(np.square(np.diagonal(self._factor[0])))

    def dense(self) -> Matrix:
        """Return the inverse matrix, at half the cost of solving for every column."""
        from scipy.linalg.lapack import dpotri

        half, _ = dpotri(self._factor[0], lower=1)
        out = np.tril(half)
        out += np.tril(half, -1).T
        return np.asarray(out)


def solved(matrix: Matrix, right: Matrix) -> Matrix:
    """Return `matrix^-1 right` for a symmetric positive definite matrix."""
    return Inverse(matrix)(right)


@dataclass
class _Blocks:
    """Blocks of one size: numbers [k], indices [k, size], and H and Q at them, [k, size, size]."""

    which: Indices
    index: Indices
    inverse: Matrix
    outer: Matrix

    def drop(self, block: int) -> None:
        """Remove a block."""
        left = self.which != block
        self.which, self.index = self.which[left], self.index[left]
        self.inverse, self.outer = self.inverse[left], self.outer[left]


class BlockOBS:
    """Removal of input blocks of a linear map one by one, with the others re-solved after each.

    Errors depend only on H, the inverse covariance of the remaining inputs, and Q = W W' of the re-solved weights.
    Removing c subtracts `S H_c.` from H and `S O' + O S'` from Q, where `S = H_.c (H_cc)^-1`, `O = Q_.c - S Q_cc / 2`.
    Updates are delayed and applied many columns at a time, which is faster; the diagonal blocks, which determine the
    errors, are always current.

    Args:
        covariance: Covariance of the inputs, [n, n].
        weight: Weights, [n, outputs].
        blocks: Indices of each block of inputs; blocks may be empty and do not overlap.
        ridge: See `damped`.
    """

    def __init__(
        self, covariance: Matrix, weight: Matrix, blocks: Sequence[Indices], ridge: float, *, pending: int = PENDING
    ) -> None:
        self._pending = pending
        own = np.concatenate([*blocks, np.zeros(0, np.int64)])
        stops = np.cumsum([len(b) for b in blocks])
        self._at = [np.arange(stop - len(b), stop) for b, stop in zip(blocks, stops.tolist(), strict=True)]
        self._inverse = Inverse(damped(covariance, ridge), overwrite=True).dense()[np.ix_(own, own)]
        self._outer = weight[own] @ weight[own].T
        self._blocks = [self._of_size(size) for size in sorted({len(b) for b in blocks} - {0})]
        self._remaining = np.ones(len(own), np.bool_)
        self._clear()

    def error_increases(self) -> Vector:
        """Return the increase of the summed squared error per row for removing each block alone; 0 for removed ones."""
        out = np.zeros(len(self._at))
        for same in self._blocks:
            out[same.which] = np.trace(np.linalg.solve(same.inverse, same.outer), axis1=1, axis2=2)
        return np.maximum(out, 0.0)

    def remove(self, block: int) -> None:
        """Remove a block and re-solve the remaining ones."""
        at = self._at[block]
        size = len(at)
        if not size or not self._remaining[at[0]]:
            return
        s, h, o = self._waiting[:, :, : self._used]
        columns = self._inverse[:, at] - s @ h[at].T
        outer = self._outer[:, at] - s @ o[at].T - o @ s[at].T
        step = np.linalg.solve(columns[at], columns.T).T
        half = outer - step @ outer[at] / 2
        self._remaining[at] = False
        for same in self._blocks:
            same.drop(block)
            moved = step[same.index] @ half[same.index].swapaxes(1, 2)
            same.outer -= moved + moved.swapaxes(1, 2)
            same.inverse -= step[same.index] @ columns[same.index].swapaxes(1, 2)
        self._waiting[:, :, self._used : self._used + size] = step, columns, half
        self._used += size
        if self._used >= self._pending:
            self._apply()

    def _of_size(self, size: int) -> _Blocks:
        which = np.array([i for i, at in enumerate(self._at) if len(at) == size])
        index = np.stack([self._at[i] for i in which])
        rows, columns = index[:, :, None], index[:, None, :]
        return _Blocks(which, index, self._inverse[rows, columns], self._outer[rows, columns])

    def _apply(self) -> None:
        """Apply the delayed updates to H and Q and drop removed inputs."""
        left = np.flatnonzero(self._remaining)
        s, h, o = self._waiting[:, left, : self._used]
        moved = s @ o.T
        self._inverse = self._inverse[np.ix_(left, left)] - s @ h.T
        self._outer = self._outer[np.ix_(left, left)] - moved - moved.T
        place = np.cumsum(self._remaining) - 1
        self._at = [place[at[self._remaining[at]]] for at in self._at]
        for same in self._blocks:
            same.index = place[same.index]
        self._remaining = np.ones(len(left), np.bool_)
        self._clear()

    def _clear(self) -> None:
        largest = max((same.index.shape[1] for same in self._blocks), default=0)
        self._waiting = np.empty((3, len(self._remaining), self._pending + largest))
        self._used = 0


def resolved(covariance: Matrix, weight: Matrix, removed: Indices, ridge: float) -> Matrix:
    """Return the weights after removing inputs: zero there, least squares elsewhere, [n, outputs]."""
    left = np.setdiff1d(np.arange(len(weight)), removed)
    out = np.zeros_like(weight)
    if len(left):
        missing = covariance[np.ix_(left, removed)] @ weight[removed]
        out[left] = weight[left] + solved(damped(covariance, ridge)[np.ix_(left, left)], missing)
    return out


@dataclass(frozen=True)
class Consumer:
    """Linear node that sums over removable channels.

    Attributes:
        node: Linear node.
        tensor: Name of its input.
        components: Components of its input channels, [groups, inputs of a group]; 0 for channels that are always kept.
    """

    node: LinearNode
    tensor: str
    components: Indices

    def reads(self, group: Group) -> bool:
        """Return whether channels of a group are among its inputs."""
        return bool(np.isin(self.components, group.components).any())

    def blocks(self, group: int, wanted: Indices) -> list[Indices]:
        """Return, for each wanted component, its row indices in a convolution group, kernel included; may be empty."""
        own = self.components[group]
        order = np.argsort(own, kind="stable")
        starts, stops = (np.searchsorted(own[order], wanted, side) for side in ("left", "right"))
        kernel = np.arange(self.node.kernel)
        return [
            (np.sort(order[a:b])[:, None] * self.node.kernel + kernel).ravel()
            for a, b in zip(starts, stops, strict=True)
        ]


def consumers(analysis: Analysis, groups: Sequence[Group]) -> list[Consumer]:
    """Return the linear nodes that read channels of groups, in graph order.

    Other consumers (products of two activations, sums) have no weights to solve for. A convolution whose groups are
    removed with their channels has nothing to re-solve: the consumers of its outputs count instead.
    """
    wanted = np.zeros(analysis.count, bool)
    for group in groups:
        wanted[group.components] = True
    graph = analysis.model.graph
    nodes = {o.name: n for n in graph.nodes for o in n.outputs if o.name}
    outputs = frozenset(t.name for t in graph.outputs)
    found = []
    for c in analysis.contractions:
        components = analysis.component[c.labels]
        if c.input_index or not wanted[components].any():
            continue
        node = linear_node(nodes[c.output], outputs)
        if node is None:
            continue
        consumer = Consumer(node, node.node.inputs[0].name, components.reshape(node.groups, node.inputs))
        if not _follows_input(analysis, consumer):
            found.append(consumer)
    return found


def _follows_input(analysis: Analysis, consumer: Consumer) -> bool:
    """Return whether the outputs of each convolution group are the same channel as its inputs."""
    node = consumer.node
    labels = (analysis.table.variables.get(node.node.outputs[0].name) or [None, None])[1]
    if node.groups == 1 or labels is None:
        return False
    return bool((analysis.component[labels].reshape(node.groups, -1) == consumer.components[:, :1]).all())
