"""Regressions found by `make fuzz`: every stored model is pruned as it was then, and proved."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_graphs.fuzzing import Fuzz, build, proved, random_plan
from random_graphs.regression_files import FOLDER, names, plan_of, store, stored

from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze


@pytest.mark.parametrize("name", names())
def test_stored_model_is_pruned_and_proved(name: str) -> None:
    proto, notes = stored(name)
    proved(proto, lambda analysis: plan_of(analysis, notes["removed"]))


def test_every_file_belongs_to_a_stored_model() -> None:
    assert {p.name.split(".")[0] for p in FOLDER.iterdir() if p.name not in ("README.md", "attacks")} == set(names())


@pytest.mark.parametrize(
    "parts", [("conv",), ("conv", "dense", "residual", "mlp", "projection", "attention")], ids=["plain", "compressed"]
)
def test_what_is_stored_is_what_failed(parts: tuple[str, ...], tmp_path: Path) -> None:
    proto = build(Fuzz(parts, seed=3))
    analysis = analyze(load(proto))
    plan = random_plan(analysis, 5)
    path = store("name", proto, plan, {"error": "none"}, tmp_path)
    again, notes = stored("name", tmp_path)
    assert (path.suffix == ".xz") == (len(parts) > 1)
    assert names(tmp_path) == ["name"]
    assert again == proto
    removed = {n: r.removed for n, r in plan.groups.items() if r.removed}
    assert {n: r.removed for n, r in plan_of(analysis, notes["removed"]).groups.items()} == removed
