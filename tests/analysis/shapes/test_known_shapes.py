"""Shapes that the last pass returned need not be inferred again; those that another pass may have changed must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from networks.structures import FOLDER, filled
from random_graphs.graphs import PROPERTY, Spec, build, specs

import onnxprune as op
from onnxprune.analysis.shapes.shape_inference import known_or_witness, witness
from onnxprune.passes import NORMALIZE, FoldShapes, Pipeline, Rewritten, StripChannels

NAMES = (
    "resnet18.ts", "mobilenet_v3_large.dyn", "shufflenet_v2_x1_0.ts", "hf_bert.ts", "timm_test_vit_relpos.ts",
    "raft_small.ts", "mvit_v1_b.ts", "retinanet_resnet50_fpn.ts",
)  # fmt: skip


def agrees(normal: Rewritten) -> None:
    known, fresh = known_or_witness(normal.model, normal.shapes), witness(normal.model)
    assert known.dims == fresh.dims
    assert known.shapes == fresh.shapes
    assert known.dtypes | fresh.dtypes == known.dtypes  # it knows those of more constants
    assert known.values.keys() == fresh.values.keys()
    assert all(np.array_equal(v, known.values[name]) for name, v in fresh.values.items())


@pytest.mark.parametrize("name", NAMES)
def test_they_are_those_of_a_new_inference(name: str) -> None:
    normal = Pipeline(NORMALIZE).run(filled(FOLDER / f"{name}.onnx.xz"))
    assert normal.shapes is not None
    agrees(normal)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_inferred_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # mvit: thousands of tensors whose shapes nobody knows, sequences, and an Expand that gets a target of its own.
    normal = Pipeline(NORMALIZE).run(filled(FOLDER / f"{name}.onnx.xz"))
    monkeypatch.setattr("onnxprune.analysis.shapes.shape_inference.witness", None)
    known_or_witness(normal.model, normal.shapes)


@PROPERTY(max_examples=60)
@given(specs())
def test_they_are_those_of_a_new_inference_in_any_graph(spec: Spec) -> None:
    agrees(Pipeline(NORMALIZE).run(op.load(build(spec))))


def test_a_pass_that_may_change_shapes_returns_none() -> None:
    model = op.load(build(Spec(("residual", "conv"))))
    analysis = op.analyze(model)
    plan = op.plan(op.score(analysis, "l2"), ratio=0.5, constraints=op.Constraints(round_to=1))
    strip = StripChannels(plan, analysis)
    pruned = Pipeline([FoldShapes(), strip]).run(analysis.model)
    assert pruned.shapes is None
    again = Pipeline([FoldShapes(), strip, FoldShapes()]).run(analysis.model)
    assert again.shapes is not None
    assert again.shapes.shapes != analysis.witness.shapes
    agrees(again)
