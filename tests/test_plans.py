"""plan.json: read strictly (one small file per closed hole), written the same to the byte, fitting its model only."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_graphs.graphs import Spec, build

from onnxprune import plans
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal, load_plan, parse_plan, save_plan

HERE = Path(__file__).parent
BAD = sorted((HERE / "bad_plans").glob("*.json"))
SMALL = Plan(
    model="0123abcd",
    groups={"layer1.0.conv1": Removal(8, (0, 3, 7)), 'a "quoted" näme': Removal(2, (1,)), "whole": Removal(4, ())},
    criterion={"name": "dscore", "reduce": "mean", "normalize": "max"},
    options={"attention": "heads"},
    tool="0.1.0",
)
# File name -> what the message must say: every file is refused for its own reason, not for another.
REASONS = {
    "attention_unknown": "attention 'neurons'",
    "bool_as_channels": "'channels' takes a whole number, at least 1, not True",
    "bool_as_index": "'removed[0]' takes a whole number, not False",
    "bool_as_schema": "schema True",
    "channels_missing": "the key 'channels' is missing",
    "channels_zero": "'channels' takes a whole number, at least 1, not 0",
    "criterion_is_a_string": "'criterion' takes an object",
    "duplicate_group": "'conv1' is given twice",
    "duplicate_index": "not sorted and distinct",
    "duplicate_key": "'tool' is given twice",
    "empty_file": "not JSON",
    "emptied_group": "no channel of the group remains",
    "float_as_index": "takes a whole number",
    "group_is_a_list": "not an object",
    "groups_is_a_list": "'groups' takes an object",
    "inexact_is_a_number": "'inexact' takes true or false",
    "inexact_is_a_string": "'inexact' takes true or false",
    "index_negative": "outside 0..3",
    "index_out_of_range": "outside 0..3",
    "infinity": "Infinity is not JSON",
    "model_is_null": "'model' takes text in quotes, not None",
    "nan": "NaN is not JSON",
    "nested_too_deep": "not JSON",
    "not_an_object": "not an object",
    "not_json": "not JSON",
    "removed_is_a_string": "'removed' takes a list, each a whole number",
    "removed_missing": "the key 'removed' is missing",
    "blocks_in_schema_1": "blocks need schema 2",
    "block_operand_negative": "at least 0",
    "block_twice": "another block",
    "blocks_missing": "blocks",
    "schema_from_the_future": "schema 3",
    "schema_is_a_string": "schema '1'",
    "schema_missing": "schema None",
    "tool_missing": "the key 'tool' is missing",
    "trailing_text": "not JSON",
    "unknown_key": "unknown key 'comment'",
    "unknown_key_in_group": "unknown key 'kept'",
    "unknown_option": "unknown key 'round_to'",
    "unsorted": "not sorted and distinct",
}


def test_golden_bytes() -> None:
    assert SMALL.to_json().encode() == (HERE / "goldens" / "plan.json").read_bytes()


def test_golden_file_reads_as_the_plan_it_was() -> None:
    # A group that loses nothing is not written.
    groups = {n: r for n, r in SMALL.groups.items() if r.removed}
    assert load_plan(HERE / "goldens" / "plan.json") == dataclasses.replace(SMALL, groups=groups)


def test_golden_bytes_of_a_plan_for_inexact_groups() -> None:
    plan = dataclasses.replace(SMALL, options={"attention": "heads", "inexact": True})
    path = HERE / "goldens" / "plan_inexact.json"
    assert plan.to_json().encode() == path.read_bytes()
    assert load_plan(path).options == plan.options


def test_plan_without_groups_is_valid() -> None:
    assert parse_plan(Plan("", {}).to_json()) == Plan("", {})


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_bad_plan_is_refused_for_its_reason(path: Path) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        load_plan(path)
    assert REASONS[path.stem] in str(caught.value)
    assert path.name in str(caught.value)


def test_every_bad_plan_has_a_reason_and_every_reason_a_file() -> None:
    assert {p.stem for p in BAD} == set(REASONS)


def test_plan_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(OnnxPruneError, match="not UTF-8"):
        load_plan(path)


def test_plan_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match="cannot read the plan"):
        load_plan(tmp_path / "none.json")
    with pytest.raises(OnnxPruneError, match="cannot read the plan"):
        load_plan(tmp_path)


def test_plan_above_the_size_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(SMALL, path)
    os.truncate(path, plans.FORMAT.max_bytes + 1)
    with pytest.raises(OnnxPruneError, match="too large"):
        load_plan(path)


removals = st.integers(1, 12).flatmap(
    lambda n: st.sets(st.integers(0, n - 1), max_size=n - 1).map(lambda s: Removal(n, tuple(sorted(s))))
)


@given(st.dictionaries(st.text(max_size=8), removals, max_size=5), st.text(max_size=5))
def test_any_plan_survives_its_file(groups: dict[str, Removal], model: str) -> None:
    plan = Plan(model, {n: r for n, r in groups.items() if r.removed})
    assert parse_plan(plan.to_json()) == plan
    assert plan.removed == sum(len(r.removed) for r in plan.groups.values())


@given(st.text(max_size=40) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["schema", "tool", "model", "criterion", "options", "groups", "channels", "removed"]), inner),
).map(json.dumps))  # fmt: skip
def test_any_text_is_a_plan_or_a_named_error(text: str) -> None:
    try:
        parse_plan(text)
    except OnnxPruneError as err:
        assert "not a valid plan" in str(err)  # noqa: PT017


def test_digest_tells_what_is_removed_not_who_decided_it() -> None:
    other = dataclasses.replace(SMALL, criterion={}, tool="x", groups=dict(reversed(SMALL.groups.items())))
    assert other.digest == SMALL.digest
    assert dataclasses.replace(SMALL, model="").digest != SMALL.digest
    changed = {**SMALL.groups, "layer1.0.conv1": Removal(8, (0, 3, 6))}
    assert dataclasses.replace(SMALL, groups=changed).digest != SMALL.digest


SPEC = Spec(("residual", "dense"), seed=5)


def test_plan_for_another_model_is_refused() -> None:
    model, other = load(build(SPEC)), load(build(dataclasses.replace(SPEC, seed=6)))
    assert model.fingerprint != other.fingerprint
    with pytest.raises(OnnxPruneError, match="made for another model"):
        compile_plan(other, Plan(model.fingerprint, {}))


def test_plan_without_a_fingerprint_fits_any_model() -> None:
    compile_plan(load(build(SPEC)), Plan("", {}), check=False)


def test_unknown_group_names_the_nearest() -> None:
    model = load(build(SPEC))
    name = analyze(model).groups[0].name
    with pytest.raises(OnnxPruneError) as caught:
        compile_plan(model, Plan("", {name + "x": Removal(4, (0,))}))
    assert "unknown group" in str(caught.value)
    assert f"did you mean {name!r}" in str(caught.value)


def test_locked_group_is_refused_with_its_reason() -> None:
    model = load(build(dataclasses.replace(SPEC, head="conv")))
    lock = next(lock for lock in analyze(model).locked if lock.op == "output")
    with pytest.raises(OnnxPruneError, match="is an output of the model"):
        compile_plan(model, Plan("", {lock.name: Removal(lock.channels, (0,))}))


def test_group_of_another_size_is_refused() -> None:
    model = load(build(SPEC))
    group = analyze(model).groups[0]
    with pytest.raises(OnnxPruneError, match=f"counts {group.channels + 1} channels where the model has"):
        compile_plan(model, Plan("", {group.name: Removal(group.channels + 1, (0,))}))


def test_plan_made_in_memory_may_not_empty_a_group_either() -> None:
    model = load(build(SPEC))
    group = analyze(model).groups[0]
    with pytest.raises(OnnxPruneError, match="removes every channel of the group"):
        compile_plan(model, Plan("", {group.name: Removal(group.channels, tuple(range(group.channels)))}))
