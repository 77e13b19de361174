"""Compare onnxprune with Torch-Pruning and onnxsim: MACs removed, whether the result runs and is right, accuracy.

    pip install torch-pruning onnxsim
    python tools/bench_peers.py exports --out peers.json            # torchvision, random weights
    python tools/bench_peers.py trained RESNET.onnx DATA.npz --out peers.json
    python tools/bench_peers.py page peers.json docs/comparison.md  # the tables of the page

Every tool is asked for half of the MACs of every model, in a process of its own. onnxprune and Torch-Pruning have a
target or a loop that ends at one; onnxsim has a share of channels, so the share nearest to half of the MACs is searched
for. Torch-Pruning prunes the torch module, the others its ONNX export (TorchScript exporter, opset 17).

All results are measured alike: MACs by `onnxprune.analysis`, and *equal* means that the result computes what the
original computes with the same channels masked (weights that read them set to zero; largest difference relative to the
largest output, at most 1e-3). The removed channels are found from the weights: every tool copies remaining weights, so
each value of a pruned weight has its place in the original one. `trained` takes CIFAR ResNets as ONNX files with folded
BatchNormalization, and x, y as float32 NCHW images and labels; the first 1,000 images calibrate, the others evaluate.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

import onnxprune as op
from onnxprune.analysis.cost import CostModel
from onnxprune.execution.sessions import Session

Array = NDArray[Any]
TOOLS = ("onnxprune", "torch-pruning", "onnxsim")
PACKAGES = ("onnxprune", "torch-pruning", "onnxsim", "onnx", "onnxruntime", "torch", "torchvision")
MODELS = (
    "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5", "squeezenet1_0", "shufflenet_v2_x1_0",
    "mobilenet_v2", "mnasnet0_75", "regnet_y_400mf", "mobilenet_v3_large", "lraspp_mobilenet_v3_large", "mnasnet1_0",
    "shufflenet_v2_x1_5", "regnet_x_400mf", "efficientnet_b0", "resnet18", "mnasnet1_3", "regnet_y_800mf",
    "regnet_x_800mf", "googlenet", "shufflenet_v2_x2_0", "efficientnet_b1", "densenet121", "regnet_x_1_6gf",
    "efficientnet_b2", "regnet_y_1_6gf", "resnet34", "deeplabv3_mobilenet_v3_large", "efficientnet_b3", "resnet50",
    "resnext50_32x4d", "inception_v3", "densenet169", "regnet_x_3_2gf", "regnet_y_3_2gf", "efficientnet_v2_s",
    "convnext_tiny", "swin_t", "swin_v2_t", "fcn_resnet50", "deeplabv3_resnet50", "resnet101", "maxvit_t",
    "wide_resnet50_2", "vit_b_32", "vgg11",
)  # fmt: skip
"""Models of torchvision, the smallest first."""
HALF = 0.5
STEPS = 20  # of Torch-Pruning, until half of the MACs are left
TOLERANCE = 1e-3
VALUES = 12  # that identify a slice of a weight
CALIBRATION = 1000
TIMEOUT = 600  # CPU seconds of one tool on one export, unless --timeout gives others
TOGETHER = 8  # exports that share a process


# ----------------------------------------------------------------------------------------------------- common figures


def macs_of(model: onnx.ModelProto) -> int:
    """Return the MACs of one sample."""
    return CostModel(op.analyze(op.load(model))).baseline.macs


def feeds_of(model: onnx.ModelProto, samples: int = 2) -> dict[str, Array]:
    """Return random inputs."""
    rng = np.random.default_rng(1)
    (given,) = model.graph.input[:1]
    dims = [d.dim_value or samples for d in given.type.tensor_type.shape.dim]
    return {given.name: rng.standard_normal(dims).astype(np.float32)}


def weights_of(model: onnx.ModelProto) -> dict[str, tuple[Array, int]]:
    """Return weight and number of groups of every layer, by the layer's first output."""
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    out = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.input[1] in arrays:
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            out[node.output[0]] = arrays[node.input[1]], groups
    return out


