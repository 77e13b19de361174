"""Parts of a report that both kinds of sources share: groups, plans, curves, documents of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from onnxprune._utils.output.formatting import counted, listed, seconds
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import all_criteria
from onnxprune.criteria.scoring import Scores, score
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.evaluation import metric_text, metric_title
from onnxprune.execution.tasks.metrics import LOWER_IS_BETTER, SHARES
from onnxprune.ir.model import PROVENANCE, Model
from onnxprune.planning.curves import Curves
from onnxprune.plans import Plan
from onnxprune.reports._documents import Fields
from onnxprune.reports._flow_picture import flow_picture
from onnxprune.reports._report_data import (
    GroupChannels,
    LockedChannels,
    ModelSnapshot,
    Proof,
    ReportData,
    ReportTable,
    SensitivitySection,
)


@dataclass(frozen=True)
class AppliedPlan:
    """Plan, name of its result, and scores of the model it was made for, if any."""

    name: str
    plan: Plan
    scores: Mapping[str, Any] | None = None


@contextmanager
def noting(report: ReportData, what: str) -> Iterator[None]:
    """Record a known error in the block as a problem of the report and continue."""
    try:
        yield
    except OnnxPruneError as err:
        where = f" ({err.where})" if err.where and err.where != what else ""
        report.problems.append(f"{what}: {err.what}{where}")


_LAYERS = 60  # rows of a table of layers


def add_groups(report: ReportData, analysis: Analysis | None, applied: Sequence[AppliedPlan]) -> None:
    """Add the channels of every group after each plan; without the model only groups of the plans."""
    whole: dict[str, int] = {}
    about: dict[str, str] = {}
    if analysis is not None:
        report.locked_known = True
        report.locked = [LockedChannels(k.name, k.channels, k.node, k.op, k.reason, k.inexact) for k in analysis.locked]
        for g in analysis.groups:
            whole[g.name] = g.channels
            width = f", {g.width} indices per channel" if g.width > 1 else ""
            about[g.name] = f"{g.op}{', residual' if g.residual else ''}{width}, {len(g.sites)} tensors"
    else:
        for cut in applied:
            for name, r in cut.plan.groups.items():
                whole.setdefault(name, r.channels)
    kept = {name: [n] for name, n in whole.items()}
    for cut in applied:
        report.cuts.append(cut.name)
        for name, r in cut.plan.groups.items():
            if name not in kept or kept[name][-1] != r.channels:
                known = "is not known" if name not in kept else f"has {kept[name][-1]} channels there, not {r.channels}"
                report.problems.append(f"{cut.name}: the plan's group {name!r} {known}; it is left out")
        for name, counts in kept.items():
            mine = cut.plan.groups.get(name)
            gone = len(mine.removed) if mine is not None and mine.channels == counts[-1] else 0
            counts.append(counts[-1] - gone)
    lost = _score_removed(applied[0]) if len(applied) == 1 else {}
    report.groups = [GroupChannels(n, c, tuple(kept[n][1:]), about.get(n, ""), lost.get(n)) for n, c in whole.items()]
    if analysis is not None:
        report.picture = flow_picture(analysis, {name: counts[-1] for name, counts in kept.items()})


def _score_removed(cut: AppliedPlan) -> dict[str, float]:
    """Return the share of each group's score on its removed channels; 0 if the plan removes none."""
    out = {}
    for name, values in (cut.scores or {}).items():
        r = cut.plan.groups.get(name)
        v = np.asarray(values, np.float64)
        if r is not None and r.channels == len(v) and v.min() >= 0 and v.sum() > 0:
            out[name] = float(v[list(r.removed)].sum() / v.sum())
    return out


def rescored(analysis: Analysis, plan: Plan) -> Scores | None:
    """Return scores by the plan's criterion, if it is registered and needs weights only."""
    name = plan.criterion.get("name")
    rule = all_criteria().get(name) if isinstance(name, str) else None
    if rule is None or rule.needs != "weights" or name == "random":
        return None
    own = {f.name for f in fields(rule)}  # type: ignore[arg-type]  # every criterion is a dataclass
    params = {k: v for k, v in plan.criterion.items() if k in own}
    reduce = plan.criterion.get("reduce")
    try:
        return score(analysis, str(name), reduce=reduce if isinstance(reduce, str) else None, **params)
    except (OnnxPruneError, TypeError, ValueError):  # parameters from an untrusted file
        return None


def criterion_text(criterion: Mapping[str, Any]) -> str:
    """Format a criterion with its parameters: "dscore (reduce mean, threshold 0.8)"."""
    rest = ", ".join(f"{k} {_plain(v)}" for k, v in sorted(criterion.items()) if k != "name" and v is not None)
    return f"{_plain(criterion.get('name', 'not recorded'))}{f' ({rest})' if rest else ''}"


