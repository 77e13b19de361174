"""Datasets of Hugging Face: hf:NAME:SPLIT, from the hub's cache or a folder written by `save_to_disk`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.output.formatting import listed
from onnxprune._utils.processes.deadlines import Deadline
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._inputs import Expected
from onnxprune.execution.data._readers.arrays import ANYTHING
from onnxprune.execution.data._readers.images import Images, ImageSource, is_image
from onnxprune.execution.data._readers.objects import read_object
from onnxprune.options.data import DATA_TIMEOUT

_IMAGES = ("image", "img", "images", "pixel_values")
_LABELS = ("label", "labels", "fine_label", "target", "y")
_TEXTS = ("text", "label_text", "transcription")


class HubImages(Images):
    """Column of images of a dataset; each is decoded when it is read."""

    def __init__(self, dataset: Any, column: str, name: str) -> None:
        self.dataset, self.column, self.name = dataset, column, name

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Any:
        return self.dataset[int(index)][self.column]

    def where(self, index: int) -> str:
        return f"{self.name}, sample {index}"

    def update(self, digest: Any) -> None:
        digest.update(str(getattr(self.dataset, "_fingerprint", self.name)).encode())


def read_hub(source: str, expected: Expected = ANYTHING, data_timeout: float = DATA_TIMEOUT) -> Data:
    """Read a dataset: `hf:NAME:SPLIT`, or `hf:NAME@CONFIG:SPLIT` for one of several configurations.

    Raises:
        OnnxPruneError: The library is missing, the dataset cannot be loaded, or has no columns of samples.
    """
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError as err:
        raise OnnxPruneError(
            f"hf: needs the library datasets ({err})", fix="pip install 'onnxprune[datasets]'"
        ) from err
    body = source.removeprefix("hf:")
    name, _, split = body.rpartition(":") if ":" in body else (body, "", "")
    name, _, config = name.partition("@")
    try:
        if Path(name).is_dir() and any((Path(name) / f).exists() for f in ("state.json", "dataset_dict.json")):
            found: Any = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config or None)
    except Exception as err:  # the library raises many types
        raise OnnxPruneError(
            f"cannot load the dataset {name!r}: {type(err).__name__}: {str(err).splitlines()[0] if str(err) else ''}",
            fix="check the name and the connection; hf:NAME@CONFIG:SPLIT selects a configuration",
        ) from err
    if hasattr(found, "keys"):
        splits = list(found)
        chosen = split or (splits[0] if len(splits) == 1 else "")
        if chosen not in splits:
            raise OnnxPruneError(
                f"the dataset {name!r} has no split {chosen!r}"
                if chosen
                else f"the dataset {name!r} has several splits",
                fix=f"add one of: {', '.join(f'hf:{name}:{s}' for s in splits[:6])}",
            )
        found = found[chosen]
    if not len(found):
        raise OnnxPruneError(f"the dataset {source!r} is empty")
    return _columns(found, source, expected, data_timeout)


def _columns(dataset: Any, source: str, expected: Expected, data_timeout: float) -> Data:
    columns = list(dataset.column_names)
    first = dataset[0]
    image = next((c for c in (*_IMAGES, *columns) if c in columns and is_image(first[c])), None)
    inputs = tuple(expected.ranks)
    label = next((c for c in _LABELS if c in columns and c not in inputs), None)
    if image is not None:
        text = next((c for c in _TEXTS if c in columns and isinstance(first[c], str)), None)
        data = Data(ImageSource(HubImages(dataset, image, source)), None, source)
        if label is not None and isinstance(first[label], int):
            names = getattr(dataset.features[label], "names", None) or ()
            labels = np.asarray(dataset[label], np.int64)
            return Data(data.x, labels, source, classes=tuple(map(str, names)) if len(names) > labels.max() else ())
        return Data(data.x, None, source, targets=list(dataset[text])) if text is not None else data
    named = [c for c in columns if c in inputs]
    if not named and len(inputs) <= 1:
        named = [c for c in columns if c not in _LABELS and not isinstance(first[c], str)][:1]
    if not named:
        raise OnnxPruneError(
            f"the dataset {source!r} has no columns for the model's inputs (it has: {listed(columns, 8)})",
            fix="name columns as the inputs, or return arrays from package.module:function",
        )

    class _HubRows:
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, i: int) -> Any:
            row = dataset[i]
            x = np.asarray(row[named[0]]) if named[0] not in inputs else {c: np.asarray(row[c]) for c in named}
            return x if label is None else (x, row[label])

    with Deadline(data_timeout) as deadline:
        return read_object(_HubRows(), source, expected, deadline=deadline)