def kept_places(before: Array, after: Array, axis: int) -> Array | None:
    """Return the index in `before` of every remaining index of an axis; None if its values are no copies.

    A value may be in several places: the places of several values of a slice have one index in common.
    """
    flat = before.ravel()
    order = np.argsort(flat, kind="stable")
    ranked = flat[order]
    found = []
    for i in range(after.shape[axis]):
        values = np.take(after, i, axis).ravel()
        values = values[np.linspace(0, len(values) - 1, min(VALUES, len(values))).astype(int)]
        rows: set[int] | None = None
        for value in values:
            span = slice(np.searchsorted(ranked, value, "left"), np.searchsorted(ranked, value, "right"))
            own = set(np.unravel_index(order[span], before.shape)[axis].tolist())
            rows = own if rows is None else rows & own
        if not rows or len(rows) != 1:
            return None
        found.append(rows.pop())
    return np.array(found)


def masked(before: onnx.ModelProto, after: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the original with the weights zeroed that read removed channels; None if they cannot be told."""
    result = onnx.ModelProto()
    result.CopyFrom(before)
    arrays = {i.name: i for i in result.graph.initializer}
    left, known = list(weights_of(after).values()), weights_of(before)
    nodes = [n for n in result.graph.node if n.output[0] in known]
    if len(left) != len(nodes):
        return None
    zeroed = 0
    for node, (small, left_groups) in zip(nodes, left, strict=True):
        tensor = arrays[node.input[1]]
        full, groups = known[node.output[0]]
        if full.shape == small.shape:
            continue
        axis = _read_axis(node)
        if full.ndim != small.ndim or (groups > 1 and node.op_type == "ConvTranspose"):
            return None
        if full.shape[axis] == small.shape[axis]:
            continue  # of a grouped layer whole groups are removed, if any: the layers that read it are masked
        changed = _zeroed_groups(full, small, groups, left_groups) if groups > 1 else _zeroed(full, small, axis)
        if changed is None:
            return None
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        zeroed += 1
    return result if zeroed else None


def _zeroed(full: Array, small: Array, axis: int) -> Array | None:
    """Return a weight with zeros at the indices of an axis that a smaller copy of it lacks."""
    kept = kept_places(full, small, axis)
    if kept is None:
        return None
    changed = np.array(full)
    removed = np.setdiff1d(np.arange(full.shape[axis]), kept)
    changed[tuple(removed if i == axis else slice(None) for i in range(full.ndim))] = 0
    return changed


def _zeroed_groups(full: Array, small: Array, groups: int, left: int) -> Array | None:
    """Return the weight of a grouped convolution with zeros at removed inputs, which may differ between groups."""
    before = full.reshape(groups, -1, *full.shape[1:])
    after = small.reshape(left, -1, *small.shape[1:])
    where = np.arange(groups) if left == groups else kept_places(before, after, 0)
    changed = np.array(before)
    for i, group in enumerate(() if where is None else where):
        one = _zeroed(before[group], after[i], 1)
        if one is None:
            return None
        changed[group] = one
    return None if where is None else changed.reshape(full.shape)


def _read_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Conv":
        return 1
    if node.op_type == "Gemm" and next((a.i for a in node.attribute if a.name == "transB"), 0):
        return 1
    return 0


def figures(before: onnx.ModelProto, after: onnx.ModelProto, base: int) -> dict[str, Any]:
    """Return the share of the original's MACs, whether the result runs, and its difference from the masked original."""
    out: dict[str, Any] = {"macs": macs_of(after) / base, "runs": False, "difference": None}
    feed = feeds_of(before)
    name = after.graph.input[0].name
    try:
        results = Session(after).run({name: next(iter(feed.values()))})
    except op.OnnxPruneError as err:
        return {**out, "error": str(err).splitlines()[0][:200]}
    out["runs"] = True
    reference = masked(before, after)
    if reference is not None:
        expected = Session(reference).run(feed)
        worst = max(
            float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-12))
            for a, b in zip(results, expected, strict=True)
        )
        out["difference"] = worst if np.isfinite(worst) else None
    return out


