"""Detection data in the layout of Ultralytics: `images/NAME.jpg` and `labels/NAME.txt`.

A line of a label file is an object, in shares of the image's width and height: `CLASS CX CY WIDTH HEIGHT`, or
`CLASS X1 Y1 X2 Y2 X3 Y3 ...`, a polygon. An image without a file has no objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxprune._utils.files.input_files import opened, read_text
from onnxprune._utils.output.formatting import listed
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._readers.images import IMAGES, ImageFiles, ImageSource
from onnxprune.execution.data._targets import Boxes

_LOOKED_AT = 100  # label files that tell boxes from the texts of another tool
_NUMBERS = re.compile(rb"\s*\d+(\.0*)?(\s+[-+.\deE]+){4,}\s*")
_SLACK = 0.01  # share of the image by which coordinates may lie outside of it
_NAMES = ("classes.txt", "labels.txt", "predefined_classes.txt", "notes.txt")  # files of tools beside the labels
_FORM = "one line CLASS CX CY WIDTH HEIGHT for each object, in shares of the image"


def label_folder(images: Path) -> Path | None:
    """Return the folder of the label files of a folder of images, `labels` for the last `images` in its path.

    None if there is none, or if its first files hold no line of numbers: they are of another tool.
    """
    folder = _among_labels(images)
    if folder is None or not folder.is_dir():
        return None
    return folder if any(_holds_numbers(f) for f in _label_files(folder)[:_LOOKED_AT]) else None


def _holds_numbers(file: Path) -> bool:
    with opened(file) as text:
        lines = text.read(4096).splitlines()
    return any(_NUMBERS.fullmatch(line) for line in lines)


def _label_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix == ".txt" and f.name not in _NAMES and f.is_file())


def read_yolo(name: str, images: Path, labels: Path) -> Data:
    """Read images and their label files; images are decoded when they are needed, their headers are read first.

    Args:
        name: Name of the data in messages.
        images: Folder of images.
        labels: Folder of label files.

    Raises:
        OnnxPruneError: No label file belongs to an image, or a line is not of this form.
    """
    files = sorted(f for f in images.iterdir() if f.suffix.lower() in IMAGES and f.is_file())
    if not files:
        raise OnnxPruneError(f"{str(images)!r} holds no images ({', '.join(IMAGES)})")
    stems, written = {f.stem for f in files}, _label_files(labels)
    lost = [f.name for f in written if f.stem not in stems]
    if len(lost) == len(written):
        raise OnnxPruneError(
            f"none of the {len(written)} label files has an image of the same name: {listed(lost)}",
            where=str(labels), fix=f"put the images into {str(images)!r}",
        )  # fmt: skip
    known = {f.stem: f for f in written}
    data = read_labelled(name, {f: known.get(f.stem) for f in files})
    if not lost:
        return data
    line = f"{len(lost)} of {len(written)} label files in {str(labels)!r} have no image: {listed(lost)}"
    return replace(data, warnings=(line,))


def label_file(image: Path) -> Path | None:
    """Return the label file of an image, in `labels` for the last `images` in its path; None if there is none."""
    folder = _among_labels(image.parent)
    file = None if folder is None else folder / f"{image.stem}.txt"
    return file if file is not None and file.is_file() else None


def _among_labels(folder: Path) -> Path | None:
    """Return a folder with `labels` for the last `images` in its path; None if it has no `images`."""
    parts = folder.absolute().parts
    if "images" not in parts:
        return None
    at = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:at], "labels", *parts[at + 1 :])


def read_labelled(name: str, files: Mapping[Path, Path | None], classes: int | None = None) -> Data:
    """Read images and their label files.

    Args:
        name: Name of the data in messages.
        files: Label file of each image; None for an image without objects.
        classes: Number of classes; None: not known.

    Raises:
        OnnxPruneError: A line is not of this form, or of a class that does not exist.
    """
    source = ImageFiles(list(files))
    targets = [_boxes(label, source, i, classes) for i, label in enumerate(files.values())]
    return Data(ImageSource(source, targets), None, name)


def _boxes(path: Path | None, source: ImageFiles, index: int, classes: int | None) -> Boxes:
    """Return the objects of an image, in its pixels."""
    rows = _objects(path, classes) if path is not None else []
    if not rows:
        return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    height, width = source.size(index)
    corners = np.array([corner for _, corner in rows], np.float64) * [width, height, width, height]
    return Boxes(
        corners.astype(np.float32), np.array([number for number, _ in rows], np.int64), np.zeros(len(rows), np.bool_)
    )


def _objects(path: Path, classes: int | None) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Return class and corners, in shares of the image, of each line."""
    try:
        lines = read_text(path).splitlines()
    except OSError as err:
        raise OnnxPruneError(f"cannot read {str(path)!r}: {err.strerror or err}", fix=_FORM) from err
    out = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            kind, *values = map(float, line.split())
        except ValueError as err:
            raise OnnxPruneError(f"not numbers: {line[:60]!r}", where=where, fix=_FORM) from err
        if not kind.is_integer() or not 0 <= kind < 2**31:
            raise OnnxPruneError(f"{line.split()[0]!r} is no class, a whole number from 0", where=where, fix=_FORM)
        if classes is not None and kind >= classes:
            raise OnnxPruneError(
                f"class {int(kind)}, but the data has {classes} classes", where=where,
                fix="number the classes from 0, in the order of their names",
            )  # fmt: skip
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise OnnxPruneError(f"{len(values)} numbers follow the class", where=where, fix=_FORM)
        if not all(math.isfinite(v) and -_SLACK <= v <= 1 + _SLACK for v in values):
            raise OnnxPruneError(
                f"coordinates are outside of 0 to 1: {line[:60]!r}", where=where,
                fix="divide pixels by the width and height of the image",
            )  # fmt: skip
        out.append((int(kind), _corners(values)))
    return out


def _corners(values: list[float]) -> tuple[float, float, float, float]:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
