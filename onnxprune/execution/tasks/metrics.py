"""Metrics of outputs: accuracy and loss against targets, distances from the original's outputs without targets.

A metric keeps a record of every sample and computes its value from all of them. Most records are one number: their
mean is the value, the standard deviation over sqrt(n) its standard error. The metrics of this module read any model;
those of the tasks beside it decode the outputs of one model first.

| metric | per sample | better | needs |
|---|---|---|---|
| top1, top5 | 1 if the label is (among) the largest score(s), else 0 | higher | labels |
| loss | cross-entropy in nats | lower | labels |
| kl | sum p log(p / q), p the original's probabilities, q the model's | lower | the original's outputs |
| cosine | cosine of the angle between all outputs and the original's | higher | the original's outputs |
| mse | mean squared difference of all outputs | lower | the original's outputs |
| package.module:function | result of the user's function | higher, or as it says | |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune._utils.import_strings import find_function
from onnxprune._utils.registry import Registry
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.ir.model import Array

Labels = npt.NDArray[np.int64] | None
Targets = npt.NDArray[np.int64] | Sequence[Any] | None
"""Targets of samples: class indices, or a list with boxes, a mask, text or numbers for each sample; None: none."""
Samples = npt.NDArray[np.float64]
Outputs = Sequence[Array]

# Scores closer than this, relative to the largest, may swap when a sum is computed in another order.
NEAR = 1e-4

SHARES = frozenset(
    ("top1", "top5", "map", "map50", "map_to_original", "agreement", "miou", "pixel_accuracy", "word_accuracy",
     "character_accuracy", "retrieval")
)  # fmt: skip
"""Metrics that are shares, shown in percent."""
LOWER_IS_BETTER = frozenset(("loss", "kl", "mse", "mae", "divergence"))


_BLOCKS, _FEW = 20, 1000  # blocks left out by a jackknife, half of them for more samples


class UndefinedMetric(OnnxPruneError):
    """A metric has no finite value: for these outputs, or because the outputs are not finite."""


def check_finite(*outputs: Array) -> None:
    """Raise if outputs are not finite.

    Raises:
        UndefinedMetric: They are not.
    """
    if not all(np.isfinite(v).all() for v in outputs):
        raise UndefinedMetric("the model's outputs are not finite on this data", fix="check --mean and --std")


@dataclass(frozen=True)
class MetricValue:
    """Value of a metric, and its standard error (None if it has none)."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Outcome:
    """Results of one batch.

    Attributes:
        outputs: The model's outputs that the metric reads.
        targets: Targets of the samples, if the data has any.
        reference: The original's outputs, if the metric compares with them.
        count: Number of samples.
        size: (height, width) of the image input; None for other inputs.
        filled: Number of samples with the copies that fill up a fixed batch; 0: there are none.
    """

    outputs: Outputs
    targets: Targets
    reference: Outputs
    count: int
    size: tuple[int, int] | None = None
    filled: int = 0

    def real(self) -> Outcome:
        """Return the results without those of copies; the first axis of the outputs is that of the samples."""
        if self.filled in (0, self.count):
            return self
        outputs, reference = (
            [o[: self.count] if o.ndim and len(o) == self.filled else o for o in side]
            for side in (self.outputs, self.reference)
        )
        return replace(self, outputs=outputs, reference=reference, filled=0)


