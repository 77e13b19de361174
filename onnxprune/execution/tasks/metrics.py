"""Metrics of outputs: accuracy and loss against labels, distances from the original's outputs without labels.

A metric gives one number per sample; its value is the mean, its standard error the standard deviation over sqrt(n).

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
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune._utils.import_strings import find_function
from onnxprune._utils.registry import Registry
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.ir.model import Array

Labels = npt.NDArray[np.int64] | None
Samples = npt.NDArray[np.float64]
Outputs = Sequence[Array]

# Scores closer than this, relative to the largest, may swap when a sum is computed in another order.
NEAR = 1e-4


@dataclass(frozen=True)
class MetricValue:
    """Value of a metric, and its standard error (None if it has none)."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Metric:
    """Metric of a model's outputs.

    Attributes:
        name: Name on the command line.
        higher_is_better: Whether larger values are better.
        needs: "labels", "reference" (outputs of the original), or "" for a user's function.
        samples: (outputs, labels, reference outputs), each [n, ...] -> float64 [n].
        undecided: (scores [n, classes], labels) -> bool [n], whether rounding could change a sample's number; None if
            the numbers are continuous, so that any rounding changes them.
        chance: classes -> value of guessing; None if undefined.
        function: User's function, called once with all samples.
    """

    name: str
    higher_is_better: bool
    needs: str
    samples: Callable[[Outputs, Labels, Outputs], Samples] | None = None
    undecided: Callable[[Array, Labels], npt.NDArray[np.bool_]] | None = None
    chance: Callable[[int], float] | None = None
    function: Callable[..., Any] | None = None

    def mean(self, samples: Samples) -> MetricValue:
        """Return value and standard error of per-sample numbers."""
        n = len(samples)
        value = float(samples.mean())
        return MetricValue(value, float(np.sqrt(np.mean((samples - value) ** 2) / n)))

    def of_all(self, outputs: Outputs, labels: Labels, reference: Outputs) -> MetricValue:
        """Return the result of a user's function.

        Raises:
            OnnxPruneError: The function raises, or returns neither a number nor one number per sample.
        """
        assert self.function is not None
        first = [o[0] if len(o) == 1 else list(o) for o in (outputs, reference)]
        arguments = [first[0], labels, first[1]][: _positional(self.function)]
        try:
            result = np.asarray(self.function(*arguments), np.float64)
        except Exception as err:  # a user's function may raise anything
            raise OnnxPruneError(f"the metric {self.name!r} failed: {type(err).__name__}: {err}") from err
        if result.shape == (len(outputs[0]),) and np.isfinite(result).all():
            return self.mean(result)
        if result.size != 1 or not isfinite(float(result.reshape(-1)[0])):
            raise OnnxPruneError(
                f"the metric {self.name!r} returned {'no finite number' if result.size == 1 else list(result.shape)}",
                fix="return one finite number, or one per sample",
            )
        return MetricValue(float(result.reshape(-1)[0]), None)


def _positional(function: Callable[..., Any]) -> int:
    """Return the number of arguments of (outputs, labels, reference) that a user's function accepts."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built into C
        return 2
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 3
    return min(3, sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters))


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
    if not np.isfinite(scores).all():
        raise OnnxPruneError("the model's outputs are not finite on this data", fix="check --mean and --std")
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
    return np.asarray(-_logs(scores)[np.arange(len(y)), y], np.float64)


def _logs(scores: Array, axis: int = 1) -> Array:
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
    p, q = _logs(wanted), _logs(got)
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
            if not np.isfinite(got).all():
                raise OnnxPruneError("the model's outputs are not finite on this data", fix="check --mean and --std")
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
    """Return a metric by name, or a user's `package.module:function(outputs, labels[, reference])`.

    The function receives the outputs [n, ...] (a list if there are several), the labels or None and, if it has a third
    parameter, the original's outputs; it returns one number or one per sample. Higher is better unless it has an
    attribute `higher_is_better = False`.

    Raises:
        OnnxPruneError: The name is unknown, or the function cannot be imported.
    """
    metric = METRICS.find(name)
    if metric is not None:
        return metric
    if ":" not in name:
        raise unknown("metric", name, [*METRICS, "package.module:function"])
    function = find_function(name, "metric")
    return Metric(name, bool(getattr(function, "higher_is_better", True)), "", function=function)
