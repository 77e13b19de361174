"""Small models of images and folders of pictures, for tests of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxprune.ir.model import Array, Model
from onnxprune.ir.reader import load


def classifier(
    *,
    channels: int = 3,
    size: Sequence[int | str] = (8, 8),
    classes: int = 4,
    metadata: Mapping[str, str] | None = None,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Two convolutions, the mean over positions, one layer; any size if the size is dynamic."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", dtype, ["n", channels, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [weight("w1", 8, channels, 3, 3), weight("w2", 6, 8, 3, 3), weight("w3", 6, classes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, dict(metadata or {}))
    return model


def two_inputs() -> onnx.ModelProto:
    """`y = relu(a @ w + b @ u) @ v`, with inputs a [n, 3] and b [n, 5]."""
    rng = np.random.default_rng(1)
    w, u, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 10), (5, 10), (10, 2)))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["a", "w"], ["m"], "left"),
            helper.make_node("MatMul", ["b", "u"], ["k"], "middle"),
            helper.make_node("Add", ["m", "k"], ["s"], "sum"),
            helper.make_node("Relu", ["s"], ["r"], "relu"),
            helper.make_node("MatMul", ["r", "v"], ["y"], "right"),
        ],
        "two",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("a", 3), ("b", 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(a, name) for a, name in ((w, "w"), (u, "u"), (v, "v"))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def loaded(proto: onnx.ModelProto) -> Model:
    """The model as onnxprune holds it."""
    return load(proto)


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    """The path of the written model."""
    onnx.save(proto, str(path))
    return path


def picture(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture of random pixels."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    return Image.fromarray(pixels)


def pictures(folder: Path, sizes: Sequence[tuple[int, int]], mode: str = "RGB") -> list[Array]:
    """Pixels of pictures written to a folder as 000.png, 001.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i, (height, width) in enumerate(sizes):
        image = picture(height, width, i, mode)
        image.save(folder / f"{i:03d}.png")
        out.append(np.asarray(image))
    return out


def single_image_detector() -> onnx.ModelProto:
    """Detector as torchvision exports it: one image [3, h, w] without a batch axis; boxes, labels and scores."""
    rng = np.random.default_rng(2)
    values = {
        "mean": np.full((3, 1, 1), 0.5, np.float32),
        "first": np.array([0], np.int64), "rows": np.array([-1, 5], np.int64),
        "w1": rng.standard_normal((12, 3, 3, 3)), "w2": rng.standard_normal((8, 12, 3, 3)) / 5,
        "w3": rng.standard_normal((5, 8, 1, 1)), "at": np.array([4, 1], np.int64), "flat": np.array([-1], np.int64),
        "factor": np.array([4, 4, 30, 30], np.float32),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Sub", ["x", "mean"], ["centred"]),
        node("Unsqueeze", ["centred", "first"], ["batch"]),
        node("Conv", ["batch", "w1"], ["a"], "conv1", strides=[4, 4], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"], "conv2", strides=[4, 4], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["d"]),
        node("Conv", ["d", "w3"], ["e"], "conv3"),
        node("Transpose", ["e"], ["f"], perm=[0, 2, 3, 1]),
        node("Reshape", ["f", "rows"], ["found"]),
        node("Split", ["found", "at"], ["raw", "logits"], axis=1),
        node("Sigmoid", ["raw"], ["shares"]),
        node("Mul", ["shares", "factor"], ["boxes"]),
        node("Reshape", ["logits", "flat"], ["flat_logits"]),
        node("Sigmoid", ["flat_logits"], ["scores"]),
        node("Shape", ["scores"], ["count"]),
        node("ConstantOfShape", ["count"], ["labels"], value=numpy_helper.from_array(np.array([1], np.int64))),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, "h", "w"])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["k", 4]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["k"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["k"]),
        ],
        [
            numpy_helper.from_array(v if v.dtype.kind == "i" else v.astype(np.float32), name)
            for name, v in values.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
