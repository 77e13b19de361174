"""Measure accuracy without training for every criterion, before and after BatchNorm recalibration, and its time.

    pip install 'onnxprune[train,cpu]' torch-pruning
    python tools/bench_criteria.py resnet20_folded.onnx [resnet56_folded.onnx ...] --train TRAIN.npz --test TEST.npz
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 [--macs 0.7,0.5,0.35] [--peer] -o criteria.json

TRAIN and TEST hold x (uint8 NHWC) and y. Criteria and recalibration use TRAIN, accuracies are on TEST. Every point is
written to -o at once, and a run resumes from there. Settings:

- *all*: every group may lose channels, shared as the criterion does by default (most rank all channels of the network).
- *inner*: the same without pruning residual streams (`--protect residual`).
- *inner uniform*: the same share of every group but the residual streams: only the order within groups counts.
- *inner saving*: least importance per MAC saved, the default of `obs`.

`senpis` takes the same share of every group by definition; it is scored anew for each point, with the share that
reaches the MACs as its `amount`. `bn_scale` needs a model with BatchNormalization kept: MODEL_bn.onnx beside
MODEL_folded.onnx. The peer, Torch-Pruning, prunes a CIFAR ResNet with the weights of that file: each block's first
convolution (it cannot follow the padded shortcuts), at the ratio that leaves the same MACs, ranked globally or at the
same ratio everywhere; BatchNorm statistics are taken anew on the same images in training mode. Its models are exported
and evaluated like ours.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import AnyCriterion, all_criteria
from onnxprune.criteria.scoring import Scores, score
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, Feeds, Preprocess, subset
from onnxprune.ir.model import Model
from onnxprune.plans import Plan
from onnxprune.recovery.recalibrate_batchnorm import RecalibrateBatchnorm
from onnxprune.studies.criteria_comparison import parsed

SETTINGS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "all": (None, ()),
    "inner": (None, ("residual",)),
    "inner uniform": ("uniform", ("residual",)),
    "inner saving": ("saving", ("residual",)),
}
SLOW = ("hrank", "loss_change", "lrp", "senpis")  # they see --slow-images
LAST = ("loss_change", "senpis")  # minutes: after all others
PEERS = ("l2", "bn_scale", "fpgm", "taylor")
PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "onnx2torch", "torch-pruning")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Settings shared by all criteria.

    Attributes:
        train: calibration samples, all of them.
        slow_images: number of them for slow criteria.
        recalibrate_images: number of them for recalibration.
        test: samples for accuracies.
        preprocess: of both.
        threads: of onnxruntime and torch; 0 leaves the choice to them.
    """

    train: Data
    slow_images: int
    recalibrate_images: int
    test: Data
    preprocess: Preprocess
    threads: int

    def calibration(self, images: int) -> Calibration:
        """Return so many of the calibration samples, evenly from the classes."""
        return Calibration(subset(self.train, images), self.preprocess, threads=self.threads)

    def images_of(self, name: str) -> int:
        """Return the number of samples for a criterion."""
        return min(len(self.train), self.slow_images) if name in SLOW else len(self.train)

    def top1(self, model: Model) -> float:
        """Return the accuracy on the test images."""
        return op.evaluate(model, self.test, preprocess=self.preprocess, threads=self.threads).top1


