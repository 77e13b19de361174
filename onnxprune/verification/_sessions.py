"""Sessions of the checker: parts of a graph as they are, and whole models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array


@dataclass(frozen=True)
class Sessions:
    """Makes onnxruntime sessions.

    Attributes:
        make: constructor of a session, with device and threads.
        integers: whether the model multiplies integers, whose kernels are exact only in optimized graphs.
        quantized: whether the model rounds activations to integers.
    """

    make: Callable[..., Session]
    integers: bool
    quantized: bool

    def region_session(self, proto: onnx.ModelProto, weights: Mapping[str, Array]) -> Session:
        """Make a session of some nodes, as they are."""
        return self.make(proto, weights=weights, optimize=self.integers, exact_integers=self.integers)

    def model_session(self, proto: onnx.ModelProto, weights: Mapping[str, Array]) -> Session:
        """Make a session of a whole model; Q/DQ pairs stay as they are, since masks part them in one model only."""
        optimize = self.integers or not self.quantized
        try:
            return self.make(proto, weights=weights, optimize=optimize, exact_integers=self.integers)
        except OnnxPruneError:
            # onnxruntime's optimizer breaks some graphs, such as an If with a constant condition whose input is shown.
            return self.make(proto, weights=weights, optimize=False)
