"""Trains the models on scikit-learn's digits that ship, and writes them to models/.

    pip install -e '.[train,dev]'
    python tools/model_makers/make_models.py                # the demo model, about two minutes on one core
    python tools/model_makers/make_models.py --detector     # instead the detector of digit scenes, about eight minutes
    python tools/model_makers/make_models.py --mlp mlp.onnx # instead the MLP of docs/unstructured.md: 30 s, 6.7 MB

`digits_cnn.onnx` keeps BatchNormalization (criterion bn_scale reads it), `digits_cnn_folded.onnx` is what the exporter
writes by default. Only `digits:train` is trained on, `digits:test` is only reported.

The training is the sparsity-inducing kind (network slimming, soft filter pruning): the weaker half of every coupled
group of channels decays a little with every step until hardly any of it is left. That is why half of the MACs can go
without retraining; networks that were trained without it lose accuracy and need `recover` or `retrain`
(`--decay 0` trains one). The pruner is told nothing of this.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as fn

import onnxprune as op

ROOT = Path(__file__).resolve().parents[2]
WEAK = 0.5  # the share of each group that decays
MLP = (64, 1000, 1000, 500, 200, 10)  # of the study of weight and unit pruning, whose inputs were 28x28
Member = tuple[nn.Conv2d, nn.BatchNorm2d]


class ConvBn(nn.Sequential):
    """Convolution and BatchNorm."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    @property
    def member(self) -> Member:
        """Return the two modules whose channels are the block's."""
        return self.conv, self.bn


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        self.a = ConvBn(width, middle)
        self.b = ConvBn(middle, width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.b(self.relu(self.a(x))))


class Separable(nn.Module):
    """Depthwise, then pointwise convolution; a shortcut where the shapes allow."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvBn(cin, cin, 3, stride, cin)
        self.pointwise = ConvBn(cin, cout, 1)
        self.relu = nn.ReLU()
        self.shortcut = cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.relu(self.depthwise(x)))
        return self.relu(x + y) if self.shortcut else self.relu(y)


class Dense(nn.Module):
    """Two convolutions whose outputs are appended to what they read."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.a = ConvBn(cin, growth)
        self.b = ConvBn(cin + growth, growth)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.relu(self.a(x))], 1)
        return torch.cat([x, self.relu(self.b(x))], 1)


