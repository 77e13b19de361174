"""Probe of the block size: counts of channels at which convolutions waste no time.

A small network (1x1 convolution, depthwise 3x3, 1x1) is measured in turns at counts that are multiples of 32, of 16 but
not of 32, and so on. From the largest block down, the times at the multiples of a block predict those at the multiples
of its half by interpolation. If these are slower than predicted, the runtime pads or has another kernel for them, and
the larger block is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.latency.runtimes._protocol import ConvProbe, Inputs, Runtime

# Counts by the largest power of two that divides them.
COUNTS = {32: (32, 64, 96), 16: (48, 80), 8: (40, 56, 72), 4: (36, 44, 52), 2: (34, 50, 58), 1: (33, 53, 63)}
LOSS = 0.06  # median excess over the interpolated time at which a count needs the larger block
_SIDE = 28
_RUNS = 15


def probe_block(measure: ConvProbe) -> int:
    """Return the block size that the times of small networks show.

    Args:
        measure: Called once with all counts.
    """
    counts = [c for some in COUNTS.values() for c in some]
    times = dict(zip(counts, measure(counts), strict=True))
    known = sorted(COUNTS[32])
    block = 32
    for half in (16, 8, 4, 2, 1):
        expected = np.interp(COUNTS[half], known, [times[c] for c in known])
        found = np.array([times[c] for c in COUNTS[half]])
        if float(np.median(found / expected)) > 1 + LOSS:
            break
        block = half
        known = sorted([*known, *COUNTS[half]])
    return block


def measured_block(runtime: Runtime) -> int:
    """Return the block size of a runtime from measured networks on one thread."""

    def measure(channels: Sequence[int]) -> Sequence[float]:
        models = [probe_network(c) for c in channels]
        found = runtime.measure(models, [probe_input(c) for c in channels], threads=1, batch=1, runs=_RUNS)
        return [latency.low for latency in found.latencies]

    return probe_block(measure)


def probe_network(channels: int) -> Model:
    """Return a small network of which all layers have as many channels."""
    rng = np.random.default_rng(channels)
    shapes = {"w1": (channels, channels, 1, 1), "w2": (channels, 1, 3, 3), "w3": (channels, channels, 1, 1)}
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) / channels).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="expand"),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="depthwise", group=channels, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("Conv", ["d", "w3"], ["y"], name="project"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, channels, _SIDE, _SIDE]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "probe", values[:1], values[1:], weights)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def probe_input(channels: int) -> Inputs:
    """Return an input of `probe_network`."""
    return {"x": np.random.default_rng(0).standard_normal((1, channels, _SIDE, _SIDE)).astype(np.float32)}
