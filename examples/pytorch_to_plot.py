# %% [markdown]
# # From PyTorch to a plot of latency
#
# Export a network, prune it to several sizes, measure each in onnxruntime, and draw what it brought.
#
#     pip install 'onnxprune[cpu,train,report]'
#     python examples/pytorch_to_plot.py [OUT.svg]

# %%
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import onnxprune as op

# %% [markdown]
# A small residual network. Its weights are random, which latency does not mind; accuracy would.


# %%
class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x and what two convolutions add to it."""
        return torch.relu(x + self.b(self.a(x)))


torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), Block(64), nn.Conv2d(64, 128, 3, 2, 1), nn.ReLU(), Block(128),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
).eval()  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "net.onnx"
    torch.onnx.export(
        net, (torch.zeros(2, 3, 32, 32),), str(path), dynamo=True, verbose=False,
        input_names=["image"], output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    model = op.load(path)

    # %% [markdown]
    # Three plans from the same scores. Each is proved when it is applied.

    # %%
    scores = op.score(op.analyze(model), "l2")
    shares = [0.75, 0.5, 0.25]
    models = [model, *(op.apply(model, op.plan(scores, op.Target(macs=share))) for share in shares)]
    measured = op.bench(models, runs=50)

# %% [markdown]
# All models were measured in turn, so a machine that slows down slows all of them.

# %%
whole = measured[0]
kept = [m.cost.ratio(whole.cost, "macs") for m in measured]
for share, m in zip(kept, measured, strict=True):
    print(f"{share:6.1%} of the MACs: {m.latency.median * 1e6:7.1f} us, {m.speedup:.2f} times as fast")
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
axes.plot(kept, [m.latency.median * 1e6 for m in measured], "o-", label="measured")
axes.plot([0, 1], [0, whole.latency.median * 1e6], ":", label="if time were proportional to MACs")
axes.set(xlabel="share of MACs kept", ylabel="latency (us, batch 1, one thread)", xlim=(0, 1.05), ylim=(0, None))
axes.legend()
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "latency.svg")
