"""Data that blocks: an image, a data function, its import and its generator end with one error, as late as asked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks.image_models import pictures
from PIL import Image

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Preprocess, load_data
from onnxprune.execution.data._readers.images import ImageFiles, ImageSource

LATE = 0.01  # seconds; what is called here blocks until the test ends
RESIZED = Preprocess(resize="stretch", size=(8, 8))


@pytest.fixture
def blocked() -> Iterator[Callable[[], Any]]:
    """Yield a function that returns at the end of the test only."""
    event = threading.Event()
    yield event.wait
    event.set()


def test_a_function_that_blocks(blocked: Callable[[], Any]) -> None:
    with pytest.raises(OnnxPruneError, match=r"the data 'wait' gave nothing within 0.01 s") as caught:
        load_data(blocked, data_timeout=LATE)
    assert caught.value.where == "the call"
    assert "--data-timeout" in str(caught.value.fix)


def test_a_generator_that_blocks(blocked: Callable[[], Any]) -> None:
    release = threading.Event()

    def samples() -> Iterator[Any]:
        yield np.zeros((1, 8, 8), np.float32)
        release.wait()

    with pytest.raises(OnnxPruneError, match="gave nothing within") as caught:
        load_data(samples, data_timeout=LATE)
    release.set()
    assert caught.value.where == "item 1"


class Reader:
    """CalibrationDataReader that blocks."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        self.get_next = wait


class Dataset:
    """Dataset that blocks at one of its items."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        self.wait = wait

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return np.zeros((1, 8, 8), np.float32) if i < 2 else self.wait()


@pytest.mark.parametrize(("made", "where"), [(Reader, "item 0"), (Dataset, "item 2")])
def test_objects_that_block(blocked: Callable[[], Any], made: Callable[[Any], Any], where: str) -> None:
    with pytest.raises(OnnxPruneError, match="gave nothing within") as caught:
        load_data(made(blocked), data_timeout=LATE)
    assert caught.value.where == where


def test_a_module_that_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "blocked", threading.Event(), raising=False)
    (tmp_path / "blocking_data.py").write_text("import os\nos.blocked.wait()\ndef f():\n    return None\n")
    with pytest.raises(OnnxPruneError, match="'blocking_data:f' gave nothing within") as caught:
        load_data("blocking_data:f", data_timeout=LATE)
    os.blocked.set()  # type: ignore[attr-defined]
    assert caught.value.where == "the import"


def test_an_image_that_blocks(tmp_path: Path, blocked: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path, [(8, 8)] * 3)
    data = load_data(tmp_path, data_timeout=LATE)
    monkeypatch.setattr(ImageFiles, "image", lambda self, index: blocked())
    monkeypatch.setattr(ImageFiles, "size", lambda self, index: blocked())
    for source in (data.source, data.source.take(np.array([0, 1]))):
        for read in (lambda s=source: s.read([0, 1], RESIZED), lambda s=source: s.check()):
            with pytest.raises(OnnxPruneError, match=r"the image was not decoded within 0.01 s") as caught:
                read()
            assert "000" in str(caught.value.where)
            assert "--data-timeout" in str(caught.value.fix)
    with pytest.raises(OnnxPruneError, match="not decoded within"):
        data.source.sizes(Preprocess(resize="none"))


def test_images_that_are_in_time_do_not_change(tmp_path: Path) -> None:
    pictures(tmp_path, [(8, 8), (6, 9)])
    [limited, unlimited] = [load_data(tmp_path, data_timeout=t).source.read([0, 1], RESIZED)[0][""] for t in (3600, 0)]
    np.testing.assert_array_equal(limited, unlimited)


@pytest.mark.parametrize("how", [Preprocess(resize="crop", size=(224, 224)), Preprocess(resize="height", size=(48, 0))])
def test_an_image_that_would_be_enlarged_beyond_memory_is_refused(tmp_path: Path, how: Preprocess) -> None:
    Image.new("L", (60_000_000, 1)).save(tmp_path / "a.bmp")
    with pytest.raises(OnnxPruneError, match="1 x 60000000 pixels would be resized to") as caught:
        ImageSource(ImageFiles([tmp_path / "a.bmp"])).read([0], how)
    assert caught.value.where == str(tmp_path / "a.bmp")


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "a.png")
    with pytest.raises(OnnxPruneError, match="decompression bomb"):
        ImageSource(ImageFiles([tmp_path / "a.png"])).read([0], RESIZED)
