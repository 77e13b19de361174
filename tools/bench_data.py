"""Peak memory of calibration against the number of samples, in a process for each.

    python tools/bench_data.py 200 20000

The model has four convolutions and takes images of 64 x 64 pixels. Samples are random: 50 at a time from a generator,
or a folder of image files. Channels are scored by `obs`, as in `prune --data`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

import onnxprune as op

SIDE = 64


def stream(samples: int) -> Iterator[Any]:
    """Yield random samples, 50 at a time."""
    rng = np.random.default_rng(0)
    for start in range(0, samples, 50):
        yield rng.random((min(50, samples - start), 3, SIDE, SIDE), np.float32)


def network() -> op.Model:
    """Return a model of four convolutions for images of 64 x 64 pixels."""
    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for i, (inner, outer) in enumerate(pairwise((3, 16, 32, 32, 64))):
        weights.append(numpy_helper.from_array(rng.standard_normal((outer, inner, 3, 3)).astype("f") * 0.1, f"w{i}"))
        nodes += [
            helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4, strides=[2, 2]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"),
        ]
        name = f"r{i}"
    weights.append(numpy_helper.from_array(rng.standard_normal((64, 10)).astype("f"), "head"))
    nodes += [helper.make_node("GlobalAveragePool", [name], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
    nodes.append(helper.make_node("Gemm", ["f", "head"], ["y"], "gemm"))
    x, y = (helper.make_tensor_value_info(n, 1, ["n", *s]) for n, s in (("x", [3, SIDE, SIDE]), ("y", [10])))
    graph = helper.make_graph(nodes, "network", [x], [y], weights)
    return op.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def measure(source: str, samples: int) -> dict[str, float]:
    """Return megabytes at the peak with 64 samples and with all, and seconds."""
    model = network()
    analysis = op.analyze(model)
    op.score(analysis, "obs", data=np.concatenate(list(stream(64))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    data = op.load_data(stream(samples) if source == "stream" else source, model=model)
    assert len(data) == samples
    op.score(analysis, "obs", data=data)
    seconds = time.perf_counter() - start
    return {"before": before, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "seconds": seconds}


def write_images(folder: Path, samples: int) -> None:
    """Write random image files."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(samples):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{i:06d}.bmp")


def main() -> None:
    """Measure each number of samples in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=int, nargs="+")
    parser.add_argument("--source", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.source:
        print(json.dumps(measure(args.source, args.samples[0])))
        return
    print("| source | samples | peak MB | more than with 64 samples | seconds |\n|---|---|---|---|---|")
    for samples in args.samples:
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), samples)
            for name, source in (("generator", "stream"), ("image files", folder)):
                command = [sys.executable, __file__, str(samples), "--source", source]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                more = found["peak"] - found["before"]
                print(f"| {name} | {samples:,} | {found['peak']:.0f} | {more:.0f} | {found['seconds']:.1f} |")


if __name__ == "__main__":
    main()
