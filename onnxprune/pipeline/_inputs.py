"""Conversion of models, plans, curves and data from the forms that users pass."""

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
from onnxprune.ir.input_sizes import Shapes, with_shapes
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.planning.curves import Curves, load_curves
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, load_plan

SYNTHETIC = 512  # samples of synthetic data unless `images` is given


class HasModel(Protocol):
    """Result that holds a model: of `prune`, `recover` or `retrain`."""

    @property
    def model(self) -> Model:
        """Model of the result."""


ModelSource = Model | HasModel | str | os.PathLike[str] | onnx.ModelProto
"""A model, a result that holds one, the path of a file, or a ModelProto."""
PlanSource = Plan | str | os.PathLike[str]
"""A plan or the path of its file."""
CurvesSource = Curves | str | os.PathLike[str]
"""Sensitivity curves or the path of their file."""
DataSource = Data | Calibration | str | os.PathLike[str]
"""Data, data with the settings of its runs, or a source that `load_data` reads."""


def as_model(given: ModelSource, shapes: Shapes | None = None) -> Model:
    """Return the model, read if it is a path, with the sizes of its inputs as far as they are given.

    Raises:
        OnnxPruneError: the argument is neither a model nor the source of one, the file cannot be read, or the shapes do
            not fit the inputs.
    """
    if isinstance(given, Model):
        return with_shapes(given, shapes)
    if isinstance(given, str | os.PathLike | onnx.ModelProto):
        return load(given, shapes=shapes)
    model = given.source if isinstance(given, Analysis) else getattr(given, "model", None)
    if not isinstance(model, Model):
        raise OnnxPruneError(
            f"a model is expected, not a {type(given).__name__}", fix="pass a Model, a path or a ModelProto"
        )
    return with_shapes(model, shapes)


def as_plan(given: PlanSource) -> Plan:
    """Return the plan, read if it is a path."""
    return given if isinstance(given, Plan) else load_plan(given)


def as_curves(given: CurvesSource | None) -> Curves | None:
    """Return the curves, read if they are a path."""
    return given if given is None or isinstance(given, Curves) else load_curves(Path(given))


def as_target(given: Target | str | None) -> Target | None:
    """Return the target, parsed if it is text such as "macs=0.5"."""
    return Target.parse(given) if isinstance(given, str) else given


def as_data(given: DataSource, *, images: int | None = None, size: Sequence[int] | None = None) -> Data:
    """Return the data, read if it is the name of a source; see `load_data`."""
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

    A `Calibration` is returned unchanged: it has its own preprocessing, batch size, device and threads.
    """
    if given is None or isinstance(given, Calibration):
        return given
    if is_synthetic(given):
        return Calibration(synthetic_data(model, images or SYNTHETIC), device=device)
    return Calibration(as_data(given, images=images, size=size), preprocess or Preprocess(), device=device)


def is_synthetic(given: DataSource | None) -> bool:
    """Return True if the data is synthetic."""
    name = given.data.name if isinstance(given, Calibration) else given.name if isinstance(given, Data) else given
    return name == "none"