# ---------------------------------------------------------------------------------------------------------- the tools


def by_onnxprune(path: Path, data: Array | None = None) -> onnx.ModelProto:
    """Prune with our defaults: `l2` without data, `obs` with it."""
    done = op.prune(path, target=f"macs={HALF}", data=None if data is None else data, recover=False)
    return op.to_proto(done.model)


def by_onnxsim(path: Path, data: Array | None = None) -> onnx.ModelProto:
    """Simplify, then prune with the share of channels whose MACs are nearest to half."""
    import onnxsim
    from onnxsim import pruning

    simple, _ = onnxsim.simplify(onnx.load(path))
    base, best, low, high, share = macs_of(simple), None, 0.0, 0.95, HALF
    for _ in range(4):
        if data is None:
            made = pruning.apply_structured_pruning(simple, sparsity=share)
        else:
            feeds = [{simple.graph.input[0].name: data[i : i + 50]} for i in range(0, len(data), 50)]
            made = pruning.apply_structured_wanda_pruning(simple, calibration_data=feeds, sparsity=share)
        kept = macs_of(made) / base
        if best is None or abs(kept - HALF) < abs(best[0] - HALF):
            best = kept, made
        if abs(kept - HALF) < 0.02:
            break
        low, high = (share, high) if kept > HALF else (low, share)
        share = (low + high) / 2
    assert best is not None
    return best[1]


def by_torch_pruning(module: Any, inputs: Any, ignored: list[Any] | None = None) -> Any:
    """Return a module pruned step by step until half of the MACs remain, as the library's own examples do."""
    import torch
    import torch_pruning as tp
    from torch import nn

    model = copy.deepcopy(module).eval()
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
    base, _ = tp.utils.count_ops_and_params(model, inputs[:1])
    pruner = tp.pruner.MagnitudePruner(
        model, inputs, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=1.0, iterative_steps=STEPS,
        ignored_layers=ignored if ignored is not None else last, global_pruning=False,
    )  # fmt: skip
    for _ in range(STEPS):
        pruner.step()
        now, _ = tp.utils.count_ops_and_params(model, inputs[:1])
        if now <= HALF * base:
            with torch.no_grad():
                model(inputs)
            break
    return model


