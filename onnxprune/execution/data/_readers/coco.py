"""Detection data: COCO annotations and the images that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.formatting import listed
from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._readers.images import ImageFiles, ImageSource, pillow
from onnxprune.execution.data._targets import Boxes

COCO = Format("COCO annotation file", 2 * 2**30, fix="a JSON object with images, annotations and categories")
_FOLDERS = ("images", "train", "val", "val2017", "train2017", "test", "../images", "../val2017", "../train2017")


@dataclass(frozen=True)
class _Entries:
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def read_coco(path: Path, folder: Path | None = None) -> Data:
    """Read COCO annotations; images are decoded when they are needed.

    Classes are numbered by the ascending ids of the categories, as by all common training tools; `Data.classes` holds
    their names. Crowd annotations are kept as such.

    Args:
        path: JSON file.
        folder: Folder of the images; default: `images` (or `val2017` ...) beside the file, or the file's own folder.

    Raises:
        OnnxPruneError: The file is not of this form, or names images that do not exist.
    """
    pillow()
    entries = _read(path)
    ids = sorted(int(c["id"]) for c in entries.categories)
    number = {identity: k for k, identity in enumerate(ids)}
    names = {int(c["id"]): str(c.get("name", c["id"])) for c in entries.categories}
    files, order = _files(path, folder, entries.images)
    found: list[list[tuple[list[float], int, bool]]] = [[] for _ in files]
    for i, annotation in enumerate(entries.annotations):
        box, category, image = annotation.get("bbox"), annotation.get("category_id"), annotation.get("image_id")
        if image not in order or category not in number or not _is_box(box):
            what = (
                f"the image {image!r} is not listed" if image not in order else
                f"the category {category!r} is not listed" if category not in number else
                f"bbox is not [x, y, width, height]: {box!r}"
            )  # fmt: skip
            raise COCO.error(what, str(path), ("annotations", i))
        assert isinstance(box, list)
        found[order[image]].append((box, number[category], bool(annotation.get("iscrowd", 0))))
    targets = []
    for objects in found:
        corners = np.array([b for b, _, _ in objects], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        targets.append(
            Boxes(corners, np.array([c for _, c, _ in objects], np.int64), np.array([w for *_, w in objects], np.bool_))
        )
    classes = tuple(names[identity] for identity in ids)
    return Data(ImageSource(ImageFiles(files, _sizes(entries.images)), targets), None, str(path), classes=classes)


def _read(path: Path) -> _Entries:
    document = COCO.load(path)
    parts = []
    for key in ("images", "annotations", "categories"):
        part = document.get(key) if isinstance(document, dict) else None
        if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
            raise COCO.error(f"there is no list of {key}", str(path))
        parts.append(part)
    for i, image in enumerate(parts[0]):
        if "id" not in image or not isinstance(image.get("file_name"), str):
            raise COCO.error("an image needs id and file_name", str(path), ("images", i))
    for i, category in enumerate(parts[2]):
        if not isinstance(category.get("id"), int):
            raise COCO.error("a category needs an integer id", str(path), ("categories", i))
    if not parts[0]:
        raise COCO.error("it lists no images", str(path))
    return _Entries(*parts)


def _files(path: Path, folder: Path | None, images: list[dict[str, Any]]) -> tuple[list[Path], dict[Any, int]]:
    if folder is not None and not folder.is_dir():
        raise OnnxPruneError(f"the folder of images {str(folder)!r} does not exist")
    places = [folder] if folder is not None else [path.parent, *(path.parent / name for name in _FOLDERS)]
    first = next((p for p in places if (p / images[0]["file_name"]).is_file()), places[0])
    if folder is None and first is places[0]:  # the first image may be the one that is missing
        first = max(places, key=lambda p: sum((p / image["file_name"]).is_file() for image in images[:100]))
    files = [first / image["file_name"] for image in images]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise OnnxPruneError(
            f"{len(missing)} of {len(files)} images do not exist: {listed(missing)}",
            where=f"{path} (images in {first})",
            fix="name their folder with --images-dir, or remove them from the annotations",
        )
    return files, {image["id"]: k for k, image in enumerate(images)}


def _sizes(images: list[dict[str, Any]]) -> list[tuple[int, int] | None]:
    """Return the height and width that the annotations state for each image."""
    pairs = [(image.get("height"), image.get("width")) for image in images]
    return [(h, w) if isinstance(h, int) and isinstance(w, int) else None for h, w in pairs]


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
