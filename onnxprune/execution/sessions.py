"""Sessions of onnxruntime, devices and execution providers; the only module that imports onnxruntime."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune._utils.files.input_files import GIB, read_bytes, read_text
from onnxprune.errors import OnnxPruneError
from onnxprune.execution._nhwc_convolutions import standard_convolutions
from onnxprune.ir import protobuf_wire
from onnxprune.ir.model import Array, Model
from onnxprune.ir.writer import save, to_skeleton

_BYTES_LIMIT = 2**30  # larger models are passed to onnxruntime as a file with external data

DEVICES = ("auto", "cpu", "cuda")
Provider = tuple[str, Mapping[str, str]]
"""Execution provider of onnxruntime and its options."""
_ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")

_EXACT_INTEGERS = "session.x64quantprecision"  # converts constant int8 weights to uint8 where kernels saturate


def import_onnxruntime() -> Any:
    """Return the onnxruntime module.

    Raises:
        OnnxPruneError: It is not installed, or both of its wheels are (they overwrite each other).
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


@functools.cache
def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class Kernel:
    """Execution of one operator by onnxruntime.

    Attributes:
        name: Node name in onnxruntime; fused nodes have generated names.
        op: Operator, possibly internal to onnxruntime (FusedConv, ReorderOutput).
        inputs: Shapes of its inputs, without weights packed at load time.
        outputs: Shapes of its outputs.
        seconds: Duration.
        provider: Execution provider that ran it.
    """

    name: str
    op: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    seconds: float
    provider: str = ""


