"""Fitted blocks: where blocks end, what may change, and that no block and no model becomes worse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from hypothesis import given
from random_graphs.graphs import BATCH, PROPERTY, Spec, build, specs
from recovering import MODELS, changed_constants, constants, cut_at_random, noise, parsed, raw, samples

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.plans import Plan
from onnxprune.recovery._lockstep import PairedCursor
from onnxprune.recovery.reconstruct_blocks import BlockSolution, FittedBlock, ReconstructBlocks, find_blocks, joined
from onnxprune.recovery.recover import ALL_STAGES, recover
from onnxprune.verification import verify

pytest.importorskip("onnx2torch")


def fitted(
    analysis: Analysis, plan: Plan, pruned: Model, data: Data, **options: Any
) -> tuple[Model, list[BlockSolution]]:
    """The fitted model, and what became of each block."""
    found: list[BlockSolution] = []
    made = ReconstructBlocks(
        plan, analysis, samples(data), done=lambda solution, done, total: found.append(solution), **options
    )(pruned)
    return made, found


def ends(analysis: Analysis, plan: Plan, pruned: Model) -> Sequence[tuple[str, ...]]:
    with PairedCursor(analysis, plan, pruned, samples(noise(16))) as cursor:
        return [b.outputs for b in find_blocks(cursor)]


TWO = (
    "a = Conv <pads = [1, 1, 1, 1]> (x, w0) t = Relu (a) "
    "b = Conv <pads = [1, 1, 1, 1]> (t, w1) c = Relu (b) d = Conv <pads = [1, 1, 1, 1]> (c, w2) "
    "e = Add (d, t) u = Relu (e) "
    "f = Conv <pads = [1, 1, 1, 1]> (u, w3) g = Relu (f) h = Conv <pads = [1, 1, 1, 1]> (g, w4) y = Add (h, u)"
)
SHAPES = {"w0": (6, 3, 3, 3), "w1": (8, 6, 3, 3), "w2": (6, 8, 3, 3), "w3": (8, 6, 3, 3), "w4": (6, 8, 3, 3)}
THREE = TWO.replace("y = Add (h, u)", "m = Add (h, u) v = Relu (m) ") + (
    "i = Conv <pads = [1, 1, 1, 1]> (v, w5) j = Relu (i) k = Conv <pads = [1, 1, 1, 1]> (j, w6) y = Add (k, v)"
)
SHAPES_OF_THREE = {**SHAPES, "w5": (8, 6, 3, 3), "w6": (6, 8, 3, 3)}


def test_blocks_end_where_one_tensor_carries_everything() -> None:
    analysis = parsed(TWO, SHAPES)
    plan, pruned = cut_at_random(analysis, 0)
    # The first convolution is one linear node: it forms a block with the residual block behind it.
    assert ends(analysis, plan, pruned) == [("u",), ("y",)]


def test_blocks_that_pruning_did_not_change_are_left_out() -> None:
    analysis = parsed(TWO, SHAPES)
    plan, pruned = cut_at_random(analysis, 0)
    only = Plan(plan.model, {"w3": plan.groups["w3"]})
    pruned = op.compile_plan(analysis.source, only, analysis=analysis, check=False).model
    assert ends(analysis, only, pruned) == [("y",)]


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (0, []),
        (1, []),
        (2, ["a to b"]),
        (3, ["a to c"]),
        (4, ["a to b", "c to d"]),
        (7, ["a to b", "c to d", "e to g"]),
    ],
)
def test_up_to_three_consecutive_blocks_are_joined_but_the_last(count: int, wanted: list[str]) -> None:
    blocks = [FittedBlock(2 * i, 2 * i + 2, (chr(ord("a") + i),)) for i in range(count)]
    blocks.append(FittedBlock(2 * count, 2 * count + 3, ("y",), last=True))
    assert joined(blocks, 1) == blocks
    found = joined(blocks, 3)
    assert [b.name for b in found] == wanted
    assert [b.start for b in found[1:]] == [b.stop for b in found[:-1]]
    if found:
        assert (found[0].start, found[-1].stop) == (0, 2 * count)
    assert not any(b.last for b in found)


@pytest.mark.parametrize(
    ("activation", "wanted"),
    [
        ("f = Relu (e)", [("f",), ("y",)]),
        ("s = Sigmoid (e) f = Mul (e, s)", [("f",), ("y",)]),
        ("s = HardSigmoid (e) t = Mul (e, s) f = Relu (t)", [("f",), ("y",)]),
        ("f = Softmax <axis = 1> (e)", [("e",), ("y",)]),
    ],
)
def test_a_block_does_not_end_in_front_of_an_activation(activation: str, wanted: list[tuple[str, ...]]) -> None:
    body = f"a = Conv (x, w0) b = Relu (a) e = Conv (b, w1) {activation} g = Conv (f, w2) h = Relu (g) y = Conv (h, w3)"
    shapes = {"w0": (6, 3, 1, 1), "w1": (6, 6, 1, 1), "w2": (6, 6, 1, 1), "w3": (4, 6, 1, 1)}
    analysis = parsed(body, shapes)
    plan, pruned = cut_at_random(analysis, 0)
    with PairedCursor(analysis, plan, pruned, samples(noise(16, 3, 6, 6))) as cursor:
        assert [b.outputs for b in find_blocks(cursor)] == wanted


def test_every_block_comes_nearer_to_the_original() -> None:
    analysis = parsed(THREE, SHAPES_OF_THREE)
    plan, pruned = cut_at_random(analysis, 0)
    model, found = fitted(analysis, plan, pruned, noise(64, 3, 6, 6), epochs=3)
    assert [s.block for s in found] == ["u", "v", "y", "u to v"]
    assert all(s.after < s.before for s in found)
    assert changed_constants(pruned, model) == set(constants(pruned))
    assert {n: v.shape for n, v in constants(model).items()} == {n: v.shape for n, v in constants(pruned).items()}


def test_blocks_that_pytorch_cannot_compute_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = parsed(TWO, SHAPES)
    plan, pruned = cut_at_random(analysis, 0)

    def refuse(model: Model) -> None:
        raise OnnxPruneError("no converter")

    monkeypatch.setattr("onnxprune.torch_bridge.to_torch", refuse)
    model, found = fitted(analysis, plan, pruned, noise(64, 3, 6, 6))
    assert [s.weights for s in found] == [None, None]
    assert raw(model) == raw(pruned)


@PROPERTY(max_examples=10)
@given(spec=specs(max_blocks=3))
def test_random_graphs_keep_their_form_and_their_blocks_do_not_become_worse(spec: Spec) -> None:
    analysis = op.analyze(load(build(spec)))
    plan, pruned = cut_at_random(analysis, spec.seed)
    shape = analysis.witness.shapes[analysis.source.graph.inputs[0].name]
    data = Data(np.random.default_rng(0).standard_normal((4 * BATCH, *shape[1:])).astype(np.float32), None, "noise")
    model, found = fitted(analysis, plan, pruned, data, epochs=1)
    assert all(s.after <= s.before for s in found)
    assert {n: v.shape for n, v in constants(model).items()} == {n: v.shape for n, v in constants(pruned).items()}
    assert [n.op for n in model.graph.nodes] == [n.op for n in pruned.graph.nodes]


def test_the_stage_helps_after_the_least_squares_and_is_proved() -> None:
    analysis = op.analyze(load(build(Spec(("residual", "projection"), seed=1, head="flatten"))))
    plan, pruned = cut_at_random(analysis, 1, 0.4)
    found = recover(analysis.source, pruned, plan, samples(noise(300)), analysis=analysis, stages=ALL_STAGES, epochs=5)
    solved, blocks = found.stages[-2:]
    assert blocks.name == "reconstruct_blocks"
    assert blocks.kept
    assert blocks.distance < solved.distance
    assert blocks.note.endswith("blocks")
    assert verify(analysis, plan, found.model).weights == "not compared"


class Stop(Exception):
    pass


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    analysis = parsed(THREE, SHAPES_OF_THREE)
    plan, pruned = cut_at_random(analysis, 0)

    def run(**options: Any) -> bytes:
        return raw(
            recover(
                analysis.source, pruned, plan, samples(noise(64, 3, 6, 6)), analysis=analysis,
                stages=("reconstruct_blocks",), epochs=2, **options,
            ).model
        )  # fmt: skip

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(folder=tmp_path / "r", progress=stop)
    assert len(list((tmp_path / "r").glob("*.npz"))) == 1
    counts: list[tuple[int, int]] = []
    assert run(folder=tmp_path / "r", progress=lambda *c: counts.append(c)) == run()
    assert counts == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(OnnxPruneError, match=r"other settings \(epochs\)"):
        recover(
            analysis.source, pruned, plan, samples(noise(64, 3, 6, 6)), analysis=analysis,
            stages=("reconstruct_blocks",), epochs=3, folder=tmp_path / "r",
        )  # fmt: skip


def test_beyond_the_memory_batches_are_left_out_and_one_alone_is_not_fitted() -> None:
    analysis = parsed(TWO, SHAPES)
    plan, pruned = cut_at_random(analysis, 0)
    data = noise(64, 3, 6, 6)
    whole, part, nothing = (
        fitted(analysis, plan, pruned, data, epochs=1, memory=memory)[1] for memory in (2**30, 60_000, 1)
    )
    assert part[0].before != whole[0].before  # other held-out batches
    assert [s.weights for s in nothing] == [None, None]


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True])
def test_epochs_must_be_a_whole_number(epochs: Any) -> None:
    analysis = parsed(TWO, SHAPES)
    plan, _ = cut_at_random(analysis, 0)
    with pytest.raises(OnnxPruneError, match="whole number"):
        ReconstructBlocks(plan, analysis, samples(noise(16)), epochs=epochs)


def test_command_line(tmp_path: Path) -> None:
    model, small = MODELS / "digits_cnn.onnx", tmp_path / "small.onnx"
    shown = CommandLine("prune").out(
        model, "-o", small, "--target", "macs=0.4", "--data", "digits:train", "--images", 120, "-c", "l2",
        "--reconstruct-blocks",
    )  # fmt: skip
    assert "reconstruct_blocks" in shown
    assert small.exists()


def test_blocks_without_a_recovery_are_refused(tmp_path: Path) -> None:
    model, small = MODELS / "digits_cnn.onnx", tmp_path / "small.onnx"
    line = CommandLine("prune", model, "-o", small, "--target", "macs=0.4", "--reconstruct-blocks")
    assert "needs --data" in line.fails(code=2)
    assert "needs --data" in line.fails("--data", "digits:train", "--no-recover", code=2)
    with pytest.raises(OnnxPruneError, match="stage of recovery"):
        op.prune(model, target="macs=0.4", reconstruct_blocks=True)
    assert not small.exists()
