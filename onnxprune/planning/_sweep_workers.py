"""Points of a sweep measured one after the other, in this process or by a worker that journals its own."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.files.array_files import load_array
from onnxprune._utils.files.journal import Journal
from onnxprune.analysis.coupling import couple
from onnxprune.criteria.model_runs.masked_evaluation import MaskedEvaluator
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Feeds, Preprocess
from onnxprune.execution.tasks.metrics import MetricValue, kind_of
from onnxprune.execution.tasks.task import find_metric
from onnxprune.ir.reader import load
from onnxprune.ops import CouplingOptions
from onnxprune.options.tasks import TaskOptions
from onnxprune.passes import NORMALIZE, Pipeline


@dataclass(frozen=True)
class CurveSearch:
    """Part of a curve to measure: all of it, its crossing of a threshold, or down to chance."""

    threshold: float | None = None
    stop_at_chance: bool = False

    @property
    def in_turn(self) -> bool:
        """True if the value of a point determines the next one."""
        return self.threshold is not None or self.stop_at_chance


@dataclass(frozen=True)
class WorkerSettings:
    """Inputs of a worker; its files are where all workers can read them.

    `samples` is data that is no array: its files are read by every worker.
    """

    model: Path
    fingerprint: str
    choices: CouplingOptions
    data: Path
    name: str
    samples: Data | None = field(repr=False, compare=False)
    preprocess: Preprocess
    task: TaskOptions
    orders: dict[str, list[int]] = field(repr=False)
    batch: int
    threads: int
    device: str
    cache_memory: int
    search: CurveSearch
    baseline: MetricValue
    classes: int
    journal: dict[str, Any]


def searched(
    evaluator: MaskedEvaluator, search: CurveSearch, group: str, counts: Sequence[int], known: Mapping[int, MetricValue]
) -> Iterator[tuple[int, MetricValue]]:
    """Measure points of one group, each chosen by the values before it."""

    def at(n: int) -> Iterator[tuple[int, MetricValue]]:
        if n in known:
            yield n, known[n]
        else:
            yield from evaluator.measure(group, [n])

    if search.threshold is None:
        for n in counts:
            for found in at(n):
                yield found
                if at_chance(evaluator, found[1]):
                    return
        return
    low, high = -1, len(counts)  # counts[low] reaches the threshold, counts[high] does not
    better = evaluator.metric.higher_is_better
    while high - low > 1:
        middle = (low + high) // 2
        for found in at(counts[middle]):
            yield found
            value = found[1].value
            if value >= search.threshold if better else value <= search.threshold:
                low = middle
            else:
                high = middle


def at_chance(evaluator: MaskedEvaluator, measured: MetricValue) -> bool:
    """Return True if a value is within a standard error of guessing."""
    assert evaluator.metric.chance is not None
    chance = evaluator.metric.chance(evaluator.classes)
    return measured.value <= chance + float(np.sqrt(chance * (1 - chance) / len(evaluator.feeds.data)))


@contextlib.contextmanager
def work_folder(path: Path | None) -> Iterator[Path]:
    """Folder of the workers' data and journals: beside the journal, where all machines of a cluster can read it."""
    if path is None:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
            yield Path(name)
        return
    try:
        path.mkdir(exist_ok=True)
    except OSError as err:
        raise OnnxPruneError(f"cannot make the folder {str(path)!r}: {err.strerror or err}") from err
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# A worker keeps the evaluator of the last setting: the next task reuses its sessions and activations.
_kept: tuple[WorkerSettings, MaskedEvaluator, Journal] | None = None


def measure_task(task: tuple[WorkerSettings, str, list[int], dict[int, MetricValue]]) -> list[tuple[int, MetricValue]]:
    """Measure the points of one task, in a worker."""
    global _kept
    setting, group, counts, known = task
    if _kept is None or _kept[0] != setting:
        if _kept is not None:
            _kept[2].close()
        _kept = None
        own = setting.data / f"{platform.node()}-{os.getpid()}.journal"
        _kept = setting, _evaluator(setting), Journal(own, setting.journal)
    _, evaluator, book = _kept
    points = (
        searched(evaluator, setting.search, group, counts, known)
        if setting.search.in_turn
        else evaluator.measure(group, counts)
    )
    found = []
    for n, value in points:
        book.add(f"{n} {group}", [value.value, value.error])
        found.append((n, value))
    return found


def _evaluator(setting: WorkerSettings) -> MaskedEvaluator:
    model = load(setting.model)
    if model.fingerprint != setting.fingerprint:
        raise OnnxPruneError("the model changed while it was being measured", where=str(setting.model))
    normal = Pipeline(NORMALIZE).run(model)
    analysis = couple(normal.model, shapes=normal.shapes, source=model, choices=setting.choices)
    data = setting.samples
    if data is None:
        labels = setting.data / "y.npy"
        x = load_array(setting.data / "x.npy", mapped=True)
        data = Data(x, load_array(labels) if labels.exists() else None, setting.name)
    feed, targets = Feeds(analysis.model, data, setting.preprocess, 1)[0]
    metric, task = find_metric(model, setting.task, targets=kind_of(targets), feed=feed)
    return MaskedEvaluator(
        analysis, {n: np.asarray(o, np.int64) for n, o in setting.orders.items()}, data, metric,
        preprocess=setting.preprocess, batch=setting.batch, threads=setting.threads, device=setting.device,
        cache_memory=setting.cache_memory, task=task, known=(setting.baseline, setting.classes),
    )  # fmt: skip
