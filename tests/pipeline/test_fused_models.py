"""Models as onnxruntime's optimizer writes them, and attention as one operator: which groups there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from networks.structures import filled
from onnx import numpy_helper

from onnxprune.analysis.coupling import Analysis
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal

MODELS = Path(__file__).resolve().parents[2] / "models"


def optimized(model: Path | onnx.ModelProto, out: Path, level: str = "EXTENDED") -> Model:
    """Return the model that onnxruntime optimizes a model to."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(out)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return load(out)


def ops(model: Model) -> set[str]:
    return {n.op for n in model.graph.nodes if n.domain == "com.microsoft"}


def proved(analysis: Analysis) -> Model:
    """Every second channel removed, and verified."""
    plan = Plan("", {g.name: Removal(g.channels, tuple(range(0, g.channels - 1, 2))) for g in analysis.groups})
    done = compile_plan(analysis.source, plan, analysis=analysis)
    assert done.verification is not None
    assert done.verification.max_relative < 1e-5 < done.verification.effect
    return done.model


def block(call: str, *, opset: int = 17, before: str = "", **shapes: tuple[int, ...]) -> Model:
    """x [2, 7, 8] -> q, k, v -> attention `a` of heads of three -> a projection and a residual sum."""
    weights = {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "c": (12, 8), **shapes}
    text = f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
      g (float[2,7,8] x) => (float[2,7,8] y)
      {{ q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)
        {before} a = {call} o = MatMul (a, c) y = Add (o, x) }}"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    for name, value in {"l": np.full(2, 6, np.int32), "n": np.array(7, np.int32)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return load(proto)


STANDARD = "Attention <q_num_heads = {h}, kv_num_heads = {k}> (q, k, v)"
MULTI = "com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v, b)"


@pytest.mark.parametrize(
    ("call", "options", "heads"),
    [
        (STANDARD.format(h=4, k=4), {"opset": 23}, {"wq": 4}),
        (STANDARD.format(h=4, k=2), {"opset": 23, "wk": (8, 6), "wv": (8, 10), "c": (20, 8)}, {"wq": 2}),
        (MULTI, {"b": (36,)}, {"wq": 4}),
    ],
    ids=["Attention", "grouped queries", "MultiHeadAttention"],
)
@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_heads_or_places_in_them_go(call: str, options: dict, heads: dict[str, int], attention: str) -> None:  # type: ignore[type-arg]
    analysis = analyze(block(call, **options), attention=attention)
    found = {g.name: g.channels for g in analysis.groups}
    if attention == "heads":
        assert found == heads
    else:
        size = options.get("wv", (8, 12))[1] // (2 if "wv" in options else 4)
        assert found == {"wq": 3, "wv": size}
    before = next(n for n in analysis.model.graph.nodes if "Attention" in n.op)
    after = next(n for n in proved(analysis).graph.nodes if "Attention" in n.op)
    count = "q_num_heads" if "q_num_heads" in before.attrs else "num_heads"
    if attention == "heads":
        assert after.attrs[count] == before.attrs[count] // 2
        assert "scale" not in after.attrs
    else:
        assert after.attrs[count] == before.attrs[count]
        assert after.attrs["scale"] == pytest.approx(3**-0.5)


def test_joined_weight_of_attention_loses_heads_in_all_three_parts() -> None:
    model = block("com.microsoft.Attention <num_heads = 4> (x, w, b)", w=(8, 36), b=(36,))
    analysis = analyze(model)
    assert {g.name: (g.channels, g.width) for g in analysis.groups} == {"w": (4, 9)}
    tensors = proved(analysis).graph.tensors()
    assert (tensors["w"].shape, tensors["c"].shape) == ((8, 18), (6, 8))


def test_grouped_query_attention_keeps_the_ratio_of_heads() -> None:
    call = "com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, , , l, n)"
    model = block(call.replace("a =", ""), wq=(8, 32), wk=(8, 16), wv=(8, 16), c=(32, 8))
    model = load_with_caches(model)
    analysis = analyze(model)
    assert {g.name: (g.channels, g.width) for g in analysis.groups} == {"wq": (2, 16)}
    node = next(n for n in proved(analysis).graph.nodes if n.op == "GroupQueryAttention")
    assert (node.attrs["num_heads"], node.attrs["kv_num_heads"]) == (2, 1)


