"""Compare compile costs with Torch-Pruning from PyPI, in one run on the same machine.

    pip install torch torchvision torch-pruning
    python tools/bench_compile.py FOLDER [-m NAME ...] [-o out.json]

FOLDER holds NAME.ts.onnx, torchvision's models as torch.onnx.export (TorchScript) writes them. Every model has a
process of its own with a time limit; both sides use one thread, are measured in turn, and medians of CPU time count.

1. Analysis against Torch-Pruning's DependencyGraph().build_dependency alone and with all groups; beside it the part
   that is coupling, `walk` + `assemble`. Shapes, which we infer, Torch-Pruning sees by running the model.
2. Work: load, analyse, score (l2), plan (macs=0.5), strip and save from file to file, without verification, against
   Torch-Pruning's MagnitudePruner (MagnitudeImportance p=2, pruning_ratio 0.3) built and stepped in memory.
3. Start-up: CPU time of `python -m onnxprune --help` and `inspect`.
4. Peak memory of `prune --no-verify` against the size of the file.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import rich
from rich.table import Table

MODELS = (
    "resnet18", "resnet50", "resnext50_32x4d", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_large", "densenet121",
    "googlenet", "inception_v3", "squeezenet1_1", "efficientnet_b0", "regnet_y_400mf", "mnasnet1_0", "convnext_tiny",
    "fcn_resnet50", "deeplabv3_resnet50", "shufflenet_v2_x1_0", "vit_b_32", "swin_t", "maxvit_t",
)  # fmt: skip
MEMORY = ("resnet50", "vgg16_bn", "vit_b_32")
SMALL = "squeezenet1_1"
BUDGET = 15.0  # seconds of repeats per measurement
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Times = dict[str, list[float]]


def timed(call: Callable[[], Any], times: Times, name: str) -> Any:
    """Run once; add CPU seconds under the name, wall seconds under `name wall`."""
    cpu, wall = time.process_time(), time.perf_counter()
    out = call()
    times.setdefault(name, []).append(time.process_time() - cpu)
    times.setdefault(f"{name} wall", []).append(time.perf_counter() - wall)
    return out


# --------------------------------------------------------------------------------------------- one model, one process


def ours_coupling(path: Path, times: Times) -> int:
    """Analyse once and return the number of removable channels."""
    import onnxprune as op
    from onnxprune._utils.processes.gc_pause import gc_paused
    from onnxprune.analysis.coupling import assemble, walk
    from onnxprune.analysis.shapes.shape_inference import known_or_witness
    from onnxprune.passes import NORMALIZE, Pipeline

    model = op.load(path)
    analysis = timed(lambda: op.analyze(model), times, "analyze")
    normal = Pipeline(NORMALIZE).run(model)
    seen = known_or_witness(normal.model, normal.shapes)
    with gc_paused():  # as in analyze
        timed(lambda: assemble(normal.model, seen, walk(normal.model, seen), source=model), times, "coupling")
    return int(analysis.count - 1)


def ours_work(path: Path, times: Times) -> None:
    """Prune from file to file."""
    import onnxprune as op

    def work(out: Path) -> None:
        model = op.load(path)
        analysis = op.analyze(model)
        plan = op.plan(op.score(analysis, "l2"), op.Target(macs=0.5))
        op.save(op.compile_plan(model, plan, analysis=analysis, check=False).model, out)

    with tempfile.TemporaryDirectory() as folder:
        timed(lambda: work(Path(folder) / "out.onnx"), times, "work")


def torch_model(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """Return a torchvision model with random weights, its input, and Torch-Pruning's options for it."""
    import torch
    from torchvision.models import get_model

    options: dict[str, Any] = {"weights": None}
    side = 224
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "transform_input": False, "init_weights": False}
        side = 299 if name == "inception_v3" else 224
    told = {}
    if name in ("fcn_resnet50", "deeplabv3_resnet50"):
        options["weights_backbone"] = None
        told["output_transform"] = lambda out: out["out"]
    torch.manual_seed(0)
    return get_model(name, **options).eval(), torch.randn(1, 3, side, side), told


def theirs_coupling(name: str, times: Times) -> int:
    """Build Torch-Pruning's graph once, list all groups and return their number."""
    import torch_pruning as tp

    model, example, told = torch_model(name)
    graph = tp.DependencyGraph()
    timed(lambda: graph.build_dependency(model, example, **told), times, "tp graph")
    return len(timed(lambda: list(graph.get_all_groups()), times, "tp groups"))