class DigitsCnn(nn.Module):
    """Residual, depthwise-separable and dense blocks for 8x8 grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBn(1, 32)
        self.residual1 = Residual(32, 32)
        self.down = Separable(32, 64, 2)
        self.separable = Separable(64, 64)
        self.dense = Dense(64, 32)
        self.transition = ConvBn(128, 64, 1)
        self.residual2 = Residual(64, 32)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.residual1(self.relu(self.stem(x)))
        x = self.dense(self.separable(self.down(x)))
        x = self.residual2(self.relu(self.transition(x)))
        return self.fc(self.pool(x).flatten(1))

    def coupled(self) -> list[list[Member]]:
        """Return layers with coupled channels (tied by a shortcut or a depthwise layer)."""
        blocks = [
            [self.stem, self.residual1.b, self.down.depthwise],
            [self.residual1.a],
            [self.down.pointwise, self.separable.depthwise, self.separable.pointwise],
            [self.dense.a],
            [self.dense.b],
            [self.transition, self.residual2.b],
            [self.residual2.a],
        ]
        return [[b.member for b in group] for group in blocks]


@torch.no_grad()
def decay_weak(groups: list[list[Member]], rate: float) -> None:
    """Shrink the weaker channels of each group: filter, scale and shift times (1 - rate)."""
    for group in groups:
        strength = torch.stack([bn.weight.abs() / bn.weight.abs().max() for _, bn in group]).sum(0)
        weak = strength.argsort()[: int(len(strength) * WEAK)]
        for conv, bn in group:
            conv.weight[weak] *= 1 - rate
            bn.weight[weak] *= 1 - rate
            bn.bias[weak] *= 1 - rate


def augmented(x: Tensor, rng: torch.Generator) -> Tensor:
    """Shift by up to a pixel, rotate by up to 12 degrees, scale by up to 10 %."""
    n = len(x)
    u = torch.rand(n, 4, generator=rng) * 2 - 1
    angle, scale = u[:, 0] * 0.2, 1 + u[:, 1] * 0.1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) * scale
    theta[:, 0, 1] = -torch.sin(angle) * scale
    theta[:, 1, 0] = torch.sin(angle) * scale
    theta[:, :, 2] = u[:, 2:] * 0.25  # a pixel is 2/8 of the grid
    return fn.grid_sample(x, fn.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def train(epochs: int, seed: int = 0, decay: float = 0.004) -> DigitsCnn:
    """Train from scratch, with equal results of equal torch versions on one machine."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(seed)
    data = op.load_data("digits:train")
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    model = DigitsCnn()
    groups = model.coupled()
    batch = 64
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.15)
    done = 0
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(x), generator=rng)
        total = 0.0
        for i in range(len(x) // batch):
            index = order[i * batch : (i + 1) * batch]
            loss = fn.cross_entropy(model(augmented(x[index], rng)), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            decay_weak(groups, decay * min(1.0, max(0.0, done / steps - 0.1) / 0.2))
            total += loss.item()
        if epoch % 20 == 19:
            print(f"epoch {epoch + 1}: loss {total / (len(x) // batch):.4f}, test {accuracy(model):.4f}", flush=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Share of `digits:test` that is right."""
    data = op.load_data("digits:test")
    model.eval()
    return float((model(torch.from_numpy(data.x)).argmax(1).numpy() == data.y).mean())


def export(model: DigitsCnn, path: Path, keep_batchnorm: bool) -> None:
    """Write a model by the TorchScript exporter, without the machine's paths."""
    kept = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False} if keep_batchnorm else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 8, 8),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            **kept,
        )
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.ClearField("doc_string")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def train_mlp(widths: Sequence[int] = MLP, epochs: int = 30, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return weights [in, out] and biases [out] of a fully connected network with ReLU, trained on `digits:train`.

    Plain Adam, nothing that makes weights sparse. The same on every run of the same torch on the same machine; global
    generators and settings of torch are left as they were.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(seed)
    data = op.load_data("digits:train")
    x, y = torch.from_numpy(data.x).flatten(1), torch.from_numpy(data.y)
    layers = []
    for fan_in, fan_out in pairwise(widths):
        spread = (6 / (fan_in + fan_out)) ** 0.5  # Glorot & Bengio 2010
        w = torch.empty(fan_in, fan_out).uniform_(-spread, spread, generator=rng)
        layers.append((w.requires_grad_(), torch.zeros(fan_out, requires_grad=True)))
    optimizer = torch.optim.Adam([p for layer in layers for p in layer], lr=1e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=rng).split(64):
            h = x[index]
            for i, (w, b) in enumerate(layers):
                h = h @ w + b if i == len(layers) - 1 else fn.relu(h @ w + b)
            loss = fn.cross_entropy(h, y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.set_num_threads(threads)
    return [(w.detach(), b.detach()) for w, b in layers]


def mlp_proto(layers: Sequence[tuple[Tensor, Tensor]]) -> onnx.ModelProto:
    """Flatten, then Gemm and Relu in turn; the input is an image [batch, 1, 8, 8]."""
    nodes = [helper.make_node("Flatten", ["image"], ["h0"], name="flatten")]
    values = []
    for i, (w, b) in enumerate(layers, 1):
        last = i == len(layers)
        out = "logits" if last else f"fc{i}"
        nodes.append(helper.make_node("Gemm", [f"h{i - 1}", f"fc{i}.weight", f"fc{i}.bias"], [out], name=f"fc{i}"))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"h{i}"], name=f"relu{i}"))
        values += [numpy_helper.from_array(t.numpy(), f"fc{i}.{k}") for t, k in ((w, "weight"), (b, "bias"))]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(layers[-1][1])])],
        values,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def report(path: Path) -> None:
    """Print the accuracy before and after pruning to half the MACs."""
    model, data = op.load(path), op.load_data("digits")
    groups = op.analyze(model)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB, {len(groups)} groups, "
          f"accuracy {op.evaluate(model, data).top1:.4f}")  # fmt: skip
    for criterion in ("dscore", "l2", "l1", "fpgm", "dstep", "dstep_gm", "bn_scale", "random"):
        if criterion == "bn_scale" and not groups.scale_sites:
            continue
        scores = op.score(groups, criterion)
        row = []
        for step in (16, 8, 1):  # what `auto` means depends on the machine
            plan = op.plan(scores, op.Target(macs=0.5), constraints=op.Constraints(round_to=step))
            row.append(op.evaluate(op.apply(model, plan, analysis=groups), data).top1)
        print(f"  {criterion:9s} macs=0.5, rounded to 16, 8, 1: " + ", ".join(f"{a:.4f}" for a in row))


def main() -> None:
    """Train, export and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, help="default: 150, for the MLP 30")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decay", type=float, default=0.004, help="of the weaker half, for every step")
    parser.add_argument("--out", type=Path, default=ROOT / "models")
    parser.add_argument("--detector", action="store_true", help="train models/digits_detector.onnx instead")
    parser.add_argument("--steps", type=int, default=2400, help="of the detector's training")
    parser.add_argument("--mlp", type=Path, help="train the MLP 64-1000-1000-500-200-10 instead, and write it here")
    args = parser.parse_args()
    if args.mlp is not None:
        onnx.save(mlp_proto(train_mlp(MLP, args.epochs or 30, args.seed)), args.mlp)
        print(f"{args.mlp}: test accuracy {op.evaluate(op.load(args.mlp), op.load_data('digits')).top1:.4f}")
        return
    if args.detector:
        import detector_training

        target = args.out / "digits_detector.onnx"
        detector_training.export(detector_training.train(args.steps, args.seed), target)
        found = op.evaluate(op.load(target), op.load_data("digit-scenes:test"))
        print(f"{target}: {target.stat().st_size / 1024:.0f} kB, {found!r}")
        return
    model = train(args.epochs or 150, args.seed, args.decay)
    count = sum(int(np.prod(p.shape)) for p in model.parameters())
    print(f"{count} parameters, test accuracy {accuracy(model):.4f}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, keep in (("digits_cnn.onnx", True), ("digits_cnn_folded.onnx", False)):
        export(model, args.out / name, keep)
        report(args.out / name)


if __name__ == "__main__":
    main()