def selection_reasons(cut: AppliedPlan) -> list[str]:
    """Describe the selection of channels in sentences."""
    c = cut.plan.criterion
    name = c.get("name")
    if not isinstance(name, str):
        return ["The plan does not record the selection of its channels."]
    rule = all_criteria().get(name)
    known = f": {rule.title} ({rule.source})" if rule is not None else ""
    out = [f"Channels with the lowest scores were removed first. Criterion {name}{known}."]
    if cut.plan.blocks:
        out.append(f"Whole residual blocks were removed: {listed(cut.plan.blocks, 12)}.")
    rest = criterion_text({k: v for k, v in c.items() if k != "name"}).removeprefix("not recorded").strip(" ()")
    if rest:
        out.append(f"Recorded with the plan: {rest}.")
    return out


def sensitivity(title: str, curves: Curves, plans: Sequence[Plan]) -> SensitivitySection:
    """Return curves with the first plan that was made for the same model."""
    for plan in plans:
        fits = all(n not in plan.groups or plan.groups[n].channels == c.channels for n, c in curves.groups.items())
        if plan.model == curves.model and fits:
            return SensitivitySection(
                title, curves, {n: len(plan.groups[n].removed) if n in plan.groups else 0 for n in curves.groups}
            )
    return SensitivitySection(title, curves, None)


def curves_facts(curves: Curves) -> list[tuple[str, str]]:
    """Return the provenance of curves."""
    data = curves.data
    rows = [("metric", curves.metric), ("criterion", criterion_text(curves.criterion))]
    rows += [(f"data {k}", _plain(v)) for k, v in data.items()]
    rows += [(k, _plain(v)) for k, v in curves.settings.items()]
    return [*rows, ("model", curves.model), ("written by onnxprune", curves.tool or "not recorded")]


def plan_facts(plan: Plan) -> list[tuple[str, str]]:
    """Return the provenance of a plan."""
    return [
        ("criterion", criterion_text(plan.criterion)),
        ("removes", f"{plan.removed} channels" + (f" and {counted(len(plan.blocks), 'block')}" if plan.blocks else "")),
        *([("removed blocks", ", ".join(plan.blocks))] if plan.blocks else []),
        ("made for the model", plan.model or "any"), ("digest", plan.digest),
        ("written by onnxprune", plan.tool or "not recorded"),
    ]  # fmt: skip


def model_facts(model: Model) -> list[tuple[str, str]]:
    """Return the identity of a model and onnxprune's metadata in it."""
    shell = model.sidecar.shell
    rows = [("fingerprint", model.fingerprint), ("opset", str(model.opset))]
    if shell.producer_name:
        rows.append(("exported by", f"{shell.producer_name} {shell.producer_version}".strip()))
    return rows + [(key, value) for key, value in model.metadata.items() if key.startswith(f"{PROVENANCE}.")]


def proof_of(title: str, d: Fields, note: str = "") -> Proof:
    """Read the verification of a command or a step."""
    how = d.text("summary") or f"{d.text('inputs')} inputs"
    if isinstance(branches := d.value.get("branches"), list) and branches:
        how += f"; at the sizes of the analysis only: {listed(map(str, branches), 4)}"
    return Proof(
        title, d.number("max_relative"), d.number("tolerance"), d.number("effect"), how, note, certificate_of(d)
    )  # fmt: skip


def certificate_of(d: Fields) -> list[tuple[str, str]]:
    """Return names and values of a certificate, as far as it has them."""
    out = [("reference", d.text("reference"))] if d.text("reference") else []
    for key, name in (("nodes", "nodes checked"), ("tensors", "tensors compared"), ("by_text", "equal by their text")):
        if (count := d.count(key)) is not None:
            out.append((name, f"{count:,}"))
    for key, name in (("sizes", "sizes"), ("branches", "at the analysis' sizes only"), ("inexact", "inexact groups")):
        value = d.value.get(key)
        if isinstance(value, list) and value:
            out.append((name, listed(map(str, value), 6)))
    worst = d.value.get("worst")
    if isinstance(worst, list) and len(worst) == 4 and worst[0]:
        out.append(("largest difference at", f"{worst[0]}, tensor {worst[1]}, index {worst[3]} of axis {worst[2]}"))
    outputs = d.value.get("outputs")
    if isinstance(outputs, dict):
        out += [(f"output {k}, whole runs", f"{v:.1e}") for k, v in outputs.items() if isinstance(v, int | float)]
    out += [("whole runs on", f"{d.text('inputs')} inputs")] if d.text("inputs") else []
    out += [("weights", d.text("weights"))] if d.text("weights") else []
    return out


