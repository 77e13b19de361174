"""Channels first or last: what a model says of its input, and how data said to lie in either way gets there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from command_line import CommandLine
from onnx import numpy_helper

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Feeds, InputSpec, Preprocess, input_of, to_input
from onnxprune.ir.image_layout import layout_of
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.plans import load_plan

Array = npt.NDArray[Any]
MODELS = Path(__file__).parent.parent.parent / "models"
KERAS, DIGITS = MODELS / "digits_keras.onnx", MODELS / "digits_cnn.onnx"
FLOAT = np.dtype(np.float32)
OPEN = "N,a,b,c"
line = CommandLine()


def taking(body: str, shape: str = OPEN) -> Model:
    """A model of x; w is a 1x1 convolution's weight of 3 channels."""
    head = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
    proto = onnx.parser.parse_model(f"{head} agraph (float[{shape}] x) => (float y) {{ {body} }}")
    for name, value in {
        "w": np.ones((4, 3, 1, 1)),
        "scale": np.array(2.0),
        "v": np.ones((3, 5)),
        "five": np.ones([1] * 5),
    }.items():
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return load(proto)


# ------------------------------------------------------------------------------------------------ what a model says

TO_NCHW = "t = Transpose <perm = [0, 3, 1, 2]> (x)"


@pytest.mark.parametrize(
    ("body", "shape", "wanted"),
    [
        ("y = Conv (x, w)", OPEN, "nchw"),
        ("a = Mul (x, scale) b = Sub (scale, a) y = Conv (b, w)", OPEN, "nchw"),
        (f"{TO_NCHW} y = Conv (t, w)", OPEN, "nhwc"),
        (f"a = Div (x, scale) {TO_NCHW.replace('(x)', '(a)')} y = MaxPool <kernel_shape = [2, 2]> (t)", OPEN, "nhwc"),
        # There and back again, and an edge at which the image is what is not convolved.
        (f"{TO_NCHW} u = Transpose <perm = [0, 2, 3, 1]> (t) v2 = Transpose <perm = [0, 3, 1, 2]> (u) y = Conv (v2, w)",
         OPEN, "nhwc"),
        ("y = Conv (w, x)", OPEN, None),
        ("y = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (x, scale, v, scale, v)", OPEN, "nhwc"),
        # The graph knows better than the sizes do.
        ("y = Conv (x, w)", "N,8,8,3", "nchw"),
        # Without a graph that says it: the number of colours, where it is at one end only.
        ("y = MatMul (x, v)", "N,a,b,3", "nhwc"),
        ("y = Flatten (x)", "N,1,8,8", "nchw"),
        ("y = Flatten (x)", "N,3,8,3", None),
        ("y = Flatten (x)", OPEN, None),
        # A constant of more axes makes it something else.
        ("a = Add (x, five) b = Transpose <perm = [0, 4, 1, 2, 3]> (a) y = Relu (b)", OPEN, None),
        # Two readers that contradict each other.
        (f"{TO_NCHW} a = Conv (t, w) b = Conv (x, w) c = GlobalMaxPool (a) d = GlobalMaxPool (b) y = Add (c, d)", OPEN,
         None),
        ("y = MatMul (x, v)", "N,3", None),
    ],
)  # fmt: skip
def test_layout_of_an_input(body: str, shape: str, wanted: str | None) -> None:
    assert layout_of(taking(body, shape).graph.inputs[0]) == wanted


@pytest.mark.parametrize(("path", "wanted"), [(KERAS, "nhwc"), (DIGITS, "nchw")])
def test_layout_of_the_models_that_ship(path: Path, wanted: str) -> None:
    into = input_of(op.load(path))
    assert (into.layout, into.batch) == (wanted, None)


# -------------------------------------------------------------------------------------------------- how data gets in

FIRST = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)  # [n, C, H, W]
LAST = FIRST.transpose(0, 2, 3, 1)
SIZES = "check --layout and the size of the images (--size)"
NCHW, NHWC = InputSpec(["N", 3, 4, 5], FLOAT, "nchw"), InputSpec(["N", 4, 5, 3], FLOAT, "nhwc")


