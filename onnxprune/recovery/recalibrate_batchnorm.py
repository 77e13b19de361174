"""Restoration of the mean and variance that activations had before channels were removed.

Before:  y = Conv(x, W, b) ; Relu(y)                                 channels of x were removed
         y = Conv(x, W, b) ; BatchNormalization(y, gamma, beta, mean, var)
After:   y = Conv(x, W * s, (b - m) * s + m*) ; Relu(y)              s = sqrt(v* / v)
         y = Conv(x, W, b) ; BatchNormalization(y, gamma, beta, m, v)
Formula: m, v are mean and variance of y per channel over samples and positions in the pruned model, with the nodes
before it already corrected; m*, v* those of the original. If BatchNormalization was kept, its running statistics become
m and v ("adaptive" or "precise" BatchNorm, Li et al. 2020, EagleEye); in exports that folded it, the scale and shift of
the convolution are corrected instead.
Conditions: 1. only nodes that the pruning has changed, in graph order. 2. without BatchNormalization: Conv,
ConvTranspose, Gemm, MatMul with weight and bias of their own; the last layer, with or without a Softmax after it, is
unchanged. 3. a channel whose variance is zero in either model is only shifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.linear_layers import LinearNode, linear_node
from onnxprune.execution.calibration import Calibration, Probe
from onnxprune.execution.channel_moments import Moments
from onnxprune.ir.model import Model
from onnxprune.passes.base import Pass, register
from onnxprune.plans import NOTHING, Plan
from onnxprune.recovery._lockstep import PairedCursor
from onnxprune.recovery._original_activations import OriginalActivations

Vector = npt.NDArray[np.float64]

_LEAST = 1e-3  # below this share of the original deviation a channel is not rescaled
_MOST = 10.0  # largest scale factor
_LAST = ("Identity", "Flatten", "Reshape", "Squeeze", "Softmax", "LogSoftmax", "Sigmoid")  # after a last layer


@register
@dataclass(frozen=True)
class RecalibrateBatchnorm(Pass):
    """Match mean and variance of changed activations: BatchNorm statistics, or scales and shifts.

    Args:
        plan: Channels that were removed.
        analysis: Coupling analysis of the original.
        calibration: Calibration data; labels are not needed.
        originals: Statistics of the original, shared with other recoveries on the same samples.
    """

    name: ClassVar[str] = "recalibrate_batchnorm"
    plan: Plan = NOTHING
    analysis: Analysis | None = None
    calibration: Calibration | None = field(default=None, repr=False)
    originals: OriginalActivations | None = field(default=None, repr=False)

    def rewrite(self, model: Model) -> Model:
        """Correct all nodes in one traversal; without calibration data the model is unchanged.

        Raises:
            OnnxPruneError: The model is not the original pruned by the plan, samples do not fit, or activations are
                not finite.
        """
        if self.analysis is None or self.calibration is None:
            return model
        with PairedCursor(self.analysis, self.plan, model, self.calibration) as cursor:
            changed = cursor.changed()
            outputs = frozenset(t.name for t in model.graph.outputs)
            nodes = [n for n in model.graph.nodes if n.outputs[0].name in changed]
            folded = {n.outputs[0].name: f for n in nodes if (f := _folded(n, outputs)) is not None}
            folded = {name: f for name, f in folded.items() if f.output in cursor.pruned_cursor.segments.producer_index}
            wanted = self._original_moments({f.output: 1 if f.spatial else -1 for f in folded.values()})
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

    def _original_moments(self, axes: Mapping[str, int]) -> dict[str, Moments]:
        """Return the moments of tensors of the original, by name; `axes` are their channel axes."""
        analysis, calibration = self.analysis, self.calibration
        assert analysis is not None
        assert calibration is not None

        def collected() -> dict[str, Moments]:
            found = {name: Moments(name, axis) for name, axis in axes.items()}
            calibration.collect(analysis.model, [Probe(name, m) for name, m in found.items()])
            return found

        if self.originals is None:
            return collected()
        # The sums depend in their last bits on the tensors that are collected together.
        key = ("moments", len(calibration), calibration.batch, *axes.items())
        return self.originals.once(analysis.witness, key, collected)


def _kept(node: gs.Node) -> bool:
    return len(node.inputs) == 5 and all(isinstance(t, gs.Constant) and len(t.outputs) == 1 for t in node.inputs[3:])


def _folded(node: gs.Node, outputs: frozenset[str]) -> LinearNode | None:
    """Return the linear node if it can be scaled and shifted and is not the last layer (condition 2), else None."""
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
