"""Other common names of criteria."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from command_line import CommandLine

from onnxprune.criteria import all_criteria, get, register
from onnxprune.criteria._registry import _SYNONYMS, CRITERIA
from onnxprune.criteria.norms import L1
from onnxprune.errors import OnnxPruneError

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
line = CommandLine()


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("magnitude", "l2"), ("l1_norm", "l1"), ("L1-norm", "l1"), ("L2", "l2"), ("taylor_fo", "taylor"),
        ("bn", "bn_scale"), ("hessian", "obs"), ("D-Score", "dscore"), ("FPGM", "fpgm"), (" APoZ ", "apoz"),
    ],
)  # fmt: skip
def test_common_names_of_criteria_are_found(name: str, criterion: str) -> None:
    assert get(name).name == criterion


def test_synonyms_name_criteria_that_exist_and_are_not_listed() -> None:
    assert set(_SYNONYMS.values()) <= set(all_criteria())
    assert not set(_SYNONYMS) & set(all_criteria())


@CRITERIA.isolated()
def test_a_criterion_of_a_user_comes_before_a_synonym() -> None:
    @register
    @dataclass(frozen=True)
    class Own(L1):
        """Own."""

        name: ClassVar[str] = "hessian"

    assert get("hessian").name == "hessian"
    assert type(get("hessian")) is Own
    assert get("hessian").title == L1.title


def test_unknown_criteria_come_with_the_closest_ones() -> None:
    with pytest.raises(OnnxPruneError, match=r"did you mean 'taylor'\?"):
        get("Tailor")
    with pytest.raises(OnnxPruneError, match=r"did you mean 'magnitude'"):
        get("magnitud")


def test_a_synonym_is_noted_and_the_result_records_the_criterion(tmp_path: Path) -> None:
    plans = []
    for name in ("l1", "l1_norm"):
        plan = tmp_path / f"{name}.json"
        result = line.ok("plan", DIGITS, "-c", name, "--target", "0.5", "-o", plan)
        assert ("the criterion l1_norm is l1: " in result.stderr) == (name != "l1")
        plans.append(plan.read_bytes())
    assert plans[0] == plans[1]


def test_a_share_alone_is_one_of_macs_and_noted(tmp_path: Path) -> None:
    plans = []
    for text in ("macs=0.5", "MACs=50%", "50%", "0.5"):
        plan = tmp_path / "p.json"
        result = line.ok("plan", DIGITS, "--target", text, "-o", plan)
        assert (f"--target {text} is read as macs=0.5" in result.stderr) == ("=" not in text)
        plans.append(plan.read_bytes())
    assert len(set(plans)) == 1
    assert "did you mean 0.5? (keep 50 %)" in line.fails("plan", DIGITS, "--target", "50", "-o", plan)