def recovery_table(title: str, d: Fields) -> ReportTable:
    """Return the stages of a recovery as a table."""
    rows = []
    metric = d.text("metric") or "top1"
    shown = partial(metric_text, metric)
    original = d.number("original_top1" if metric == "top1" else "original")
    if original is not None:
        rows.append(("original", shown(original), "0", "", ""))
    for s in d.tables("stages"):
        value, distance, took = (
            s.number("top1" if metric == "top1" else "value"),
            s.number("distance"),
            s.number("seconds"),
        )
        name = s.text("name") + ("" if s.flag("kept") else " (undone)")
        rows.append((name, _text(value, shown), _text(distance, "{:.4f}".format), _text(took or None, seconds),
                     s.text("note")))  # fmt: skip
    note = f"{d.count('samples')} samples, {d.count('held_out')} held out"
    return ReportTable(
        title, ("stage", metric_title(metric), "distance from the original", "took", "note"), tuple(rows), note
    )


def layers_table(title: str, d: Fields) -> ReportTable:
    """Return the latency of layers before and after as a table, the slowest first."""
    rows = []
    for r in d.tables("rows")[:_LAYERS]:
        before, after = r.number("before"), r.number("after")
        left = after / before if before and after is not None else None
        channels = [c for c in dict.fromkeys((r.text("channels_before"), r.text("channels_after"))) if c]
        rows.append((r.text("name"), ", now ".join(channels), _text(before, seconds), _text(after, seconds),
                     _text(left, "{:.2f}".format), _text(r.number("work"), "{:.2f}".format),
                     r.text("reason")))  # fmt: skip
    before, after = d.number("before"), d.number("after")
    total = f"all layers {_text(before, seconds)}" + (f" -> {_text(after, seconds)}" if after is not None else "")
    columns = ("layer", "channels", "before", "after", "share of the time", "share of the work", "reason")
    return ReportTable(title, columns, tuple(rows), f"{d.text('runtime')}; {total}")


def training_table(title: str, d: Fields) -> ReportTable:
    """Return the epochs of a training as a table."""
    best = d.count("epoch")
    metric = d.text("metric")
    if metric in ("", "distillation"):
        metric = "top1"
    rows = []
    for e in d.tables("history"):
        epoch = e.count("epoch")
        name = ("as given" if not epoch else str(epoch)) + (" (kept)" if epoch == best else "")
        value = e.number("top1" if metric == "top1" else "value")
        rows.append((name, _text(e.number("train_loss"), "{:.4f}".format), _text(value, partial(metric_text, metric)),
                     _text(e.number("loss"), "{:.4f}".format), _text(e.number("lr"), "{:.3g}".format),
                     _text(e.number("seconds"), seconds)))  # fmt: skip
    samples = d.count("validation_samples")
    note = f"validated on {samples} samples" if samples is not None else ""
    columns = ("epoch", "training loss", metric_title(metric), "loss", "learning rate", "took")
    return ReportTable(title, columns, tuple(rows), note)


def set_accuracy(stage: ModelSnapshot, d: Fields) -> None:
    """Set the accuracy from `evaluate`."""
    stage.top1, stage.top1_error, stage.loss = d.number("top1"), d.number("top1_error"), d.number("loss")
    if stage.top1 is None:
        set_metric(stage, d)


def set_metric(stage: ModelSnapshot, d: Fields) -> None:
    """Set the main metric of another task than classification."""
    stage.metric = d.text("metric")
    stage.value = d.number("value") if stage.metric not in d.value else d.number(stage.metric)
    stage.error = d.number(f"{stage.metric}_error")


def evaluation_facts(d: Fields) -> list[tuple[str, str]]:
    """Return the metrics of `evaluate` for another task than classification, with errors, samples and warnings."""
    rows = [("task", d.text("task")), ("samples", str(d.count("samples") or 0)), ("provider", d.text("provider"))]
    for name in d.value:
        if name in SHARES | LOWER_IS_BETTER | {"r2", d.text("metric")} and name != "metric":
            error = d.number(f"{name}_error")
            value = _text(d.number(name), partial(metric_text, name))
            rows.append((metric_title(name), value + ("" if error is None else f" ± {metric_text(name, error)}")))
    return rows


def set_cost(stage: ModelSnapshot, d: Fields) -> None:
    """Set a cost from the output of a command."""
    stage.macs, stage.params, stage.bytes = d.count("macs"), d.count("params"), d.count("bytes")


def _text(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None else form(value)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
