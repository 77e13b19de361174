"""An If in PyTorch computes what onnxruntime computes, and trains the branch that is selected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import numpy_helper, parser

from onnxprune.execution.sessions import Session
from onnxprune.ir.reader import load
from onnxprune.torch_bridge import bindings, to_torch

TEXT = """
    <ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x, bool c) => (float[N, 4] y, float[N, 4] z)
    {
      y, z = If (c) <
        then_branch = t () => (float[N, 4] a, float[N, 4] b) { a = MatMul (x, w)  b = Relu (a) },
        else_branch = e () => (float[N, 4] a, float[N, 4] b) { a = MatMul (x, v)  b = Neg (a) }
      >
    }
    """


@pytest.mark.parametrize("flag", [False, True])
def test_the_condition_selects_results_and_gradients(flag: bool) -> None:
    rng = np.random.default_rng(0)
    proto = parser.parse_model(TEXT)
    for name in "wv":
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((3, 4)).astype("f"), name))
    model = load(proto)
    feeds = {"x": rng.standard_normal((5, 3)).astype("f"), "c": np.array(flag)}
    module = to_torch(model)
    made = module(*map(torch.from_numpy, feeds.values()))
    for a, b in zip(made, Session(model).run(feeds), strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=1e-5, atol=1e-6)
    made[1].sum().backward()
    trained = [b.initializer for b in bindings(module) if module.get_parameter(b.path).grad is not None]
    assert trained == ["w" if flag else "v"]
