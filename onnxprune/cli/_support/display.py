"""Output of the commands: tables of at most 80 columns or JSON on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.analysis.coupling import Analysis, Group
    from onnxprune.criteria.scoring import Scores
    from onnxprune.latency.speedup import Speedup
    from onnxprune.pipeline import Compiled
    from onnxprune.planning.allocator_comparison import AllocatorRow
    from onnxprune.planning.curves import Curves
    from onnxprune.plans import Plan
    from onnxprune.recipes import RunTable
    from onnxprune.recovery.recover import Recovered
    from onnxprune.studies.criteria_comparison import CriteriaComparison
    from onnxprune.training import Retrained, ValidationMetrics
    from onnxprune.verification import Verification
from onnxprune._utils.output.events import current
from onnxprune._utils.output.formatting import count, counted, decimal, percent, seconds, size
from onnxprune._utils.output.progress import Progress, ProgressLines
from onnxprune._utils.output.terminal import clean, raw

WIDTH = 80
Cell = str


def emit_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def finished(as_json: bool, document: Callable[[], Any]) -> bool:
    """Log the result of a command for `--log-json`, and write it to stdout for `--json`.

    Returns:
        Whether it was written, so that no tables are.
    """
    log = current()
    if log is None and not as_json:
        return False
    made = document()
    if log is not None:
        log.result(made)
    if as_json:
        emit_json(made)
    return as_json


def note(text: str) -> None:
    """Write a line of text to stderr."""
    sys.stderr.write(clean(text) + "\n")  # a progress bar may have replaced the stream
    sys.stderr.flush()
    if (log := current()) is not None:
        log.write("note", text=text)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, prose: bool = False) -> None:
    """Print a table whose first column is text, and whose other columns are right-aligned numbers or short words.

    With `prose` all columns are text that may wrap.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # No markup: names in models may contain brackets and colons.
    console = Console(
        file=raw(sys.stdout), width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False, emoji=False
    )  # fmt: skip
    # A title of the table itself would be wrapped to the table's width.
    console.print(clean(title), style="italic", soft_wrap=True)
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        text = prose or i == 0
        out.add_column(clean(column), justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        out.add_row(*map(clean, row))
    console.print(out)


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Show a progress bar with the remaining time on stderr, or lines if that is no terminal."""
    log = current()
    if log is not None:
        with log.stage(what) as logged, _bar(what, quiet=quiet) as tick:
            yield lambda done, total: (logged(done, total), tick(done, total))[0]
        return
    with _bar(what, quiet=quiet) as tick:
        yield tick


@contextmanager
def _bar(what: str, *, quiet: bool) -> Iterator[Progress]:
    if quiet:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield ProgressLines(what, note)
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(file=raw(sys.stderr)), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def curves_table(curves: Curves, name: str) -> None:
    """Print the table of `sensitivity`: for each group the ratios at which the metric falls, and its worst value."""
    base = curves.baseline.value
    share = curves.metric in ("top1", "top5")
    text = percent if share else (lambda v: f"{v:.4g}")
    worst = max if not curves.higher_is_better else min
    rows = []
    for group, curve in curves.groups.items():
        row = [group, str(curve.channels)]
        if share:  # ratios at which one and five points of accuracy are lost
            row += [percent(curves.largest(group, base - loss) / curve.channels) for loss in (0.01, 0.05)]
        middle = [p for p in curve.points if p.ratio <= 0.5]
        row += [text(middle[-1].value) if middle else "", text(worst((p.value for p in curve.points), default=base))]
        rows.append(row)
    error = "" if curves.baseline.error is None else f" +- {text(curves.baseline.error)}"
    columns = ["group", "channels", *(["-1 point", "-5 points"] if share else []), "at 50 %", "worst"]
    table(f"{name}: {curves.metric} {text(base)}{error} unpruned, {curves.data.get('images')} samples", columns, rows)


def plan_document(
    analysis: Analysis, plan: Plan, output: str | None, curves: Curves | None, speedup: Speedup | None,
    rows: Sequence[AllocatorRow] | None, data: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return the document of `plan --json`."""
    from onnxprune.analysis.cost import CostModel

    cost = CostModel(analysis)
    return {
        "output": output,
        "digest": plan.digest,
        **plan.removed_counts(),
        "before": vars(cost.baseline),
        "after": vars(cost.cost(analysis.kept(plan))),
        "metric": _metric(plan, curves),
        "latency": speedup.as_dict() if speedup else None,
        "compare": [row.as_dict() for row in rows] if rows is not None else None,
        "data": dict(data) or None,
    }


def _metric(plan: Plan, curves: Curves | None) -> dict[str, Any] | None:
    """Return the metric that the curves predict for a plan: the worst value of any group pruned alone."""
    from onnxprune.planning.planner import removed_counts
    from onnxprune.planning.thresholds import predicted

    if curves is None:
        return None
    worst = predicted(curves, removed_counts(plan.groups))
    return {"name": curves.metric, "whole": curves.baseline.value, "predicted": worst}


def plan_table(analysis: Analysis, plan: Plan, title: str, curves: Curves | None) -> None:
    """Print the table of `plan`: kept channels of every group, and the share kept of every measure."""
    from onnxprune.analysis.cost import MEASURES, CostModel

    rows = []
    for g in analysis.groups:
        gone = len(plan.groups[g.name].removed) if g.name in plan.groups else 0
        rows.append([g.name, str(g.channels), str(g.channels - gone), percent(1 - gone / g.channels)])
    table(title, ["group", "channels", "kept", ""], rows)
    _blocks_line(plan)
    cost = CostModel(analysis)
    after = cost.cost(analysis.kept(plan))
    shares = [f"{what} {percent(after.ratio(cost.baseline, what))}" for what in MEASURES]
    sys.stdout.write(f"kept: {', '.join(shares[:3])},\n  {', '.join(shares[3:])}\n")
    metric = _metric(plan, curves)
    if metric is not None:
        worst = "not measured at this ratio" if metric["predicted"] is None else f"{metric['predicted']:.4g}"
        sys.stdout.write(
            f"{metric['name']} by the curves: {worst} in the worst group alone; unpruned {metric['whole']:.4g}\n"
        )


def comparison_table(title: str, rows: Sequence[AllocatorRow], metric: str | None) -> None:
    """Print the table of `plan --compare`: one row for each allocator."""
    from onnxprune.analysis.cost import MEASURES

    timed = any(r.seconds is not None for r in rows)
    columns = ["allocator", *MEASURES, *(["latency"] if timed else []), *([metric] if metric else [])]
    cells = []
    for r in rows:
        row = [
            ("* " if r.chosen else "  ") + r.allocator,
            *(percent(r.shares[m]) if r.shares else "-" for m in MEASURES),
        ]
        if timed:
            row.append(seconds(r.seconds) if r.seconds is not None else "-")
        if metric:
            row.append(f"{r.metric:.4g}" if r.metric is not None else "-")
        cells.append(row)
    table(title, columns, cells)
    for r in rows:
        if r.error is not None:
            note(f"{r.allocator}: {r.error}")


def criteria_table(comparison: CriteriaComparison, name: str) -> None:
    """Print the table of `score --compare`: means over the groups."""

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    rows = []
    for one, other in comparison.pairs:
        mean = comparison.mean((one, other))
        overlap = "-" if mean.overlap is None else percent(mean.overlap)
        rows.append([f"{one}, {other}", text(mean.spearman), text(mean.kendall), overlap])
    title = f"{name}: mean over {len(comparison.groups)} groups; {percent(comparison.ratio)} of each removed"
    table(title, ["criteria", "Spearman", "Kendall", "removed alike"], rows)
    sys.stdout.write(f"by chance {percent(comparison.ratio)} would be removed alike\n")


def block_scores_table(scores: Scores, criterion: str) -> None:
    """Print the table of `score --blocks`: blocks in order of removal, and the MACs kept without all so far."""
    from onnxprune.analysis.cost import CostModel

    cost, kept, rows = CostModel(scores.analysis), scores.analysis.kept(), []
    for name, loss in scores.blocks.items():
        block = scores.analysis.block(name)
        kept[block.components] = False
        rows.append([name, block.kind, f"{loss:.4g}", percent(cost.share(kept, "macs"))])
    table(f"blocks by {criterion}, in order of removal", ["block", "kind", "loss", "MACs kept"], rows)


def speedup_line(speedup: Speedup) -> str:
    """Return predicted and measured latency, and the plans that were measured for a latency target."""
    p, m = speedup.predicted, speedup.measured
    threads = {0: "all threads", 1: "1 thread"}.get(speedup.threads, f"{speedup.threads} threads")
    text = (
        f"latency: {seconds(m.before)} -> {seconds(p.after)} predicted ({p.share:.3f}), "
        f"{seconds(m.after)} measured ({m.share:.3f}),\n  {threads}, batch {speedup.batch}, {speedup.provider}"
    )
    if speedup.rounds:
        shares = ", ".join(f"{r.measured:.3f}" for r in speedup.rounds)
        text += f"\n  measured {'plan' if len(speedup.rounds) == 1 else 'plans'}: {shares}"
    return f"{text}\n  the target is not met as measured: {speedup.note}" if speedup.note else text


def compiled_document(done: Compiled, output: str | None, speedup: Speedup | None = None) -> dict[str, Any]:
    """Return the document of `apply --json` and `prune --json`."""
    return {
        "output": output,
        "before": vars(done.before),
        "after": vars(done.after),
        **done.plan.removed_counts(),
        "plan_digest": done.plan.digest,
        "groups": [_checked(done, g) for g in done.analysis.groups if g.name in done.plan.groups],
        "latency": speedup.as_dict() if speedup else None,
        "accuracy": None,  # not measured; with data, "recovery" holds the metric
        "verification": done.verification.as_dict() if done.verification else None,
    }


def _checked(done: Compiled, group: Group) -> dict[str, Any]:
    """Return the removed channels of a group, and the reference that the removal was proved against."""
    proof = ("masked" if group.exact else "sliced") if done.verification else None
    removed = len(done.plan.groups[group.name].removed)
    return {
        "name": group.name, "kind": group.kind, "channels": group.channels, "removed": removed,
        "exact": group.exact, "statistics": list(group.statistics), "reference": proof,
    }  # fmt: skip


def compiled_table(done: Compiled, title: str, speedup: Speedup | None = None) -> None:
    """Print the costs before and after pruning, the share kept, and the proof."""
    rows = []
    for label, what, show in (
        ("MACs", "macs", count), ("params", "params", count), ("bytes", "bytes", size), ("memory", "memory", size),
        ("channels", "channels", str),
    ):  # fmt: skip
        a, b = getattr(done.before, what), getattr(done.after, what)
        rows.append([label, show(a), show(b), percent(done.after.ratio(done.before, what))])
    if done.plan.blocks:
        whole = len(done.analysis.blocks)
        kept = whole - len(done.plan.blocks)
        rows.append(["blocks", str(whole), str(kept), percent(kept / whole)])
    table(title, ["", "before", "after", "kept"], rows)
    _blocks_line(done.plan)
    if speedup is not None:
        sys.stdout.write(speedup_line(speedup) + "\n")
    sys.stdout.write(proof_line(done.verification) + "\n")


def _blocks_line(plan: Plan) -> None:
    """Print the names of the blocks that are not kept, if any."""
    if plan.blocks:
        text = f"without {counted(len(plan.blocks), 'block')}: {', '.join(plan.blocks)}"
        sys.stdout.write(textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n")


def proof_line(proof: Verification | None) -> str:
    """Return the verification as text."""
    if proof is None:
        return "not verified (--no-verify)"
    line = "\n  ".join(textwrap.wrap(f"proved: {proof.summary}", 76, break_long_words=False, break_on_hyphens=False))
    if proof.inputs != "random":
        line += f"\n  whole runs on {proof.inputs.replace('random', 'random inputs')}"
    if proof.unexecuted:
        text = textwrap.wrap(proof.unexecuted, 76, break_long_words=False, break_on_hyphens=False)
        line += "\n  " + "\n  ".join(text)
    if proof.inexact:
        plural = "s are" if len(proof.inexact) > 1 else " is"
        line += f"\n  {len(proof.inexact)} group{plural} inexact: statistics run over the kept channels"
    if proof.computed_in:
        line += f"\n  both models as {proof.computed_in} copies"
    if proof.weights != "identical":
        line += "\n  weights were not compared: this model was recovered or retrained, which changes them"
    return line


def recovered_table(done: Recovered, title: str) -> None:
    """Print the effect of each stage of a recovery on held-out samples."""
    rows: list[list[Cell]] = []
    if done.original is not None:
        rows.append(["original", done.text(done.original), "0", "", ""])
    for stage in done.stages:
        name = stage.name if stage.kept else f"{stage.name} (undone)"
        took = seconds(stage.seconds) if stage.seconds else ""
        rows.append([name, done.text(stage.value), f"{stage.distance:.4f}", took, stage.note])
    table(
        f"{title}: {done.samples[0]} samples, {done.samples[1]} held out",
        ["stage", done.title, "distance", "time", ""],
        rows,
    )
    sys.stdout.write(done.rule + "\n")


def retrained_document(done: Retrained, output: str, plan: str | None) -> dict[str, Any]:
    """Return the document of `retrain --json`."""
    return {"output": output, "plan": plan, **done.as_dict()}


def retrained_figures(done: Retrained) -> str:
    """Return the metric before and after training in one line."""
    from onnxprune.execution.tasks.evaluation import metric_title
    from onnxprune.training import value_text

    def text(f: ValidationMetrics) -> str:
        shown = value_text(f)
        return f"{shown} (loss {decimal(f.loss)})" if shown else decimal(f.loss)

    name = "distillation loss" if done.metric == "distillation" else metric_title(done.metric)
    best = done.history[1] if len(done.history) > 1 else done.history[0]
    for epoch in done.history[2:]:
        best = epoch if epoch.figures.better_than(best.figures) else best
    after = done.after if done.epoch else best.figures
    line = f"{name} {text(done.before)} before, {text(after)} after epoch {done.epoch or best.epoch}"
    return line + (f", {text(done.replaced)} of what it would replace" if done.replaced else "")


def retrained_table(done: Retrained, title: str) -> None:
    """Print the table of `retrain`: the history, the kept epoch and its metric."""
    from onnxprune.execution.tasks.evaluation import metric_title
    from onnxprune.training import value_text

    valued = done.metric != "distillation"
    rows = []
    for e in done.history:
        name = ("* " if e.epoch == done.epoch else "  ") + (str(e.epoch) if e.epoch else "as given")
        row = [name, decimal(e.train_loss) if e.train_loss is not None else ""]
        row += [value_text(e.figures)] if valued else []
        row += [decimal(e.loss), f"{e.lr:.3g}" if e.lr is not None else "", seconds(e.seconds)]
        rows.append(row)
    loss = "loss" if done.metric == "top1" else "distillation"
    columns = ["epoch", "training loss", *([metric_title(done.metric)] if valued else []), loss, "lr", "time"]
    table(title, columns, rows)
    sys.stdout.write(f"{retrained_figures(done)}\n  on {len(done.val)} samples\n")
    if done.stopped:
        sys.stdout.write(f"stopped early: {done.stopped}\n")
    if done.logs:
        sys.stdout.write(f"logs: {done.logs}\n")


def run_table(done: RunTable, folder: str) -> None:
    """Print the table of `run`: every step, with figures for steps that write a model."""

    def text(value: Any, form: Callable[[Any], str]) -> str:
        return "" if value is None else form(value)

    from onnxprune.execution.tasks.evaluation import metric_text, metric_title

    metric = next((r.metric for r in done.rows if r.metric is not None), None)
    rows = [
        [
            r.step + (f" ({r.turn})" if r.turn else ""),
            *(
                [text(r.top1, percent), text(r.loss, "{:.3f}".format)]
                if metric is None
                else [text(r.value, partial(metric_text, metric))]
            ),
            text(r.macs, count), text(r.params, count), text(r.bytes, size), text(r.latency, seconds),
            text(r.seconds, seconds),
        ]
        for r in done.rows
    ]  # fmt: skip
    worth = ["top1", "loss"] if metric is None else [metric_title(metric)]
    table(done.name, ["step", *worth, "MACs", "params", "bytes", "latency", "took"], rows)
    if done.machine:
        sys.stdout.write(f"latency on {done.machine}\n")
    sys.stdout.write(f"last model: {done.final}\nall files and table.csv: {folder}\n")
