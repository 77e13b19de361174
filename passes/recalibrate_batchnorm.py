"""Gives activations the mean and variance again that they had before channels were removed.

Before:  y = Conv(x, W, b) ; Relu(y)                                 x has lost channels
         y = Conv(x, W, b) ; BatchNormalization(y, gamma, beta, mean, var)
After:   y = Conv(x, W * s, (b - m) * s + m*) ; Relu(y)              s = sqrt(v* / v)
         y = Conv(x, W, b) ; BatchNormalization(y, gamma, beta, m, v)
Formula: m, v are mean and variance of y per channel over samples and positions in the pruned model, as the nodes before
leave it; m*, v* those of the original. Where BatchNormalization was kept its running statistics become m and v (what
"adaptive" or "precise" BatchNorm does, Li et al. 2020, EagleEye); on exports that folded it the scale and shift of the
convolution do the same.
Conditions: 1. only nodes that the pruning has changed, in the order of the graph. 2. without BatchNormalization: Conv,
ConvTranspose, Gemm, MatMul with weight and bias of their own; the last layer stays as it is, with or without a Softmax
after it. 3. a channel whose variance has vanished in either model is only shifted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.calibration import Calibration, Probe
from onnxprune.channel_statistics import Moments
from onnxprune.coupling import Analysis
from onnxprune.linear_nodes import LinearNode, linear_node
from onnxprune.model import Model
from onnxprune.paired_walk import PairedCursor
from onnxprune.passes.base import Pass, register
from onnxprune.plans import NOTHING, Plan

Vector = npt.NDArray[np.float64]

_LEAST = 1e-3  # a deviation that shrank to less of what it was has nothing left to be blown up
_MOST = 10.0  # nor is any blown up by more
_LAST = ("Identity", "Flatten", "Reshape", "Squeeze", "Softmax", "LogSoftmax", "Sigmoid")  # what follows a last layer


@register
@dataclass(frozen=True)
class RecalibrateBatchnorm(Pass):
    """Matches mean and variance of what the pruning has changed: BatchNorm statistics, or scales and shifts.

    Args:
        plan: what was removed.
        analysis: of the original.
        calibration: samples; labels are not needed.
    """

    name: ClassVar[str] = "recalibrate_batchnorm"
    plan: Plan = NOTHING
    analysis: Analysis | None = None
    calibration: Calibration | None = field(default=None, repr=False)

    def rewrite(self, model: Model) -> Model:
        """Goes through the graph once; without samples the model stays as it is.

        Raises:
            OnnxPruneError: a model that the plan does not make of the original; samples that do not fit, activations
                that are not finite.
        """
        if self.analysis is None or self.calibration is None:
            return model
        with PairedCursor(self.analysis, self.plan, model, self.calibration) as cursor:
            changed = cursor.changed()
            outputs = frozenset(t.name for t in model.graph.outputs)
            nodes = [n for n in model.graph.nodes if n.outputs[0].name in changed]
            folded = {n.outputs[0].name: f for n in nodes if (f := _folded(n, outputs)) is not None}
            folded = {name: f for name, f in folded.items() if f.output in cursor.pruned_cursor.segments.producer_index}
            wanted = {f.output: Moments(f.output, 1 if f.spatial else -1) for f in folded.values()}
            self.calibration.collect(self.analysis.model, [Probe(name, m) for name, m in wanted.items()])
            for node in nodes:
                if node.op == "BatchNormalization" and _kept(node):
                    found = cursor.moments(node.inputs[0].name, node, 1)
                    for t, values in zip(node.inputs[3:5], (found.mean, found.variance), strict=True):
                        limit = np.finfo(t.dtype).max if t.dtype.kind == "f" else np.inf
                        t.values = np.clip(values, -limit, limit).astype(t.dtype)
                elif (linear := folded.get(node.outputs[0].name)) is not None:
                    found = cursor.moments(linear.output, node, 1 if linear.spatial else -1)
                    _match(linear, found, wanted[linear.output], cursor.kept_channels(linear.output, linear.spatial))
        return model


def _kept(node: gs.Node) -> bool:
    return len(node.inputs) == 5 and all(isinstance(t, gs.Constant) and len(t.outputs) == 1 for t in node.inputs[3:])


def _folded(node: gs.Node, outputs: frozenset[str]) -> LinearNode | None:
    """A linear node that can be scaled and shifted, and whose outputs go on (condition 2)."""
    linear = linear_node(node, outputs)
    if linear is None or linear.bias is None:
        return None
    t = node.outputs[0] if linear.output == node.outputs[0].name else node.outputs[0].outputs[0].outputs[0]
    if any(n.op == "BatchNormalization" for n in t.outputs):
        return None
    while t.name not in outputs and len(t.outputs) == 1 and t.outputs[0].op in _LAST:
        t = t.outputs[0].outputs[0]
    return None if t.name in outputs else linear


def _match(linear: LinearNode, measured: Moments, target: Moments, kept: npt.NDArray[np.bool_] | None) -> None:
    mean, variance = target.mean, target.variance
    if kept is not None:
        mean, variance = mean[kept], variance[kept]
    deviation, aim = np.sqrt(measured.variance), np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where((deviation > _LEAST * aim) & (aim > 0), aim / deviation, 1.0)  # condition 3
    scale = np.minimum(scale, _MOST)
    matrix = linear.matrix() * scale.reshape(linear.groups, 1, -1)
    linear.set_weights(matrix, (linear.shift() - measured.mean) * scale + mean)
