"""Data for evaluation and calibration: images and labels, validated before they reach a model.

`--data` accepts an `.npz` with `x` and `y`, a folder with one subfolder of images per class, `digits` (scikit-learn's),
or `package.module:function` that returns (x, y). `--mean --std --layout` define the conversion from pixels to the
model's input, whose layout is read from the model.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from onnxprune._utils.formatting import short_repr, shortened
from onnxprune._utils.html import html_table
from onnxprune._utils.import_strings import find_function
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.image_layout import (
    PERMUTATION,
    Arrangement,
    Shape,
    arrange,
    fits,
    layout_of,
    layouts_that_fit,
    turned,
)
from onnxprune.ir.model import Array, Model

MAX_ARRAY_BYTES = 64 * 2**30
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp")


@dataclass(frozen=True, repr=False)
class Preprocess:
    """Conversion of pixels to the model's input: x' = (x / scale - mean) / std, in the model's layout.

    Attributes:
        mean: Mean per channel, in units of the scaled pixels.
        std: Standard deviation per channel, in the same units.
        layout: Layout of the data: "nchw", "nhwc", or "auto" (uint8 [n, h, w, 1 or 3 or 4] is nhwc, all other data has
            the layout of the model's input).
    """

    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    layout: str = "auto"

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True, repr=False)
class Data:
    """Inputs [n, ...] and optional integer labels [n]."""

    x: Array
    y: npt.NDArray[np.int64] | None
    name: str

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.x.shape[1:]))
        labels = f"{len(np.unique(self.y))} classes" if self.y is not None else "no labels"
        return f"<Data {shortened(self.name, 80)}: {len(self)} samples [{shape}] {self.x.dtype}, {labels}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: inputs, and the samples of each class."""
        rows = []
        if self.y is not None:
            rows = [[str(k), str(n)] for k, n in zip(*np.unique(self.y, return_counts=True), strict=True)]
        return html_table(f"data {self.name}", ["class", "samples"], rows, note=repr(self))

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Any) -> Data:
        """Return the samples at indices."""
        return Data(self.x[indices], None if self.y is None else self.y[indices], self.name)


def load_data(source: str, *, images: int | None = None, size: tuple[int, int] | None = None) -> Data:
    """Read data; the form of the source selects the reader.

    Args:
        source: See the module.
        images: Number of samples to use, the same share of every class if there are labels.
        size: (height, width) in pixels to which image files are resized.

    Raises:
        OnnxPruneError: The source is unknown, or its contents are not valid data.
    """
    if source in ("digits", "digits:test", "digits:train"):
        data = _digits(source.partition(":")[2] or "test")
    elif ":" in source and not Path(source).exists():
        data = _function(source)
    elif Path(source).is_dir():
        data = _folder(Path(source), size)
    elif Path(source).suffix == ".npz" or Path(source).is_file():
        data = _npz(Path(source))
    else:
        raise OnnxPruneError(
            f"cannot find the data {source!r}",
            fix="use an .npz with x and y, a folder of class folders, digits, or package.module:function",
        )
    return subset(data, images) if images else data


def as_data(
    given: Data | str | os.PathLike[str], *, images: int | None = None, size: Sequence[int] | None = None
) -> Data:
    """Return the data that is given, read if it is the name of a source; see `load_data`."""
    if isinstance(given, Data):
        return given
    return load_data(os.fspath(given), images=images, size=(size[0], size[1]) if size else None)


def subset(data: Data, images: int) -> Data:
    """Return `images` samples: evenly from the classes if there are labels, else the first ones."""
    if images < 1:
        raise OnnxPruneError("the number of images must be at least 1")
    if images >= len(data):
        return data
    if data.y is None:
        return Data(data.x[:images], None, data.name)
    rank = np.empty(len(data), np.int64)
    for label in np.unique(data.y):
        where = np.flatnonzero(data.y == label)
        rank[where] = np.arange(len(where))
    chosen = np.sort(np.lexsort((np.arange(len(data)), rank))[:images])
    return Data(data.x[chosen], data.y[chosen], data.name)


