"""`diff`: what two models do not have in common, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from command_line import CommandLine
from onnx import numpy_helper

import onnxprune as op
from onnxprune.studies.model_diff import Differences, differences

ROOT = Path(__file__).parent.parent.parent
DIGITS = ROOT / "models" / "digits_cnn.onnx"
line = CommandLine("diff")

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 3] x) => (float[batch, 2] y)
<float[3, 4] w, float[4] b, float[4, 2] v>
{
  [first] h = MatMul (x, w)
  [bias] s = Add (h, b)
  [act] a = LeakyRelu <alpha = 0.25> (s)
  [last] y = MatMul (a, v)
}
"""


def model(text: str = TEXT, *, seed: int = 0, **replaced: np.ndarray) -> op.Model:
    """The network, with random weights or those given."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for value in proto.graph.value_info:  # the parser's angle brackets
        drawn = rng.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim]).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(replaced.get(value.name, drawn), value.name))
    del proto.graph.value_info[:]
    return op.load(proto)


def weight(m: op.Model, name: str) -> np.ndarray:
    return np.asarray(m.graph.tensors()[name].values)


def test_a_model_does_not_differ_from_itself() -> None:
    found = differences(model(), model())
    assert found.identical
    assert not found.retrained
    assert (found.same_nodes, found.same_weights) == (4, 3)
    assert found.same_shapes == 5
    assert found.before == found.after


def test_another_value_is_measured() -> None:
    one = model()
    values = weight(one, "b").copy()
    values[2] += 0.5
    found = differences(one, model(b=values))
    (changed,) = found.weights
    assert found.retrained
    assert (changed.name, changed.elements) == ("b", 0.25)
    assert changed.largest == pytest.approx(0.5)
    assert changed.relative == pytest.approx(0.5 / np.linalg.norm(weight(one, "b")))
    assert (found.same_nodes, found.same_weights) == (4, 2)


@pytest.mark.parametrize(("before", "after"), [(0.0, -0.0), (np.nan, 1.0)])
def test_values_that_compare_oddly_still_differ(before: float, after: float) -> None:
    def filled(v: float) -> op.Model:
        return model(b=np.full(4, v, np.float32))

    assert differences(filled(before), filled(before)).identical
    found = differences(filled(before), filled(after))
    assert [w.name for w in found.weights] == ["b"]
    json.dumps(found.as_dict(), allow_nan=False)


def test_another_attribute_and_another_operator_are_named() -> None:
    found = differences(model(), model(TEXT.replace("0.25", "0.5")))
    (changed,) = found.changed
    assert (changed.name, changed.op, changed.changes) == ("act", "LeakyRelu", ("alpha 0.25 -> 0.5",))
    other = differences(model(), model(TEXT.replace("LeakyRelu <alpha = 0.25>", "Relu")))
    assert other.removed == (("act", "LeakyRelu"),)
    assert other.added == (("act", "Relu"),)


def test_another_wiring_is_named() -> None:
    found = differences(model(), model(TEXT.replace("Add (h, b)", "Add (b, h)")))
    assert [c.name for c in found.changed] == ["bias"]
    assert found.changed[0].changes == ("input 0: h -> b", "input 1: b -> h")


def test_narrower_weights_are_shapes_not_values() -> None:
    one = model()
    narrow = TEXT.replace("float[3, 4] w, float[4] b, float[4, 2] v", "float[3, 3] w, float[3] b, float[3, 2] v")
    kept = {"w": weight(one, "w")[:, :3], "b": weight(one, "b")[:3], "v": weight(one, "v")[:3]}
    found = differences(one, model(narrow, **kept))
    assert {(w.name, w.before, w.after) for w in found.weights} == {
        ("w", (3, 4), (3, 3)), ("b", (4,), (3,)), ("v", (4, 2), (3, 2)),
    }  # fmt: skip
    assert all(w.relative is None for w in found.weights)
    assert next((s.tensor, s.before, s.after) for s in found.shapes) == ("h", ("batch", 4), ("batch", 3))
    assert not found.retrained
    assert found.after.params == 9 + 3 + 6
    assert found.after.macs == 9 + 6


def test_a_second_export_with_other_names_lines_up() -> None:
    renamed = TEXT
    for old, new in (("first", "n1"), ("bias", "n2"), ("act", "n3"), ("last", "n4"), (" w", " w_"), (" b,", " b_,"),
                     (", b)", ", b_)"), (" v>", " v_>"), (", v)", ", v_)"), (", w)", ", w_)"), ("h =", "h_ ="),
                     ("(h,", "(h_,")):  # fmt: skip
        renamed = renamed.replace(old, new)
    one = model()
    twin = model(renamed, **{f"{n}_": weight(one, n) for n in "wbv"})
    assert differences(one, twin).identical


def test_interface_and_opset_are_named() -> None:
    found = differences(model(), model(TEXT.replace(": 17]", ": 18]").replace("float[batch, 3] x", "float[5, 3] x")))
    assert found.interface == ("opset 17 -> 18", "inputs x float32[batch, 3] -> x float32[5, 3]")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diff") / "small.onnx"
    analysis = op.analyze(op.load(DIGITS))
    plan = op.plan(op.score(analysis, "l2"), op.Target(macs=0.5))
    return op.save(op.apply(analysis.source, plan), path)


def test_what_pruning_leaves(small: Path) -> None:
    document = json.loads(line.out(DIGITS, small, "--json"))
    assert (document["added"], document["removed"], document["interface"]) == ([], [], [])
    assert all(len(w["before"]) == len(w["after"]) for w in document["weights"])
    assert all(b >= a for w in document["weights"] for b, a in zip(w["before"], w["after"], strict=True))
    assert document["after"]["macs"] < 0.55 * document["before"]["macs"]
    assert document["after"]["file"] == small.stat().st_size


def test_tables(small: Path) -> None:
    text = line.out(DIGITS, small)
    assert "digits_cnn.onnx -> small.onnx" in text
    assert "[batch, " in text  # brackets are text, not a style
    assert "more (--all)" in text
    assert "more (--all)" not in line.out(DIGITS, small, "--all")
    assert "are the same" in line.out(small, small)


def test_no_model_is_an_error(tmp_path: Path) -> None:
    assert "no such file" in line.fails(DIGITS, tmp_path / "none.onnx")


def test_json_has_no_tuples_left() -> None:
    found: Differences = differences(model(), model(seed=1))
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
