# %% [markdown]
# # From Keras to a plot of latency and accuracy
#
# The export is one line in Keras 3, and the only one that needs Keras:
#
#     model.export("digits_keras.onnx", format="onnx")
#
# The file that it wrote for the network of `tools/model_makers/make_keras_model.py` ships. It is pruned to several
# sizes, without and with recovery, and measured.
#
#     pip install 'onnxprune[cpu,data,report]'
#     python examples/keras_to_plot.py [OUT.svg]

# %%
from __future__ import annotations

import sys
from importlib import resources

import matplotlib.pyplot as plt

import onnxprune as op

with resources.as_file(resources.files("onnxprune.models") / "digits_keras.onnx") as path:
    model = op.load(path)


def nhwc(part: str, images: int | None = None) -> op.Data:
    """scikit-learn's digits as the model takes them: channels last."""
    data = op.load_data(f"digits:{part}", images=images)
    return op.Data(data.x.transpose(0, 2, 3, 1).copy(), data.y, data.name)


# %% [markdown]
# The Softmax at the end, the NHWC input and the names stay as Keras wrote them. `recover` solves for the weights that
# are left on 300 images, without labels.

# %%
images, test = nhwc("train", images=300), nhwc("test")
scores = op.score(op.analyze(model), "obs", data=images)
cut, recovered = [], []
for share in (0.75, 0.5, 0.25):
    plan = op.plan(scores, op.Target(macs=share), constraints=op.Constraints(round_to=4))
    cut.append(op.apply(model, plan))
    recovered.append(op.recover(model, cut[-1], plan, data=images, threads=1))

# %%
measured = op.bench([model, *cut], runs=50)
kept = [m.cost.ratio(measured[0].cost, "macs") for m in measured]
accuracy = [[op.evaluate(m, test).top1 for m in (model, *models)] for models in (cut, recovered)]
for i, m in enumerate(measured):
    print(f"{kept[i]:6.1%} of the MACs: {m.latency.median * 1e6:5.1f} us, "
          f"top1 {accuracy[0][i]:.3f} as cut, {accuracy[1][i]:.3f} recovered")  # fmt: skip
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
left.plot(kept, [m.latency.median * 1e6 for m in measured], "o-")
left.set(xlabel="share of MACs kept", ylabel="latency (us, batch 1, one thread)", ylim=(0, None))
for values, label in zip(accuracy, ("as cut", "recovered"), strict=True):
    right.plot(kept, values, "o-", label=label)
right.set(xlabel="share of MACs kept", ylabel="top1", ylim=(0, 1.02))
right.legend()
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "keras.svg")
