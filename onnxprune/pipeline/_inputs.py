"""Models, plans, curves and data as users give them, turned into values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import onnx

from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, Preprocess
from onnxprune.execution.data import as_data as read_data
from onnxprune.execution.synthetic_data import synthetic_data
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.planning.curves import Curves, load_curves
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, load_plan

SYNTHETIC = 512  # samples of synthetic data unless `images` is given


class HasModel(Protocol):
    """A result that holds a model: of `prune`, `recover` or `retrain`."""

    @property
    def model(self) -> Model:
        """The model."""


ModelSource = Model | HasModel | str | os.PathLike[str] | onnx.ModelProto
"""A model, a result that holds one, the path of a file, or a ModelProto."""
PlanSource = Plan | str | os.PathLike[str]
"""A plan or the path of its file."""
CurvesSource = Curves | str | os.PathLike[str]
"""Sensitivity curves or the path of their file."""
DataSource = Data | Calibration | str | os.PathLike[str]
"""Data, data with the settings it is run with, or what `load_data` reads."""


def as_model(given: ModelSource) -> Model:
    """Return the model that is given.

    Raises:
        OnnxPruneError: it is neither a model nor the source of one, or the file cannot be read.
    """
    if isinstance(given, Model):
        return given
    if isinstance(given, str | os.PathLike | onnx.ModelProto):
        return load(given)
    model = given.source if isinstance(given, Analysis) else getattr(given, "model", None)
    if not isinstance(model, Model):
        raise OnnxPruneError(
            f"a model is expected, not a {type(given).__name__}", fix="a Model, the path of a file, or a ModelProto"
        )
    return model


def as_plan(given: PlanSource) -> Plan:
    """Return the plan that is given, read if it is a path."""
    return given if isinstance(given, Plan) else load_plan(given)


def as_curves(given: CurvesSource | None) -> Curves | None:
    """Return the curves that are given, read if they are a path."""
    return given if given is None or isinstance(given, Curves) else load_curves(Path(given))


def as_target(given: Target | str | None) -> Target | None:
    """Return the target that is given, parsed if it is text such as "macs=0.5"."""
    return Target.parse(given) if isinstance(given, str) else given


def as_data(given: DataSource, *, images: int | None = None, size: Sequence[int] | None = None) -> Data:
    """Return the data that is given, read if it is the name of a source; see `load_data`."""
    return read_data(given.data if isinstance(given, Calibration) else given, images=images, size=size)


def as_calibration(
    given: DataSource | None,
    model: Model,
    *,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: Preprocess | None = None,
    device: str = "cpu",
) -> Calibration | None:
    """Return calibration data; "none" makes synthetic data for the model.

    A `Calibration` is returned as it is: it has its own preprocessing, batch size, device and threads.
    """
    if given is None or isinstance(given, Calibration):
        return given
    if is_synthetic(given):
        return Calibration(synthetic_data(model, images or SYNTHETIC), device=device)
    return Calibration(as_data(given, images=images, size=size), preprocess or Preprocess(), device=device)


def is_synthetic(given: DataSource | None) -> bool:
    """Return whether the data is synthetic."""
    name = given.data.name if isinstance(given, Calibration) else given.name if isinstance(given, Data) else given
    return name == "none"
