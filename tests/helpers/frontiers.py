"""A small frontier in a folder, for tests of its pages."""

from __future__ import annotations

from pathlib import Path

import onnxprune as op
from onnxprune.planning.constraints import Constraints

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"


def digits_frontier(folder: Path, *, latency: bool = False) -> Path:
    """Measure two points of one criterion, float and int8."""
    op.frontier(
        DIGITS, data="digits:train", images=80, folder=folder, points=2, least=0.4, criteria=("l2",), quantize="int8",
        latency=latency, runs=2, constraints=Constraints(round_to=8),
    )  # fmt: skip
    return folder
