"""Verdicts of the proof on cases for which comparing outputs on random inputs fails; see proof_cases.py."""

from __future__ import annotations

import pytest
from proofs.proof_cases import agrees, cases, compiled, edited

from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.verification import verify

EDITS = [n for n, c in cases().items() if c.mutate]
WHOLE = [n for n, c in cases().items() if c.mutate is None]


@pytest.mark.parametrize("name", WHOLE)
def test_what_the_compiler_makes_is_right_and_accepted(name: str) -> None:
    case = cases()[name]
    analysis, plan, pruned = compiled(case)
    assert plan.removed > 0
    assert agrees(case, analysis, plan, pruned)
    verify(analysis, plan, pruned)


@pytest.mark.parametrize("name", EDITS)
def test_wrong_model_is_rejected(name: str) -> None:
    case = cases()[name]
    analysis, plan, pruned = compiled(case)
    wrong = edited(case, pruned)
    try:
        same = agrees(case, analysis, plan, wrong)
    except OnnxPruneError:  # it fails where the original runs
        same = False
    assert not same or not case.feeds
    with pytest.raises((VerificationError, OnnxPruneError)):
        verify(analysis, plan, wrong)
