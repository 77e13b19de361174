"""Grouped-query attention as both PyTorch exporters write it, Llama style: rotary places, shared keys and values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal

HEADS, SHARED, DIM, WIDTH = 2, 3, 4, 24  # key and value heads, query heads to each, places in a head
WAYS = ("expand", "repeat_interleave", "repeat")


class Attention(nn.Module):
    """A token model of one layer."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.emb, self.norm, self.head = nn.Embedding(50, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 7)
        self.q, self.o = nn.Linear(WIDTH, HEADS * SHARED * DIM), nn.Linear(HEADS * SHARED * DIM, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, HEADS * DIM), nn.Linear(WIDTH, HEADS * DIM)
        self.register_buffer("inv_freq", 100 ** -(torch.arange(0, DIM, 2).float() / DIM))

    def shared(self, x: Tensor) -> Tensor:
        """Every key or value head for its query heads."""
        n, heads, length, dim = x.shape
        if self.way == "expand":  # transformers' repeat_kv
            return x[:, :, None].expand(n, heads, SHARED, length, dim).reshape(n, heads * SHARED, length, dim)
        if self.way == "repeat_interleave":
            return x.repeat_interleave(SHARED, dim=1)
        return x.unsqueeze(2).repeat(1, 1, SHARED, 1, 1).flatten(1, 2)

    def rotated(self, x: Tensor) -> Tensor:
        """Rotary place embedding."""
        place = torch.arange(x.shape[2], device=x.device)[None, None].float()
        angle = (self.inv_freq[None, :, None] @ place).transpose(1, 2)[:, None]
        angle = torch.cat((angle, angle), -1)
        half = torch.cat((-x[..., DIM // 2 :], x[..., : DIM // 2]), -1)
        return x * angle.cos() + half * angle.sin()

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers [N, T] to scores [N, T, 7]."""
        x = self.emb(ids)
        n, length, _ = x.shape
        y = self.norm(x)
        q, k, v = (f(y).view(n, length, -1, DIM).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k, v = self.rotated(q), self.shared(self.rotated(k)), self.shared(v)
        weights = (q @ k.transpose(2, 3) / math.sqrt(DIM)).softmax(-1)
        return self.head(x + self.o((weights @ v).transpose(1, 2).reshape(n, length, -1)))  # type: ignore[no-any-return]


def exported(way: str, exporter: str, folder: Path) -> Model:
    """The model with dynamic batch and length."""
    torch.manual_seed(0)
    module, ids, path = Attention(way).eval(), torch.randint(0, 50, (2, 5)), folder / "m.onnx"
    names = {"input_names": ["ids"], "output_names": ["y"]}
    if exporter == "ts":
        axes = {"ids": {0: "N", 1: "T"}}
        torch.onnx.export(module, (ids,), path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
    else:
        dims = {"ids": {0: torch.export.Dim("N"), 1: torch.export.Dim("T")}}
        torch.onnx.export(
            module, (ids,), path, dynamo=True, external_data=False, dynamic_shapes=dims, verbose=False, **names
        )
    return load(path)


def _cases() -> list[object]:
    fast = [("repeat_interleave", "ts"), ("expand", "dyn")]
    return [
        pytest.param(way, exporter, marks=() if (way, exporter) in fast else pytest.mark.slow, id=f"{way}-{exporter}")
        for way in WAYS
        for exporter in ("ts", "dyn")
    ]


@pytest.mark.filterwarnings("ignore")  # both exporters warn of their own future
@pytest.mark.parametrize(("way", "exporter"), _cases())
def test_heads_go_with_all_that_share_them_and_places_go_in_pairs(way: str, exporter: str, tmp_path: Path) -> None:
    model = exported(way, exporter, tmp_path)
    for choice, channels in (("heads", {HEADS}), ("head_dim", {DIM // 2, DIM})):
        analysis = analyze(model, attention=choice, include_inexact=True)
        mine = [g for g in analysis.groups if g.kind == choice]
        # A place and the one it is rotated with are a channel; those of the values are free one by one.
        assert {g.channels for g in mine} == channels
        assert any(g.kind == "stream" for g in analysis.groups)
        rng = np.random.default_rng(0)
        gone = {g.name: tuple(sorted(rng.choice(g.channels, g.channels // 2, replace=False))) for g in analysis.groups}
        removed = {g.name: Removal(g.channels, tuple(map(int, gone[g.name]))) for g in analysis.groups}
        done = compile_plan(model, Plan("", removed, options=analysis.choices.options()), analysis=analysis)
        assert done.verification is not None
        assert done.verification.max_relative <= 1e-4 < done.verification.effect
        widths = sorted({done.model.graph.tensors()[t].shape[a] for g in mine for t, a in g.sites})
        if choice == "heads":
            assert widths == [DIM, SHARED * DIM]  # one of two heads is left, and its query heads
