"""Fit of kernel times by non-negative polynomials in channel counts.

A kernel's time is t = a + b in + c out + d out^2, and e in out for products, with channels rounded up to the block that
kernels work in. The axis of a dimension is the one that had the same counts in all variants, so neither names nor
fusions of onnxruntime need to be known, on any provider.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.sessions import Kernel
from onnxprune.latency._channel_axes import ChannelAxes, Counts, Floats, Monomial
from onnxprune.latency._measuring import VariantMeasurement

_LEAST_QUIET = 6  # variants
_RESOLUTION = 2e-6  # seconds the profiler cannot tell apart
_DENSE = ("Conv", "Gemm", "MatMul", "Einsum")
_Polynomial = dict[Monomial, float]


@dataclass(frozen=True)
class LatencyFit:
    """Result of a fit.

    Attributes:
        terms: Seconds per product of sizes, with the indices of these in `ChannelAxes.sizes`; their sum is the time of
            all kernels.
        curve: Constant, linear and square coefficients of a run's time over that sum. The profiler adds time to every
            kernel, the session to every run, and a larger model means colder caches for each kernel.
    """

    terms: Sequence[tuple[float, Monomial]]
    curve: tuple[float, float, float]


class _Matcher:
    """Match dimensions to axes by their values over all variants."""

    def __init__(self, axes: ChannelAxes, samples: Sequence[VariantMeasurement]) -> None:
        self.block = axes.block
        self._axes = len(axes.components)
        counts = np.array([axes.counts(s.kept) for s in samples], np.int64).reshape(len(samples), -1).T
        self._exact: dict[tuple[int, ...], tuple[int, int]] = {}
        self._rounded: dict[tuple[int, ...], int] = {}
        for i, row in enumerate(counts):
            least, scale = _reduced(row)
            known = self._exact.setdefault(least, (i, scale))
            if scale < known[1]:
                self._exact[least] = (i, scale)
            self._rounded.setdefault(tuple(self._round(row).tolist()), i)

    def _round(self, row: Counts) -> Counts:
        return np.asarray(-(-row // self.block) * self.block)

    def dimension(self, values: Sequence[int]) -> tuple[float, Monomial] | None:
        """Return the factor and axis whose product a dimension is in every variant; None if there is none."""
        row = np.asarray(values, np.int64)
        if (row == row[0]).all():
            return float(row[0]), ()
        least, scale = _reduced(row)
        if least in self._exact:
            place, unit = self._exact[least]
            return scale / unit, (1 + place,)
        rounded = self._round(row)  # kernels may report sizes with padding
        if (rounded == rounded[0]).all():
            return float(rounded[0]), ()
        found = self._rounded.get(tuple(rounded.tolist()))
        return None if found is None else (1.0, (1 + found,))

    def broken(self, sizes: Monomial, which: Monomial) -> Monomial:
        """Return a product in which some sizes count only if they are not whole blocks: another kernel may run then."""
        out = list(sizes)
        for place in which:
            if place in out:
                out[out.index(place)] += self._axes
        return tuple(sorted(out))

    def tensor(self, shapes: Sequence[tuple[int, ...]]) -> tuple[float, Monomial] | None:
        """Return the elements of a tensor as a factor and a product of sizes, from its shape in every variant."""
        if len({len(s) for s in shapes}) != 1:
            return None
        factor = 1.0
        places: list[int] = []
        for values in zip(*shapes, strict=True):
            found = self.dimension(values)
            if found is None:
                return None
            factor *= found[0]
            places += found[1]
        return factor, tuple(sorted(places))

    def tensors(self, shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[tuple[float, Monomial]] | None:
        """Return the elements of every input or output of a kernel."""
        if len({len(s) for s in shapes}) != 1:
            return None
        found = [self.tensor(same) for same in zip(*shapes, strict=True)]
        return None if any(f is None for f in found) else [f for f in found if f is not None]


def _reduced(row: Counts) -> tuple[tuple[int, ...], int]:
    """Return values divided by their greatest common divisor, and the divisor."""
    divisor = int(np.gcd.reduce(row)) or 1
    return tuple((row // divisor).tolist()), divisor


def fit(
    analysis: Analysis, samples: Sequence[VariantMeasurement], axes: ChannelAxes, *, clocked: bool = True
) -> LatencyFit:
    """Fit seconds by a polynomial in sizes.

    Args:
        analysis: Coupling analysis of the model.
        samples: Measured variants, the unpruned model among them.
        axes: Channel axes of the analysis.
        clocked: Use the times of kernels; those of a GPU only cover the launch.
    """
    sizes = np.array([axes.sizes(s.kept) for s in samples])
    matcher = _Matcher(axes, samples)
    holders = _Holders(analysis, axes)
    if not clocked:
        work = _work(matcher, _aligned(analysis, samples), holders)
        terms = _terms(_fitted(work, sizes, np.array([s.seconds for s in samples])))
        return LatencyFit(terms, (0.0, 1.0, 0.0))
    total: _Polynomial = {(): 0.0}
    rest = np.zeros(len(samples))
    for kernels in _aligned(analysis, samples):
        times = np.array([sum(k.seconds for k in same) for same in kernels])
        features = _features(matcher, [same[0] for same in kernels]) if all(len(s) == 1 for s in kernels) else None
        if features is None:
            rest += times
        else:
            _add(total, holders.within(_fitted(features, sizes, times), kernels[0][0].name))
    if rest.any():
        _add(total, _fitted(_traffic(analysis, axes), sizes, rest))
    return LatencyFit(_terms(total), _curve(_values(total, sizes), samples))


class _Holders:
    """Residual blocks that kernels are in; a kernel has the name of its node, or of the tensor that it writes."""

    def __init__(self, analysis: Analysis, axes: ChannelAxes) -> None:
        self._of: dict[str, Monomial] = {}
        names = {n.outputs[0].name: n.name for n in analysis.model.graph.nodes if n.outputs}
        for i, block in enumerate(analysis.free_blocks):
            for output in block.nodes:
                for name in {output, names.get(output, "")} - {""}:
                    self._of[name] = (*self._of.get(name, ()), axes.switch(i))

    def within(self, polynomial: _Polynomial, kernel: str) -> _Polynomial:
        """Return the polynomial of a kernel that runs only while the blocks around it are kept."""
        inside = self._of.get(kernel) or self._of.get(_LAYOUT.sub("", kernel), ())
        return {tuple(sorted(m + inside)): c for m, c in polynomial.items()} if inside else polynomial


_LAYOUT = re.compile(r"(_nchwc|_nhwc)?(_token_\d+)?$")  # suffixes of onnxruntime


def _terms(polynomial: _Polynomial) -> list[tuple[float, Monomial]]:
    return [(c, m) for m, c in sorted(polynomial.items()) if c]


def _aligned(analysis: Analysis, samples: Sequence[VariantMeasurement]) -> Iterator[list[list[Kernel]]]:
    """Yield kernels that occur in all variants one by one, and those that do not together by name; per variant."""
    known = {n.op for n in analysis.model.graph.nodes}
    runs: list[dict[str, list[Kernel]]] = []
    for sample in samples:
        by_name: dict[str, list[Kernel]] = defaultdict(list)
        for kernel in sample.kernels:
            by_name[kernel.name if kernel.op in known else _GENERATED.sub("", kernel.name)].append(kernel)
        runs.append(by_name)
    for name in dict.fromkeys(n for run in runs for n in run):
        same = [run.get(name, []) for run in runs]
        if len({len(s) for s in same}) == 1:
            yield from ([[s[i]] for s in same] for i in range(len(same[0])))
        else:
            yield same


_GENERATED = re.compile(r"(_token)?_?\d+$")  # a running number of onnxruntime, different in every variant


def _features(matcher: _Matcher, kernels: Sequence[Kernel]) -> list[_Polynomial] | None:
    """Return the features of a kernel's time; None if its shapes cannot be matched to channels."""
    ins, outs = matcher.tensors([k.inputs for k in kernels]), matcher.tensors([k.outputs for k in kernels])
    if ins is None or outs is None or not (ins or outs):
        return None
    features: list[_Polynomial] = [{(): 1.0}]
    if _is_dense(kernels[0]):
        first, out, (_, product) = ins[0][1], outs[0][1], _weight(kernels[0], ins, outs)
        features += [{m: 1.0} for m in (first, out, product)]
        features += [{matcher.broken(m, first): 1.0} for m in (first, product)]
    else:
        features += [_sum(ins), _sum(outs)]
    if len(outs) == 1:  # outputs that exceed a cache take longer to write
        features.append({tuple(sorted(2 * outs[0][1])): 1.0})
    return features


