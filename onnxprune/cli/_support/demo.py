"""Pipeline of `onnxprune demo` on a bundled model and dataset: prune, prove, recover, measure; with --full retrain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from onnxprune._utils.files.atomic_files import check_output
from onnxprune._utils.output.formatting import count, percent, seconds, size
from onnxprune._utils.output.progress import Progress
from onnxprune.cli._support import display
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, load_data, subset
from onnxprune.execution.tasks.evaluation import Accuracy, evaluate
from onnxprune.ir.model import Model
from onnxprune.ir.reader import SHIPPED, load, shipped_model
from onnxprune.ir.writer import save
from onnxprune.latency.bench import BenchResult, bench
from onnxprune.pipeline import Compiled, analyze, compile_plan, plan, score
from onnxprune.planning.targets import Target
from onnxprune.recovery.recover import recover

MODEL = "digits_cnn.onnx"
SHARES = (0.5, 0.15)
EPOCHS = 6
SAMPLES = 400  # for recovery


@dataclass(frozen=True)
class DemoResult:
    """One pruned model and its accuracy: as pruned, recovered, and retrained (None without --full)."""

    share: float
    pruned: Compiled
    model: Model
    as_pruned: Accuracy
    recovered: Accuracy
    recovery_seconds: float
    retrained: Accuracy | None = None
    retraining_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return {
            "macs": self.share,
            "as_pruned": self.as_pruned.as_dict(),
            "recovered": self.recovered.as_dict(),
            "recovery_seconds": self.recovery_seconds,
            "retrained": self.retrained.as_dict() if self.retrained is not None else None,
            "retraining_seconds": self.retraining_seconds,
        }


def run(output: Path, *, full: bool = False, as_json: bool = False, epochs: int = EPOCHS) -> None:
    """Prune the digits model to half of its MACs and to 15 %; prove, recover, evaluate and measure both.

    Args:
        output: File of the model with half of the MACs.
        full: Retrain both as well.
        as_json: Write one JSON document instead of tables.
        epochs: Epochs of the retraining.

    Raises:
        OnnxPruneError: The output cannot be written, or with `full` PyTorch is missing.
    """
    check_output(output)
    if full:
        import onnxprune.training  # noqa: F401  # an error names the extra before anything is computed
    train, test = load_data("digits:train"), load_data("digits:test")
    original = load(shipped_model(MODEL))
    scores = score(analyze(original), "dscore")
    before = evaluate(original, test)
    results = []
    for share in SHARES:
        made = compile_plan(original, plan(scores, Target(macs=share)), analysis=scores.analysis)
        result = _recovered(share, made, original, train, test)
        if full:
            with display.progress(f"retraining at {share:.0%} of the MACs", quiet=as_json) as tick:
                result = _retrained(result, original, train, test, epochs, tick)
        results.append(result)
    half = results[0]
    save(half.model, output)
    slow, fast = bench([original, half.model], runs=200, warmup=20)
    if as_json:
        display.emit_json(
            {
                **display.compiled_document(half.pruned, str(output)),
                "accuracy": {"before": before.as_dict(), "after": evaluate(half.model, test).as_dict()},
                "results": [r.as_dict() for r in results],
                "latency": {"before": slow.as_dict(), "after": fast.as_dict()},
            }
        )
        return
    _show(results, before, evaluate(half.model, test), slow, fast)
    click.echo(_next(str(output)))


def _recovered(share: float, made: Compiled, original: Model, train: Data, test: Data) -> DemoResult:
    start = time.perf_counter()
    samples = Calibration(subset(train, SAMPLES), threads=1)
    model = recover(original, made.model, made.plan, samples, analysis=made.analysis).model
    took = time.perf_counter() - start
    return DemoResult(share, made, model, evaluate(made.model, test), evaluate(model, test), took)


def _retrained(result: DemoResult, original: Model, train: Data, test: Data, epochs: int, tick: Progress) -> DemoResult:
    from onnxprune.training import Settings, retrain

    settings = Settings(epochs=epochs, batch=64, lr=0.05, schedule="onecycle", device="cpu", threads=1)
    done = retrain(result.model, train, teacher=original, settings=settings, progress=tick)
    took = sum(e.seconds for e in done.history)
    return replace(result, model=done.model, retrained=evaluate(done.model, test), retraining_seconds=took)


def _show(
    results: Sequence[DemoResult], before: Accuracy, after: Accuracy, slow: BenchResult, fast: BenchResult
) -> None:
    half = results[0].pruned
    rows = [["top1", percent(before.top1), percent(after.top1), ""]]
    for label, what, form in (("MACs", "macs", count), ("params", "params", count), ("bytes", "bytes", size)):
        a, b = getattr(half.before, what), getattr(half.after, what)
        rows.append([label, form(a), form(b), percent(b / a)])
    a, b = slow.latency.median, fast.latency.median
    rows.append(["latency (1 image, 1 thread)", seconds(a), seconds(b), percent(b / a)])
    title = f"digits CNN: {half.after.channels} of {half.before.channels} channels kept, chosen by dscore"
    display.table(title, ["", "before", "after", "kept"], rows)
    click.echo(display.proof_line(half.verification) + "\n")
    full = any(r.retrained is not None for r in results)
    rows = [
        [percent(r.pruned.after.macs / r.pruned.before.macs), percent(r.as_pruned.top1), percent(r.recovered.top1),
         seconds(r.recovery_seconds),
         *([percent(r.retrained.top1), seconds(r.retraining_seconds)] if r.retrained is not None else [])]
        for r in results
    ]  # fmt: skip
    title = "top1 as pruned, and recovered without training (no labels needed)"
    if full:
        title += f";\nthen retrained for {EPOCHS} epochs of distillation"
    columns = ["MACs kept", "as pruned", "recovered", "took", *(["retrained", "took"] if full else [])]
    display.table(title, columns, rows)


def _next(output: str) -> str:
    commands = (
        f"onnxprune inspect {SHIPPED}{MODEL}",
        f"onnxprune bench {SHIPPED}{MODEL} {output}",
        f"onnxprune explore {SHIPPED}{MODEL} -o plan.json",
        "onnxprune prune YOUR.onnx -o small.onnx --target macs=0.5 --data DATA",
    )
    return "\n".join([f"written: {output}", "next:", *(f"  {c}" for c in commands)])
