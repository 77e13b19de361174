"""The only user of onnxruntime: sessions, devices, and which provider really runs."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

from onnxprune import wire
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, Model, save, to_skeleton

_BYTES_LIMIT = 2**30  # larger models go to onnxruntime through a file with external data

DEVICES = ("auto", "cpu", "cuda")


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        OnnxPruneError: it is not installed, or both of its wheels are (they overwrite each other).
    """
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(installed) == 2:
        raise OnnxPruneError(
            "onnxruntime and onnxruntime-gpu are both installed; they share one folder and break each other",
            fix="pip uninstall onnxruntime onnxruntime-gpu, then install the one you want",
        )
    try:
        import onnxruntime
    except ImportError as err:
        raise OnnxPruneError(
            f"this needs onnxruntime ({err})", fix="pip install 'onnxprune[cpu]' (or 'onnxprune[gpu]' with CUDA)"
        ) from err
    return onnxruntime


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


class Session:
    """A model loaded into onnxruntime.

    Args:
        model: a Model, a ModelProto or a path.
        device: "auto" (CUDA if it loads), "cpu" or "cuda".
        threads: intra-op threads; 0 leaves the choice to onnxruntime.
        optimize: graph optimisations; off for comparing two graphs operator by operator.

    Raises:
        OnnxPruneError: onnxruntime rejects the model, or CUDA was asked for and does not load.
    """

    def __init__(
        self, model: Model | onnx.ModelProto | Path, *, device: str = "cpu", threads: int = 0, optimize: bool = True
    ) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        providers = _providers(ort, device)
        try:
            self._session = _create(ort, model, options, providers)
        except Exception as err:  # onnxruntime raises its own classes, which differ between versions
            text = str(err).split("\n")[0]
            raise OnnxPruneError(f"onnxruntime cannot load the model: {text}") from err
        self.provider: str = self._session.get_providers()[0]
        if device == "cuda" and self.provider != "CUDAExecutionProvider":
            raise OnnxPruneError(
                "CUDA was asked for, but onnxruntime fell back to the CPU",
                fix="check the driver and the CUDA libraries that onnxruntime-gpu needs, or use --device cpu",
            )
        self.inputs: list[str] = [i.name for i in self._session.get_inputs()]
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Runs once.

        Raises:
            OnnxPruneError: onnxruntime fails, with the node it names.
        """
        try:
            return list(self._session.run(list(outputs) if outputs else None, dict(feeds)))
        except Exception as err:  # as above
            raise OnnxPruneError(f"onnxruntime fails to run the model: {str(err).splitlines()[0]}") from err

    @property
    def raw(self) -> Any:
        """The onnxruntime.InferenceSession, for timing without overhead."""
        return self._session


def _providers(ort: Any, device: str) -> list[str]:
    if device not in DEVICES:
        raise OnnxPruneError(f"unknown device {device!r}", fix=f"choose from: {', '.join(DEVICES)}")
    available = ort.get_available_providers()
    cuda = "CUDAExecutionProvider" in available
    if device == "cuda" and not cuda:
        raise OnnxPruneError(
            "this onnxruntime has no CUDA provider", fix="pip uninstall onnxruntime; pip install 'onnxprune[gpu]'"
        )
    if cuda and device != "cpu":
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def _create(ort: Any, model: Model | onnx.ModelProto | Path, options: Any, providers: list[str]) -> Any:
    if isinstance(model, Path):
        return ort.InferenceSession(str(model), options, providers=providers)
    if isinstance(model, onnx.ModelProto):
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    proto, arrays = to_skeleton(model)
    if wire.size(proto, arrays) <= _BYTES_LIMIT:
        buffer = io.BytesIO()
        wire.write(buffer, proto, arrays)
        return ort.InferenceSession(buffer.getvalue(), options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, external=True)
        return ort.InferenceSession(str(path), options, providers=providers)