def load_with_caches(model: Model) -> Model:
    """onnxruntime wants names for the caches, even where nobody reads them."""
    import onnx_graphsurgeon as gs

    node = next(n for n in model.graph.nodes if n.op == "GroupQueryAttention")
    node.outputs.extend([gs.Variable("keys", np.float32), gs.Variable("values", np.float32)])
    return model


def test_heads_that_are_an_output_of_the_model_stay() -> None:
    model = block(STANDARD.format(h=4, k=4).replace("Attention <", "Attention <"), opset=23)
    import onnx_graphsurgeon as gs

    node = next(n for n in model.graph.nodes if n.op == "Attention")
    node.outputs.append(gs.Variable("keys", np.float32, (2, 4, 7, 3)))
    model.graph.outputs.append(node.outputs[1])
    assert not analyze(model).groups


def test_digits_after_onnxruntimes_optimizer(tmp_path: Path) -> None:
    source = MODELS / "digits_cnn.onnx"
    model = optimized(source, tmp_path / "o.onnx")
    assert "FusedConv" in ops(model)
    analysis = analyze(model)
    assert sorted(g.channels for g in analysis.groups) == sorted(g.channels for g in analyze(load(source)).groups)
    assert any(g.residual for g in analysis.groups)
    proved(analysis)


def test_blocked_layout_locks_and_says_what_to_do(tmp_path: Path) -> None:
    options = optimized(MODELS / "digits_cnn.onnx", tmp_path / "o.onnx", "ALL")
    if "com.microsoft.nchwc" not in {n.domain for n in options.graph.nodes}:
        pytest.skip("this processor has no blocked kernels")
    reasons = {k.reason for k in analyze(options).locked}
    assert any("prune the model that it was made from" in r for r in reasons)


def test_transformer_layer_after_onnxruntimes_optimizer(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,7,8] x) => (float[N,7,8] y) {
      q0 = MatMul (x, wq) q1 = Add (q0, bq) q2 = Reshape (q1, four) q = Transpose <perm = [0, 2, 1, 3]> (q2)
      k0 = MatMul (x, wk) k2 = Reshape (k0, four) k = Transpose <perm = [0, 2, 3, 1]> (k2)
      v0 = MatMul (x, wv) v2 = Reshape (v0, four) v = Transpose <perm = [0, 2, 1, 3]> (v2)
      s = MatMul (q, k) t = Div (s, two) p = Softmax (t) a0 = MatMul (p, v) a1 = Transpose <perm = [0, 2, 1, 3]> (a0)
      a = Reshape (a1, three) o = MatMul (a, wo) r = Add (o, x) n = LayerNormalization (r, g, b)
      f0 = MatMul (n, w1) f1 = Add (f0, b1) e0 = Div (f1, root) e1 = Erf (e0) e2 = Add (e1, one) e3 = Mul (f1, e2)
      e = Mul (e3, half) f = MatMul (e, w2) z = Add (f, n) y = LayerNormalization (z, g, b) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    shapes = {"wq": (8, 12), "bq": (12,), "wk": (8, 12), "wv": (8, 12), "wo": (12, 8), "g": (8,), "b": (8,),
              "w1": (8, 16), "b1": (16,), "w2": (16, 8)}  # fmt: skip
    consts = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    consts |= {"two": np.float32(2), "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    consts |= {"four": np.array([0, 0, 4, 3]), "three": np.array([0, 0, 12])}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in consts.items())
    model = optimized(proto, tmp_path / "o.onnx")
    assert {"BiasGelu", "FusedMatMul"} <= ops(model)
    analysis = analyze(model)
    assert sorted(g.channels for g in analysis.groups) == [4, 16]
    proved(analysis)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18.dyn", "mobilenet_v2.dyn", "keras_resnet50", "convnext_tiny.ts"])
def test_structures_after_onnxruntimes_optimizer(tmp_path: Path, name: str) -> None:
    from networks.structures import FOLDER

    from onnxprune.ir.writer import to_proto

    model = filled(FOLDER / f"{name}.onnx.xz")
    found = analyze(optimized(to_proto(model), tmp_path / "o.onnx"))
    assert sorted(g.channels for g in found.groups) == sorted(g.channels for g in analyze(model).groups)
    proved(found)
