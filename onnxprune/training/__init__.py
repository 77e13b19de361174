"""Retraining pruned models in PyTorch, on Lightning's Trainer.

    result = op.retrain(pruned, op.load_data("digits:train"), settings=Settings(epochs=3), teacher=original)
    op.save(result.model, "retrained.onnx")

Names are loaded on first use: `Settings` can be made and checked without PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from onnxprune.training.callbacks import Epoch as Epoch
    from onnxprune.training.checkpoints import remove_checkpoints as remove_checkpoints
    from onnxprune.training.distillation import Teacher as Teacher
    from onnxprune.training.guards import process_rank as process_rank
    from onnxprune.training.learner import ValidationMetrics as ValidationMetrics
    from onnxprune.training.loop import Retrained as Retrained
    from onnxprune.training.loop import measure as measure
    from onnxprune.training.loop import retrain as retrain
    from onnxprune.training.methods import METHODS as METHODS
    from onnxprune.training.methods import Method as Method
    from onnxprune.training.methods import get_method as get_method
    from onnxprune.training.settings import Settings as Settings

_WHERE = {
    "Epoch": "callbacks", "Figures": "learner", "METHODS": "methods", "Method": "methods", "Retrained": "loop",
    "Settings": "settings", "Teacher": "distillation", "get_method": "methods", "measure": "loop",
    "process_rank": "guards",
    "remove_checkpoints": "checkpoints", "retrain": "loop",
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
