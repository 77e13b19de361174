"""Labels of class folders, matched with the outputs of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.output.formatting import listed
from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._readers.images import ImageSource
from onnxprune.execution.data._resolve import beside, literal
from onnxprune.execution.data._targets import Boxes
from onnxprune.ir.model import Model

_FORMAT = Format(
    "class map", 2**24, fix="a JSON object {folder: index}, a JSON list of names, or one name per line in class order"
)
_LARGEST = 2**31 - 1  # number of a class; larger ones are no classes
_SYNSET = re.compile(r"(n\d{8})\b")
_KEYS = ("names", "class_names", "classes", "labels", "id2label")
_FILES = ("labels.txt", "classes.txt", "synset.txt", "imagenet_classes.txt")


def mapped(data: Data, path: Path) -> Data:
    """Return data whose class folders, or categories of boxes, are numbered by a class map.

    Raises:
        OnnxPruneError: The data has no named classes, the file is no class map, or a class is not in it.
    """
    if not data.classes or data.kind not in ("labels", "boxes"):
        raise OnnxPruneError(
            f"a class map is for class folders and COCO categories, and the data {data.name!r} has none",
            fix="leave out --class-map",
        )
    numbers = read_class_map(path)
    missing = [name for name in data.classes if _number(name, numbers) is None]
    if missing:
        raise OnnxPruneError(
            f"{len(missing)} of {len(data.classes)} classes are not in the class map: {listed(missing)}",
            where=str(path),
            fix=f"add them (it has {listed(numbers)}), or remove the folders",
        )
    if data.kind == "boxes":
        return _renumbered_boxes(data, [_number(name, numbers) or 0 for name in data.classes])
    return _renumbered(data, [_number(name, numbers) or 0 for name in data.classes])


def read_class_map(path: Path) -> dict[str, int]:
    """Read a class map: JSON {folder: index}, JSON list, {index: [folder, name]} of Keras, or lines.

    A line is a name in class order, `NAME INDEX` or `SYNSET NAME, ...`.

    Raises:
        OnnxPruneError: The file cannot be read, or has another form.
    """
    if path.suffix.lower() == ".json":
        return _from_json(_FORMAT.load(path), str(path))
    lines = [line.strip() for line in _FORMAT.load_text(path).split("\n") if line.strip()]
    if not lines:
        raise _FORMAT.error("it is empty", str(path))
    pairs = [re.fullmatch(r"(.+?)[\s,:=]+(\d+)", line) for line in lines]
    if all(pairs):
        return {m[1].strip(): int(m[2]) for m in pairs if m is not None}
    return _in_order(lines)


def _in_order(names: Sequence[str]) -> dict[str, int]:
    out: dict[str, int] = {}
    for k, name in enumerate(names):
        out.setdefault(name, k)
        if (synset := _SYNSET.match(name)) is not None:
            out.setdefault(synset[1], k)
    return out


def _from_json(document: Any, where: str) -> dict[str, int]:
    if isinstance(document, list) and all(isinstance(v, str) for v in document):
        return _in_order(document)
    if isinstance(document, dict) and document:
        if all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _LARGEST for v in document.values()):
            return {str(k): int(v) for k, v in document.items()}
        if all(_is_number(str(k)) for k in document):
            out: dict[str, int] = {}
            for k, v in document.items():
                for name in v if isinstance(v, list) else [v]:
                    if isinstance(name, str):
                        out.setdefault(name, int(k))
            if out:
                return out
    raise _FORMAT.error("it is none of the known forms", where)


def fitted_labels(data: Data, model: Model, *, required: bool) -> Data:
    """Return data whose class folders are numbered as the model's outputs.

    In this order: names in the model's metadata or beside it; numbers as folder names; the alphabetical order, if there
    are as many folders as outputs.

    Args:
        data: Data, whose `classes` are the folder names.
        model: Classifier.
        required: Whether labels are needed; without, labels that do not fit are removed with a warning.

    Raises:
        OnnxPruneError: Labels are needed, and nothing says which output a folder belongs to.
    """
    if not data.classes or data.y is None:
        return data
    names, count = data.classes, class_count(model)
    known = known_classes(model)
    if known and all(_number(name, known) is not None for name in names):
        return _renumbered(data, [_number(name, known) or 0 for name in names])
    if all(map(_is_number, names)):
        numbers = [int(name) for name in names]
        if count is None or max(numbers) < count:
            return _renumbered(data, numbers)
        if sorted(numbers) == list(range(1, count + 1)):
            note = f"folders are numbered from 1 to {count}; they are read as the classes 0 to {count - 1}"
            return _renumbered(data, [n - 1 for n in numbers], note)
    if count is None or len(names) == count:
        return replace(data, classes=())
    what = f"the data has {len(names)} class folders ({listed(names)}), and the model {count} classes"
    fix = "say which class a folder is with --class-map FILE (JSON {folder: index}, or one name per line)"
    if required:
        raise OnnxPruneError(what, where=data.name, fix=fix)
    return replace(data, y=None, classes=(), warnings=(*data.warnings, f"{what}: labels are not used; {fix}"))


def fitted_boxes(data: Data, model: Model) -> Data:
    """Return detection data with the classes numbered as the model's, if both name them."""
    if data.kind != "boxes" or not data.classes:
        return data
    known = known_classes(model)
    if not known or not all(name in known for name in data.classes):
        return data
    return _renumbered_boxes(data, [known[name] for name in data.classes])


