"""Ultralytics data sets by their description, `data.yaml`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from networks.image_models import pictures

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Boxes, load_data

BOX = "1 0.5 0.5 0.25 0.5\n"


def dataset(folder: Path, text: str, parts: tuple[str, ...] = ("train", "val")) -> Path:
    """Write two images of 8 x 16 pixels for each part, the first with a box, and a description."""
    for part in parts:
        pictures(folder / "images" / part, [(8, 16)] * 2)
        (folder / "labels" / part).mkdir(parents=True)
        (folder / "labels" / part / "000.txt").write_text(BOX)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return folder / "data.yaml"


PLAIN = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.mark.parametrize(
    ("text", "part", "images"),
    [
        (PLAIN, "", 2),
        (PLAIN, ":train", 2),
        ("path: .\nval: images/val\nnames:\n  0: cat\n  1: dog\n", "", 2),
        ("path: {here}\nval: [images/train, images/val]\nnc: 2\n", ":val", 4),
        ("path:\nval: images\n", "", 4),
        ("val: list.txt\nnames: {{0: cat, 1: dog}}\n", "", 1),
    ],
)
def test_a_part_of_a_data_set_is_images_with_boxes(tmp_path: Path, text: str, part: str, images: int) -> None:
    path = dataset(tmp_path, text.format(here=tmp_path.as_posix()))
    (tmp_path / "list.txt").write_text("./images/val/000.png\n")
    data = load_data(f"{path}{part}")
    assert (len(data), data.kind) == (images, "boxes")
    [target] = data.source.own[:1]  # type: ignore[attr-defined]
    assert isinstance(target, Boxes)
    np.testing.assert_array_equal(target.boxes, [[6, 2, 10, 6]])
    assert target.classes.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\n", r"names no images for 'val', but for train"),
        ("names: [a]\n", "names no images"),
        ("val: images/gone\n", "there is no"),
        ("path: gone\nval: images/gone\n", "there is no"),
        ("val: [1, 2]\n", "neither a path nor a list"),
        ("val: []\n", "neither a path nor a list"),
        ("path: [a]\nval: images/val\n", "'path' is not a path"),
        ("val: labels/val\n", "holds no images"),
        ("val: list.txt\n", "1 of 1 images it lists do not exist"),
        ("val: empty.txt\n", "it is empty"),
        ("val: images/val\nnames: [cat]\n", "class 1, but the data has 1 classes"),
        ("val: images/val\nnames: {1: a, 2: b}\n", "not 0, 1, 2"),
        ("val: images/val\nnames: cat\n", "neither a list nor a mapping"),
        ("val: /\n", "a whole disk or home"),
        ("val: ../../../../../../../../../../..\n", "a whole disk or home"),
        ("val: bare\n", "none of the 1 images for 'val' has a label file"),
        ("- a\n", "not a mapping"),
        ("val: a\nval: b\n", "given twice"),
        ("val: &a [x]\ntrain: *a\n", "aliases"),
        ("val: " + "[" * 100 + "]" * 100, "too many levels"),
        ("val: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("val: [", "not a valid data description"),
        ("val: 2020-13-99\n", "not a valid data description"),
    ],
)
def test_a_description_that_does_not_fit_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    path = dataset(tmp_path, text)
    (tmp_path / "list.txt").write_text("gone.png\n")
    (tmp_path / "empty.txt").write_text("")
    pictures(tmp_path / "bare", [(8, 16)])
    with pytest.raises(OnnxPruneError, match=message) as found:
        load_data(path)
    assert found.value.where is not None
    assert found.value.fix is not None or "holds no images" in message


def test_a_file_that_does_not_exist_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match="cannot read"):
        load_data(tmp_path / "gone.yaml")


def test_without_pyyaml_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(OnnxPruneError, match="PyYAML") as found:
        load_data(dataset(tmp_path, PLAIN))
    assert found.value.fix == "pip install 'onnxprune[detect]'"
