"""A thousand random graphs over all operator records; `make fuzz N=10000` runs more and stores what fails."""

from __future__ import annotations

import re

import onnx
import pytest
from fuzzing import (
    CASE,
    DTYPES,
    OPSETS,
    PARTS,
    Fuzz,
    NotTaken,
    _variant,
    build,
    fuzzes,
    proved,
    random_plan,
    runs,
    where_it_runs,
)
from graphs import BLOCKS, PROPERTY
from hypothesis import given, reject
from test_op_contract import CASES, TEXT, UNREACHABLE

from onnxprune.ops import all_ops

# Of opsets before the oldest that is drawn.
OLD = {"Upsample": 9, "Scatter": 10}


@PROPERTY(max_examples=1000)
@given(fuzzes())
def test_random_graph_is_pruned_and_proved(fuzz: Fuzz) -> None:
    proto = build(fuzz)
    if not runs(proto):
        reject()
    try:
        proved(proto, lambda analysis: random_plan(analysis, fuzz.seed))
    except NotTaken:
        reject()


def test_every_record_is_drawn_and_runs() -> None:
    # A record without a part would never be fuzzed; nor would one whose parts onnxruntime refuses.
    known = {f"{domain}.{op}" if domain else op for domain, op in all_ops()}
    able = {CASE[p].op for p in CASE if where_it_runs(p)}
    foreign = {c.op for c in CASES} - {c.op for c in CASES if c.runs}
    assert known - UNREACHABLE - TEXT - foreign - set(OLD) == able - set(OLD)
    assert not able & set(OLD)
    for op, opset in OLD.items():
        assert opset < min(OPSETS)
        assert max(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op) >= 7


@pytest.mark.parametrize("dtype", DTYPES)
def test_most_blocks_run_in_every_type(dtype: str) -> None:
    able = [b for b in BLOCKS if _variant(b, 18, dtype) is not None]
    assert len(able) >= 0.6 * len(BLOCKS)


@pytest.mark.parametrize("part", PARTS)
def test_part_is_in_the_graph_it_is_drawn_for(part: str) -> None:
    if part not in CASE:
        return
    case = CASE[part]
    opset = next((o for o in reversed(OPSETS) if _variant(part, o, "float32") is not None), None)
    if opset is None:
        assert case.op in OLD or case.opset < min(OPSETS)
        return
    nodes = build(Fuzz((part,), opset=opset)).graph.node
    assert case.op in {f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes}
    assert re.search(rf"\b{re.escape(case.op)}\b", case.text)
