"""Training-time pruning methods; each returns a plan. A file is named like its method."""

from __future__ import annotations

from typing import Any

from onnxprune._utils.registry import Registry, make
from onnxprune.training.methods._base import Method as Method
from onnxprune.training.methods.group_lasso import GroupLasso as GroupLasso
from onnxprune.training.methods.polarization import Polarization as Polarization
from onnxprune.training.methods.slimming import Slimming as Slimming
from onnxprune.training.methods.soft_filter import SoftFilter as SoftFilter

METHODS: Registry[str, type[Method]] = Registry("method")
"""Training-time pruning methods by name."""
for _cls in (GroupLasso, Polarization, Slimming, SoftFilter):
    METHODS.register(_cls)


def get_method(name: str, **params: Any) -> Method:
    """Make a method with the user's parameters: `get_method("slimming", strength=1e-3)`.

    Raises:
        OnnxPruneError: no such method (the nearest names are offered), no such parameter (the valid ones are), or a
            value out of range.
    """
    return make(METHODS.kind, name, METHODS[name], params)