def split_digits(count: int, part: str) -> npt.NDArray[np.int64]:
    """Return indices of the train (three of four) or test (every fourth) part of a dataset of `count` samples."""
    index = np.arange(count)
    return np.flatnonzero(index % 4 == 0 if part == "test" else index % 4 != 0)


def _digits(part: str) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise OnnxPruneError(
            f"the digits data needs scikit-learn ({err})", fix="pip install 'onnxprune[data]'"
        ) from err
    digits = load_digits()
    index = split_digits(len(digits.target), part)
    x = (digits.images[index, None] / 16.0).astype(np.float32)
    return Data(x, digits.target[index].astype(np.int64), f"digits:{part}")


def _function(source: str) -> Data:
    function = find_function(source, "data function")
    try:
        result = function()
    except Exception as err:  # a user's function may raise anything
        raise OnnxPruneError(f"the data function {source!r} failed: {type(err).__name__}: {err}") from err
    if not isinstance(result, tuple) or len(result) != 2:
        raise OnnxPruneError(f"the data function {source!r} must return (x, y)")
    return _checked(result[0], result[1], source)


def _npz(path: Path) -> Data:
    """Read x and y of an .npz file; headers are checked before allocation, and nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if "x.npy" not in names:
                raise OnnxPruneError(f"{str(path)!r} has no array x (it has: {', '.join(sorted(names)) or 'none'})")
            for name in {"x.npy", "y.npy"} & names:
                with archive.open(name) as member:
                    version = npy.read_magic(member)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = read(member)
                size = dtype.itemsize * int(np.prod(shape, dtype=object))
                if dtype.hasobject or size > MAX_ARRAY_BYTES:
                    raise OnnxPruneError(f"{name} in {str(path)!r} holds objects or is too large ({size} bytes)")
                if size > archive.getinfo(name).file_size:
                    raise OnnxPruneError(f"{name} in {str(path)!r} is shorter than its header says")
        with np.load(path, allow_pickle=False) as arrays:
            return _checked(arrays["x"], arrays.get("y"), str(path))
    except OSError as err:
        raise OnnxPruneError(f"cannot read {str(path)!r}: {err.strerror or err}") from err
    except (zipfile.BadZipFile, ValueError, EOFError) as err:
        raise OnnxPruneError(f"{str(path)!r} is not a valid .npz file: {err}") from err


def _folder(path: Path, size: tuple[int, int] | None) -> Data:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as err:
        raise OnnxPruneError(f"reading images needs pillow ({err})", fix="pip install 'onnxprune[data]'") from err
    classes = sorted(d for d in path.iterdir() if d.is_dir())
    files = [(f, k) for k, d in enumerate(classes) for f in sorted(d.iterdir()) if f.suffix.lower() in IMAGES]
    if not files:
        raise OnnxPruneError(f"{str(path)!r} holds no class folders with images ({', '.join(IMAGES)})")
    empty = set(range(len(classes))) - {k for _, k in files}
    if empty:
        raise OnnxPruneError(
            f"the class folder {classes[min(empty)].name!r} holds no images",
            where=str(path),
            fix="add images, or remove the folder (labels are the indices of the folders in alphabetical order)",
        )
    pictures = []
    for file, _ in files:
        try:
            with Image.open(file) as image:
                rgb = image.convert("RGB")
                pictures.append(np.asarray(rgb.resize(size[::-1]) if size else rgb))
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as err:
            raise OnnxPruneError(f"cannot read the image: {err}", where=str(file)) from err
        if pictures[-1].shape != pictures[0].shape:
            raise OnnxPruneError(
                f"the images differ in size: {pictures[0].shape[:2]} and {pictures[-1].shape[:2]}", where=str(file)
            )
    return _checked(np.stack(pictures), np.array([k for _, k in files]), str(path))


def _checked(x: Any, y: Any, name: str) -> Data:
    x = np.asarray(x)
    if x.ndim < 1 or len(x) == 0 or x.dtype.kind not in "fiub":
        raise OnnxPruneError(f"x in {name!r} is not a non-empty array of numbers")
    if y is None:
        return Data(x, None, name)
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise OnnxPruneError(f"y in {name!r} must be {len(x)} integer labels; it is {list(y.shape)} of {y.dtype}")
    return Data(x, y.astype(np.int64), name)


@dataclass(frozen=True)
class InputSpec:
    """Input of a model with one input.

    Attributes:
        shape: Shape, batch first; entries of unknown dimensions are not numbers.
        dtype: Element type.
        layout: Layout of images: "nchw", "nhwc", or None if unknown.
        name: Tensor name.
    """

    shape: Shape
    dtype: np.dtype[Any]
    layout: str | None = None
    name: str = ""

    @property
    def batch(self) -> int | None:
        """Samples per run if the batch is fixed, else None."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) and first > 0 else None


