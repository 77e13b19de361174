"""Inputs of a model, and samples in their form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._preprocess import Preprocess
from onnxprune.ir.image_layout import (
    PERMUTATION,
    Arrangement,
    Shape,
    arrange,
    fits,
    is_single_image,
    layout_of,
    layouts_that_fit,
    turned,
)
from onnxprune.ir.model import Array, Model

BYTES = 255.0
PIXEL_UNITS = 8.0
"""A mean or standard deviation above it is in units of bytes; of pixels in [0, 1] both are below 1."""


@dataclass(frozen=True)
class InputSpec:
    """Input of a model.

    Attributes:
        shape: Shape, batch first; entries of unknown dimensions are not numbers.
        dtype: Element type.
        layout: Layout of images: "nchw", "nhwc", or None if unknown.
        name: Tensor name.
        single: Whether the model takes one image without a batch axis; `shape` has one of 1.
    """

    shape: Shape
    dtype: np.dtype[Any]
    layout: str | None = None
    name: str = ""
    single: bool = False

    @property
    def batch(self) -> int | None:
        """Samples per run if the batch is fixed, else None."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) and first > 0 else None

    @property
    def image(self) -> tuple[int | None, int | None, int | None]:
        """Channels, height and width of an image input, None where they are not fixed."""
        dims = [d if isinstance(d, int) and d > 0 else None for d in self.shape]
        return (dims[3], dims[1], dims[2]) if self.layout == "nhwc" else (dims[1], dims[2], dims[3])


def inputs_of(model: Model) -> list[InputSpec]:
    """Return the inputs of a model."""
    tensors = model.graph.inputs
    if len(tensors) == 1 and is_single_image(tensors[0]):
        [t] = tensors
        return [InputSpec([1, *t.shape], np.dtype(t.dtype), "nchw", t.name, single=True)]
    return [InputSpec(list(t.shape or []), np.dtype(t.dtype), layout_of(t), t.name) for t in tensors]


def samples_first(specs: Sequence[InputSpec]) -> bool:
    """Return whether the first axis of all inputs can be the samples: all of them fixed to one size, or all dynamic."""
    return len({spec.batch for spec in specs if spec.shape}) <= 1


@dataclass(frozen=True)
class Expected:
    """Form of the samples that a model takes.

    Attributes:
        ranks: Number of axes of each input, the samples' included.
        whole: Whether samples are complete feeds, because the first axes of the inputs are not all the samples.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    whole: bool = False


def expected_by(model: Model | None) -> Expected:
    """Return the form of the samples that a model takes; of none nothing is known."""
    if model is None:
        return Expected()
    specs = inputs_of(model)
    return Expected({spec.name: len(spec.shape) for spec in specs}, not samples_first(specs))


def input_of(model: Model) -> InputSpec:
    """Return the only input of a model.

    Raises:
        OnnxPruneError: The model has several inputs.
    """
    found = inputs_of(model)
    if len(found) != 1:
        names = ", ".join(repr(spec.name) for spec in found)
        raise OnnxPruneError(
            f"the model has {len(found)} inputs ({names}), and the data one",
            fix="use data by input name: an .npz with an array for each, or dicts of arrays",
        )
    return found[0]


def to_input(x: Array, into: InputSpec, how: Preprocess, name: str) -> Array:
    """Convert samples to the form of the model's input.

    Args:
        x: Samples [n, ...].
        into: Input of the model.
        how: Normalization and layout of the data.
        name: Name of the data, for messages.

    Raises:
        OnnxPruneError: The samples do not fit the input, or it is ambiguous whether they are transposed.
    """
    if x.dtype.kind == "f" and into.dtype.kind not in "fV":
        raise OnnxPruneError(f"the data {name!r} holds {x.dtype}, the model's input is {into.dtype}")
    lies = arrangement(x, into, how, name)
    if not fits(turned(x.shape, lies.layout) if lies.moved else x.shape, into.shape):
        others = layouts_that_fit(x.shape, into.shape, into.layout) if x.ndim == len(into.shape) == 4 else []
        ours, its = (f" ({part})" if part else "" for part in (lies.layout if lies.moved else "", into.layout))
        fix = "check --layout and the size of the images (--size)"
        if others:
            fix = f"they fit with --layout {' or '.join(others)}"
        raise OnnxPruneError(
            f"samples {list(x.shape[1:])} of {name!r}{ours} do not fit the model's input {list(into.shape)}{its}",
            fix=fix,
        )
    values = _normalized(x, into, how, lies.layout == "nhwc")
    if lies.moved:
        values = values.transpose(PERMUTATION[lies.layout])
    out = np.ascontiguousarray(values, into.dtype)
    return out if out.flags.aligned else out.copy()  # an array mapped from inside an .npz may lie at any byte


def scale_of(how: Preprocess, dtype: np.dtype[Any], into: InputSpec) -> float:
    """Return the number that samples are divided by."""
    if how.scale is not None:
        return how.scale
    if dtype != np.uint8 or into.dtype.kind not in "fV" or in_bytes(how):
        return 1.0
    return BYTES


def in_bytes(how: Preprocess) -> bool:
    """Return whether mean or std are plainly in units of bytes."""
    return any(abs(v) > PIXEL_UNITS for v in (*how.mean, *how.std))


def _normalized(x: Array, into: InputSpec, how: Preprocess, last: bool) -> Array:
    values, scale = x, scale_of(how, x.dtype, into)
    if scale != 1 and into.dtype.kind in "fV":
        values = values.astype(np.float32) / np.float32(scale)
    if not how.mean and not how.std:
        return values
    channels = x.shape[-1] if last else x.shape[1] if x.ndim > 1 else 1
    view = [1, *([1] * (x.ndim - 2)), -1] if last else [1, -1, *([1] * (x.ndim - 2))]
    mean, std = (_for_channels(label, v, channels) for label, v in (("mean", how.mean), ("std", how.std)))
    if any(s == 0 for s in std):
        raise OnnxPruneError("--std holds a zero")
    values = values.astype(np.float32)
    if mean:
        values = values - np.asarray(mean, np.float32).reshape(view)
    if std:
        values = values / np.asarray(std, np.float32).reshape(view)
    return values


def _for_channels(label: str, numbers: Sequence[float], channels: int) -> Sequence[float]:
    if not numbers or len(numbers) in (1, channels):
        return numbers
    raise OnnxPruneError(
        f"--{label} has {len(numbers)} numbers, the data {channels} channels", fix="use one number, or one per channel"
    )


def arrangement(x: Array, into: InputSpec, how: Preprocess, name: str) -> Arrangement:
    """Return the layout of samples and whether they are transposed for the model's input.

    Raises:
        OnnxPruneError: See `arrange`.
    """
    return arrange(x.shape, x.dtype == np.uint8, how.layout, into.shape, into.layout, name)
