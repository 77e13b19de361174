"""Scores of whole blocks: by every criterion that has them, alone and one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks.residual import chain, conv, graph, removed, removing
from onnx import numpy_helper

import onnxprune as op
from onnxprune.analysis.blocks import Block
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.model_runs.block_runs import BlockScorer, removal_path
from onnxprune.criteria.scoring import load_scores, save_scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import cross_entropy
from onnxprune.options.planning import Constraints
from onnxprune.planning.depth import scores_for

MODELS = Path(__file__).parents[2] / "models"
BLOCKS = Constraints(only=("blocks",))
BOTH = Constraints(only=("blocks", "channels"))
NATIVE = ("angular", "distance", "loss_change", "obs", "pls_vip", "random")


@cache
def digits(images: int = 96) -> Calibration:
    return Calibration(op.load_data("digits:train", images=images), threads=1)


@cache
def classifier() -> Analysis:
    """The digits network; the branch of its last residual block is zero, so that the block adds nothing."""
    model = op.load(MODELS / "digits_cnn_folded.onnx")
    branch = next(b.branch for b in op.analyze(model).blocks if b.name == "residual2")
    node = next(n for n in model.graph.nodes if n.outputs[0].name == branch)
    for t in node.inputs[1:]:
        t.values = np.zeros_like(t.values)
    return op.analyze(model)


def noise(proto: onnx.ModelProto, samples: int = 64) -> Calibration:
    """Return random samples for a graph of `residual`."""
    x = np.random.default_rng(1).standard_normal((samples, 8, 6, 6)).astype(np.float32)
    return Calibration(op.Data(x, None, "noise"), threads=1)


@pytest.mark.parametrize("name", ["angular", "distance", "loss_change", "obs", "pls_vip"])
def test_a_block_that_adds_nothing_has_no_loss_and_is_removed_first(name: str) -> None:
    scores = scores_for(classifier(), name, BLOCKS, calibration=digits())
    assert next(iter(scores.blocks)) == "residual2"
    assert scores.blocks["residual2"] == pytest.approx(0, abs=1e-5)
    assert list(scores.blocks.values())[1] > 1e-4
    assert not scores.groups


@pytest.mark.parametrize("name", NATIVE)
def test_every_free_block_is_scored_twice_alike(name: str) -> None:
    one, two = (scores_for(classifier(), name, BLOCKS, calibration=digits()).blocks for _ in range(2))
    assert one == two
    assert list(one) == list(two)
    assert set(one) == {b.name for b in classifier().free_blocks}


def test_loss_change_is_the_difference_of_mean_cross_entropies() -> None:
    analysis, data = classifier(), digits()
    first, second = list(scores_for(analysis, "loss_change", BLOCKS, calibration=data).blocks.items())[:2]
    losses = []
    for names in ((), (first[0],), (first[0], second[0])):
        model = removed(analysis, removing(analysis, names))
        logits = Session(model).run({model.graph.inputs[0].name: data.data.x})[0]
        assert data.data.y is not None
        losses.append(cross_entropy(logits, data.data.y).mean())
    np.testing.assert_allclose(np.diff(losses), [first[1], second[1]], atol=1e-5)


def centred(values: np.ndarray) -> np.ndarray:
    """Return a 3x3 kernel of which only the centre is set."""
    out = np.zeros((*values.shape, 3, 3), np.float32)
    out[:, :, 1, 1] = values
    return out


def test_obs_finds_what_the_next_branch_can_make_up_for() -> None:
    body = conv("f", "x", "one.weight") + "y = Add(x, f) " + conv("g", "y", "two.weight") + "z = Add(y, g) "
    proto = graph(body + conv("out", "z", "head.weight"), ["one.weight", "two.weight", "head.weight"])
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        if tensor.name != "head.weight":
            values = centred(rng.standard_normal((8, 8)) / 4)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    analysis = op.analyze(op.load(proto))
    data = noise(proto)
    plain = scores_for(analysis, "distance", BLOCKS, calibration=data).blocks
    solved = scores_for(analysis, "obs", BLOCKS, calibration=data, ridge=1e-8).blocks
    by_layer = scores_for(analysis, "obs", BLOCKS, calibration=data, ridge=1e-8, weigh="layer").blocks
    assert plain["one"] > 0.05
    assert solved["one"] < 1e-4  # (1 + B)(1 + A) x is linear in x
    assert by_layer["one"] < 1e-4
    assert solved["two"] > 0.01  # no branch is left that could make up for it


class _Fixed(BlockScorer):
    """Losses from a table: of a block alone, or beside those removed before."""

    def __init__(self, table: Mapping[tuple[str, ...], Mapping[str, float]]) -> None:
        self.table, self.asked = table, []  # type: ignore[var-annotated]

    def losses(self, blocks: Sequence[Block], removed: Sequence[Block]) -> dict[str, float]:
        key = tuple(sorted(b.name for b in removed))
        self.asked += [(b.name, key) for b in blocks]
        return {b.name: self.table.get(key, self.table[()])[b.name] for b in blocks}


def test_losses_are_computed_again_after_each_removal() -> None:
    analysis = op.analyze(op.load(chain(3)))
    a, b, c = (f"stage.{i}" for i in range(3))
    table = {(): {a: 1.0, b: 1.1, c: 5.0}, (a,): {b: 9.0, c: 5.5}}
    scorer = _Fixed(table)
    found = removal_path(analysis, analysis.free_blocks, scorer, most=2)
    assert found == {a: 1.0, c: 5.5}
    assert (c, (a,)) in scorer.asked


def test_the_path_ends_where_the_target_is_met() -> None:
    analysis = op.analyze(op.load(chain(3)))
    scorer = _Fixed({(): {f"stage.{i}": float(i) for i in range(3)}})
    found = removal_path(analysis, analysis.free_blocks, scorer, enough=lambda kept: not kept.all())
    assert list(found) == ["stage.0"]


def test_blocks_inside_a_removed_one_are_left_out() -> None:
    body = conv("i", "x", "inner.weight") + "n = Add(x, i) r = Relu(n) " + conv("o", "r", "outer.weight")
    proto = graph(body + "y = Add(x, o) " + conv("out", "y", "w"), ["inner.weight", "outer.weight", "w"])
    analysis = op.analyze(op.load(proto))
    outer = next(b.name for b in analysis.blocks if b.branch == "o")
    inner = next(b.name for b in analysis.blocks if b.branch == "i")
    scorer = _Fixed({(): {outer: 0.0, inner: 100.0}})
    assert list(removal_path(analysis, analysis.free_blocks, scorer)) == [outer]


def test_criteria_of_blocks_refuse_channels() -> None:
    with pytest.raises(OnnxPruneError, match="scores whole blocks, not channels"):
        op.score(classifier(), "angular", data=digits())
    with pytest.raises(OnnxPruneError, match="scores whole blocks, not channels"):
        op.score(classifier(), "distance", data=digits(), constraints=BOTH)


@pytest.mark.parametrize("name", ["angular", "distance", "loss_change", "obs", "pls_vip"])
def test_missing_data_is_named(name: str) -> None:
    with pytest.raises(OnnxPruneError, match="needs data"):
        op.score(classifier(), name, constraints=BLOCKS)


@pytest.mark.parametrize("name", ["loss_change", "pls_vip"])
def test_missing_labels_are_named(name: str) -> None:
    data = replace(digits(), data=op.Data(digits().data.x, None, "plain"))
    with pytest.raises(OnnxPruneError, match="needs labels"):
        op.score(classifier(), name, constraints=BLOCKS, data=data)


def test_scores_of_blocks_are_written_and_read_in_their_order(tmp_path: Path) -> None:
    scores = op.score(classifier(), "loss_change", constraints=BOTH, data=digits())
    save_scores(scores, tmp_path / "scores.json")
    again = load_scores(tmp_path / "scores.json", classifier())
    assert list(again.blocks.items()) == list(scores.blocks.items())
    assert set(again.groups) == set(scores.groups)
    text = (tmp_path / "scores.json").read_text().replace('"residual1"', '"residual9"')
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(OnnxPruneError, match="residual9"):
        load_scores(tmp_path / "bad.json", classifier())


def test_criteria_without_losses_of_blocks_score_channels_only() -> None:
    scores = op.score(classifier(), "l1", constraints=BLOCKS)
    assert scores.groups
    assert not scores.blocks
