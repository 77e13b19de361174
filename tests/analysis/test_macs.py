"""MACs and parameters are those that fvcore counts for the torchvision modules (tests/goldens/macs.json)."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_graphsurgeon as gs
import pytest
from networks.structures import FOLDER, fill, unpack

import onnxprune as op
from onnxprune.analysis.cost import CostModel

GOLDEN = json.loads((Path(__file__).parent.parent / "goldens" / "macs.json").read_text(encoding="utf-8"))["models"]


def analysis_of(name: str) -> op.Analysis:
    return op.analyze(op.load(fill(unpack(FOLDER / f"{GOLDEN[name]['structure']}.onnx.xz"))))


def attention_macs(layers: int, tokens: int, width: int) -> int:
    """Queries by keys, and weights by values: tokens x tokens x width each, in every layer."""
    return 2 * layers * tokens * tokens * width


def scalars(analysis: op.Analysis) -> int:
    """Float constants of one element: bounds of a Clip, divisors of a GELU. torch keeps these in its code."""
    constants = {t.name: t for n in analysis.model.graph.nodes for t in n.inputs if isinstance(t, gs.Constant)}
    return sum(t.values.size == 1 and t.dtype.kind == "f" for t in constants.values())


@pytest.mark.parametrize("name", GOLDEN)
def test_counts_are_those_of_fvcore(name: str) -> None:
    golden = GOLDEN[name]
    analysis = analysis_of(name)
    whole = CostModel(analysis).baseline
    left_out = attention_macs(**golden["attention"]) if "attention" in golden else 0  # by fvcore
    assert whole.macs == golden["conv"] + golden["linear"] + left_out
    # densenet121: the exporter has folded about half of its BatchNormalizations, so it has fewer parameters.
    if golden["params"] is not None:
        assert whole.params - scalars(analysis) == golden["params"]


def test_counts_are_per_sample() -> None:
    """The batch is dynamic in these files, a prime in the analysis, and 1 in the counts."""
    analysis = analysis_of("mobilenet_v2")
    batch = next(n for (_, axis), n in analysis.witness.dims.items() if axis == 0)
    assert batch > 1
    assert CostModel(analysis).baseline.macs == GOLDEN["mobilenet_v2"]["conv"] + GOLDEN["mobilenet_v2"]["linear"]
