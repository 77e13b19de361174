"""Every public architecture that ships as a structure: to PyTorch, one step of training, back into its own graph.

The rest run with `-m slow` (or `-m ""`: all).
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import torch
from networks.structures import all_structures, filled

import onnxprune as op
from onnxprune.execution.sessions import Session
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.torch_bridge import bindings, logits_of, to_torch, write_back
from onnxprune.verification import relative_difference

# One of each kind, from each exporter, small enough for every run; the others are marked slow.
QUICK = (
    "resnet18.dyn", "resnet18.ts", "mobilenet_v2.bn", "mobilenet_v3_large.dyn", "shufflenet_v2_x1_0.ts",
    "shufflenet_v2_x1_0.dyn", "squeezenet1_1.dyn", "efficientnet_b0.ts", "keras_mobilenetv2", "regnet_y_400mf.dyn",
)  # fmt: skip


def _cases() -> list[object]:
    names = [(path.name.removesuffix(".onnx.xz"), path) for path in all_structures()]
    return [pytest.param(p, id=n, marks=() if n in QUICK else pytest.mark.slow) for n, p in names]


def _run(model: op.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return Session(model).run(feeds)


def _outputs(module: torch.nn.Module, feeds: dict[str, np.ndarray]) -> list[torch.Tensor]:
    out = module(*(torch.from_numpy(v) for v in feeds.values()))
    return list(out) if isinstance(out, tuple) else [out]


def _loss(outputs: list[torch.Tensor]) -> torch.Tensor:
    """Cross-entropy over axis 1 with labels by seed, of classes, of pixels, of whatever comes out."""
    torch.manual_seed(0)
    terms = []
    for out in outputs:
        labels = torch.randint(out.shape[1], (out.shape[0], *out.shape[2:]))
        terms.append(torch.nn.functional.cross_entropy(out, labels))
    return torch.stack(terms).sum()


@pytest.mark.parametrize("path", _cases())
def test_structure_trains_and_returns(path: Path) -> None:
    whole = filled(path)
    model = logits_of(whole)
    feeds = random_feeds(op.analyze(model), 2)
    module = to_torch(model)

    module.eval()
    with torch.no_grad():
        for ours, theirs in zip(_outputs(module, feeds), _run(model, feeds), strict=True):
            assert relative_difference(ours.numpy(), theirs) < 1e-5

    weights = sum(t.values.size for t in _weights(model))
    trained = sum(p.numel() for p in module.parameters())
    assert trained > 0.98 * weights, "weights are missing among the parameters"

    module.train()
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, eps=1e-30)
    loss = _loss(_outputs(module, feeds))
    assert torch.isfinite(loss)
    loss.backward()
    optimizer.step()
    after = module.state_dict()
    still = [b.path for b in bindings(module) if b.kind == "trained" and torch.equal(before[b.path], after[b.path])]
    assert not still

    trained_model = write_back(module, whole)
    module.eval()
    with torch.no_grad():
        mine = _outputs(module, feeds)
    for ours, theirs in zip(mine, _run(logits_of(trained_model), feeds), strict=True):
        assert relative_difference(ours.numpy(), theirs) < 1e-5
    for graph in (trained_model.graph, whole.graph):
        assert [t.name for t in graph.inputs] == [t.name for t in whole.graph.inputs]
        assert [t.name for t in graph.outputs] == [t.name for t in whole.graph.outputs]


def _weights(model: op.Model) -> list[gs.Constant]:
    """Float constants of at least two axes: what must train."""
    found = {t.name: t for n in model.graph.nodes for t in n.inputs if isinstance(t, gs.Constant)}
    return [t for t in found.values() if t.values.dtype.kind == "f" and t.values.ndim >= 2 and t.values.size > 64]
