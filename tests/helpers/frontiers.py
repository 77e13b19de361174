"""A small frontier in a folder, for tests of its pages."""

from __future__ import annotations

from pathlib import Path

from networks.small_digits import small_digits

import onnxprune as op
from onnxprune.planning.constraints import Constraints


def digits_frontier(folder: Path, *, latency: bool = False) -> Path:
    """Measure two points of one criterion, float and int8."""
    op.frontier(
        small_digits(folder.parent), data="digits:train", images=80, folder=folder, points=2, least=0.4,
        criteria=("l2",), quantize="int8", latency=latency, runs=2, constraints=Constraints(round_to=4),
    )  # fmt: skip
    return folder
