"""Types of single nodes, asked one by one, are those that inference finds for the whole graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from networks.structures import FOLDER, filled
from onnx import helper
from random_graphs.graphs import PROPERTY, Spec, build, specs

import onnxprune as op
from onnxprune.analysis.shapes.shape_inference import assignments, witness
from onnxprune.analysis.shapes.type_inference import NodeTypes, captured, of_array
from onnxprune.ir.model import Model
from onnxprune.ir.reader import weightless
from onnxprune.ir.writer import to_skeleton
from onnxprune.passes import LiftConstants

NAMES = (
    "resnet18.dyn", "hf_deberta_v2.ts", "hf_whisper_encoder.ts", "light_shufflenet", "mvit_v1_b.ts", "s3d.ts",
    "ssd300_vgg16.ts", "swin_t.ts", "timm_gcvit_xxtiny.ts", "timm_test_nfnet.ts",
)  # fmt: skip


def agrees(model: Model) -> None:
    for dims in assignments(model):
        proto = weightless(to_skeleton(model)[0])
        del proto.graph.value_info[:]
        for value in proto.graph.input:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if (value.name, axis) in dims:
                    dim.dim_value = dims[value.name, axis]
        for value in proto.graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        seen = witness(model, dims)
        compared = 0
        for value in (*inferred.value_info, *inferred.output):
            tensor = value.type.tensor_type
            if not value.type.HasField("tensor_type") or not tensor.elem_type:
                continue
            assert seen.dtypes[value.name] == helper.tensor_dtype_to_np_dtype(tensor.elem_type), value.name
            shape = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
            if tensor.HasField("shape") and None not in shape:
                assert seen.shapes[value.name] == tuple(shape), value.name
                compared += 1
        assert compared


@pytest.mark.parametrize("name", NAMES)
def test_they_are_those_of_the_whole_graph(name: str) -> None:
    agrees(LiftConstants()(filled(FOLDER / f"{name}.onnx.xz")))


@PROPERTY(max_examples=60)
@given(specs())
def test_they_are_those_of_the_whole_graph_in_any_graph(spec: Spec) -> None:
    agrees(op.load(build(spec)))


def model_of(text: str, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    return op.load(proto)


def test_nodes_that_are_alike_are_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,3,8,8] x) => (float[M] y) {
            a = Conv (x, w)
            b = Conv <pads = [1,1,1,1]> (x, w)
            c = Conv (x, v)
            d = Reshape (a, two)
            e = Reshape (a, four)
            f = Reshape (c, four)
            y = ReduceMean <keepdims = 0, axes = [1,2,3]> (x)
        }""",
        w=np.zeros((3, 3, 3, 3), np.float32), v=np.ones((3, 3, 3, 3), np.float32),
        two=np.array([0, -1]), four=np.array([0, 3, 6, 6]),
    )  # fmt: skip
    asked: list[str] = []
    infer = onnx.shape_inference.infer_shapes

    def counted(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
        asked.append(model.graph.node[-1].output[0])
        return infer(model, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", counted)
    shapes = witness(model).shapes
    assert asked == ["a", "b", "d", "e", "y"]  # c is like a, whatever the weights are; d and e are told other sizes
    assert shapes["b"] == (11, 3, 8, 8)
    assert shapes["a"] == shapes["c"] == shapes["e"] == shapes["f"] == (11, 3, 6, 6)
    assert shapes["d"] == (11, 108)


def test_an_output_that_one_of_two_nodes_leaves_out() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[4,6] x, float[6] w) => (float[4,6] b, float[4,1] mean, float[4,1] deviation) {
            a, none, also = LayerNormalization (x, w)
            b, mean, deviation = LayerNormalization (x, w)
        }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.node[0].output[1] = ""
    seen = witness(op.load(proto))
    assert seen.shapes["mean"] == seen.shapes["deviation"] == seen.shapes["also"] == (4, 1)
    assert "" not in seen.shapes


def test_bodies_see_what_they_capture() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x, bool c) => (float[N,K] y) {
            h = MatMul (x, w)
            size = Constant <value_ints = [0, 3, 2]> ()
            y = Loop (, c, x) <body = b (int64 i, bool d, float[N,4] s) => (bool e, float[N,4] t, float[A,B,C] q) {
                e = Identity (d) t = Identity (s) r = Relu (h) q = Reshape (r, size)
            }>
        }""".replace("y = Loop", "last, y = Loop"),
        w=np.zeros((4, 6), np.float32),
    )
    node = model.graph.nodes[-1]
    assert {t.name for t in captured(node)} == {"h", "size"}
    assert witness(LiftConstants()(model)).shapes["y"] == (101, 11, 3, 2)


def test_an_if_has_the_shape_of_both_branches() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x, bool c) => (float[N,K] y, float[L,M] z) {
            h = MatMul (x, w)
            size = Constant <value_ints = [0, 3, 2]> ()
            y, z = If (c) <
                then_branch = t () => (float[A,B,C] p, float[G,H] u) { p = Reshape (h, size) u = Relu (h) },
                else_branch = e () => (float[D,E,F] q, float[I,J] v) {
                    r = Relu (h) q = Reshape (r, size) v = Concat <axis = 0> (h, h)
                }
            >
        }""",
        w=np.zeros((4, 6), np.float32),
    )
    seen = witness(LiftConstants()(model))
    assert seen.shapes["y"] == (11, 3, 2)
    assert seen.symbolic("y")[1:] == (3, 2)  # type: ignore[index]
    assert seen.shapes["z"] == (101, 6)
    assert "z" in seen.assumed


def test_what_nobody_knows_stays_unknown() -> None:
    model = model_of("""<ir_version: 8, opset_import: ["": 17, "my.own": 1]>
        g (float[N,4] x) => (float[N,4] y) {
            a = my.own.Guess (x)
            b = Relu (a)
            s = Shape (a)
            c = Reshape (x, s)
            z = Concat <axis = 1> (a, x)
            y = Add (x, x)
        }""")
    seen = witness(model)
    assert seen.shapes.keys() >= {"x", "y"}
    assert not seen.shapes.keys() & {"a", "b", "c", "z"}
    assert not seen.values


def test_a_node_that_is_impossible_is_not_known() -> None:
    model = model_of("""<ir_version: 8, opset_import: ["": 17]>
        g (float[2,3] x) => (float[2,3] y) { y = Concat <axis = 1> (x) }""")
    node = model.graph.nodes[0]
    kinds = {"x": of_array(np.dtype(np.float32), (2, 3))}
    assert NodeTypes(model).outputs(node, kinds, [None], {}) == [kinds["x"]]
    node.attrs["axis"] = 7
    assert NodeTypes(model).outputs(node, kinds, [None], {}) == [None]
