# %% [markdown]
# # Prune and retrain a Keras export
#
# Keras users need neither Keras nor TensorFlow here: the `.onnx` file that `model.export(format="onnx")` wrote is
# enough. It takes NHWC images, holds its Dense layers as MatMul and Add, and ends in Softmax; all of that stays.
#
#     pip install 'onnxprune[cpu,data,train]'
#     python examples/own_loop_keras.py [OUT.onnx]
#
# The cells (`# %%`) open as a notebook in VS Code, PyCharm, Spyder or Jupyter with jupytext.

# %%
from __future__ import annotations

import sys
from importlib import resources

import torch

import onnxprune as op
from onnxprune.passes import FuseBatchnorm, InsertBatchnorm
from onnxprune.torch_bridge import logits_of

with resources.as_file(resources.files("onnxprune.models") / "digits_keras.onnx") as path:
    model = op.load(path)
name = model.graph.inputs[0].name


def nhwc(part: str) -> op.Data:
    """scikit-learn's digits as the model takes them: images last."""
    data = op.load_data(f"digits:{part}")
    return op.Data(data.x.transpose(0, 2, 3, 1).copy(), data.y, data.name)


train, test = nhwc("train"), nhwc("test")

# %% [markdown]
# Prune to 40 % of the MACs. The proof is part of `op.prune`.

# %%
pruned = op.prune(model, target="macs=0.4").model
print(f"original {op.evaluate(model, test).top1:.3f}, as cut {op.evaluate(pruned, test).top1:.3f}")

# %% [markdown]
# `logits_of` cuts the Softmax off for training (cross-entropy wants logits). Tensor names stay, so the trained weights
# go back into the whole file. The original is the teacher: no labels are needed.

# %%
with_norm = InsertBatchnorm([{name: train.x[:512]}])(pruned)
module = op.to_torch(logits_of(with_norm))
teacher = op.to_torch(logits_of(model)).eval()
torch.manual_seed(0)
x = torch.from_numpy(train.x)
epochs = 10
optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
module.train()
for epoch in range(epochs):
    for index in torch.randperm(len(x)).split(64):
        with torch.no_grad():
            wanted = teacher(x[index]).softmax(1)
        loss = torch.nn.functional.cross_entropy(module(x[index]), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

# %%
trained = FuseBatchnorm(only_inserted=True)(op.write_back(module, with_norm))
print(f"retrained {op.evaluate(trained, test).top1:.3f}")
op.save(trained, sys.argv[1] if len(sys.argv) > 1 else "retrained.onnx")
