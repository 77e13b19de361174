"""The models that ship: accurate as they are, and after half of their multiply-accumulates are gone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import onnxprune as op

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
FILES = ("digits_cnn.onnx", "digits_cnn_folded.onnx")


@cache
def _analysis(file: str) -> op.Analysis:
    return op.analyze(op.load(MODELS / file))


@pytest.mark.parametrize("file", FILES)
def test_accuracy(file: str) -> None:
    result = op.evaluate(op.load(MODELS / file), op.load_data("digits:test"))
    assert result.images == 450
    assert result.top1 >= 0.97


@pytest.mark.parametrize("file", FILES)
def test_everything_but_the_output_is_free(file: str) -> None:
    analysis = _analysis(file)
    assert len(analysis) == 7
    assert {lock.op for lock in analysis.locked} == {"output"}


@pytest.mark.parametrize("step", [16, 8, 1])  # what `auto` may mean on a machine
@pytest.mark.parametrize("file", FILES)
def test_half_the_macs_by_dscore(file: str, step: int) -> None:
    analysis = _analysis(file)
    constraints = op.Constraints(round_to=step)
    plan = op.plan(op.score(analysis, "dscore"), op.Target(macs=0.5), constraints=constraints)
    compiled = op.compile_plan(analysis.source, plan, analysis=analysis)
    assert compiled.after.ratio(compiled.before, "macs") == pytest.approx(0.5, abs=0.01)
    assert compiled.verification is not None
    assert compiled.verification.max_relative <= 1e-4
    assert op.evaluate(compiled.model, op.load_data("digits:test")).top1 >= 0.95


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "bn_scale", "dstep"])
def test_no_criterion_is_lost_on_the_demo(criterion: str) -> None:
    analysis = _analysis(FILES[0])
    plan = op.plan(op.score(analysis, criterion), op.Target(macs=0.5))
    pruned = op.apply(analysis.source, plan, analysis=analysis)
    assert op.evaluate(pruned, op.load_data("digits:test")).top1 >= 0.95


def test_random_channels_do_cost_accuracy() -> None:
    analysis = _analysis(FILES[0])
    plan = op.plan(op.score(analysis, "random"), op.Target(macs=0.5))
    pruned = op.apply(analysis.source, plan, analysis=analysis)
    assert op.evaluate(pruned, op.load_data("digits:test")).top1 < 0.9