def _renumbered_boxes(data: Data, numbers: Sequence[int]) -> Data:
    source, table = data.source, np.asarray(numbers, np.int64)
    if not isinstance(source, ImageSource) or source.own is None:
        return data
    boxes = [replace(b, classes=table[b.classes]) if isinstance(b, Boxes) else b for b in source.own]
    return replace(data, x=ImageSource(source.of, boxes), classes=())


def check_labels_fit(data: Data, model: Model) -> None:
    """Raise on labels outside the classes of a model.

    Raises:
        OnnxPruneError: Names the first one.
    """
    count = class_count(model)
    if data.y is None or count is None or not len(data.y):
        return
    low, high = int(data.y.min()), int(data.y.max())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        at = int(np.flatnonzero(data.y == wrong)[0])
        fix = "labels are the indices of the model's outputs, from 0"
        if low == 1 and high == count:
            fix = "labels seem to count from 1: subtract 1"
        raise OnnxPruneError(
            f"the data {data.name!r} has the label {wrong}, the model {count} classes, 0 to {count - 1}",
            where=f"sample {at}",
            fix=fix,
        )


def class_count(model: Model) -> int | None:
    """Return the number of classes of a classifier's first output [n, classes]; None if it is none."""
    outputs = model.graph.outputs
    shape = list(outputs[0].shape or []) if outputs else []
    if len(shape) < 2 or not isinstance(shape[1], int) or shape[1] < 2 or any(d != 1 for d in shape[2:]):
        return None
    return shape[1]


def known_classes(model: Model) -> Mapping[str, int]:
    """Return the class names that a model's metadata or files beside it state, with their numbers; empty for none."""
    count = class_count(model)
    for key in _KEYS:
        if (text := model.metadata.get(key)) and (found := _from_text(text)) and _fits(found, count):
            return found
    config = beside(model, "config.json")
    if isinstance(config, dict) and isinstance(config.get("id2label"), dict):
        found = _from_literal(config["id2label"])
        if found and _fits(found, count):
            return found
    if model.path is None or count is None:
        return {}
    for name in (f"{model.path.stem}.txt", f"{model.path.stem}.labels.txt", *_FILES):
        file = model.path.parent / name
        if file.is_file() and file.stat().st_size < 2**20:
            try:
                found = read_class_map(file)
            except OnnxPruneError:  # a file of something else
                continue
            if len(set(found.values())) == count:
                return found
    return {}


def _fits(found: Mapping[str, int], count: int | None) -> bool:
    return count is None or max(found.values()) < count


def _from_text(text: str) -> dict[str, int]:
    found = _from_literal(literal(text))
    if found:
        return found
    names = [n.strip() for n in re.split(r"[\n,;]", text) if n.strip()]
    return _in_order(names) if len(names) > 1 else {}


def _from_literal(value: Any) -> dict[str, int]:
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return _in_order(list(value))
    if not isinstance(value, dict) or not value:
        return {}
    if all(isinstance(v, str) for v in value.values()) and all(_is_number(str(k)) for k in value):
        ordered = sorted((int(k), str(v)) for k, v in value.items())
        return {name: k for k, name in reversed(ordered)}
    if all(isinstance(v, int) and 0 <= v <= _LARGEST for v in value.values()):
        return {str(k): int(v) for k, v in value.items()}
    return {}


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 10 and int(text) <= _LARGEST


def _number(name: str, numbers: Mapping[str, int]) -> int | None:
    """Return the number of a folder name: as it is written, or without case, underscores and spaces."""
    if name in numbers:
        return numbers[name]
    plain = _plain(name)
    return next((k for known, k in numbers.items() if _plain(known) == plain), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _renumbered(data: Data, numbers: Sequence[int], warning: str = "") -> Data:
    assert data.y is not None
    table = np.asarray(numbers, np.int64)
    warnings = (*data.warnings, warning) if warning else data.warnings
    return replace(data, y=table[data.y], classes=(), warnings=warnings)
