# %% [markdown]
# # Retrain a pruned network in your own PyTorch loop
#
# `op.to_torch` makes a module of the file, you train it as you train any module, `op.write_back` puts the trained
# tensors into the same graph: names, metadata, inputs and outputs stay. The three lines are marked below.
#
#     pip install 'onnxprune[cpu,data,train]'
#     python examples/own_loop_pytorch.py [OUT.onnx]
#
# The cells (`# %%`) open as a notebook in VS Code, PyCharm, Spyder or Jupyter with jupytext.

# %%
from __future__ import annotations

import sys
from importlib import resources

import torch

import onnxprune as op
from onnxprune.passes import FuseBatchnorm, InsertBatchnorm
from onnxprune.torch_bridge import bindings

# %% [markdown]
# A network as a PyTorch exporter writes it: BatchNorm folded into the convolutions. 15 % of its MACs stay, too few to
# work as they are.

# %%
with resources.as_file(resources.files("onnxprune.models") / "digits_cnn_folded.onnx") as path:
    model = op.load(path)
pruned = op.prune(model, target="macs=0.15").model
train, test = op.load_data("digits:train"), op.load_data("digits:test")
print(f"original {op.evaluate(model, test).top1:.3f}, as cut {op.evaluate(pruned, test).top1:.3f}")

# %% [markdown]
# Folded networks train badly: give BatchNorm back first, with the statistics of the training data, so that nothing
# changes in inference. Then the module, with what trains and what does not.

# %%
with_norm = InsertBatchnorm([{model.graph.inputs[0].name: train.x[:512]}])(pruned)
module = op.to_torch(with_norm)  # 1. the module
for kind in ("trained", "statistic", "frozen"):
    print(kind, sum(b.kind == kind for b in bindings(module)), "tensors")

# %% [markdown]
# The loop is yours: any optimizer, any loss, any data.

# %%
torch.manual_seed(0)
x, y = torch.from_numpy(train.x), torch.from_numpy(train.y)
epochs, batch = 4, 64
optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=epochs * (len(x) // batch))
module.train()
for epoch in range(epochs):
    for index in torch.randperm(len(x)).split(batch)[: len(x) // batch]:
        loss = torch.nn.functional.cross_entropy(module(x[index]), y[index])  # 2. called like any module
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

# %% [markdown]
# Back into the graph, and BatchNorm back into the convolutions: the file has the structure of the pruned one.

# %%
trained = op.write_back(module, with_norm)  # 3. the way back
trained = FuseBatchnorm(only_inserted=True)(trained)
print(f"retrained {op.evaluate(trained, test).top1:.3f}")
op.save(trained, sys.argv[1] if len(sys.argv) > 1 else "retrained.onnx")
