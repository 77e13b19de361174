"""Latency as a cost: seconds per run of one batch, predicted from which channels stay.

The model runs with a designed set of channel counts while onnxruntime profiles its kernels. Every kernel gets a
non-negative polynomial in the sizes of what it reads and writes, with channels rounded up to the block that kernels
work in: t = a + b in + c out + d out^2, and e in out for products. Which channels a kernel works on is told by the
shapes it reports: a dimension is the axis that had the same counts in all variants. So neither names nor fusions of
onnxruntime need to be understood, on any provider. Weights do not matter, only shapes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune._utils.atomic_files import write_text
from onnxprune._utils.progress import Progress
from onnxprune._utils.strict import Format
from onnxprune.analysis.coupling import Analysis, Group, Kept
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Kernel, Session, import_onnxruntime, kernel_block, provider_of
from onnxprune.ir.model import Array, Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.passes import Pipeline, StripChannels
from onnxprune.plans import Plan, Removal

SCHEMA = 1
VARIANTS = 32
_LEAST_VARIANTS = 14
_PATIENCE = 100.0  # seconds: then a large model makes do with fewer variants
_SMALLEST = 0.2  # share of channels left in the smallest variants
_WARMUP = 2
_ROUNDS = (6, 24)  # undisturbed ones: at least, and at most if they are short
_ROUNDS_SECONDS = (0.25, 1.5)  # short ones, and how long to wait for undisturbed ones
_LEAST_QUIET = 6  # variants
_DISTURBED = 0.01  # share of a run that its threads waited for a processor
_RESOLUTION = 2e-6  # seconds the profiler cannot tell apart
_FASTEST = 1e-6
_DENSE = ("Conv", "Gemm", "MatMul", "Einsum")
_FORMAT = Format("latency cache", 64 * 2**20, SCHEMA)
_SAMPLED = 4096  # elements: larger integer constants are tables, not sizes

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
# A product of sizes: their places in ascending order; () is 1.
_Monomial = tuple[int, ...]
_Polynomial = dict[_Monomial, float]


@dataclass(frozen=True)
class VariantMeasurement:
    """One variant of the model, measured.

    Attributes:
        kept: which components it has.
        kernels: what ran, each with its least time of several runs.
        seconds: of a whole run without the profiler.
        quiet: whether nobody else used the machine meanwhile.
    """

    kept: Kept
    kernels: Sequence[Kernel]
    seconds: float
    quiet: bool = True


@dataclass(frozen=True)
class LatencyFit:
    """What a measurement leaves.

    Attributes:
        terms: seconds per product of sizes, and the places of those in `ChannelAxes.sizes`; in all the kernels' time.
        curve: a whole run over that sum: constant, linear and square. The profiler adds to every kernel, the session
            to every run, and a larger model leaves colder caches to each kernel.
    """

    terms: Sequence[tuple[float, _Monomial]]
    curve: tuple[float, float, float]


class LatencyModel:
    """Answers "how long would it take if these channels stayed?".

    Args:
        axes: the axes whose counts the terms multiply.
        fitted: the polynomial in them.

    Attributes:
        batch: samples per run.
        threads: intra-op threads of onnxruntime.
        provider: what it was measured on.
        whole: predicted seconds of the unpruned model.
    """

    def __init__(self, axes: ChannelAxes, fitted: LatencyFit, *, batch: int, threads: int, provider: str) -> None:
        self.batch = batch
        self.threads = threads
        self.provider = provider
        self._axes, places = axes.only([m for _, m in fitted.terms])
        width = max(map(len, places), default=0)
        self._places = np.array([[*p, *[0] * (width - len(p))] for p in places], np.int64).reshape(len(places), width)
        self._factors = np.array([c for c, _ in fitted.terms], np.float64)
        self._curve = fitted.curve
        self.baseline = self.seconds(np.ones(axes.count, bool))

    def seconds(self, kept: Kept) -> float:
        """Predicted seconds per run if the components in `kept` (bool [count]) stay."""
        kernels = float(self._axes.sizes(kept)[self._places].prod(axis=1) @ self._factors)
        constant, linear, square = self._curve
        return max(constant + (linear + square * kernels) * kernels, _FASTEST)


def latency_model(
    analysis: Analysis,
    *,
    batch: int = 1,
    threads: int = 1,
    device: str = "cpu",
    cache: bool = True,
    refresh: bool = False,
    progress: Progress | None = None,
) -> LatencyModel:
    """Measures a model in onnxruntime on this machine, or finds what an earlier measurement left in the cache.

    The cache is `$ONNXPRUNE_CACHE`, else `onnxprune/latency` in the user's cache folder. It is keyed by machine,
    onnxruntime, provider, threads, batch and the model's structure: retrained weights find it again.

    Args:
        analysis: of the model.
        batch: samples per run where the model's batch is dynamic.
        threads: intra-op threads; 0 for all cores.
        device: "auto" (CUDA if it loads), "cpu" or "cuda".
        cache: read and write the cache.
        refresh: measure even if the cache has it.
        progress: called with (done, total) variants.

    Raises:
        OnnxPruneError: onnxruntime is missing, rejects the model or has no such device.
    """
    if batch < 1 or threads < 0:
        raise OnnxPruneError(f"batch {batch} and threads {threads} are no counts", fix="batch >= 1, threads >= 0")
    provider = provider_of(device)
    axes = ChannelAxes.of(analysis, kernel_block("cuda" if provider.startswith("CUDA") else "cpu"))
    settings = {
        "onnxruntime": import_onnxruntime().__version__, "provider": provider, "threads": threads, "batch": batch,
        "machine": machine(), "block": axes.block, "structure": structure(analysis),
    }  # fmt: skip
    path = _cache_file(settings)
    fitted = _read(path, settings, axes) if cache and not refresh else None
    if fitted is None:
        with VariantTimer(analysis, batch=batch, threads=threads, device=device) as bench:
            provider = bench.provider
            fitted = fit(analysis, bench.samples(axes.block, progress), axes, clocked=provider.startswith("CPU"))
        if cache and provider == settings["provider"]:  # "auto" may have fallen back
            _write(path, settings, fitted)
    return LatencyModel(axes, fitted, batch=batch, threads=threads, provider=provider)


# ------------------------------------------------------------------------------------------------------------ axes


class ChannelAxes:
    """Axes of tensors that change when channels go: those with the same components count as one.

    `sizes` is [1, counts rounded up to the block ..., the same where they are not whole blocks, else 0 ...].
    """

    def __init__(self, components: Sequence[Counts], count: int, block: int) -> None:
        self.count = count
        self.block = block
        self.components = components
        self._flat = np.concatenate(components) if components else np.zeros(0, np.int64)
        self._starts = np.cumsum([0, *[len(c) for c in components[:-1]]]) if components else np.zeros(0, np.int64)

    @classmethod
    def of(cls, analysis: Analysis, block: int) -> ChannelAxes:
        """All axes of an analysed model, in the order of its graph."""
        found: dict[bytes, Counts] = {}
        seen: set[int] = set()
        for axes in (*analysis.table.variables.values(), *analysis.table.constants.values()):
            for labels in axes:
                if labels is None or id(labels) in seen:
                    continue
                seen.add(id(labels))
                components = analysis.component[labels]
                if components.any():
                    found.setdefault(np.sort(components).tobytes(), components)
        return cls(list(found.values()), analysis.count, block)

    def only(self, monomials: Sequence[_Monomial]) -> tuple[ChannelAxes, list[_Monomial]]:
        """Just the axes that some products need, and the products in their places."""
        n = len(self.components)
        rows = sorted({(p - 1) % n for m in monomials for p in m if p})
        new = {0: 0}
        for i, row in enumerate(rows):
            new[1 + row] = 1 + i
            new[1 + n + row] = 1 + len(rows) + i
        small = ChannelAxes([self.components[r] for r in rows], self.count, self.block)
        return small, [tuple(new[p] for p in m) for m in monomials]

    def counts(self, kept: Kept) -> Counts:
        """How many indices of each axis stay."""
        if not len(self._flat):
            return np.zeros(0, np.int64)
        return np.asarray(np.add.reduceat(kept[self._flat].astype(np.int64), self._starts), np.int64)

    def sizes(self, kept: Kept) -> Floats:
        """What products are made of."""
        counts = self.counts(kept)
        whole = -(-counts // self.block) * self.block
        return np.concatenate([[1.0], whole, np.where(whole == counts, 0, whole)])


class _Matcher:
    """Finds the axis a dimension belongs to by its values over all variants."""

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

    def dimension(self, values: Sequence[int]) -> tuple[float, _Monomial] | None:
        """Factor and axis whose product a dimension is in every variant; None if there is none."""
        row = np.asarray(values, np.int64)
        if (row == row[0]).all():
            return float(row[0]), ()
        least, scale = _reduced(row)
        if least in self._exact:
            place, unit = self._exact[least]
            return scale / unit, (1 + place,)
        rounded = self._round(row)  # kernels may state sizes with their padding
        if (rounded == rounded[0]).all():
            return float(rounded[0]), ()
        found = self._rounded.get(tuple(rounded.tolist()))
        return None if found is None else (1.0, (1 + found,))

    def broken(self, sizes: _Monomial, which: _Monomial) -> _Monomial:
        """A product in which some sizes count only where they are not whole blocks: there another kernel may run."""
        out = list(sizes)
        for place in which:
            if place in out:
                out[out.index(place)] += self._axes
        return tuple(sorted(out))

    def tensor(self, shapes: Sequence[tuple[int, ...]]) -> tuple[float, _Monomial] | None:
        """Elements of a tensor, from its shape in every variant."""
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

    def tensors(self, shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[tuple[float, _Monomial]] | None:
        """Elements of every input or output of a kernel."""
        if len({len(s) for s in shapes}) != 1:
            return None
        found = [self.tensor(same) for same in zip(*shapes, strict=True)]
        return None if any(f is None for f in found) else [f for f in found if f is not None]


def _reduced(row: Counts) -> tuple[tuple[int, ...], int]:
    """Values over their greatest common divisor, and that."""
    divisor = int(np.gcd.reduce(row)) or 1
    return tuple((row // divisor).tolist()), divisor


# ------------------------------------------------------------------------------------------------------------- fit


def fit(
    analysis: Analysis, samples: Sequence[VariantMeasurement], axes: ChannelAxes, *, clocked: bool = True
) -> LatencyFit:
    """Seconds as a polynomial in sizes.

    Args:
        analysis: of the model.
        samples: variants, the unpruned model among them.
        axes: of the analysis.
        clocked: whether the kernels' own times count; a GPU only starts its kernels within them.
    """
    sizes = np.array([axes.sizes(s.kept) for s in samples])
    matcher = _Matcher(axes, samples)
    if not clocked:
        work = _work(matcher, _aligned(analysis, samples))
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
            _add(total, _fitted(features, sizes, times))
    if rest.any():
        _add(total, _fitted(_traffic(analysis, axes), sizes, rest))
    return LatencyFit(_terms(total), _curve(_values(total, sizes), samples))


def _terms(polynomial: _Polynomial) -> list[tuple[float, _Monomial]]:
    return [(c, m) for m, c in sorted(polynomial.items()) if c]


def _aligned(analysis: Analysis, samples: Sequence[VariantMeasurement]) -> Iterator[list[list[Kernel]]]:
    """Kernels that are the same in all variants, per variant; those that are not in every one together by name."""
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


_GENERATED = re.compile(r"(_token)?_?\d+$")  # a number that onnxruntime counts up, different in every variant


def _features(matcher: _Matcher, kernels: Sequence[Kernel]) -> list[_Polynomial] | None:
    """What a kernel's time is made of; None where its shapes cannot be told from channels."""
    ins, outs = matcher.tensors([k.inputs for k in kernels]), matcher.tensors([k.outputs for k in kernels])
    if ins is None or outs is None:
        return None
    features: list[_Polynomial] = [{(): 1.0}]
    if _is_dense(kernels[0]):
        first, out, (_, product) = ins[0][1], outs[0][1], _weight(kernels[0], ins, outs)
        features += [{m: 1.0} for m in (first, out, product)]
        features += [{matcher.broken(m, first): 1.0} for m in (first, product)]
    else:
        features += [_sum(ins), _sum(outs)]
    if len(outs) == 1:  # what no longer fits into a cache takes longer to write
        features.append({tuple(sorted(2 * outs[0][1])): 1.0})
    return features