@dataclass(frozen=True)
class Metric:
    """Metric of a model's outputs: by `samples`, by `collect`, or a user's function.

    Attributes:
        name: Name on the command line.
        higher_is_better: Whether larger values are better.
        needs: "labels" (targets), "reference" (outputs of the original), or "" for a user's function.
        samples: (outputs, labels, reference outputs), each [n, ...] -> float64 [n].
        undecided: (scores [n, classes], labels) -> bool [n], whether rounding could change a sample's number; None if
            the numbers are continuous, so that any rounding changes them.
        chance: classes -> value of guessing; None if undefined.
        function: User's function, called once with all samples.
        collect: Returns a record for each sample of a batch.
        combine: Returns the value from the records of all samples; None: the records are numbers, the value their mean.
        reads: Names of the outputs that it reads; None: see `outputs_read`.
    """

    name: str
    higher_is_better: bool
    needs: str
    samples: Callable[[Outputs, Labels, Outputs], Samples] | None = None
    undecided: Callable[[Array, Labels], npt.NDArray[np.bool_]] | None = None
    chance: Callable[[int], float] | None = None
    function: Callable[..., Any] | None = None
    collect: Callable[[Outcome], Sequence[Any]] | None = None
    combine: Callable[[Sequence[Any]], MetricValue] | None = None
    reads: tuple[str, ...] | None = None

    @property
    def classifies(self) -> bool:
        """True if it reads the scores of a classifier."""
        return self.needs == "labels" and self.samples is not None

    @property
    def wants_reference(self) -> bool:
        """True if it compares with the original's outputs."""
        return self.needs == "reference" or (self.function is not None and _positional(self.function) > 2)

    def outputs_read(self, names: Sequence[str]) -> list[str]:
        """Return the outputs that it reads, of a model's: scores of classes come from the first, distances from all."""
        if self.reads is not None:
            return [n for n in self.reads if n in names]
        return list(names[:1] if self.classifies or self.name == "kl" else names)

    def mean(self, samples: Samples) -> MetricValue:
        """Return value and standard error of per-sample numbers."""
        n = len(samples)
        value = float(samples.mean())
        return MetricValue(value, float(np.sqrt(np.mean((samples - value) ** 2) / n)))

    def reduced(self, outcomes: Sequence[Outcome]) -> Any:
        """Return what is kept of consecutive batches: numbers or records of samples, or all for a user's function."""
        if self.collect is not None:
            return [record for outcome in outcomes for record in self.collect(outcome)]
        outcomes = [o.real() for o in outcomes]
        if self.samples is None:
            return list(outcomes)
        if _same_shapes([o.outputs for o in outcomes]):
            whole = _whole(outcomes)
            return self.samples(whole.outputs, self._labels(whole.targets), whole.reference)
        return np.concatenate([self.samples(o.outputs, self._labels(o.targets), o.reference) for o in outcomes])

    def joined(self, collected: Sequence[Any]) -> MetricValue:
        """Return the value from what was kept of all batches."""
        if self.samples is not None:
            return self.mean(np.concatenate(collected))
        records = list(chain.from_iterable(collected))
        if self.collect is not None:
            return self.combine(records) if self.combine is not None else self.mean(np.asarray(records, np.float64))
        if _same_shapes([o.outputs for o in records]):
            whole = _whole(records)
            return self.of_all(whole.outputs, whole.targets, whole.reference)
        return self.of_all(
            _by_sample([o.outputs for o in records]), all_targets([o.targets for o in records]),
            _by_sample([o.reference for o in records]),
        )  # fmt: skip

    def without_blocks(self, records: Sequence[Any]) -> Samples:
        """Return the value without each of some blocks of samples, for metrics that are no mean of samples.

        Of two models on the same samples, they give the standard error of the difference by the delete-a-group
        jackknife (B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, section 11.5).

        Returns:
            Float64 [blocks]; empty if the metric is not defined without some block.
        """
        assert self.combine is not None
        count = len(records)
        blocks = min(count, _BLOCKS if count <= _FEW else _BLOCKS // 2)
        try:
            rest = ([r for i, r in enumerate(records) if i % blocks != k] for k in range(blocks))
            values = np.array([self.combine(kept).value for kept in rest], np.float64)
        except OnnxPruneError:  # a metric of boxes where no other sample has one
            return np.zeros(0)
        return values if blocks > 1 and bool(np.isfinite(values).all()) else np.zeros(0)

    def _labels(self, targets: Targets) -> Labels:
        return _labels(targets) if self.needs == "labels" else None

    def of_all(self, outputs: Sequence[Any], targets: Targets, reference: Sequence[Any]) -> MetricValue:
        """Return the result of a user's function.

        Raises:
            OnnxPruneError: The function raises, or returns neither a number nor one number per sample.
        """
        assert self.function is not None
        first = [o[0] if len(o) == 1 else list(o) for o in (outputs, reference)]
        arguments = [first[0], targets, first[1]][: _positional(self.function)]
        try:
            result = np.asarray(self.function(*arguments), np.float64)
        except Exception as err:  # a user's function may raise anything
            raise OnnxPruneError(f"the metric {self.name!r} failed: {type(err).__name__}: {err}") from err
        if result.shape == (len(outputs[0]),) and np.isfinite(result).all():
            return self.mean(result)
        if result.size != 1 or not isfinite(float(result.reshape(-1)[0])):
            error = UndefinedMetric if result.size == 1 else OnnxPruneError
            raise error(
                f"the metric {self.name!r} returned {'no finite number' if result.size == 1 else list(result.shape)}",
                fix="return one finite number, or one per sample",
            )
        return MetricValue(float(result.reshape(-1)[0]), None)


def all_targets(targets: Sequence[Targets]) -> Targets:
    """Return the targets of several batches as those of one."""
    if targets[0] is None:
        return None
    if isinstance(targets[0], np.ndarray):
        return np.concatenate([np.asarray(t) for t in targets])
    return [t for batch in targets for t in batch or ()]


def _same_shapes(runs: Sequence[Outputs]) -> bool:
    return all(len({o.shape[1:] for o in column}) == 1 for column in zip(*runs, strict=True))


def _whole(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the batches as one."""
    if len(outcomes) == 1:
        return outcomes[0]
    reference = concatenated([o.reference for o in outcomes]) if outcomes[0].reference else ()
    return Outcome(
        concatenated([o.outputs for o in outcomes]), all_targets([o.targets for o in outcomes]), reference,
        sum(o.count for o in outcomes), outcomes[0].size,
    )  # fmt: skip


def _by_sample(runs: Sequence[Outputs]) -> list[list[Array]]:
    """Return outputs whose shapes differ between batches as lists with one array for each sample."""
    return [[row for values in column for row in values] for column in zip(*runs, strict=True)]


def concatenated(runs: Sequence[Outputs]) -> list[Array]:
    """Return the outputs of several batches as those of one.

    Raises:
        OnnxPruneError: The outputs of the batches have other shapes behind the first axis.
    """
    try:
        return [c[0] if len(c) == 1 else np.concatenate(c) for c in zip(*runs, strict=True)]
    except ValueError as err:
        shapes = [list(o.shape) for o in runs[0]]
        raise OnnxPruneError(
            f"outputs of different batches cannot be put together: {shapes} ({err})",
            fix="the first axis of every output must be the samples",
        ) from err


def _labels(targets: Targets) -> Labels:
    """Return targets as class indices.

    Raises:
        OnnxPruneError: They are of another kind.
    """
    if targets is None or isinstance(targets, np.ndarray):
        return targets
    raise OnnxPruneError(
        f"the data has {kind_of(targets)} as targets, and the metric needs labels", fix="choose the --task of the data"
    )


def numbers(values: Array) -> list[float]:
    """Return an array of one axis as a list."""
    return [float(v) for v in values]


def kind_of(targets: Targets) -> str:
    """Return the kind of targets: "none", "labels", "boxes", "masks", "texts" or "values"."""
    if targets is None:
        return "none"
    if isinstance(targets, np.ndarray):
        return "labels" if targets.ndim == 1 and targets.dtype.kind in "iu" else "values"
    first = targets[0]
    if isinstance(first, str):
        return "texts"
    if hasattr(first, "boxes"):
        return "boxes"
    array = np.asarray(first)
    return "masks" if array.ndim == 2 and array.dtype.kind in "iub" else "values"


def _positional(function: Callable[..., Any]) -> int:
    """Return the number of arguments of (outputs, targets, reference) that a user's function accepts."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built into C
        return 2
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 3
    return min(3, sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters))


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    """Raise if a user's function cannot be called with one to three arguments.

    Raises:
        OnnxPruneError: Says the arguments that it has.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built into C
        return
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = [p.name for p in required if p.kind is p.KEYWORD_ONLY]
    if named or len(required) > 3 or _positional(function) == 0:
        takes = f"the keyword {named[0]!r}" if named else f"{len(required)} arguments" if required else "no argument"
        raise OnnxPruneError(
            f"the metric {name!r} takes {takes}",
            fix="write it as f(outputs, targets) or f(outputs, targets, reference), with one finite number as result",
        )


def scores_of(output: Array, count: int) -> Array:
    """Return a classifier's output as float64 [count, classes].

    Raises:
        OnnxPruneError: The output is not one score per class, or not finite.
    """
    scores = np.asarray(output, np.float64)
    if scores.ndim > 1:
        scores = scores.reshape(len(scores), -1)
    if scores.ndim != 2 or len(scores) != count:
        raise OnnxPruneError(f"the model's output {list(output.shape)} is not one score per class")
    check_finite(scores)
    return scores


def check_labels(scores: Array, labels: Labels) -> npt.NDArray[np.int64]:
    """Return labels that fit the scores.

    Raises:
        OnnxPruneError: There are no labels, or one is outside the model's classes.
    """
    if labels is None:
        raise OnnxPruneError("the data has no labels", fix="add an array y, or choose --metric kl, cosine or mse")
    if int(labels.max()) >= scores.shape[1] or int(labels.min()) < 0:
        worst = int(labels.max()) if int(labels.max()) >= scores.shape[1] else int(labels.min())
        raise OnnxPruneError(f"the data has the label {worst}, the model {scores.shape[1]} classes")
    return labels


def hits(scores: Array, labels: Labels, k: int) -> Samples:
    """Return 1.0 where the label is among the k largest scores; ties count in favour of the lower class."""
    y = check_labels(scores, labels)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.asarray((top == y[:, None]).any(1), np.float64)


def cross_entropy(scores: Array, labels: Labels) -> Samples:
    """Return -log p(label) in nats, [n]; scores that are probabilities are used as such."""
    y = check_labels(scores, labels)
    return np.asarray(-log_probabilities(scores)[np.arange(len(y)), y], np.float64)


def log_probabilities(scores: Array, axis: int = 1) -> Array:
    """Return log probabilities, from probabilities or logits."""
    s = np.asarray(scores, np.float64)
    if (s >= 0).all() and np.allclose(s.sum(axis), 1, atol=1e-3):
        return np.asarray(np.log(np.maximum(s, np.finfo(np.float64).tiny)))
    top = s.max(axis, keepdims=True)
    return np.asarray(s - top - np.log(np.exp(s - top).sum(axis, keepdims=True)))


def _near(scores: Array, labels: Labels, k: int) -> npt.NDArray[np.bool_]:
    """Return whether a label's score is so close to the k-th largest other score that rounding could decide, [n]."""
    y = check_labels(scores, labels)
    if scores.shape[1] <= k:
        return np.zeros(len(y), np.bool_)
    own = scores[np.arange(len(y)), y]
    others = scores.copy()
    others[np.arange(len(y)), y] = -np.inf
    rival = np.partition(others, -k, axis=1)[:, -k]
    return np.asarray(np.abs(own - rival) <= NEAR * np.abs(scores).max(1), np.bool_)


def _of_scores(rule: Callable[[Array, Labels], Samples]) -> Callable[[Outputs, Labels, Outputs], Samples]:
    return lambda outputs, labels, reference: rule(scores_of(outputs[0], len(outputs[0])), labels)


def _kl(outputs: Outputs, labels: Labels, reference: Outputs) -> Samples:
    got, wanted = _pairs(outputs[:1], reference[:1])[0]
    if got.ndim < 2:
        raise OnnxPruneError(f"the model's output {list(got.shape)} is not one score per class", fix="--metric mse")
    p, q = log_probabilities(wanted), log_probabilities(got)
    return np.asarray((np.exp(p) * (p - q)).sum(1).reshape(len(got), -1).mean(1))


def _cosine(outputs: Outputs, labels: Labels, reference: Outputs) -> Samples:
    a, b = (
        np.concatenate([x.reshape(len(x), -1) for x in side], 1)
        for side in zip(*_pairs(outputs, reference), strict=True)
    )
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = np.asarray((a == b).all(1), np.float64)  # also both zero
    return np.asarray(np.divide((a * b).sum(1), norms, out=same, where=norms > 0))


def _mse(outputs: Outputs, labels: Labels, reference: Outputs) -> Samples:
    gaps = [((a - b) ** 2).reshape(len(a), -1) for a, b in _pairs(outputs, reference)]
    return np.asarray(np.concatenate(gaps, 1).mean(1))


def _pairs(outputs: Outputs, reference: Outputs) -> list[tuple[Array, Array]]:
    """Return pairs of float64 (output, original's output); outputs of other types are skipped."""
    out = []
    for a, b in zip(outputs, reference, strict=True):
        if a.shape != b.shape:
            raise OnnxPruneError(
                f"an output has the shape {list(a.shape)}, that of the original {list(b.shape)}",
                fix="outputs whose shape depends on the data need a metric of your own",
            )
        if a.dtype.kind in "fV":
            got = np.asarray(a, np.float64)
            check_finite(got)
            out.append((got, np.asarray(b, np.float64)))
    if not out:
        raise OnnxPruneError("the model has no float output to compare", fix="use a metric of your own")
    return out


METRICS: Registry[str, Metric] = Registry("metric")
for _metric in (
    Metric("top1", True, "labels", _of_scores(lambda s, y: hits(s, y, 1)), lambda s, y: _near(s, y, 1),
           lambda classes: 1 / classes),
    Metric("top5", True, "labels", _of_scores(lambda s, y: hits(s, y, 5)), lambda s, y: _near(s, y, 5),
           lambda classes: min(1.0, 5 / classes)),
    Metric("loss", False, "labels", _of_scores(cross_entropy)),
    Metric("kl", False, "reference", _kl),
    Metric("cosine", True, "reference", _cosine),
    Metric("mse", False, "reference", _mse),
):  # fmt: skip
    METRICS.register(_metric)


def get_metric(name: str) -> Metric:
    """Return a metric by name, or a user's `package.module:function(outputs, targets[, reference])`.

    The function receives the outputs [n, ...] (a list if there are several; a list of samples if their shapes differ),
    the targets or None and, if it has a third parameter, the original's outputs; it returns one number or one per
    sample. Higher is better unless it has an attribute `higher_is_better = False`.

    Raises:
        OnnxPruneError: The name is unknown, or the function cannot be imported.
    """
    metric = METRICS.find(name)
    if metric is not None:
        return metric
    if ":" not in name:
        raise unknown("metric", name, [*METRICS, "package.module:function"])
    function = find_function(name, "metric")
    _check_signature(name, function)
    return Metric(name, bool(getattr(function, "higher_is_better", True)), "", function=function)