def input_of(model: Model) -> InputSpec:
    """Return the only input of a model.

    Raises:
        OnnxPruneError: The model has several inputs.
    """
    inputs = model.graph.inputs
    if len(inputs) != 1:
        raise OnnxPruneError(f"the model has {len(inputs)} inputs; data is supported for one")
    return InputSpec(list(inputs[0].shape or []), np.dtype(inputs[0].dtype), layout_of(inputs[0]), inputs[0].name)


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
    last = lies.layout == "nhwc"
    values = x
    if x.dtype == np.uint8 and into.dtype.kind == "f":
        values = x.astype(np.float32) / 255
    if how.mean or how.std:
        channels = x.shape[-1] if last else x.shape[1] if x.ndim > 1 else 1
        view = [1, *([1] * (x.ndim - 2)), -1] if last else [1, -1, *([1] * (x.ndim - 2))]
        for label, numbers in (("mean", how.mean), ("std", how.std)):
            if numbers and len(numbers) not in (1, channels):
                raise OnnxPruneError(f"--{label} has {len(numbers)} numbers, the data {channels} channels")
        if any(s == 0 for s in how.std):
            raise OnnxPruneError("--std holds a zero")
        values = values.astype(np.float32)
        if how.mean:
            values = values - np.asarray(how.mean, np.float32).reshape(view)
        if how.std:
            values = values / np.asarray(how.std, np.float32).reshape(view)
    if lies.moved:
        values = values.transpose(PERMUTATION[lies.layout])
    return np.ascontiguousarray(values, into.dtype)


def arrangement(x: Array, into: InputSpec, how: Preprocess, name: str) -> Arrangement:
    """Return the layout of samples and whether they are transposed for the model's input.

    Raises:
        OnnxPruneError: See `arrange`.
    """
    return arrange(x.shape, x.dtype == np.uint8, how.layout, into.shape, into.layout, name)


class Feeds:
    """Batches of data for a model with one input: batch i is (feeds, labels), prepared on access.

    A model with a fixed batch gets complete batches: the inputs of the last batch are padded with copies, its labels
    are not.

    Raises:
        OnnxPruneError: The model has several inputs, or the samples do not fit its input.
    """

    def __init__(self, model: Model, data: Data, how: Preprocess, batch: int = 64) -> None:
        self.data, self.how, self.into = data, how, input_of(model)
        self.name, self.fixed = self.into.name, self.into.batch
        self.batch: int = self.fixed or batch

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch)

    def __getitem__(self, i: int) -> tuple[dict[str, Array], npt.NDArray[np.int64] | None]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = slice(i * self.batch, (i + 1) * self.batch)
        x, y = self.data.x[part], None if self.data.y is None else self.data.y[part]
        if self.fixed and len(x) < self.fixed:
            x = np.concatenate([x, np.repeat(x[-1:], self.fixed - len(x), axis=0)])
        return {self.name: to_input(x, self.into, self.how, self.data.name)}, y

    def real(self, i: int) -> int:
        """Return the number of samples of batch i that are not copies."""
        return min(self.batch, len(self.data) - i * self.batch)


def model_batches(
    model: Model, data: Data, how: Preprocess, batch: int = 64
) -> Iterator[tuple[dict[str, Array], npt.NDArray[np.int64] | None]]:
    """Return an iterator over the batches of `Feeds`."""
    feeds = Feeds(model, data, how, batch)
    return (feeds[i] for i in range(len(feeds)))
