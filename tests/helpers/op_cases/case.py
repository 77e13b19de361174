"""A case of the operator contract: one graph around one operator; see test_op_contract.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

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


HEADS = {
    "free": "h = Conv (x, w0, b0)",
    # What comes in has no labels at all.
    "unlabelled": "h0 = Identity (x) h = Concat <axis = 1> (h0, h0, h0, h0)",
    # Some indices are labelled and some are fixed.
    "partly fixed": "h0 = Conv (x, w0, b0) h = Concat <axis = 1> (h0, x)",
}
HEAD_FILTERS = {"free": 8, "unlabelled": 0, "partly fixed": 6}


def model_of(case: Case, head: str = "free") -> onnx.ModelProto:
    """The case's model. A second, free branch (`v0`) makes sure that there is always something to remove."""
    rng = np.random.default_rng(len(case.text))
    # "@2" in `inputs` states a fixed batch, for constants that cannot broadcast over it.
    batch = case.inputs[1:] if case.inputs.startswith("@") else "N"
    more = "" if case.inputs.startswith("@") else case.inputs
    dims = ",".join(f"d{i}" for i in range(case.rank))
    tail = "y = Conv (m, w1)" if case.reads else "y = Identity (m)"
    text = (
        f'<ir_version: {8 if case.opset < 20 else 10}, opset_import: ["" : {case.opset}, "com.microsoft" : 1]>'
        f"agraph (float[{batch},2,4,4] x{more}) => ({case.kind}[{dims}] y, float[M,3,4,4] y2) {{"
        f" {HEADS[head]} {case.text} {tail} p0 = Conv (x, v0) q0 = Relu (p0) y2 = Conv (q0, v1) }}"
    )
    proto = onnx.parser.parse_model(text)
    consts: dict[str, Any] = {"v0": (6, 2, 1, 1), "v1": (3, 6, 1, 1), **case.consts}
    if HEAD_FILTERS[head]:
        consts |= {"w0": (HEAD_FILTERS[head], 2, 1, 1), "b0": (HEAD_FILTERS[head],)}
    if case.reads:
        consts["w1"] = (5, case.reads, 1, 1)
    for name, value in consts.items():
        array = rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else value
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for i, node in enumerate(proto.graph.node):
        node.name = f"node{i}"
    return proto
