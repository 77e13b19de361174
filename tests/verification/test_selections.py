"""Channels behind a selection, of which only the data says how many it finds: heads of two-stage detectors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.symbolic import Expr
from onnxprune.ir.writer import to_proto
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal
from onnxprune.verification import verify

AT_MOST = 100

# Regions of which the score is positive, the even ones and the odd ones cut out one after the other (as torchvision's
# MultiScaleRoIAlign does with its levels), and a head of two layers on what was cut out.
TEXT = f"""
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 3, 16, 16] x) => (float[K, 4] y)
<int64[1] flat = {{-1}}, int64[1] zero = {{0}}, int64[1] most = {{{AT_MOST}}}, int64[1] one = {{1}}, int64 two = {{2}},
 int64 none = {{0}}, int64[1] channels = {{8}}, int64[1] side = {{2}}, int64[4] column = {{-1, 1, 1, 1}},
 float half = {{0.5}}> {{
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    f = Relu (a)
    map = Conv (f, s)
    scores = Reshape (map, flat)
    good = Greater (scores, half)
    found = NonZero (good)
    all = Reshape (found, flat)
    kept = Slice (all, zero, most)
    regions = Gather (boxes, kept)
    many = Shape (kept)
    size = Concat <axis = 0> (many, channels, side, side)
    empty = ConstantOfShape (size)
    parity = Mod (kept, two)
    is_even = Equal (parity, none)
    is_odd = Not (is_even)
    EVEN
    ODD
    rows = Flatten (odd_done)
    hidden = Gemm <transB = 1> (rows, h, c)
    r = Relu (hidden)
    y = Gemm <transB = 1> (r, o)
}}
"""
HALF = """
    NAME_found = NonZero (is_NAME)
    NAME_places = Reshape (NAME_found, flat)
    NAME_regions = Gather (regions, NAME_places)
    NAME_many = Shape (NAME_places)
    NAME_image = ConstantOfShape <value = int64[1] {0}> (NAME_many)
    NAME_cut = RoiAlign <output_height = 2, output_width = 2, sampling_ratio = 2> (f, NAME_regions, NAME_image)
    NAME_column = Reshape (NAME_places, column)
    NAME_size = Concat <axis = 0> (NAME_many, channels, side, side)
    NAME_stretched = Expand (NAME_column, NAME_size)
    NAME_done = ScatterElements <axis = 0> (BEFORE, NAME_stretched, NAME_cut)
"""


@pytest.fixture
def two_stage() -> Model:
    text = TEXT.replace("EVEN", HALF.replace("NAME", "even").replace("BEFORE", "empty"))
    proto = onnx.parser.parse_model(text.replace("ODD", HALF.replace("NAME", "odd").replace("BEFORE", "even_done")))
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 10, (256, 2))
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)), "s": rng.standard_normal((1, 8, 1, 1)),
        "h": rng.standard_normal((6, 32)), "c": rng.standard_normal(6), "o": rng.standard_normal((4, 6)),
        "boxes": np.concatenate([corners, corners + rng.uniform(1, 5, (256, 2))], axis=1),
    }  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    return load(proto)


def test_what_hides_behind_a_selection_is_free_and_proved(two_stage: Model) -> None:
    analysis = analyze(two_stage)
    assert {g.name: g.channels for g in analysis.groups} == {"w": 8, "h": 6}
    plan = Plan(two_stage.fingerprint, {"w": Removal(8, (0, 3, 6)), "h": Removal(6, (1, 2))})
    done = compile_plan(two_stage, plan, analysis=analysis)
    assert done.verification is not None
    assert done.verification.effect > 1e-2
    sizes = {t.name: tuple(t.dims) for t in to_proto(done.model).graph.initializer}
    assert (sizes["w"], sizes["h"], sizes["o"]) == ((5, 3, 3, 3), (4, 20), (4, 4))


def test_it_holds_however_many_are_found(two_stage: Model) -> None:
    # Bounded by 100 on the way, the number would look like a constant to one that only tries large ones.
    analysis = analyze(two_stage)
    plan = Plan(two_stage.fingerprint, {"w": Removal(8, (1, 2)), "h": Removal(6, (0,))})
    pruned = compile_plan(two_stage, plan, analysis=analysis).model
    rng = np.random.default_rng(1)
    found = []
    for scale in (0, 0.02, 0.04, 0.06, 0.1, 3):
        feeds = {"x": (scale * rng.standard_normal((1, 3, 16, 16))).astype(np.float32)}
        found.append(len(Session(pruned).run(feeds)[0]))
        if found[-1]:
            verify(analysis, plan, pruned, feeds=[feeds])
    assert found[0] == 0
    assert found[-1] == AT_MOST
    assert any(0 < n < AT_MOST for n in found)


def test_numbers_of_what_is_found_are_assumed_and_said(two_stage: Model) -> None:
    seen = witness(two_stage)
    assert "found" in seen.assumed
    # Every tensor has a shape then; in symbols, what depends on the number is no constant.
    assert all(o.name in seen.shapes for n in two_stage.graph.nodes for o in n.outputs)
    assert seen.shapes["y"] == (AT_MOST, 4)
    count, channels = seen.sizes["y"]
    assert isinstance(count, Expr)
    assert channels == 4
    assert seen.sizes["kept"] == (count,)
    assert seen.constant("many") is None
    assert isinstance(seen.elements("many")[0], Expr)
