"""The page's answers without HTTP: how data runs between groups, costs, aims, plans; what a browser may not send."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import CommandLine
from hypothesis import given
from hypothesis import strategies as st
from networks.residual import chain, conv, graph
from networks.structures import FOLDER, analysed
from planning import FakeLatency, kept_counts, made_curves, mirrored, share, wide_model
from random_graphs.graphs import PROPERTY, Spec, build, specs

import onnxprune as op
from onnxprune.analysis.coupling import Kept
from onnxprune.errors import OnnxPruneError
from onnxprune.pipeline import compile_plan
from onnxprune.planning.constraints import Constraints
from onnxprune.reports.explorer import Explorer, flow
from onnxprune.reports.explorer._requests import BadRequest, answer

CURVES = {"w0": [0.88, 0.85, 0.8, 0.7, 0.6], "w1": [0.9, 0.89, 0.88, 0.86, 0.8]}  # at 10 to 50 %


def scores_of(model: op.Model) -> op.Scores:
    return op.score(op.analyze(model), "l2")


def explorer(output: Path = Path("unused.json"), **options: Any) -> Explorer:
    return Explorer(scores_of(wide_model()), output, constraints=Constraints(round_to=16), **options)


def with_curves(**options: Any) -> Explorer:
    scores = scores_of(wide_model())
    return Explorer(
        scores, Path("unused.json"), curves=made_curves(scores, CURVES), constraints=Constraints(round_to=16), **options
    )  # fmt: skip


def sent(found: Explorer, action: str, document: object) -> dict[str, Any]:
    return answer(found, action, json.dumps(document).encode())


# ------------------------------------------------------------------------------------------------------------ flow


def test_a_residual_stream_is_a_long_line_with_its_block_beside_it() -> None:
    drawn = flow(op.analyze(wide_model()))
    assert [(r.name, r.group, r.lane, r.end) for r in drawn.rows] == [
        ("w0", 0, 0, 2), ("w1", 1, 1, 1), ("w3", None, 0, 2),
    ]  # fmt: skip
    assert drawn.edges == ((0, 1), (1, 0), (0, 2))
    assert [r.reason for r in drawn.rows] == ["", "", "is an output of the model"]


LANES = [("resnet18.dyn", 2), ("densenet121.dyn", 25)]
SLOW = [
    pytest.param("resnet50.dyn", 2, marks=pytest.mark.slow),
    pytest.param("vit_b_32.dyn", 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "lanes"), [*LANES, *SLOW])
def test_flow_of_real_architectures(name: str, lanes: int) -> None:
    analysis = analysed(FOLDER / f"{name}.onnx.xz")
    drawn = flow(analysis)
    assert sorted(r.group for r in drawn.rows if r.group is not None) == list(range(len(analysis)))
    assert max(r.lane for r in drawn.rows) + 1 == lanes
    read = {s for s, _ in drawn.edges} | {t for _, t in drawn.edges}
    assert read == set(range(len(drawn.rows)))


@PROPERTY(max_examples=25)
@given(specs())
def test_lines_in_a_lane_never_overlap(spec: Spec) -> None:
    analysis = op.analyze(op.load(build(spec)))
    drawn = flow(analysis)
    assert sorted(r.group for r in drawn.rows if r.group is not None) == list(range(len(analysis)))
    for i, row in enumerate(drawn.rows):
        assert row.end >= i
        for k in range(i + 1, row.end + 1):
            assert drawn.rows[k].lane != row.lane or (k == row.end and (i, k) in drawn.edges)
    for source, target in drawn.edges:
        assert source != target
        assert drawn.rows[min(source, target)].end >= max(source, target)


# --------------------------------------------------------------------------------------------------------- figures


def test_description_is_json_and_says_what_can_be_dragged() -> None:
    found = explorer(name="<b>wide</b>").describe()
    assert json.loads(json.dumps(found, allow_nan=False))["name"] == "<b>wide</b>"
    assert [g["stops"] for g in found["groups"]] == [[64, 48, 32, 16], [96, 80, 64, 48, 32, 16]]
    assert found["start"] == [64, 96]
    assert found["metric"] is found["latency"] is None
    assert [a["what"] for a in found["aims"]] == ["ratio", "macs", "params", "bytes", "memory", "channels"]
    assert found["scopes"] == ["global", "uniform", "saving"]
    assert all(g["worth"][0] == [0, 1.0] and g["worth"][-1] == [g["channels"], 0.0] for g in found["groups"])


def test_figures_are_those_of_the_plan() -> None:
    found = explorer(latency=None)
    figures = found.figures([48, 32])
    made = found.plan([48, 32])
    assert kept_counts(made, found.analysis) == {"w0": 48, "w1": 32}
    for measure in ("macs", "params", "channels"):
        whole = found.figures([64, 96])["cost"][measure]
        assert figures["cost"][measure] / whole == share(made, found.analysis, measure) < 1
    assert 0 < figures["score"] < 1 == found.figures([64, 96])["score"]
    lowest = sorted(range(64), key=lambda i: found.scores.groups["w0"][i])[:16]
    assert made.groups["w0"].removed == tuple(sorted(lowest))


@PROPERTY(max_examples=25)
@given(specs(), st.sampled_from(("macs", "memory", "params")), st.permutations([0.95, 0.8, 0.65, 0.5]), st.booleans())
def test_greedy_answers_do_not_depend_on_what_was_asked_before(
    spec: Spec, measure: str, goals: list[float], hold: bool
) -> None:
    scores = scores_of(op.load(build(spec)))
    used = Explorer(scores, Path("unused"), constraints=Constraints(round_to=1))
    for place, goal in enumerate(goals):
        held = {0: used.start[0]} if hold and place % 2 else {}
        asked = []
        for fresh in (used, Explorer(scores, Path("unused"), constraints=Constraints(round_to=1))):
            try:
                asked.append(fresh.aim(measure, goal, "saving", held)[0])
            except OnnxPruneError as err:
                assert "cannot be reached" in str(err)  # noqa: PT017
                asked.append([])
        assert asked[0] == asked[1]


def test_latency_follows() -> None:
    scores = scores_of(wide_model())
    found = Explorer(scores, Path("unused"), latency=FakeLatency(scores.analysis), constraints=Constraints(round_to=16))
    assert found.figures([64, 96])["latency"] == pytest.approx(160e-6)
    assert found.figures([48, 96])["latency"] == pytest.approx(144e-6)
    counts, _ = found.aim("latency", 0.5, None, {})
    assert found.figures(counts)["latency"] == pytest.approx(80e-6)
    assert found.describe()["latency"] == {"batch": 1, "threads": 1, "provider": "FakeExecutionProvider"}


def test_estimates_lie_between_the_worst_group_and_the_sum() -> None:
    found = with_curves()
    assert found.figures([64, 96]) | {"cost": 0, "score": 0} == {
        "cost": 0, "latency": None, "metric": 0.9, "added": 0.9, "score": 0,
    }  # fmt: skip
    figures = found.figures([64 - 12, 96 - 28])  # measured at 20 % of 64 and 30 % of 96
    assert figures["metric"] == pytest.approx(0.85)
    assert figures["added"] == pytest.approx(0.85 - 0.02)
    far = found.figures([16, 96])
    assert far["metric"] is far["added"] is None


def test_sum_of_losses_for_a_loss_goes_up_and_an_accuracy_never_below_zero() -> None:
    scores = scores_of(wide_model())
    up = mirrored(made_curves(scores, CURVES))
    figures = Explorer(scores, Path("unused"), curves=up).figures([64 - 12, 96 - 28])
    assert figures["metric"] == pytest.approx(0.15)
    assert figures["added"] == pytest.approx(0.17)
    low = made_curves(scores, {"w0": [0.1], "w1": [0.1]})
    assert Explorer(scores, Path("unused"), curves=low).figures([64 - 6, 96 - 9])["added"] == 0.0


# ------------------------------------------------------------------------------------------------------------ aims


@pytest.mark.parametrize("allocator", [None, "global", "uniform", "saving"])
def test_aims_meet_their_target_and_leave_what_is_held(allocator: str | None) -> None:
    found = explorer()
    counts, _ = found.aim("macs", 0.5, allocator, {0: 48})
    assert counts[0] == 48
    assert share(found.plan(counts), found.analysis, "macs") == pytest.approx(0.5, abs=0.02)


def test_aim_at_a_ratio_and_at_a_metric() -> None:
    found = with_curves()
    assert found.aim("ratio", 0.5, "global", {})[0] == [32, 48]
    assert found.aim("metric", 0.85, None, {})[0] == [64, 64]  # the curves allow 52 and 58; whole blocks
    assert found.aim("metric", 0.7, None, {1: 96})[0] == [48, 96]
    assert found.aims[-1] | {"step": 0} == {"what": "metric", "from": 0.9, "to": 0.6, "step": 0}
    assert found.allocators[0] == "sensitivity"


def test_names_with_wildcards_are_held_as_themselves() -> None:
    model = wide_model()
    proto = op.to_proto(model)
    for initializer in proto.graph.initializer:
        initializer.name = {"w0": "w[01]*", "w1": "w?"}.get(initializer.name, initializer.name)
    for node in proto.graph.node:
        node.input[:] = [{"w0": "w[01]*", "w1": "w?"}.get(name, name) for name in node.input]
    found = Explorer(scores_of(op.load(proto)), Path("unused"), constraints=Constraints(round_to=16))
    assert [g.name for g in found.analysis.groups] == ["w[01]*", "w?"]
    counts, _ = found.aim("ratio", 0.5, None, {0: 64})
    assert counts == [64, 48]


@pytest.mark.parametrize("make", [explorer, with_curves])
def test_whole_range_of_every_aim_can_be_had(make: Callable[[], Explorer]) -> None:
    found = make()
    assert found.aims
    for aim in found.aims:
        for value in (aim["from"], aim["to"]):
            asked = {"what": aim["what"], "value": value, "scope": None, "held": {}}
            if found.curves is not None and aim["what"] not in ("ratio", "metric"):
                asked["scope"] = "global"
            assert sent(found, "aim", asked).get("aimed"), asked


def test_groups_left_whole_by_the_limits_cannot_be_cut() -> None:
    found = Explorer(scores_of(wide_model()), Path("unused"), constraints=Constraints(round_to=16, exclude=("w0",)))
    assert found.least == [64, 10]
    assert found.describe()["groups"][0]["stops"] == [64]
    with pytest.raises(BadRequest, match="group 0 keeps 64 to 64 channels"):
        sent(found, "figures", {"kept": [48, 96]})


def test_overrides_are_where_it_starts() -> None:
    constraints = Constraints(round_to=16, overrides={"w0": {"channels": 30}, "w1": 0.5})
    found = Explorer(scores_of(wide_model()), Path("unused"), constraints=constraints)
    assert found.start == [30, 48]
    assert found.describe()["groups"][0]["stops"] == [64, 48, 32, 30, 16]


def test_curves_of_another_model_or_for_one_threshold_are_refused() -> None:
    scores = scores_of(wide_model())
    other = made_curves(scores_of(wide_model(1)), CURVES)
    with pytest.raises(OnnxPruneError, match="another model"):
        Explorer(scores, Path("unused"), curves=other)
    with pytest.raises(OnnxPruneError, match="hold for that threshold only"):
        Explorer(scores, Path("unused"), curves=made_curves(scores, CURVES, bisected=0.8))


# ----------------------------------------------------------------------------------------------------------- plans


@PROPERTY(max_examples=15)
@given(specs(max_blocks=3), st.data())
def test_every_state_of_the_sliders_is_a_plan_that_compiles(spec: Spec, data: st.DataObject) -> None:
    model = op.load(build(spec))
    analysis = op.analyze(model)
    if not len(analysis):
        return
    found = Explorer(op.score(analysis, "l2"), Path("unused"), constraints=Constraints(round_to=1))
    counts = [
        data.draw(st.integers(least, g.channels)) for g, least in zip(analysis.groups, found.least, strict=True)
    ]  # fmt: skip
    figures = sent(found, "figures", {"kept": counts})["figures"]
    done = compile_plan(model, found.plan(counts), analysis=analysis)
    assert vars(done.after) == figures["cost"]


def test_saved_plan_is_read_back_and_replaced_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    found = explorer(path, overwrite=False)
    assert sent(found, "save", {"kept": [48, 96]})["saved"] == str(path)
    assert kept_counts(op.load_plan(path), found.analysis) == {"w0": 48, "w1": 96}
    sent(found, "save", {"kept": [32, 96]})
    assert kept_counts(op.load_plan(path), found.analysis) == {"w0": 32, "w1": 96}
    assert op.load_plan(path) == found.saved
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_that_is_not_ours_stays(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine")
    with pytest.raises(OnnxPruneError, match="exists already"):
        explorer(path, overwrite=False)
    path.unlink()
    found = explorer(path, overwrite=False)
    path.write_text("mine")  # while the page is open
    assert "exists already" in sent(found, "save", {"kept": [48, 96]})["problem"]["what"]
    assert path.read_text() == "mine"
    sent(explorer(path), "save", {"kept": [48, 96]})
    op.load_plan(path)


def test_a_plan_that_cannot_be_written_is_an_answer(tmp_path: Path) -> None:
    found = explorer(tmp_path / "gone" / "plan.json")
    assert "does not exist" in sent(found, "save", {"kept": [48, 96]})["problem"]["what"]
    assert found.saved is None


# -------------------------------------------------------------------------------------------------------- requests

AIM = {"what": "macs", "value": 0.5, "scope": None, "held": {}}


@pytest.mark.parametrize(
    ("action", "document", "reason"),
    [
        ("figures", [], "not an object"),
        ("figures", {}, "'kept' is missing"),
        ("figures", {"kept": [64, 96], "path": "/etc"}, "unknown key 'path'"),
        ("save", {"kept": [64, 96], "output": "x"}, "unknown key 'output'"),
        ("figures", {"kept": [64]}, "list of 2 counts"),
        ("figures", {"kept": "ab"}, "takes a list"),
        ("figures", {"kept": [64, 97]}, "group 1 keeps 10 to 96"),
        ("figures", {"kept": [0, 96]}, "group 0 keeps 7 to 64"),
        ("figures", {"kept": [64.0, 96]}, "takes a whole number, not 64.0"),
        ("figures", {"kept": [True, 96]}, "takes a whole number, not True"),
        ("aim", AIM | {"what": "latency"}, "'what' is one of"),
        ("aim", AIM | {"what": ["macs"]}, "'what' takes text"),
        ("aim", AIM | {"value": "0.5"}, "'value' takes a number"),
        ("aim", AIM | {"value": 10**400}, "more than 64 digits"),
        ("aim", AIM | {"value": 10**20}, "too large a number"),
        ("aim", AIM | {"value": True}, "'value' takes a number"),
        ("aim", AIM | {"scope": "latency"}, "'scope' is null or one of"),
        ("aim", AIM | {"scope": {}}, "'scope' takes text"),
        ("aim", AIM | {"held": []}, "'held' takes an object"),
        ("aim", AIM | {"held": {"2": 1}}, "places of groups"),
        ("aim", AIM | {"held": {"-1": 1}}, "places of groups"),
        ("aim", AIM | {"held": {"0": 65}}, "group 0 keeps"),
        ("done", {"now": True}, "unknown key 'now'"),
    ],
)
def test_what_the_page_would_not_send_is_refused(action: str, document: object, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        sent(explorer(), action, document)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"kept": NaN}', b'{"kept": [], "kept": []}', b"[" * 100_000, b"9" * 5000]
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        answer(explorer(), "figures", body)


@pytest.mark.parametrize(("value", "reason"), [(0.001, "cannot be reached"), (2.0, "share kept"), (-1.0, "share kept")])
def test_a_target_out_of_reach_is_an_answer(value: float, reason: str) -> None:
    assert reason in sent(explorer(), "aim", AIM | {"value": value})["problem"]["what"]


# ---------------------------------------------------------------------------------------------------------- blocks

NESTED = conv("s", "x", "stem") + conv("a", "s", "one") + conv("b", "a", "inner") + "c = Add(a, b) "
NESTED += conv("d", "c", "two") + "e = Add(s, d) " + conv("out", "e", "head")


def with_blocks(output: Path = Path("unused.json"), proto: onnx.ModelProto | None = None, **limits: Any) -> Explorer:
    model = op.load(proto or chain(3))
    return Explorer(scores_of(model), output, constraints=Constraints(round_to=1, **limits))


def nested() -> Explorer:
    return with_blocks(proto=graph(NESTED, ["stem", "one", "inner", "two", "head"]))


def without(found: Explorer, *blocks: int, action: str = "figures") -> dict[str, Any]:
    return sent(found, action, {"kept": found.start, "blocks": list(blocks)})


def test_every_free_block_has_a_switch() -> None:
    found = with_blocks().describe()
    assert [b["name"] for b in found["blocks"]] == ["stage.0", "stage.1", "stage.2"]
    assert [b["groups"] for b in found["blocks"]] == [[1], [2], [3]]
    assert [found["rows"][b["row"]]["group"] for b in found["blocks"]] == [1, 2, 3]
    assert [b["saved"]["macs"] for b in found["blocks"]] == pytest.approx([0.25] * 3)
    assert [b["within"] for b in nested().describe()["blocks"]] == [[1], []]


def test_blocks_without_groups_stand_behind_the_one_before() -> None:
    found = with_blocks(proto=onnx.load(Path(__file__).parents[3] / "models" / "digits_cnn.onnx"))
    described = found.describe()
    names = [described["rows"][b["row"]]["name"] for b in described["blocks"]]
    assert names == ["residual1.a.conv", "down.pointwise.conv", "dense.a.conv", "dense.b.conv", "residual2.a.conv"]


def test_a_removed_block_changes_the_figures_as_its_plan_does() -> None:
    found = with_blocks()
    whole, gone = found.describe()["whole"], without(found, 1)
    assert gone["blocks"] == [1]
    made = found.plan(found.start, [1])
    assert list(made.blocks) == ["stage.1"]
    done = compile_plan(found.analysis.source, made)
    assert gone["figures"]["cost"] == vars(done.after)
    assert gone["figures"]["cost"]["macs"] == 0.75 * whole["cost"]["macs"]
    assert gone["figures"]["score"] < whole["score"]


def test_latency_of_blocks_follows() -> None:
    class PerBlock(FakeLatency):
        def seconds(self, kept: Kept) -> float:
            return float(sum(kept[b.component] for b in blocks)) + 1

    scores = scores_of(op.load(chain(3)))
    blocks = scores.analysis.free_blocks
    found = Explorer(scores, Path("unused"), latency=PerBlock(scores.analysis), constraints=Constraints(round_to=1))
    assert without(found, 0, 2)["figures"]["latency"] == 2
    assert [b["saved"]["latency"] for b in found.describe()["blocks"]] == [0.25] * 3


def test_curves_say_nothing_about_blocks() -> None:
    figures = without(with_curves(), 0)["figures"]
    assert figures["metric"] is figures["added"] is None
    scores = scores_of(wide_model())
    with pytest.raises(OnnxPruneError, match="by scores, not by curves"):
        Explorer(scores, Path("unused"), curves=made_curves(scores, CURVES), constraints=Constraints(max_blocks=1))


def test_channels_inside_a_removed_block_are_not_planned() -> None:
    found = with_blocks()
    counts = [g.channels // 2 for g in found.analysis.groups]
    made = found.plan(counts, [0])
    assert set(made.groups) == {g.name for i, g in enumerate(found.analysis.groups) if i != 1}
    compile_plan(found.analysis.source, made)


def test_a_block_inside_a_removed_one_is_removed_with_it() -> None:
    found = nested()
    assert without(found, 0, 1)["blocks"] == [1]
    assert without(found, 0, 1)["figures"] == without(found, 1)["figures"]
    assert list(found.plan(found.start, [0, 1]).blocks) == [found.blocks[1].name]


def test_parallel_blocks_of_which_nothing_remains_are_an_answer(tmp_path: Path) -> None:
    body = conv("s", "x", "stem") + conv("a", "s", "one") + conv("b", "s", "two")
    body += "c = Add(a, s) e = Add(b, s) d = Add(c, e) " + conv("out", "d", "head")
    found = with_blocks(tmp_path / "plan.json", graph(body, ["stem", "one", "two", "head"]))
    answered = without(found, *range(len(found.blocks)), action="save")
    assert answered["problem"]["what"] == "no operand of the sum remains"
    assert not found.output.exists()


def test_aims_are_met_beside_removed_blocks() -> None:
    found = with_blocks()
    answered = sent(found, "aim", AIM | {"blocks": [2], "scope": "uniform", "held": {"3": 4}})
    assert answered["blocks"] == [2]
    assert answered["kept"][3] == 4
    assert answered["figures"]["cost"]["macs"] / found.describe()["whole"]["cost"]["macs"] == pytest.approx(
        0.5, abs=0.05
    )


@pytest.mark.parametrize("limits", [{"only": ("blocks",)}, {"only": ("blocks", "channels")}, {"max_blocks": 2}])
def test_aims_choose_blocks_if_these_are_asked_for(limits: dict[str, Any]) -> None:
    found = with_blocks(**limits)
    described = found.describe()
    alone = limits == {"only": ("blocks",)}
    assert described["most_blocks"] == limits.get("max_blocks", 3)
    assert any(g["open"] for g in described["groups"]) is not alone
    answered = sent(found, "aim", AIM | {"blocks": [1]})
    assert 1 in answered["blocks"]
    assert answered["figures"]["cost"]["macs"] / described["whole"]["cost"]["macs"] == pytest.approx(0.5, abs=0.05)
    compile_plan(found.analysis.source, found.plan(answered["kept"], answered["blocks"]))


def test_limits_of_blocks() -> None:
    found = with_blocks(max_blocks=1)
    assert "more than --max-blocks 1" in without(found, 0, 1)["problem"]["what"]
    assert "more than --max-blocks 1" in sent(found, "aim", AIM | {"blocks": [0, 1]})["problem"]["what"]
    assert with_blocks(only=("channels",)).blocks == []
    assert [b.name for b in with_blocks(exclude=("stage.1",)).blocks] == ["stage.0", "stage.2"]


@pytest.mark.parametrize("blocks", [[3], [-1], [0, 0]])
def test_blocks_that_are_not_there_are_refused(blocks: list[int]) -> None:
    with pytest.raises(BadRequest, match="different places below 3"):
        without(with_blocks(), *blocks)


def test_a_saved_plan_with_a_block_is_applied_and_proved(tmp_path: Path) -> None:
    onnx.save(chain(3), tmp_path / "m.onnx")
    found = Explorer(
        scores_of(op.load(tmp_path / "m.onnx")), tmp_path / "plan.json", constraints=Constraints(round_to=1)
    )
    answered = sent(found, "save", {"kept": [6, 8, 5, 8], "blocks": [0]})
    assert answered["removed_blocks"] == ["stage.0"]
    assert '"schema": 2' in found.output.read_text()
    small = tmp_path / "small.onnx"
    CommandLine("apply", tmp_path / "m.onnx", found.output, "-o", small).ok()
    CommandLine("verify", tmp_path / "m.onnx", small, found.output).ok()


def test_blocks_alone_are_weighed_by_their_own_losses() -> None:
    analysis = op.analyze(op.load(chain(3)))
    limits = Constraints(only=("blocks",))
    scores = op.score(analysis, "random", constraints=limits)
    assert scores.blocks
    found = Explorer(scores, Path("unused"), constraints=limits)
    figures = [without(found, *blocks)["figures"]["score"] for blocks in ([], [0], [0, 1, 2])]
    assert figures[0] == 1 > figures[1] > figures[2] == pytest.approx(0)
