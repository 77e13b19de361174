"""The pass over onnx-ir models, alone and in a sequence, against `onnxprune.prune`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session

ir = pytest.importorskip("onnx_ir")
common = pytest.importorskip("onnx_ir.passes.common")

from onnxprune.integrations.onnx_ir import PrunePass  # noqa: E402

MODEL = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"


def test_the_pass_returns_what_prune_returns(tmp_path: Path) -> None:
    source = ir.load(MODEL)
    step = PrunePass(target="macs=0.5")
    result = step(source)
    assert result.modified
    assert result.model is not source
    assert step.pruned is not None
    assert step.pruned.plan.digest == op.prune(MODEL, target="macs=0.5").plan.digest
    ir.save(result.model, tmp_path / "s.onnx")
    onnx.checker.check_model(tmp_path / "s.onnx", full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    expected = Session(step.pruned.model).run({"image": x})
    assert np.array_equal(Session(tmp_path / "s.onnx").run({"image": x})[0], expected[0])
    assert op.verify(MODEL, tmp_path / "s.onnx", step.pruned.plan).summary


def test_the_input_is_not_changed() -> None:
    source = ir.load(MODEL)
    before = ir.serde.serialize_model(source).SerializeToString(deterministic=True)
    PrunePass(target="macs=0.5")(source)
    assert ir.serde.serialize_model(source).SerializeToString(deterministic=True) == before


def test_it_runs_between_other_passes() -> None:
    sequence = ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(), PrunePass(target="macs=0.7"), common.CheckerPass()
    )
    result = sequence(ir.load(MODEL))
    assert result.modified


def test_nothing_to_remove_is_no_change() -> None:
    result = PrunePass(target="macs=1.0")(ir.load(MODEL))
    assert not result.modified


def test_an_option_that_prune_lacks_is_refused_when_the_pass_is_made() -> None:
    with pytest.raises(TypeError, match="targets"):
        PrunePass(targets="macs=0.5")


def test_an_error_keeps_its_cause_in_a_sequence() -> None:
    with pytest.raises(ir.passes.PassError) as caught:
        ir.passes.Sequential(PrunePass(target="macs=0.00001"))(ir.load(MODEL))
    assert isinstance(caught.value.__cause__, OnnxPruneError)
    assert caught.value.__cause__.fix
