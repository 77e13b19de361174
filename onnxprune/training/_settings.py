"""Settings of `retrain`: the options of training, and comparison of records. Loads neither PyTorch nor Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.options.training import Training as Training
from onnxprune.options.training import augment_name as augment_name

Settings = Training
"""The name that the Python API uses."""


def different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys under which two records differ."""
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
