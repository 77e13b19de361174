"""Data: samples with optional labels or other targets."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune._utils.output.formatting import shortened
from onnxprune._utils.output.html import html_table
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._sources import ArraySource, Source, digest_of
from onnxprune.execution.data._targets import PickedTargets, Target, Targets, kind_of
from onnxprune.ir.model import Array

COPIED = 2**28
"""Bytes of samples of a mapped array that are read at once."""


@dataclass(frozen=True, repr=False)
class Data:
    """Inputs and optional targets.

    Attributes:
        x: Inputs: an array [n, ...], arrays by input name, or a `Source` that is read batch by batch.
        y: Integer labels [n], or None.
        name: Name in messages and results.
        targets: Other targets, one per sample: boxes, masks, texts or numbers.
        classes: Folder names that the labels number, until they are matched with the model's outputs.
        size: Height and width for image files if neither the preprocessing nor the model has one.
        warnings: Lines for users about the data.
    """

    x: Any
    y: npt.NDArray[np.int64] | None
    name: str
    targets: Sequence[Target] | None = None
    classes: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Data {shortened(self.name, 80)}: {len(self)} samples {self.source.shown()}, {self._shown_targets()}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: inputs, and the samples of each class."""
        rows = []
        if self.y is not None:
            rows = [[str(k), str(n)] for k, n in zip(*np.unique(self.y, return_counts=True), strict=True)]
        return html_table(f"data {self.name}", ["class", "samples"], rows, note=repr(self))

    def __len__(self) -> int:
        return len(self.x) if not isinstance(self.x, Mapping) else len(self.source)

    @property
    def source(self) -> Source:
        """Samples with random access."""
        if isinstance(self.x, Source):
            return self.x
        return ArraySource(self.x if isinstance(self.x, Mapping) else {"": self.x})

    @property
    def kind(self) -> str:
        """Kind of the targets: "labels", "boxes", "masks", "texts", "values"; "" for none."""
        if self.y is not None:
            return "labels"
        return kind_of(self.targets[0]) if self.targets is not None and len(self.targets) else self.source.targets

    def take(self, indices: Any, *, copied: int = COPIED) -> Data:
        """Return some of the samples, by index; image files are not read, and little of a mapped array.

        Args:
            indices: Indices, or a mask.
            copied: Most bytes of samples of a mapped array that are read at once.
        """
        at = np.asarray(indices)
        at = np.flatnonzero(at) if at.dtype == np.bool_ else at.astype(np.int64)
        in_memory = isinstance(self.x, np.ndarray) and (
            not isinstance(self.x, np.memmap) or self.x.nbytes // max(1, len(self.x)) * len(at) <= copied
        )
        return replace(
            self, x=np.asarray(self.x[at]) if in_memory else self.source.take(at),
            y=None if self.y is None else self.y[at],
            targets=None if self.targets is None else PickedTargets(self.targets, at),
        )  # fmt: skip

    def within(self, seconds: float) -> Data:
        """Return the data with a limit for the time that one image takes to decode; 0: no limit."""
        return replace(self, x=self.x.within(seconds)) if isinstance(self.x, Source) else self

    def targets_of(self, part: slice, read: Sequence[Target] | None) -> Targets:
        """Return the targets of consecutive samples; `read` are those that the source returned."""
        if self.y is not None:
            return self.y[part]
        return list(self.targets[part]) if self.targets is not None else read

    def digest(self) -> bytes:
        """Return a digest of what identifies samples and targets, without reading all of them."""
        out = hashlib.sha256(digest_of(self.source))
        out.update(b"" if self.y is None else self.y.tobytes())
        for target in self.targets or ():
            out.update(target.encode() if isinstance(target, str) else _bytes_of(target))
        return out.digest()

    def _shown_targets(self) -> str:
        if self.y is not None:
            return f"{len(np.unique(self.y))} classes"
        return self.kind or "no labels"


def _bytes_of(target: Any) -> bytes:
    boxes = getattr(target, "boxes", None)
    return np.asarray(target).tobytes() if boxes is None else boxes.tobytes() + target.classes.tobytes()


def checked_data(x: Any, y: Any, name: str) -> Data:
    """Return data from arrays.

    Args:
        x: Samples [n, ...], or arrays by input name.
        y: Integer labels [n] or [n, 1], masks (integers [n, height, width]), numbers (floats [n, ...]), a sequence of
            texts or boxes, or None.
        name: Name in messages.

    Raises:
        OnnxPruneError: The samples are no non-empty arrays of numbers, or the targets do not fit them.
    """
    arrays = {str(k): as_array(v) for k, v in x.items()} if isinstance(x, Mapping) else {"": as_array(x)}
    shared = {key: a for key, a in arrays.items() if not a.ndim}
    samples = next((len(a) for a in arrays.values() if a.ndim), 0)
    if shared and samples:  # a single number is that of all samples
        arrays |= {key: np.broadcast_to(a, (samples,)) for key, a in shared.items()}
    lengths = {}
    for key, a in arrays.items():
        if a.ndim < 1 or len(a) == 0 or a.dtype.kind not in "fiubV" or a.dtype.type is np.void:
            raise OnnxPruneError(f"{key or 'x'} in {name!r} is not a non-empty array of numbers")
        lengths[key or "x"] = len(a)
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{k}: {n}" for k, n in lengths.items())
        raise OnnxPruneError(
            f"the arrays of {name!r} differ in the number of samples ({shown})",
            fix="the first axis of every array is the samples",
        )
    count = next(iter(lengths.values()))
    return with_targets(Data(arrays if isinstance(x, Mapping) else arrays[""], None, name), y, count)


def with_targets(data: Data, y: Any, count: int) -> Data:
    """Return data with targets; see `checked_data`."""
    if y is None:
        return data
    if isinstance(y, Sequence) and len(y) == count and kind_of(y[0]) in ("boxes", "texts"):
        return replace(data, targets=list(y))
    labels = as_array(y)
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "iu":
        labels = labels[:, 0]
    if labels.ndim and len(labels) == count and labels.dtype.kind in "iuf" and labels.shape != (count,):
        if labels.dtype.kind == "f" or labels.ndim > 2:
            return replace(data, targets=list(labels))
    elif labels.shape == (count,) and labels.dtype.kind == "f":
        return replace(data, targets=list(labels.astype(np.float32)))
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise OnnxPruneError(
            f"y in {data.name!r} must be {count} integer labels; it is {list(labels.shape)} of {labels.dtype}"
        )
    return replace(data, y=labels.astype(np.int64))


def as_array(value: Any) -> Array:
    """Return numbers of any library (a tensor of PyTorch, a list) as an array.

    Raises:
        OnnxPruneError: The value is none.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as err:
        raise OnnxPruneError(f"a {type(value).__name__} is no array of numbers: {err}") from err


def subset(data: Data, images: int) -> Data:
    """Return `images` samples: evenly from the classes if there are labels, else the first ones."""
    if images < 1:
        raise OnnxPruneError("the number of images must be at least 1")
    if images >= len(data):
        return data
    return data.take(evenly(data.y, len(data), images))


def evenly(labels: npt.NDArray[np.int64] | None, count: int, images: int) -> npt.NDArray[np.int64]:
    """Return indices of samples: the same share of every class if there are labels, else the first ones."""
    if labels is None:
        return np.arange(images)
    rank = np.empty(count, np.int64)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where))
    return np.sort(np.lexsort((np.arange(count), rank))[:images])


def missing_classes(labels: npt.NDArray[np.int64], classes: int) -> list[int]:
    """Return the classes without a sample."""
    present = Counter(labels.tolist())
    return [k for k in range(classes) if k not in present]