class Log:
    """File of figures, written atomically after every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures: Figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def save(self) -> None:
        fresh = self.path.with_suffix(".part")
        fresh.write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.path)


def macs(model: Model) -> int:
    """Multiply-accumulates of one image."""
    return int(op.CostModel(op.analyze(model)).baseline.macs)


# ------------------------------------------------------------------------------------------------------------- ours


def scored(bench: Bench, analysis: Analysis, rule: AnyCriterion, groups: list[str] | None = None) -> tuple[Scores, Any]:
    """Return scores and their cost."""
    images = bench.images_of(rule.name)
    calibration = bench.calibration(images) if rule.needs != "weights" else None
    start = time.perf_counter(), time.process_time()
    scores = score(analysis, rule, calibration=calibration, groups=groups)
    cost = {
        "seconds": time.perf_counter() - start[0],
        "cpu_seconds": time.process_time() - start[1],
        "load": os.getloadavg()[0],
        "images": images if calibration is not None else 0,
    }
    return scores, cost


def planned(scores: Scores, share: float, setting: str, *, uniform: bool = False) -> Plan:
    """Return the plan for a share of the MACs; uniform if the criterion forbids a ranking of all layers."""
    allocator, protect = SETTINGS[setting]
    if uniform or "global" in scores.forbids:
        allocator = "uniform"
    constraints = op.Constraints(round_to=1, protect=protect)
    return op.plan(scores, op.Target(macs=share), allocator=allocator, constraints=constraints)


def point(bench: Bench, analysis: Analysis, plan: Plan) -> Figures:
    """Return MACs and accuracies of the pruned model."""
    done = op.compile_plan(analysis.source, plan, analysis=analysis, check=False)
    cut = bench.top1(done.model)
    recalibrated = RecalibrateBatchnorm(plan, analysis, bench.calibration(bench.recalibrate_images))(done.model)
    return {"macs": done.after.macs / done.before.macs, "as_cut": cut, "recalibrated": bench.top1(recalibrated)}


def uniform_ratio(analysis: Analysis, plan: Plan) -> float:
    """Return the share that a uniform plan removes from its widest group."""
    widest = max((analysis[name] for name in plan.groups), key=lambda g: g.channels)
    return len(plan.groups[widest.name].removed) / widest.channels


def sequential(
    bench: Bench, analysis: Analysis, rule: AnyCriterion, share: float, setting: str
) -> tuple[Scores, Figures]:
    """SeNPIS with the amount that reaches the MACs, on the groups that may lose channels."""
    plan = planned(score(analysis, "l1"), share, setting, uniform=True)
    amount = uniform_ratio(analysis, plan)
    given = parsed(f"{spelled(rule)}:amount={amount}")
    scores, cost = scored(bench, analysis, given, list(plan.groups))
    return scores, {**cost, "amount": amount}


def spelled(rule: AnyCriterion) -> str:
    """Return a criterion's name with its parameters other than the defaults."""
    usual = vars(type(rule)())
    return ":".join([rule.name, *(f"{k}={v}" for k, v in vars(rule).items() if usual[k] != v)])


def criterion(
    bench: Bench, analysis: Analysis, rule: AnyCriterion, shares: list[float], settings: list[str], mine: Figures
) -> Iterator[tuple[str, float]]:
    """Add the missing figures of a criterion and yield the points."""
    points = mine.setdefault("points", {})
    scores: Scores | None = None
    for setting in settings:
        for share in shares:
            known = points.setdefault(setting, {})
            if str(share) in known:
                continue
            own: Figures = {}
            if rule.name == "senpis":
                if setting == "inner uniform" and str(share) in points.get("inner", {}):
                    known[str(share)] = points["inner"][str(share)]  # the same by definition
                    yield setting, share
                    continue
                scores, own = sequential(bench, analysis, rule, share, setting)
                mine.setdefault("cost", own)
            elif scores is None:
                scores, cost = scored(bench, analysis, rule)
                mine.setdefault("cost", cost)
            assert scores is not None
            known[str(share)] = {**own, **point(bench, analysis, planned(scores, share, setting))}
            yield setting, share


# ------------------------------------------------------------------------------------------------------------ peer


class Peer:
    """Torch-Pruning on a CIFAR ResNet whose BatchNormalization was kept."""

    def __init__(self, bench: Bench, path: Path, images: Model) -> None:
        import torch

        if bench.threads:
            torch.set_num_threads(bench.threads)
        self.bench = bench
        self.network = with_batchnorm(path)
        feeds = Feeds(images, bench.calibration(len(bench.train)).data, bench.preprocess, 50)
        self.batches = [(torch.from_numpy(x[feeds.name]), torch.from_numpy(np.asarray(y))) for x, y in feeds]
        self.gradients: list[Any] = []

    def point(self, name: str, share: float, setting: str) -> Figures:
        """Prune by a criterion to the share of MACs and return the accuracies."""
        from bench_retrain import exported

        start = time.perf_counter()
        if name == "taylor" and not self.gradients:
            self._backward()
        whole = torch_macs(self.network)
        best, low, high = self.network, 0.0, 0.95
        for _ in range(9):
            ratio = (low + high) / 2
            made = self._cut(name, ratio, ranked=setting == "inner")
            kept = torch_macs(made) / whole
            if abs(kept - share) < abs(torch_macs(best) / whole - share):
                best = made
            low, high = (ratio, high) if kept > share else (low, ratio)
        seconds = time.perf_counter() - start
        cut = exported(copy.deepcopy(best))
        as_cut = self.bench.top1(cut)
        self._recalibrate(best)
        return {
            "macs": torch_macs(best) / whole, "as_cut": as_cut, "recalibrated": self.bench.top1(exported(best)),
            "seconds": seconds,
        }  # fmt: skip

    def _cut(self, name: str, ratio: float, *, ranked: bool) -> Any:
        import torch
        import torch_pruning as tp
        from torch import nn

        module = copy.deepcopy(self.network)
        if name == "taylor":
            for parameter, gradient in zip(module.parameters(), self.gradients, strict=True):
                parameter.grad = gradient.clone()
        importance = {
            "l2": lambda: tp.importance.MagnitudeImportance(p=2), "bn_scale": tp.importance.BNScaleImportance,
            "fpgm": tp.importance.FPGMImportance, "taylor": tp.importance.TaylorImportance,
        }[name]()  # fmt: skip
        inner = {m for n, m in module.named_modules() if n.startswith("layer") and n.endswith("conv1")}
        ignored = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in inner]
        tp.pruner.BasePruner(
            module, torch.zeros(1, 3, 32, 32), importance, global_pruning=ranked, pruning_ratio=ratio,
            max_pruning_ratio=op.Constraints().max_ratio if ranked else 1.0, ignored_layers=ignored,
        ).step()  # fmt: skip
        return module

    def _backward(self) -> None:
        """Compute gradients of the mean loss over the calibration images, in inference mode."""
        from torch.nn import functional

        module = copy.deepcopy(self.network)
        for x, y in self.batches:
            (functional.cross_entropy(module(x), y, reduction="sum") / len(self.bench.train)).backward()
        self.gradients = [p.grad for p in module.parameters()]

    def _recalibrate(self, module: Any) -> None:
        import torch
        from torch import nn

        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.reset_running_stats()
                m.momentum = None  # the plain mean over batches
        module.train()
        with torch.inference_mode():
            left = self.bench.recalibrate_images
            for x, _ in self.batches:
                if left <= 0:
                    break
                module(x[:left])
                left -= len(x)
        module.eval()


