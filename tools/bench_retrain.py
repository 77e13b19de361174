"""Measure retraining with distillation after pruning, beside the same epochs after Torch-Pruning's l2 criterion.

    pip install 'onnxprune[train,cpu]' torch-pruning
    python tools/bench_retrain.py MODEL.onnx TRAIN.npz TEST.npz --mean M --std S [--macs 0.5] [--epochs 3] [-o out.json]

MODEL is a CIFAR ResNet with option-A shortcuts and folded BatchNormalization. It is pruned to the share of MACs and
retrained with the original as teacher. The peer prunes a torch module with the same weights (each block's first
convolution: it cannot follow the padded shortcuts), by the ratio that leaves the same MACs, is exported, and is
retrained by the same command with the same settings, teacher and data.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
import torch_pruning as tp
from model_makers.cifar_networks import Block, ResNet, exported
from torch import nn
from torch_pruning_sweep import from_onnx

import onnxprune as op
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, Preprocess, subset
from onnxprune.recovery.recover import recover
from onnxprune.training import Settings, retrain
from onnxprune.training._distillation import matching_features

PACKAGES = ("torch", "lightning", "onnx2torch", "torch-pruning")


def macs(model: op.Model) -> float:
    """Multiply-accumulates of one image."""
    return float(op.CostModel(op.analyze(model)).baseline.macs)


def peer_cut(network: ResNet, share: float) -> op.Model:
    """Torch-Pruning's l2 cut at the ratio whose MACs come nearest to the share."""
    whole = macs(exported(copy.deepcopy(network)))
    best: tuple[float, op.Model] | None = None
    low, high = 0.0, 0.95
    for _ in range(8):
        ratio = (low + high) / 2
        module = copy.deepcopy(network)
        inner = {m.conv1 for m in module.modules() if isinstance(m, Block)}
        ignored = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in inner]
        tp.pruner.MagnitudePruner(
            module, torch.zeros(1, 3, 32, 32), tp.importance.MagnitudeImportance(p=2), pruning_ratio=ratio,
            ignored_layers=ignored,
        ).step()  # fmt: skip
        made = exported(module)
        kept = macs(made) / whole
        if best is None or abs(kept - share) < abs(macs(best[1]) / whole - share):
            best = (ratio, made)
        low, high = (ratio, high) if kept > share else (low, ratio)
    assert best is not None
    return best[1]


def trained(
    model: op.Model, teacher: op.Model, train: Data, test: Data, how: Preprocess, settings: Settings,
    plan: op.Plan | None = None,
) -> Any:  # fmt: skip
    """Figures before and after retraining; validation during training is on a share of the training data."""
    if settings.features and plan is None and not matching_features(model, teacher):
        settings = replace(settings, features=0.0)  # another exporter's names: nothing to pair
    start = time.perf_counter()
    done = retrain(model, train, preprocess=how, settings=settings, teacher=teacher, plan=plan)
    seconds = time.perf_counter() - start
    return {
        "macs": macs(model), "as_cut": op.evaluate(model, test, preprocess=how).top1,
        "retrained": op.evaluate(done.model, test, preprocess=how).top1, "seconds": seconds,
        "features": settings.features,
        "seconds_per_epoch": [e.seconds for e in done.history if e.epoch > 0],
        "history": [asdict(e) for e in done.history],
    }  # fmt: skip


def numbers(text: str) -> list[float]:
    """Parse numbers separated by commas."""
    return [float(part) for part in text.split(",")] if text else []


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("train", type=click.Path(exists=True))
@click.argument("test", type=click.Path(exists=True))
@click.option("--mean", default="")
@click.option("--std", default="")
@click.option("--macs", "share", default=0.5, show_default=True)
@click.option("-c", "--criterion", default="l2", show_default=True)
@click.option("--curves", type=click.Path(exists=True, path_type=Path), help="Decide by these (`sensitivity`).")
@click.option("--protect", multiple=True, help="As of `plan`.")
@click.option("--round-to", default=4, show_default=True)
@click.option("--calibrate", default=0, show_default=True, help="Samples to choose channels and recover with first.")
@click.option(
    "--features", default=0.0, show_default=True, help="As of `retrain`, under the plan; the peer has residual outputs."
)
@click.option("--epochs", default=3, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--lr", default=0.05, show_default=True)
@click.option("--alpha", default=0.9, show_default=True)
@click.option("--temperature", default=4.0, show_default=True)
@click.option("--ema", type=float, help="As of `retrain`.")
@click.option("--threads", default=0, show_default=True)
@click.option("--schedule", default="onecycle", show_default=True)
@click.option("--augment", default="crop,flip", show_default=True)
@click.option("--peer/--no-peer", default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(
    model: Path, train: str, test: str, mean: str, std: str, share: float, criterion: str, curves: Path | None,
    protect: tuple[str, ...], round_to: int, calibrate: int, features: float, epochs: int, batch: int, lr: float,
    alpha: float, temperature: float, ema: float | None, threads: int, schedule: str, augment: str, peer: bool,
    device: str, output: Path | None,
) -> None:  # fmt: skip
    """Prune, retrain and evaluate; then the same for the peer."""
    how, original = Preprocess(numbers(mean), numbers(std)), op.load(model)
    data, held_out = op.load_data(train), op.load_data(test)
    settings = Settings(
        epochs=epochs, batch=batch, lr=lr, schedule=schedule, augment=tuple(augment.split(",")) if augment else (),
        device=device, keep="last", val_share=0.005, features=features, alpha=alpha, temperature=temperature,
        ema=ema, threads=threads,
    )  # fmt: skip
    analysis = op.analyze(original)
    samples = Calibration(subset(data, calibrate), how) if calibrate else None
    plan = op.plan(
        op.score(analysis, criterion, data=samples),
        op.Target(macs=share),
        curves=op.load_curves(curves) if curves else None,
        constraints=op.Constraints(round_to=round_to, protect=protect),
    )
    whole, start = macs(original), op.apply(original, plan)
    if samples is not None:
        start = recover(original, start, plan, samples, analysis=analysis).model
    figures: dict[str, Any] = {
        "baseline": op.evaluate(original, held_out, preprocess=how).top1,
        "ours": trained(start, original, data, held_out, how, settings, plan if features else None),
    }
    if peer:
        cut = peer_cut(from_onnx(model), macs(op.apply(original, plan)) / whole)
        figures["torch-pruning l2"] = trained(cut, original, data, held_out, how, settings)
    for name, f in figures.items():
        if isinstance(f, dict):
            click.echo(
                f"{name}: {100 * f['macs'] / whole:.1f} % of the MACs, {100 * f['as_cut']:.2f} % as cut, "
                f"{100 * f['retrained']:.2f} % after {epochs} epochs of {max(f['seconds_per_epoch']):.0f} s"
            )
        else:
            click.echo(f"{name}: {100 * f:.2f} %")
    figures["versions"] = {
        "python": platform.python_version(), **{p: version(p) for p in PACKAGES},
    }  # fmt: skip
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