@pytest.mark.parametrize("kind", [np.float32, np.uint8, np.int64])
@pytest.mark.parametrize(("into", "wanted"), [(NCHW, FIRST), (NHWC, LAST)])
@pytest.mark.parametrize(("stated", "x"), [("nchw", FIRST), ("nhwc", LAST)])
def test_what_is_said_to_lie_in_one_way_gets_into_the_other(
    stated: str, x: Array, into: InputSpec, wanted: Array, kind: Any
) -> None:
    # Every channel has a mean and a scale of its own, so that a wrong axis shows.
    mean, std = [0.1, 0.2, 0.3], [1.0, 2.0, 4.0]
    how = Preprocess(mean, std, stated)
    got = to_input(x.astype(kind), into, how, "d")
    axis = (1, -1, 1, 1) if wanted is FIRST else (1, 1, 1, -1)
    pixels = wanted / 255 if kind is np.uint8 else wanted
    np.testing.assert_allclose(got, (pixels - np.reshape(mean, axis)) / np.reshape(std, axis), rtol=1e-5)
    assert got.dtype == FLOAT
    open_sizes = InputSpec(["N", None, "b", "c"], FLOAT, into.layout)
    assert np.array_equal(to_input(x.astype(kind), open_sizes, how, "d"), got)


def test_auto_moves_pictures_and_leaves_floats_as_they_are() -> None:
    for into, same in ((NCHW, FIRST), (NHWC, LAST)):
        assert np.array_equal(to_input(same, into, Preprocess(), "d"), same)
        pixels = to_input(LAST.astype(np.uint8), into, Preprocess(), "d")
        np.testing.assert_allclose(pixels, same / 255, rtol=1e-6)
    # Floats lie as the model takes them, so their channels, too, are where the model has them.
    got = to_input(LAST, NHWC, Preprocess([1.0, 2.0, 3.0]), "d")
    np.testing.assert_array_equal(got, LAST - np.array([1, 2, 3], np.float32))


def test_bytes_whose_width_is_a_number_of_colours() -> None:
    x = np.arange(2 * 1 * 6 * 4, dtype=np.uint8).reshape(2, 1, 6, 4)
    got = to_input(x, InputSpec(["N", 1, 6, 4], FLOAT, "nchw"), Preprocess([0.5]), "d")
    np.testing.assert_allclose(got, x / np.float32(255) - 0.5, rtol=1e-5)


def test_sizes_decide_where_the_model_says_nothing() -> None:
    into = InputSpec(["N", 16, "b", "c"], FLOAT)
    x = np.random.default_rng(0).standard_normal((2, 16, 7, 7)).astype(np.float32)
    assert np.array_equal(to_input(x, into, Preprocess(layout="nchw"), "d"), x)
    assert np.array_equal(to_input(x.transpose(0, 2, 3, 1), into, Preprocess(layout="nhwc"), "d"), x)


@pytest.mark.parametrize(("stated", "kind"), [("nchw", np.float32), ("nhwc", np.float32), ("auto", np.uint8)])
def test_a_model_that_takes_either_way_and_says_nothing(stated: str, kind: Any) -> None:
    into = InputSpec(["N", "a", "b", "c"], FLOAT)
    with pytest.raises(OnnxPruneError, match=r"cannot tell whether samples \[4, 5, 3\] of 'd'") as caught:
        to_input(LAST.astype(kind), into, Preprocess(layout=stated), "d")
    assert "without --layout" in str(caught.value)
    assert np.array_equal(to_input(LAST, into, Preprocess(), "d"), LAST)  # what the error advises


@pytest.mark.parametrize(
    ("x", "into", "stated", "fix"),
    [
        (FIRST, NHWC, "auto", "they fit with --layout nchw"),
        (LAST, NCHW, "auto", "they fit with --layout nhwc"),
        (FIRST, NHWC, "nhwc", "they fit with --layout nchw"),
        (FIRST, NCHW, "nhwc", "they fit with --layout nchw"),
        (FIRST, InputSpec(["N", 4, 5, 3], FLOAT), "auto", "they fit with --layout nchw"),
        (
            FIRST,
            InputSpec(["N", 3, 9, 9], FLOAT, "nchw"),
            "nchw",
            SIZES,
        ),
        (FIRST[:, 0], NCHW, "nchw", SIZES),
    ],
)
def test_what_does_not_fit_is_told_what_would(x: Array, into: InputSpec, stated: str, fix: str) -> None:
    with pytest.raises(OnnxPruneError, match="do not fit the model's input") as caught:
        to_input(x, into, Preprocess([0.1] * 7, layout=stated), "d")
    assert caught.value.fix == fix
    if "fit with" in fix:
        assert to_input(x, into, Preprocess(layout=fix[-4:]), "d").shape[1:] == tuple(into.shape)[1:]


