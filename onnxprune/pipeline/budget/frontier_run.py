"""Measurement of a frontier: models along whole paths of plans, for several criteria and allocators, in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from onnxprune._utils.files.atomic_files import write_text
from onnxprune._utils.output.formatting import percent
from onnxprune._utils.output.progress import Progress
from onnxprune._utils.processes.parallel import spread
from onnxprune.analysis.cost import MEASURES
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError, VerificationError, unknown
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.machine import measured_on
from onnxprune.execution.tasks.metrics import UndefinedMetric
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save
from onnxprune.latency.bench import bench
from onnxprune.latency.prediction import LatencyModel, latency_model
from onnxprune.latency.runtimes import Runtime, make_runtime
from onnxprune.options.budget import SERIES
from onnxprune.options.recovery import stages_of
from onnxprune.options.tasks import TaskOptions
from onnxprune.pipeline.budget.frontier import PREDICTED, RESULT, TABLE, Frontier, FrontierPoint
from onnxprune.pipeline.budget.judge import Judge
from onnxprune.pipeline.budget.path import PathPoint, PrunePath
from onnxprune.pipeline.budget.point_store import MODEL, PointRecord, PointStore, point_store
from onnxprune.pipeline.budget.quantize import quantize_int8, weight_bytes
from onnxprune.planning.analyze import analyze
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.sensitivity_sweep import data_digest
from onnxprune.recovery.recover import OriginalActivations

INT8, LATENCY = "model-int8.onnx", "latency.json"
TOGETHER = 8  # models in memory whose latency is measured in turns


@dataclass(frozen=True)
class FrontierSettings:
    """Settings of a frontier.

    Attributes:
        measure: Measure that the points save.
        points: Number of points of a curve.
        least: Share of the measure that the last point keeps.
        criteria: Names of criteria, a curve for each with each allocator.
        allocators: Names of allocators; None: the criterion's own.
        series: What is removed, a curve for each: "channels", residual "blocks", "both"; "": as the constraints say.
        constraints: Rounding, minimum counts, protected groups.
        attention: Channels to free in multi-head attention.
        include_inexact: Free also channels that statistics run over.
        quantize: "int8", or "" for none.
        reconstruct_blocks: Whether whole blocks of every point are fitted by descent.
        task: Task and metric.
        latency: Whether latency is measured.
        threads, runs: Threads and timed runs for latency.
    """

    measure: str = "macs"
    points: int = 10
    least: float = 0.2
    criteria: tuple[str, ...] = ("obs",)
    allocators: tuple[str | None, ...] = (None,)
    series: tuple[str, ...] = ("",)
    constraints: Constraints = field(default_factory=Constraints)
    attention: str = "heads"
    include_inexact: bool = False
    quantize: str = ""
    reconstruct_blocks: bool = False
    task: TaskOptions = field(default_factory=TaskOptions)
    latency: bool = True
    threads: int = 1
    runs: int = 30
    runtime: str = "onnxruntime"
    runtime_options: Mapping[str, Any] = field(default_factory=dict)

    def made_runtime(self, device: str) -> Runtime | None:
        """Return the runtime that latency counts in; None for onnxruntime on the device."""
        if self.runtime == "onnxruntime" and not self.runtime_options:
            return None
        return make_runtime(self.runtime, self.runtime_options, device=device)

    def shares(self) -> list[float]:
        """Return the shares of a curve: evenly spaced from just below 1 to the least."""
        return [round(1 - (1 - self.least) * i / self.points, 6) for i in range(1, self.points + 1)]

    @property
    def predicts(self) -> bool:
        """True if points are placed by predicted latency."""
        return self.measure == "latency" or "latency" in self.allocators

    def curves(self) -> list[FrontierCurve]:
        """Return the curves: every criterion with every allocator and series."""
        return [
            FrontierCurve(c, a, s)
            for s in dict.fromkeys(self.series)
            for c in dict.fromkeys(self.criteria)
            for a in dict.fromkeys(self.allocators)
        ]


@dataclass(frozen=True)
class FrontierCurve:
    """Curve of a frontier: criterion, allocator (None: the criterion's own) and series ("": by the constraints)."""

    criterion: str
    allocator: str | None = None
    series: str = ""

    @property
    def name(self) -> str:
        """Name of the curve, and of its subfolder."""
        return "-".join(part for part in (self.criterion, self.allocator, self.series) if part)

    def limited(self, constraints: Constraints) -> Constraints:
        """Return the constraints of the series."""
        kinds = tuple(k for k in constraints.only if k not in SERIES)
        if self.series == "channels":
            return replace(constraints, only=kinds, max_blocks=0)
        if self.series == "blocks":
            return replace(constraints, only=("blocks",))
        if self.series == "both":
            return replace(constraints, only=("blocks", "channels", *kinds))
        return constraints

    def point(self, share: float) -> str:
        """Return the name of a point, a subfolder."""
        return f"{self.name}/{share:.4f}"


@dataclass(frozen=True)
class _CurveTask:
    """Inputs of a worker: one curve."""

    model: Path
    sizes: Mapping[tuple[str, int], int]
    folder: Path
    curve: FrontierCurve
    fit: Calibration
    evaluation: Calibration
    settings: FrontierSettings
    latency: LatencyModel | None


def measure_frontier(
    model: Model,
    fit: Calibration,
    evaluation: Calibration,
    folder: Path,
    settings: FrontierSettings | None = None,
    *,
    jobs: int = 1,
    backend: str = "loky",
    address: str | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> Frontier:
    """Measure accuracy over cost, point by point; an interrupted run continues in the same folder.

    Args:
        model: Original.
        fit: Samples for the criteria and the recovery.
        evaluation: Samples for the metric, apart from those.
        folder: Folder for the points, a subfolder for each curve; `frontier.json` and `frontier.csv` are written last.
        settings: Measure, points, criteria and the like.
        jobs: Curves at a time.
        backend: "loky" (processes on this machine), "dask" or "ray".
        address: Address of the cluster.
        restart: Discard the points of an earlier run.
        progress: Called with (points done, points in all).

    Raises:
        OnnxPruneError: Settings out of range, a folder of another run, data that does not fit.
        VerificationError: A stripped model does not compute what the masked original computes.

    Points that save latency are placed by a prediction, and each is measured beside the original.
    """
    how = settings or FrontierSettings()
    _check(how)
    judge = Judge(model, evaluation, how.task)
    with point_store(folder, _identity(model, fit, evaluation, how), restart=restart) as store:
        source = folder / "original.onnx"
        if not source.exists():
            save(model, source)
        predictor = _predictor(model, folder / LATENCY, fit.device, how, restart) if how.predicts else None
        tasks = [
            _CurveTask(source, model.sizes, folder, curve, fit, evaluation, how, predictor) for curve in how.curves()
        ]
        notes = []
        for i, note in _run(tasks, jobs, backend, address, progress):
            if note:
                notes.append(f"{how.curves()[i].name}: {note}")
        if how.latency:
            _measure_latency(model, store, how, fit.device)
        found = _collected(model, store, judge, how, notes)
        write_text(folder / TABLE, found.to_csv())
        write_text(folder / RESULT, json.dumps(found.as_dict(), indent=1, allow_nan=False) + "\n")
    return found


def _check(how: FrontierSettings) -> None:
    if how.points < 1 or not 0 < how.least < 1:
        raise OnnxPruneError(
            f"a frontier of {how.points} points down to {how.least:g} is not possible", fix="--points 10 --least 0.2"
        )
    if wrong := [s for s in how.series if s not in ("", *SERIES)]:
        raise unknown("series", wrong[0], SERIES)
    if how.quantize not in ("", "int8"):
        raise OnnxPruneError(f"cannot quantize to {how.quantize!r}", fix="--quantize int8")
    if how.measure == "latency" and not how.latency:
        raise OnnxPruneError("points that save latency are measured", fix="leave out --no-latency")


def _identity(model: Model, fit: Calibration, evaluation: Calibration, how: FrontierSettings) -> dict[str, Any]:
    """Return the settings that the points depend on."""
    return {
        "kind": "frontier", "model": model.fingerprint, "sizes": repr(sorted(model.sizes.items())),
        "data": data_digest(fit.data, fit.preprocess),
        "evaluation": data_digest(evaluation.data, evaluation.preprocess), "measure": how.measure,
        "points": how.points, "least": how.least, "constraints": repr(vars(how.constraints)),
        "attention": how.attention, "inexact": how.include_inexact, "task": repr(vars(how.task)),
        **({"blocks": True} if how.reconstruct_blocks else {}),
        **({"threads": how.threads} if how.predicts else {}),
        **({"runtime": [how.runtime, sorted(how.runtime_options.items())]} if how.runtime != "onnxruntime" else {}),
    }  # fmt: skip


def _predictor(model: Model, file: Path, device: str, how: FrontierSettings, restart: bool) -> LatencyModel:
    """Return the latency model of a folder; its measurement is kept there, so that a continued run uses the same."""
    if restart:
        file.unlink(missing_ok=True)
    analysis = analyze(model, attention=how.attention, include_inexact=how.include_inexact)
    return latency_model(analysis, threads=how.threads, device=device, runtime=how.made_runtime(device), file=file)


def _run(
    tasks: Sequence[_CurveTask], jobs: int, backend: str, address: str | None, progress: Progress | None
) -> Iterator[tuple[int, str]]:
    """Yield (index, remark) of every curve that is done."""
    each = tasks[0].settings.points

    def tick(done: float) -> None:
        if progress is not None:
            progress(int(done * each), len(tasks) * each)

    def within(before: int, points: int) -> None:
        tick(before + points / each)

    if jobs == 1 and backend == "loky":
        originals = OriginalActivations()
        for i, task in enumerate(tasks):
            yield i, _measure_curve(task, partial(within, i), originals)
            tick(i + 1)
        return
    for done, (i, note) in enumerate(spread(_measure_curve, tasks, jobs=jobs, backend=backend, address=address)):
        yield i, note
        tick(done + 1)


def _measure_curve(
    task: _CurveTask, tick: Callable[[int], None] | None = None, originals: OriginalActivations | None = None
) -> str:
    """Measure the points of one curve that are missing; return a remark if it ends early."""
    how, store = task.settings, PointStore(task.folder)
    model = replace(load(task.model), sizes=task.sizes)
    analysis = analyze(model, attention=how.attention, include_inexact=how.include_inexact)
    path = PrunePath(
        analysis, task.fit, measure=how.measure, criterion=task.curve.criterion, allocator=task.curve.allocator,
        constraints=task.curve.limited(how.constraints), latency=task.latency, feeds=task.fit.first(model),
        originals=originals or OriginalActivations(), stages=stages_of(how.reconstruct_blocks),
    )  # fmt: skip
    judge: Judge | None = None
    last: PathPoint | None = None
    for i, share in enumerate(how.shares()):
        name = task.curve.point(share)
        record = store.record(name)
        if record is None:
            last = last or _read_last(store, task, analysis, i)
            try:
                shared = i == 0 and len(how.allocators) > 1
                first = store.shared_scores(replace(task.curve, allocator=None).name, path) if shared else None
                point = path.point(share, last, first=first)
            except VerificationError:
                raise
            except OnnxPruneError as err:
                return f"ends at {percent(share)} of the {how.measure}: {err.what}"
            last = store.write(name, point, analysis)
            record = store.record(name)
        else:
            last = None
        assert record is not None
        wanted = {"float"} | ({"int8"} if how.quantize else set())
        if wanted - record.figures.keys():
            judge = judge or Judge(model, task.evaluation, how.task)
            _evaluate(store, name, judge, task.fit, how, record)
        if tick is not None:
            tick(i + 1)
    return ""


def _read_last(store: PointStore, task: _CurveTask, analysis: Analysis, index: int) -> PathPoint | None:
    """Return the point before the one with an index; None at the start."""
    if index == 0:
        return None
    share = task.settings.shares()[index - 1]
    return store.read(task.curve.point(share), analysis)


def _evaluate(
    store: PointStore, name: str, judge: Judge, fit: Calibration, how: FrontierSettings, record: PointRecord
) -> None:
    model = load(store.folder / name / MODEL)
    figures: dict[str, Any] = dict(record.figures)
    if "float" not in figures:
        figures["float"] = _figures(judge, model)
    if how.quantize and "int8" not in figures:
        quantized = quantize_int8(model, fit)
        save(quantized, store.folder / name / INT8)
        read = _figures(judge, quantized)
        figures["int8"] = None if read is None else {**read, "bytes": weight_bytes(quantized)}
    store.add_figures(name, figures)


def _figures(judge: Judge, model: Model) -> dict[str, Any] | None:
    """Return the metric of a model and its drop; None if the metric is not finite."""
    try:
        return dict(vars(judge.read(model)))
    except UndefinedMetric:
        return None


def _measure_latency(model: Model, store: PointStore, how: FrontierSettings, device: str) -> None:
    """Measure points whose latency is missing, a few in turns with the original."""
    missing = []
    for curve in how.curves():
        for share in how.shares():
            name = curve.point(share)
            record = store.record(name)
            for kind, file in (("float", MODEL), ("int8", INT8)):
                if record is None or record.figures.get(kind) is None or f"{kind}_latency" in record.figures:
                    continue
                if (store.folder / name / file).exists():
                    missing.append((name, kind, file))
    for i in range(0, len(missing), TOGETHER):
        some = missing[i : i + TOGETHER]
        models = [model, *(load(store.folder / name / file) for name, _, file in some)]
        runtime = how.made_runtime(device) or make_runtime("onnxruntime", device=device)
        whole, *found = bench(models, threads=how.threads, runs=how.runs, device=device, runtime=runtime)
        machine = measured_on(str(runtime.describe()), batch=1, threads=how.threads)
        for (name, kind, _), small in zip(some, found, strict=True):
            before, after = whole.latency.median, small.latency.median
            timed = {"seconds": after, "share": after / before, "machine": machine}
            store.add_figures(name, {f"{kind}_latency": timed})


def _collected(model: Model, store: PointStore, judge: Judge, how: FrontierSettings, notes: Sequence[str]) -> Frontier:
    points, notes = [], list(notes)
    machines: dict[str, None] = {}
    for kind, file in (("float", MODEL), ("int8", INT8)):
        for curve in how.curves():
            title = curve.name + (", int8" if kind == "int8" else "")
            for share in how.shares():
                name = curve.point(share)
                record = store.record(name)
                if record is None or kind not in record.figures or (kind == "int8" and not how.quantize):
                    continue
                if record.figures[kind] is None:
                    notes.append(f"{title}: {judge.metric.name!r} is not finite at {percent(share)}")
                    continue
                points.append(_point(title, f"{name}/{file}", kind, record, predicted=how.measure == "latency"))
                machines[str((record.figures.get(f"{kind}_latency") or {}).get("machine", ""))] = None
    if not points:
        raise OnnxPruneError("the frontier has no points: " + "; ".join(notes or ["nothing can be removed"]))
    name = model.path.name if model.path is not None else "model"
    return Frontier(
        name, how.measure, judge.metric.name, judge.unit, judge.metric.higher_is_better, judge.original.value,
        len(judge.calibration), tuple(points), tuple(notes), "; ".join(filter(None, machines)), folder=store.folder,
    )  # fmt: skip


def _point(curve: str, path: str, kind: str, record: PointRecord, *, predicted: bool) -> FrontierPoint:
    costs = {m: record.after.ratio(record.before, m) for m in MEASURES}
    timed = record.figures.get(f"{kind}_latency")
    if timed is not None:
        costs["latency"] = float(timed["share"])
    if predicted and kind == "float":
        costs[PREDICTED] = record.kept
    read = record.figures[kind]
    if "bytes" in read:
        costs["bytes"] = read["bytes"] / max(1, record.before.bytes)
    return FrontierPoint(
        curve, record.target, costs, float(read["value"]), read["error"], float(read["drop"]), read["drop_error"], path
    )