def export(module: Any, inputs: Any, path: Path) -> onnx.ModelProto:
    """Write and read the ONNX export of a module."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (inputs,), str(path), dynamo=False, opset_version=17, input_names=["input"],
            dynamic_axes={"input": {0: "batch"}},
        )  # fmt: skip
    return onnx.load(path)


def built(name: str) -> tuple[Any, Any]:
    """Return a torchvision model with random weights that make comparisons meaningful, and its inputs."""
    import torch
    from zoo_build import _vision, randomise
    from zoo_catalogue import catalogue

    entry = next(e for e in catalogue() if e.name == f"{name}.ts")
    torch.manual_seed(0)
    module, inputs = _vision(entry)
    module.eval()
    randomise(module, inputs, 0)
    return module, inputs[0]


def one_export(name: str, timeout: int) -> None:
    """Print the figures of every tool on one torchvision model, a line each."""
    import torch

    torch.set_num_threads(1)
    module, inputs = built(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        before = export(module, inputs, path)
        base = macs_of(before)

        def torch_pruning() -> onnx.ModelProto:
            return export(by_torch_pruning(module, inputs), inputs, Path(folder) / "pruned.onnx")

        for tool, run in zip(TOOLS, (lambda: by_onnxprune(path), torch_pruning, lambda: by_onnxsim(path)), strict=True):
            start = time.perf_counter()
            try:
                with within(timeout):
                    after = run()
                    took = time.perf_counter() - start
                    found = {**figures(before, after, base), "seconds": took}
            except TimeoutError as err:
                found = {"error": str(err)}
            except Exception as err:  # of any kind: the libraries'
                found = {"error": f"{type(err).__name__}: {(str(err).splitlines() or [''])[0]}"[:200]}
            click.echo(json.dumps({"model": name, "tool": tool, **found}))


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes more CPU time: other work on the machine must not stop a tool."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s of CPU")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def one_trained(model: Path, data: Path, tool: str) -> dict[str, Any]:
    """Return the figures of one tool on a trained model: accuracy of the original, as cut, and after recovery."""
    import torch

    torch.set_num_threads(1)
    with np.load(data, allow_pickle=False) as arrays:
        x, y = np.ascontiguousarray(arrays["x"], np.float32), np.asarray(arrays["y"], np.int64)
    fit, rest, labels = x[:CALIBRATION], x[CALIBRATION:], y[CALIBRATION:]

    def accuracy(proto: onnx.ModelProto) -> float:
        session, hits = Session(proto), 0
        for i in range(0, len(rest), 100):
            logits = session.run({proto.graph.input[0].name: rest[i : i + 100]})[0]
            hits += int((logits.argmax(1) == labels[i : i + 100]).sum())
        return hits / len(rest)

    before = onnx.load(model)
    start = time.perf_counter()
    out: dict[str, Any] = {"images": len(rest), "original": accuracy(before), "recovered": None}
    if tool == "onnxprune":
        done = op.prune(model, target=f"macs={HALF}", data=fit, recover=False)
        after = op.to_proto(done.model)
        recovered = op.recover(model, done.model, done.plan, data=fit, verify=False)
        out["recovered"] = accuracy(op.to_proto(recovered.model))
    elif tool == "onnxsim":
        import onnxsim
        from onnxsim.bn_recovery import recover_batch_norm
        from onnxsim.finetune import apply_pruning_finetune

        after = by_onnxsim(model, fit)
        feeds = [{before.graph.input[0].name: fit[i : i + 50]} for i in range(0, len(fit), 50)]
        simple, _ = onnxsim.simplify(before)
        tuned = apply_pruning_finetune(simple, after, calibration_data=feeds)
        normed = recover_batch_norm(tuned, calibration_data=feeds, target_model=simple)
        out["recovered"] = max(accuracy(tuned), accuracy(normed))
    else:
        from torch_pruning_sweep import from_onnx

        module = from_onnx(model)
        inputs = torch.from_numpy(fit[:1])
        after = _pruned_resnet(module, inputs, out)
    out["as_cut"] = accuracy(after)
    return {**out, **figures(before, after, macs_of(before)), "seconds": time.perf_counter() - start}


def _pruned_resnet(module: Any, inputs: Any, out: dict[str, Any]) -> onnx.ModelProto:
    """Prune a CIFAR ResNet with Torch-Pruning; if padded shortcuts break it, only the inner layers of its blocks."""
    from torch import nn

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        try:
            return export(by_torch_pruning(module, inputs), inputs, path)
        except Exception as err:  # of any kind: the library's
            out["note"] = f"only inner layers, because otherwise: {type(err).__name__}: {str(err)[:120]}"
        ignored = [
            m for n, m in module.named_modules()
            if isinstance(m, nn.Conv2d | nn.Linear) and not n.endswith("conv1")
        ]  # fmt: skip
        names = {id(m): n for n, m in module.named_modules()}
        kept = {names[id(m)] for m in ignored}
        fresh = copy.deepcopy(module)
        return export(by_torch_pruning_ignoring(fresh, inputs, kept), inputs, path)


def by_torch_pruning_ignoring(module: Any, inputs: Any, names: set[str]) -> Any:
    """Prune with layers left out by name, because the library gets a copy of the module."""
    import torch_pruning as tp

    base, _ = tp.utils.count_ops_and_params(module, inputs)
    pruner = tp.pruner.MagnitudePruner(
        module, inputs, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=1.0, iterative_steps=STEPS,
        ignored_layers=[m for n, m in module.named_modules() if n in names],
    )  # fmt: skip
    for _ in range(STEPS):
        pruner.step()
        if tp.utils.count_ops_and_params(module, inputs)[0] <= HALF * base:
            break
    return module


# -------------------------------------------------------------------------------------------------------- the command


def versions() -> dict[str, str]:
    """Return the versions of everything compared."""
    out = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "absent"
    return out


def results_of(out: Path) -> dict[str, Any]:
    """Return the results that a file has."""
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["results"] if out.exists() else {}
    return found


def in_child(out: Path, *words: str) -> None:
    """Run measurements in a process of their own, and add their figures to the file as they come."""
    command = [sys.executable, __file__, "one", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for text in child.stdout:
            if not text.startswith("{"):
                continue
            line = json.loads(text)
            results = results_of(out)
            results.setdefault(line.pop("model"), {})[line.pop("tool")] = line
            document = {"versions": versions(), "results": results}
            out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            click.echo(text.strip())
        if child.wait() != 0:
            assert child.stderr is not None
            click.echo(f"{words}: exit status {child.returncode}: {child.stderr.read()[-500:]}")


@click.group(help=__doc__)
def main() -> None:
    """Hold the subcommands."""


@main.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("peers.json"), show_default=True)
@click.option("--timeout", type=int, default=TIMEOUT, show_default=True, help="CPU seconds of one tool on one model.")
def exports(names: tuple[str, ...], out: Path, timeout: int) -> None:
    """Measure torchvision models with random weights."""
    todo = [n for n in names or MODELS if n not in results_of(out)]
    for start in range(0, len(todo), TOGETHER):
        in_child(out, "export", str(timeout), *todo[start : start + TOGETHER])


@main.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("peers.json"), show_default=True)
def trained(models: tuple[Path, ...], data: Path, out: Path) -> None:
    """Measure trained CIFAR ResNets."""
    for model in models:
        if f"trained:{model.stem}" not in results_of(out):
            in_child(out, "trained", str(model), str(data))


@main.command()
@click.argument("results", type=click.Path(exists=True, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def page(results: Path, target: Path) -> None:
    """Write the page of the comparison from the results."""
    document = json.loads(results.read_text(encoding="utf-8"))
    target.write_text(page_of(document["versions"], document["results"]), encoding="utf-8")


FIGURE = (
    "![MACs kept by the three tools on each export; results that do not run or are not equal stand at the right]"
    "(pictures/comparison.svg)"
)  # drawn by tools/figures.py from the table
PAGE = """# Side by side

