"""Activations of the original shared by recoveries: the same bits with and without a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import load_data, subset
from onnxprune.execution.graph_segments import ActivationCursor
from onnxprune.ir.model import Array, Model
from onnxprune.plans import Plan
from onnxprune.recovery import _holdout_evaluator as module
from onnxprune.recovery.recover import OriginalActivations, recover

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(subset(load_data("digits:train"), 64), threads=1, batch=16)


@pytest.fixture(scope="module")
def cases() -> tuple[Analysis, list[tuple[Plan, Model]]]:
    analysis = op.analyze(op.load(DIGITS))
    scores = op.score(analysis, "l2")
    plans = [op.plan(scores, f"macs={share}") for share in (0.95, 0.5)]
    return analysis, [(p, op.apply(analysis.source, p, analysis=analysis)) for p in plans]


def weights(model: Model) -> dict[str, bytes]:
    found = model.graph.tensors()
    return {n: np.asarray(t.values).tobytes() for n, t in found.items() if hasattr(t, "values")}


@pytest.mark.parametrize("memory", [0, 40_000, 2**30])
def test_results_do_not_depend_on_the_store_s_size_or_history(
    calibration: Calibration, cases: tuple[Analysis, list[tuple[Plan, Model]]], memory: int
) -> None:
    analysis, [first, second] = cases

    def recovered(case: tuple[Plan, Model], store: OriginalActivations | None) -> Model:
        plan, pruned = case
        return recover(analysis.source, pruned, plan, calibration, analysis=analysis, originals=store).model

    fresh = weights(recovered(second, OriginalActivations(0)))
    store = OriginalActivations(memory)
    recovered(first, store)
    assert weights(recovered(second, store)) == fresh
    alone = recovered(second, None)
    for name, t in alone.graph.tensors().items():
        if hasattr(t, "values") and np.asarray(t.values).dtype.kind == "f":
            np.testing.assert_allclose(
                np.asarray(t.values), np.frombuffer(fresh[name], t.dtype).reshape(t.shape), atol=1e-3
            )


def test_the_original_runs_once(
    calibration: Calibration, cases: tuple[Analysis, list[tuple[Plan, Model]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis, made = cases
    runs: list[str] = []
    values = ActivationCursor.values

    def counted(self: ActivationCursor, names: Sequence[str], **options: Any) -> Iterator[dict[str, Array]]:
        runs.append("original" if self.segments.witness is analysis.witness else "pruned")
        return values(self, names, **options)

    monkeypatch.setattr(ActivationCursor, "values", counted)
    store = OriginalActivations()
    for expected in (True, False):
        runs.clear()
        plan, pruned = made[1]
        recover(analysis.source, pruned, plan, calibration, analysis=analysis, originals=store)
        assert ("original" in runs) == expected
        assert "pruned" in runs


def test_statistics_and_outputs_of_the_original_are_computed_once(
    calibration: Calibration, cases: tuple[Analysis, list[tuple[Plan, Model]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis, made = cases
    plan, pruned = made[1]
    collected: list[int] = []
    collect, evaluate = Calibration.collect, module.evaluate
    evaluated: list[Model] = []

    def counted(self: Calibration, model: Model, *args: Any, **options: Any) -> None:
        collected.append(len(self))
        collect(self, model, *args, **options)

    def watched(model: Model, *args: Any, **options: Any) -> Any:
        evaluated.append(model)
        return evaluate(model, *args, **options)

    monkeypatch.setattr(Calibration, "collect", counted)
    monkeypatch.setattr(module, "evaluate", watched)
    store = OriginalActivations()
    first = recover(analysis.source, pruned, plan, calibration, analysis=analysis, originals=store)
    assert collected
    assert analysis.source in evaluated
    collected.clear()
    evaluated.clear()
    again = recover(analysis.source, pruned, plan, calibration, analysis=analysis, originals=store)
    assert not collected
    assert evaluated
    assert analysis.source not in evaluated
    assert weights(again.model) == weights(first.model)
    assert (again.original, [s.value for s in again.stages]) == (first.original, [s.value for s in first.stages])


def test_results_of_another_original_are_not_used() -> None:
    one, other = (op.analyze(op.load(DIGITS)).witness for _ in range(2))
    store = OriginalActivations()
    assert store.once(one, "key", lambda: 1) == 1
    assert store.once(one, "key", lambda: 2) == 1
    assert store.once(one, "other key", lambda: 3) == 3
    assert store.once(other, "key", lambda: 4) == 4
    assert store.once(one, "key", lambda: 5) == 5


def test_other_samples_are_not_mixed_up(
    calibration: Calibration, cases: tuple[Analysis, list[tuple[Plan, Model]]]
) -> None:
    analysis, made = cases
    plan, pruned = made[1]
    fewer = Calibration(subset(load_data("digits:train"), 40), threads=1, batch=16)
    store = OriginalActivations()
    recover(analysis.source, pruned, plan, calibration, analysis=analysis, originals=store)
    shared = recover(analysis.source, pruned, plan, fewer, analysis=analysis, originals=store).model
    fresh = recover(analysis.source, pruned, plan, fewer, analysis=analysis, originals=OriginalActivations()).model
    assert weights(shared) == weights(fresh)
