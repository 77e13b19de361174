"""Contract of every registry: items by name in one `Registry`, and a near name for each unknown one."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune._utils.registry import Registry
from onnxprune.criteria._registry import CRITERIA
from onnxprune.criteria.normalize import METHODS as NORMALIZATIONS
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.metrics import METRICS
from onnxprune.ops.op_spec import OPERATORS
from onnxprune.passes.base import PASSES
from onnxprune.recipes.recipe import STEPS
from onnxprune.torch_bridge.registry import CONVERTERS
from onnxprune.training.methods import METHODS

# A key of each, another that is near it, and the near name of the error.
REGISTRIES: dict[str, tuple[Registry[Any, Any], Any, Any, str]] = {
    "criteria": (CRITERIA, "dscore", "dscor", "dscore"),
    "metrics": (METRICS, "cosine", "cosin", "cosine"),
    "normalizations": (NORMALIZATIONS, "gaussian", "gausian", "gaussian"),
    "operators": (OPERATORS, ("", "Conv"), ("", "Cnov"), "Conv"),
    "passes": (PASSES, "fold_shapes", "fold_shape", "fold_shapes"),
    "recipe steps": (STEPS, "retrain", "retrian", "retrain"),
    "training methods": (METHODS, "slimming", "sliming", "slimming"),
    "converters": (CONVERTERS, ("", "Gemm", 7), ("", "Gem", 7), "ai.onnx::Gemm version 7"),
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_unknown_names_come_with_the_nearest(name: str) -> None:
    registry, key, wrong, near = REGISTRIES[name]
    assert isinstance(registry, Registry)
    assert registry[key] is registry.find(key)
    assert key in registry
    assert wrong not in registry
    with pytest.raises(OnnxPruneError, match=f"unknown {registry.kind}") as caught:
        registry[wrong]
    assert repr(near) in str(caught.value.fix)


@pytest.mark.parametrize("name", REGISTRIES)
def test_a_second_item_of_a_name_is_refused(name: str) -> None:
    registry, key, _, _ = REGISTRIES[name]
    with pytest.raises(OnnxPruneError, match="already registered"):
        registry.add(key, object())
    assert registry[key] is dict(registry)[key]
