"""Sizes of dynamic inputs: how they are read, what they must fit, and that they change no file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.input_sizes import Shapes, text_of, with_shapes
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.options import InputShapes, shape_of
from onnxprune.options.shapes import SHAPES

TWO = parser.parse_model("""
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, H, W] image, float[M, "?", H] other, int64 scalar) => (float[N, 3, H, W] y) {
  y = Relu (image)
  unused = Relu (other)
}
""")


@given(st.lists(st.one_of(st.none(), st.integers(1, 2**31 - 1)), min_size=1, max_size=6))
def test_text_and_shape_are_inverse(shape: list[int | None]) -> None:
    assert shape_of(text_of(shape)) == tuple(shape) == shape_of(shape)
    assert SHAPES.read([f"a=b={text_of(shape)}"]) == {"a=b": tuple(shape)}


@pytest.mark.parametrize(
    "text", ["", "x", "=1x2", "x=", "x=1x", "x=1x-2", "x=0x3", "x=1.5", "x=1 x a", "x=²", "x=1x99999999999"]
)
def test_nonsense_is_no_shape(text: str) -> None:
    with pytest.raises(ValueError):
        SHAPES.read([text])


def test_an_input_has_one_shape() -> None:
    assert SHAPES.read(["x=1x?", "y=3"]) == {"x": (1, None), "y": (3,)}
    with pytest.raises(ValueError, match="x=2"):
        SHAPES.read(["x=1", "x=2"])


def test_options_hold_numbers() -> None:
    assert InputShapes(shapes={"x": "1x?x48", "y": [np.int64(2), "?", None]}).shapes == {
        "x": (1, None, 48), "y": (2, None, None)
    }  # fmt: skip
    with pytest.raises(OnnxPruneError, match=r"shape of 'x' must be whole numbers .* got \[0\]"):
        InputShapes(shapes={"x": [0]})


def test_sizes_are_those_of_dynamic_dimensions() -> None:
    model = with_shapes(load(TWO), {"image": (None, 3, 40, None), "other": "7x?x?"})
    assert model.sizes == {("image", 2): 40, ("other", 0): 7}
    assert to_proto(model) == to_proto(load(TWO))
    assert model.copy().sizes == model.sizes
    seen = witness(model)
    assert seen.shapes["image"] == (11, 3, 40, 224)
    assert seen.shapes["other"] == (11, 41, 40)  # one dimension by name; batches keep the numbers of the analysis
    assert seen.settled == model.sizes
    assert not isinstance(seen.sizes["image"][2], int)


def test_question_marks_are_no_name() -> None:
    text = 'g (float["?", 3, "?", "?"] x) => (float[a, 3, b, c] y) { y = Relu (x) }'
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    sizes = witness(load(proto)).sizes["x"]
    assert len({sizes[0], sizes[2], sizes[3]}) == 3


@pytest.mark.parametrize(
    ("shapes", "what", "fix"),
    [
        ({"imagee": (1, 3, 8, 8)}, "unknown input 'imagee'", "did you mean 'image'"),
        ({"image": (1, 3, 8)}, "has 4 dimensions, not 3", "--shape image=Nx3xHxW"),
        ({"image": (1, 4, 8, 8)}, "axis 1 of the input 'image' is fixed to 3", "--shape image=1x3x8x8"),
        ({"image": (1, 3, 0, 8)}, "whole numbers from 1 on", "--shape image=1x3x48x320"),
        ({"image": (1, 3, 8.5, 8)}, "whole numbers from 1 on", "--shape image=1x3x48x320"),
        ({"image": (1, 3, True, 8)}, "whole numbers from 1 on", "--shape image=1x3x48x320"),
        ({"image": 3}, "whole numbers from 1 on", "--shape image=1x3x48x320"),
        ({"scalar": (1,)}, "has 0 dimensions, not 1", "--shape scalar="),
        ({"image": (1, 3, 8, 8), "other": (1, 1, 9)}, "two sizes for the dimension 'H': 8 .* and 9", "one size"),
    ],
)
def test_shapes_must_fit_the_inputs(shapes: Shapes, what: str, fix: str) -> None:
    with pytest.raises(OnnxPruneError, match=what) as err:
        with_shapes(load(TWO), shapes)
    assert str(err.value.where).startswith("--shape")
    assert fix in str(err.value.fix)


def test_open_dimensions_differ_from_the_given_ones() -> None:
    seen = witness(load(TWO, shapes={"image": (1, 3, 224, None)}))
    assert seen.shapes["image"] == (11, 3, 224, 448)
