"""Files and folders as data: what is read, how little of it at a time, and one error for what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks.image_models import classifier, loaded, picture, pictures, two_inputs
from PIL import Image

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Boxes, Data, Feeds, Preprocess, fit, load_data
from onnxprune.execution.data._readers.images import ImageFiles

PLAIN = Preprocess()


def batches(model: Any, data: Data, how: Preprocess = PLAIN, batch: int = 4) -> list[Any]:
    feeds = Feeds(loaded(model), data, how, batch)
    return [feeds[i] for i in range(len(feeds))]


# ------------------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_by_input_name_feeds_several_inputs(tmp_path: Path, save: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((10, 3)).astype(np.float32), rng.standard_normal((10, 5)).astype(np.float32)
    save(tmp_path / "d.npz", a=a, b=b, y=np.arange(10))
    data = load_data(tmp_path / "d.npz", model=loaded(two_inputs()))
    assert len(data) == 10
    assert data.y is not None
    assert data.y.tolist() == list(range(10))
    feeds, labels = batches(two_inputs(), data)[1]
    np.testing.assert_array_equal(feeds["a"], a[4:8])
    np.testing.assert_array_equal(feeds["b"], b[4:8])
    assert isinstance(labels, np.ndarray)
    assert labels.tolist() == [4, 5, 6, 7]


def test_names_that_are_not_the_inputs_are_listed_beside_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=np.zeros((4, 3), np.float32), c=np.zeros((4, 5), np.float32))
    model = loaded(two_inputs())
    with pytest.raises(OnnxPruneError, match=r"2 inputs \('a', 'b'\), the data has 'a', 'c'"):
        Feeds(model, load_data(tmp_path / "d.npz", model=model), PLAIN)
    with pytest.raises(OnnxPruneError, match="the data has one array without a name"):
        Feeds(model, Data(np.zeros((4, 3), np.float32), None, "d"), PLAIN)


def test_arrays_of_different_lengths_are_one_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=np.zeros((4, 3), np.float32), b=np.zeros((5, 5), np.float32))
    with pytest.raises(OnnxPruneError, match=r"differ in the number of samples \(a: 4, b: 5\)"):
        load_data(tmp_path / "d.npz", model=loaded(two_inputs()))


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed", "fortran"])
def test_large_arrays_are_mapped_and_not_read(tmp_path: Path, kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32)
    if kind == "compressed":  # smaller members are unpacked in memory
        x = np.concatenate([x, np.zeros((22_000, 3, 8, 8), np.float32)])
    path = tmp_path / f"x.{'npy' if kind in ('npy', 'fortran') else 'npz'}"
    if kind == "fortran":
        np.save(path, np.asfortranarray(x))
    elif kind == "npy":
        np.save(path, x)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, x=x, y=np.arange(len(x)))
    data = load_data(path)
    assert isinstance(data.x, np.memmap)
    assert (data.y is None) == (path.suffix == ".npy")
    some = data.take(range(7))
    np.testing.assert_array_equal(np.concatenate([f["x"] for f, _ in batches(classifier(), some)]), x[:7])


def test_one_unnamed_array_is_the_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", np.ones((3, 3, 8, 8), np.float32))
    assert load_data(tmp_path / "d.npz", model=loaded(classifier())).source.names == ("",)


def test_a_truncated_npy_is_one_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 100)))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:2000])
    with pytest.raises(OnnxPruneError, match="shorter than its header"):
        load_data(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"nothing")
    with pytest.raises(OnnxPruneError, match=r"not a valid \.npy"):
        load_data(tmp_path / "x.npy")


# ------------------------------------------------------------------------------------------------------------ images


def test_a_flat_folder_has_no_labels_and_takes_the_size_of_the_model(tmp_path: Path) -> None:
    pixels = pictures(tmp_path / "d", [(8, 8), (16, 24), (8, 8)])
    data = load_data(tmp_path / "d")
    assert (len(data), data.y, data.kind) == (3, None, "")
    [(feeds, targets)] = batches(classifier(), data)
    assert targets is None
    assert feeds["x"].shape == (3, 3, 8, 8)
    assert feeds["x"].dtype == np.float32
    np.testing.assert_allclose(feeds["x"][2], pixels[2].transpose(2, 0, 1) / 255, rtol=1e-6)


def test_folders_beside_images_are_said_not_to_be_read(tmp_path: Path) -> None:
    pictures(tmp_path, [(8, 8)] * 2)
    class_folders(tmp_path, "a")
    data = load_data(tmp_path)
    assert len(data) == 2
    assert "not its folders a" in data.warnings[0]


def test_images_are_decoded_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "d", [(8, 8)] * 20)
    opened: list[int] = []
    own = ImageFiles.image

    def counted(files: ImageFiles, index: int) -> Any:
        opened.append(index)
        return own(files, index)

    monkeypatch.setattr(ImageFiles, "image", counted)
    data = load_data(tmp_path / "d")
    feeds = Feeds(loaded(classifier()), data, PLAIN, 4)
    assert opened == []
    feeds[2]
    assert opened == [8, 9, 10, 11]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_have_the_channels_of_the_model(tmp_path: Path, mode: str, channels: int) -> None:
    pictures(tmp_path / "d", [(8, 8)], mode)
    [(feeds, _)] = batches(classifier(channels=channels), load_data(tmp_path / "d"))
    assert feeds["x"].shape == (1, channels, 8, 8)


def test_a_folder_of_16_bit_pictures_is_read_as_bytes(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "d").mkdir()
    wide = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "d" / "0.png")
    [(feeds, _)] = batches(classifier(channels=1), load_data(tmp_path / "d"))
    np.testing.assert_allclose(feeds["x"][0, 0], (wide >> 8) / 255, rtol=1e-6)


def test_samples_of_several_sizes_are_put_in_batches_of_one(tmp_path: Path) -> None:
    sizes = [(8, 8), (8, 12), (8, 8), (10, 8), (8, 12), (8, 8)]
    pixels = pictures(tmp_path / "d", sizes)
    model = loaded(classifier(size=("h", "w")))
    feeds = Feeds(model, load_data(tmp_path / "d"), PLAIN, 2)
    seen = []
    for i in range(len(feeds)):
        x = feeds[i][0]["x"]
        for row, number in zip(x, feeds.indices(i), strict=True):
            np.testing.assert_allclose(row, pixels[number].transpose(2, 0, 1) / 255, rtol=1e-6)
            seen.append(int(number))
        assert feeds.real(i) == feeds.size(i) == len(x) == len(feeds.span(i))
    assert sorted(seen) == list(range(6))
    assert seen == [0, 2, 5, 1, 4, 3] == feeds.order.tolist()


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(8, 8)] * 3)
    good = (tmp_path / "d" / "001.png").read_bytes()
    (tmp_path / "d" / "001.png").write_bytes(good[:60])
    feeds = Feeds(loaded(classifier()), load_data(tmp_path / "d"), PLAIN, 1)
    feeds[0]
    with pytest.raises(OnnxPruneError, match="cannot read the image") as caught:
        feeds[1]
    assert caught.value.where is not None
    assert caught.value.where.endswith("001.png")


def test_masks_are_placed_as_their_images(tmp_path: Path) -> None:
    from PIL import Image

    pictures(tmp_path / "d" / "images", [(4, 8)])
    mask = np.arange(32, dtype=np.uint8).reshape(4, 8)
    (tmp_path / "d" / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "d" / "masks" / "000.png")
    data = load_data(tmp_path / "d")
    assert data.kind == "masks"
    [(feeds, targets)] = batches(classifier(), data, Preprocess(resize="letterbox", pad=7))
    assert feeds["x"].shape == (1, 3, 8, 8)
    wanted = np.full((8, 8), 255)
    wanted[2:6] = mask
    np.testing.assert_array_equal(targets[0], wanted)
    np.testing.assert_allclose(feeds["x"][0, :, 0], 7 / 255, rtol=1e-6)


def test_a_mask_that_is_missing_is_named(tmp_path: Path) -> None:
    pictures(tmp_path / "d" / "images", [(4, 8)] * 2)
    pictures(tmp_path / "d" / "masks", [(4, 8)], "L")
    with pytest.raises(OnnxPruneError, match=r"1 of 2 images have no mask of the same name: 001\.png"):
        load_data(tmp_path / "d")


def test_lines_of_text_are_targets(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(8, 8)] * 2)
    (tmp_path / "d" / "labels.txt").write_text("000.png\tHallo Welt\n001.png\t42\n", encoding="utf-8")
    for source in (tmp_path / "d", tmp_path / "d" / "labels.txt"):
        data = load_data(source)
        assert data.kind == "texts"
        assert batches(classifier(), data)[0][1] == ["Hallo Welt", "42"]
    (tmp_path / "d" / "labels.txt").write_text("000.png\ta\n009.png\tb\n", encoding="utf-8")
    with pytest.raises(OnnxPruneError, match=r"'009\.png' does not exist") as caught:
        load_data(tmp_path / "d")
    assert "line 2" in str(caught.value.where)
    (tmp_path / "d" / "labels.txt").write_text("000.png a\n", encoding="utf-8")
    with pytest.raises(OnnxPruneError, match="line 1 has no tab"):
        load_data(tmp_path / "d")


# -------------------------------------------------------------------------------------------------------------- COCO


def coco(folder: Path, **changes: Any) -> Path:
    """Two pictures of 10 x 20 pixels, three objects, one of them a crowd, under sparse category ids."""
    pictures(folder / "images", [(10, 20)] * 2)
    document = {
        "images": [{"id": 7, "file_name": "000.png"}, {"id": 9, "file_name": "001.png"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 18, "bbox": [2, 1, 4, 5], "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 20, 10], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [10, 5, 10, 5]},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        **changes,
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(document))
    return path


def test_coco_gives_boxes_in_pixels_of_the_model_input(tmp_path: Path) -> None:
    data = load_data(coco(tmp_path))
    assert (data.kind, data.classes) == ("boxes", ("car", "dog"))
    how = Preprocess(resize="letterbox", size=(20, 20))
    [(feeds, targets)] = batches(classifier(size=("h", "w")), data, how)
    assert feeds["x"].shape == (2, 3, 20, 20)
    first, second = targets
    assert isinstance(first, Boxes)
    np.testing.assert_allclose(first.boxes, [[10, 10, 20, 15]])
    np.testing.assert_allclose(second.boxes, [[2, 6, 6, 11], [0, 5, 20, 15]])
    assert second.classes.tolist() == [1, 0]
    assert second.crowd.tolist() == [False, True]


def test_coco_classes_are_numbered_as_the_names_of_the_model(tmp_path: Path) -> None:
    model = loaded(classifier(metadata={"names": "{0: 'dog', 1: 'cat', 2: 'car', 3: 'bus'}"}))
    data = fit(model, load_data(coco(tmp_path))).data
    targets = Feeds(model, data, PLAIN)[0][1]
    assert targets is not None
    assert [t.classes.tolist() for t in targets] == [[2], [0, 2]]  # type: ignore[union-attr]


def test_a_class_map_numbers_coco_categories(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"dog": 5, "car": 0}')
    data = load_data(coco(tmp_path / "d"), class_map=tmp_path / "map.json")
    targets = Feeds(loaded(classifier()), data, PLAIN)[0][1]
    assert targets is not None
    assert [t.classes.tolist() for t in targets] == [[0], [5, 0]]  # type: ignore[union-attr]


def labelled(folder: Path, lines: dict[str, str], part: str = "") -> Path:
    """Write images 000.png, 001.png, ... of 8 x 16 pixels and label files beside them."""
    pictures(folder / "images" / part, [(8, 16)] * 3)
    (folder / "labels" / part).mkdir(parents=True)
    for name, text in lines.items():
        (folder / "labels" / part / name).write_text(text)
    return folder


@pytest.mark.parametrize("given", ["", "images", "images/val"])
def test_label_files_of_ultralytics_are_boxes(tmp_path: Path, given: str) -> None:
    polygon = "3 0.25 0.0 0.5 0.0 0.5 1.0\n"
    lines = {"000.txt": "2 0.5 0.5 0.25 0.5\n" + polygon, "002.txt": "", "classes.txt": "a\nb\n"}
    labelled(tmp_path, lines, "val" if given == "images/val" else "")
    data = load_data(tmp_path / given)
    assert (len(data), data.kind, data.warnings) == (3, "boxes", ())
    [(_, targets)] = batches(classifier(size=("h", "w")), data)
    assert targets is not None
    first = targets[0]
    assert isinstance(first, Boxes)
    assert first.boxes.tolist() == [[6, 2, 10, 6], [4, 0, 8, 8]]
    assert first.classes.tolist() == [2, 3]
    assert [len(t) for t in targets] == [2, 0, 0]


def test_label_files_without_an_image_are_said_not_to_be_read(tmp_path: Path) -> None:
    labelled(tmp_path, {"000.txt": "2 0.5 0.5 0.25 0.5", "gone.txt": "0 0.5 0.5 0.25 0.5"})
    assert "1 of 2 label files" in load_data(tmp_path).warnings[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 4 4 2 2", "outside of 0 to 1"),
        ("0 0.5 0.5 nan 0.5", "outside of 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "no class"),
        ("0.5 0.5 0.5 0.5 0.5", "no class"),
        ("0 0.5 0.5 0.5", "3 numbers follow"),
        ("0 0.5 0.5 0.5 0.5 0.5", "5 numbers follow"),
        ("dog 0.5 0.5 0.5 0.5", "not numbers"),
    ],
)
def test_a_label_file_of_another_form_is_one_error(tmp_path: Path, line: str, message: str) -> None:
    labelled(tmp_path, {"000.txt": "0 0.5 0.5 0.5 0.5\n", "001.txt": f"0 0.5 0.5 0.5 0.5\n{line}\n"})
    with pytest.raises(OnnxPruneError, match=message) as found:
        load_data(tmp_path)
    assert found.value.where is not None
    assert found.value.where.endswith("001.txt, line 2")


def test_label_files_of_other_images_are_one_error(tmp_path: Path) -> None:
    labelled(tmp_path, {"gone.txt": "0 0.5 0.5 0.5 0.5"})
    with pytest.raises(OnnxPruneError, match="none of the 1 label files"):
        load_data(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_exif_says(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.25 0.5 0.5 1")
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "images" / "a.png", exif=exif)
    data = load_data(tmp_path)
    [(feeds, targets)] = batches(classifier(size=("h", "w")), data)
    np.testing.assert_allclose(feeds["x"][0], upright.transpose(2, 0, 1) / 255, rtol=1e-6)
    assert targets is not None
    assert targets[0].boxes.tolist() == [[0, 0, 8, 8]]  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(8, 16), (16, 8), None])
def test_boxes_of_coco_are_of_the_image_as_it_was_annotated(tmp_path: Path, size: tuple[int, int] | None) -> None:
    stored = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    stated = {} if size is None else {"height": size[0], "width": size[1]}
    document = {
        "images": [{"id": 1, "file_name": "a.png", **stated}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    [(feeds, _)] = batches(classifier(size=("h", "w")), load_data(tmp_path / "c.json"))
    assert feeds["x"].shape[2:] == ((8, 16) if size == (8, 16) else (16, 8))


def test_images_beside_labels_of_another_tool_are_images(tmp_path: Path) -> None:
    pictures(tmp_path / "images", [(8, 8)] * 2)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000.txt").write_text("a dog and a cat")
    assert (len(load_data(tmp_path)), load_data(tmp_path).kind) == (2, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 7, "file_name": "000.png"}, {"id": 9, "file_name": "gone.png"}]}, r"gone\.png"),
        ({"annotations": [{"image_id": 8, "category_id": 3, "bbox": [0, 0, 1, 1]}]}, "image 8 is not listed"),
        ({"annotations": [{"image_id": 7, "category_id": 4, "bbox": [0, 0, 1, 1]}]}, "category 4 is not listed"),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 1]}]}, "'bbox' takes a list of 4"),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1e300]}]}, "'bbox.3.' takes a number"),
        ({"annotations": [{"image_id": [7], "category_id": 3, "bbox": [0, 0, 1, 1]}]}, "'image_id' takes"),
        ({"annotations": [{"image_id": 7, "category_id": {}, "bbox": [0, 0, 1, 1]}]}, "'category_id' takes"),
        ({"annotations": [7]}, "not an object"),
        ({"images": [{"id": [7], "file_name": "000.png"}]}, "'id' takes"),
        ({"images": [{"id": 7, "file_name": "000.png"}, {"id": 7, "file_name": "001.png"}]}, "id 7 is given twice"),
        ({"categories": [{"id": 3}, {"id": 3}]}, "id 3 is given twice"),
        ({"categories": 5}, "'categories' takes a list"),
        ({"images": []}, "lists no images"),
    ],
)
def test_annotations_that_are_wrong_are_one_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        load_data(coco(tmp_path, **changes))


def test_the_folder_of_coco_images_can_be_named(tmp_path: Path) -> None:
    path = coco(tmp_path / "a")
    (tmp_path / "a" / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(OnnxPruneError, match="2 of 2 images do not exist") as caught:
        load_data(path)
    assert "--images-dir" in str(caught.value.fix)
    assert len(load_data(path, images_dir=tmp_path / "elsewhere")) == 2


# ----------------------------------------------------------------------------------------------------------- folders


def class_folders(root: Path, *names: str) -> Path:
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(2):
            picture(8, 8, 2 * k + i).save(root / name / f"{i}.png")
    return root


def labels_for(model: Any, data: Data, *, required: bool = True) -> list[int] | None:
    found = fit(loaded(model), data, labels=required, run=False).data.y
    return None if found is None else found.tolist()


def test_folders_named_by_numbers_are_the_classes(tmp_path: Path) -> None:
    data = load_data(class_folders(tmp_path, "5", "7", "9"))
    assert labels_for(classifier(classes=10), data) == [5, 5, 7, 7, 9, 9]


def test_folders_numbered_from_one_are_said_to_be(tmp_path: Path) -> None:
    data = load_data(class_folders(tmp_path, *map(str, range(1, 11))))
    found = fit(loaded(classifier(classes=10)), data, labels=True, run=False).data
    assert found.y is not None
    assert sorted(set(found.y.tolist())) == list(range(10))
    assert found.y[data.classes.index("10") * 2] == 9
    assert any("numbered from 1 to 10" in line for line in found.warnings)


def test_folders_in_the_number_of_the_outputs_are_in_alphabetical_order(tmp_path: Path) -> None:
    assert labels_for(classifier(classes=3), load_data(class_folders(tmp_path, "b", "a", "c"))) == [0, 0, 1, 1, 2, 2]


def test_folders_that_do_not_match_the_model_need_a_class_map(tmp_path: Path) -> None:
    data = load_data(class_folders(tmp_path, "cat", "dog"))
    with pytest.raises(OnnxPruneError, match=r"2 class folders \(cat, dog\), and the model 4 classes") as caught:
        labels_for(classifier(), data)
    assert "--class-map" in str(caught.value.fix)
    optional = fit(loaded(classifier()), data, run=False).data
    assert optional.y is None
    assert "--class-map" in optional.warnings[0]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("names", "{0: 'bird', 1: 'Dog', 2: 'fish', 3: 'cat'}"),
        ("class_names", '["bird", "dog", "fish", "cat"]'),
        ("labels", "bird,dog,fish,cat"),
    ],
)
def test_folders_match_the_names_in_the_model(tmp_path: Path, key: str, text: str) -> None:
    data = load_data(class_folders(tmp_path, "cat", "dog"))
    assert labels_for(classifier(metadata={key: text}), data) == [3, 3, 1, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", '{"cat": 3, "dog": 1}'),
        ("map.json", '["bird", "dog", "fish", "cat"]'),
        ("map.json", '{"1": ["n02085620", "dog"], "3": ["n02123045", "cat"]}'),
        ("map.txt", "bird\ndog\nfish\ncat\n"),
        ("map.txt", "dog 1\ncat 3\n"),
    ],
)
def test_a_class_map_says_which_folder_is_which_class(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    data = load_data(class_folders(tmp_path / "d", "cat", "dog"), class_map=tmp_path / name)
    assert labels_for(classifier(), data) == [3, 3, 1, 1]


def test_folders_of_synsets_match_a_list_of_synsets(tmp_path: Path) -> None:
    (tmp_path / "synset.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\nn01484850 shark\n")
    data = load_data(class_folders(tmp_path / "d", "n01484850", "n01440764"), class_map=tmp_path / "synset.txt")
    assert labels_for(classifier(classes=3), data) == [0, 0, 2, 2]


def test_a_class_map_without_a_folder_names_it(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"cat": 3}')
    with pytest.raises(OnnxPruneError, match="1 of 2 classes are not in the class map: dog"):
        load_data(class_folders(tmp_path / "d", "cat", "dog"), class_map=tmp_path / "map.json")
    (tmp_path / "map.json").write_text('{"cat": 3, "dog": 9}')
    data = load_data(tmp_path / "d", class_map=tmp_path / "map.json")
    with pytest.raises(OnnxPruneError, match="has the label 9, the model 4 classes"):
        labels_for(classifier(), data)
    (tmp_path / "map.json").write_text("[1, 2]")
    with pytest.raises(OnnxPruneError, match="not a valid class map"):
        load_data(tmp_path / "d", class_map=tmp_path / "map.json")


def test_a_folder_of_nothing_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match="holds no images and no class folders"):
        load_data(tmp_path)
    for part in ("train", "val"):
        class_folders(tmp_path / part, "a", "b")
    with pytest.raises(OnnxPruneError, match="holds no images and no class folders") as caught:
        load_data(tmp_path)
    assert caught.value.fix == "pass one of its folders: train, val"


def test_some_samples_of_a_mapped_array_are_an_array_if_they_are_few(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(40) % 4)
    data = load_data(tmp_path / "d.npz")
    few, many = data.take(range(8)), data.take(range(8), copied=1000)
    assert type(few.x) is np.ndarray
    assert not isinstance(many.x, np.ndarray)
    np.testing.assert_array_equal(batches(classifier(), many, batch=8)[0][0]["x"], few.x)