def _is_dense(kernel: Kernel) -> bool:
    return bool(kernel.inputs and kernel.outputs) and any(kind in kernel.op for kind in _DENSE)


def _weight(
    kernel: Kernel, ins: Sequence[tuple[float, Monomial]], outs: Sequence[tuple[float, Monomial]]
) -> tuple[float, Monomial]:
    """Return the elements of a product's weight: the multiplications per position of the output."""
    if len(kernel.inputs) > 1 and len(kernel.inputs[1]) > 1:
        return ins[1]
    # A packed weight is not reported.
    return ins[0][0] * outs[0][0] / _positions(kernel) ** 2, tuple(sorted(ins[0][1] + outs[0][1]))


def _positions(kernel: Kernel) -> int:
    """Return the positions of the output at which the weight is used: samples times pixels or tokens."""
    shape = kernel.outputs[0]
    return prod(shape) // max(shape[1 if "Conv" in kernel.op else -1], 1) if len(shape) > 1 else 1


def _work(matcher: _Matcher, aligned: Iterable[list[list[Kernel]]], holders: _Holders) -> list[_Polynomial]:
    """Return the work of all kernels together: number, elements read and written, multiplications, weights."""
    started: _Polynomial = {}
    traffic: _Polynomial = {}
    products: _Polynomial = {}
    weights: _Polynomial = {}
    for same in aligned:
        kernels = [k for variant in same for k in variant]
        name = kernels[0].name if kernels else ""
        _add(started, holders.within({(): 1.0}, name))
        ins, outs = matcher.tensors([k.inputs for k in kernels]), matcher.tensors([k.outputs for k in kernels])
        if ins is None or outs is None or any(len(variant) != 1 for variant in same):
            continue
        _add(traffic, holders.within(_sum([*ins, *outs]), name))
        if _is_dense(kernels[0]):
            factor, places = _weight(kernels[0], ins, outs)
            _add(products, holders.within({places: factor * _positions(kernels[0])}, name))
            _add(weights, holders.within({places: factor}, name))
    return [started or {(): 1.0}, traffic, products, weights]


