"""Runtimes with latency laws of their own, and a command that is one; no test of them reads the clock."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_graphsurgeon as gs

from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.timing import Latency
from onnxprune.ir.model import Model
from onnxprune.latency.runtimes import Inputs, LayerTime, Measurement, MeasurementStopped, RuntimeInfo
from onnxprune.latency.runtimes.node_names import node_name

Law = Callable[[Model], float]


def padded_law(block: int = 8, base: float = 50e-6, each: float = 1e-9) -> Law:
    """Seconds that grow with the weights of convolutions and products, in blocks of channels, above a base."""

    def law(model: Model) -> float:
        return base + sum(layer_law(node, block, each) for node in model.graph.nodes)

    return law


def layer_law(node: gs.Node, block: int = 8, each: float = 1e-9) -> float:
    weights = [t for t in node.inputs if isinstance(t, gs.Constant) and len(t.shape) > 1]
    if node.op not in ("Conv", "Gemm", "MatMul") or not weights:
        return 0.0
    out, into, *rest = weights[0].shape
    cells = -(-out // block) * block * (-(-into // block) * block if into > 1 else 1)
    for n in rest:
        cells *= n
    return each * cells


class FakeRuntime:
    """Runtime by a law.

    Args:
        device, options: Recorded.

    Attributes:
        law: Seconds of a model.
        noise: Factors of the measurements, in turn.
        fails_after: Models that are measured before the runtime fails; None: it never does.
        measured: Number of models of each call.
    """

    name = "fake"
    law: Law = staticmethod(padded_law())
    noise: Sequence[float] = (1.0,)
    spread = 0.0
    fails_after: int | None = None
    layered = True
    block = 8

    def __init__(self, device: str = "", options: Mapping[str, str] | None = None) -> None:
        self.device = device or "nowhere"
        self.options = dict(options or {})
        self.measured: list[int] = []
        self.profiled = 0
        self._turn = 0
        self._models = 0

    def describe(self) -> RuntimeInfo:
        return RuntimeInfo(self.name, "1.0", self.device, "as the model", self.options)

    def block_size(self) -> int:
        return self.block

    def measure(
        self, models: Sequence[Model], inputs: Sequence[Inputs], *, threads: int, batch: int, runs: int = 30,
        warmup: int = 3, progress: Progress | None = None,
    ) -> Measurement:  # fmt: skip
        assert len(models) == len(inputs)
        self.measured.append(len(models))
        found: list[Latency | None] = []
        for model in models:
            if self.fails_after is not None and self._models >= self.fails_after:
                found += [None] * (len(models) - len(found))
                raise MeasurementStopped("the fake runtime has stopped", found, where="nowhere", fix="plug it in")
            self._models += 1
            found.append(self._latency(model, runs))
        return Measurement(tuple(la for la in found if la is not None), self.device, runs, runs)

    def _latency(self, model: Model, runs: int) -> Latency:
        factor = self.noise[self._turn % len(self.noise)]
        self._turn += 1
        seconds = self.law(model) * factor
        return Latency(seconds, seconds * (1 - self.spread), seconds * (1 + self.spread), runs)

    def profile(self, model: Model, inputs: Inputs, *, threads: int, runs: int = 20) -> list[LayerTime] | None:
        if not self.layered:
            return None
        self.profiled += 1
        times = [
            LayerTime(node_name(n), n.op, layer_law(n), "own", (node_name(n),))
            for n in model.graph.nodes
            if layer_law(n)
        ]
        return [*times, LayerTime("reorder_1", "Reorder", 2e-6)]


class Refusing(FakeRuntime):
    """Runtime that loads no model."""

    name = "refusing"

    def measure(self, models: Sequence[Model], *args: object, **options: object) -> Measurement:
        raise OnnxPruneError("refusing cannot load the model: no", where="node 'x'", fix="another one")


PROFILER = '''
"""Profiler of models for tests: milliseconds by the size of the file, and ways to fail."""

import json
import sys
import time
from pathlib import Path

mode, state, *models = sys.argv[1:]
calls = Path(state)
count = int(calls.read_text()) if calls.exists() else 0
calls.write_text(str(count + 1))


def ms(path):
    return 0.25 + Path(path).stat().st_size / 1e5


how, _, number = mode.partition(":")
if how == "hang":
    print("starting", flush=True)
    time.sleep(60)
elif how == "nothing":
    pass
elif how == "garbage":
    sys.stdout.buffer.write(bytes(range(256)) * 3)
elif how == "endless":
    while True:
        sys.stdout.write("x" * 65536)
elif how == "dies" and count >= int(number):
    sys.exit("Segmentation fault: node '/stem/conv/Conv' is not supported")
elif how == "lost" and count < int(number):
    print("ssh: connect to host jetson port 22: Connection refused", file=sys.stderr)
    sys.exit(255)
elif how == "negative":
    print("median = -3.5 ms")
elif how == "bare":
    print("3.5")
elif how == "json":
    for path in models:
        print(json.dumps({"model": path, "ms": ms(path)}))
elif how == "noise":
    print(f"median = {ms(models[0]) * (1 + 0.004 * (count % 3)):.6f} ms")
elif how == "trtexec":
    value = ms(models[0])
    print(f"[I] Latency: min = {value} ms, max = {3 * value} ms, mean = {2 * value} ms, median = {1.5 * value} ms")
    print(f"[I] Enqueue Time: min = 0.1 ms, max = 0.2 ms, mean = 0.1 ms, median = 0.1 ms")
    print(f"[I] GPU Compute Time: min = {value} ms, max = {value} ms, mean = {value} ms, median = {value} ms")
else:
    for path in models:
        print(f"{Path(path).name}: median = {ms(path):.6f} ms")
'''  # fmt: skip


def profiler(folder: Path, mode: str = "text", places: str = "{model}") -> str:
    """Write the profiler and return the runtime that calls it."""
    script = folder / "profiler.py"
    script.write_text(PROFILER, encoding="utf-8")
    return f"command:'{sys.executable}' -S -E '{script}' {mode} '{folder / 'calls'}' {places}"


def file_law(path: Path) -> float:
    """Seconds that the profiler prints for a file."""
    return 0.25e-3 + path.stat().st_size / 1e5 * 1e-3