def _is_dense(kernel: Kernel) -> bool:
    return bool(kernel.inputs and kernel.outputs) and any(kind in kernel.op for kind in _DENSE)


def _weight(
    kernel: Kernel, ins: Sequence[tuple[float, _Monomial]], outs: Sequence[tuple[float, _Monomial]]
) -> tuple[float, _Monomial]:
    """Elements of a product's weight: as many as there are multiplications for every place of the output."""
    if len(kernel.inputs) > 1 and len(kernel.inputs[1]) > 1:
        return ins[1]
    # It was packed, and is not stated.
    return ins[0][0] * outs[0][0] / _positions(kernel) ** 2, tuple(sorted(ins[0][1] + outs[0][1]))


def _positions(kernel: Kernel) -> int:
    """How many places of the output the weight is used at: samples times pixels or tokens."""
    shape = kernel.outputs[0]
    return prod(shape) // max(shape[1 if "Conv" in kernel.op else -1], 1) if len(shape) > 1 else 1


def _work(matcher: _Matcher, aligned: Iterable[list[list[Kernel]]]) -> list[_Polynomial]:
    """What all kernels together do: elements read and written, and multiplications."""
    traffic: _Polynomial = {}
    products: _Polynomial = {}
    for same in aligned:
        kernels = [k for variant in same for k in variant]
        ins, outs = matcher.tensors([k.inputs for k in kernels]), matcher.tensors([k.outputs for k in kernels])
        if ins is None or outs is None or any(len(variant) != 1 for variant in same):
            continue
        _add(traffic, _sum([*ins, *outs]))
        if _is_dense(kernels[0]):
            factor, places = _weight(kernels[0], ins, outs)
            _add(products, {places: factor * _positions(kernels[0])})
    return [{(): 1.0}, traffic, products]