def _sum(parts: Iterable[tuple[float, Monomial]]) -> _Polynomial:
    out: _Polynomial = {}
    for factor, places in parts:
        out[places] = out.get(places, 0.0) + factor
    return out


def _traffic(analysis: Analysis, axes: ChannelAxes) -> list[_Polynomial]:
    """Return features for kernels not in every variant: elements of activations, in all and in broken blocks."""
    place = {np.sort(c).tobytes(): 1 + i for i, c in enumerate(axes.components)}
    elements: _Polynomial = {}
    for name, labels in analysis.table.variables.items():
        free = [i for i, a in enumerate(labels) if a is not None and analysis.component[a].any()]
        if len(free) == 1:
            where = place[np.sort(analysis.component[labels[free[0]]]).tobytes()]
            shape = analysis.table.shapes[name]
            size = prod(n for i, n in enumerate(shape) if i != free[0])
            elements[(where,)] = elements.get((where,), 0.0) + size
    broken: _Polynomial = {(m[0] + len(axes.components),): c for m, c in elements.items()}
    return [{(): 1.0}, elements, broken]


def _fitted(features: Sequence[_Polynomial], sizes: Floats, times: Floats) -> _Polynomial:
    """Fit times [variants] by features of the sizes [variants, sizes] with non-negative least squares."""
    distinct = {
        tuple(sorted(f.items())): f for f in features if f
    }  # the split between equal features would be arbitrary
    columns = np.array([_values(f, sizes) for f in distinct.values()]).T
    factors = _solve(columns, times, _RESOLUTION + 0.02 * times.max())
    out: _Polynomial = {}
    for factor, feature in zip(factors, distinct.values(), strict=True):
        if factor:
            _add(out, {m: c * factor for m, c in feature.items()})
    return out


def _solve(columns: Floats, times: Floats, floor: float) -> Floats:
    """Return non-negative factors of columns for the least relative error; outliers count less in each round.

    Iteratively reweighted with Huber's weights.
    """
    from scipy.optimize import nnls

    scale = columns.max(axis=0)
    scale[scale == 0] = 1.0
    columns = columns / scale
    relative = 1 / (np.abs(times) + floor)
    weights = np.ones(len(times))
    for _ in range(5):
        w = relative * np.sqrt(weights)
        factors = nnls(columns * w[:, None], times * w)[0]
        residuals = np.abs(columns @ factors - times) * relative
        spread = max(1.4826 * float(np.median(residuals)), 1e-3)
        weights = np.minimum(1.0, 1.345 * spread / np.maximum(residuals, 1e-12))
    return np.asarray(factors / scale)


def _values(polynomial: _Polynomial, sizes: Floats) -> Floats:
    return np.asarray(sum(c * sizes[:, list(m)].prod(axis=1) for m, c in polynomial.items()))


def _add(total: _Polynomial, more: _Polynomial) -> None:
    for m, c in more.items():
        total[m] = total.get(m, 0.0) + c


def _curve(sums: Floats, samples: Sequence[VariantMeasurement]) -> tuple[float, float, float]:
    """Return the constant, linear and square coefficients that map sums of fitted kernels [variants] to runs."""
    quiet = np.array([s.quiet for s in samples])
    if quiet.sum() < _LEAST_QUIET:
        quiet[:] = True
    sums, samples = sums[quiet], [s for s in samples if s.quiet or quiet.all()]
    runs = np.array([s.seconds for s in samples])
    ones = np.ones(len(samples))
    more, less, linear, square = _solve(np.array([ones, -ones, sums, sums**2]).T, runs, _RESOLUTION)
    return float(more - less), float(linear), float(square)