def with_batchnorm(path: Path) -> Any:
    """Return the CIFAR ResNet of a file that keeps BatchNormalization, checked against onnxruntime.

    Raises:
        click.ClickException: another architecture.
    """
    import onnx
    import onnx.numpy_helper
    import torch
    from model_makers.cifar_networks import Block, ResNet
    from torch import nn
    from torch_pruning_sweep import TOLERANCE, difference

    class Named(Block):  # type: ignore[misc]
        def __init__(self, before: int, after: int) -> None:
            super().__init__(before, after)
            self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if self.pad:
                x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return torch.relu(y + x)

    class WithBatchnorm(ResNet):  # type: ignore[misc]
        def __init__(self, n: int) -> None:
            super().__init__(n)
            self.bn1 = nn.BatchNorm2d(16)
            for layer in (self.layer1, self.layer2, self.layer3):
                for i, block in enumerate(layer):
                    layer[i] = Named(block.conv1.in_channels, block.conv1.out_channels)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
            out: torch.Tensor = self.linear(x.mean((2, 3)))
            return out

    weights = {
        i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in onnx.load(path).graph.initializer
    }
    network = WithBatchnorm((sum(w.dim() == 4 for w in weights.values()) - 1) // 6)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = None
    state = network.state_dict()
    missing = [name for name in state if name not in weights and not name.endswith("num_batches_tracked")]
    if missing:
        raise click.ClickException(f"{path} is no CIFAR ResNet with BatchNormalization: it has no {missing[0]}")
    network.load_state_dict({name: weights.get(name, value) for name, value in state.items()})
    network.eval()
    worst = difference(network, path, np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32))
    if worst > TOLERANCE:
        raise click.ClickException(f"torch and onnxruntime differ by {worst:.1e}")
    return network


def torch_macs(module: Any) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image of 32 x 32."""
    import torch
    from torch import nn

    total = 0

    def count(m: Any, _: Any, out: torch.Tensor) -> None:
        nonlocal total
        total += m.weight.numel() * (out.shape[2] * out.shape[3] if out.dim() == 4 else 1)

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.inference_mode():
        module(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return total


# ---------------------------------------------------------------------------------------------------------- tables


def tables(name: str, mine: Figures, shares: list[float]) -> Iterator[str]:
    """Markdown of one model's figures."""
    yield f"\n{name}: {100 * mine['baseline']:.2f} % before\n"
    for setting in SETTINGS:
        rows = {n: c["points"].get(setting, {}) for n, c in mine["criteria"].items()}
        rows |= {f"Torch-Pruning {n}": p.get(setting, {}) for n, p in mine.get("peer", {}).items()}
        rows = {n: p for n, p in rows.items() if p}
        if not rows:
            continue
        yield f"{setting}\n"
        yield "| criterion | " + " | ".join(f"{s:g}" for s in shares) + " |"
        yield "|---|" + "---|" * len(shares)
        for row, points in rows.items():
            cells = [points.get(str(s)) for s in shares]
            texts = [
                f"{100 * c['as_cut']:.1f} -> {100 * c['recalibrated']:.1f}" if c is not None else "" for c in cells
            ]
            yield f"| {row} | " + " | ".join(texts) + " |"
        yield ""
    yield "| criterion | images | seconds | CPU seconds | load |\n|---|---|---|---|---|"
    for row, c in mine["criteria"].items():
        if cost := c.get("cost"):
            yield (
                f"| {row} | {cost['images'] or ''} | {cost['seconds']:.2f} | {cost['cpu_seconds']:.2f} "
                f"| {cost['load']:.1f} |"
            )