def test_unknown_layout_is_refused_with_those_there_are() -> None:
    with pytest.raises(OnnxPruneError, match="unknown layout 'chwn'"):
        to_input(FIRST, NCHW, Preprocess(layout="chwn"), "d")


def test_feeds_read_the_layout_from_the_model() -> None:
    digits = op.load_data("digits:test", images=5)
    for path in (KERAS, DIGITS):
        model = op.load(path)
        first, _ = Feeds(model, digits, Preprocess(layout="nchw"))[0]
        last, _ = Feeds(model, op.Data(digits.x.transpose(0, 2, 3, 1), digits.y, "d"), Preprocess(layout="nhwc"))[0]
        (name,) = first
        assert np.array_equal(first[name], last[name])
        assert first[name].shape == ((5, 8, 8, 1) if path is KERAS else (5, 1, 8, 8))


# ------------------------------------------------------------------------------------------------- every command


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_commands_take_channels_first_for_a_keras_export(kind: Any, tmp_path: Path) -> None:
    data = op.load_data("digits:train", images=150)
    x = np.round(data.x * 255) if kind is np.uint8 else data.x
    np.savez(tmp_path / "first.npz", x=x.astype(kind), y=data.y)
    np.savez(tmp_path / "last.npz", x=x.astype(kind).transpose(0, 2, 3, 1), y=data.y)
    results: dict[str, list[Any]] = {}
    for layout in ("nchw", "nhwc"):
        folder = tmp_path / layout
        folder.mkdir()
        pruned, plan, small, better, trained, curves, sweep = (
            folder / n for n in ("p.onnx", "p.json", "s.onnx", "b.onnx", "t.onnx", "c.json", "s.csv")
        )
        of = ["--data", tmp_path / ("first.npz" if layout == "nchw" else "last.npz"), "--layout", layout]
        # The whole way in one command (it recovers, too), and step by step.
        line.ok("prune", KERAS, "-o", pruned, "--target", "macs=0.6", "-c", "taylor", *of)
        line.ok("plan", KERAS, "-o", plan, "--target", "macs=0.6", "-c", "act_mean", *of)
        line.ok("apply", KERAS, plan, "-o", small)
        line.ok("recover", KERAS, small, plan, *of, "-o", better, "--rows", 300)
        line.ok("retrain", small, *of, "--epochs", 1, "--keep", "last", "--augment", "crop=1", "--teacher", KERAS,
                "-o", trained, "--device", "cpu", "--threads", 1)  # fmt: skip
        line.ok("sensitivity", KERAS, *of, "--images", 60, "--ratios", 0.5, "-o", curves)
        line.ok("sweep", KERAS, *of, "--points", "0.5", "-o", sweep)
        line.ok("report", KERAS, small, plan, *of, "-o", folder / "r.html", "--runs", 1)
        results[layout] = [
            json.loads(line.out("evaluate", KERAS, *of, "--json"))["top1"],
            json.loads(line.out("verify", KERAS, small, plan, *of, "--json"))["max_relative"],
            load_plan(plan).groups,
            *(onnx.load(p).graph.SerializeToString() for p in (pruned, better, trained)),
            json.loads(curves.read_text())["groups"],
            sweep.read_text(),
        ]
    assert results["nchw"] == results["nhwc"]
    assert results["nchw"][0] > 0.98


def test_data_of_the_wrong_layout_is_told_the_right_one(tmp_path: Path) -> None:
    said = line.fails("evaluate", KERAS, "--data", "digits")
    assert "samples [1, 8, 8] of 'digits:test' do not fit the model's input" in said
    assert "they fit with --layout nchw" in said
    assert json.loads(line.out("evaluate", KERAS, "--data", "digits", "--layout", "nchw", "--json"))["top1"] > 0.98
