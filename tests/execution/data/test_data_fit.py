"""Data is matched with the model before anything slow starts: one run, one line for what looks wrong, one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from networks.image_models import classifier, loaded, picture, pictures, saved, two_inputs
from onnx import TensorProto, helper

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Feeds, Fitted, Preprocess, fit, load_data, resolved
from onnxprune.options import Training

MODEL = loaded(classifier())
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8)).astype(np.float32)
EVALUATE = CommandLine("evaluate")


def fitted(x: Any, y: Any = None, how: Preprocess | None = None, **options: Any) -> Fitted:
    return fit(MODEL, Data(x, y, "d"), how, **options)


def test_plausible_data_has_no_warning() -> None:
    normal = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    assert fitted(normal, np.arange(40) % 4, labels=True).data.warnings == ()
    assert fitted(PIXELS / 255, how=Preprocess((0.5,), (0.25,))).data.warnings == ()
    assert fitted(PIXELS.astype(np.uint8).transpose(0, 2, 3, 1)).data.warnings == ()
    assert fitted(PIXELS, how=Preprocess((127,), (128,))).data.warnings == ()
    assert fitted(PIXELS, how=Preprocess((103.9, 116.8, 123.7))).data.warnings == ()


def test_floats_in_the_range_of_bytes_are_pointed_out() -> None:
    [line] = fitted(PIXELS).data.warnings
    assert "reach 255" in line
    assert "--scale 255" in line


def test_a_model_that_scales_its_input_takes_bytes() -> None:
    proto = classifier()
    proto.graph.node[0].input[0] = "scaled"
    proto.graph.node.insert(0, helper.make_node("Div", ["x", "bytes"], ["scaled"], "scale"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(255, np.float32), "bytes"))
    assert fit(loaded(proto), Data(PIXELS, None, "d")).data.warnings == ()


def test_means_of_bytes_on_pixels_of_one_are_read_as_such() -> None:
    found = fitted(PIXELS / 255, how=Preprocess((127,), (128,)))
    assert "in units of bytes" in found.data.warnings[0]
    feeds, _ = Feeds(MODEL, found.data, found.preprocess)[0]
    np.testing.assert_allclose(feeds["x"], (PIXELS - 127) / 128, atol=1e-5)


def test_values_far_from_what_mean_and_std_suppose_are_pointed_out() -> None:
    [line] = fitted(PIXELS, how=Preprocess((0.5,), (0.25,))).data.warnings
    assert "after mean and std" in line
    assert "--scale" in line


def test_constant_inputs_are_pointed_out() -> None:
    [line] = fitted(np.zeros((4, 3, 8, 8), np.float32)).data.warnings
    assert line == "all values of input 'x' are 0 in the first 4 samples; check the data"


def test_equal_samples_are_pointed_out() -> None:
    [line] = fitted(np.repeat(PIXELS[:1] / 255, 4, axis=0)).data.warnings
    assert line == "the first 4 samples of 'd' are equal; check how they are made"


def test_missing_classes_are_pointed_out() -> None:
    [line] = fitted(PIXELS / 255, np.arange(40) % 2, labels=True).data.warnings
    assert line == "2 of the model's 4 classes have no samples (2, 3)"


def test_labels_off_by_one_are_one_error() -> None:
    with pytest.raises(OnnxPruneError, match="has the label 4, the model 4 classes") as caught:
        fitted(PIXELS / 255, np.arange(40) % 4 + 1, labels=True)
    assert caught.value.fix == "labels seem to count from 1: subtract 1"


def test_labels_of_floats_are_one_error() -> None:
    with pytest.raises(OnnxPruneError, match="whole numbers as float"):
        fit(MODEL, load_data((PIXELS, np.arange(40.0) % 4)))


def test_a_sample_that_is_not_finite_is_named() -> None:
    x = PIXELS / 255
    x[3, 0, 0, 0] = np.nan
    with pytest.raises(OnnxPruneError, match="sample 3 of 'd' is not finite"):
        fitted(x)


def test_what_the_model_cannot_run_is_one_error_with_shapes() -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], "fixed")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 2])],
        [onnx.numpy_helper.from_array(np.array([-1, 4, 2], np.int64), "shape")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(OnnxPruneError, match="fails to run the model") as caught:
        fit(loaded(proto), Data(np.ones((3, 7), np.float32), None, "d"))
    assert caught.value.where == "data 'd', x [3, 7]"


def test_outputs_that_are_not_finite_are_one_error() -> None:
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["y"], "log")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(OnnxPruneError, match="output 'y' is not finite"):
        fit(loaded(proto), Data(-np.ones((3, 5), np.float32), None, "d"))


def test_a_mixed_folder_is_run_at_two_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "d", [(8, 8), (8, 12), (8, 8)])
    from onnxprune.execution.data import _fit

    shapes = []
    own = _fit.Session.run
    monkeypatch.setattr(_fit.Session, "run", lambda s, feed: (shapes.append(feed["x"].shape), own(s, feed))[1])
    fit(loaded(classifier(size=("h", "w"))), load_data(tmp_path / "d"))
    assert shapes == [(2, 3, 8, 8), (1, 3, 8, 12)]


def test_a_file_in_the_middle_that_is_no_image_is_found_first(tmp_path: Path) -> None:
    pictures(tmp_path / "d", [(8, 8)] * 40)
    (tmp_path / "d" / "023.png").write_text("no image")
    with pytest.raises(OnnxPruneError, match="cannot read the image") as caught:
        fit(MODEL, load_data(tmp_path / "d"))
    assert str(caught.value.where).endswith("023.png")


# --------------------------------------------------------------------------------------------------- end to end


def class_folders(root: Path, names: list[str]) -> Path:
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(3):
            picture(8, 8, 10 * k + i).save(root / name / f"{i}.png")
    return root


def test_folders_of_some_classes_are_measured_as_those(tmp_path: Path) -> None:
    model = saved(classifier(classes=10), tmp_path / "m.onnx")
    session = op.load(model)
    x = np.stack([np.asarray(picture(8, 8, s)) for s in range(30)])
    feeds = Feeds(session, Data(x, None, "x"), Preprocess(), 30)
    from onnxprune.execution.sessions import Session

    answers = Session(session).run(feeds[0][0])[0].argmax(1)
    for s, answer in enumerate(answers):
        if answer >= 5:
            (tmp_path / "d" / str(answer)).mkdir(parents=True, exist_ok=True)
            picture(8, 8, s).save(tmp_path / "d" / str(answer) / f"{s}.png")
    found = json.loads(EVALUATE.out(model, "--data", tmp_path / "d", "--json"))
    assert found["top1"] == 1.0
    assert found["preprocess"]["resize"] == "stretch"
    assert found["preprocess"]["size"] == [8, 8]


def test_the_command_line_says_what_looks_wrong_and_refuses_what_is(tmp_path: Path) -> None:
    model = saved(classifier(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=PIXELS, y=np.arange(40) % 4)
    done = EVALUATE.ok(model, "--data", tmp_path / "d.npz")
    assert "Warning: values of input 'x' reach 255" in done.stderr
    assert "values of input" not in EVALUATE.ok(model, "--data", tmp_path / "d.npz", "--scale", "255").stderr
    data = class_folders(tmp_path / "d", ["cat", "dog"])
    assert "--class-map" in EVALUATE.fails(model, "--data", data)
    (tmp_path / "map.txt").write_text("bird\ndog\nfish\ncat\n")
    assert json.loads(EVALUATE.out(model, "--data", data, "--class-map", tmp_path / "map.txt", "--json"))["images"] == 6


def test_the_python_api_warns_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="reach 255"):
        op.evaluate(classifier(), (PIXELS, np.arange(40) % 4))


def test_prune_runs_on_two_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", a=rng.standard_normal((64, 3)).astype("f"), b=rng.standard_normal((64, 5)).astype("f"))
    done = op.prune(two_inputs(), ratio=0.4, data=tmp_path / "d.npz")
    assert done.recovery is not None
    assert done.after.params < done.before.params
    with pytest.raises(OnnxPruneError, match="needs a model with one"):
        op.score(op.analyze(two_inputs()), "taylor", data=load_labelled(tmp_path / "d.npz"))


def load_labelled(path: Path) -> Data:
    """The arrays of a file with labels 0 and 1."""
    data = load_data(path, model=loaded(two_inputs()))
    return Data(data.x, np.arange(len(data)) % 2, "labelled")


@pytest.mark.parametrize("form", ["folder", "mixed"])
def test_sensitivity_and_retraining_run_on_images(tmp_path: Path, form: str) -> None:
    pytest.importorskip("lightning")
    model = op.load(classifier(size=("h", "w") if form == "mixed" else (8, 8)))
    for k in range(4):
        pictures(tmp_path / "d" / str(k), [(8, 8 + (4 * (i % 2) if form == "mixed" else 0)) for i in range(8)])
    scores = op.score(op.analyze(model), "l2")
    one = op.sensitivity(scores, tmp_path / "d", ratios=(0.25, 0.5), jobs=1, threads=1)
    two = op.sensitivity(scores, tmp_path / "d", ratios=(0.25, 0.5), jobs=2, threads=1)
    assert one.groups == two.groups
    assert one.baseline.value == op.evaluate(model, tmp_path / "d").top1
    settings = Training(epochs=1, batch=4, val_share=0.25, device="cpu", threads=1)
    done = op.retrain(model, data=tmp_path / "d", settings=settings)
    assert len(done.history) == 2
    assert np.isfinite(done.after.loss)


@pytest.mark.parametrize("form", ["folder", "generator", "mixed"])
def test_prune_runs_on_images_without_labels_and_on_streams(tmp_path: Path, form: str) -> None:
    size = ("h", "w") if form == "mixed" else (8, 8)
    model = classifier(size=size)
    pictures(tmp_path / "d", [(8, 8 + (i % 3 if form == "mixed" else 0)) for i in range(24)])
    data: Any = tmp_path / "d"
    if form == "generator":
        data = (np.random.default_rng(i).random((4, 3, 8, 8)).astype(np.float32) for i in range(6))
    done = op.prune(model, ratio=0.3, data=data)
    assert done.recovery is not None
    assert sum(done.recovery.samples) == 24
    assert done.verification is not None
    if form == "mixed":
        assert [d if isinstance(d, str) else "?" for d in done.model.graph.inputs[0].shape[2:]] == ["h", "w"]


def test_the_preprocessing_is_recorded(tmp_path: Path) -> None:
    model = saved(classifier(size=(8, 8)), tmp_path / "m.onnx")
    pictures(tmp_path / "d", [(20, 30)] * 24)
    args = (model, "-o", tmp_path / "s.onnx", "--ratio", "0.3", "--data", tmp_path / "d", "--preprocess", "imagenet")
    found = json.loads(CommandLine("prune").out(*args, "--json"))
    assert found["data"]["preprocess"]["preset"] == "imagenet"
    kept = op.load(tmp_path / "s.onnx").metadata["onnxprune.preprocess"]
    assert json.loads(kept) == found["data"]["preprocess"]
    again = resolved(Preprocess(), op.load(tmp_path / "s.onnx"), load_data(tmp_path / "d"))
    assert again.as_dict() == found["data"]["preprocess"], "the pruned model is evaluated as it was calibrated"
    broken = op.load(tmp_path / "s.onnx").with_metadata({"onnxprune.preprocess": '{"mean": 5, "nothing": 1}'})
    assert resolved(Preprocess(), broken, load_data(tmp_path / "d")).preset == ""


def test_a_function_of_ones_own_feeds_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(classifier(), tmp_path / "m.onnx")
    (tmp_path / "own_stream_of_images.py").write_text(
        "import numpy as np\n\n\ndef stream():\n    rng = np.random.default_rng(0)\n    for i in range(5):\n"
        "        yield rng.random((8, 3, 8, 8)).astype('f'), np.arange(8) % 4\n\n\ndef short():\n"
        "    yield np.zeros((8, 3, 9, 9), 'f')\n"
    )
    monkeypatch.chdir(tmp_path)
    line = CommandLine()
    data = ("--data", "own_stream_of_images:stream")
    assert json.loads(line.out("evaluate", model, *data, "--json"))["images"] == 40
    small = tmp_path / "s.onnx"
    plan = tmp_path / "plan.json"
    line.ok("prune", model, "-o", small, "--plan", plan, "--ratio", "0.3", "--no-recover", *data)
    line.ok("recover", model, small, plan, "-o", tmp_path / "r.onnx", *data)
    line.ok("verify", model, small, plan, *data)
    line.ok("score", model, "-c", "obs", *data)
    for command in (("score", model, "-c", "obs"), ("plan", model, "-o", tmp_path / "p.json", "--ratio", "0.3")):
        said = line.fails(*command, "--data", "own_stream_of_images:short")
        assert "samples [3, 9, 9] of 'own_stream_of_images:short' do not fit the model's input" in said
    assert not (tmp_path / "p.json").exists()
