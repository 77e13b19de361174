# %% [markdown]
# # Serve the pruned model where the original ran
#
# Names, types and shapes of inputs and outputs stay, so the code that serves does not change: only the file does.
#
#     pip install 'onnxprune[cpu,data]'
#     python examples/serve.py [SMALL.onnx]

# %%
from __future__ import annotations

import sys
from importlib import resources

import numpy as np
import onnxruntime

import onnxprune as op


class Service:
    """Classifies images; knows nothing of pruning.

    Args:
        path: the model.
    """

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The classes of images [n, 1, 8, 8]."""
        (logits,) = self.session.run(["logits"], {"image": images})
        return np.asarray(logits).argmax(1)

    @property
    def interface(self) -> list[tuple[str, str, list[object]]]:
        """Name, type and shape of every input and output."""
        return [(t.name, t.type, t.shape) for t in (*self.session.get_inputs(), *self.session.get_outputs())]


# %%
out = sys.argv[1] if len(sys.argv) > 1 else "small.onnx"
with resources.as_file(resources.files("onnxprune.models") / "digits_cnn.onnx") as path:
    model = op.load(path)
    before = Service(str(path))
op.prune(model, target="macs=0.5").save(out)
after = Service(out)

# %%
for line in after.interface:
    print(*line)
print("same interface:", before.interface == after.interface)
test = op.load_data("digits:test")
for n in (1, 7, len(test)):  # any batch, as before
    alike = float(np.mean(before(test.x[:n]) == after(test.x[:n])))
    print(f"batch of {n}: {alike:.1%} answered as before")
