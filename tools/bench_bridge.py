"""Measure the cost of training through the bridge: equal steps on the torchvision module and on `to_torch`'s.

    pip install 'onnxprune[train,cpu]'
    python tools/bench_bridge.py [--model resnet18] [--batch 32] [--steps 4] [--rounds 5] [--device cpu] [-o out.json]

The network is exported as users export it (TorchScript exporter, BatchNormalization folded), loaded, given
BatchNormalization back by `insert_batchnorm`, and converted. Both modules then take the same steps of SGD with momentum
on the same random images, in turn, native first in even rounds, bridge first in odd ones.
"""

from __future__ import annotations

import io
import json
import platform
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import onnx
import torch
import torchvision
from torch import nn

import onnxprune as op
from onnxprune.passes import InsertBatchnorm
from onnxprune.torch_bridge import to_torch


def exported(module: nn.Module, side: int) -> op.Model:
    """Export a module and read its ONNX file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its deprecation
        torch.onnx.export(
            module.eval(), (torch.zeros(1, 3, side, side),), buffer, opset_version=17, dynamo=False,
            input_names=["input"], dynamic_axes={"input": {0: "batch"}},
        )  # fmt: skip
    return op.load(onnx.load_from_string(buffer.getvalue()))


PACKAGES = ("torch", "torchvision", "onnx2torch")


class Trainee:
    """Module with its optimizer; `step` is one step of training."""

    def __init__(self, module: nn.Module, device: str) -> None:
        self.module = module.to(device).train()
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-3, momentum=0.9)
        self.device = device

    def steps(self, count: int, x: torch.Tensor, y: torch.Tensor) -> float:
        """Return the seconds of so many steps."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(self.module(x), y).backward()
            self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


@click.command(help=__doc__)
@click.option("--model", default="resnet18", show_default=True, help="A classifier of torchvision.")
@click.option("--batch", default=32, show_default=True)
@click.option("--side", default=224, show_default=True)
@click.option("--steps", default=4, show_default=True, help="Steps in a row.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(model: str, batch: int, side: int, steps: int, rounds: int, device: str, output: Path | None) -> None:
    """Measure in turn and print the ratio of the medians."""
    torch.manual_seed(0)
    native = torchvision.models.get_model(model, weights=None)
    bridged = to_torch(InsertBatchnorm()(exported(native, side)))
    ours, theirs = Trainee(bridged, device), Trainee(native, device)
    x, y = torch.randn(batch, 3, side, side, device=device), torch.randint(1000, (batch,), device=device)
    for trainee in (theirs, ours):
        trainee.steps(1, x, y)
    seconds: dict[str, list[float]] = {"native": [], "bridge": []}
    for i in range(rounds):
        order = [("native", theirs), ("bridge", ours)]
        for name, trainee in order if i % 2 == 0 else order[::-1]:
            seconds[name].append(trainee.steps(steps, x, y) / steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result: dict[str, Any] = {
        "model": model, "batch": batch, "side": side, "device": device, "seconds_per_step": medians,
        "ratio": medians["bridge"] / medians["native"], "all": seconds, "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    }  # fmt: skip
    click.echo(f"{model}, batch {batch}, {device}: native {medians['native']:.3f} s a step, bridge "
               f"{medians['bridge']:.3f} s, ratio {result['ratio']:.3f}")  # fmt: skip
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
