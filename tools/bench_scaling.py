"""Measure the time of an analysis against depth and width of a network.

    python tools/bench_scaling.py -o scaling.json

Synthetic networks of four kinds, each twice as deep (to 20,000 nodes) or twice as wide from step to step. Every
figure is the least CPU time of some runs, one thread. The exponent is the slope of log(time) over log(size) between the
first and the last step: 1 is linear. Weights are never read by an analysis, so all of them share one region of
a sparse file.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import onnx
import rich
from onnx import TensorProto, helper
from rich.table import Table

DEPTHS = (1_250, 2_500, 5_000, 10_000, 20_000)
WIDTHS = (64, 128, 256, 512, 1_024, 2_048)
DEPTH_AT, WIDTH_AT = 64, 1_250  # the width while depth grows, the nodes while width grows


class Net:
    """Nodes and weights; weights are external and lie on top of each other."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.largest = 0

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def weight(self, *shape: int) -> str:
        """Add a weight of that shape."""
        size = 4 * math.prod(shape)
        self.largest = max(self.largest, size)
        name = f"w{len(self.weights)}"
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.data"), ("offset", 0), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.weights.append(tensor)
        return name

    def save(self, folder: Path, shape: list[Any], output: str) -> Path:
        """Write the model; its data file is sparse."""
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [f"d{i}" for i in range(len(shape))])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        with (folder / "weights.data").open("wb") as file:
            file.truncate(self.largest)
        path = folder / "net.onnx"
        path.write_bytes(model.SerializeToString())
        return path


def chain(net: Net, nodes: int, width: int) -> tuple[list[Any], str]:
    """Conv, BatchNormalization, Relu, without an end."""
    x = net.node("Conv", "x", net.weight(width, 3, 1, 1))
    while len(net.nodes) < nodes:
        x = net.node("Conv", x, net.weight(width, width, 1, 1), net.weight(width))
        x = net.node("BatchNormalization", x, *(net.weight(width) for _ in range(4)))
        x = net.node("Relu", x)
    return ["N", 3, 32, 32], net.node("GlobalAveragePool", x)


def residual(net: Net, nodes: int, width: int) -> tuple[list[Any], str]:
    """Bottleneck blocks on one stream, which is one group from end to end."""
    x = net.node("Conv", "x", net.weight(width, 3, 1, 1))
    while len(net.nodes) < nodes:
        y = net.node("Relu", net.node("Conv", x, net.weight(width, width, 1, 1), net.weight(width)))
        y = net.node("Relu", net.node("Conv", y, net.weight(width, 1, 3, 3), group=width, pads=[1, 1, 1, 1]))
        y = net.node("Conv", y, net.weight(width, width, 1, 1), net.weight(width))
        x = net.node("Relu", net.node("Add", x, y))
    return ["N", 3, 32, 32], net.node("GlobalAveragePool", x)


def transformer(net: Net, nodes: int, width: int) -> tuple[list[Any], str]:
    """Encoder layers: attention with heads of 32, LayerNormalization, a perceptron four times as wide."""
    heads = width // 32
    split = helper.make_tensor("split", TensorProto.INT64, [4], [0, 16, heads, 32])
    join = helper.make_tensor("join", TensorProto.INT64, [3], [0, 16, width])
    net.weights += [split, join]

    def linear(x: str, k: int, n: int) -> str:
        return net.node("Add", net.node("MatMul", x, net.weight(k, n)), net.weight(n))

    def head(x: str, perm: list[int]) -> str:
        return net.node("Transpose", net.node("Reshape", linear(x, width, width), "split"), perm=perm)

    x = "x"
    while len(net.nodes) < nodes:
        y = net.node("LayerNormalization", x, net.weight(width), net.weight(width))
        q, k, v = head(y, [0, 2, 1, 3]), head(y, [0, 2, 3, 1]), head(y, [0, 2, 1, 3])
        a = net.node("MatMul", net.node("Softmax", net.node("MatMul", q, k)), v)
        y = linear(net.node("Reshape", net.node("Transpose", a, perm=[0, 2, 1, 3]), "join"), width, width)
        x = net.node("Add", x, y)
        y = net.node("LayerNormalization", x, net.weight(width), net.weight(width))
        x = net.node("Add", x, linear(net.node("Relu", linear(y, width, 4 * width)), 4 * width, width))
    return ["N", 16, width], x