class Session:
    """A model loaded into onnxruntime.

    Args:
        model: Model, ModelProto or path.
        device: "auto" (CUDA if it loads), "cpu" or "cuda".
        providers: Execution providers with their options, in order of preference, instead of a device.
        config: Entries of the session's configuration.
        threads: Intra-op threads; 0: onnxruntime's default.
        optimize: Enable graph optimizations; disable to compare two graphs operator by operator.
        weights: Values of initializers that the ModelProto declares as external data; they are not copied.
        arena: Keep freed memory for later runs; disable for minimum memory.
        profile: Folder for onnxruntime's profile, to be read with `kernels`.
        exact_integers: Compute products of uint8 and int8 exactly on CPUs whose kernels saturate (see
            `saturates_integers`). This covers constant weights, and not QLinearMatMul of opset 21 and later;
            QLinearConv of com.microsoft only in a ModelProto. Needs `optimize`.

    Raises:
        OnnxPruneError: onnxruntime rejects the model, or CUDA was requested and does not load.
        ValueError: `exact_integers` without `optimize`, which onnxruntime would ignore.
    """

    def __init__(
        self,
        model: Model | onnx.ModelProto | Path,
        *,
        device: str = "cpu",
        providers: Sequence[Provider] = (),
        config: Mapping[str, str] | None = None,
        threads: int = 0,
        optimize: bool = True,
        weights: Mapping[str, Array] | None = None,
        arena: bool = True,
        profile: Path | None = None,
        exact_integers: bool = False,
    ) -> None:
        if exact_integers and not optimize:
            raise ValueError("exact_integers needs optimize=True: a graph optimization rewrites the weights")
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # Threads that spin after a run would slow down the session timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for key, value in (config or {}).items():
            options.add_session_config_entry(key, value)
        options.enable_cpu_mem_arena = arena
        self._held = [ort.OrtValue.ortvalue_from_numpy(v) for v in (weights or {}).values()]
        if weights:
            options.add_session_config_entry("session.disable_prepacking", "1")  # prepacking would copy them
            options.add_external_initializers(list(weights), self._held)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "onnxruntime")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        chosen: list[Any] = [(n, dict(o)) for n, o in providers] or _providers(ort, device)
        self._plain: Callable[[], Any] | None = None
        try:
            if exact_integers and saturates_integers():
                self._session = self._exact(ort, model, options, chosen)
            else:
                self._session = _create(ort, model, options, chosen)
        except Exception as err:  # onnxruntime's exception classes differ between versions
            text = str(err).split("\n")[0]
            missing = "Could not find an implementation" in text
            raise OnnxPruneError(
                f"onnxruntime cannot load the model: {text}",
                fix="it has no kernel for this operator and element type here; for bfloat16 on the CPU, "
                "run a float32 copy (the pass widen_floats)"
                if missing
                else None,
            ) from err
        self.provider: str = self._session.get_providers()[0]
        if device == "cuda" and self.provider != "CUDAExecutionProvider":
            raise OnnxPruneError(
                "CUDA was requested, but onnxruntime fell back to the CPU",
                fix="check the driver and the CUDA libraries that onnxruntime-gpu needs, or use --device cpu",
            )
        if providers and self.provider != providers[0][0]:
            raise OnnxPruneError(
                f"{providers[0][0]} was requested, but onnxruntime fell back to {self.provider}",
                fix="check the driver and the libraries that the provider needs",
            )
        self._device = "cuda" if self.provider in _ON_GPU else "cpu"
        self.inputs: list[str] = [i.name for i in self._session.get_inputs()]
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]

    @property
    def on_gpu(self) -> bool:
        """True if inputs and outputs can stay in the memory of an NVIDIA GPU."""
        return self._device == "cuda"

    def _exact(self, ort: Any, model: Model | onnx.ModelProto | Path, options: Any, providers: list[Any]) -> Any:
        """Create a session that rewrites int8 weights as uint8.

        Some rewritten operators have no kernel: onnxruntime fails when loading (QLinearConv of int8 data) or running
        (DequantizeLinear per axis without a zero point). The session then falls back to the original weights.
        """

        def plain() -> Any:
            options.add_session_config_entry(_EXACT_INTEGERS, "0")
            return _create(ort, model, options, providers)

        options.add_session_config_entry(_EXACT_INTEGERS, "1")
        standard = standard_convolutions(model) if isinstance(model, onnx.ModelProto) else model
        try:
            session = _create(ort, standard, options, providers)
        except Exception:  # as in __init__
            return plain()
        self._plain = plain
        return session

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Return the outputs of one run.

        Raises:
            OnnxPruneError: onnxruntime fails; the message names the node.
        """
        try:
            found = list(self._session.run(list(outputs) if outputs else None, dict(feeds)))
            self._plain = None
            return found
        except Exception as err:  # as above
            if self._plain is not None:
                self._session, self._plain = self._plain(), None
                return self.run(feeds, outputs)
            raise OnnxPruneError(f"onnxruntime fails to run the model: {str(err).splitlines()[0]}") from err

    def to_device(self, array: Array) -> Any:
        """Return an array on the session's device as an OrtValue; on the CPU it shares the array's memory."""
        ort = import_onnxruntime()
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)

    def bind(self, feeds: Mapping[str, Array]) -> Any:
        """Return an IO binding with the inputs on the device, and the outputs allocated there."""
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, self.to_device(value))
        for name in self.outputs:
            binding.bind_output(name, self._device, 0)
        return binding

    def run_bound(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """Return the outputs of one run through IO binding, as values on the device.

        Feeds are results of `to_device` or of this method: sessions on one device exchange values without host copies.

        Raises:
            OnnxPruneError: onnxruntime fails; the message names the node.
        """
        try:
            binding = self._session.io_binding()
            for name, value in feeds.items():
                binding.bind_ortvalue_input(name, value)
            for name in outputs:
                binding.bind_output(name, self._device, 0)
            self._session.run_with_iobinding(binding)
            return list(binding.get_outputs())
        except Exception as err:  # as above
            raise OnnxPruneError(f"onnxruntime fails to run the model: {str(err).splitlines()[0]}") from err

    def kernels(self) -> list[list[Kernel]]:
        """Return the operators run since the session was created with `profile`, run by run; ends profiling.

        Raises:
            OnnxPruneError: The profile cannot be read.
        """
        path = Path(self._session.end_profiling())
        try:
            # Not the strict reader: onnxruntime's own file, written a moment ago, and in no fixed format.
            events = json.loads(read_text(path, GIB))
            path.unlink()
            return _runs(events)
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise OnnxPruneError(f"cannot read onnxruntime's profile: {err!r}", where=str(path)) from err

    @property
    def raw(self) -> Any:
        """The onnxruntime.InferenceSession, for timing without overhead."""
        return self._session


def _runs(events: Sequence[Any]) -> list[list[Kernel]]:
    """Return the kernels of a profile, a list per run. Events are written when they end: a run follows its kernels."""
    suffix = "_kernel_time"
    runs: list[list[Kernel]] = []
    kernels: list[tuple[float, float, Kernel]] = []
    for event in events:
        start, took, args = float(event["ts"]), float(event["dur"]), event.get("args", {})
        if event["name"] == "model_run":
            runs.append([k for _, _, k in kernels])
            kernels = []
        elif event["name"].endswith(suffix) and "op_name" in args:
            # Time inside the body of an If or Loop is part of that node's time.
            while kernels and kernels[-1][0] > start and kernels[-1][1] < start + took:
                kernels.pop()
            name = event["name"].removesuffix(suffix)
            ins, outs = (_shapes(args.get(f"{k}_type_shape", [])) for k in ("input", "output"))
            provider = str(args.get("provider", ""))
            kernels.append((start, start + took, Kernel(name, args["op_name"], ins, outs, took * 1e-6, provider)))
    return runs


def _shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in shape) for entry in entries for shape in entry.values())


def kernel_block(device: str = "cpu") -> int:
    """Return the channel block size of onnxruntime's kernels.

    NCHWc kernels use 16 floats with AVX-512 and 8 with AVX2; tensor cores use multiples of 8. On the CPU onnxruntime
    is asked, and without it the features of the processor decide.
    """
    if device == "cuda":
        return 8
    return padded_block() or _simd_block()


@functools.cache
def padded_block() -> int | None:
    """Return the block to which onnxruntime pads the channels of a convolution; None if it does not.

    Read from the optimized graph, so that it does not depend on a clock: the weight of 33 filters gets 48 rows in
    blocks of 16, and 40 in blocks of 8.
    """
    filters, channels = 33, 64
    weight = numpy_helper.from_array(np.ones((filters, channels, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, filters, 6, 6])],
        [weight],
    )
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        ort = import_onnxruntime()
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            _create(ort, probe, options, ["CPUExecutionProvider"])
            optimized = onnx.load_model_from_string(read_bytes(options.optimized_model_filepath, 2**20))
    except Exception:  # no onnxruntime, or one that cannot write graphs: the caller has another way
        return None
    rows = max((t.dims[0] for t in optimized.graph.initializer if len(t.dims) == 4), default=filters)
    return {48: 16, 40: 8, 36: 4}.get(rows)


def _simd_block() -> int:
    simd: Mapping[str, Any] = np.show_config(mode="dicts").get("SIMD Extensions", {})
    features = {str(f) for kind in ("baseline", "found") for f in simd.get(kind, [])}
    return 16 if any(f.startswith(("AVX512", "X86_V4")) for f in features) else 8


@functools.cache
def saturates_integers() -> bool:
    """Return whether onnxruntime's kernels for uint8 x int8 saturate on this CPU.

    Without VNNI they add two products in 16 bits, so large weights lose up to half of a sum. Measured once per process.
    """
    terms, a, b = 64, 255, 127
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, terms])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [numpy_helper.from_array(np.full((terms, 16), b, np.int8), "b")],
    )
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    [y] = Session(probe, threads=1).run({"a": np.full((1, terms), a, np.uint8)})
    return not bool((y == a * b * terms).all())


def provider_of(device: str) -> str:
    """Return the execution provider of a device.

    Raises:
        OnnxPruneError: The device is unknown.
    """
    return _providers(import_onnxruntime(), device)[0]


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


def _create(ort: Any, model: Model | onnx.ModelProto | Path, options: Any, providers: list[Any]) -> Any:
    # With providers and options of the user, an error of theirs must not end on the CPU.
    fallback = not any(isinstance(p, tuple) for p in providers)
    make = partial(ort.InferenceSession, sess_options=options, providers=providers, enable_fallback=int(fallback))
    if isinstance(model, Path):
        return make(str(model))
    if isinstance(model, onnx.ModelProto):
        return make(model.SerializeToString())
    proto, arrays = to_skeleton(model)
    if protobuf_wire.size(proto, arrays) <= _BYTES_LIMIT:
        buffer = io.BytesIO()
        protobuf_wire.write(buffer, proto, arrays)
        return make(buffer.getvalue())
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, external=True)
        return make(str(path))
