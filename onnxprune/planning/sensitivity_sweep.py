"""Sensitivity sweep: every group at every ratio, one group at a time, as the D-Score paper chooses its thresholds.

Points are measured by `criteria.model_runs.masked_evaluation`, spread by `_utils.processes.parallel`, and journaled one
by one, by the workers themselves if there are any: a killed run continues where it stopped and ends with the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.files.array_files import save_array
from onnxprune._utils.files.journal import Journal
from onnxprune._utils.output.progress import Progress
from onnxprune._utils.processes.parallel import spread
from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.criteria.model_runs.masked_evaluation import CACHE_MEMORY, MaskedEvaluator
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.data import Data, Feeds, Preprocess, SampleSource, fit, load_data
from onnxprune.execution.tasks.classify import chance_warning
from onnxprune.execution.tasks.metrics import METRICS, Metric, MetricValue, kind_of
from onnxprune.execution.tasks.task import BoundTask, find_metric
from onnxprune.ir.writer import save
from onnxprune.options.planning import RATIOS as RATIOS
from onnxprune.options.tasks import TaskOptions, task_options
from onnxprune.planning._sweep_workers import (
    CurveSearch,
    WorkerSettings,
    at_chance,
    measure_task,
    searched,
    work_folder,
)
from onnxprune.planning.curves import Curve, CurvePoint, Curves


def sensitivity(
    scores: Scores,
    data: SampleSource,
    *,
    metric: str | None = None,
    task: TaskOptions | str | None = None,
    ratios: Sequence[float] = RATIOS,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    threshold: float | None = None,
    stop_at_chance: bool = False,
    preprocess: Preprocess | None = None,
    batch: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    cache_memory: int = CACHE_MEMORY,
    jobs: int = 1,
    backend: str = "loky",
    address: str | None = None,
    journal: Path | None = None,
    restart: bool = False,
    partial_classes: bool = False,
    tool: str = "",
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Curves:
    """Measure a metric while the least important channels of each group are removed, one group at a time.

    Args:
        scores: Scores of the groups; the lowest are removed first.
        data: Samples, and labels if the metric needs them; a source is read by `load_data`.
        metric: Metric of the task, or "package.module:function"; default: the first of the task, for classifiers top1,
            without labels kl.
        task: Task, by name or with its options; default: guessed from the model and the targets.
        ratios: Shares to remove, in (0, 1); floor(channels x ratio) channels are removed.
        include: Glob patterns of the groups to sweep (default: all exact ones); `exclude`: of those to skip.
        threshold: Search only for the crossing of each curve with it, by bisection. Curves are assumed to fall; if one
            rises again, a later crossing may be found.
        stop_at_chance: End a curve at the first point within a standard error of guessing.
        preprocess: Conversion of pixels to the model's input.
        batch: Samples per run; 0 keeps activations within the CPU's cache.
        threads: Batches that a job runs at a time; 0: all cores; default: the cores divided by the jobs.
        device: "auto", "cpu" or "cuda".
        cache_memory: Bytes for cached activations.
        jobs: Processes (or workers of a cluster) at a time.
        backend: "loky", "dask" or "ray"; `address` of the cluster.
        journal: File that holds finished points until the sweep is done; the caller removes it.
        restart: Discard an earlier journal.
        partial_classes: Accept labels without samples of some class.
        progress: Called with (done, total) units of work.
        notice: Called with lines for users: device, jobs and batch.

    Raises:
        OnnxPruneError: Data, metric, patterns or ratios do not fit, outputs are not finite, the journal is of other
            settings, or workers fail repeatedly. Finished points are in the journal.
    """
    analysis, data = scores.analysis, load_data(data, model=scores.analysis.source)
    chosen = task_options(task, metric)
    labels = _wants_labels(data, chosen) and not partial_classes
    fitted = fit(analysis.source, data, preprocess, labels=labels, run=False)
    data, how = fitted.data, fitted.preprocess
    rule, bound = _metric(analysis, data, how, chosen)
    # Masking an inexact group is not its removal, so it has no curve.
    counts = {g.name: _counts(g, ratios) for g in _chosen(analysis, include, exclude) if g.exact}
    _check_data(data, rule)
    if stop_at_chance and rule.chance is None:
        raise OnnxPruneError(f"there is no chance level of {rule.name!r}", fix="use --metric top1 or top5")
    missing = [name for name in counts if name not in scores.groups]
    if missing:
        raise OnnxPruneError(f"there are no scores of the group {missing[0]!r}", fix="score it, or --exclude it")
    orders = {name: np.argsort(scores.groups[name], kind="stable") for name in counts}
    jobs = jobs if jobs > 0 else os.cpu_count() or 1
    if threads is None:
        threads = 0 if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs) if backend == "loky" else 1
    search = CurveSearch(threshold, stop_at_chance)
    evaluator = MaskedEvaluator(  # with several jobs it only measures the baseline, on all cores
        analysis, orders, data, rule, preprocess=how, batch=batch, threads=threads if jobs == 1 else 0, device=device,
        cache_memory=cache_memory, task=bound,
    )  # fmt: skip
    if rule.classifies and not partial_classes:
        _check_classes(data, evaluator.classes)
    if notice is not None:
        notice(_statement(evaluator, device, jobs, threads, backend))
        if bound is not None and bound.name != "classify":
            notice(bound.statement)
        if warning := _baseline_warning(evaluator, rule, len(data)):
            notice(f"Warning: {warning}")
    settings: dict[str, Any] = {
        "model": analysis.source.fingerprint,
        "criterion": dict(scores.criterion),
        "scores": _digest(*(scores.groups[g.name] for g in analysis.groups if g.name in scores.groups)),
        **analysis.choices.options(),
        "metric": rule.name,
        "data": {"images": len(data), "digest": data_digest(data, how)},
        "batch": evaluator.feeds.batch,
        "provider": evaluator.provider,
    }
    book = Journal(journal, settings, restart=restart)
    work = None if journal is None else journal.with_name(journal.name + ".work")  # may exist from a killed run
    try:
        if work is not None and work.is_dir():
            if not restart:
                book.adopt(work)
            shutil.rmtree(work, ignore_errors=True)
        sweep = _Sweep(evaluator, counts, search, book, progress)
        if jobs == 1:
            sweep.serial()
        else:
            with work_folder(work) as folder:
                try:
                    sweep.parallel(folder, data, how, chosen, jobs, backend, address, threads, device, cache_memory)
                finally:
                    book.adopt(folder)
        groups = {name: sweep.curve(name, ratios) for name in counts}
    finally:
        book.close()
    base = evaluator.baseline
    return Curves(
        analysis.source.fingerprint,
        dict(scores.criterion),
        rule.name,
        rule.higher_is_better,
        CurvePoint(0.0, 0, base.value, base.error),
        groups,
        {"name": data.name, **settings["data"], **({"preprocess": how.as_dict()} if how.as_dict() else {})},
        {"batch": evaluator.feeds.batch, "provider": evaluator.provider},
        analysis.choices.options(),
        threshold,
        tool,
    )


class _Sweep:
    """Points of a sweep: those requested, those in the journal, and the measurement of the missing ones."""

    def __init__(
        self,
        evaluator: MaskedEvaluator,
        counts: Mapping[str, Sequence[int]],
        search: CurveSearch,
        journal: Journal,
        progress: Progress | None,
    ) -> None:
        self.evaluator, self.counts, self.search = evaluator, counts, search
        self.journal, self.progress = journal, progress
        # Activations are advanced in this order.
        order = sorted(counts, key=lambda n: evaluator.segmenter.consumers[n].first)
        self.order = [n for n in order if counts[n]]
        # Progress counts the work of points, not their number: those of the first layers take longest.
        work = {n: max(1, evaluator.segmenter.work(evaluator.segmenter.consumers[n].first)) for n in self.order}
        self.unit = {n: max(1, round(1000 * w / max(work.values()))) for n, w in work.items()}
        self.done = dict.fromkeys(self.order, 0)
        for name in self.order:
            self._tick(name, len([n for n in counts[name] if self.known(name, n) is not None]))

    def known(self, group: str, removed: int) -> MetricValue | None:
        """Return a point of the journal; None if it is not there."""
        found = self.journal.entries.get(f"{removed} {group}")
        if found is None:
            return None
        numbers = isinstance(found, list) and all(type(v) in (int, float) for v in found if v is not None)
        if not numbers or len(found) != 2 or found[0] is None:
            raise OnnxPruneError("the journal holds something that is no point", fix="start anew with --restart")
        return MetricValue(found[0], found[1])

    def keep(self, group: str, removed: int, value: MetricValue) -> None:
        """Add a point to the journal."""
        if self.known(group, removed) is None:
            self.journal.add(f"{removed} {group}", [value.value, value.error])
            self._tick(group, 1)

    def _tick(self, group: str, points: int) -> None:
        self.done[group] += points
        if self.progress is not None:
            total = sum(self.unit[n] * len(self.counts[n]) for n in self.order)
            self.progress(sum(self.unit[n] * d for n, d in self.done.items()), total)

    def _finished(self, group: str) -> None:
        """Count points that a search does not need as done."""
        self._tick(group, len(self.counts[group]) - self.done[group])

    def serial(self) -> None:
        """Measure one point after the other."""
        for name in self.order:
            missing = [n for n in self.counts[name] if self.known(name, n) is None]
            if not self.search.in_turn:
                for n, value in self.evaluator.measure(name, missing):
                    self.keep(name, n, value)
                continue
            known = {n: v for n in self.counts[name] if (v := self.known(name, n)) is not None}
            for n, value in searched(self.evaluator, self.search, name, self.counts[name], known):
                self.keep(name, n, value)
            self._finished(name)

    def parallel(
        self, folder: Path, data: Data, how: Preprocess, task: TaskOptions, jobs: int, backend: str,
        address: str | None, threads: int, device: str, cache_memory: int,
    ) -> None:  # fmt: skip
        """Distribute groups to workers, divided if they are few; each worker journals its points in the folder."""
        tasks: list[tuple[str, list[int], dict[int, MetricValue]]] = []
        parts = 1 if self.search.in_turn else -(-4 * jobs // max(1, len(self.order)))
        for name in self.order:
            known = {n: v for n in self.counts[name] if (v := self.known(name, n)) is not None}
            if self.search.in_turn:
                tasks.append((name, list(self.counts[name]), known))
                continue
            missing = [n for n in self.counts[name] if n not in known]
            tasks += [(name, missing[i::parts], {}) for i in range(parts) if missing[i::parts]]
        setting = self._setting(folder, data, how, task, threads, device, cache_memory)
        for i, found in spread(
            measure_task, [(setting, *t) for t in tasks], jobs=jobs, backend=backend, address=address
        ):
            for n, value in found:
                self.keep(tasks[i][0], n, value)
            if self.search.in_turn:
                self._finished(tasks[i][0])

    def _setting(
        self, folder: Path, data: Data, how: Preprocess, task: TaskOptions, threads: int, device: str,
        cache_memory: int,
    ) -> WorkerSettings:  # fmt: skip
        evaluator = self.evaluator
        model = evaluator.analysis.source
        path = model.path.resolve() if model.path is not None else folder.resolve() / "model.onnx"
        try:
            if model.path is None:
                save(model, path)
            if isinstance(data.x, np.ndarray):
                save_array(folder / "x.npy", data.x)
                if data.y is not None:
                    save_array(folder / "y.npy", data.y)
        except OSError as err:
            raise OnnxPruneError(f"cannot hand the data to the workers: {err.strerror or err}") from err
        return WorkerSettings(
            path,
            model.fingerprint,
            evaluator.analysis.choices,
            folder.resolve(),
            data.name,
            None if isinstance(data.x, np.ndarray) and data.targets is None else data,
            how,
            replace(task, metric=evaluator.metric.name),
            {n: o.tolist() for n, o in evaluator.orders.items()},
            evaluator.feeds.batch,
            threads,
            device,
            cache_memory,
            self.search,
            evaluator.baseline,
            evaluator.classes,
            self.journal.settings,
        )

    def curve(self, group: str, ratios: Sequence[float]) -> Curve:
        """Return the measured points of a group at the requested ratios."""
        channels = self.evaluator.analysis[group].channels
        points: list[CurvePoint] = []
        for ratio in sorted(set(ratios)):
            removed = removed_at(channels, ratio)
            found = self.evaluator.baseline if removed == 0 else self.known(group, removed)
            if found is None:
                continue
            points.append(CurvePoint(ratio, removed, found.value, found.error))
            if self.search.stop_at_chance and at_chance(self.evaluator, found):
                break
        return Curve(channels, tuple(points))


def removed_at(channels: int, ratio: float) -> int:
    """Return the number of channels that a ratio removes."""
    return int(channels * ratio + 1e-9)


def _counts(group: Group, ratios: Sequence[float]) -> list[int]:
    """Return the different numbers of removed channels, without 0, the baseline."""
    if not ratios:
        raise OnnxPruneError("no ratios to measure", fix="--ratios 0.05:0.95:0.05, or 0.1,0.3,0.5")
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise OnnxPruneError(f"a ratio is the share removed, in (0, 1); got {ratio:g}")
    return sorted({removed_at(group.channels, r) for r in ratios} - {0})


def _chosen(analysis: Analysis, include: Sequence[str], exclude: Sequence[str]) -> list[Group]:
    names = [g.name for g in analysis.groups]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(n, pattern) for n in names):
            raise unknown("group", pattern, names)
    chosen = [
        g
        for g in analysis.groups
        if (not include or any(fnmatchcase(g.name, p) for p in include))
        and not any(fnmatchcase(g.name, p) for p in exclude)
    ]
    if not chosen:
        raise OnnxPruneError("no group remains to measure", fix="see `onnxprune inspect`, and exclude less")
    return chosen


def _metric(analysis: Analysis, data: Data, how: Preprocess, options: TaskOptions) -> tuple[Metric, BoundTask | None]:
    """Return the metric, and the task that it belongs to.

    Raises:
        OnnxPruneError: There is no such metric or task, or the data does not fit it.
    """
    feed, targets = Feeds(analysis.model, data, how, 1)[0]
    return find_metric(analysis.source, options, targets=kind_of(targets), feed=feed)


def _baseline_warning(evaluator: MaskedEvaluator, metric: Metric, samples: int) -> str:
    """Return a line if the original is no better than guessing; "" otherwise."""
    if metric.name != "top1" or not metric.classifies:
        return ""
    return chance_warning(round(evaluator.baseline.value * samples), samples, evaluator.classes)


def _wants_labels(data: Data, options: TaskOptions) -> bool:
    """Return whether the metric compares with labels of classes."""
    if data.y is None or options.task not in (None, "classify"):
        return False
    general = METRICS.find(options.metric) if options.metric is not None else None
    return general is None or general.needs == "labels"


def _check_data(data: Data, metric: Metric) -> None:
    if metric.classifies and data.y is None:
        raise OnnxPruneError(
            f"the metric {metric.name!r} needs labels, and the data {data.name!r} has none",
            fix="add an array y, or use --metric kl, cosine or mse",
        )


def _check_classes(data: Data, classes: int) -> None:
    """Check that every class of the model has samples: a curve would not show the loss of the others."""
    assert data.y is not None
    missing = np.setdiff1d(np.arange(classes), data.y)
    if len(missing):
        raise OnnxPruneError(
            f"the class {missing[0]} is empty: {len(data)} samples hold {classes - len(missing)} of the model's "
            f"{classes} classes",
            where=f"data {data.name!r}",
            fix="use more --images, or accept it with --partial-classes",
        )


def _statement(evaluator: MaskedEvaluator, device: str, jobs: int, threads: int, backend: str) -> str:
    threads = threads or os.cpu_count() or 1
    line = f"running on {evaluator.provider}"
    if evaluator.provider == "CPUExecutionProvider":
        line += f", {jobs} jobs of {threads} thread(s)" if jobs > 1 else f", {threads} thread(s)"
        if device == "auto":
            line += " (auto: onnxruntime has no CUDA here)"
    line += f", batch {evaluator.feeds.batch}"
    return line + (f", spread by {backend}" if jobs > 1 else "")


def _digest(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for a in arrays:
        digest.update(f"{a.shape} {a.dtype}".encode())
        digest.update(np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()


def data_digest(data: Data, how: Preprocess) -> str:
    """Return the digest of labels, preprocessing and up to 2^20 evenly spaced numbers of the samples."""
    text = np.frombuffer(json.dumps(how.as_dict(), sort_keys=True).encode(), np.uint8)
    if not isinstance(data.x, np.ndarray):
        return _digest(np.frombuffer(data.digest(), np.uint8), text)
    flat = data.x.reshape(-1)
    sample = flat[:: max(1, flat.size // 2**20)]
    shape = np.asarray(data.x.shape, np.int64)
    labels = data.y if data.y is not None else np.zeros(0, np.int64)
    return _digest(shape, labels, sample, text)
