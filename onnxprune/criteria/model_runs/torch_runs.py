"""Classifier as a PyTorch module, and labelled samples in parts that fit into memory, for gradient-based criteria.

Imported when such a criterion runs, not with the criteria: it loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional

from onnxprune.criteria.base import ScoringContext
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import DEVICES
from onnxprune.execution.tasks.metrics import check_labels, scores_of
from onnxprune.ir.model import Array, Model
from onnxprune.torch_bridge import logits_of, to_torch
from onnxprune.torch_bridge.running import cpu_threads

_MEMORY = {"cpu": 2**28, "cuda": 2**32}  # bytes of all tensors of one forward run

Visit = Callable[[torch.Tensor, torch.Tensor, int], None]
Visitor = Callable[[int, torch.Tensor, torch.Tensor, int, int, int], None]


def classifier(context: ScoringContext, model: Model, tensors: Sequence[str]) -> fx.GraphModule:
    """Return a module that returns the logits and then tensors inside the model, as a tuple.

    It runs in inference mode, in float32 (float64 if the model's input is), on the calibration's device.

    Args:
        context: Model, groups and samples.
        model: Normalized model. A final Softmax is removed; the first output holds the logits.
        tensors: Names of the tensors.

    Raises:
        OnnxPruneError: An operator has no converter, or CUDA was requested and is not available.
    """
    device = _device(context.calibration.device)
    cut = logits_of(model)
    module = to_torch(cut, outputs=[cut.graph.outputs[0].name, *tensors]).eval()
    dtype = torch.float64 if context.analysis.model.graph.inputs[0].dtype == np.float64 else torch.float32
    for inner in module.modules():
        settings: dict[str, Any] = getattr(inner, "settings", {})
        if settings.get("dtype") in (torch.float16, torch.bfloat16):  # a cast, in which small gradients would vanish
            settings["dtype"] = dtype
    # Gradients are computed for tensors inside. With an integer input they start from the weights.
    module.requires_grad_(np.dtype(context.analysis.model.graph.inputs[0].dtype).kind in "iub")
    return module.to(device=device, dtype=dtype)


def loss_gradients(context: ScoringContext, tensors: Sequence[str], visit: Visitor) -> None:
    """Call a function with tensors of the normalized model and the gradients of each sample's own cross-entropy.

    One forward and one backward run suffice: the gradient of the sum of the samples' losses is each sample's own, as
    long as no sample affects another's output (only BatchNormalization in training mode would).

    Args:
        context: Model, groups and samples.
        tensors: Names of the tensors.
        visit: Called for a part of the samples with (index of the tensor in `tensors`, its values `[samples * k, ...]`,
            gradients of the same shape, samples, number of leading samples that are not copies, batch size).

    Raises:
        OnnxPruneError: As `classifier` and `each_part`; or the loss is not finite.
    """
    module = classifier(context, context.analysis.model, tensors)

    def differentiate(x: torch.Tensor, y: torch.Tensor, batch: int) -> None:
        if x.is_floating_point():
            x.requires_grad_()
        output, *maps = module(x)
        loss = functional.cross_entropy(logits_in(output, len(x))[: len(y)], y, reduction="sum")
        if not torch.isfinite(loss):
            raise OnnxPruneError(
                "the loss is not finite on this data", fix="check the data and its scaling (--mean, --std)"
            )
        gradients = torch.autograd.grad(loss, maps, allow_unused=True, materialize_grads=True)
        for index, (a, g) in enumerate(zip(maps, gradients, strict=True)):
            visit(index, a.detach(), g, len(x), len(y), batch)

    each_part(context, module, differentiate)


def each_part(context: ScoringContext, module: fx.GraphModule, visit: Visit) -> None:
    """Call a function with all samples, a part of a batch at a time.

    Results for single samples do not depend on the parts. A part keeps the tensors of a forward run within 256 MiB
    (4 GiB on CUDA), but holds at least one sample, and a whole batch if the model's is fixed.

    Args:
        context: Model, groups and samples.
        module: Module from `classifier`.
        visit: Called with (inputs of the module [n, ...], labels [m], size of the calibration's batch that contains
            the part). The first m inputs are samples, the others copies that fill a fixed batch.

    Raises:
        OnnxPruneError: Labels outside the model's classes, outputs that are not one score per class.
    """
    feeds = context.calibration.feeds(context.analysis.model)
    device = _device(context.calibration.device)
    step = done = 0
    with cpu_threads(context.calibration.threads):
        for i in range(len(feeds)):
            feed, y = feeds[i]
            assert isinstance(y, np.ndarray)
            x = _tensor(feed[feeds.name])
            if not step:
                step = _step(module, x.to(device) if feeds.fixed else x[:1].to(device), context)
                step = feeds.fixed or step
            for start in range(0, len(y), step):
                labels = _tensor(y[start : start + step]).to(device)
                visit(x[start : start + step].to(device), labels, len(y))
                done += len(labels)
                if context.progress is not None:
                    context.progress(done, len(context.calibration))


def logits_in(output: torch.Tensor, samples: int) -> torch.Tensor:
    """Return a classifier's output as [samples, classes].

    Raises:
        OnnxPruneError: The output is not of that form, or not finite.
    """
    scores_of(output.detach().cpu().numpy(), samples)
    return output.flatten(1)


def channels_first(values: torch.Tensor, axis: int, samples: int) -> torch.Tensor:
    """Return a tensor `[samples * k, ...]` with channels on an axis as `[samples, channels, positions]`."""
    moved = values.movedim(axis, 1)
    split = moved.reshape(samples, len(moved) // samples, moved.shape[1], -1)
    return split.movedim(2, 1).reshape(samples, moved.shape[1], -1)


def _step(module: fx.GraphModule, x: torch.Tensor, context: ScoringContext) -> int:
    """Return the number of samples of a part, measured in a run; check that outputs and labels fit."""
    run = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        output = run.run(x)[0]
    computed = [v for node, v in run.env.items() if node.op == "call_module" and isinstance(v, torch.Tensor)]
    size = sum(int(v.nbytes) for v in computed)
    classes = logits_in(output, len(x)).shape[1]
    check_labels(np.empty((0, classes)), context.labels)
    return max(1, _MEMORY[x.device.type] * len(x) // max(1, size))


def _tensor(values: Array) -> torch.Tensor:
    """Return an array as a tensor: no 16-bit floats, nothing read-only (PyTorch warns about it)."""
    if values.dtype.kind in "fV" and values.dtype != np.float64:
        values = values.astype(np.float32, copy=False)
    return torch.from_numpy(np.require(values, requirements=("C", "W")))


def _device(name: str) -> torch.device:
    if name not in DEVICES:
        raise OnnxPruneError(f"unknown device {name!r}", fix=f"choose from: {', '.join(DEVICES)}")
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise OnnxPruneError("CUDA was requested, but this PyTorch has none", fix="--device cpu")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")
