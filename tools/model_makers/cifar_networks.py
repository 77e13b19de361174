"""Two networks of pruning papers for CIFAR-10, as torch modules with random weights."""

from __future__ import annotations

import io
import warnings

import onnx
import torch
from torch import nn
from torch.nn import functional

import onnxprune as op

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: a pool


def conv(before: int, after: int, norm: bool, stride: int = 1) -> nn.Module:
    """Return a 3 x 3 convolution, followed by BatchNormalization or with a bias."""
    plain = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=not norm)
    return nn.Sequential(plain, nn.BatchNorm2d(after)) if norm else plain


class Block(nn.Module):
    """Two convolutions beside an option-A shortcut: every second pixel, zeros for the new channels on both sides."""

    def __init__(self, before: int, after: int, norm: bool = False) -> None:
        super().__init__()
        self.conv1 = conv(before, after, norm, stride=2 if after > before else 1)
        self.conv2 = conv(after, after, norm)
        self.pad = (after - before) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(torch.relu(self.conv1(x)))
        if self.pad:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(y + x)


class ResNet(nn.Module):
    """CIFAR ResNet of 6 n + 2 layers (He et al. 2016); without `norm` as if BatchNormalization were folded."""

    def __init__(self, n: int, norm: bool = False) -> None:
        super().__init__()
        self.conv1 = conv(3, 16, norm)
        self.layer1 = nn.Sequential(*(Block(16, 16, norm) for _ in range(n)))
        self.layer2 = nn.Sequential(*(Block(16 if i == 0 else 32, 32, norm) for i in range(n)))
        self.layer3 = nn.Sequential(*(Block(32 if i == 0 else 64, 64, norm) for i in range(n)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.conv1(x)))))
        out: torch.Tensor = self.linear(x.mean((2, 3)))
        return out


class Vgg(nn.Module):
    """VGG-16 for 32 x 32 images: thirteen convolutions and one hidden layer, as PFEC and its successors prune it."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in VGG16:
            layers += [nn.MaxPool2d(2)] if not width else [conv(before, width, norm=True), nn.ReLU()]
            before = width or before
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return out


def network(name: str, seed: int = 0) -> nn.Module:
    """`vgg16` or `resnetN` with BatchNormalization; weights by the seed.

    Raises:
        ValueError: another name.
    """
    torch.manual_seed(seed)
    depth, rest = divmod(int(name.removeprefix("resnet") or 0) - 2, 6) if name.startswith("resnet") else (0, 1)
    if name != "vgg16" and (rest or depth < 1):
        raise ValueError(f"{name!r} is neither vgg16 nor resnetN with N = 6 n + 2")
    module = Vgg() if name == "vgg16" else ResNet(depth, norm=True)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module


def exported(module: nn.Module) -> op.Model:
    """Export a module and read its ONNX file, with BatchNormalization kept."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        torch.onnx.export(
            module.eval(), (torch.zeros(1, 3, 32, 32),), buffer, opset_version=17, dynamo=False,
            input_names=["input"], dynamic_axes={"input": {0: "batch"}}, do_constant_folding=False,
        )  # fmt: skip
    return op.load(onnx.load_from_string(buffer.getvalue()))