def _sum(parts: Iterable[tuple[float, _Monomial]]) -> _Polynomial:
    out: _Polynomial = {}
    for factor, places in parts:
        out[places] = out.get(places, 0.0) + factor
    return out


def _traffic(analysis: Analysis, axes: ChannelAxes) -> list[_Polynomial]:
    """For kernels that come and go with the counts: elements of all activations, and of those in broken blocks."""
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
    """Non-negative least squares of the times [variants] over features of the sizes [variants, places]."""
    distinct = {tuple(sorted(f.items())): f for f in features if f}  # more of one and the same would be arbitrary
    columns = np.array([_values(f, sizes) for f in distinct.values()]).T
    factors = _solve(columns, times, _RESOLUTION + 0.02 * times.max())
    out: _Polynomial = {}
    for factor, feature in zip(factors, distinct.values(), strict=True):
        if factor:
            _add(out, {m: c * factor for m, c in feature.items()})
    return out


def _solve(columns: Floats, times: Floats, floor: float) -> Floats:
    """Non-negative factors of columns, by relative error; a variant that was disturbed counts less, round by round.

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
    """Constant, linear and square by which sums of fitted kernels [variants] become whole runs."""
    quiet = np.array([s.quiet for s in samples])
    if quiet.sum() < _LEAST_QUIET:
        quiet[:] = True
    sums, samples = sums[quiet], [s for s in samples if s.quiet or quiet.all()]
    runs = np.array([s.seconds for s in samples])
    ones = np.ones(len(samples))
    more, less, linear, square = _solve(np.array([ones, -ones, sums, sums**2]).T, runs, _RESOLUTION)
    return float(more - less), float(linear), float(square)


# --------------------------------------------------------------------------------------------------------- measure


class VariantTimer:
    """Runs variants of a model in turn with the unpruned one, so that a drifting machine does not decide."""

    def __init__(self, analysis: Analysis, *, batch: int, threads: int, device: str) -> None:
        self.analysis = analysis
        self.feeds = random_feeds(analysis, batch)
        self.threads = threads
        self.device = device
        self._folders = contextlib.ExitStack()
        self._windows: list[int] = []  # runs of the reference beside each variant
        self._least: list[float] = []  # seconds of the fastest of those
        self._spread: list[float] = []  # median over least time of a variant's run

    def __enter__(self) -> VariantTimer:
        with self._folders as folders:  # left behind by nothing that fails
            self._reference = self._session(self.analysis.model, profiled=True)
            self.provider = self._reference.provider
            self._folders = folders.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._folders.close()

    def samples(self, block: int, progress: Progress | None = None) -> list[VariantMeasurement]:
        """Measures a designed set of variants, as many as patience allows."""
        variants = design(self.analysis, block, VARIANTS)
        for _ in range(_WARMUP):
            self._reference.run(self.feeds)
        out = []
        start = time.monotonic()
        for i, counts in enumerate(variants):
            out.append(self._sample(counts))
            late = i + 1 >= _LEAST_VARIANTS and time.monotonic() - start > _PATIENCE
            if progress is not None:
                progress(len(variants) if late else i + 1, len(variants))
            if late:
                break
        return self._without_drift(out)

    def _session(self, model: Model, *, profiled: bool) -> Session:
        folder = self._folders.enter_context(tempfile.TemporaryDirectory(prefix="onnxprune-")) if profiled else None
        return Session(model, device=self.device, threads=self.threads, profile=Path(folder) if folder else None)

    def _sample(self, counts: Mapping[str, int]) -> VariantMeasurement:
        plan = variant(self.analysis, counts)
        model = Pipeline([StripChannels(plan, self.analysis)])(self.analysis.model)
        plain, profiled = self._session(model, profiled=False), self._session(model, profiled=True)
        rounds: list[list[float]] = []  # seconds of each session
        quiet: list[list[float]] = []  # those while nobody else used the machine
        start = time.monotonic()
        # In turn, as everything is measured here: what ran just before decides over how warm the caches are.
        while not _enough(len(rounds), len(quiet), time.monotonic() - start):
            runs = [timed_run(s, self.feeds) for s in (self._reference, plain, profiled)]
            rounds.append([seconds for seconds, _ in runs])
            if len(rounds) > _WARMUP and all(waited <= _DISTURBED * seconds for seconds, waited in runs):
                quiet.append(rounds[-1])
        self._windows.append(len(rounds))
        reference, whole, _ = zip(*(quiet or rounds[_WARMUP:]), strict=True)
        self._least.append(min(reference))
        self._spread.append(float(np.median(whole)) / min(whole))
        return VariantMeasurement(
            self.analysis.kept(plan), _fastest(profiled.kernels()[_WARMUP:]), min(whole), bool(quiet)
        )

    def _without_drift(self, samples: Sequence[VariantMeasurement]) -> list[VariantMeasurement]:
        """Times as if the unpruned model had always taken the same, and typical instead of least ones."""
        pace = np.array(self._least)
        if self.provider.startswith("CPU"):  # a kernel finds a quiet moment more easily than a whole run
            runs = iter(self._reference.kernels()[_WARMUP:])
            windows = [[run for _, run in zip(range(n), runs, strict=False)] for n in self._windows]
            sums = np.array([sum(k.seconds for k in _fastest(w)) for w in windows])
            pace = sums if (sums > 0).all() else pace
        pace = pace / np.median(pace)
        typical = float(np.percentile(self._spread, 25))  # where nobody else used the machine
        out = []
        for s, p in zip(samples, (typical / pace).tolist(), strict=True):
            kernels = [replace(k, seconds=k.seconds * p) for k in s.kernels]
            out.append(replace(s, kernels=kernels, seconds=s.seconds * p))
        return out


def timed_run(session: Session, feeds: Mapping[str, Array]) -> tuple[float, float]:
    """Seconds of a run, and seconds that this process's threads waited meanwhile because others ran."""
    before = _waited()
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start, _waited() - before


