"""Detection data: COCO annotations and the images that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from onnxprune._utils.fields import Bounds, shown
from onnxprune._utils.output.formatting import listed
from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._readers.images import ImageFiles, ImageSource, pillow
from onnxprune.execution.data._targets import Boxes

COCO = Format(
    "COCO annotation file", 2 * 2**30, fix="a JSON object with images, annotations and categories", extra=True
)
_FOLDERS = ("images", "train", "val", "val2017", "train2017", "test", "../images", "../val2017", "../train2017")
_Pixels = Annotated[float, Bounds(at_least=-1e9, at_most=1e9)]
_Id = int | str


@dataclass(frozen=True)
class _Image:
    id: _Id
    file_name: str
    height: int | float | None = None
    width: int | float | None = None


@dataclass(frozen=True)
class _Annotation:
    image_id: _Id
    category_id: int
    bbox: tuple[_Pixels, _Pixels, _Pixels, _Pixels]
    iscrowd: bool | int | None = None


@dataclass(frozen=True)
class _Category:
    id: int
    name: str | int | None = None


@dataclass(frozen=True)
class _Entries:
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


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
    ids = sorted(c.id for c in entries.categories)
    number = {identity: k for k, identity in enumerate(ids)}
    names = {c.id: str(c.id if c.name is None else c.name) for c in entries.categories}
    files = _files(path, folder, entries.images)
    order = {image.id: k for k, image in enumerate(entries.images)}
    found: list[list[tuple[Sequence[float], int, bool]]] = [[] for _ in files]
    for i, a in enumerate(entries.annotations):
        if a.image_id not in order:
            raise COCO.error(f"the image {shown(a.image_id)} is not listed", str(path), ("annotations", i))
        if a.category_id not in number:
            raise COCO.error(f"the category {shown(a.category_id)} is not listed", str(path), ("annotations", i))
        found[order[a.image_id]].append((a.bbox, number[a.category_id], bool(a.iscrowd)))
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
    entries = COCO.fields(_Entries, COCO.load(path), str(path), complete=False)
    if not entries.images:
        raise COCO.error("it lists no images", str(path))
    _distinct([image.id for image in entries.images], "images", path)
    _distinct([category.id for category in entries.categories], "categories", path)
    return entries


def _distinct(ids: Sequence[_Id], kind: str, path: Path) -> None:
    seen: set[_Id] = set()
    for i, identity in enumerate(ids):
        if identity in seen:
            raise COCO.error(f"the id {shown(identity)} is given twice", str(path), (kind, i))
        seen.add(identity)


def _files(path: Path, folder: Path | None, images: list[_Image]) -> list[Path]:
    if folder is not None and not folder.is_dir():
        raise OnnxPruneError(f"the folder of images {str(folder)!r} does not exist")
    places = [folder] if folder is not None else [path.parent, *(path.parent / name for name in _FOLDERS)]
    first = next((p for p in places if (p / images[0].file_name).is_file()), places[0])
    if folder is None and first is places[0]:  # the first image may be the one that is missing
        first = max(places, key=lambda p: sum((p / image.file_name).is_file() for image in images[:100]))
    files = [first / image.file_name for image in images]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise OnnxPruneError(
            f"{len(missing)} of {len(files)} images do not exist: {listed(missing)}",
            where=f"{path} (images in {first})",
            fix="name their folder with --images-dir, or remove them from the annotations",
        )
    return files


def _sizes(images: list[_Image]) -> list[tuple[int, int] | None]:
    """Return the height and width that the annotations state for each image."""
    pairs = [(image.height, image.width) for image in images]
    return [(h, w) if isinstance(h, int) and isinstance(w, int) else None for h, w in pairs]
