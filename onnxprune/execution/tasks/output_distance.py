"""Distance of a model's outputs from reference outputs on the same samples, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.metrics import Metric, Outcome, get_metric
from onnxprune.execution.tasks.task import bind_task
from onnxprune.ir.model import Array, Model


class OutputDistance:
    """Distance of outputs from those of a reference; missing outputs count as unchanged.

    For a classifier (one output [n, classes]) the divergence `sum p log(p / q)` of class probabilities, with p of the
    reference; for a detector that of raw boxes and scores (`_boxes.divergence`), because a squared error would be that
    of boxes of the background; for a detector that returns lists of boxes 1 - agreement (`_boxes.agreement`); otherwise
    the squared error of all outputs relative to their variance. Averaged over samples.

    Args:
        names: Names of the compared outputs, floating-point.
        reference: Reference outputs, a mapping per batch.
        model: The original, from which a detector is recognized; None: outputs are not boxes.
    """

    def __init__(
        self, names: Sequence[str], reference: Sequence[Mapping[str, Array]], model: Model | None = None
    ) -> None:
        self.names, self.reference = names, reference
        self.detection = detection_divergence(model, names) if model is not None else None
        boxes = self.detection.reads if self.detection is not None and self.detection.reads else ()
        self.rest = [n for n in names if n not in boxes]
        self.lists = self.detection is not None and self.detection.higher_is_better
        first = reference[0][names[0]]
        self.classifier = len(names) == 1 and first.ndim == 2 and first.shape[1] > 1
        self.spreads = {n: _spreads([np.asarray(r[n]) for r in reference]) for n in self.rest}

    def __call__(self, outputs: Iterable[Mapping[str, Array]]) -> float:
        """Return the distance of outputs, given as a mapping per batch."""
        divergence = get_metric("kl").samples
        assert divergence is not None
        total, samples = 0.0, 0
        for i, (ours, theirs) in enumerate(zip(outputs, self.reference, strict=True)):
            if self.detection is not None:
                total += self._detection(ours, theirs)
            for name, values in ours.items():
                if name not in self.rest:
                    continue
                if self.classifier:
                    total += float(divergence([values], None, [theirs[name]]).sum())
                else:
                    gap = np.asarray(values, np.float64) - np.asarray(theirs[name], np.float64)
                    total += float(np.square(gap).sum()) / self.spreads[name][i] / len(self.names)
            samples += 1 if self.lists else len(theirs[self.names[0]])
        return total / samples

    def _detection(self, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> float:
        """Return the divergence of the boxes of a batch, summed over its images."""
        assert self.detection is not None
        assert self.detection.reads is not None
        assert self.detection.collect is not None
        reads = self.detection.reads
        count = 1 if self.lists else len(theirs[reads[0]])
        found = Outcome([ours.get(n, theirs[n]) for n in reads], None, [theirs[n] for n in reads], count)
        value = float(sum(self.detection.collect(found)))
        return count - value if self.lists else value


def detection_divergence(model: Model, names: Sequence[str]) -> Metric | None:
    """Return the metric `divergence` of a detector, `agreement` if it returns a list of boxes for one image.

    None for other models, and if it reads other outputs.
    """
    try:
        bound = bind_task(model)
    except OnnxPruneError:
        return None  # a model of another task
    wanted = "agreement" if bound.name == "detect" and bound.batch == 1 else "divergence"
    found = next((m for m in bound.distances if m.name == wanted), None)
    return found if found is not None and set(found.reads or ()) <= set(names) else None


def _spreads(batches: Sequence[Array]) -> list[float]:
    """Return, for every batch, the variance of an output's elements over the samples, summed over its elements.

    Elements along an axis whose size differs between batches have one mean and one variance.
    """
    shapes = [values.shape for values in batches]
    ranks = {len(shape) for shape in shapes}
    pooled = tuple(a for a in range(1, min(ranks)) if len({shape[a] for shape in shapes}) > 1)
    if len(ranks) > 1:
        pooled = tuple(range(1, min(ranks)))
    if not pooled:
        flat = np.concatenate([np.asarray(v, np.float64).reshape(len(v), -1) for v in batches])
        return [float(flat.var(0).sum()) or 1.0] * len(batches)
    rows = [np.moveaxis(np.asarray(v, np.float64), pooled, range(1, 1 + len(pooled))) for v in batches]
    rows = [v.reshape(-1, *v.shape[1 + len(pooled) :]) for v in rows]
    count = sum(map(len, rows)) or 1
    mean = sum(v.sum(0) for v in rows) / count
    variance = float(np.sum(sum(np.square(v - mean).sum(0) for v in rows) / count))
    return [variance * prod(shape[a] for a in pooled) or 1.0 for shape in shapes]
