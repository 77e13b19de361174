"""The sensitivity sweep: every group at every ratio, one group at a time, as the D-Score paper chooses its thresholds.

Points are measured by `criteria.masked_evaluation`, spread by `_utils.parallel`, and journaled one by one, by the
workers themselves if there are any: a killed run continues where it stopped and ends with the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.journal import Journal
from onnxprune._utils.parallel import spread
from onnxprune.analysis.coupling import Analysis, Group, couple
from onnxprune.criteria.masked_evaluation import CACHE_MEMORY, MaskedEvaluator
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.data import Data, Preprocess, as_data
from onnxprune.execution.metrics import Metric, MetricValue, get_metric
from onnxprune.ir.model import load, save
from onnxprune.ops import CouplingOptions
from onnxprune.passes import NORMALIZE, Pipeline
from onnxprune.planning.curves import Curve, CurvePoint, Curves

RATIOS = tuple(round(0.05 * i, 2) for i in range(1, 20))
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CurveSearch:
    """How much of a curve is measured: all of it, its crossing of a threshold, or down to chance."""

    threshold: float | None = None
    stop_at_chance: bool = False

    @property
    def in_turn(self) -> bool:
        """Whether one point decides about the next."""
        return self.threshold is not None or self.stop_at_chance


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to measure trials by itself; files lie where all workers see them."""

    model: Path
    fingerprint: str
    choices: CouplingOptions
    data: Path
    name: str
    preprocess: Preprocess
    metric: str
    orders: dict[str, list[int]] = field(repr=False)
    batch: int
    threads: int
    device: str
    cache_memory: int
    search: CurveSearch
    baseline: MetricValue
    classes: int
    journal: dict[str, Any]


def sensitivity(
    scores: Scores,
    data: Data | str | os.PathLike[str],
    *,
    metric: str | None = None,
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
    """Measures what a metric becomes as the least important channels of each group go, one group at a time.

    Args:
        scores: of the groups; they say which channels go first.
        data: samples, and labels where the metric needs them; a source is read by `load_data`.
        metric: see `onnxprune.execution.metrics`; default top1, without labels kl.
        ratios: shares removed, in (0, 1); floor(channels x ratio) channels go.
        include: glob patterns of the groups to sweep (default: all exact ones); `exclude`: of those to leave out.
        threshold: search only for where each curve crosses it, by bisection. It takes curves to fall; where one rises
            again a later crossing may be found.
        stop_at_chance: end a curve at the first point within a standard error of guessing.
        preprocess: how pixels become the model's input.
        batch: samples per run; 0 keeps activations within the CPU's cache.
        threads: batches that a job runs at a time; 0: all cores; default: the cores divided by the jobs.
        device: "auto", "cpu" or "cuda".
        cache_memory: bytes for cached activations.
        jobs: processes (or workers of a cluster) at a time.
        backend: "loky", "dask" or "ray"; `address` of the cluster.
        journal: file that finished points are kept in until the sweep is done; the caller removes it.
        restart: throw away an earlier journal.
        partial_classes: accept labels that leave out a class.
        progress: called with (done, total) units of work.
        notice: called with lines for people: what runs where.

    Raises:
        OnnxPruneError: data, metric, patterns or ratios that do not fit; outputs that are not finite; a journal of
            other settings; workers that fail again and again. Finished points are in the journal.
    """
    analysis, data = scores.analysis, as_data(data)
    rule = get_metric(metric or ("top1" if data.y is not None else "kl"))
    # A mask is not the removal of an inexact group: a curve of it would not be of what pruning does.
    counts = {g.name: _counts(g, ratios) for g in _chosen(analysis, include, exclude) if g.exact}
    _check_data(data, rule)
    if stop_at_chance and rule.chance is None:
        raise OnnxPruneError(f"there is no chance level of {rule.name!r}", fix="use --metric top1 or top5")
    orders = {name: np.argsort(scores.groups[name], kind="stable") for name in counts}
    jobs = jobs if jobs > 0 else os.cpu_count() or 1
    if threads is None:
        threads = 0 if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs) if backend == "loky" else 1
    how = preprocess or Preprocess()
    search = CurveSearch(threshold, stop_at_chance)
    evaluator = MaskedEvaluator(  # with more jobs it measures the baseline only, and has all cores for it
        analysis, orders, data, rule, preprocess=how, batch=batch, threads=threads if jobs == 1 else 0, device=device,
        cache_memory=cache_memory,
    )  # fmt: skip
    if rule.needs == "labels" and not partial_classes:
        _check_classes(data, evaluator.classes)
    if notice is not None:
        notice(_statement(evaluator, device, jobs, threads, backend))
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
    work = None if journal is None else journal.with_name(journal.name + ".work")  # of an earlier run, maybe killed
    try:
        if work is not None and work.is_dir():
            if not restart:
                book.adopt(work)
            shutil.rmtree(work, ignore_errors=True)
        sweep = _Sweep(evaluator, counts, search, book, progress)
        if jobs == 1:
            sweep.serial()
        else:
            with _folder(work) as folder:
                try:
                    sweep.parallel(folder, data, how, jobs, backend, address, threads, device, cache_memory)
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
        {"name": data.name, **settings["data"]},
        {"batch": evaluator.feeds.batch, "provider": evaluator.provider},
        analysis.choices.options(),
        threshold,
        tool,
    )


