"""Pruning as a pass of Olive, Microsoft's optimizer of models for onnxruntime.

    from olive.workflows import run
    from onnxprune.integrations.olive import package_config

    run("workflow.json", package_config=package_config())

The workflow names the pass like any other: `{"type": "OnnxPrune", "share": 0.5}`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxprune._utils.files.input_files import read_text
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.writer import save
from onnxprune.pipeline import prune
from onnxprune.plans import save_plan

try:
    from olive.model import ONNXModelHandler
    from olive.package_config import OlivePackageConfig
    from olive.passes import Pass
    from olive.passes.pass_config import BasePassConfig, PassConfigParam
    from olive.search.search_parameter import Categorical
except ImportError as error:
    raise OnnxPruneError(f"the pass needs Olive ({error})", fix="pip install 'onnxprune[olive]'") from error

SHARES = (0.9, 0.7, 0.5, 0.3)
"""Shares of the measure that a search tries by default."""


def package_config() -> dict[str, Any]:
    """Return Olive's own package configuration with this pass in it, for `olive.workflows.run`."""
    config: dict[str, Any] = json.loads(read_text(OlivePackageConfig.get_default_config_path()))
    config["passes"]["OnnxPrune"] = {
        "module_path": f"{__name__}.OnnxPrune",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "extra_dependencies": [],
    }
    return config


class OnnxPrune(Pass):  # type: ignore[misc]  # mypy does not follow Olive
    """Remove channels, prove the result, recover accuracy if there is data.

    `share` can be searched over, and so can `max_drop`: a list of numbers in the workflow, or SEARCHABLE_VALUES.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        return {
            "share": PassConfigParam(
                type_=float, default_value=0.5, search_defaults=Categorical(list(SHARES)),
                description="Share of the measure to keep. Ignored with max_drop.",
            ),
            "measure": PassConfigParam(
                type_=str, default_value="macs",
                description="Measure of the share, and what max_drop minimizes: macs, params, bytes, latency.",
            ),
            "max_drop": PassConfigParam(
                type_=float, default_value=None,
                description="Largest drop of the metric, in points for shares; needs data and replaces the share. A "
                "list is searched over.",
                search_defaults=Categorical([None]),
            ),
            "data": PassConfigParam(
                type_=str, default_value=None,
                description="Calibration samples without labels: .npz, a folder of images, package.module:function.",
            ),
            "criterion": PassConfigParam(type_=str, default_value=None, description="Importance of channels."),
            "options": PassConfigParam(
                type_=dict, default_value=None, description="Further keyword arguments of onnxprune.prune."
            ),
        }  # fmt: skip

    def _run_for_config(self, model: Any, config: BasePassConfig, output_model_path: str) -> Any:
        """Write the pruned model and its plan, and return Olive's handler of it.

        Raises:
            OnnxPruneError: The model is no ONNX file, or `prune` refuses model, data or options.
        """
        if not isinstance(model, ONNXModelHandler):
            raise OnnxPruneError(
                f"the pass prunes ONNX models, not a {type(model).__name__}", fix="put OnnxConversion before it"
            )
        given: dict[str, Any] = {"criterion": config.criterion, "data": config.data, **(config.options or {})}
        if config.max_drop is not None:
            given |= {"max_drop": config.max_drop, "minimize": config.measure}
        else:
            given |= {"target": f"{config.measure}={config.share}"}
        done = prune(model.model_path, **given)
        path = Path(output_model_path)
        if path.suffix != ".onnx":
            path = path / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(done.model, path)
        save_plan(done.plan, path.with_name("plan.json"))
        attributes = {**(model.model_attributes or {}), "onnxprune": {"plan": done.plan.digest}}
        attributes["additional_files"] = [
            *(attributes.get("additional_files") or []), str(path.with_name("plan.json"))
        ]  # fmt: skip
        folder = path.parent if done.model.external else path
        name = path.name if done.model.external else None
        return ONNXModelHandler(model_path=str(folder), onnx_file_name=name, model_attributes=attributes)
