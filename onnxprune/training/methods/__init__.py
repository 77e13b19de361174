"""Training-time pruning methods; each returns a plan. A file is named like its method."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.training.methods._base import Method as Method
from onnxprune.training.methods.group_lasso import GroupLasso as GroupLasso
from onnxprune.training.methods.polarization import Polarization as Polarization
from onnxprune.training.methods.slimming import Slimming as Slimming
from onnxprune.training.methods.soft_filter import SoftFilter as SoftFilter

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (GroupLasso, Polarization, Slimming, SoftFilter)}
"""By name."""


def get_method(name: str, **params: Any) -> Method:
    """Makes a method with the user's parameters: `get_method("slimming", strength=1e-3)`.

    Raises:
        OnnxPruneError: no such method (the nearest names are offered), no such parameter (the valid ones are), or a
            value out of range.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    valid = [f.name for f in fields(METHODS[name]) if f.init]
    wrong = [p for p in params if p not in valid]
    if wrong:
        raise OnnxPruneError(
            f"method {name!r} has no parameter {', '.join(map(repr, wrong))}",
            fix=f"its parameters are: {', '.join(valid)}",
        )
    return METHODS[name](**params)
