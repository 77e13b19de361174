"""`onnxprune demo`: the main job on a model and data that ship: prune, prove, retrain, measure, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from onnxprune import show
from onnxprune.bench import bench
from onnxprune.data import Data, load_data
from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation import Accuracy, evaluate
from onnxprune.files import check_output
from onnxprune.model import Model, load, save
from onnxprune.pipeline import Compiled, analyze, compile_plan, plan, score
from onnxprune.targets import Target

MODEL = "digits_cnn.onnx"
HALF, HARD = 0.5, 0.15
EPOCHS = 6


@dataclass(frozen=True)
class Trained:
    """A cut and what retraining made of it."""

    model: Model
    as_cut: Accuracy
    after: Accuracy
    seconds: float


def run(output: Path, as_json: bool = False) -> None:
    """Prunes the digits model to half its MACs with D-Score, verifies, retrains, evaluates and measures it.

    Then it is cut much harder, where retraining has something to win back. Without the extra `train` both models stay
    as they were cut, and a line says so.

    Raises:
        OnnxPruneError: scikit-learn is missing, or the output cannot be written.
    """
    check_output(output)
    train, test = load_data("digits:train"), load_data("digits:test")
    with resources.as_file(resources.files("onnxprune.models") / MODEL) as path:
        model = load(path)
        scores = score(model, analyze(model), "dscore")
        cuts = [
            compile_plan(model, plan(scores, Target(macs=share)), analysis=scores.analysis) for share in (HALF, HARD)
        ]
        before = evaluate(model, test)
        missing = None
        trained: list[Trained] = []
        try:
            for i, cut in enumerate(cuts):
                with show.progress(f"retraining {i + 1} of {len(cuts)}", quiet=as_json) as tick:
                    trained.append(_retrained(cut.model, model, train, test, tick))
        except OnnxPruneError as err:
            if "[train]" not in (err.fix or ""):
                raise
            missing = str(err)
        done = cuts[0]
        small = trained[0].model if trained else done.model
        save(small, output)
        slow, fast = bench([model, small], runs=200, warmup=20)
    if as_json:
        show.emit_json(
            {
                **show.compiled_document(done, str(output)),
                "accuracy": {"before": vars(before), "after": vars(evaluate(done.model, test))},
                "retrained": [
                    {"macs": share, "as_cut": vars(t.as_cut), "after": vars(t.after), "seconds": t.seconds}
                    for share, t in zip((HALF, HARD), trained, strict=False)
                ],
                "latency": {"before": slow.as_dict(), "after": fast.as_dict()},
            }
        )
        return
    accuracy = ["accuracy (top-1)", show.percent(before.top1), show.percent(evaluate(small, test).top1), ""]
    _table(done, accuracy, slow.latency.median, fast.latency.median)
    _story(done, cuts[1], trained, missing, str(output))


def _retrained(cut: Model, teacher: Model, train: Data, test: Data, tick: show.Progress) -> Trained:
    from onnxprune.training import Settings, retrain

    settings = Settings(epochs=EPOCHS, batch=64, lr=0.05, schedule="onecycle", device="cpu", threads=1)
    done = retrain(cut, train, teacher=teacher, settings=settings, progress=tick)
    return Trained(done.model, evaluate(cut, test), evaluate(done.model, test), sum(e.seconds for e in done.history))


def _table(done: Compiled, accuracy: list[str], slow: float, fast: float) -> None:
    rows: list[list[Any]] = [accuracy]
    for label, what, fmt in (("MACs", "macs", show.count), ("parameters", "params", show.count),
                             ("weights", "bytes", show.size)):  # fmt: skip
        a, b = getattr(done.before, what), getattr(done.after, what)
        rows.append([label, fmt(a), fmt(b), show.percent(b / a)])
    rows.append(["latency (1 image, 1 thread)", show.seconds(slow), show.seconds(fast), show.percent(fast / slow)])
    groups = sum(bool(r.removed) for r in done.plan.groups.values())
    title = f"digits CNN: {done.plan.removed} channels of {groups} groups removed by dscore"
    show.table(title, ["", "before", "after", "kept"], rows)


def _story(done: Compiled, hard: Compiled, trained: list[Trained], missing: str | None, name: str) -> None:
    print(show.proof_line(done.verification))
    if missing is not None:
        print(f"\nnot retrained: {missing}")
    else:
        rows = [
            [show.percent(c.after.macs / c.before.macs), show.percent(t.as_cut.top1), show.percent(t.after.top1),
             show.seconds(t.seconds)]
            for c, t in zip((done, hard), trained, strict=True)
        ]  # fmt: skip
        print()
        title = f"retrained, {EPOCHS} epochs, distilled"
        show.table(title, ["MACs kept", "as cut", "retrained", "training took"], rows)
        print("This network was trained to carry weak filters: half of it goes for nothing.")
        print("Yours will lose accuracy as the harder cut does, and win it back the same way.")
    print(f"\nwritten: {name}\nwhat to try next:")
    print(f"  onnxprune inspect {name}")
    print("  onnxprune prune your-model.onnx -o small.onnx --target macs=0.5")
    print("  onnxprune retrain small.onnx --teacher your-model.onnx --data DATA -o out.onnx")
    print("  onnxprune bench your-model.onnx out.onnx")
