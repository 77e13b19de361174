"""Least-squares solution of the remaining weights, so that the pruned model reproduces the original's outputs.

Before:  y = Conv(x, W, b) ; z = Add(y, s) ; Relu(z)      channels of x were removed; x and s of the pruned model
After:   y = Conv(x, W', b') ; z = Add(y, s) ; Relu(z)
Formula: W', b' = argmin sum (z* - s - W x - b)^2 + lambda |W - W_before|^2 over samples and positions, z* the
original's z: ridge regression with central moments in float64 (Hoerl & Kennard 1970), node by node in graph order, each
on the outputs of the nodes already solved. If Relu or Clip follows, z* counts only within the bounds: beyond a bound
every value is equally good (alternating with the fit; as Zhang et al. 2015, Accelerating Very Deep Convolutional
Networks, treat the rectifier). If another scalar function f follows, such as HardSwish or GELU, the fit alternates with
targets that lower the error of f(z) (`onnxprune.recovery._activations`).
Conditions: 1. Conv, ConvTranspose, Gemm, MatMul with a constant weight of their own. 2. only nodes whose inputs the
pruning has changed. 3. lambda has the least error on held-out samples; if no fit improves on the present weights there,
the weights are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.linear_layers import LinearNode
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.gram import Inverse
from onnxprune.ir.model import Array, Model
from onnxprune.passes.base import Pass, register
from onnxprune.plans import NOTHING, Plan
from onnxprune.recovery._activations import Activation
from onnxprune.recovery._lockstep import PairedCursor, PairedLayer, RegressionRows
from onnxprune.recovery._original_activations import OriginalActivations

Matrix = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)

RIDGES = (1e-7, 1e-4, 1e-2, 1e-1, 1.0, 10.0)  # values of lambda, as shares of the mean variance of the inputs
MEMORY = 2**29  # most bytes of the rows of one node
_FEW, _TIMES = 10_000, 60  # sufficient rows: the larger of a constant and a number per unknown
_BLOCK = 4096  # rows converted to float64 at a time
_COLUMNS = 64  # outputs whose variance is computed at a time, in float64
_ROUNDS_AT = 1e-2  # lambda during the alternation
_ROUNDING = 1e-11  # share of a mean square above float64's rounding of a constant's variance
_HOLDOUT_STRIDE = 5  # hold out every 5th sample to choose lambda


@dataclass(frozen=True)
class Solution:
    """Result for one node.

    Attributes:
        node: First output of the node.
        matrix: New weight, shaped as `LinearNode.matrix`; None keeps the weight.
        shift: Shift added to its outputs.
        before: Squared error at the stable point on held-out samples with the old weights; as a share of the variance
            of the values passed on, if they vary.
        after: The same error with the solved weights.
        ridge: Chosen lambda.
    """

    node: str
    matrix: Matrix | None = field(repr=False)
    shift: Matrix | None = field(repr=False)
    before: float
    after: float
    ridge: float


@register
@dataclass(frozen=True)
class ReconstructWeights(Pass):
    """Re-solve the weights that read pruned or changed channels by least squares against the original.

    Args:
        plan: Channels that were removed.
        analysis: Coupling analysis of the original.
        calibration: Calibration data; labels are not needed.
        rows: Output positions used for each node, over all samples; small nodes use fewer.
        rounds: Rounds of the alternation if an activation follows.
        seed: Seed of the choice of positions.
        known: Called with each node before it is solved; returns a solution from an earlier run, or None.
        done: Called with each solution and (nodes done, nodes in all).
        originals: Activations of the original, shared with other recoveries on the same samples.
        ridges: Values of lambda that are tried, in ascending order, as shares of the mean variance of the inputs.
        memory: Most bytes of the rows of one node.

    Raises:
        OnnxPruneError: Parameters out of range.
    """

    name: ClassVar[str] = "reconstruct_weights"
    plan: Plan = NOTHING
    analysis: Analysis | None = None
    calibration: Calibration | None = field(default=None, repr=False)
    rows: int = 40_000
    rounds: int = 6
    seed: int = 0
    known: Callable[[str], Solution | None] | None = field(default=None, repr=False)
    done: Callable[[Solution, int, int], None] | None = field(default=None, repr=False)
    originals: OriginalActivations | None = field(default=None, repr=False)
    ridges: tuple[float, ...] = RIDGES
    memory: int = MEMORY

    def __post_init__(self) -> None:
        if type(self.rows) is not int or self.rows < 1 or type(self.rounds) is not int or self.rounds < 0:
            raise OnnxPruneError(
                f"rows {self.rows!r} and rounds {self.rounds!r} must be whole numbers", fix="rows=40000"
            )

    def rewrite(self, model: Model) -> Model:
        """Solve node after node; without calibration data the model is unchanged.

        Raises:
            OnnxPruneError: The model is not the original pruned by the plan, samples do not fit, or activations are
                not finite.
        """
        if self.analysis is None or self.calibration is None:
            return model
        with PairedCursor(
            self.analysis, self.plan, model, self.calibration, originals=self.originals
        ) as cursor:  # fmt: skip
            steps = cursor.steps()
            names = set(model.graph.tensors())
            for i, step in enumerate(steps):
                cursor.advance(step)
                output = step.linear.node.outputs[0].name
                solution = self.known(output) if self.known is not None else None
                if solution is None:
                    solution = self._solution(cursor, step)
                if solution.matrix is not None:
                    step.set_weights(solution.matrix, solution.shift, names)
                if self.done is not None:
                    self.done(solution, i + 1, len(steps))
        return model

    def most_rows(self, linear: LinearNode) -> int:
        """Return the number of rows used for a node, over all samples."""
        each = 4 * linear.groups * linear.inputs * linear.kernel + 8 * linear.outputs
        enough = max(_FEW, _TIMES * linear.inputs * linear.kernel)
        return max(1, min(self.rows, enough, self.memory // each))

    def _solution(self, cursor: PairedCursor, step: PairedLayer) -> Solution:
        positions = ceil(self.most_rows(step.linear) / len(cursor.calibration))
        return solve(step, cursor.rows(step, positions, seed=self.seed), self.rounds, self.ridges)


def solve(step: PairedLayer, rows: RegressionRows, rounds: int, ridges: Sequence[float] = RIDGES) -> Solution:
    """Return the solved weights of one node.

    Args:
        step: Node and the stable point where its error is measured.
        rows: Inputs of the node and target outputs. The inputs are centred in place, and arrays are released once they
            were copied, if the caller keeps no reference.
        rounds: Rounds of the alternation with the bounds.
        ridges: Values of lambda that are tried.
    """
    linear = step.linear
    out = rows.samples % _HOLDOUT_STRIDE == _HOLDOUT_STRIDE - 1
    if not out.any() or out.all():
        out = np.arange(len(rows.samples)) % _HOLDOUT_STRIDE == _HOLDOUT_STRIDE - 1
    if not out.any():
        return Solution(linear.node.outputs[0].name, None, None, 0.0, 0.0, 0.0)
    inputs, targets, shortcut = rows.inputs, rows.targets, rows.shortcut
    del rows
    size = linear.outputs // linear.groups
    matrix, shift = linear.matrix(), linear.shift()
    new_matrix, new_shift = matrix.copy(), shift.copy()
    before = after = spread = 0.0
    chosen = []
    constant = dependent = 0
    for g in range(linear.groups):
        own = slice(g * size, (g + 1) * size)
        usable = np.flatnonzero(np.isfinite(step.scale[own]) & (np.abs(step.scale[own]) > 1e-12))
        if not len(usable):
            continue
        columns = usable + own.start
        wanted, added = _columns_of(targets, columns), None if shortcut is None else _columns_of(shortcut, columns)
        if g == linear.groups - 1:  # a layer of many outputs holds several arrays of this size while it is solved
            del targets, shortcut
        problem = _Problem(
            inputs[g], wanted, added, matrix[g][:, usable] * step.scale[columns],
            shift[columns] * step.scale[columns] + step.offset[columns], step.activation, linear.intercept, out,
            ridges,
        )  # fmt: skip
        del wanted, added
        weight, base, errors, ridge = problem.best(rounds)
        before, after, spread = before + errors[0], after + min(errors), spread + problem.spread
        constant, dependent = constant + problem.constant, dependent + problem.dependent
        if not errors[1] < errors[0]:
            continue
        chosen.append(ridge)
        new_matrix[g][:, usable] = weight / step.scale[columns]
        new_shift[columns] = (base - step.offset[columns]) / step.scale[columns]
    name = linear.node.outputs[0].name
    share = [e / (spread or 1.0) for e in (before, after)]
    width = linear.inputs * linear.kernel
    for fact, holds in (
        (f"{len(out)} rows for {width} unknowns of each output", len(out) <= width),
        (f"{constant} of {linear.groups * width} inputs are constant", constant),
        (f"{dependent} of {linear.groups * width} inputs are combinations of the others", dependent),
        (f"the weights are {linear.weight.dtype}", linear.weight.dtype.itemsize < 4),
    ):
        if holds:
            _log.info("%s: %s", name, fact)
    if not chosen or not _fits(linear, new_matrix, new_shift):
        return Solution(name, None, None, share[0], share[0], 0.0)
    return Solution(name, new_matrix, new_shift if linear.intercept else None, share[0], share[1], max(chosen))


def _columns_of(values: Array, columns: npt.NDArray[np.int64]) -> Array:
    """Return some columns row by row in memory, as products are computed; all of them without a copy."""
    return values if len(columns) == values.shape[1] else np.take(values, columns, axis=1)


def _fits(linear: LinearNode, matrix: Matrix, shift: Matrix) -> bool:
    """Return whether a solution is within the range of the weight's type."""
    with np.errstate(over="ignore"):
        return all(
            np.isfinite(v.astype(linear.weight.dtype)).all() for v in (matrix / linear.alpha, shift / linear.beta)
        )


