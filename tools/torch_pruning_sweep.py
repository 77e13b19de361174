"""Run the sweep of `onnxprune sensitivity` with Torch-Pruning from PyPI in eager PyTorch, for comparison.

    pip install torch torch-pruning
    python tools/torch_pruning_sweep.py MODEL.onnx DATA.npz [--ratios 0.05:0.95:0.05] [--threads 1] [-o out.json]

MODEL is a CIFAR ResNet with option-A shortcuts (Slice + Pad) and folded BatchNormalization; its weights are copied into
a torch module of the same architecture, and the logits of both are compared before anything is measured. DATA holds x
(float32 NCHW, normalised) and y. For every ratio, each block's first convolution loses its filters of least l1 norm:
copy the model, build the dependency graph, prune the group, evaluate all images. That time is the point's. Where two
ratios remove as many channels, both are measured: the plain loop does not know. The convolutions on the residual stream
have to be left out by hand, because Torch-Pruning does not see through the padded shortcuts.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from importlib.metadata import version
from math import floor
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime as ort
import torch
import torch_pruning as tp
from model_makers.cifar_networks import Block, ResNet
from torch import nn

TOLERANCE = 1e-4


def from_onnx(path: Path) -> ResNet:
    """Return the torch module with the file's weights: convolutions in the order of the graph, then the classifier.

    Raises:
        click.ClickException: another architecture.
    """
    graph = onnx.load(path).graph
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    n, rest = divmod(len(layers) - 2, 6)
    if rest or not n:
        raise click.ClickException(f"{path}: {len(layers)} layers are no CIFAR ResNet")
    model = ResNet(n)
    modules = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for module, node in zip(modules, layers, strict=True):
            for parameter, name in zip((module.weight, module.bias), node.input[1:], strict=True):
                value = torch.from_numpy(weights[name].copy())
                if parameter.shape != value.shape:
                    raise click.ClickException(f"{path}: {name} is {list(value.shape)}, not {list(parameter.shape)}")
                parameter.copy_(value)
    return model.eval()


def difference(model: nn.Module, path: Path, x: np.ndarray) -> float:
    """Largest difference of the logits from onnxruntime's."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: x})[0]
    with torch.inference_mode():
        return float(np.abs(model(torch.from_numpy(x)).numpy() - theirs).max())


def top1(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int) -> float:
    """Share of images whose largest logit is their label."""
    hits = 0
    with torch.inference_mode():
        for start in range(0, len(x), batch):
            hits += int((model(x[start : start + batch]).argmax(1) == y[start : start + batch]).sum())
    return hits / len(x)


def prune(model: ResNet, group: str, removed: int) -> ResNet:
    """Copy the model and remove the filters of least l1 norm of convolution `group`, with all dependents."""
    copied = copy.deepcopy(model)
    conv = copied.get_submodule(group)
    assert isinstance(conv, nn.Conv2d)
    graph = tp.DependencyGraph().build_dependency(copied, example_inputs=torch.zeros(1, 3, 32, 32))
    least = torch.argsort(conv.weight.detach().abs().flatten(1).sum(1), stable=True)[:removed]
    if removed:
        graph.get_pruning_group(conv, tp.prune_conv_out_channels, idxs=sorted(least.tolist())).prune()
    return copied


def sweep(
    model: ResNet,
    x: np.ndarray,
    y: np.ndarray,
    ratios: list[float],
    *,
    batch: int = 64,
    limit: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Run the full grid, one point after the other; see the head of this file.

    Args:
        ratios: shares of a group's channels to remove, rounded down to whole channels.
        limit: only this many groups.
        progress: print every point.
    """
    names = [f"{name}.conv1" for name, module in model.named_modules() if isinstance(module, Block)]
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    start = time.perf_counter()
    points = []
    for group in names[:limit]:
        channels = model.get_submodule(group).weight.shape[0]
        for ratio in ratios:
            began = time.perf_counter()
            removed = floor(channels * ratio + 1e-9)
            value = top1(prune(model, group, removed), images, labels, batch)
            seconds = time.perf_counter() - began
            points.append({"group": group, "ratio": ratio, "removed": removed, "top1": value, "seconds": seconds})
            if progress:
                click.echo(f"{group} {ratio:.2f}: {removed} of {channels} removed, top-1 {value:.4f}, {seconds:.2f} s")
    return {
        "seconds": time.perf_counter() - start,
        "points": points,
        "images": len(x),
        "batch": batch,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "torch-pruning")}},
    }


def parse_ratios(text: str) -> list[float]:
    """`0.05:0.95:0.05` (both ends included) or `0.1,0.25`."""
    if ":" not in text:
        return [float(part) for part in text.split(",")]
    first, last, step = map(float, text.split(":"))
    return [round(first + i * step, 9) for i in range(floor((last - first) / step + 1e-9) + 1)]


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--ratios", default="0.05:0.95:0.05", show_default=True, help="first:last:step, or a list with commas.")
@click.option("--batch", default=64, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--limit-groups", type=int, help="Only the first groups.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Points as JSON.")
def main(
    model: Path, data: Path, ratios: str, batch: int, threads: int, limit_groups: int | None, output: Path | None
) -> None:
    """Check the copy of the model, run the sweep, print the points."""
    torch.set_num_threads(threads)
    with np.load(data, allow_pickle=False) as arrays:
        x, y = np.ascontiguousarray(arrays["x"], np.float32), np.asarray(arrays["y"], np.int64)
    network = from_onnx(model)
    worst = difference(network, model, x[:64])
    if worst > TOLERANCE:
        raise click.ClickException(f"torch and onnxruntime differ by {worst:.1e}")
    network(torch.from_numpy(x[:1]))  # first-call costs belong to no point
    result = sweep(network, x, y, parse_ratios(ratios), batch=batch, limit=limit_groups, progress=True)
    result |= {"model": model.name, "difference": worst}
    count = max(1, len(result["points"]))
    click.echo(f"{count} points in {result['seconds']:.1f} s, {result['seconds'] / count:.2f} s each")
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