def theirs_work(name: str, times: Times) -> None:
    """Prune in memory, without the classifier."""
    import torch
    import torch_pruning as tp

    model, example, told = torch_model(name)
    classes = 21 if told else 1000
    last = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == classes]

    def work() -> None:
        pruner = tp.pruner.MagnitudePruner(
            model,
            example,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.3,
            global_pruning=False,
            ignored_layers=last,
            **told,
        )
        pruner.step()

    timed(work, times, "tp work")
    with torch.no_grad():
        model(example)  # not timed: check that the pruned model runs


def one_model(path: Path, name: str, repeats: int) -> None:
    """Measure one model and print its figures as JSON, line by line, so that a kill loses only later ones."""
    import torch

    torch.set_num_threads(1)
    import torch_pruning  # noqa: F401  imports are not what is measured

    import onnxprune.pipeline  # noqa: F401

    gc.collect()
    gc.freeze()  # exclude the objects of imports (torch: many) from garbage collection while either side is timed

    steps: dict[str, Callable[[Times], Any]] = {
        "channels": lambda t: ours_coupling(path, t),
        "file to file": lambda t: ours_work(path, t),
        "tp groups": lambda t: theirs_coupling(name, t),
        "tp work": lambda t: theirs_work(name, t),
    }
    spent = dict.fromkeys(steps, 0.0)
    times: Times = {}
    for i in range(repeats):
        for step, call in list(steps.items()):
            if i and spent[step] * (i + 1) / i > BUDGET:
                continue
            start = time.perf_counter()
            try:
                found = call(times)
            except Exception as err:  # a failure of either side is a result
                text = f"{type(err).__name__}: {err}".splitlines()[0][:150]
                print(json.dumps({"failure": {step: text}}), flush=True)
                del steps[step]
                continue
            spent[step] += time.perf_counter() - start
            if isinstance(found, int):
                print(json.dumps({"found": {step: found}}), flush=True)
            print(json.dumps({"times": times}), flush=True)


# ------------------------------------------------------------------------------------------------------- the whole run


def run_model(folder: Path, name: str, repeats: int, limit: float) -> dict[str, Any]:
    """Return the figures of one model, from its own process."""
    command = [sys.executable, __file__, str(folder), "--one", name, "--repeats", str(repeats)]
    out: dict[str, Any] = {"times": {}, "failure": {}, "found": {}}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD}
    ) as process:
        try:
            text, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            text, errors = process.communicate()
            out["failure"]["limit"] = f"stopped after {limit:g} s"
    if process.returncode and "limit" not in out["failure"]:
        out["failure"]["process"] = (errors.strip().splitlines() or ["no message"])[-1][:150]
    for line in text.splitlines():
        for key, value in json.loads(line).items():
            out[key].update(value)
    out["median"] = {k: statistics.median(v) for k, v in out["times"].items()}
    return out