class _InputMoments:
    """Second moments of inputs, central if outputs can be shifted, with their inverses by lambda.

    The products that it is made of are overwritten: those of a wide layer are as large as its rows.
    """

    def __init__(self, rows: int, sums: Matrix, products: Matrix, intercept: bool, least: float) -> None:
        self.rows, self.intercept = rows, intercept
        self._repeated = (least, _ROUNDS_AT)
        self.mean = sums / rows if intercept else np.zeros(len(sums))
        self.least = _ROUNDING * float(np.diagonal(products).max()) / rows
        products /= rows
        products -= np.outer(self.mean, self.mean)
        self.products = products
        self.variance = max(float(np.trace(products)), 0.0) / len(sums)
        self._inverses: dict[float, tuple[float, Inverse]] = {}

    def crossed(self, x: Array, target: Array) -> tuple[Matrix, Matrix]:
        """Return the sums of the target, and the products of inputs and target."""
        return target.sum(0, dtype=np.float64), _product(x, target)

    def inverse(self, ridge: float) -> tuple[float, Inverse]:
        """Return the value added to the diagonal, and the inverse; inverses that are used repeatedly are cached."""
        if ridge in self._inverses:
            return self._inverses[ridge]
        level = ridge * self.variance + self.least or 1.0
        damped = self.products.copy()
        np.einsum("ii->i", damped)[:] += level
        found = level, Inverse(damped, overwrite=True)
        if ridge in self._repeated:
            self._inverses[ridge] = found
        return found

    def fit(self, crossed: tuple[Matrix, Matrix], ridge: float, weight: Matrix, base: Matrix) -> tuple[Matrix, Matrix]:
        """Return weight and base nearest to the target: ridge regression towards the present weight."""
        level, inverse = self.inverse(ridge)
        middle = crossed[0] / self.rows if self.intercept else np.zeros(len(crossed[0]))
        found = inverse(crossed[1] / self.rows - np.outer(self.mean, middle) + level * weight)
        return found, middle - self.mean @ found if self.intercept else base


