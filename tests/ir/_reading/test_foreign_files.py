"""Files of other kinds, recognized by their content and by their names."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.reader import load

line = CommandLine()


def zipped(*names: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, b"x")

    return write


def holds(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def folder(*names: str) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).write_bytes(b"x")

    return make


KINDS = [
    ("checkpoint", zipped("archive/data.pkl", "archive/data/0", "archive/version"), "a PyTorch file", "pytorch.md"),
    ("old.pth", holds(pickle.dumps({"a": 1}, protocol=2)), "a PyTorch file", "pytorch.md"),
    ("scripted", zipped("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"), "a TorchScript file", "jit.load"),
    ("exported.pt2", zipped("serialized_exported_program.json"), "a torch.export file", "torch.export.load"),
    ("renamed.onnx", zipped("archive/data.pkl", "archive/data/0"), "a PyTorch file", "torch.onnx.export"),
    ("net", holds(b"\x89HDF\r\n\x1a\n" + bytes(100)), "a Keras file", "docs/howto/keras.md"),
    ("net.keras", zipped("config.json", "metadata.json", "model.weights.h5"), "a Keras file", "model.export"),
    ("saved", folder("saved_model.pb", "variables"), "a TensorFlow SavedModel", "tf2onnx"),
    ("saved_model.pb", holds(b"\x08\x01\x12\x04\xff\xfe\x00\x01"), "a TensorFlow SavedModel", "tf2onnx"),
    ("net.bin", holds(b"\x1c\x00\x00\x00TFL3" + bytes(50)), "a TensorFlow Lite file", "--tflite"),
    ("net", holds((64).to_bytes(8, "little") + b'{"w":{"dtype":"F32"}}'), "a safetensors file", "pytorch.md"),
    ("net.engine", holds(bytes(64)), "a TensorRT engine", "name the .onnx file"),
    ("net", holds(b"ftrt" + bytes(64)), "a TensorRT engine", "name the .onnx file"),
    ("net", holds(b"\x00\x00\x00\x00ORTM" + bytes(64)), "a model in onnxruntime's own format", "name the .onnx file"),
    ("net.xml", holds(b'<?xml version="1.0"?>\n<net name="x" version="11">'), "an OpenVINO model", "name the .onnx"),
    ("net.onnx", holds(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "a pointer of Git LFS", "lfs"),
    ("net.onnx", holds(b"\n<!DOCTYPE html>\n<html>"), "a web page", "download the file itself"),
    ("net.onnx", holds(b""), "empty", "export it again"),
    ("plan.json", holds(b'{"schema": 1}'), "a JSON file, not a model", "the model comes first"),
    ("data.npz", lambda path: np.savez(path, x=np.zeros(3)), "a file of arrays", "--data"),
    ("models", folder("b.onnx", "a.onnx"), "a folder", "a.onnx"),
    ("hub", folder("config.json", "model.safetensors"), "a safetensors file", "docs/howto/pytorch.md"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "what", "fix"), KINDS, ids=[f"{k[0]} {k[2]}" for k in KINDS])
def test_a_file_of_another_kind_is_named_with_a_way_out(
    name: str, write: Callable[[Path], object], what: str, fix: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises(OnnxPruneError) as caught:
        load(path)
    assert caught.value.what.startswith(f"{str(path)!r} is {what}")
    assert fix in (caught.value.fix or "")
    assert line.fails("inspect", path).startswith("error: ")


def test_files_that_torch_writes_are_recognized(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for name, legacy in (("new.pt", False), ("old.pt", True)):
        torch.save({"w": torch.zeros(3)}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        (tmp_path / name).rename(tmp_path / "x")
        with pytest.raises(OnnxPruneError, match="is a PyTorch file"):
            load(tmp_path / "x")


def test_the_page_of_the_message_exists() -> None:
    for page in ("docs/howto/pytorch.md", "docs/howto/keras.md"):
        assert (Path(__file__).parents[3] / page).is_file()


def test_a_damaged_model_is_still_one(tmp_path: Path) -> None:
    whole = (Path(__file__).parents[3] / "models" / "digits_cnn.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OnnxPruneError, match="is not an ONNX model, or is cut off"):
        load(tmp_path / "m.onnx")