def echo(model: str, name: str, setting: str, share: float, points: Figures) -> None:
    """One line for a point that has just been measured."""
    p = points[setting][str(share)]
    click.echo(
        f"{model} {name}, {setting}, {share:g}: {p['macs']:.3f} of the MACs, {100 * p['as_cut']:.2f} % as cut, "
        f"{100 * p['recalibrated']:.2f} % after"
    )


def numbers(text: str) -> list[float]:
    """Parse numbers separated by commas."""
    return [float(part) for part in text.split(",")] if text else []


def versions() -> dict[str, str]:
    """Return the versions of all packages involved."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@click.command(help=__doc__)
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--train", required=True, help="Calibration data.")
@click.option("--test", required=True, help="What accuracies are measured on.")
@click.option("--mean", default="", help="Per channel.")
@click.option("--std", default="", help="Per channel.")
@click.option("--macs", "targets", default="0.7,0.5,0.35", show_default=True, help="Shares kept.")
@click.option("--criteria", default="", help="Comma-separated, as of `score --compare`; default: all.")
@click.option("--settings", default="all,inner", show_default=True, help="all, inner, inner uniform, inner saving.")
@click.option("--test-images", default=2000, show_default=True, help="Of TEST.")
@click.option("--images", default=2000, show_default=True, help="Of TRAIN, for most criteria.")
@click.option("--slow-images", default=500, show_default=True, help=f"Of TRAIN for {', '.join(SLOW)}.")
@click.option("--recalibrate-images", default=500, show_default=True, help="Of TRAIN for the recalibration.")
@click.option("--peer/--no-peer", default=False, help="Torch-Pruning, too.")
@click.option("--threads", default=1, show_default=True, help="0: all cores.")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(
    models: tuple[Path, ...], train: str, test: str, mean: str, std: str, targets: str, criteria: str, settings: str,
    test_images: int, images: int, slow_images: int, recalibrate_images: int, peer: bool, threads: int, output: Path,
) -> None:  # fmt: skip
    """Run the missing measurements and print the tables."""
    bench = Bench(
        op.load_data(train, images=images), slow_images, recalibrate_images, op.load_data(test, images=test_images),
        Preprocess(numbers(mean), numbers(std)), threads,
    )  # fmt: skip
    log, shares, wanted = Log(output), numbers(targets), settings.split(",")
    names = (
        criteria.split(",")
        if criteria
        else sorted((n for n, rule in all_criteria().items() if not rule.blocks_only), key=lambda n: (n in LAST, n))
    )
    log.figures.setdefault("versions", {}).update(versions())
    for path in models:
        kept = path.with_name(path.name.replace("_folded", "_bn"))
        folded, mine = op.load(path), log.figures.setdefault(path.stem, {})
        mine["images"] = {"test": len(bench.test), "train": len(bench.train), "slow": slow_images,
                          "recalibration": recalibrate_images}  # fmt: skip
        if "baseline" not in mine:
            mine |= {"baseline": bench.top1(folded), "macs": macs(folded)}
            log.save()
        analyses = {"": op.analyze(folded)}
        for name in names:
            rule = parsed(name)
            if rule.name == "bn_scale":
                if not kept.exists():
                    click.echo(f"{name}: skipped, there is no {kept}")
                    continue
                analyses["bn"] = op.analyze(op.load(kept))
            analysis = analyses["bn" if rule.name == "bn_scale" else ""]
            own = mine.setdefault("criteria", {}).setdefault(name, {})
            try:
                for setting, share in criterion(bench, analysis, rule, shares, wanted, own):
                    log.save()
                    echo(path.stem, name, setting, share, own["points"])
            except OnnxPruneError as err:
                own["error"] = str(err)
                log.save()
                click.echo(f"{path.stem} {name}: {err}")
        if peer:
            rival = Peer(bench, kept, folded)
            for name in PEERS:
                points = mine.setdefault("peer", {}).setdefault(name, {})
                for setting in [s for s in wanted if s in ("inner", "inner uniform")]:
                    for share in shares:
                        if str(share) not in points.setdefault(setting, {}):
                            points[setting][str(share)] = rival.point(name, share, setting)
                            log.save()
                            echo(path.stem, f"Torch-Pruning {name}", setting, share, points)
        for line in tables(path.stem, mine, shares):
            click.echo(line)


if __name__ == "__main__":
    main()
