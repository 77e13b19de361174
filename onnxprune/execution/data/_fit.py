"""Data matched with a model before anything slow starts: labels, preprocessing, plausible values, one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune._utils.output.formatting import listed
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._classes import check_labels_fit, class_count, fitted_boxes, fitted_labels
from onnxprune.execution.data._data import Data, missing_classes
from onnxprune.execution.data._feeds import Feeds
from onnxprune.execution.data._inputs import BYTES, InputSpec, in_bytes
from onnxprune.execution.data._preprocess import Preprocess
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model

_SAMPLES = 8  # samples of the first batch that are looked at
_FAR = 20.0  # normalized values beyond it are far outside what mean and std suppose
_LARGE = 16.0  # floats above it, and none below 0, look like bytes
_COVERED = 2  # samples per class from which a missing class is worth a line
_SCALING = ("Div", "Mul", "Sub", "Add", "BatchNormalization", "Cast", "QuantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class Fitted:
    """Data for one model.

    Attributes:
        data: Data with the labels of the model; `warnings` say what looks wrong.
        preprocess: Preprocessing with what the model decides.
    """

    data: Data
    preprocess: Preprocess


def fit(
    model: Model,
    data: Data,
    how: Preprocess | None = None,
    *,
    labels: bool = False,
    run: bool = True,
    device: str = "cpu",
    threads: int = 0,
) -> Fitted:
    """Match data with a model, and run its first samples through it.

    Args:
        model: Model that the data is for, the original.
        data: Samples and targets.
        how: Preprocessing.
        labels: Whether labels of classes are needed.
        run: Whether to run the model.
        device: Device of the run.
        threads: CPU threads of the run; 0: all cores.

    Raises:
        OnnxPruneError: Samples or labels do not fit the model; a file cannot be read; inputs or outputs are not finite.
    """
    _check_values(data, model)
    data = fitted_labels(fitted_boxes(data, model), model, required=labels)
    if labels:
        check_labels_fit(data, model)
    feeds = Feeds(model, data, how or Preprocess(), _SAMPLES)
    data.source.check()
    how, found = _plausible(model, feeds, _first(feeds), feeds.how)
    warnings = list(data.warnings)
    warnings += found
    if found:
        feeds = Feeds(model, data, how, _SAMPLES)
    if labels and data.y is not None and (count := class_count(model)) is not None and len(data) >= _COVERED * count:
        missing = missing_classes(data.y, count)
        if missing:
            warnings.append(
                f"{len(missing)} of the model's {count} classes have no samples ({listed(map(str, missing), 5)})"
            )
    if run:
        _run(model, feeds, device, threads)
    return Fitted(replace(data, warnings=tuple(dict.fromkeys(warnings))), how)


def _check_values(data: Data, model: Model) -> None:
    """Raise if the labels of a classifier are floats or one-hot.

    Raises:
        OnnxPruneError: The model has classes, and all targets are single whole numbers, or a one among zeros.
    """
    count = class_count(model)
    if count is None or data.kind != "values" or data.targets is None:
        return
    numbers = [np.asarray(t) for t in data.targets]
    if all(v.size == 1 and float(v.reshape(-1)[0]).is_integer() for v in numbers):
        raise OnnxPruneError(
            f"y in {data.name!r} holds whole numbers as {numbers[0].dtype}, and the model {count} classes",
            fix="save y as integer labels: y.astype('int64')",
        )
    if count > 1 and all(v.size == count and (v == 1).sum() == 1 and (v == 0).sum() == count - 1 for v in numbers):
        raise OnnxPruneError(f"y in {data.name!r} is one-hot", fix="save y as integer labels: y.argmax(1)")


def _first(feeds: Feeds) -> dict[str, Array]:
    """Return the first samples before normalization.

    Raises:
        OnnxPruneError: A file cannot be read, or values are not finite.
    """
    arrays, _ = feeds.data.source.read(feeds.span(0), feeds.how)
    for name, x in arrays.items():
        if x.dtype.kind in "fV" and not np.isfinite(np.asarray(x, np.float64)).all():
            rows = np.isfinite(np.asarray(x, np.float64)).reshape(len(x) if x.ndim else 1, -1).all(1)
            raise OnnxPruneError(
                f"{f'the input {name!r} of ' if name else ''}sample {int(np.argmin(rows))} of {feeds.data.name!r} is "
                "not finite",
                fix="remove the sample, or check how the data was made",
            )
    return arrays


def _plausible(model: Model, feeds: Feeds, raw: Mapping[str, Array], how: Preprocess) -> tuple[Preprocess, list[str]]:
    """Return the preprocessing, in the units of the samples, and a line for each value that looks wrong."""
    warnings = []
    for key, spec in feeds.inputs.items():
        x = raw[key]
        if x.dtype.kind not in "fiu" or x.size < 2 or (len(feeds.inputs) > 1 and len(spec.shape) != 4):
            continue
        low, high = float(x.min()), float(x.max())
        what = f"input {spec.name!r}"
        if _constant(x):
            warnings.append(f"all values of {what} are {low:g} in the first {len(x)} samples; check the data")
            continue
        if len(x) > 1 and not feeds.data.source.whole and bool((x == x[:1]).all()):
            warnings.append(f"the first {len(x)} samples of {feeds.data.name!r} are equal; check how they are made")
        if spec.dtype.kind not in "fV":
            continue
        if x.dtype.kind == "f" and in_bytes(how) and how.scale is None and low >= 0 and high <= 1:
            how = replace(how, scale=1 / BYTES)
            warnings.append(
                f"pixels are in [0, 1], and mean {_shown(how.mean)} and std {_shown(how.std)} are in units of bytes, "
                "so pixels are multiplied by 255 first"
            )
        elif x.dtype.kind == "f" and not _scaled(how) and len(spec.shape) == 4 and low >= 0 and high > _LARGE:
            if not _scales_itself(model, spec):
                warnings.append(
                    f"values of {what} reach {high:g} and nothing scales them, as pixels in 0..255 would; models of "
                    "images expect about -3..3: use --scale 255, --mean and --std, or --preprocess"
                )
        elif _standardized(how) and (furthest := _furthest(feeds, spec)) > _FAR:
            warnings.append(
                f"values of {what} reach {furthest:.0f} after mean and std: the samples are in "
                f"{low:g}..{high:g}; check --mean, --std and --scale"
            )
    return how, warnings


def _constant(x: Array) -> bool:
    rows = x.reshape(len(x), -1) if x.ndim > 1 else x.reshape(1, -1)
    return rows.shape[1] > 1 and bool((rows == rows[:1, :1]).all())


def _scaled(how: Preprocess) -> bool:
    return bool(how.mean or how.std or how.scale is not None)


def _standardized(how: Preprocess) -> bool:
    """Return whether values are expected near 0: not if the means of bytes are subtracted alone."""
    return bool(how.std or how.mean) and not (in_bytes(how) and not how.std)


def _scales_itself(model: Model, spec: InputSpec) -> bool:
    """Return whether the first operators of a model scale its input."""
    tensor = next(t for t in model.graph.inputs if t.name == spec.name)
    consumers: list[Any] = list(tensor.outputs)
    for _ in range(3):
        if any(node.op in _SCALING for node in consumers):
            return True
        consumers = [n for node in consumers if node.op in ("Transpose", "Identity", "Resize", "Pad", "Split", "Slice")
                     for t in node.outputs for n in t.outputs]  # fmt: skip
    return False


def _furthest(feeds: Feeds, spec: InputSpec) -> float:
    """Return the largest normalized value of the first samples."""
    return float(np.abs(np.asarray(feeds[0][0][spec.name], np.float64)).max())


def _shown(values: Any) -> str:
    return ",".join(f"{v:g}" for v in values) or "0"


def _run(model: Model, feeds: Feeds, device: str, threads: int) -> None:
    """Run the first batch and one of another size.

    Raises:
        OnnxPruneError: onnxruntime fails, or an output is not finite.
    """
    session = Session(model, device=device, threads=threads)
    for i in sorted({0, len(feeds) - 1 if feeds.mixed else 0}):
        feed, _ = feeds[i]
        shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in feed.items())
        try:
            outputs = session.run(feed)
        except OnnxPruneError as err:
            raise OnnxPruneError(
                err.what, where=f"data {feeds.data.name!r}, {shapes}",
                fix="the model cannot run on these samples: check their size (--size) and the order of their axes",
            ) from err  # fmt: skip
        for name, value in zip(session.outputs, outputs, strict=True):
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
                raise OnnxPruneError(
                    f"the model's output {name!r} is not finite on this data",
                    where=f"data {feeds.data.name!r}, batch {i}",
                    fix="check the data and its scaling (--mean, --std, --scale); a float16 model may overflow",
                )
