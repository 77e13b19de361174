"""Trains a small Keras network on scikit-learn's digits and writes Keras' own ONNX export to models/.

    pip install keras tensorflow-cpu tf2onnx scikit-learn 'onnxprune[cpu,data]'
    python tools/model_makers/make_keras_model.py           # about a minute

`digits_keras.onnx` is what `model.export(format="onnx")` writes: NHWC input, transposes, BatchNorm folded, Dense as
MatMul and Add, Softmax at the end. Tests and the Keras example live on it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import layers

import onnxprune as op

ROOT = Path(__file__).resolve().parents[2]


def conv(x: object, filters: int, strides: int = 1) -> object:
    """Convolution, BatchNorm, ReLU."""
    x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def network() -> keras.Model:
    """Two residual stages, a separable one, two dense layers."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = conv(inputs, 16)
    x = layers.Add()([x, conv(conv(x, 24), 16)])
    x = conv(x, 32, strides=2)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    x = layers.Concatenate()([x, conv(y, 24)])
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(32, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="classes")(x), name="digits")


def main() -> None:
    """Train on digits:train, export, and print the accuracy on digits:test."""
    keras.utils.set_random_seed(0)
    train = op.load_data("digits:train")
    model = network()
    epochs, batch = 40, 64
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * (len(train) // batch + 1))
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train.x.transpose(0, 2, 3, 1), train.y, batch, epochs, verbose=0)
    target = ROOT / "models" / "digits_keras.onnx"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.export(str(path), format="onnx", verbose=False)
        target.write_bytes(path.read_bytes())
    test = op.load_data("digits:test")
    nhwc = op.Data(test.x.transpose(0, 2, 3, 1), test.y, test.name)
    print(f"{target}: {target.stat().st_size} bytes, top-1 {op.evaluate(op.load(target), nhwc).top1:.4f}")


if __name__ == "__main__":
    main()
