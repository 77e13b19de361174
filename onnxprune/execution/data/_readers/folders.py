"""Folders of images: flat, with a folder per class, with masks, with lines of text, with boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxprune._utils.files.input_files import read_text
from onnxprune._utils.output.formatting import listed
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._readers.images import IMAGES, ImageFiles, ImageSource, pillow
from onnxprune.execution.data._readers.yolo import label_folder, read_yolo

TEXTS = ("labels.txt", "label.txt", "gt.txt", "rec_gt.txt")
"""Names of files with lines FILE<TAB>TEXT."""
_PICTURES, _MASKS = ("images", "JPEGImages", "imgs"), ("masks", "labels", "annotations", "SegmentationClass")


def read_folder(path: Path) -> Data:
    """Read a folder of images; its contents decide which kind.

    Raises:
        OnnxPruneError: There are no images, or images and targets do not match.
    """
    pillow()
    if (file := next((path / n for n in TEXTS if (path / n).is_file()), None)) is not None:
        return read_texts(file)
    pair = [next((path / n for n in names if (path / n).is_dir()), None) for names in (_PICTURES, _MASKS)]
    if pair[0] is not None and pair[1] is not None and images_in(pair[1]):
        return _masked(path, pair[0], pair[1])
    for pictures in (path / "images", path):
        if pictures.is_dir() and images_in(pictures) and (boxes := label_folder(pictures)) is not None:
            return read_yolo(str(path), pictures, boxes)
    folders = sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith("."))
    flat = images_in(path)
    if flat:
        inner = [d.name for d in folders if images_in(d)]
        line = f"only the {len(flat)} images directly in {str(path)!r} are read, not its folders {listed(inner)}"
        return Data(ImageSource(ImageFiles(flat)), None, str(path), warnings=(line,) if inner else ())
    if pair[0] is not None and all(d == pair[0] or not images_in(d) for d in folders):
        return Data(ImageSource(ImageFiles(_some(pair[0]))), None, str(path))
    found = [(f, k) for k, d in enumerate(folders) for f in images_in(d)]
    if not found:
        inner = [d.name for d in folders if any(e.is_dir() and images_in(e) for e in d.iterdir())]
        raise OnnxPruneError(
            f"{str(path)!r} holds no images and no class folders with images ({', '.join(IMAGES)})",
            fix=f"pass one of its folders: {listed(inner)}"
            if inner
            else "pass a folder of images, or of a folder per class",
        )
    empty = set(range(len(folders))) - {k for _, k in found}
    if empty:
        raise OnnxPruneError(
            f"the class folder {folders[min(empty)].name!r} holds no images",
            where=str(path),
            fix="add images, or remove the folder and name the classes with --class-map",
        )
    files, labels = zip(*found, strict=True)
    return Data(
        ImageSource(ImageFiles(files)), np.array(labels, np.int64), str(path), classes=tuple(d.name for d in folders)
    )


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted; of class folders, too, those one level deeper in `images/`."""
    found = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGES and f.is_file())
    inner = folder / "images"
    if not found and inner.is_dir():  # Tiny ImageNet
        return sorted(f for f in inner.iterdir() if f.suffix.lower() in IMAGES and f.is_file())
    return found


def _some(folder: Path) -> list[Path]:
    found = images_in(folder)
    if not found:
        raise OnnxPruneError(f"{str(folder)!r} holds no images ({', '.join(IMAGES)})")
    return found


def _masked(path: Path, pictures: Path, masks: Path) -> Data:
    by_stem = {f.stem: f for f in images_in(masks)}
    images = _some(pictures)
    missing = [f.name for f in images if f.stem not in by_stem]
    if missing:
        raise OnnxPruneError(
            f"{len(missing)} of {len(images)} images have no mask of the same name: {listed(missing)}",
            where=str(masks), fix="add the masks (NAME.png), or remove the images",
        )  # fmt: skip
    return Data(ImageSource(ImageFiles(images), [by_stem[f.stem] for f in images]), None, str(path))


def read_texts(file: Path) -> Data:
    """Read lines FILE<TAB>TEXT; files are relative to the list, or to a folder `images` beside it.

    Raises:
        OnnxPruneError: A line has no tab, or an image does not exist.
    """
    files: list[Path] = []
    texts: list[str] = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        if not tab:
            raise OnnxPruneError(
                f"line {number} has no tab between file and text: {line[:60]!r}",
                where=str(file), fix="one line FILE<TAB>TEXT for each image",
            )  # fmt: skip
        files.append(found_image(file.parent, name.strip(), f"{file}, line {number}"))
        texts.append(text.strip())
    if not files:
        raise OnnxPruneError(f"{str(file)!r} names no images", fix="one line FILE<TAB>TEXT for each image")
    return Data(ImageSource(ImageFiles(files), texts), None, str(file))


def found_image(folder: Path, name: str, where: str, inside: Sequence[str] = ("images", "..", "../..")) -> Path:
    """Return the path of a listed image.

    Raises:
        OnnxPruneError: It does not exist.
    """
    for path in (folder / name, *(folder / inner / name for inner in inside), folder / "images" / Path(name).name):
        if path.is_file():
            return path
    raise OnnxPruneError(
        f"the image {name!r} does not exist", where=where, fix=f"put it into {str(folder)!r}, or remove its line"
    )


def _lines(file: Path) -> list[str]:
    try:
        return read_text(file).splitlines()
    except OSError as err:
        raise OnnxPruneError(f"cannot read {str(file)!r}: {err.strerror or err}", fix="save it as UTF-8") from err
