"""Pruning as a pass over onnx-ir models, to be run alone or in a sequence of passes.

import onnx_ir as ir
from onnxprune.integrations.onnx_ir import PrunePass

result = ir.passes.Sequential(PrunePass(target="macs=0.5"))(ir.load("model.onnx"))
"""

from __future__ import annotations

from inspect import signature
from typing import Unpack

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.writer import to_proto
from onnxprune.pipeline import Pruned, PruneOptions, prune

try:
    import onnx_ir
except ImportError as error:
    raise OnnxPruneError("the pass needs onnx-ir", fix="pip install 'onnxprune[onnx-ir]'") from error


class PrunePass(onnx_ir.passes.FunctionalPass):  # type: ignore[misc]  # mypy does not follow onnx-ir
    """Remove channels and prove the result; see `onnxprune.prune` for all options.

    Attributes:
        pruned: Result of the last run, with its plan and its proof; None before the first.

    Args:
        options: Keyword arguments of `onnxprune.prune`: target, data, criterion and so on.

    Raises:
        TypeError: An option is not one of `onnxprune.prune`.
        onnx_ir.passes.PassError: In a sequence; its cause is the OnnxPruneError that says what to do.
    """

    def __init__(self, **options: Unpack[PruneOptions]) -> None:
        signature(prune).bind_partial(**options)
        self.options = options
        self.pruned: Pruned | None = None

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """Return the pruned model as a new one."""
        self.pruned = prune(onnx_ir.serde.serialize_model(model), **self.options)
        smaller = onnx_ir.serde.deserialize_model(to_proto(self.pruned.model))
        return onnx_ir.passes.PassResult(smaller, modified=bool(self.pruned.plan.removed or self.pruned.plan.blocks))
