"""Mistakes that people make: each is one error that says what to do, and nothing is written or overwritten."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from onnx import numpy_helper
from PIL import Image

import onnxprune as op

MODELS = Path(__file__).parent.parent.parent / "models"
DIGITS = MODELS / "digits_cnn.onnx"
line = CommandLine()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a pruned model, its plan, data and other files."""
    folder = tmp_path_factory.mktemp("mistakes")
    line.ok("prune", DIGITS, "-o", folder / "small.onnx", "--ratio", "0.5", "--plan", folder / "plan.json")
    line.ok("prune", DIGITS, "-o", folder / "other.onnx", "--ratio", "0.2", "--plan", folder / "other.json")
    data = op.load_data("digits:test", images=40)
    images = np.asarray(data.x)
    np.savez(folder / "nhwc.npz", x=images.transpose(0, 2, 3, 1), y=data.y)
    np.savez(folder / "rgb.npz", x=np.repeat(images, 3, axis=1), y=data.y)
    np.savez(folder / "onehot.npz", x=images, y=np.eye(10)[data.y])
    for i, image in enumerate(images):
        for path in (folder / "flat" / f"{i}.png", folder / "two" / ("a" if i % 2 else "b") / f"{i}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image[0] * 255).astype("uint8")).save(path)
    (folder / "net.pt").write_bytes(pickle.dumps({"w": 1}, protocol=2))
    (folder / "net.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (folder / "net.tflite").write_bytes(b"\x20\0\0\0TFL3" + bytes(64))
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    _quantize(folder / "int8.onnx")
    return folder


def _quantize(path: Path) -> None:
    """Write the folded model with its weights as int8 and their scales."""
    model = onnx.load(str(MODELS / "digits_cnn_folded.onnx"))
    graph = model.graph
    nodes = list(graph.node)
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.ndim not in (2, 4):
            continue
        scale = np.float32(np.abs(values).max() / 127)
        name = tensor.name
        graph.initializer.append(numpy_helper.from_array(np.round(values / scale).astype(np.int8), f"{name}_q"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_s"))
        graph.initializer.append(numpy_helper.from_array(np.int8(0), f"{name}_z"))
        graph.initializer.remove(tensor)
        nodes.insert(0, onnx.helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [name]))
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(path))


PRUNE = ("prune", DIGITS, "-o", "new.onnx")
MISTAKES = {
    "percent as a number": ((*PRUNE, "--target", "50"), "got 50\n  try: did you mean 0.5? (keep 50 %)"),
    "measure misspelt": ((*PRUNE, "--target", "mcas=0.5"), "unknown measure 'mcas'\n  try: did you mean 'macs'"),
    "criterion misspelt": ((*PRUNE, "-c", "talyor", "--target", "0.5"), "did you mean 'taylor'?"),
    "a PyTorch file": (("inspect", "net.pt"), "is a PyTorch file\n  try: export it with torch.onnx.export, see docs/"),
    "a Keras file": (("inspect", "net.h5"), "is a Keras file\n  try: export it with model.export("),
    "a TensorFlow folder": (("inspect", "saved"), "is a TensorFlow SavedModel\n  try: convert it with tf2onnx"),
    "a TensorFlow Lite file": (("inspect", "net.tflite"), "is a TensorFlow Lite file\n  try: convert the model"),
    "a wrong layout": (("evaluate", DIGITS, "--data", "nhwc.npz"), "do not fit the model's input ['batch', 1, 8, 8] "
                       "(nchw)\n  try: they fit with --layout nhwc"),
    "colours for a grey model": (("evaluate", DIGITS, "--data", "rgb.npz"), "[3, 8, 8] of 'rgb.npz' do not fit"),
    "a folder without classes": (("evaluate", DIGITS, "--data", "flat"), "the data 'flat' has no labels\n  try: put "
                                 "images into a folder for each class"),
    "a folder with other classes": (("evaluate", DIGITS, "--data", "two"), "2 class folders (a, b), and the model 10 "
                                    "classes\n  at: two\n  try: say which class a folder is with --class-map"),
    "data that is not there": (("evaluate", DIGITS, "--data", "imags"), "cannot find the data 'imags'\n  try: use one"),
    "a quantized file": (("prune", "int8.onnx", "-o", "new.onnx", "--target", "0.5", "--data", "digits"),
                         "this model's are quantized\n  try: prune the model before it is quantized"),
    "models swapped": (("verify", "small.onnx", DIGITS, "plan.json"), "which is given as PRUNED\n  try: the order is"),
    "model and plan swapped": (("verify", DIGITS, "plan.json", "small.onnx"), "'small.onnx' is a model, and a plan is "
                               "expected (plan.json)\n  try: the order is"),
    "a plan of another model": (("verify", MODELS / "digits_keras.onnx", "small.onnx", "plan.json"),
                                "(its fingerprint differs)\n  try: the order is"),
    "output and plan are one file": ((*PRUNE, "--target", "0.5", "--plan", "new.onnx"),
                                     "--output and --plan write the same file\n  at: new.onnx\n  try: name two "),
    "output and input are one file": (("prune", "small.onnx", "-o", "small.onnx", "--target", "0.9"),
                                      "the output is the input file\n  at: --output small.onnx\n  try: name "),
    "a folder that is not there": ((*PRUNE[:3], "none/new.onnx", "--target", "0.5"),
                                   "the folder 'none' does not exist\n  try: create it first"),
    "a model that is not there": (("inspect", "smal.onnx"),
                                  "no such file: 'smal.onnx'\n  try: in that folder: small.onnx"),
    "a model of a folder that is not there": (("inspect", "none/m.onnx"), "the folder 'none' does not exist either"),
    "the ending of another format": ((*PRUNE[:3], "new.pt", "--target", "0.5"), "--output is an ONNX model; 'new.pt' "
                                     "has the ending of PyTorch files\n  try: new.onnx"),
    "a part of the digits that is not there": (("evaluate", DIGITS, "--data", "digits:tset"),
                                               "no part 'tset'\n  try: use digits:train or digits:test"),
    "a report as PDF": (("report", "small.onnx", "-o", "r.pdf"),
                        "a report is an HTML page; 'r.pdf' has another ending\n  try: r.html; a browser prints it"),
    "one-hot labels": (("evaluate", DIGITS, "--data", "onehot.npz"), "y in 'onehot.npz' is one-hot\n  try: save y as "
                       "integer labels: y.argmax(1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_error_that_says_what_to_do(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    args, says = MISTAKES[name]
    message = line.fails(*args)
    assert says in message
    assert message.count("error:") == 1
    assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("pruned", "says"),
    [("other.onnx", "other.onnx was made by another plan"), ("keras.onnx", "is keras.onnx made from this original by")],
)
def test_a_model_that_the_plan_did_not_make_is_named(
    pruned: str, says: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "keras.onnx").write_bytes((MODELS / "digits_keras.onnx").read_bytes())
    assert says in line.fails("verify", DIGITS, pruned, "plan.json", code=3)


def test_a_folder_that_is_read_only_is_known_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(os, "access", lambda path, mode, **kwargs: mode != os.W_OK)
    message = line.fails(*PRUNE[:3], "unwritten.onnx", "--target", "macs=0.5")
    assert message == "error: the folder '.' is not writable\n  try: name a file in another folder\n"


def test_quantized_weights_are_not_recovered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    out = line.out("prune", "int8.onnx", "-o", "q.onnx", "--target", "0.5", "--plan", "q.json")
    assert "onnxprune recover" not in out
    message = line.fails("recover", "int8.onnx", "q.onnx", "q.json", "--data", "digits", "-o", "r.onnx")
    assert "are quantized, so they cannot be re-solved" in message
    assert "docs/howto/quantized.md" in message


def test_a_target_that_keeps_everything_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    said = "nothing was removed: the plan keeps every channel"
    assert said in line.out("prune", DIGITS, "-o", "whole.onnx", "--target", "macs=1")
    assert said not in line.out("prune", DIGITS, "-o", "half.onnx", "--target", "macs=0.5")
