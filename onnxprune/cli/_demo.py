"""Pipeline of `onnxprune demo` on a bundled model and dataset: prune, prove, recover, retrain, measure."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from onnxprune._utils import formatting
from onnxprune._utils.atomic_files import check_output
from onnxprune._utils.progress import Progress
from onnxprune.cli import _display
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, load_data, subset
from onnxprune.execution.tasks.evaluation import Accuracy, evaluate
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save
from onnxprune.latency.bench import bench
from onnxprune.pipeline import Compiled, analyze, compile_plan, plan, score
from onnxprune.planning.targets import Target
from onnxprune.recovery.recover import recover

MODEL = "digits_cnn.onnx"
HALF, HARD = 0.5, 0.15
EPOCHS = 6
SAMPLES = 400  # for recovery


@dataclass(frozen=True)
class DemoResult:
    """Accuracy of one pruned model: as pruned, recovered, and retrained (None without the extra `train`)."""

    model: Model
    as_cut: Accuracy
    recovered: Accuracy
    recovery_seconds: float
    after: Accuracy | None
    seconds: float


def run(output: Path, as_json: bool = False) -> None:
    """Prune the digits model to half its MACs with D-Score; verify, recover, retrain, evaluate and measure it.

    A second model keeps far fewer MACs, so that recovery and retraining have a loss to recover. Without the extra
    `train` both models are recovered only, and a line of the output reports it.

    Raises:
        OnnxPruneError: scikit-learn is missing, or the output cannot be written.
    """
    check_output(output)
    train, test = load_data("digits:train"), load_data("digits:test")
    with resources.as_file(resources.files("onnxprune.models") / MODEL) as path:
        model = load(path)
        scores = score(analyze(model), "dscore")
        cuts = [
            compile_plan(model, plan(scores, Target(macs=share)), analysis=scores.analysis) for share in (HALF, HARD)
        ]
        before = evaluate(model, test)
        missing: str | None = None
        trained: list[DemoResult] = []
        for i, cut in enumerate(cuts):
            with _display.progress(f"recovering and retraining {i + 1} of {len(cuts)}", quiet=as_json) as tick:
                made, missing = _recovered(cut, model, train, test, tick)
            trained.append(made)
        done = cuts[0]
        small = trained[0].model
        save(small, output)
        slow, fast = bench([model, small], runs=200, warmup=20)
    if as_json:
        _display.emit_json(
            {
                **_display.compiled_document(done, str(output)),
                "accuracy": {"before": before.as_dict(), "after": evaluate(done.model, test).as_dict()},
                "retrained": [
                    {
                        "macs": share,
                        "as_cut": t.as_cut.as_dict(),
                        "recovered": t.recovered.as_dict(),
                        "recovery_seconds": t.recovery_seconds,
                        "after": t.after.as_dict() if t.after else None,
                        "seconds": t.seconds,
                    }
                    for share, t in zip((HALF, HARD), trained, strict=True)
                ],
                "latency": {"before": slow.as_dict(), "after": fast.as_dict()},
            }
        )
        return
    accuracy = ["accuracy (top1)", formatting.percent(before.top1), formatting.percent(evaluate(small, test).top1), ""]
    _table(done, accuracy, slow.latency.median, fast.latency.median)
    _print_summary(done, cuts[1], trained, missing, str(output))


def _recovered(
    cut: Compiled, original: Model, train: Data, test: Data, tick: Progress
) -> tuple[DemoResult, str | None]:
    """Recover and retrain a pruned model; return the result, and the error if retraining is not installed."""
    start = time.perf_counter()
    samples = Calibration(subset(train, SAMPLES))
    model = recover(original, cut.model, cut.plan, samples, analysis=cut.analysis).model
    took = time.perf_counter() - start
    made = DemoResult(model, evaluate(cut.model, test), evaluate(model, test), took, None, 0.0)
    try:
        from onnxprune.training import Settings, retrain
    except OnnxPruneError as err:
        if "[train]" not in (err.fix or ""):
            raise
        return made, str(err)
    settings = Settings(epochs=EPOCHS, batch=64, lr=0.05, schedule="onecycle", device="cpu", threads=1)
    done = retrain(model, train, teacher=original, settings=settings, progress=tick)
    seconds = sum(e.seconds for e in done.history)
    return replace(made, model=done.model, after=evaluate(done.model, test), seconds=seconds), None


def _table(done: Compiled, accuracy: list[str], slow: float, fast: float) -> None:
    rows: list[list[Any]] = [accuracy]
    for label, what, fmt in (("MACs", "macs", formatting.count), ("parameters", "params", formatting.count),
                             ("weights", "bytes", formatting.size)):  # fmt: skip
        a, b = getattr(done.before, what), getattr(done.after, what)
        rows.append([label, fmt(a), fmt(b), formatting.percent(b / a)])
    rows.append(
        [
            "latency (1 image, 1 thread)",
            formatting.seconds(slow),
            formatting.seconds(fast),
            formatting.percent(fast / slow),
        ]
    )
    groups = sum(bool(r.removed) for r in done.plan.groups.values())
    title = f"digits CNN: {done.plan.removed} channels of {groups} groups removed by dscore"
    _display.table(title, ["", "before", "after", "kept"], rows)


def _print_summary(done: Compiled, hard: Compiled, trained: list[DemoResult], missing: str | None, name: str) -> None:
    print(_display.proof_line(done.verification))
    rows = [
        [formatting.percent(c.after.macs / c.before.macs), formatting.percent(t.as_cut.top1),
        formatting.percent(t.recovered.top1),
         formatting.seconds(t.recovery_seconds), formatting.percent(t.after.top1) if t.after else "",
         formatting.seconds(t.seconds) if t.after else ""]
        for c, t in zip((done, hard), trained, strict=True)
    ]  # fmt: skip
    print()
    title = f"recovered without training, then retrained: {EPOCHS} epochs of distillation"
    _display.table(title, ["MACs kept", "as cut", "recovered", "took", "retrained", "took"], rows)
    if missing is not None:
        print(f"not retrained: {missing}")
    else:
        print("This network has many weak filters: half of its MACs are removed at no loss.")
        print("Most networks lose accuracy as in the second row, and recover it likewise.")
    print(f"\nwritten: {name}\nnext commands to run:")
    print(f"  onnxprune inspect {name}")
    print("  onnxprune prune your-model.onnx -o small.onnx --target macs=0.5 --data DATA")
    print("  onnxprune retrain small.onnx --teacher your-model.onnx --data DATA -o out.onnx")
    print("  onnxprune bench your-model.onnx out.onnx")