def _waited() -> float:
    """Seconds that all threads of this process have waited for a processor; 0 where the system does not say."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread may end meanwhile
            total += int(path.read_bytes().split()[1])
    return total * 1e-9


def _enough(rounds: int, quiet: int, seconds: float) -> bool:
    """Whether a variant was measured often enough."""
    short, long = _ROUNDS_SECONDS
    if rounds < _WARMUP + _ROUNDS[0]:
        return False
    return quiet >= _ROUNDS[1] or (quiet >= _ROUNDS[0] and seconds > short) or seconds > long


def _fastest(runs: Sequence[Sequence[Kernel]]) -> list[Kernel]:
    """The kernels of the last run, each with the least time it took in any: what others use the machine for only adds.

    Runs of one session have the same kernels; one that has not (an If that went the other way) is left out.
    """
    if not runs:
        return []
    last = runs[-1]
    same = [run for run in runs if [k.name for k in run] == [k.name for k in last]]
    return [replace(k, seconds=min(run[i].seconds for run in same)) for i, k in enumerate(last)]


def design(analysis: Analysis, block: int, variants: int = VARIANTS, seed: int = 0) -> list[dict[str, int]]:
    """Channel counts per group: the unpruned model first, then sizes from whole to small, every group around them.

    Counts are whole blocks on the producing axis, as plans have them.
    """
    rng = np.random.default_rng(seed)
    out = [{g.name: g.channels for g in analysis.groups}]
    if not analysis.groups:
        return out
    for level in rng.permutation(np.linspace(_SMALLEST, 1.0, variants - 1)):
        counts = {}
        for g in analysis.groups:
            options = _options(g, block)
            wanted = g.channels * level * rng.uniform(0.5, 1.5)
            counts[g.name] = int(options[np.argmin(np.abs(options - wanted))])
        out.append(counts)
    return out


def _options(group: Group, block: int) -> Counts:
    unit = block // gcd(block, group.width)
    while unit > 1 and unit >= group.channels:
        unit //= 2
    return np.append(np.arange(unit, group.channels, unit), group.channels)


def variant(analysis: Analysis, counts: Mapping[str, int]) -> Plan:
    """A plan that leaves so many channels in each group; which ones makes no difference to time."""
    sizes = {g.name: g.channels for g in analysis.groups}
    removed = {n: Removal(sizes[n], tuple(range(k, sizes[n]))) for n, k in counts.items() if k < sizes[n]}
    return Plan("", removed, options=analysis.choices.options())


# ----------------------------------------------------------------------------------------------------------- cache


def machine() -> str:
    """What a time depends on besides the model: processor and cores, and the GPU if there is one."""
    found = []
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        wanted = ("model name", "cpu family", "model", "stepping")
        found = [v.strip() for k, _, v in (line.partition(":") for line in text.splitlines()) if k.strip() in wanted]
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            found.append(path.read_text(encoding="utf-8", errors="replace").splitlines()[0].partition(":")[2].strip())
    return ", ".join([*(found or [platform.machine(), platform.processor()]), f"{os.cpu_count()} cores"])


def structure(analysis: Analysis) -> str:
    """A digest of what decides over time: operators, attributes, shapes, sizes and which axes can shrink.

    Weights and names do not enter.
    """
    digest = hashlib.sha256()

    def put(*values: object) -> None:
        digest.update(f"{values!r}\n".encode())

    graph = analysis.model.graph
    number: dict[str, int] = {}
    for t in graph.inputs:
        put("input", number.setdefault(t.name, len(number)), str(t.dtype), t.shape)
    put("opset", graph.opset, "dims", list(analysis.witness.dims.values()))
    for node in graph.nodes:
        put(node.op, node.domain, [(k, _attribute(v)) for k, v in sorted(node.attrs.items())])
        for t in node.inputs:
            if isinstance(t, gs.Constant) and t.name not in number:
                sized = t.dtype.kind in "iub" and prod(t.shape) <= _SAMPLED
                put("constant", str(t.dtype), tuple(t.shape), np.asarray(t.values).tolist() if sized else None)
            put(number.setdefault(t.name, len(number)))
        put([number.setdefault(t.name, len(number)) for t in node.outputs])
    put("outputs", [number.get(t.name) for t in graph.outputs])
    for components in ChannelAxes.of(analysis, 1).components:
        digest.update(np.ascontiguousarray(components, np.int64).tobytes() + b"\n")
    return digest.hexdigest()


def _attribute(value: Any) -> object:
    if isinstance(value, gs.Graph):
        return [(n.op, [(k, _attribute(v)) for k, v in sorted(n.attrs.items())]) for n in value.nodes]
    if isinstance(value, gs.Tensor | np.ndarray):
        return [str(value.dtype), tuple(value.shape or ())]
    return str(value) if not isinstance(value, list | tuple) else [str(v) for v in value]


def _cache_file(settings: Mapping[str, Any]) -> Path:
    folder = os.environ.get("ONNXPRUNE_CACHE")
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        folder = str(Path(base) / "onnxprune" / "latency")
    key = hashlib.sha256(json.dumps([SCHEMA, settings], sort_keys=True).encode()).hexdigest()
    return Path(folder) / f"{key[:32]}.json"


def _write(path: Path, settings: Mapping[str, Any], fitted: LatencyFit) -> None:
    """Fills the cache; a folder that cannot be written to is none of the caller's worries."""
    terms = [[c, *m] for c, m in fitted.terms]
    data = {"schema": SCHEMA, "settings": dict(settings), "curve": list(fitted.curve), "terms": terms}
    with contextlib.suppress(OSError, OnnxPruneError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(data) + "\n")


@dataclass(frozen=True)
class _CacheFile:
    """Contents of a cache file."""

    settings: Mapping[str, Any]
    curve: tuple[float, float, float]
    terms: tuple[tuple[float | int, ...], ...]


def _read(path: Path, settings: Mapping[str, Any], axes: ChannelAxes) -> LatencyFit | None:
    """Return the fit of a cache file; None if it is missing, damaged or of other settings."""
    try:
        found = _FORMAT.read(_CacheFile, path)
    except OnnxPruneError:
        return None
    top = 1 + 2 * len(axes.components)
    if found.settings != settings:
        return None
    terms = []
    for term in found.terms:
        axes_of_term = tuple(p for p in term[1:] if isinstance(p, int) and 0 < p < top)
        if not term or len(axes_of_term) != len(term) - 1:
            return None
        terms.append((float(term[0]), axes_of_term))
    return LatencyFit(terms, found.curve)