{summary}

{tools} in one run over {count} exports of torchvision and trained ResNets: each was asked for half of the MACs of each
model, in its own way. *Equal* means that the result computes what the original computes with the same channels masked
(largest difference relative to the largest output at most 1e-3, on random inputs).

## Exports with random weights

{figure}

MACs kept, and what is wrong with the result if anything is.

{exports}

{missing}

## Trained models

Top-1 on {images} images of CIFAR-10's test set (original pixels). onnxprune and onnxsim have the same {calibration:,}
unlabelled training images for choosing and recovering; *recovered* is by the tool's own means without training: least
squares here, `apply_pruning_finetune` and `recover_batch_norm` (the better of them) in onnxsim, none in Torch-Pruning.
`apply_pruning_finetune` re-solves MatMul and Gemm only, and in these networks only the classifier is one.

{trained}

{notes}

## Commands

<!-- not run: installs other tools, and takes hours -->

```
pip install torch-pruning onnxsim
python tools/bench_peers.py exports --out tools/peers.json
python tools/bench_peers.py trained RESNET.onnx DATA.npz --out tools/peers.json
python tools/bench_peers.py page tools/peers.json docs/comparison.md
```

- **Torch-Pruning** prunes the torch module: `MagnitudePruner`, group l2, `pruning_ratio=1.0` in {steps} or 40 steps
  until half of the MACs remain, the last layer ignored, as its examples do; the result is exported again. No forward
  pass was edited.