class _Sweep:
    """Points wanted, points known, and the ways from one to the other."""

    def __init__(
        self,
        evaluator: MaskedEvaluator,
        counts: Mapping[str, Sequence[int]],
        search: CurveSearch,
        journal: Journal,
        progress: Progress | None,
    ) -> None:
        self.evaluator, self.counts, self.search, self.journal, self.progress = (
            evaluator,
            counts,
            search,
            journal,
            progress,
        )
        order = sorted(
            counts, key=lambda n: evaluator.segmenter.consumers[n].first
        )  # activations are handed on in this order
        self.order = [n for n in order if counts[n]]
        # Progress counts the work of points, not their number: the first layers' take longest.
        work = {n: max(1, evaluator.segmenter.work(evaluator.segmenter.consumers[n].first)) for n in self.order}
        self.unit = {n: max(1, round(1000 * w / max(work.values()))) for n, w in work.items()}
        self.done = dict.fromkeys(self.order, 0)
        for name in self.order:
            self._tick(name, len([n for n in counts[name] if self.known(name, n) is not None]))

    def known(self, group: str, removed: int) -> MetricValue | None:
        """A point that is in the journal."""
        found = self.journal.entries.get(f"{removed} {group}")
        if found is None:
            return None
        if not isinstance(found, list) or len(found) != 2 or type(found[0]) not in (int, float):
            raise OnnxPruneError("the journal holds something that is no point", fix="start anew with --restart")
        return MetricValue(found[0], found[1])

    def keep(self, group: str, removed: int, value: MetricValue) -> None:
        """Journals a point."""
        if self.known(group, removed) is None:
            self.journal.add(f"{removed} {group}", [value.value, value.error])
            self._tick(group, 1)

    def _tick(self, group: str, points: int) -> None:
        self.done[group] += points
        if self.progress is not None:
            total = sum(self.unit[n] * len(self.counts[n]) for n in self.order)
            self.progress(sum(self.unit[n] * d for n, d in self.done.items()), total)

    def _finished(self, group: str) -> None:
        """What a search leaves out needs not be waited for."""
        self._tick(group, len(self.counts[group]) - self.done[group])

    def serial(self) -> None:
        """One point after the other."""
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
        self, folder: Path, data: Data, how: Preprocess, jobs: int, backend: str, address: str | None, threads: int,
        device: str, cache_memory: int,
    ) -> None:  # fmt: skip
        """Groups on many workers, in parts where they are few; each worker journals its points in the folder."""
        tasks: list[tuple[str, list[int], dict[int, MetricValue]]] = []
        parts = 1 if self.search.in_turn else -(-4 * jobs // max(1, len(self.order)))
        for name in self.order:
            known = {n: v for n in self.counts[name] if (v := self.known(name, n)) is not None}
            if self.search.in_turn:
                tasks.append((name, list(self.counts[name]), known))
                continue
            missing = [n for n in self.counts[name] if n not in known]
            tasks += [(name, missing[i::parts], {}) for i in range(parts) if missing[i::parts]]
        setting = self._setting(folder, data, how, threads, device, cache_memory)
        for i, found in spread(_work, [(setting, *t) for t in tasks], jobs=jobs, backend=backend, address=address):
            for n, value in found:
                self.keep(tasks[i][0], n, value)
            if self.search.in_turn:
                self._finished(tasks[i][0])

    def _setting(
        self, folder: Path, data: Data, how: Preprocess, threads: int, device: str, cache_memory: int
    ) -> WorkerSettings:
        evaluator = self.evaluator
        model = evaluator.analysis.source
        path = model.path.resolve() if model.path is not None else folder.resolve() / "model.onnx"
        try:
            if model.path is None:
                save(model, path)
            np.save(folder / "x.npy", data.x, allow_pickle=False)
            if data.y is not None:
                np.save(folder / "y.npy", data.y, allow_pickle=False)
        except OSError as err:
            raise OnnxPruneError(f"cannot hand the data to the workers: {err.strerror or err}") from err
        return WorkerSettings(
            path,
            model.fingerprint,
            evaluator.analysis.choices,
            folder.resolve(),
            data.name,
            how,
            evaluator.metric.name,
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
        """The measured points of a group at the ratios asked for."""
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


def searched(
    evaluator: MaskedEvaluator, search: CurveSearch, group: str, counts: Sequence[int], known: Mapping[int, MetricValue]
) -> Iterator[tuple[int, MetricValue]]:
    """Measures points of one group of which each decides about the next."""

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
    """Whether a value is within a standard error of guessing."""
    assert evaluator.metric.chance is not None
    chance = evaluator.metric.chance(evaluator.classes)
    return measured.value <= chance + float(np.sqrt(chance * (1 - chance) / len(evaluator.feeds.data)))


@contextlib.contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    """Where workers find the data and leave their journals: beside the journal, where a cluster's machines see it."""
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


# A worker keeps the trials of the last setting: sessions and activations serve the next task.
_kept: tuple[WorkerSettings, MaskedEvaluator, Journal] | None = None


def _work(task: tuple[WorkerSettings, str, list[int], dict[int, MetricValue]]) -> list[tuple[int, MetricValue]]:
    """One task, in a worker."""
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
    analysis = couple(Pipeline(NORMALIZE)(model), source=model, choices=setting.choices)
    labels = setting.data / "y.npy"
    x = np.load(setting.data / "x.npy", mmap_mode="r", allow_pickle=False)
    y = np.load(labels, allow_pickle=False) if labels.exists() else None
    return MaskedEvaluator(
        analysis, {n: np.asarray(o, np.int64) for n, o in setting.orders.items()}, Data(x, y, setting.name),
        get_metric(setting.metric), preprocess=setting.preprocess, batch=setting.batch, threads=setting.threads,
        device=setting.device, cache_memory=setting.cache_memory, known=(setting.baseline, setting.classes),
    )  # fmt: skip


def removed_at(channels: int, ratio: float) -> int:
    """Channels that a ratio removes."""
    return int(channels * ratio + 1e-9)


def _counts(group: Group, ratios: Sequence[float]) -> list[int]:
    """The different numbers of channels that go; 0 is the baseline."""
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
        raise OnnxPruneError("no group is left to measure", fix="see `onnxprune inspect`, and exclude less")
    return chosen


def _check_data(data: Data, metric: Metric) -> None:
    if metric.needs == "labels" and data.y is None:
        raise OnnxPruneError(
            f"the metric {metric.name!r} needs labels, and the data {data.name!r} has none",
            fix="add an array y, or use --metric kl, cosine or mse",
        )


def _check_classes(data: Data, classes: int) -> None:
    """Whether every class of the model has samples: a curve says nothing about a class that is not there."""
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
    """Of labels, preparation and up to 2^20 evenly spaced numbers of the samples."""
    flat = data.x.reshape(-1)
    sample = flat[:: max(1, flat.size // 2**20)]
    shape = np.asarray(data.x.shape, np.int64)
    labels = data.y if data.y is not None else np.zeros(0, np.int64)
    text = np.frombuffer(repr(sorted(asdict(how).items())).encode(), np.uint8)
    return _digest(shape, labels, sample, text)
