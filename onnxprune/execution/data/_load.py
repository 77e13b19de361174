"""Data by the name of its source."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune._utils.import_strings import find_function
from onnxprune._utils.processes.deadlines import Deadline
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._classes import mapped
from onnxprune.execution.data._data import Data, subset
from onnxprune.execution.data._inputs import Expected, expected_by
from onnxprune.execution.data._readers.arrays import read_npy, read_npz
from onnxprune.execution.data._readers.coco import read_coco
from onnxprune.execution.data._readers.data_yaml import PARTS, read_data_yaml
from onnxprune.execution.data._readers.folders import read_folder, read_texts
from onnxprune.execution.data._readers.hub import read_hub
from onnxprune.execution.data._readers.objects import read_object, within
from onnxprune.execution.data._sources import Source
from onnxprune.execution.data.digit_scenes import read_digits, read_scenes
from onnxprune.ir.model import Array, Model
from onnxprune.options.data import ALL_SOURCES, DATA_TIMEOUT

Samples = Array | tuple[Any, Any] | Mapping[str, Any] | Iterable[Any] | Callable[[], Any]
"""(x, y), x, a dict of arrays, a Dataset, a DataLoader, a generator or its function, a CalibrationDataReader."""
SampleSource = Data | Source | str | os.PathLike[str] | Samples
"""Data, or what `load_data` reads."""


def load_data(
    source: SampleSource,
    *,
    images: int | None = None,
    size: Sequence[int] | None = None,
    model: Model | None = None,
    class_map: str | os.PathLike[str] | None = None,
    images_dir: str | os.PathLike[str] | None = None,
    data_timeout: float = DATA_TIMEOUT,
) -> Data:
    """Read data; the form of the source selects the reader.

    Args:
        source: A path or a name: an .npz with x and y or with arrays by input name, an .npy, a folder of images (flat,
            with a folder per class, with images/ and masks/, with labels.txt), COCO annotations (.json), an
            Ultralytics data.yaml (:train, :val, :test), a list of FILE<TAB>TEXT (.txt), digits, digit-scenes,
            hf:NAME:SPLIT, or package.module:function. Or a Python object: (x, y), x, a dict of arrays, a Dataset, a
            DataLoader, a generator or its function, a CalibrationDataReader.
        images: Number of samples to use, the same share of every class if there are labels.
        size: Height and width for image files if neither the preprocessing nor the model has one.
        model: Model that the data is for; its inputs tell samples from batches and targets.
        class_map: File that maps class folders to the model's outputs: JSON {folder: index} or one name per line.
        images_dir: Folder of the images that COCO annotations name.
        data_timeout: Seconds for one image to be decoded, and for one item of a data function; 0: no limit.

    Raises:
        OnnxPruneError: The source is unknown, or its contents are not valid data.
    """
    expected = expected_by(model)
    if isinstance(source, str | os.PathLike):
        folder = None if images_dir is None else Path(images_dir)
        data = _named(os.fspath(source), images, expected, folder, data_timeout)
    else:
        name = getattr(source, "__name__", type(source).__name__)
        with Deadline(data_timeout) as deadline:
            data = read_object(source, name, expected, images, deadline)
    if data_timeout != DATA_TIMEOUT:
        data = data.within(data_timeout)
    if class_map is not None:
        data = mapped(data, Path(class_map))
    if size:
        data = replace(data, size=(int(size[0]), int(size[1])))
    return subset(data, images) if images else data


def _named(
    source: str, images: int | None, expected: Expected, images_dir: Path | None, data_timeout: float
) -> Data:  # fmt: skip
    path = Path(source)
    if source == "digits" or (source.startswith("digits:") and not path.exists()):
        return _digits(source.partition(":")[2] or "test")
    if source.partition(":")[0] == "digit-scenes" and not path.exists():
        return read_scenes(source.partition(":")[2] or "test")
    if source.startswith("hf:"):
        return read_hub(source, expected, data_timeout)
    described, _, part = source.rpartition(":") if source.rpartition(":")[2] in PARTS else (source, "", "val")
    if described.lower().endswith((".yaml", ".yml")):
        return read_data_yaml(Path(described), part)
    if ":" in source and not path.exists():
        return _function(source, images, expected, data_timeout)
    if path.is_dir():
        return read_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_coco(path, images_dir)
    if suffix == ".npy":
        return read_npy(path)
    if suffix in (".txt", ".tsv") and path.is_file():
        return read_texts(path)
    if suffix == ".npz" or path.is_file():
        return read_npz(path, expected)
    raise OnnxPruneError(f"cannot find the data {source!r}", fix=f"use one of: {ALL_SOURCES}")


def _digits(part: str) -> Data:
    if part not in ("train", "test"):
        raise OnnxPruneError(f"the digits have no part {part!r}", fix="use digits:train or digits:test")
    images, labels = read_digits(part)
    return Data(images[:, None], labels, f"digits:{part}")


def _function(source: str, images: int | None, expected: Expected, data_timeout: float) -> Data:
    with Deadline(data_timeout) as deadline:
        function = within(deadline, lambda: find_function(source, "data function"), source, "the import")
        return read_object(function, source, expected, images, deadline)
