"""The pass in Olive's engine: found by package config, fixed and searched, and what it refuses."""

from __future__ import annotations

import builtins
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune as op
from onnxprune.errors import OnnxPruneError

MODEL = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"


@pytest.fixture
def olive() -> Any:
    """Olive's workflows and our pass; the tests are skipped without Olive."""
    workflows = pytest.importorskip("olive.workflows")
    return workflows, importlib.import_module("onnxprune.integrations.olive")


def workflow(folder: Path, config: dict[str, Any], *, search: bool = False) -> dict[str, Any]:
    metric = {"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}
    found: dict[str, Any] = {
        "input_model": {"type": "OnnxModel", "model_path": str(MODEL)},
        "systems": {
            "local": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "passes": {"prune": {"type": "OnnxPrune", "config": config}},
        "host": "local",
        "target": "local",
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
    }
    if search:
        found["evaluators"] = {"size": {"type": "OnnxEvaluator", "metrics": [metric]}}
        found["evaluator"] = "size"
        found["search_strategy"] = {"execution_order": "joint", "sampler": "sequential"}
    return found


@pytest.mark.filterwarnings("ignore")
def test_a_workflow_prunes_by_package_config(tmp_path: Path, olive: Any) -> None:
    workflows, module = olive
    out = workflows.run(workflow(tmp_path, {"share": 0.5}), package_config=module.package_config())
    (model,) = out.get_output_models()
    plan = op.load_plan(Path(model.model_path).with_name("plan.json"))
    assert plan.digest == op.prune(MODEL, target="macs=0.5").plan.digest
    assert op.verify(MODEL, model.model_path, plan).summary


@pytest.mark.filterwarnings("ignore")
def test_a_search_tries_every_share(tmp_path: Path, olive: Any) -> None:
    workflows, module = olive
    config = {"share": [0.7, 0.5], "options": {"criterion": "l1"}}
    out = workflows.run(workflow(tmp_path, config, search=True), package_config=module.package_config())
    footprint = (tmp_path / "out" / "footprint.json").read_text(encoding="utf-8")
    assert footprint.count('"share": 0.7') + footprint.count('"share": 0.5') >= 2
    assert out.has_output_model()


@pytest.mark.filterwarnings("ignore")
def test_a_budget_needs_data(tmp_path: Path, olive: Any) -> None:
    workflows, module = olive
    x = np.random.default_rng(0).random((80, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    config = {"max_drop": 2.0, "data": str(tmp_path / "x.npz")}
    out = workflows.run(workflow(tmp_path, config), package_config=module.package_config())
    (model,) = out.get_output_models()
    assert op.load(model.model_path).metadata


@pytest.mark.filterwarnings("ignore")
def test_another_kind_of_model_is_refused(tmp_path: Path, olive: Any) -> None:
    _, module = olive
    from olive.hardware import DEFAULT_CPU_ACCELERATOR
    from olive.passes.olive_pass import create_pass_from_dict

    step = create_pass_from_dict(module.OnnxPrune, {}, disable_search=True, accelerator_spec=DEFAULT_CPU_ACCELERATOR)
    with pytest.raises(OnnxPruneError, match="ONNX models, not a dict"):
        step._run_for_config({}, step.config, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("module", "package", "extra"), [("olive", "olive.model", "olive"), ("onnx_ir", "onnx_ir", "onnx-ir")]
)
def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str, extra: str
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package.split(".")[0]:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, f"onnxprune.integrations.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(OnnxPruneError) as caught:
        importlib.import_module(f"onnxprune.integrations.{module}")
    assert caught.value.fix == f"pip install 'onnxprune[{extra}]'"
