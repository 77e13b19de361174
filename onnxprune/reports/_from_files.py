"""Report data from single files: models, plan, curves, scores, and --json output of commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune._utils.formatting import seconds
from onnxprune._utils.progress import Progress
from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.scoring import load_scores
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.data import Data, Preprocess, fit
from onnxprune.execution.machine import measured_on
from onnxprune.execution.tasks.evaluation import evaluate
from onnxprune.ir.input_sizes import Shapes
from onnxprune.ir.model import Model
from onnxprune.latency.bench import bench
from onnxprune.latency.layer_figures import layer_seconds
from onnxprune.latency.runtimes import make_runtime
from onnxprune.options import ReportMeasurements, TaskOptions
from onnxprune.pipeline import analyze, analyze_for, compile_plan
from onnxprune.planning.curves import load_curves
from onnxprune.plans import Plan, load_plan
from onnxprune.reports import _sections
from onnxprune.reports._documents import Document, Fields
from onnxprune.reports._layers import layer_section
from onnxprune.reports._report_data import GroupChannels, LockedChannels, ModelSnapshot, Proof, ReportData
from onnxprune.studies.model_diff import differences


@dataclass(frozen=True, kw_only=True)
class MeasurementSettings(ReportMeasurements):
    """Measurements that a report makes itself, if no file has them.

    Attributes:
        data: labelled samples for accuracy.
        preprocess: how they become the model's input.
        shapes: sizes of dynamic inputs of the models.
    """

    data: Data | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    shapes: Shapes = field(default_factory=dict)


@dataclass(frozen=True)
class NamedModel:
    """Model with its display name: the file name, with the folder if two files have the same name."""

    name: str
    path: Path
    model: Model


def collect_files(
    models: list[NamedModel],
    documents: list[Document],
    measuring: MeasurementSettings,
    progress: Progress | None = None,
) -> ReportData:
    """Collect report data from files: the first model is the original, the last one the result.

    Args:
        models: models, in order.
        documents: JSON documents of commands.
        measuring: settings of the measurements.
        progress: called with (done, total) timed runs.
    """
    return _FileCollector(models, documents, measuring, progress).report


class _FileCollector:
    def __init__(
        self,
        models: list[NamedModel],
        documents: list[Document],
        measuring: MeasurementSettings,
        progress: Progress | None,
    ) -> None:
        self.models, self.documents, self.measuring = models, documents, measuring
        names = [m.name for m in models]
        self.report = ReportData(" → ".join([names[0], names[-1]] if len(names) > 1 else names) or "Report")
        self.stages = {m.name: ModelSnapshot(m.name) for m in models}
        self.report.stages = list(self.stages.values())
        self.analyses: dict[str, Analysis] = {}
        self.plans: list[tuple[Path, Plan]] = []
        self.first: tuple[Plan, NamedModel | None] | None = None  # plan of the original, and its result
        for m in models:
            with _sections.noting(self.report, m.name):
                self.analyses[m.name] = analyze(m.model)
                cost = CostModel(self.analyses[m.name]).baseline
                stage = self.stages[m.name]
                stage.macs, stage.params, stage.bytes = cost.macs, cost.params, cost.bytes
        self._read_plans()
        self._cut()
        self._read_curves()
        self._read_others()
        self._measure(progress)
        for m in models:
            self.report.facts.append((f"Model {m.name}", [("file", str(m.path)), *_sections.model_facts(m.model)]))
        self._commands()

    def of(self, kind: str) -> list[Document]:
        """Return the documents of one kind."""
        return [d for d in self.documents if d.kind == kind]

    # -------------------------------------------------------------------------------------------- plans and the cut

    def _read_plans(self) -> None:
        for d in self.of("plan"):
            with _sections.noting(self.report, d.path.name):
                plan = load_plan(d.path)
                known = [m.model.fingerprint for m in self.models]
                if plan.model and known and plan.model not in known:
                    raise OnnxPruneError("the plan was made for another model than those given; it is left out")
                self.plans.append((d.path, plan))
                self.report.facts.append((f"Plan {d.path.name}", _sections.plan_facts(plan)))

    def _cut(self) -> None:
        """Assign each model's plan to the next model; without a next model, show the planned result."""
        cuts: list[_sections.AppliedPlan] = []
        left = list(self.plans)
        for i, m in enumerate(self.models):
            mine = next(((p, plan) for p, plan in left if plan.model in ("", m.model.fingerprint)), None)
            if mine is None or m.name not in self.analyses:
                continue
            left.remove(mine)
            path, plan = mine
            result = self.models[i + 1] if i + 1 < len(self.models) else None
            with _sections.noting(self.report, path.name):
                analysis = analyze_for(m.model, plan)
                if i == 0:
                    self.analyses[m.name] = analysis  # with the plan's heads or head_dim
                scores = self._scores(analysis, plan)
                cuts.append(_sections.AppliedPlan(result.name if result else path.name, plan, scores))
                self._prove(m, plan, analysis, result)
                if i == 0:
                    self.first = plan, result
                if result is None:
                    cost = CostModel(analysis).cost(analysis.kept(plan))
                    self.report.stages.append(
                        ModelSnapshot(f"as {path.name} plans it", "not built", macs=cost.macs, params=cost.params,
                              bytes=cost.bytes)
                    )  # fmt: skip
        if not self.models:
            cuts += [_sections.AppliedPlan(path.name, plan) for path, plan in left[:1]]
            left = left[1:]
            if cuts:
                self.report.problems.append("the model is not given: unpruned groups and locked channels are not "
                                           "known")  # fmt: skip
        self.report.problems += [f"{path.name}: another plan of the same model; it is left out" for path, _ in left]
        first = self.analyses.get(self.models[0].name) if self.models else None
        _sections.add_groups(self.report, first, cuts)
        if cuts:
            self.report.why = _sections.selection_reasons(cuts[0])
        elif self.models and len(self.models) > 1:
            self._widths()

    def _widths(self) -> None:
        """Without a plan: match groups by name and count the channels of the last model."""
        last = self.analyses.get(self.models[-1].name)
        if last is None or not self.report.groups:
            return
        self.report.cuts = [self.models[-1].name]
        now = {g.name: g.channels for g in last.groups}
        self.report.groups = [
            GroupChannels(b.name, b.channels, (now[b.name],), b.about)
            for b in self.report.groups
            if b.name in now and now[b.name] <= b.channels
        ]
        self.report.why = ["No plan was given: channels are those that each model has, by the names of the groups."]

    def _scores(self, analysis: Analysis, plan: Plan) -> Mapping[str, Any] | None:
        for d in self.of("scores"):
            if d.value.get("model") == plan.model:
                with _sections.noting(self.report, d.path.name):
                    return load_scores(d.path, analysis).groups
        again = _sections.rescored(analysis, plan)
        return again.groups if again is not None else None

    def _prove(self, original: NamedModel, plan: Plan, analysis: Analysis, result: NamedModel | None) -> None:
        """Apply the plan again, prove the result, and compare it with the file."""
        title = f"pruning of {original.name}"
        try:
            done = compile_plan(original.model, plan, analysis=analysis, check=self.measuring.verify)
        except VerificationError as err:
            self.report.proofs.append(Proof(title, None, None, None, "", f"failed: {err.what}"))
            return
        note = ""
        if result is not None:
            found = differences(done.model, result.model)
            if found.identical:
                note = f"{result.name} equals this result, to the last bit."
            elif found.retrained:
                note = (
                    f"{result.name} has the structure of this result and other values in {len(found.weights)} of "
                    f"{len(found.weights) + found.same_weights} weights: it was recovered or retrained since."
                )
            else:
                note = f"{result.name} differs from the result of this plan: see `onnxprune diff`."
                self.report.problems.append(note)
        proof = done.verification
        if proof is None:
            self.report.proofs.append(Proof(title, None, None, None, "", f"not verified here. {note}".strip()))
            return
        how = proof.summary
        facts = _sections.certificate_of(Fields(proof.as_dict(), title))
        self.report.proofs.append(Proof(title, proof.max_relative, proof.tolerance, proof.effect, how, note, facts))

    # ------------------------------------------------------------------------------------------------ other documents

    def _read_curves(self) -> None:
        for d in self.of("curves"):
            with _sections.noting(self.report, d.path.name):
                curves = load_curves(d.path)
                known = {m.model.fingerprint for m in self.models} | {p.model for _, p in self.plans}
                if known and curves.model not in known:
                    raise OnnxPruneError("the curves are of another model; they are left out")
                plans = [plan for _, plan in self.plans]
                self.report.curves.append(_sections.sensitivity(d.path.name, curves, plans))
                self.report.facts.append((f"Curves {d.path.name}", _sections.curves_facts(curves)))

    def _stage(self, written: str) -> ModelSnapshot | None:
        """Return the model that a document names: by path, else the only one with that file name."""
        same = [m for m in self.models if written and _is_file(m.path, written)]
        alike = [m for m in self.models if written and m.path.name == Path(written).name]
        found = same or alike
        return self.stages[found[0].name] if len(found) == 1 else None

    def _read_others(self) -> None:
        nameless: list[Document] = []
        for d in self.documents:
            name = d.path.name
            with _sections.noting(self.report, name):
                if d.kind == "bench":
                    self._bench(d)
                elif d.kind == "profile":
                    self._bench(Document("bench", d.path, [f.value for f in Fields(d.value, name).tables("models")]))
                    layers = Fields(d.value, name).table("layers")
                    self.report.tables.append(_sections.layers_table(f"Latency of layers: {name}", layers))
                elif d.kind == "verification":
                    self.report.proofs.append(_sections.proof_of(name, Fields(d.value, name)))
                elif d.kind == "compiled":
                    self._compiled(Fields(d.value, name))
                elif d.kind == "recovery":
                    self.report.tables.append(_sections.recovery_table(f"Recovery: {name}", Fields(d.value, name)))
                elif d.kind == "training":
                    self.report.tables.append(_sections.training_table(f"Training: {name}", Fields(d.value, name)))
                elif d.kind == "evaluation":
                    fields = Fields(d.value, name)
                    if (stage := self._stage(fields.text("model"))) is not None:
                        _sections.set_metric(stage, fields)
                    title = f"Evaluation of {Path(fields.text('model')).name or name}"
                    self.report.facts.append((title, _sections.evaluation_facts(fields)))
                elif d.kind == "inspection" and not self.models:
                    self._inspection(Fields(d.value, name))
                elif d.kind == "run":
                    raise OnnxPruneError("the table of a run: give the run's folder instead")
                elif d.kind == "accuracy":
                    stage = self._stage(Fields(d.value, name).text("model"))
                    if stage is None:
                        nameless.append(d)
                    else:
                        _sections.set_accuracy(stage, Fields(d.value, name))
        # Files of older versions do not name their model: equal numbers of both are matched in order.
        named = list(self.stages.values())
        for i, d in enumerate(nameless):
            with _sections.noting(self.report, d.path.name):
                if len(nameless) != len(named):
                    raise OnnxPruneError("does not say of which model the accuracy is; it is left out")
                _sections.set_accuracy(named[i], Fields(d.value, d.path.name))

    def _bench(self, d: Document) -> None:
        for i, entry in enumerate(d.value):
            row = Fields(entry, f"{d.path.name}, entry {i + 1}")
            stage = self._stage(row.text("model"))
            if stage is None and not self.models:
                stage = ModelSnapshot(Path(row.text("model")).name or f"model {i + 1}")
                _sections.set_cost(stage, row.table("cost"))
                self.report.stages.append(stage)
            if stage is None:
                self.report.problems.append(f"{row.where}: of a model that is not given; left out")
                continue
            latency = row.table("latency")
            self.report.measured_on = row.text("machine") or f"{row.text('provider')}; the machine is not on record"
            stage.latency, stage.low, stage.high = (latency.number(k) for k in ("median", "low", "high"))

    def _compiled(self, d: Fields) -> None:
        """Add the output of `apply` and `prune`."""
        if not self.models:
            for name, key in (("before", "before"), (Path(d.text("output")).name or "after", "after")):
                stage = ModelSnapshot(name)
                _sections.set_cost(stage, d.table(key))
                self.report.stages.append(stage)
        if isinstance(d.value.get("verification"), dict):
            self.report.proofs.append(_sections.proof_of(f"as {d.where} says", d.table("verification")))
        if isinstance(d.value.get("recovery"), dict):
            self.report.tables.append(_sections.recovery_table(f"Recovery: {d.where}", d.table("recovery")))
        if isinstance(d.value.get("latency"), dict):
            measured, predicted = (d.table("latency").table(k) for k in ("measured", "predicted"))
            text = {k: seconds(v) for k in ("before", "after") if (v := measured.number(k)) is not None}
            promise = predicted.number("after")
            rows = [(f"latency {k}, as {d.where} says", v) for k, v in text.items()]
            rows += [("predicted after", seconds(promise))] if promise is not None else []
            self.report.facts.append(("Latency measured when pruning", rows))

    def _inspection(self, d: Fields) -> None:
        self.report.locked_known = True
        self.report.locked = [
            LockedChannels(k.text("name"), k.count("channels") or 0, k.text("node"), k.text("op"), k.text("reason"),
                   k.flag("inexact"))
            for k in d.tables("locked")
        ]  # fmt: skip

    # ---------------------------------------------------------------------------------------------- measured here

    def _measure(self, progress: Progress | None) -> None:
        m = self.measuring
        if m.data is not None:
            for named in self.models:
                with _sections.noting(self.report, f"accuracy of {named.name}"):
                    own = fit(named.model, m.data, m.preprocess, labels=True, run=False)
                    found = evaluate(
                        named.model, own.data, preprocess=own.preprocess, task=TaskOptions(task="classify"),
                        device=m.device,
                    )  # fmt: skip
                    stage = self.stages[named.name]
                    stage.top1, stage.top1_error, stage.loss = found.top1, found.top1_error, found.loss
                    how = ", ".join(f"{k} {v}" for k, v in own.preprocess.as_dict().items()) or "none"
                    rows = [("data", m.data.name), ("samples", str(found.images)), ("preprocessing", how),
                            ("provider", found.provider)]  # fmt: skip
                    rows += [("warning", line) for line in own.data.warnings]
            self.report.facts.append(("Accuracy, measured for this report", rows if self.models else []))
        if m.latency and self.models and all(s.latency is None for s in self.stages.values()):
            with _sections.noting(self.report, "latency"):
                where = make_runtime(m.runtime, m.runtime_options, device=m.device)
                rows_ = bench(
                    [n.model for n in self.models], batch=m.batch, threads=m.threads, runs=m.runs, progress=progress,
                    runtime=where,
                )  # fmt: skip
                for n, row in zip(self.models, rows_, strict=True):
                    stage, time = self.stages[n.name], row.latency
                    stage.latency, stage.low, stage.high = time.median, time.low, time.high
                runs = [("batch", str(m.batch)), ("threads", str(m.threads or "all")), ("runs", str(m.runs)),
                       ("provider", rows_[0].provider), ("models", "in turn, medians and quartiles")]  # fmt: skip
                self.report.measured_on = measured_on(str(where.describe()), batch=m.batch, threads=m.threads)
                self.report.facts.append(("Latency, measured for this report", runs))
        self._layers(progress)

    def _layers(self, progress: Progress | None) -> None:
        """Add the layers before and after the first plan, timed if the report measures latency."""
        if self.first is None:
            return
        plan, result = self.first
        m, analysis = self.measuring, self.analyses[self.models[0].name]
        times: list[dict[str, float]] = []
        if m.latency and result is not None and result.name in self.analyses:
            with _sections.noting(self.report, "latency of the layers"):
                pair = [analysis, self.analyses[result.name]]
                where = make_runtime(m.runtime, m.runtime_options, device=m.device)
                times = layer_seconds(pair, batch=m.batch, threads=m.threads, runtime=where, progress=progress)
        self.report.layers = layer_section(analysis, plan, times, self.report.measured_on if times else "")

    def _commands(self) -> None:
        paths = [str(n.path) for n in self.models]
        plans = [str(p) for p, _ in self.plans]
        if len(paths) > 1 and plans:
            self.report.commands += [
                shlex.join(["onnxprune", "apply", paths[0], plans[0], "-o", "again.onnx"]),
                shlex.join(["onnxprune", "verify", paths[0], "again.onnx", plans[0]]),
                shlex.join(["onnxprune", "diff", "again.onnx", paths[1]]),
            ]
        elif paths and plans:
            self.report.commands.append(shlex.join(["onnxprune", "apply", paths[0], plans[0], "-o", "small.onnx"]))
        if len(paths) > 1:
            self.report.commands.append(shlex.join(["onnxprune", "bench", *paths]))
        everything = [*paths, *(str(d.path) for d in self.documents)]
        self.report.commands.append(shlex.join(["onnxprune", "report", *everything, "-o", "report.html"]))


def _is_file(path: Path, written: str) -> bool:
    """Return whether a foreign text is a path of a file; False for texts that cannot be a path."""
    try:
        return path.resolve() == Path(written).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a null character
        return False
