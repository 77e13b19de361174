"""Recognition of files that are no ONNX models, by content and name, for a message that says what to do."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from onnxprune._utils.files.input_files import opened
from onnxprune.errors import OnnxPruneError

_HEAD = 1024
_PYTORCH = "export it with torch.onnx.export, see docs/howto/pytorch.md"
_KERAS = 'export it with model.export("model.onnx", format="onnx"), see docs/howto/keras.md'
_TENSORFLOW = "convert it with tf2onnx (python -m tf2onnx.convert), see docs/howto/keras.md"
_ORIGIN = "name the .onnx file that it was made from"

PYTORCH = ("a PyTorch file", _PYTORCH)
TORCHSCRIPT = ("a TorchScript file", "load it with torch.jit.load, then " + _PYTORCH)
EXPORTED = ("a torch.export file", "load it with torch.export.load, then " + _PYTORCH)
KERAS = ("a Keras file", _KERAS)
SAVED_MODEL = ("a TensorFlow SavedModel", _TENSORFLOW)
TFLITE = ("a TensorFlow Lite file", "convert the model that it was made from, or: python -m tf2onnx.convert --tflite")
SAFETENSORS = (
    "a safetensors file, which holds weights without a graph",
    "load it into its PyTorch model, then " + _PYTORCH,
)
ENGINE = ("a TensorRT engine", _ORIGIN)
ORT = ("a model in onnxruntime's own format", _ORIGIN)
OPENVINO = ("an OpenVINO model", _ORIGIN)
COREML = ("a Core ML model", _ORIGIN)
PADDLE = ("a PaddlePaddle model", "export it with paddle2onnx")
GGUF = ("a GGUF file", "export the model that it was made from to ONNX")
LFS = ("a pointer of Git LFS, not the file itself", "git lfs pull")
PAGE = ("a web page, not a model", "download the file itself")
DOCUMENT = ("a JSON file, not a model", "the model comes first: onnxprune COMMAND MODEL ...")
ARRAYS = ("a file of arrays, not a model", "data is given with --data")
ARCHIVE = ("an archive", "unpack it, and name the .onnx file in it")
WEIGHTS = ("a file of weights beside a model", "name the .onnx file, which refers to it")
PICTURE = ("an image, not a model", "data is given with --data")
Kind = tuple[str, str]

_BY_NAME = {
    ".pt": PYTORCH, ".pth": PYTORCH, ".ckpt": PYTORCH, ".pt2": EXPORTED, ".torchscript": TORCHSCRIPT, ".h5": KERAS,
    ".hdf5": KERAS, ".keras": KERAS, ".pb": SAVED_MODEL, ".tflite": TFLITE, ".lite": TFLITE,
    ".safetensors": SAFETENSORS, ".engine": ENGINE, ".trt": ENGINE, ".plan": ENGINE, ".ort": ORT, ".mlmodel": COREML,
    ".mlpackage": COREML, ".pdmodel": PADDLE, ".pdiparams": PADDLE, ".gguf": GGUF, ".xml": OPENVINO, ".npz": ARRAYS,
    ".npy": ARRAYS, ".json": DOCUMENT, ".data": WEIGHTS, ".zip": ARCHIVE, ".gz": ARCHIVE, ".tar": ARCHIVE,
}  # fmt: skip
_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (b"\x89HDF\r\n\x1a\n", KERAS), (b"ftrt", ENGINE), (b"GGUF", GGUF), (b"version https://git-lfs", LFS),
    (b"\x93NUMPY", ARRAYS), (b"\x1f\x8b", ARCHIVE), (b"\x89PNG", PICTURE), (b"\xff\xd8\xff", PICTURE),
)  # fmt: skip
_AT_FOUR = {b"TFL3": TFLITE, b"ORTM": ORT}
_FOLDERS: tuple[tuple[str, Kind], ...] = (
    ("saved_model.pb", SAVED_MODEL), ("*.safetensors", SAFETENSORS), ("pytorch_model.bin", PYTORCH),
    ("Manifest.json", COREML), ("*.pdmodel", PADDLE),
)  # fmt: skip


def foreign(path: Path) -> OnnxPruneError | None:
    """Return the error for a file or folder of a kind that is known and no ONNX model; None for others.

    Args:
        path: A file that could not be read as an ONNX model, or a folder.
    """
    try:
        kind = _folder(path) if path.is_dir() else _file(path)
    except OSError:
        return None
    if kind is None:
        return None
    what, fix = kind
    return OnnxPruneError(f"{str(path)!r} is {what}", fix=fix)


def _folder(path: Path) -> Kind | None:
    models = sorted(p.name for p in path.glob("*.onnx"))
    if models:
        return "a folder", f"name the .onnx file in it: {path / models[0]}"
    return next((kind for pattern, kind in _FOLDERS if any(path.glob(pattern))), None)


def _file(path: Path) -> Kind | None:
    with opened(path) as file:
        head = file.read(_HEAD)
    if not head:
        return "empty", "export it again, or copy it anew"
    return _by_content(path, head) or _BY_NAME.get(path.suffix.lower())


def _by_content(path: Path, head: bytes) -> Kind | None:
    with opened(path) as file:
        if zipfile.is_zipfile(file):
            return _zipped(path)
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[4:8] in _AT_FOUR:
        return _AT_FOUR[head[4:8]]
    for test, kind in _TESTS:
        if test(head):
            return kind
    return None


def _zipped(path: Path) -> Kind:
    """Return the kind of a zip file by the names in it."""
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises exceptions of many kinds for damaged files
        return ARCHIVE
    if any("serialized_exported_program" in n or n.endswith("archive_format") for n in names):
        return EXPORTED
    if any(n.endswith("data.pkl") for n in names):
        scripted = any("/code/" in n or n.endswith("constants.pkl") for n in names)
        return TORCHSCRIPT if scripted else PYTORCH
    if any(n.endswith("model.weights.h5") for n in names):
        return KERAS
    return ARRAYS if names and all(n.endswith(".npy") for n in names) else ARCHIVE


def _safetensors(head: bytes) -> bool:
    # A length of 8 bytes, then a JSON object of that length.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _pickled(head: bytes) -> bool:
    # Checkpoints of torch.save before PyTorch 1.6, and pickled modules.
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _page(head: bytes) -> bool:
    return head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _openvino(head: bytes) -> bool:
    return head.lstrip()[:5].lower() == b"<?xml" and b"<net" in head


def _document(head: bytes) -> bool:
    return head.lstrip()[:1] in (b"{", b"[") and b"\0" not in head


_TESTS: tuple[tuple[Callable[[bytes], bool], Kind], ...] = (
    (_safetensors, SAFETENSORS), (_pickled, PYTORCH), (_page, PAGE), (_openvino, OPENVINO), (_document, DOCUMENT),
)  # fmt: skip
