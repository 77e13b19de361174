"""A case of the operator contract: one graph around one operator; see test_op_contract.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LOCKED, INEXACT = "locked", "inexact"


@dataclass(frozen=True)
class Case:
    """One graph around one operator.

    Attributes:
        op: operator under test.
        text: lines that compute `m` from `h`, in the syntax of onnx.parser.
        expect: channels of `w0` that are free, "locked", or "inexact" (free only on request).
        consts: initializers: values, or the shape of a random float one.
        reads: input channels of the convolution that reads `m`; 0 if `m` is the model's output itself.
        rank: of the output.
        kind: element type of the output.
        inexact_free: how many are free on request, where that is inexact.
        inputs: further graph inputs.
        runs: whether the installed onnxruntime has the operator; else onnx's own reference proves the case.
    """

    op: str
    text: str
    expect: int | str
    consts: Mapping[str, Any] = field(default_factory=dict)
    reads: int = 8
    opset: int = 17
    rank: int = 4
    kind: str = "float"
    inexact_free: int = 0
    inputs: str = ""
    runs: bool = True

    @property
    def on_request(self) -> int:
        return self.inexact_free or (8 if self.expect == INEXACT else 0)

    @property
    def label(self) -> str:
        return f"{self.op}-{self.expect}-{self.text.count('=')}"


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)
