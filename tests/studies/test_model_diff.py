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
from onnxprune.studies.diff_page import diff_page
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
    plan = op.plan(op.score(analysis, "l2"), op.Target(macs=0.5), constraints=op.Constraints(round_to=2))
    return op.save(op.apply(analysis.source, plan), path)


def test_what_pruning_leaves(small: Path) -> None:
    document = json.loads(line.out(DIGITS, small, "--json"))
    assert (document["added"], document["removed"], document["interface"]) == ([], [], [])
    assert all(len(w["before"]) == len(w["after"]) for w in document["weights"])
    assert all(b >= a for w in document["weights"] for b, a in zip(w["before"], w["after"], strict=True))
    assert document["after"]["macs"] < 0.55 * document["before"]["macs"]
    assert document["after"]["file"] == small.stat().st_size


def test_there_is_a_row_for_each_layer_and_their_macs_add_up(small: Path) -> None:
    document = json.loads(line.out(DIGITS, small, "--json"))
    layers = {row["name"]: row for row in document["layers"]}
    assert document["same_layers"] == 0
    assert layers["fc"]["channels"] == [10, 10]
    for i, model_ in enumerate(("before", "after")):
        assert sum(row["macs"][i] for row in layers.values()) == document[model_]["macs"]
    text = line.out(DIGITS, small)
    a, b = layers["stem.conv"]["channels"]
    share = 100 * (layers["stem.conv"]["macs"][1] / layers["stem.conv"]["macs"][0] - 1)
    assert f"{a} -> {b}" in text
    assert f"{share:+.1f} %" in text
    assert text.index("13 layers changed, 0 the same") < text.index("also: ")
    assert len(text.splitlines()) < 40


def test_everything_is_listed_on_request(small: Path) -> None:
    text = line.out(DIGITS, small, "--all")
    assert "digits_cnn.onnx -> small.onnx" in text
    assert "[batch, " in text  # brackets are text, not a style
    assert "--all" not in text
    assert len(text.splitlines()) > 100
    assert "are the same" in line.out(small, small)


def test_renames_and_removed_identities_are_one_line(tmp_path: Path) -> None:
    padded = TEXT.replace("(s)\n", "(s)\n  [same] i = Identity (a)\n").replace("MatMul (a, v)", "MatMul (i, v)")
    renamed = TEXT.replace("[act]", "[activation]").replace("[first]", "[one]")
    one, other = model(padded), model(renamed)
    found = differences(one, other)
    assert found.renamed == (("first", "one"), ("act", "activation"))
    assert found.removed == (("same", "Identity"),)
    assert found.layers == ()
    assert found.same_layers == 2
    op.save(one, tmp_path / "a.onnx")
    op.save(other, tmp_path / "b.onnx")
    (summary,) = line.out(tmp_path / "a.onnx", tmp_path / "b.onnx").split("also: ")[1:]
    assert " ".join(summary.split()).startswith("2 nodes renamed; 1 node only in the first (1 Identity); 1 node with")
    assert "activation" in line.out(tmp_path / "a.onnx", tmp_path / "b.onnx", "--all")


def test_layers_of_one_model_alone_and_retrained_ones() -> None:
    one = model()
    values = weight(one, "v") * np.float32(1.5)
    (changed,) = differences(one, model(v=values)).layers
    assert (changed.name, changed.channels, changed.inputs, changed.macs) == ("v", (2, 2), (4, 4), (8, 8))
    assert changed.weights == pytest.approx(0.5)
    assert changed.share == 0
    shorter = TEXT.replace("[last] y = MatMul (a, v)", "[last] y = Slice (a, s0, s1, s2)").replace(
        "float[4, 2] v", "float[4, 2] v, int64[1] s0, int64[1] s1, int64[1] s2"
    )
    whole = {name: np.array([v], np.int64) for name, v in (("s0", 0), ("s1", 2), ("s2", 1))}
    gone = differences(one, model(shorter, **whole)).layers
    assert [(c.name, c.channels, c.macs) for c in gone] == [("v", (2, None), (8, None))]
    new = differences(model(shorter, **whole), one).layers
    assert [(c.name, c.channels, c.macs) for c in new] == [("v", (None, 2), (None, 8))]
    assert new[0].share is None


def test_a_weight_on_the_left_and_one_behind_nodes_are_layers() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2, 3, 5] x) => (float[2, 6, 4] y)
    <float[6, 3] w, float[4, 5] v>
    {
      [left] h = MatMul (w, x)
      t = Transpose <perm = [1, 0]> (v)
      [right] y = MatMul (h, t)
    }
    """
    one, other = model(text), model(text, seed=1)
    found = {c.name: (c.op, c.channels, c.inputs, c.macs) for c in differences(one, other).layers}
    assert found == {
        "w": ("MatMul", (6, 6), (3, 3), (180, 180)),
        "v": ("MatMul", (4, 4), (5, 5), (240, 240)),
    }


def test_the_page_stands_alone_and_escapes_names(small: Path, tmp_path: Path) -> None:
    page = tmp_path / "d.html"
    assert f"written: {page}" in line.out(DIGITS, small, "--html", page)
    text = page.read_text(encoding="utf-8")
    assert "stem.conv" in text
    assert "13 layers changed" in text
    assert not any(word in text for word in ("<script", "http:", "https:", "src=", "@import"))
    evil = model()
    evil.graph.nodes[2].name = "<script>"
    shown = diff_page(differences(evil, model()), "a & b")
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "<h1>a &amp; b</h1>" in shown
    before = small.read_bytes()
    line.fails(DIGITS, small, "--html", small)  # it would overwrite a model
    assert small.read_bytes() == before


def test_no_model_is_an_error(tmp_path: Path) -> None:
    assert "no such file" in line.fails(DIGITS, tmp_path / "none.onnx")


def test_json_has_no_tuples_left() -> None:
    found: Differences = differences(model(), model(seed=1))
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
