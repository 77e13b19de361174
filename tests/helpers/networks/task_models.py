"""Small models with random weights, one for each task, whose inner convolutions can be pruned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F, I64 = TensorProto.FLOAT, TensorProto.INT64


class Builder:
    """Graph under construction on an image input x [n, channels, height, width]."""

    def __init__(self, channels: int = 3, size: tuple[int | str, int | str] = (32, 32), seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", F, ["n", channels, *size])
        self.outputs: list[onnx.ValueInfoProto] = []
        self.count = 0

    def add(self, op: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: object) -> str:
        """Add a node and return the name of its first output."""
        self.count += 1
        first = name or f"t{self.count}"
        names = [first, *(f"{first}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"node{self.count}", **attributes))
        return first

    def constant(self, values: object, dtype: type = np.int64) -> str:
        self.count += 1
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), f"w{self.count}"))
        return f"w{self.count}"

    def conv(self, x: str, c: int, out: int, *, kernel: int = 3, stride: int = 1, relu: bool = True) -> str:
        weight = self.rng.standard_normal((out, c, kernel, kernel)) * np.sqrt(2 / (c * kernel**2))
        bias = self.rng.standard_normal(out) * 0.1
        y = self.add("Conv", x, self.constant(weight, np.float32), self.constant(bias, np.float32),
                     strides=[stride, stride], pads=[kernel // 2] * 4)  # fmt: skip
        return self.add("Relu", y) if relu else y

    def gemm(self, x: str, c: int, out: int) -> str:
        weight = self.rng.standard_normal((c, out)) * np.sqrt(1 / c)
        return self.add("Gemm", x, self.constant(weight, np.float32), self.constant(np.zeros(out), np.float32))

    def output(self, x: str, name: str, shape: Sequence[int | str], dtype: int = F) -> None:
        self.add("Identity", x, name=name)
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def model(self, metadata: dict[str, str] | None = None) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "g", [self.input], self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        helper.set_model_props(model, metadata or {})
        onnx.checker.check_model(model)
        return model


def backbone(b: Builder, channels: int = 3) -> str:
    """Two convolutions with 16 channels, of which the first halves the size."""
    return b.conv(b.conv("x", channels, 16, stride=2), 16, 16)


def detector(classes: int = 3, *, metadata: bool = True) -> onnx.ModelProto:
    """Head of Ultralytics' v8 on one grid of 8 by 8 cells: [n, 4 + classes, 64], boxes in pixels of 32 by 32."""
    b = Builder()
    x = b.conv(backbone(b), 16, 16, stride=2)  # 8 x 8
    boxes = b.conv(x, 16, 4, kernel=1, relu=False)
    scores = b.conv(x, 16, classes, kernel=1, relu=False)
    rows, columns = np.mgrid[:8, :8] * 4 + 2
    middle = np.stack([columns, rows]).reshape(1, 2, 64)
    flat = [b.add("Reshape", t, b.constant([0, n, 64])) for t, n in ((boxes, 4), (scores, classes))]
    b.add("Split", flat[0], b.constant([2, 2]), axis=1, outputs=2, name="parts")
    centre = b.add("Add", "parts", b.constant(middle, np.float32))
    size = b.add("Mul", b.add("Exp", b.add("Tanh", "parts_1")), b.constant(6.0, np.float32))
    b.output(b.add("Concat", centre, size, b.add("Sigmoid", flat[1]), axis=1), "output0", ["n", 4 + classes, 64])
    names = str({i: f"class{i}" for i in range(classes)})
    return b.model({"names": names, "task": "detect", "stride": "4"} if metadata else None)


def recognizer(alphabet: str = "abcdefghij", *, metadata: bool = True) -> onnx.ModelProto:
    """CTC recogniser [n, width / 2, classes] with softmax; the blank is the first class, the width dynamic."""
    b = Builder(size=(8, "w"))
    x = b.add("ReduceMean", backbone(b), axes=[2], keepdims=0)  # [n, 16, w / 2]
    frames = b.add("Transpose", x, perm=[0, 2, 1])
    weight = b.constant(b.rng.standard_normal((16, len(alphabet) + 1)), np.float32)
    y = b.add("Softmax", b.add("MatMul", frames, weight), axis=2)
    b.output(y, "probabilities", ["n", "t", len(alphabet) + 1])
    return b.model({"character": "\n".join(alphabet)} if metadata else None)


def segmenter(classes: int = 5) -> onnx.ModelProto:
    """Scores of classes on half the size of the image."""
    b = Builder()
    b.output(b.conv(backbone(b), 16, classes, kernel=1, relu=False), "masks", ["n", classes, 16, 16])
    return b.model()


def pooled(b: Builder) -> str:
    return b.add("Flatten", b.add("GlobalAveragePool", backbone(b)))


def classifier(classes: int = 4) -> onnx.ModelProto:
    b = Builder()
    b.output(b.gemm(pooled(b), 16, classes), "scores", ["n", classes])
    return b.model()


def embedder(size: int = 8) -> onnx.ModelProto:
    b = Builder()
    b.output(b.add("LpNormalization", b.gemm(pooled(b), 16, size), axis=1), "vector", ["n", size])
    return b.model()


def regressor() -> onnx.ModelProto:
    b = Builder()
    b.output(b.gemm(pooled(b), 16, 1), "y", ["n", 1])
    return b.model()


MODELS = {
    "classify": classifier, "detect": detector, "segment": segmenter, "recognize": recognizer, "embed": embedder,
    "regress": regressor,
}  # fmt: skip
