"""Node data for Model Explorer: values by hand, keys that the graph has, and the package's own classes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.integrations.model_explorer import node_data, save_node_data
from onnxprune.latency.layer_figures import layer_figures, layer_seconds
from onnxprune.plans import Plan, save_plan

MODEL = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"


@pytest.fixture(scope="module")
def case() -> tuple[op.Analysis, op.Scores, Plan]:
    analysis = op.analyze(MODEL)
    scores = op.score(analysis, "l2")
    return analysis, scores, op.plan(scores, op.Target(macs=0.5))


def test_shares_are_those_of_the_pruned_weights(case: tuple[op.Analysis, op.Scores, Plan]) -> None:
    analysis, scores, plan = case
    (found,) = node_data(MODEL, plan, scores=scores)["channels kept"].values()
    small = op.compile_plan(op.load(MODEL), plan).model
    old, new = ({n.outputs[0].name: n for n in m.graph.nodes} for m in (analysis.source, small))
    convs = [name for name, node in old.items() if node.op == "Conv"]
    assert len(convs) > 5
    for name in convs:
        share = new[name].inputs[1].shape[0] / old[name].inputs[1].shape[0]
        assert found["results"][name]["value"] == pytest.approx(share)


def test_layers_have_the_macs_of_both_models(case: tuple[op.Analysis, op.Scores, Plan]) -> None:
    analysis, _, plan = case
    found = layer_figures(analysis, plan)
    done = op.compile_plan(op.load(MODEL), plan)
    assert sum(x.macs[0] for x in found) == done.before.macs
    assert sum(x.macs[1] for x in found) == done.after.macs
    assert all(x.macs[0] == x.macs[1] for x in layer_figures(analysis))


def test_layers_of_a_removed_block_have_no_macs() -> None:
    analysis = op.analyze(MODEL)
    from onnxprune.planning.depth import BlockRemoval

    block = analysis.free_blocks[0]
    plan = Plan("", {}, blocks={block.name: BlockRemoval(block.output, block.operand)})
    gone = [x for x in layer_figures(analysis, plan) if not x.macs[1]]
    assert gone
    assert {x.output for x in gone} <= set(block.nodes)


def test_every_layer_has_a_time_and_no_other_key(case: tuple[op.Analysis, op.Scores, Plan]) -> None:
    analysis, _, plan = case
    small = op.analyze(op.compile_plan(op.load(MODEL), plan).model)
    for model, times in zip((analysis, small), layer_seconds([analysis, small], runs=3), strict=True):
        names = {n.outputs[0].name for n in model.source.graph.nodes if n.op in ("Conv", "Gemm")}
        assert set(times) - {""} == names
        assert all(v > 0 for v in times.values())


def test_files_are_named_by_their_overlay(tmp_path: Path, case: tuple[op.Analysis, op.Scores, Plan]) -> None:
    _, scores, plan = case
    save_plan(plan, tmp_path / "plan.json")
    paths = save_node_data(MODEL, tmp_path / "plan.json", tmp_path / "overlay", scores=scores, latency=True, runs=2)
    assert [p.name for p in paths] == ["channels_kept.json", "importance.json", "latency.json"]
    outputs = {o for n in onnx.load(MODEL).graph.node for o in n.output}
    for path in paths:
        ((graph, document),) = json.loads(path.read_text(encoding="utf-8")).items()
        assert graph == onnx.load(MODEL).graph.name
        assert set(document["results"]) <= outputs
        assert document["gradient"][0]["stop"] == 0
        assert document["gradient"][-1]["stop"] == 1


def test_scores_of_another_model_are_refused(case: tuple[op.Analysis, op.Scores, Plan]) -> None:
    from dataclasses import replace

    _, scores, plan = case
    strange = replace(scores, groups={"elsewhere": next(iter(scores.groups.values()))})
    with pytest.raises(OnnxPruneError, match="'elsewhere'"):
        node_data(MODEL, plan, scores=strange)


def test_a_plan_of_another_model_is_refused(case: tuple[op.Analysis, op.Scores, Plan]) -> None:
    _, _, plan = case
    with pytest.raises(OnnxPruneError):
        node_data(MODEL.with_name("digits_keras.onnx"), plan)


def test_a_folder_that_cannot_be_made_is_a_known_error(
    tmp_path: Path, case: tuple[op.Analysis, op.Scores, Plan]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OnnxPruneError, match="cannot create the folder"):
        save_node_data(MODEL, case[2], tmp_path / "file")


def test_model_explorer_reads_the_documents(case: tuple[op.Analysis, op.Scores, Plan]) -> None:
    builder = pytest.importorskip("model_explorer.node_data_builder")
    _, scores, plan = case
    for document in node_data(MODEL, plan, scores=scores).values():
        ((graph, content),) = document.items()
        data = builder.GraphNodeData(
            name=content["name"],
            results={k: builder.NodeDataResult(**v) for k, v in content["results"].items()},
            gradient=[builder.GradientItem(**g) for g in content["gradient"]],
        )
        assert json.loads(builder.ModelNodeData({graph: data}).to_json_string())[graph]["results"] == content["results"]


def test_the_adapter_of_onnx_models_has_a_node_for_every_key(case: tuple[op.Analysis, op.Scores, Plan]) -> None:
    adapter = pytest.importorskip("model_explorer_onnx.main")
    _, _, plan = case
    graphs = adapter.ONNXAdapter().convert(str(MODEL), {})["graphs"]
    keys = {a.value for n in graphs[0].nodes for m in n.outputsMetadata for a in m.attrs}
    keys |= {n.id for n in graphs[0].nodes}
    ((graph, content),) = node_data(MODEL, plan)["channels kept"].items()
    assert graphs[0].id == graph
    assert set(content["results"]) <= keys