def _product(x: Array, target: Array) -> Matrix:
    """Return `x' target`, in blocks so that float32 rounding is below the differences between samples."""
    out = np.zeros((x.shape[1], target.shape[1]))
    for i in range(0, len(x), _BLOCK):
        out += x[i : i + _BLOCK].T @ target[i : i + _BLOCK]
    return out


class _Problem:
    """Least squares for the outputs of one convolution group, in units of the stable point.

    Attributes:
        spread: Variance of the values passed on, summed over the outputs.
        constant: Number of inputs that do not vary.
        dependent: Number of other inputs that are combinations of the rest, at the resolution of the least lambda.
    """

    def __init__(
        self, x: Array, target: Array, shortcut: Array | None, weight: Matrix, base: Matrix,
        activation: Activation, intercept: bool, out: npt.NDArray[np.bool_], ridges: Sequence[float] = RIDGES,
    ) -> None:  # fmt: skip
        # Inputs may vary by much less than their mean: all computations use differences from the mean.
        self.origin = x.mean(0, dtype=np.float64).astype(x.dtype) if intercept else np.zeros(x.shape[1], x.dtype)
        x -= self.origin
        self.x, self.target, self.shortcut = x, target, shortcut
        self.weight, self.base = weight, base + self.origin @ weight
        self.activation = activation
        self.intercept, self.out, self.ridges = intercept, out, ridges
        columns = range(0, target.shape[1], _COLUMNS)
        parts = [activation(target[:, i : i + _COLUMNS]).var(0, dtype=np.float64) for i in columns]
        self.spread = float(np.concatenate(parts).sum())
        self.constant = int((~self.x.any(0)).sum())
        self.dependent = 0

    def best(self, rounds: int) -> tuple[Matrix, Matrix, tuple[float, float], float]:
        """Return (weight, base, held-out errors before and after, lambda)."""
        out = self.out
        inside, held = self._sums(~out), self._sums(out)
        moments = _InputMoments(len(out), inside[0] + held[0], inside[1] + held[1], self.intercept, self.ridges[0])
        rest = _InputMoments(len(out) - int(out.sum()), *inside, self.intercept, self.ridges[0])
        del inside, held
        x, trials = self.x[out], []
        targets = self._targets(moments, rounds)
        for i, (target, crossed) in enumerate(targets):
            held_target = target[out]
            outside = crossed[0] - held_target.sum(0, dtype=np.float64), crossed[1] - _product(x, held_target)
            # An exact solution needs no alternation, and only the least lambda.
            tried = self.ridges if i == len(targets) - 1 else self.ridges[:1]
            trials += [(self._error(*rest.fit(outside, r, self.weight, self.base)), r, i) for r in tried]
        level, inverse = rest.inverse(self.ridges[0])
        self.dependent = max(0, int((inverse.pivots < 10 * level).sum()) - self.constant)
        error, ridge, i = min(trials)
        weight, base = moments.fit(targets[i][1], ridge, self.weight, self.base)
        return weight, base - self.origin @ weight, (self._error(self.weight, self.base), error), ridge

    def _sums(self, which: npt.NDArray[np.bool_]) -> tuple[Matrix, Matrix]:
        """Return sums and products of the inputs, in float64."""
        index, size = np.flatnonzero(which), self.x.shape[1]
        sums, products = np.zeros(size), np.zeros((size, size))
        for i in range(0, len(index), _BLOCK):
            wide = self.x[index[i : i + _BLOCK]].astype(np.float64)
            sums += wide.sum(0)
            products += wide.T @ wide
        return sums, products

    def _targets(self, moments: _InputMoments, rounds: int) -> list[tuple[Array, tuple[Matrix, Matrix]]]:
        """Return the possible targets of the node, and their products with the inputs.

        First z minus the shortcut; then values nearer to the last fit that count the same behind the activation.
        """
        x, wanted = self.x, self.target
        shortcut = self.shortcut if self.shortcut is not None else np.zeros((1, wanted.shape[1]), wanted.dtype)
        target = np.asarray(wanted - shortcut)
        found = [(target, moments.crossed(x, target))]
        passed = self.activation(wanted) if rounds else wanted
        for _ in range(rounds if self.activation.bends(wanted) else 0):
            weight, base = moments.fit(found[-1][1], _ROUNDS_AT, self.weight, self.base)
            del found[1:]
            given = x @ weight.astype(x.dtype)
            given += base.astype(x.dtype)
            given += shortcut
            target = self.activation.target(given, wanted, passed)
            target -= shortcut
            del given
            found.append((target, moments.crossed(x, target)))
        return found

    def _error(self, weight: Matrix, base: Matrix) -> float:
        """Return the mean squared error of the values passed on, on held-out rows, summed over the outputs."""
        x = self.x[self.out]
        given = x @ weight.astype(x.dtype) + base.astype(x.dtype)
        if self.shortcut is not None:
            given = given + self.shortcut[self.out]
        gap = self.activation(given) - self.activation(self.target[self.out])
        return float(np.square(gap, dtype=np.float64).mean(0).sum())
