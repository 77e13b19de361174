# %% [markdown]
# # Prune, then quantize
#
# Pruning and onnxruntime's static quantization compose: a pruned model is an ordinary float model, so the quantizer
# takes it as it takes the original. Size and accuracy of each order:
#
#     pip install 'onnxprune[cpu,data]'
#     python examples/prune_then_quantize.py [FOLDER]

# %%
from __future__ import annotations

import logging
import sys
from importlib import resources
from pathlib import Path

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import onnxprune as op

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
images, test = op.load_data("digits:train", images=200), op.load_data("digits:test")
logging.getLogger().setLevel(logging.ERROR)  # the quantizer recommends its own preprocessing


class Batches(CalibrationDataReader):
    """The images that activation ranges are taken from, 20 at a time."""

    def __init__(self) -> None:
        self.left = iter([{"image": images.x[i : i + 20]} for i in range(0, len(images), 20)])

    def get_next(self) -> dict[str, object] | None:
        """The next batch; None after the last."""
        return next(self.left, None)


def quantize(name: str) -> str:
    """Writes NAME-int8.onnx beside NAME.onnx: 8-bit weights per channel, 8-bit activations, QDQ."""
    quantize_static(
        folder / f"{name}.onnx", folder / f"{name}-int8.onnx", Batches(), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return f"{name}-int8"


def show(label: str, name: str) -> None:
    """One line: bytes of the file, accuracy on the test images."""
    path = folder / f"{name}.onnx"
    print(f"{label:24}{path.stat().st_size:>9,} bytes  top1 {op.evaluate(op.load(path), test).top1:.3f}")


# %% [markdown]
# The original; pruned to 20 % of its MACs and recovered; each of them quantized.

# %%
with resources.as_file(resources.files("onnxprune.models") / "digits_cnn.onnx") as path:
    model = op.load(path)
op.save(model, folder / "digits.onnx")
op.prune(model, target="macs=0.2", data=images).save(folder / "small.onnx")
show("original", "digits")
show("quantized", quantize("digits"))
show("pruned", "small")
show("pruned, then quantized", quantize("small"))

# %% [markdown]
# The other order: prune the quantized file, scales and zero points included. Nothing can be recovered in integers, and
# scores from weights know nothing of the data, so it is cut less.

# %%
quantized = op.load(folder / "digits-int8.onnx")
op.prune(quantized, target="macs=0.5").save(folder / "int8-small.onnx")
show("quantized, then pruned", "int8-small")
