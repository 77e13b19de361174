"""Runtimes that latency is measured in: onnxruntime, OpenVINO, a command of the user; plug-ins add others."""

from onnxprune.latency.runtimes._protocol import ConvProbe as ConvProbe
from onnxprune.latency.runtimes._protocol import Inputs as Inputs
from onnxprune.latency.runtimes._protocol import LayerTime as LayerTime
from onnxprune.latency.runtimes._protocol import Measurement as Measurement
from onnxprune.latency.runtimes._protocol import MeasurementStopped as MeasurementStopped
from onnxprune.latency.runtimes._protocol import Runtime as Runtime
from onnxprune.latency.runtimes._protocol import RuntimeInfo as RuntimeInfo
from onnxprune.latency.runtimes._registry import RUNTIMES as RUNTIMES
from onnxprune.latency.runtimes._registry import block_of as block_of
from onnxprune.latency.runtimes._registry import make_runtime as make_runtime
