"""Synthetic inputs for use without data: noise with the spectrum of natural images.

The power of natural images falls with the square of the spatial frequency (Field 1987), correlated across colours.
Noise of that spectrum excites filters more like photographs do than white noise; it contains no objects, so late layers
are excited less than by real data.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, Probe
from onnxprune.execution.channel_moments import Moments
from onnxprune.execution.data import Data, input_of
from onnxprune.ir.model import Array, Model

_GREY = 0.8  # share of the variance common to the colour channels
_SIDE = 224  # image size if neither the model nor the user (`Model.sizes`) fixes it


def synthetic_data(model: Model, samples: int, *, seed: int = 0) -> Data:
    """Return unlabelled samples for a model with one floating-point input.

    Images [n, C, H, W] (or [n, H, W, C]) are noise with amplitudes 1 / frequency; other inputs are white noise. Every
    channel has mean 0 and variance 1, as after common preprocessing. If the first convolution has a BatchNormalization,
    its running variance sets the scale of the inputs.

    Args:
        model: Any model.
        samples: Number of samples.
        seed: Seed of the noise.

    Raises:
        OnnxPruneError: The model has several inputs, or its input is not floating-point.
    """
    if len(model.graph.inputs) != 1 or (into := input_of(model)).dtype.kind not in "fV":
        raise OnnxPruneError("synthetic inputs need a model with one floating-point input", fix="use --data")
    shape = [d if isinstance(d, int) and d > 0 else 0 for d in into.shape or [0]]
    if 0 in shape[1:]:
        settled = witness(model).settled
        shape = [d or settled.get((into.name, axis - into.single), 0) for axis, d in enumerate(shape)]
    rng = np.random.default_rng(seed)
    if len(shape) != 4:
        sizes = [d or 16 for d in shape[1:]]
        return Data(rng.standard_normal((samples, *sizes)).astype(np.float32), None, "none")
    last = into.layout == "nhwc"
    channels, height, width = (shape[3], shape[1], shape[2]) if last else (shape[1], shape[2], shape[3])
    x = _images(rng, samples, channels or 3, height or _SIDE, width or _SIDE)
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
    return Data(x * _scale(model, x), None, "none")


def _images(rng: np.random.Generator, samples: int, channels: int, height: int, width: int) -> Array:
    """Return noise images, float32 [samples, channels, height, width], mean 0 and variance 1."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.sqrt(fy**2 + fx**2)
    frequency[0, 0] = 0.5 / max(height, width)  # images differ in brightness, too
    out = np.empty((samples, channels, height, width), np.float32)
    for i in range(samples):
        shared = rng.standard_normal((1, height, width))
        noise = np.sqrt(_GREY) * shared + np.sqrt(1 - _GREY) * rng.standard_normal((channels, height, width))
        out[i] = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (height, width))
    return np.asarray(out / out.std(), np.float32)


def _scale(model: Model, x: Array) -> np.float32:
    """Return the factor that gives the first convolution's outputs the variance in its BatchNormalization."""
    first = next((n for n in model.graph.nodes if n.op == "Conv"), None)
    following = first.outputs[0].outputs if first is not None else []
    if first is None or len(following) != 1 or following[0].op != "BatchNormalization":
        return np.float32(1)
    remembered = following[0].inputs[4]
    if not isinstance(remembered, gs.Constant):
        return np.float32(1)
    name, variance = first.outputs[0].name, np.asarray(remembered.values, np.float64)
    found = Moments(name)
    Calibration(Data(x[:16], None, "none")).collect(model, [Probe(name, found)])
    return np.float32(np.sqrt(variance.sum() / max(float(found.variance.sum()), 1e-12)))
