"""Static quantization to int8 by onnxruntime: QDQ nodes, weights per channel, ranges from samples."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, FeedReader
from onnxprune.execution.sessions import import_onnxruntime, saturates_integers
from onnxprune.ir.model import PROVENANCE, Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save
from onnxprune.passes import FuseBatchnorm, Pipeline

SAMPLES = 256  # samples that set the ranges of activations


def quantize_int8(model: Model, calibration: Calibration, *, samples: int = SAMPLES) -> Model:
    """Return the model with int8 weights and activations, as QDQ nodes.

    Weights are symmetric and per output channel; they use 7 bits (`reduce_range`) where the kernels for uint8 x int8
    saturate on this CPU. BatchNormalization is folded into the layers before it. Ranges of activations are the least
    and largest values on the samples.

    Args:
        model: Float model.
        calibration: Samples, evenly spaced ones of which set the ranges.
        samples: Number of samples to use.

    Raises:
        OnnxPruneError: onnxruntime cannot quantize the model, or the samples do not fit.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    feeds = calibration.feeds(model)
    count = max(1, min(len(feeds), -(-samples // max(1, feeds.batch))))
    reader = FeedReader(feeds, [round(i * (len(feeds) - 1) / max(1, count - 1)) for i in range(count)])
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        source, target = Path(name) / "float.onnx", Path(name) / "int8.onnx"
        save(Pipeline([FuseBatchnorm()])(model), source)
        try:
            with _silent_root():
                quantize_static(
                    source, target, reader, quant_format=QuantFormat.QDQ, per_channel=True,
                    reduce_range=saturates_integers(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                )  # fmt: skip
        except OnnxPruneError:
            raise
        except Exception as err:  # onnxruntime's quantizer raises many kinds
            text = str(err).strip().splitlines() or [type(err).__name__]
            raise OnnxPruneError(
                f"onnxruntime cannot quantize the model: {text[0][:200]}", fix="leave out --quantize"
            ) from err
        quantized = load(target)
    return quantized.with_metadata({**model.metadata, f"{PROVENANCE}.quantized": "int8"})


def weight_bytes(model: Model) -> int:
    """Return the bytes of all constants."""
    return sum(int(t.values.nbytes) for t in model.graph.tensors().values() if isinstance(t, gs.Constant))


@contextlib.contextmanager
def _silent_root() -> Iterator[None]:
    """Suppress the advice that the quantizer logs on the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