- **onnxsim**: `simplify`, then `apply_structured_pruning` (with data `apply_structured_wanda_pruning`) with the
  `sparsity` whose MACs are nearest to half, of four by bisection. It runs on the same file as onnxprune.
- **onnxprune**: `onnxprune prune --target macs=0.5`, `l2` without data, `obs` and recovery with it.

{versions}
"""


def page_of(versions_: dict[str, str], results: dict[str, Any]) -> str:
    """Return the page."""
    rows = {k: v for k, v in results.items() if not k.startswith("trained:") and len(v) == len(TOOLS)}
    trained_ = {k.removeprefix("trained:"): v for k, v in results.items() if k.startswith("trained:")}
    exports_ = [[name, *(_cell(found[tool]) for tool in TOOLS)] for name, found in rows.items()]
    accuracy, notes = [], []
    for name, found in trained_.items():
        for tool in TOOLS:
            one = found[tool]
            if "error" in one and "as_cut" not in one:
                accuracy.append([name, tool, one["error"], "", "", ""])
                continue
            shown = [f"{100 * v:.1f} %" if (v := one.get(k)) is not None else "none" for k in ("as_cut", "recovered")]
            accuracy.append([name, tool, f"{100 * one['macs']:.1f} %", f"{100 * one['original']:.1f} %", *shown])
            if "note" in one:
                notes.append(f"{tool} on {name}: {one['note']}.")
    counts = []
    for tool in TOOLS:
        good = [r[tool] for r in rows.values() if _right(r[tool])]
        halved = [r for r in good if r["macs"] <= HALF + 0.05]
        counts.append(f"**{tool}** halved {len(halved)} of {len(rows)} exports with a result that runs and is equal")
    left = [m for m in MODELS if m not in rows]
    missing = f"Not measured yet, for want of CPU time: {', '.join(left)}." if left else ""
    some = next((f for v in trained_.values() for f in v.values() if "images" in f), {"images": 0})
    return PAGE.format(
        summary="; ".join(counts) + ".", tools="All three", count=len(rows), images=f"{some['images']:,}",
        calibration=CALIBRATION, steps=STEPS, figure=FIGURE, missing=missing,
        exports=_table(["model", *TOOLS], exports_),
        trained=_table(["model", "tool", "MACs kept", "original", "pruned", "recovered"], accuracy),
        notes="\n".join(notes), versions=", ".join(f"{k} {v}" for k, v in versions_.items()) + ".",
    )  # fmt: skip


def _right(found: dict[str, Any]) -> bool:
    return bool(found.get("runs")) and found.get("difference") is not None and found["difference"] <= TOLERANCE


def _cell(found: dict[str, Any]) -> str:
    if "macs" not in found:
        return found["error"].replace("|", "/")[:80]
    share = f"{100 * found['macs']:.1f} %"
    if not found["runs"]:
        return f"{share}, does not run"
    if found["difference"] is None:
        return f"{share}, not compared"
    return share if _right(found) else f"{share}, differs by {found['difference']:.0e}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *rows])


@main.command(hidden=True)
@click.argument("kind")
@click.argument("words", nargs=-1)
def one(kind: str, words: tuple[str, ...]) -> None:
    """Measure one tool on one model and print its figures; for `in_child`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    if kind == "export":
        for name in words[1:]:
            one_export(name, int(words[0]))
        return
    name = f"trained:{Path(words[0]).stem}"
    for tool in TOOLS:
        click.echo(json.dumps({"model": name, "tool": tool, **one_trained(Path(words[0]), Path(words[1]), tool)}))


if __name__ == "__main__":
    main()
