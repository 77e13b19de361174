"""Preprocessing as a value: presets against formulas, what the model decides, geometry of images and targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks.image_models import classifier, loaded, picture, pictures, saved
from PIL import Image

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Boxes, Data, Feeds, Preprocess, load_data, preprocess_of, preset, resolved
from onnxprune.execution.data._geometry import placed_boxes, placed_image, placed_mask, placement
from onnxprune.ir.reader import load
from onnxprune.options import Preprocessing
from onnxprune.options.data import PRESETS, RESIZES

FREE = classifier(size=("h", "w"))


def inputs(model: Any, folder: Path, how: Preprocess) -> Any:
    feeds = Feeds(loaded(model), load_data(folder), how, 8)
    assert len(feeds) == 1
    return feeds[0][0]["x"]


# ------------------------------------------------------------------------------------------------------------ presets


def test_imagenet_is_resize_crop_and_normalize(tmp_path: Path) -> None:
    [pixels] = pictures(tmp_path / "d", [(60, 90)])
    found = inputs(classifier(size=(28, 28)), tmp_path / "d", preset("imagenet"))
    resized = np.asarray(Image.fromarray(pixels).resize((48, 32), Image.Resampling.BILINEAR))
    cut = resized[2:30, 10:38] / 255
    wanted = (cut - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found[0], wanted.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_paddleocr_rec_keeps_the_height_and_the_proportions(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(24, 100), (96, 60), (48, 5000)])
    model = loaded(FREE)
    feeds = Feeds(model, load_data(tmp_path / "d"), preset("paddleocr-rec"), 8)
    found = {int(n): feeds[i][0]["x"].shape for i in range(len(feeds)) for n in feeds.indices(i)}
    assert {n: shape[1:] for n, shape in found.items()} == {0: (3, 48, 200), 1: (3, 48, 32), 2: (3, 48, 2304)}
    first = next(feeds[i][0]["x"] for i in range(len(feeds)) if 1 in feeds.indices(i))[0]
    small = np.asarray(picture(96, 60, 1).resize((30, 48), Image.Resampling.BILINEAR))[..., ::-1]
    np.testing.assert_allclose(first[:, :, :30], (small.transpose(2, 0, 1) / 255 - 0.5) / 0.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first[:, :, 30:], (127 / 255 - 0.5) / 0.5, rtol=1e-5)


def test_paddleocr_rec_pads_to_a_fixed_width(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(24, 50), (24, 400)])
    assert inputs(classifier(size=(48, 320)), tmp_path / "d", preset("paddleocr-rec")).shape == (2, 3, 48, 320)


def test_paddleocr_det_rounds_both_sides(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(100, 1920)])
    assert inputs(FREE, tmp_path / "d", preset("paddleocr-det")).shape == (1, 3, 64, 960)


def test_yolo_pads_with_gray(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(10, 20)])
    found = inputs(classifier(size=(20, 20)), tmp_path / "d", preset("yolo"))
    np.testing.assert_allclose(found[0, :, :5], 114 / 255, rtol=1e-6)
    assert not np.allclose(found[0, :, 5:15], 114 / 255)


def test_caffe_subtracts_means_of_bytes_in_bgr(tmp_path: Path) -> None:
    [pixels] = pictures(tmp_path / "d", [(8, 8)])
    found = inputs(classifier(), tmp_path / "d", Preprocess(resize="stretch").over(preset("caffe")))
    wanted = pixels[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)
    np.testing.assert_allclose(found[0], wanted.transpose(2, 0, 1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_preset_fits_a_model_of_one_and_of_three_channels(tmp_path: Path, name: str, channels: int) -> None:
    pictures(tmp_path / "d", [(40, 50)])
    size = ("h", "w") if name == "paddleocr-det" else (32, 32)
    x = inputs(classifier(channels=channels, size=size), tmp_path / "d", preset(name))
    assert x.shape[:2] == (1, channels)
    assert np.isfinite(x).all()


def test_single_options_override_a_preset() -> None:
    how = preprocess_of(Preprocessing(preset="imagenet", mean=(0.5,), resize="stretch", size=(10, 12)))
    assert (tuple(how.mean), tuple(how.std), how.resize) == ((0.5,), (0.229, 0.224, 0.225), "stretch")
    assert how.as_dict()["preset"] == "imagenet"
    json.dumps(how.as_dict())


# ------------------------------------------------------------------------------------------------ bytes and floats


def test_mean_and_std_of_bytes_are_for_bytes() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    feeds, _ = Feeds(loaded(classifier()), Data(x, None, "d"), Preprocess((127,), (128,)))[0]
    np.testing.assert_allclose(feeds["x"], (x.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128, rtol=1e-6)


def test_scale_divides_first() -> None:
    x = np.full((2, 3, 8, 8), 100, np.float32)
    feeds, _ = Feeds(loaded(classifier()), Data(x, None, "d"), Preprocess((0.5,), (0.25,), scale=200))[0]
    np.testing.assert_allclose(feeds["x"], 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize": "squash"}, "unknown resize 'squash'"),
        ({"color": "cmyk"}, "unknown color 'cmyk'"),
        ({"size": (5,)}, "size is"),
        ({"scale": 0.0}, "scale is a number above 0"),
        ({"crop": 1.5}, "crop is a share"),
        ({"layout": "chw"}, "unknown layout 'chw'"),
    ],
)
def test_values_that_are_none_are_one_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        Preprocess(**values)


# ------------------------------------------------------------------------------------------- what the model decides


def test_a_size_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(8, 8)])
    with pytest.raises(OnnxPruneError, match="does not fix the size of the images") as caught:
        inputs(FREE, tmp_path / "d", Preprocess(resize="stretch"))
    assert "--size" in str(caught.value.fix)
    with pytest.raises(OnnxPruneError, match=r"known in part: height 8, width \?"):
        inputs(classifier(size=(8, "w")), tmp_path / "d", Preprocess(resize="letterbox"))
    assert inputs(FREE, tmp_path / "d", Preprocess(resize="stretch", size=(4, 6))).shape == (1, 3, 4, 6)


def test_channels_that_contradict_the_model_are_one_error(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(8, 8)])
    with pytest.raises(OnnxPruneError, match="gray images have 1 channels, the model's input 'x' 3"):
        inputs(classifier(), tmp_path / "d", Preprocess(color="gray"))


ULTRALYTICS = {"description": "Ultralytics YOLOv8n model", "author": "Ultralytics", "stride": "32"}


def test_ultralytics_metadata_is_read(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(40, 80)])
    model = loaded(classifier(size=("h", "w"), metadata={**ULTRALYTICS, "task": "detect", "imgsz": "[64, 96]"}))
    how = resolved(Preprocess(), model, load_data(tmp_path / "d"))
    assert (how.resize, list(how.size), how.pad, how.preset) == ("letterbox", [64, 96], 114, "ultralytics metadata")
    how = resolved(
        Preprocess(), loaded(classifier(size=(32, 32), metadata={**ULTRALYTICS, "task": "classify"})),
        load_data(tmp_path / "d"),
    )  # fmt: skip
    assert (how.resize, list(how.size)) == ("crop", [32, 32])
    assert resolved(how, model, load_data(tmp_path / "d")) == how, "what is resolved stays as it is"


@pytest.mark.parametrize(
    ("name", "config", "wanted"),
    [
        (
            "preprocessor_config.json",
            {"image_mean": [0.5] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 16}, "resample": 3,
             "crop_size": {"height": 8, "width": 8}, "do_center_crop": True, "do_resize": True},
            {"mean": [0.5] * 3, "std": [0.2] * 3, "resize": "crop", "crop": 0.5, "interpolation": "bicubic"},
        ),
        (
            "preprocessor_config.json",
            {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False, "size": {"height": 8, "width": 8}},
            {"scale": 255.0, "resize": "stretch"},
        ),
        (
            "config.json",
            {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic",
                                "input_size": [3, 8, 8]}},
            {"mean": [0.5] * 3, "crop": 0.9, "resize": "crop"},
        ),
        ("config.json", {"architecture": "unknown"}, {"resize": "stretch"}),
    ],
)  # fmt: skip
def test_files_beside_the_model_are_read(
    tmp_path: Path, name: str, config: dict[str, Any], wanted: dict[str, Any]
) -> None:
    pictures(tmp_path / "d", [(20, 30)])
    (tmp_path / name).write_text(json.dumps(config))
    model = load(saved(classifier(), tmp_path / "m.onnx"))
    how = resolved(Preprocess(), model, load_data(tmp_path / "d")).as_dict()
    assert {k: how.get(k) for k in wanted} == {k: pytest.approx(v) for k, v in wanted.items()}
    own = resolved(Preprocess(mean=(0.1,)), model, load_data(tmp_path / "d"))
    assert (own.mean, own.preset) == ((0.1,), ""), "what the user says is not mixed with what a file says"


def test_a_damaged_file_beside_the_model_is_ignored(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(8, 8)])
    (tmp_path / "preprocessor_config.json").write_text("{")
    model = load(saved(classifier(), tmp_path / "m.onnx"))
    assert resolved(Preprocess(), model, load_data(tmp_path / "d")).preset == ""


# ----------------------------------------------------------------------------------------------------------- geometry


@given(
    st.sampled_from([m for m in RESIZES if m != "none"]), st.integers(1, 60), st.integers(1, 60),
    st.integers(1, 40), st.integers(1, 40), st.floats(0.3, 1.0), st.integers(1, 16),
)  # fmt: skip
def test_images_boxes_and_masks_lie_in_the_same_frame(
    mode: str, height: int, width: int, tall: int, wide: int, crop: float, multiple: int
) -> None:
    how = Preprocess(resize=mode, size=(tall, wide), crop=crop, multiple=multiple, limit=50, color="rgb")
    at = placement(how, height, width)
    image = placed_image(picture(height, width), how, at)
    assert image.shape == (*at.frame, 3)
    assert at.frame == (tall, wide)
    mask = placed_mask(np.ones((height, width), np.uint8), at, "m")
    assert mask.shape == at.frame
    whole = Boxes(
        np.array([[0, 0, width, height]], np.float32), np.zeros(1, np.int64), np.zeros(1, np.bool_)
    )  # fmt: skip
    [box] = placed_boxes(whole, at).boxes
    inside = np.zeros(at.frame, bool)
    inside[round(float(box[1])) : round(float(box[3])), round(float(box[0])) : round(float(box[2]))] = True
    np.testing.assert_array_equal(mask == 1, inside)


def test_a_box_outside_of_the_crop_is_removed() -> None:
    how = Preprocess(resize="crop", size=(10, 10))
    boxes = Boxes(np.array([[0, 0, 2, 10], [12, 2, 30, 8]], np.float32), np.arange(2), np.zeros(2, np.bool_))
    found = placed_boxes(boxes, placement(how, 10, 30))
    assert found.classes.tolist() == [1]
    np.testing.assert_allclose(found.boxes, [[2, 2, 10, 8]])


def test_a_mask_of_another_size_is_one_error() -> None:
    with pytest.raises(OnnxPruneError, match="the mask has 4 x 5 pixels, its image 4 x 4"):
        placed_mask(np.zeros((4, 5), np.uint8), placement(Preprocess(), 4, 4), "m.png")
