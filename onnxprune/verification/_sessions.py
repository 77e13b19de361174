"""Sessions of the checker: regions of a graph, and whole models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array


@dataclass(frozen=True)
class Sessions:
    """Factory of onnxruntime sessions.

    Attributes:
        make: Constructor of a session, with device and threads.
        integers: Whether the model multiplies integers, whose kernels are exact only in optimized graphs.
        quantized: Whether the model rounds activations to integers.
    """

    make: Callable[..., Session]
    integers: bool
    quantized: bool

    def region_session(self, proto: onnx.ModelProto, weights: Mapping[str, Array]) -> Session:
        """Return a session of some nodes, not optimized unless integers require it."""
        return self.make(proto, weights=weights, optimize=self.integers, exact_integers=self.integers)

    def model_session(self, proto: onnx.ModelProto, weights: Mapping[str, Array]) -> Session:
        """Return a session of a whole model; Q/DQ pairs are not fused, because masks split them in one model only."""
        optimize = self.integers or not self.quantized
        try:
            return self.make(proto, weights=weights, optimize=optimize, exact_integers=self.integers)
        except OnnxPruneError:
            # onnxruntime's optimizer breaks some graphs, such as an If with a constant condition and an exposed input.
            return self.make(proto, weights=weights, optimize=False)
