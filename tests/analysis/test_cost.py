"""Activation memory and removable channels, against counting by hand and node by node."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser
from planning import wide_model
from random_graphs.graphs import PROPERTY, Spec, build, specs

from onnxprune.analysis.cost import MEASURES, CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan, score
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.planner import plan

VIEWS = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def peak(analysis: Analysis) -> float:
    """Runs the graph node by node and counts bytes of what is still needed, for the witness's batch."""
    graph, seen = analysis.model.graph, analysis.witness
    owner: dict[str, str] = {}
    size: dict[str, int] = {}

    def born(t: gs.Tensor) -> None:
        if t.name in seen.shapes and t.name not in seen.values and t.name not in analysis.table.views:
            owner[t.name] = t.name
            size[t.name] = int(np.prod(seen.shapes[t.name], dtype=np.int64)) * np.dtype(seen.dtypes[t.name]).itemsize

    for t in graph.inputs:
        born(t)
    live = dict(size)
    most = float(sum(live.values()))
    for place, node in enumerate(graph.nodes):
        for i, t in enumerate(node.outputs):
            if i == 0 and node.op in VIEWS and node.inputs[0].name in owner:
                owner[t.name] = owner[node.inputs[0].name]
            else:
                born(t)
                live |= {n: b for n, b in size.items() if n == t.name}
        most = max(most, float(sum(live.values())))
        later = {t.name for n in graph.nodes[place + 1 :] for t in n.inputs} | {t.name for t in graph.outputs}
        needed = {owner[n] for n in later if n in owner}
        live = {n: b for n, b in live.items() if n in needed}
    return most


@PROPERTY(max_examples=40)
@given(specs(), st.sampled_from((0.0, 0.4)))
def test_memory_is_what_running_node_by_node_needs(spec: Spec, ratio: float) -> None:
    model = load(build(spec))
    analysis = analyze(model)
    made = plan(score(analysis, "random"), ratio=ratio, constraints=Constraints(round_to=1))
    after = compile_plan(model, made, check=False).after
    small = analyze(compile_plan(model, made, check=False).model)
    batch = next((n for (_, axis), n in small.witness.dims.items() if axis == 0), 1)
    assert after.memory == CostModel(small).baseline.memory == int(peak(small) // batch)


@PROPERTY(max_examples=40)
@given(specs(), st.integers(0, 2**16))
def test_one_share_is_that_of_the_whole_answer(spec: Spec, seed: int) -> None:
    analysis = analyze(load(build(spec)))
    cost = CostModel(analysis)
    kept = np.random.default_rng(seed).random(analysis.count) < 0.6
    found = cost.cost(kept)
    assert {m: cost.share(kept, m) for m in MEASURES} == {m: found.ratio(cost.baseline, m) for m in MEASURES}


def test_memory_by_hand() -> None:
    analysis = analyze(wide_model())
    cost = CostModel(analysis)
    pixel = 4 * 36
    # At the second Relu: its input and output, and the residual stream that waits for the addition.
    assert cost.baseline.memory == pixel * (64 + 96 + 96)
    half = np.ones(analysis.count, bool)
    half[analysis["w1"].components[:48]] = False
    # Now the addition needs most: two inputs and an output.
    assert cost.cost(half).memory == pixel * (64 + 64 + 64)
    assert (cost.baseline.channels, cost.cost(half).channels) == (160, 112)


@pytest.mark.parametrize(
    ("nodes", "floats"),
    [
        ("a = Relu (x) y = Relu (a)", 16),
        ("a = Flatten (x) b = Relu (a) y = Relu (b)", 16),
        ("a = Relu (x) b = Relu (a) y = Add (b, x)", 24),
        ("a = Relu (x) b = Flatten (a) c = Flatten (b) y = Add (c, b)", 16),
        ("a = Relu (x) b = Add (a, a) c = Mul (b, a) y = Relu (c)", 24),
        ("a, m = Dropout (x) b = Relu (a) y = Relu (b)", 16),
    ],
)
def test_views_share_memory_and_outputs_stay(nodes: str, floats: int) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,8] x) => (float[N,8] y) {{ {nodes} }}'
    assert CostModel(analyze(load(parser.parse_model(text)))).baseline.memory == 4 * floats


def test_memory_of_a_graph_without_groups_is_kept_whole() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> agraph (float[2,8] x) => (float[2,8] y) { y = Relu (x) }'
    cost = CostModel(analyze(load(parser.parse_model(text)))).baseline
    assert (cost.memory, cost.channels) == (4 * 2 * 16, 0)
    assert cost.ratio(cost, "channels") == 1.0
