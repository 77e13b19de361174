"""Retraining pruned models in PyTorch, on Lightning's Trainer.

    result = op.retrain(pruned, data="digits:train", settings=op.Settings(lr=0.003), epochs=3, teacher=original)
    result.save("retrained.onnx")

Names are loaded on first use: `Settings` can be made and checked without PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from onnxprune.training._callbacks import Epoch as Epoch
    from onnxprune.training._distillation import Teacher as Teacher
    from onnxprune.training._guards import process_rank as process_rank
    from onnxprune.training._learner import ValidationMetrics as ValidationMetrics
    from onnxprune.training._loop import Retrained as Retrained
    from onnxprune.training._loop import measure as measure
    from onnxprune.training._loop import retrain as retrain
    from onnxprune.training._loop import value_text as value_text
    from onnxprune.training._settings import Settings as Settings
    from onnxprune.training.checkpoints import remove_checkpoints as remove_checkpoints
    from onnxprune.training.methods import METHODS as METHODS
    from onnxprune.training.methods import Method as Method
    from onnxprune.training.methods import get_method as get_method

_WHERE = {
    "Epoch": "_callbacks", "METHODS": "methods", "Method": "methods", "Retrained": "_loop", "Settings": "_settings",
    "Teacher": "_distillation", "ValidationMetrics": "_learner", "get_method": "methods", "measure": "_loop",
    "process_rank": "_guards", "remove_checkpoints": "checkpoints", "retrain": "_loop",
    "value_text": "_loop",
}  # fmt: skip

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'onnxprune.training' has no attribute {name!r}")
    try:
        return getattr(import_module(f"onnxprune.training.{_WHERE[name]}"), name)
    except ImportError as err:
        raise OnnxPruneError(
            f"retraining needs torch, torchvision, onnx2torch and lightning ({err})",
            fix="pip install 'onnxprune[train]'",
        ) from err
