"""Data sets of Ultralytics by their description, `data.yaml`: folders or lists of images, and the names of the classes.

https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from onnxprune._utils.files.input_files import read_text
from onnxprune._utils.output.formatting import listed
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._readers.images import IMAGES
from onnxprune.execution.data._readers.yolo import label_file, read_labelled

PARTS = ("train", "val", "test")
_MAX_BYTES = 2**18  # PyYAML reads some 50 kB a second
_MAX_DEPTH = 32
_FORM = "keys path (optional), train, val, test: folders or lists of images; names: of the classes"


def read_data_yaml(path: Path, part: str) -> Data:
    """Read one part of a data set.

    Args:
        path: The description.
        part: One of `PARTS`.

    Raises:
        OnnxPruneError: PyYAML is missing, the description is not valid, or its images or labels are not.
    """
    described = _description(path)
    where = str(path)
    if described.get(part) is None:
        known = [p for p in PARTS if described.get(p) is not None]
        raise OnnxPruneError(
            f"it names no images for {part!r}" + (f", but for {listed(known)}" if known else ""), where=where,
            fix=f"--data {path.name}:{known[0]}" if known else _FORM,
        )  # fmt: skip
    given = described[part]
    entries = given if isinstance(given, list) else [given]
    if not entries or not all(isinstance(e, str) and e for e in entries):
        raise OnnxPruneError(f"{part!r} is neither a path nor a list of paths", where=where, fix=_FORM)
    root = described.get("path", "")
    if not isinstance(root, str | None):
        raise OnnxPruneError("'path' is not a path", where=where, fix=_FORM)
    base = path.parent / (root or "")
    files = [f for entry in entries for f in _images(entry, base, path)]
    pairs = {f: label_file(f) for f in files}
    if not any(pairs.values()):
        raise OnnxPruneError(
            f"none of the {len(pairs)} images for {part!r} has a label file", where=where,
            fix="put labels/NAME.txt beside images/NAME.jpg; images alone are read from their folder",
        )  # fmt: skip
    return read_labelled(f"{path}:{part}", pairs, _classes(described, where))


def _images(entry: str, base: Path, path: Path) -> list[Path]:
    """Return the images of a folder, folders inside included, or of a list of files."""
    place = next((p for p in (base / entry, path.parent / entry) if p.exists()), None)
    if place is None:
        raise OnnxPruneError(
            f"there is no {str(base / entry)!r}", where=str(path),
            fix="correct `path`: it is relative to the folder of this file",
        )  # fmt: skip
    if place.is_dir():
        if place.resolve() in (Path(place.resolve().anchor), Path.home()):
            raise OnnxPruneError(
                f"{entry!r} is a whole disk or home, not a folder of images", where=str(path), fix=_FORM
            )  # fmt: skip
        found = sorted(f for f in place.rglob("*") if f.suffix.lower() in IMAGES and f.is_file())
        if not found:
            raise OnnxPruneError(f"{str(place)!r} holds no images ({', '.join(IMAGES)})", where=str(path))
        return found
    try:
        lines = [line.strip() for line in read_text(place).splitlines()]
    except OSError as err:
        raise OnnxPruneError(f"cannot read the list of images: {err.strerror or err}", where=str(place)) from err
    found = [place.parent / line.removeprefix("./") for line in lines if line]
    missing = [str(f) for f in found if not f.is_file()]
    if missing or not found:
        lost = f"{len(missing)} of {len(found)} images it lists do not exist: {listed(missing)}"
        raise OnnxPruneError(
            lost if found else "it is empty",
            where=str(place), fix="one image a line, relative to this list",
        )  # fmt: skip
    return found


def _classes(described: dict[str, Any], where: str) -> int | None:
    """Return the number of classes; None if the description states none."""
    names = described.get("names")
    if isinstance(names, dict) and set(names) != set(range(len(names))):
        raise OnnxPruneError("the keys of `names` are not 0, 1, 2, ...", where=where, fix=_FORM)
    if names is not None and not isinstance(names, dict | list):
        raise OnnxPruneError("`names` is neither a list nor a mapping", where=where, fix=_FORM)
    count = described.get("nc")
    return len(names) if names else count if isinstance(count, int) else None


def _description(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, without tags, aliases and keys given twice."""
    try:
        text = read_text(path, max_bytes=_MAX_BYTES)
    except OSError as err:
        raise OnnxPruneError(f"cannot read the data description: {err.strerror or err}", where=str(path)) from err
    yaml = pyyaml()

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Loader of plain data."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth = getattr(self, "depth", 0) + 1
            if self.check_event(yaml.AliasEvent) or self.depth > _MAX_DEPTH:
                raise yaml.YAMLError("aliases, or too many levels")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := [k for k, n in Counter(keys).items() if n > 1]:
                raise yaml.YAMLError(f"the key {twice[0]!r} is given twice")
            return dict(super().construct_mapping(node, deep=deep))

    try:
        found = yaml.load(text, Loader=Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as err:
        first = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise OnnxPruneError(f"not a valid data description: {first}", where=str(path), fix=_FORM) from err
    if not isinstance(found, dict):
        raise OnnxPruneError("not a valid data description: not a mapping", where=str(path), fix=_FORM)
    return found


def pyyaml() -> Any:
    """Return the module yaml.

    Raises:
        OnnxPruneError: It is not installed.
    """
    try:
        import yaml
    except ImportError as err:
        raise OnnxPruneError("reading data.yaml needs PyYAML", fix="pip install 'onnxprune[detect]'") from err
    return yaml