def arithmetic(net: Net, nodes: int, width: int) -> tuple[list[Any], str]:
    """Make convolutions between reshapes and resizes whose sizes are computed in the graph, as in TorchScript."""
    net.weights += [
        helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
        helper.make_tensor("front", TensorProto.INT64, [2], [0, 1]),
        helper.make_tensor("flat", TensorProto.INT64, [2], [width, -1]),
        helper.make_tensor("square", TensorProto.INT64, [3], [width, 32, 32]),
        helper.make_tensor("same", TensorProto.INT64, [2], [32, 32]),
    ]
    x = net.node("Conv", "x", net.weight(width, 3, 1, 1))
    while len(net.nodes) < nodes:
        batch = net.node("Gather", net.node("Shape", x), "zero", axis=0)
        y = net.node("Reshape", x, net.node("Concat", batch, "flat", axis=0))
        y = net.node("Reshape", y, net.node("Concat", batch, "square", axis=0))
        sizes = net.node("Concat", net.node("Gather", net.node("Shape", y), "front", axis=0), "same", axis=0)
        y = net.node("Resize", y, "", "", sizes, mode="nearest")
        x = net.node("Relu", net.node("Conv", y, net.weight(width, width, 1, 1), net.weight(width)))
    return ["N", 3, 32, 32], net.node("GlobalAveragePool", x)


KINDS: dict[str, Callable[[Net, int, int], tuple[list[Any], str]]] = {
    f.__name__: f for f in (chain, residual, transformer, arithmetic)
}


def measure(path: Path, runs: int) -> dict[str, float]:
    """Least CPU milliseconds of every stage."""
    from onnxprune.analysis.cost import CostModel
    from onnxprune.analysis.coupling import assemble, walk
    from onnxprune.analysis.shapes.shape_inference import known_or_witness
    from onnxprune.ir.reader import load
    from onnxprune.passes import NORMALIZE, Pipeline
    from onnxprune.pipeline import analyze

    best: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        out = call()
        best[name] = min(best.get(name, math.inf), 1e3 * (time.process_time() - start))
        return out

    for _ in range(runs):
        model = timed("load", lambda: load(path))
        normal = timed("normalize", lambda m=model: Pipeline(NORMALIZE)(m))
        seen = known_or_witness(normal)
        table = timed("walk", lambda n=normal, s=seen: walk(n, s))
        timed("groups", lambda n=normal, s=seen, t=table: assemble(n, s, t))
        analysis = timed("analyze", lambda m=model: analyze(m))
        timed("cost", lambda a=analysis: CostModel(a))
    return {**best, "found": float(len(analysis.groups))}


def exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of log(time) over log(size) from the first step to the last."""
    return math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])


@click.command(help=__doc__)
@click.option("--runs", default=3, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Only these.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Figures as JSON.")
def main(runs: int, kinds: tuple[str, ...], output: Path | None) -> None:
    """Run all series and print one table for each kind."""
    results: dict[str, Any] = {}
    for kind in kinds or KINDS:
        for what, sizes in (("nodes", DEPTHS), ("width", WIDTHS)):
            rows = []
            for size in sizes:
                net = Net()
                nodes, width = (size, DEPTH_AT) if what == "nodes" else (WIDTH_AT, size)
                shape, output_name = KINDS[kind](net, nodes, width)
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(measure(net.save(Path(folder), shape, output_name), runs))
            columns = [c for c in rows[0] if c != "found"]
            slopes = {c: exponent(list(sizes), [r[c] for r in rows]) for c in columns}
            results[f"{kind}, {what}"] = {"sizes": sizes, "rows": rows, "exponents": slopes}
            table = Table(what, *columns, "groups", title=f"{kind}: CPU milliseconds as {what} grows")
            for size, row in zip(sizes, rows, strict=True):
                table.add_row(f"{size:,}", *(f"{row[c]:,.0f}" for c in columns), f"{row['found']:.0f}")
            table.add_row("exponent", *(f"{slopes[c]:.2f}" for c in columns))
            rich.print(table)
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
