"""Names of onnxruntime's execution providers, and what installs them."""

from __future__ import annotations

SUFFIX = "ExecutionProvider"
ALIASES = {"trt": "tensorrt", "gpu": "cuda", "directml": "dml"}
PACKAGES = {
    "cuda": "pip uninstall onnxruntime; pip install 'onnxprune[gpu]'",
    "tensorrt": "pip uninstall onnxruntime; pip install 'onnxprune[gpu]', with the TensorRT libraries beside it",
    "openvino": "--runtime openvino (pip install 'onnxprune[openvino]'), or the package onnxruntime-openvino",
    "dml": "the package onnxruntime-directml, on Windows",
    "qnn": "the package onnxruntime-qnn",
    "coreml": "the package onnxruntime on macOS",
}


def short(provider: str) -> str:
    """Return the name of a provider without its suffix, in lower case."""
    return provider.strip().removesuffix(SUFFIX).lower()


def provider_alias(name: str) -> str | None:
    """Return the short name of the provider that a name stands for; None if it is none."""
    found = ALIASES.get(short(name), short(name))
    return found if found == "cpu" or found in PACKAGES else None
