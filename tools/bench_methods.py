"""Compare whole methods: the same recipe, the same MACs, the same training; only the criterion differs.

    python tools/bench_methods.py resnet20_bn.onnx --train train.npz --test test.npz --mean M --std S -o runs
    python tools/bench_methods.py vgg16 --published --scratch-epochs 160 --epochs 40 --device cuda --train ... -o runs

Each method is a run of `the recipe one-shot` in a folder of its own below -o: resumable, with all its files.
`vgg16` and `resnetN` instead of a file are trained from random weights first. With --published every method is cut to
the MACs that its paper reports for that network, and the paper's figures are printed beside; `bn_scale` is then network
slimming without its sparse training. Ends with a table in Markdown.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

import onnxprune as op
from onnxprune.execution.data import Preprocess
from onnxprune.recipes import load_recipe, run_recipe
from onnxprune.training import Settings, retrain

RECIPE = "one-shot"
CRITERIA = "l1,fpgm,dscore,dstep,dstep_gm,pls_vip,senpis,obs"
PACKAGES = ("onnxprune", "onnxruntime", "torch", "lightning")


@dataclass(frozen=True)
class Published:
    """Figures of a paper on CIFAR-10, percent: MACs removed, parameters removed, accuracy lost."""

    macs: float
    params: float | None
    drop: float


# Tables of Park & Kim 2022 (D-Score) for VGG-16; Jordao et al. 2020 for ResNet-56.
PUBLISHED = {
    "vgg16": {
        "l1": Published(34.2, 64.0, -0.15), "fpgm": Published(34.2, None, 0.04), "hrank": Published(53.5, 82.9, 0.53),
        "bn_scale": Published(51.0, 88.52, -0.14), "dscore": Published(64.81, 87.03, 0.16),
        "dstep": Published(65.40, 86.70, 0.12), "dstep_gm": Published(64.37, 87.16, -0.10),
    },
    "resnet56": {"pls_vip": Published(52.56, None, -0.62)},
}  # fmt: skip


def from_scratch(name: str, path: Path, data: op.Data, how: Preprocess, epochs: int, device: str) -> Path:
    """Return the file of the network trained from random weights, made once."""
    from model_makers.cifar_networks import exported, network

    if not path.exists():
        settings = Settings(
            epochs=epochs, batch=128, lr=0.1, schedule="cosine", warmup=min(5.0, epochs / 10), augment=("crop", "flip"),
            device=device, keep="last", insert_batchnorm=False,
        )  # fmt: skip
        folder = path.with_suffix(".training")
        done = retrain(
            exported(network(name)), data, preprocess=how, settings=settings, folder=folder, resume=folder.exists()
        )
        op.save(done.model, path)
    return path


def floats(text: str) -> list[float]:
    """Parse numbers separated by commas."""
    return [float(part) for part in text.split(",")] if text else []


@click.command(help=__doc__)
@click.argument("model")
@click.option("--train", required=True)
@click.option("--test", required=True)
@click.option("--mean", default="")
@click.option("--std", default="")
@click.option("--criteria", default=CRITERIA, show_default=True)
@click.option("--macs", default=0.5, show_default=True, help="Share kept, of all methods.")
@click.option("--published", is_flag=True, help="Instead: each method cut as in its paper (vgg16, resnet56).")
@click.option("--images", type=int, help="Train on only so many.")
@click.option("--epochs", default=3, show_default=True)
@click.option("--scratch-epochs", default=160, show_default=True)
@click.option("--lr", default=0.05, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path))
def main(
    model: str, train: str, test: str, mean: str, std: str, criteria: str, macs: float, published: bool,
    images: int | None, epochs: int, scratch_epochs: int, lr: float, threads: int, device: str, output: Path,
) -> None:  # fmt: skip
    """Run every method, then print the table."""
    output.mkdir(parents=True, exist_ok=True)
    how = Preprocess(floats(mean), floats(std))
    path = Path(model)
    if not path.exists():
        path = from_scratch(model, output / f"{model}.onnx", op.load_data(train), how, scratch_epochs, device)
    papers = PUBLISHED.get(model, {}) if published else {}
    rows: list[dict[str, Any]] = []
    for name in papers or criteria.split(","):
        kept = 1 - papers[name].macs / 100 if papers else macs
        changes = [
            f'score.criterion="{name}"', f'prune.target="macs={kept:.4f}"', f"retrain.epochs={epochs}",
            f"retrain.lr={lr}", "retrain.batch=64", 'retrain.augment=["flip"]', 'retrain.keep="last"',
            f"threads={threads}", f'device="{device}"', "bench.runs=0",
            f"preprocess.mean={floats(mean)}", f"preprocess.std={floats(std)}",
        ]  # fmt: skip
        if name == "senpis":  # its scores hold with that share of every earlier layer gone
            changes.append(f"score.params={{amount = {1 - kept:.4f}}}")
        if name == "obs":
            changes.append("score.images=2000")
        if images:
            changes.append(f"images={images}")
        recipe = load_recipe(RECIPE, changes=changes, model=path, sources={"data": train, "test_data": test})
        table = run_recipe(recipe, output / name, notice=lambda text: click.echo(text, err=True))
        whole, scored, cut, trained = table.rows
        rows.append(
            {
                "criterion": name, "macs": (cut.macs or 0) / (whole.macs or 1),
                "params": (cut.params or 0) / (whole.params or 1), "whole": whole.top1, "as_cut": cut.top1,
                "trained": trained.top1, "seconds": {"score": scored.seconds, "train": trained.seconds},
            }
        )  # fmt: skip
        click.echo(f"{name}: {rows[-1]}", err=True)
    found = {
        "model": model, "rows": rows, "epochs": epochs, "images": images, "lr": lr, "threads": threads,
        "device": device,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    }  # fmt: skip
    (output / "methods.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    click.echo("| criterion | MACs kept | parameters kept | as cut | trained | lost | score s | train s |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for r in sorted(rows, key=lambda r: -r["trained"]):
        told = f" (paper {papers[r['criterion']].drop:+.2f})" if papers else ""
        click.echo(
            f"| `{r['criterion']}` | {100 * r['macs']:.1f} % | {100 * r['params']:.1f} % | {100 * r['as_cut']:.2f} % | "
            f"{100 * r['trained']:.2f} % | {100 * (r['whole'] - r['trained']):.2f}{told} | "
            f"{r['seconds']['score']:.1f} | {r['seconds']['train']:.0f} |"
        )


if __name__ == "__main__":
    main()
