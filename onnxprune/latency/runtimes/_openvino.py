"""OpenVINO through its own Python package."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.timing import interleaved, waited_for_processor
from onnxprune.ir.model import Model
from onnxprune.latency.runtimes._block_probe import measured_block
from onnxprune.latency.runtimes._files import model_file
from onnxprune.latency.runtimes._protocol import Inputs, LayerTime, Measurement, RuntimeInfo
from onnxprune.latency.runtimes._refusals import refusal
from onnxprune.latency.runtimes._registry import RUNTIMES
from onnxprune.latency.runtimes.node_names import NodeNames

_DENSE = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul")
_PRECISION = "INFERENCE_PRECISION_HINT"
_VECTOR = 8
_WARMUP = 3
_DATA = ("Parameter", "Constant", "Result")


def import_openvino() -> Any:
    """Return the openvino module.

    Raises:
        OnnxPruneError: It is not installed.
    """
    try:
        import openvino
    except ImportError as err:
        raise OnnxPruneError(
            f"this needs the package openvino ({err})", fix="pip install 'onnxprune[openvino]'"
        ) from err
    return openvino


@RUNTIMES.register
class OpenVino:
    """OpenVINO on one device.

    Args:
        device: "CPU", "GPU", "NPU" ..., "" for the CPU.
        options: Properties of the compiled model, such as INFERENCE_PRECISION_HINT=f32.

    Raises:
        OnnxPruneError: The package, the device or a property is missing.
    """

    name = "openvino"

    def __init__(self, device: str = "", options: Mapping[str, str] | None = None) -> None:
        self._openvino = import_openvino()
        self._core = self._openvino.Core()
        self.device = device.upper() or "CPU"
        base = self.device.partition(".")[0].partition(":")[0]
        found = [str(d) for d in self._core.available_devices]
        if base not in {d.partition(".")[0] for d in found} | {"AUTO", "HETERO", "MULTI", "BATCH"}:
            raise unknown("device of OpenVINO", self.device, found)
        self._options = {k.upper(): v for k, v in (options or {}).items()}
        if base in {d.partition(".")[0] for d in found}:
            supported = [str(p) for p in self._core.get_property(base, "SUPPORTED_PROPERTIES")]
            for key in self._options:
                if key not in supported:
                    raise unknown(f"property of OpenVINO's {base}", key, supported)
        self._precision = self._options.get(_PRECISION) or self._default_precision(base)

    def _default_precision(self, base: str) -> str:
        try:
            return _precision(self._core.get_property(base, _PRECISION))
        except Exception:  # virtual devices have none
            return "as the model"

    def describe(self) -> RuntimeInfo:
        """Return version, device, precision and options."""
        version = str(self._openvino.__version__).partition("-")[0]
        return RuntimeInfo(self.name, version, self.device, self._precision, self._options)

    def block_size(self) -> int:
        """Return the block size from measured convolutions, on the CPU at least the width of a vector.

        Single layers show no loss at other counts, whole networks do: MobileNetV2 is up to a fifth slower.
        """
        found = measured_block(self)
        return max(found, _VECTOR) if self.device == "CPU" else found

    def _compiled(self, model: Model, threads: int, *, profile: bool = False) -> Any:
        """Load a model.

        Raises:
            OnnxPruneError: OpenVINO refuses it.
        """
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.device == "CPU":
            config["NUM_STREAMS"] = "1"
            if threads:
                config["INFERENCE_NUM_THREADS"] = str(threads)
        if profile:
            config["PERF_COUNT"] = "YES"
        try:
            with model_file(model, named=True) as path:
                network = self._core.read_model(str(path))
                return self._core.compile_model(network, self.device, {**config, **self._options})
        except Exception as err:  # openvino raises RuntimeError and its own classes
            raise refusal(self.name, str(err), model) from err

    def _timer(self, model: Model, inputs: Inputs, threads: int) -> tuple[Callable[[], float], Any]:
        compiled = self._compiled(model, threads)
        request = self._request(compiled, inputs, model)

        def timer() -> float:
            start = time.perf_counter()
            request.infer()
            return time.perf_counter() - start

        return timer, compiled

    def _request(self, compiled: Any, inputs: Inputs, model: Model) -> Any:
        """Return a request that has run once with the inputs in place."""
        try:
            request = compiled.create_infer_request()
            for name, value in inputs.items():
                request.set_tensor(name, self._openvino.Tensor(np.ascontiguousarray(value)))
            request.infer()
        except Exception as err:  # as above
            raise refusal(self.name, str(err), model) from err
        return request

    def measure(
        self,
        models: Sequence[Model],
        inputs: Sequence[Inputs],
        *,
        threads: int,
        batch: int,
        runs: int = 30,
        warmup: int = 3,
        progress: Progress | None = None,
    ) -> Measurement:
        """Measure models in turns; see `Runtime.measure`."""
        made = [self._timer(m, f, threads) for m, f in zip(models, inputs, strict=True)]
        timers = [timer for timer, _ in made]
        found = interleaved(timers, runs=runs, warmup=warmup, waited=waited_for_processor, progress=progress)
        devices = "+".join(map(str, made[0][1].get_property("EXECUTION_DEVICES")))
        ran = f"{self.name} {devices}, {self._precision}"
        return Measurement(tuple(found.latencies), ran, found.seconds.shape[1], int(found.quiet.sum()))

    def profile(self, model: Model, inputs: Inputs, *, threads: int, runs: int = 20) -> list[LayerTime]:
        """Return the least time of every layer from OpenVINO's counters, which have a resolution of 1 us."""
        compiled = self._compiled(model, threads, profile=True)
        request = self._request(compiled, inputs, model)
        every: list[list[Any]] = []
        for _ in range(_WARMUP):
            request.infer()
        for _ in range(runs):
            request.infer()
            every.append(list(request.profiling_info))
        fused = self._fused(compiled)
        names = NodeNames(model)
        out = []
        for i, layer in enumerate(every[-1]):
            if "EXECUTED" not in str(layer.status) or layer.node_type in _DATA:
                continue
            times = [run[i].real_time.total_seconds() for run in every if len(run) == len(every[-1])]
            nodes = self._nodes(layer, fused.get(layer.node_name, ()), names)
            out.append(LayerTime(layer.node_name, layer.node_type, min(times), layer.exec_type, nodes))
        return out

    @staticmethod
    def _nodes(layer: Any, fused: Sequence[str], names: NodeNames) -> tuple[str, ...]:
        """Return the model's node that a layer computes."""
        if layer.node_type == "Reorder":
            return ()
        for text in (*fused, layer.node_name):
            if found := names.of(text.removesuffix("/WithoutBiases"), fused=layer.node_type in _DENSE):
                return found
        return ()

    @staticmethod
    def _fused(compiled: Any) -> dict[str, tuple[str, ...]]:
        """Return the layers of the network that each executed layer stands for."""
        out = {}
        for op in compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            if "originalLayersNames" in info:
                value = info["originalLayersNames"]
                text = str(getattr(value, "value", value))
                out[str(op.get_friendly_name())] = tuple(n for n in text.split(",") if n)
        return out


def _precision(value: Any) -> str:
    """Return the name of an element type: "bfloat16" of "<Type: 'bfloat16'>"."""
    text = str(value)
    return text.split("'")[1] if "'" in text else text
