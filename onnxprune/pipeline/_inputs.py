"""Conversion of models, plans, curves and data from the forms that users pass."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import onnx

from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, Fitted, Preprocess, SampleSource, as_preprocess, fit
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
DataSource = Calibration | SampleSource
"""Data, data with the settings of its runs, or a source that `load_data` reads."""
PreprocessSource = Preprocess | str
"""Preprocessing or the name of a preset."""


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


def as_samples(
    given: DataSource,
    model: Model,
    *,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    labels: bool = False,
    device: str = "cpu",
) -> Fitted:
    """Return data and preprocessing for a model, read if it is a source; its first samples are run.

    Lines about what looks wrong are given as Python warnings.
    """
    how = as_preprocess(preprocess)
    if isinstance(given, Calibration):
        how, given = (how if preprocess is not None else given.preprocess), given.data
    if size:
        how = replace(how, size=(int(size[0]), int(size[1])))
    found = fit(model, read_data(given, images=images, model=model), how, labels=labels, device=device)
    for line in found.data.warnings:
        warnings.warn(line, stacklevel=3)
    return found


def as_calibration(
    given: DataSource | None,
    model: Model,
    *,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    device: str = "cpu",
) -> Calibration | None:
    """Return calibration data; "none" makes synthetic data for the model.

    A `Calibration` is returned unchanged: it has its own preprocessing, batch size, device and threads.
    """
    if given is None or isinstance(given, Calibration):
        return given
    if is_synthetic(given):
        return Calibration(synthetic_data(model, images or SYNTHETIC), device=device)
    found = as_samples(given, model, images=images, size=size, preprocess=preprocess, device=device)
    return Calibration(found.data, found.preprocess, device=device)


def is_synthetic(given: DataSource | None) -> bool:
    """Return True if the data is synthetic."""
    name = given.data.name if isinstance(given, Calibration) else given.name if isinstance(given, Data) else given
    return isinstance(name, str) and name == "none"
