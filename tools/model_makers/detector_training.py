"""Train the detector of digit scenes that ships as models/digits_detector.onnx; run by make_models.py --detector.

An Ultralytics-like network: C2f blocks, a neck over two strides, a decoupled head, outputs [n, 4 + classes, anchors]
with boxes (centre x, centre y, width, height) in pixels and sigmoid scores, overlaps not suppressed. The assignment of
boxes to anchors is task-aligned (Feng et al. 2021), the loss of boxes is the complete IoU (Zheng et al. 2020).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from onnxprune.execution.data.digit_scenes import NAMES, SIZE, digit_scene

STRIDES = (8, 16)
TOP = 8  # anchors per box at most
MOST = 16  # boxes of a scene at most
WEAK = 0.4  # the share of each group that decays
DECAY = 0.012  # of it, for every step


class ConvBn(nn.Sequential):
    """Convolution, BatchNorm and ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cout, 1e-3, 0.03), nn.ReLU()
        )


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with a shortcut if wanted."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.a, self.b, self.shortcut = ConvBn(width, width), ConvBn(width, width), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Split in two halves, a bottleneck on the second, all three concatenated."""

    def __init__(self, cin: int, cout: int, shortcut: bool) -> None:
        super().__init__()
        self.enter, self.leave = ConvBn(cin, cout, 1), ConvBn(cout // 2 * 3, cout, 1)
        self.block = Bottleneck(cout // 2, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat([a, b, self.block(b)], 1))


class Head(nn.Module):
    """Distances to the four sides in strides, and one logit per class, at one stride."""

    def __init__(self, cin: int, width: int, classes: int) -> None:
        super().__init__()
        self.box = nn.Sequential(ConvBn(cin, width), nn.Conv2d(width, 4, 1))
        self.cls = nn.Sequential(ConvBn(cin, width), nn.Conv2d(width, classes, 1))
        nn.init.constant_(self.box[1].bias, 1.5)
        nn.init.constant_(self.cls[1].bias, -4.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([fn.softplus(self.box(x)), self.cls(x)], 1)


class Detector(nn.Module):
    """Two strides, about 20 million MACs at 96 pixels."""

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 48, 64), head: int = 24) -> None:
        super().__init__()
        a, b, c, d = widths
        self.stem = nn.Sequential(ConvBn(3, a, 3, 2), ConvBn(a, b, 3, 2), C2f(b, b, True))
        self.p3 = nn.Sequential(ConvBn(b, c, 3, 2), C2f(c, c, True))
        self.p4 = nn.Sequential(ConvBn(c, d, 3, 2), C2f(d, d, True))
        self.n3 = C2f(c + d, c, False)
        self.down = ConvBn(c, c, 3, 2)
        self.n4 = C2f(c + d, d, False)
        self.heads = nn.ModuleList([Head(c, head, len(NAMES)), Head(d, head, len(NAMES))])

    def levels(self, x: Tensor) -> list[Tensor]:
        """Return the heads' outputs [n, 4 + classes, h, w]."""
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        n3 = self.n3(torch.cat([fn.interpolate(p4, scale_factor=2.0, mode="nearest"), p3], 1))
        n4 = self.n4(torch.cat([self.down(n3), p4], 1))
        return [head(f) for head, f in zip(self.heads, (n3, n4), strict=True)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes [n, anchors, 4] (x1, y1, x2, y2), logits [n, anchors, classes] and centres [anchors, 2]."""
        sides, logits, centres = [], [], []
        for out, stride in zip(self.levels(x), STRIDES, strict=True):
            h, w = out.shape[2], out.shape[3]
            ys = (torch.arange(h, dtype=x.dtype) + 0.5) * stride
            xs = (torch.arange(w, dtype=x.dtype) + 0.5) * stride
            centre = torch.stack([xs.expand(h, w), ys[:, None].expand(h, w)], -1).reshape(-1, 2)
            flat = out.flatten(2).transpose(1, 2)
            sides.append(flat[..., :4] * stride)
            logits.append(flat[..., 4:])
            centres.append(centre)
        side, centre = torch.cat(sides, 1), torch.cat(centres, 0)
        boxes = torch.cat([centre - side[..., :2], centre + side[..., 2:]], -1)
        return boxes, torch.cat(logits, 1), centre


class Exported(nn.Module):
    """The detector with the outputs of an Ultralytics export."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Tensor:
        boxes, logits, _ = self.detector(x)
        low, high = boxes[..., :2], boxes[..., 2:]
        return torch.cat([(low + high) / 2, high - low, logits.sigmoid()], -1).transpose(1, 2)


def complete_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return (IoU, complete IoU) of boxes that broadcast."""
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0).prod(-1)
    wa, wb = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    iou = shared / (wa.prod(-1) + wb.prod(-1) - shared + 1e-7)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    gap = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)
    angle = 4 / math.pi**2 * (torch.atan(wb[..., 0] / wb[..., 1]) - torch.atan(wa[..., 0] / (wa[..., 1] + 1e-7))) ** 2
    with torch.no_grad():
        weight = angle / (1 - iou + angle + 1e-7)
    return iou, iou - gap / (hull.square().sum(-1) + 1e-7) - weight * angle


@torch.no_grad()
def assigned(
    boxes: Tensor, scores: Tensor, centres: Tensor, truth: Tensor, classes: Tensor, real: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (assigned [n, anchors], index of the box [n, anchors], weight of the target [n, anchors])."""
    inside = torch.minimum(centres - truth[:, :, None, :2], truth[:, :, None, 2:] - centres).amin(-1) > 0
    iou = complete_iou(boxes[:, None], truth[:, :, None])[0]
    score = scores.gather(2, classes[:, None].expand(-1, boxes.shape[1], -1)).transpose(1, 2)
    metric = score.sqrt() * iou**6 * inside * real[..., None]
    top = torch.zeros_like(metric).scatter_(2, metric.topk(TOP, 2).indices, 1.0)
    chosen = top * (metric > 0)
    best = (iou * chosen).argmax(1)
    chosen = chosen * fn.one_hot(best, truth.shape[1]).transpose(1, 2)
    metric, iou = metric * chosen, iou * chosen
    weight = metric / metric.amax(2, keepdim=True).clamp(1e-9) * iou.amax(2, keepdim=True)
    return chosen.amax(1) > 0, best, weight.amax(1)


def loss_of(model: Detector, x: Tensor, truth: Tensor, classes: Tensor, real: Tensor) -> Tensor:
    """Return the loss of one batch."""
    boxes, logits, centres = model(x)
    on, index, weight = assigned(boxes, logits.sigmoid(), centres, truth, classes, real)
    target = fn.one_hot(classes.gather(1, index), logits.shape[2]) * (weight * on)[..., None]
    total = target.sum().clamp(1)
    scored = fn.binary_cross_entropy_with_logits(logits, target, reduction="sum") / total
    wanted = truth.gather(1, index[..., None].expand(-1, -1, 4))
    nearness = complete_iou(boxes[on], wanted[on])[1]
    return 0.5 * scored + 2.5 * ((1 - nearness) * weight[on]).sum() / total


def batch_of(indices: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pixels, boxes, classes and which of them are real, of scenes of the train part."""
    x = np.empty((len(indices), SIZE, SIZE, 3), np.uint8)
    truth = np.zeros((len(indices), MOST, 4), np.float32)
    truth[..., 2:] = 1
    classes, real = np.zeros((len(indices), MOST), np.int64), np.zeros((len(indices), MOST), bool)
    for i, scene in enumerate(indices):
        x[i], boxes, labels = digit_scene("train", scene)
        truth[i, : len(boxes)], classes[i, : len(labels)], real[i, : len(labels)] = boxes, labels, True
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.from_numpy(truth), torch.from_numpy(classes), torch.from_numpy(real)


def coupled(model: Detector) -> list[list[tuple[ConvBn, slice]]]:
    """Return layers with coupled channels: the halves of C2f blocks apart, the second one tied by a shortcut."""
    inside: set[nn.Module] = set()
    groups: list[list[tuple[ConvBn, slice]]] = []
    for block in model.modules():
        if isinstance(block, C2f):
            half = block.block.b[1].num_features
            groups.append([(block.enter, slice(0, half))])
            second = [(block.enter, slice(half, None))]
            groups += [second + [(block.block.b, slice(None))]] if block.block.shortcut else [
                second, [(block.block.b, slice(None))]
            ]  # fmt: skip
            inside |= {block.enter, block.block.b}
    groups += [[(m, slice(None))] for m in model.modules() if isinstance(m, ConvBn) and m not in inside]
    return groups


@torch.no_grad()
def decay_weak(groups: list[list[tuple[ConvBn, slice]]], rate: float) -> None:
    """Shrink the weaker channels of each group: filter, scale and shift times (1 - rate)."""
    for group in groups:
        scales = [layer[1].weight[part].abs() for layer, part in group]
        strength = torch.stack([s / s.max() for s in scales]).sum(0)
        weak = strength.argsort()[: int(len(strength) * WEAK)]
        for layer, part in group:
            for values in (layer[0].weight, layer[1].weight, layer[1].bias):
                values[part][weak] = values[part][weak] * (1 - rate)


def train(steps: int, seed: int = 0, batch: int = 32, rate: float = 4e-3, slim: int = 900) -> Detector:
    """Train from scratch on scenes of the train part, none of them twice; equal results of equal torch versions.

    In the last `slim` steps, of a second cycle, the weaker channels of every group decay until hardly any of them is
    left, as in models/digits_cnn.onnx: redundancy that pruning finds again without being told.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = Detector().train()
    _cycle(model, range(steps), batch, rate)
    _cycle(model, range(steps, steps + slim), batch, rate / 4, coupled(model))
    return model.eval()


def _cycle(
    model: Detector, steps: range, batch: int, rate: float, weak: Sequence[list[tuple[ConvBn, slice]]] = ()
) -> None:
    """Train one cycle of the learning rate."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], rate
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, len(steps), pct_start=0.1)
    total, start = 0.0, time.perf_counter()
    for done, step in enumerate(steps, 1):
        loss = loss_of(model, *batch_of(list(range(step * batch, (step + 1) * batch))))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if weak:
            decay_weak(list(weak), DECAY * min(1.0, 3 * done / len(steps)))
        total += loss.item()
        if done % 100 == 0:
            print(f"step {step + 1}: loss {total / 100:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
            total = 0.0


def export(model: Detector, path: Path) -> None:
    """Write the model with dynamic batch, height and width, and the metadata of an Ultralytics export."""
    axes = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            Exported(model).eval(),
            (torch.zeros(1, 3, SIZE, SIZE),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["output0"],
            dynamic_axes={"images": axes, "output0": {0: "batch", 2: "anchors"}},
        )
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.ClearField("doc_string")
    shape = proto.graph.output[0].type.tensor_type.shape
    shape.dim[1].ClearField("dim_param")
    shape.dim[1].dim_value = 4 + len(NAMES)  # the exporter does not see that it is fixed
    names = "{" + ", ".join(f"{i}: '{name}'" for i, name in enumerate(NAMES)) + "}"
    facts = {
        "description": "detector of digit scenes, trained by onnxprune's make_models.py",
        "task": "detect",
        "stride": str(max(STRIDES)),
        "imgsz": f"[{SIZE}, {SIZE}]",
        "batch": "1",
        "names": names,
    }
    onnx.helper.set_model_props(proto, facts)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
