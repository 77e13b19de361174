"""`onnxprune demo`: the main job on a model and data that ship, ending in one table."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from onnxprune import show
from onnxprune.bench import bench
from onnxprune.data import load_data
from onnxprune.evaluation import evaluate
from onnxprune.files import check_output
from onnxprune.model import load, save
from onnxprune.pipeline import analyze, compile_plan, plan, score
from onnxprune.targets import Target

MODEL = "digits_cnn.onnx"


def run(output: Path, as_json: bool = False) -> None:
    """Prunes the digits model to half its MACs with D-Score, verifies, evaluates and measures it.

    Raises:
        OnnxPruneError: scikit-learn is missing, or the output cannot be written.
    """
    check_output(output)
    data = load_data("digits:test")
    with resources.as_file(resources.files("onnxprune.models") / MODEL) as path:
        model = load(path)
        analysis = analyze(model)
        made = plan(score(model, analysis, "dscore"), Target(macs=0.5))
        done = compile_plan(model, made, analysis=analysis)
        save(done.model, output)
        before, after = evaluate(model, data), evaluate(done.model, data)
        slow, fast = bench([model, done.model], runs=200, warmup=20)
    if as_json:
        show.emit_json(
            {
                **show.compiled_document(done, str(output)),
                "accuracy": {"before": vars(before), "after": vars(after)},
                "latency": {"before": slow.as_dict(), "after": fast.as_dict()},
            }
        )
        return
    rows = [["accuracy (top-1)", show.percent(before.top1), show.percent(after.top1), ""]]
    for label, what, fmt in (("MACs", "macs", show.count), ("parameters", "params", show.count),
                             ("weights", "bytes", show.size)):  # fmt: skip
        a, b = getattr(done.before, what), getattr(done.after, what)
        rows.append([label, fmt(a), fmt(b), show.percent(b / a)])
    a, b = slow.latency.median, fast.latency.median
    rows.append(["latency (1 image, 1 thread)", show.seconds(a), show.seconds(b), show.percent(b / a)])
    groups = sum(bool(r.removed) for r in made.groups.values())
    show.table(
        f"digits CNN: {made.removed} channels of {groups} groups removed by dscore, no retraining",
        ["", "before", "after", "kept"],
        rows,
    )
    name = str(output)
    print(show.proof_line(done.verification))
    print("\nThis network was trained to carry weak filters, so nothing is lost here.")
    print("Yours will usually lose accuracy until it is retrained: see `evaluate`.")
    print(f"\nwritten: {name}\nwhat to try next:")
    print(f"  onnxprune inspect {name}")
    print("  onnxprune prune your-model.onnx -o small.onnx --target macs=0.5")
    print("  onnxprune bench your-model.onnx small.onnx")
