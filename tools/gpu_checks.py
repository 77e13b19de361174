"""Steps of tools/gpu_checks.sh: each writes one JSON file, and `collect` joins them.

    python tools/gpu_checks.py machine|sensitivity|bench|retrain cuda|cpu OUT.json
    python tools/gpu_checks.py collect cuda|cpu FOLDER OUT.json

On "cpu" every step runs small, as a rehearsal of the script.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
from structures import OUT, tests_module

import onnxprune as op
from onnxprune.execution.sessions import import_onnxruntime
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save
from onnxprune.latency.layers import profile_layers
from onnxprune.latency.runtimes import make_runtime
from onnxprune.planning.sensitivity_sweep import sensitivity

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "models" / "digits_cnn.onnx"
STEPS = ("tests", "machine", "sensitivity", "bench", "retrain")
TOLERANCE = 0.01  # TF32 may turn decisions near a tie
_TAIL = 2000  # characters of a failed step's output


def machine(device: str) -> dict[str, Any]:
    """Return versions, providers and the GPU."""
    ort = import_onnxruntime()
    found: dict[str, Any] = {
        "onnxprune": op.__version__, "onnxruntime": ort.__version__, "providers": ort.get_available_providers(),
    }  # fmt: skip
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as err:
        found["gpu"] = f"none: {err}"
    return found


def sensitivity_curves(device: str) -> dict[str, Any]:
    """Measure the curves of the demo model on the device and on the CPU, and compare all points."""
    data = op.load_data("digits") if device != "cpu" else op.load_data("digits", images=200)
    scores = op.score(op.analyze(DIGITS), "l1")
    ratios = (0.25, 0.5, 0.75)
    curves, seconds = {}, {}
    for where in ("cpu", device):
        start = time.monotonic()
        curves[where] = sensitivity(scores, data, ratios=ratios, device=where)
        seconds[where] = time.monotonic() - start
    apart = [
        abs(a.value - b.value)
        for name, curve in curves["cpu"].groups.items()
        for a, b in zip(curve.points, curves[device].groups[name].points, strict=True)
    ]
    if max(apart) > TOLERANCE:
        raise SystemExit(f"the curves differ by {max(apart):.4f}")
    return {"points": len(apart), "largest_difference": max(apart), "seconds": seconds,
            "provider": curves[device].settings["provider"]}  # fmt: skip


def half(model: op.Model, path: Path) -> op.Model:
    """Return a copy in float16, with inputs and outputs in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    save(model, path)
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
    return load(path)


def bench(device: str) -> dict[str, Any]:
    """Measure ResNet-50 in float32 and float16, original and pruned to half of its MACs, in every provider."""
    name = "resnet50.ts" if device != "cpu" else "mobilenet_v2.ts"
    model = tests_module().filled(OUT / f"{name}.onnx.xz")
    block = 8
    pruned = op.prune(
        model, target="macs=0.5", criterion="l2", constraints=op.Constraints(round_to=block), verify=False
    )
    out: dict[str, Any] = {"model": name, "macs": pruned.after.ratio(pruned.before, "macs"), "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"float32": [model, pruned.model]}
        if device != "cpu":
            kinds["float16"] = [half(m, Path(folder) / f"{i}.onnx") for i, m in enumerate(kinds["float32"])]
        for provider in ("cpu",) if device == "cpu" else ("cuda", "tensorrt"):
            try:
                runtime = make_runtime(f"onnxruntime:{provider}")
            except op.OnnxPruneError as err:
                out["runs"].append({"provider": provider, "error": str(err)})
                continue
            for kind, models in kinds.items():
                for batch in (1,) if device == "cpu" else (1, 32):
                    out["runs"].append(_benched(runtime, provider, kind, models, batch, device))
    return out


def _benched(runtime: Any, provider: str, kind: str, models: list[op.Model], batch: int, device: str) -> dict[str, Any]:
    row: dict[str, Any] = {"provider": provider, "type": kind, "batch": batch}
    try:
        runs = 5 if device == "cpu" else 50
        before, after = op.bench(models, runtime=runtime, batch=batch, runs=runs, warmup=2 if device == "cpu" else 10)
    except op.OnnxPruneError as err:
        return {**row, "error": str(err)}
    row |= {"before": before.latency.median, "after": after.latency.median, "speedup": after.speedup,
            "ran": after.provider}  # fmt: skip
    if batch == 1 and kind == "float32":
        row["layers"] = profile_layers(models[0], models[1], runtime, runs=5).summary()
    return row


def retrain(device: str) -> dict[str, Any]:
    """Retrain the pruned demo model for one epoch on the device."""
    data = op.load_data("digits") if device != "cpu" else op.load_data("digits", images=200)
    pruned = op.prune(DIGITS, target="macs=0.5", criterion="l2", constraints=op.Constraints(round_to=8))
    start = time.monotonic()
    before = op.evaluate(pruned.model, data)
    trained = op.retrain(pruned.model, data=data, settings=op.Settings(epochs=1, device=device, seed=0))
    after = op.evaluate(trained.model, data)
    return {"seconds": time.monotonic() - start, "top1": [before.top1, after.top1], "device": device}


def collect(device: str, folder: Path) -> dict[str, Any]:
    """Return the results of all steps, with the last lines of those that failed."""
    out: dict[str, Any] = {"device": device, "steps": {}}
    for name in STEPS:
        state = folder / f"{name}.step"
        found: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {"status": None}
        result, log = folder / f"{name}.json", folder / f"{name}.log"
        if result.exists():
            found["result"] = json.loads(result.read_text())
        if log.exists() and (found["status"] or name == "tests"):
            found["output"] = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        out["steps"][name] = found
    out["passed"] = all(s["status"] == 0 for s in out["steps"].values())
    return out


RUN: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "machine": machine, "sensitivity": sensitivity_curves, "bench": bench, "retrain": retrain,
}  # fmt: skip


def main() -> None:
    """Run one step."""
    step, device, *rest = sys.argv[1:]
    if step == "collect":
        found = collect(device, Path(rest[0]))
        Path(rest[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print("passed" if found["passed"] else "failed", rest[1])
        sys.exit(0 if found["passed"] else 1)
    Path(rest[0]).write_text(json.dumps(RUN[step](device), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