def child(command: list[str]) -> tuple[float, float, int]:
    """Return (CPU seconds, peak MiB, exit status) of a command. The peak includes this process, which is small."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **ONE_THREAD}
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, process.returncode


def start_up(folder: Path, repeats: int) -> dict[str, Any]:
    """Return CPU seconds of the smallest commands, beside those of the interpreter with the libraries."""
    commands = {
        "python -c pass": ["-c", "pass"],
        "import numpy, onnx": ["-c", "import numpy, onnx"],
        "onnxprune --help": ["-m", "onnxprune", "--help"],
        f"onnxprune inspect {SMALL}": ["-m", "onnxprune", "inspect", str(folder / f"{SMALL}.ts.onnx")],
    }
    runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, arguments in commands.items():
            runs[name].append(child([sys.executable, *arguments]))
    return {
        name: {"cpu": statistics.median(r[0] for r in found), "status": max(r[2] for r in found)}
        for name, found in runs.items()
    }


def memory(folder: Path, repeats: int) -> dict[str, Any]:
    """Return peak MiB of `prune --no-verify`, beside the file's and the bare interpreter's."""
    imports = "import onnxprune.pipeline, onnxprune.cli"
    out: dict[str, Any] = {"baseline": {"peak": child([sys.executable, "-c", imports])[1]}}
    for name in MEMORY:
        path = folder / f"{name}.ts.onnx"
        if not path.exists():
            continue
        with tempfile.TemporaryDirectory() as temporary:
            target = str(Path(temporary) / "out.onnx")
            command = ["-m", "onnxprune", "prune", str(path), "-o", target, "--target", "macs=0.5", "--no-verify"]
            runs = [child([sys.executable, *command]) for _ in range(repeats)]
        size = path.stat().st_size / 2**20
        peak = max(r[1] for r in runs)
        out[name] = {"file": size, "peak": peak, "ratio": peak / size, "status": max(r[2] for r in runs)}
    return out


def _ms(figures: dict[str, Any], *names: str) -> str:
    median = figures["median"]
    return f"{sum(median[n] for n in names) * 1e3:,.1f}" if all(n in median for n in names) else "-"


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """Return Torch-Pruning's time over ours: graph alone, graph with groups, whole work in CPU and wall time."""
    m = figures["median"]
    out = {}
    if "coupling" in m and "tp graph" in m:
        out["graph"] = m["tp graph"] / m["coupling"]
        out["graph, all included"] = m["tp graph"] / m["analyze"]
    if "coupling" in m and "tp groups" in m:
        out["graph + groups"] = (m["tp graph"] + m["tp groups"]) / m["coupling"]
    if "work" in m and "tp work" in m:
        out["work"] = m["tp work"] / m["work"]
        out["work wall"] = m["tp work wall"] / m["work wall"]
    return out


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    coupling = Table(
        "model", "analyze", "of which coupling", "TP graph", "+ groups", "x graph", "x all", "failures",
        title="Coupling analysis, CPU ms",
    )  # fmt: skip
    work = Table("model", "ours CPU", "wall", "TP CPU", "wall", "x CPU", "x wall", title="Whole work, ms")
    for name, figures in results["models"].items():
        found = figures["ratio"]
        coupling.add_row(
            name, _ms(figures, "analyze"), _ms(figures, "coupling"),
            _ms(figures, "tp graph"), _ms(figures, "tp graph", "tp groups"),
            *(f"{found[k]:.1f}" if k in found else "-" for k in ("graph", "graph, all included")),
            "; ".join(f"{k}: {v}" for k, v in figures["failure"].items()),
        )  # fmt: skip
        work.add_row(
            name, *(_ms(figures, k) for k in ("work", "work wall", "tp work", "tp work wall")),
            *(f"{found[k]:.2f}" if k in found else "-" for k in ("work", "work wall")),
        )  # fmt: skip
    rich.print(coupling, work)
    others = Table("what", "measured", "required", title="Start-up and memory")
    for name, f in results["start-up"].items():
        others.add_row(name, f"{f['cpu']:.2f} s CPU" if not f["status"] else "failed", "< 0.5 s" * ("prune" in name))
    for name, f in results["memory"].items():
        text = f"{f['peak']:.0f} MiB" + (f" = {f['ratio']:.2f} x {f['file']:.0f} MiB" if "ratio" in f else "")
        others.add_row(f"peak, {name}", text if not f.get("status") else "failed", "<= 3 x the file" * ("ratio" in f))
    rich.print(others)
    for key, what in results["summary"].items():
        rich.print(f"{key}: median {what['median']:.1f}, least {what['least']:.2f} ({what['where']})")


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-m", "--model", "models", multiple=True, help="Only these models.")
@click.option("--repeats", default=5, show_default=True, help="Runs of everything; medians count.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds for one model.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
@click.option("--one", hidden=True)
def main(
    folder: Path, models: tuple[str, ...], repeats: int, limit: float, output: Path | None, one: str | None
) -> None:
    """Run all parts and print tables."""
    if one:
        one_model(folder / f"{one}.ts.onnx", one, repeats)
        return
    results: dict[str, Any] = {"models": {}}
    for name in models or MODELS:
        if not (folder / f"{name}.ts.onnx").exists():
            rich.print(f"[yellow]{name}: no {name}.ts.onnx in the folder")
            continue
        figures = run_model(folder, name, repeats, limit)
        results["models"][name] = {**figures, "ratio": ratios(figures)}
        rich.print(f"{name}: {results['models'][name]['ratio'] or figures['failure']}")
    results["summary"] = {}
    for key in ("graph", "graph + groups", "graph, all included", "work", "work wall"):
        found = {n: f["ratio"][key] for n, f in results["models"].items() if key in f["ratio"]}
        if found:
            where = min(found, key=lambda n: found[n])
            middle = statistics.median(found.values())
            results["summary"][key] = {"median": middle, "least": found[where], "where": where, "models": len(found)}
    results["start-up"] = start_up(folder, repeats)
    results["memory"] = memory(folder, min(repeats, 2))
    show(results)
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
