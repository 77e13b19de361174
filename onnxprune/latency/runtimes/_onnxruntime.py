"""onnxruntime with any execution provider of the installed package."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.sessions import Kernel, Provider, Session, import_onnxruntime, kernel_block
from onnxprune.execution.timing import measure
from onnxprune.ir.model import Model
from onnxprune.latency.runtimes._block_probe import measured_block, probe_network
from onnxprune.latency.runtimes._protocol import Inputs, LayerTime, Measurement, RuntimeInfo
from onnxprune.latency.runtimes._providers import ALIASES, PACKAGES, SUFFIX, short
from onnxprune.latency.runtimes._refusals import refusal
from onnxprune.latency.runtimes._registry import RUNTIMES
from onnxprune.latency.runtimes.node_names import NodeNames

CPU = "CPUExecutionProvider"
# Operators that dominate the time: one of these on the CPU means that the device does not run the model.
_HEAVY = re.compile(r"Conv|MatMul|Gemm|Einsum|LSTM|GRU|RNN|Attention")
_LOWER = re.compile(r"(fp16|float16|half)", re.I)


@RUNTIMES.register
class OnnxRuntime:
    """onnxruntime on one execution provider.

    Args:
        device: Name of a provider ("cpu", "cuda", "tensorrt" ...), "" for the CPU, "auto" for CUDA if it is there.
        options: Options of the provider; those that start with "session." are entries of the session's configuration,
            and "fallback" allows that heavy operators run on the CPU instead.

    Raises:
        OnnxPruneError: onnxruntime or the provider is missing, or the provider is unknown.
    """

    name = "onnxruntime"

    def __init__(self, device: str = "", options: Mapping[str, str] | None = None) -> None:
        self._ort = import_onnxruntime()
        self.provider = _provider(self._ort, device)
        given = dict(options or {})
        self._options = dict(given)
        self.fallback = _flag("fallback", given.pop("fallback", "0"))
        self._config = {k: v for k, v in given.items() if k.startswith("session.")}
        self._settings = {k: v for k, v in given.items() if k not in self._config}
        if self.provider == CPU and self._settings:
            raise OnnxPruneError(
                f"the CPU provider of onnxruntime has no option {next(iter(self._settings))!r}",
                fix="options of the session start with session.; provider options need a provider, such as "
                "--runtime onnxruntime:cuda",
            )

    @property
    def providers(self) -> list[Provider]:
        """Providers of a session, in order of preference."""
        chain: list[Provider] = [(self.provider, self._settings)]
        if self.provider == "TensorrtExecutionProvider" and "CUDAExecutionProvider" in _available(self._ort):
            chain.append(("CUDAExecutionProvider", {}))
        return chain if self.provider == CPU else [*chain, (CPU, {})]

    @property
    def is_plain_cpu(self) -> bool:
        """True for the CPU provider without options."""
        return self.provider == CPU and not self._config

    def describe(self) -> RuntimeInfo:
        """Return version, provider and options."""
        lower = any(_LOWER.search(k) and _is_on(v) for k, v in self._settings.items())
        precision = "float16 allowed" if lower else "as the model"
        return RuntimeInfo(self.name, self._ort.__version__, self.provider, precision, self._options)

    def block_size(self) -> int:
        """Return the block of the kernels: read from the optimized graph on the CPU, else measured."""
        if self.provider == CPU:
            return kernel_block("cpu")
        return 8 if self.provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider") else measured_block(self)

    def session(self, model: Model, threads: int, profile: Path | None = None) -> Session:
        """Load a model.

        Raises:
            OnnxPruneError: onnxruntime refuses it, or falls back to another provider.
        """
        try:
            return Session(
                model, providers=self.providers, config=self._config, threads=threads, profile=profile,
            )  # fmt: skip
        except OnnxPruneError as err:
            cause = err.__cause__
            if cause is None:
                raise
            raise refusal(self._label, str(cause), model, err.fix) from err

    @property
    def _label(self) -> str:
        return self.name if self.provider == CPU else f"{self.name} with {self.provider}"

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
        sessions = [self.session(m, threads) for m in models]
        ran = self.provider
        for model, feeds, session in zip(models, inputs, sessions, strict=True):
            self._run_once(session, feeds, model)
            if self.provider != CPU:
                ran = self._placement(model, feeds, threads)
        found = measure(sessions, inputs, runs=runs, warmup=warmup, progress=progress)
        return Measurement(tuple(found.latencies), ran, found.seconds.shape[1], int(found.quiet.sum()))

    def _run_once(self, session: Session, feeds: Inputs, model: Model) -> None:
        try:
            session.run(feeds)
        except OnnxPruneError as err:
            raise refusal(self._label, str(err.__cause__ or err), model) from err

    def _placement(self, model: Model, feeds: Inputs, threads: int) -> str:
        """Return the providers that run a model's nodes.

        Raises:
            OnnxPruneError: Heavy operators run on the CPU, and a fallback is not allowed.
        """
        kernels = self._kernels(model, feeds, threads, 1)[-1]
        return placement(self.provider, kernels, allowed=self.fallback)

    def _kernels(self, model: Model, feeds: Inputs, threads: int, runs: int) -> list[list[Kernel]]:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            session = self.session(model, threads, Path(folder))
            for _ in range(runs):
                session.run(feeds)
            return session.kernels()

    def profile(self, model: Model, inputs: Inputs, *, threads: int, runs: int = 20) -> list[LayerTime]:
        """Return the least time of every kernel of onnxruntime's profiler."""
        every = self._kernels(model, inputs, threads, runs + 2)[2:]
        same = [run for run in every if [k.name for k in run] == [k.name for k in every[-1]]]
        names = NodeNames(model)
        return [
            LayerTime(
                k.name, k.op, min(run[i].seconds for run in same),
                k.provider.removesuffix(SUFFIX), names.of(k.name),
            )
            for i, k in enumerate(every[-1])
        ]  # fmt: skip


def placement(provider: str, kernels: Sequence[Kernel], *, allowed: bool) -> str:
    """Return the providers that ran the kernels of a model, in words.

    Raises:
        OnnxPruneError: Heavy operators ran on the CPU, and this is not allowed.
    """
    on_cpu = [k for k in kernels if k.provider == CPU]
    heavy = [k for k in on_cpu if _HEAVY.search(k.op)]
    if heavy and not allowed:
        raise OnnxPruneError(
            f"{provider} leaves {len(on_cpu)} of {len(kernels)} kernels to the CPU, {heavy[0].op} among them",
            where=f"node {heavy[0].name!r}",
            fix="a provider that runs the operator, or --runtime-option fallback=1 to measure the mixture",
        )
    if not on_cpu:
        return provider
    return f"{provider}, {len(on_cpu)} of {len(kernels)} kernels on the CPU"


def _available(ort: Any) -> list[str]:
    return [str(p) for p in ort.get_available_providers()]


def _provider(ort: Any, device: str) -> str:
    """Return the full name of a provider.

    Raises:
        OnnxPruneError: It is unknown, or the installed package does not have it.
    """
    available = {short(p): p for p in _available(ort)}
    wanted = ALIASES.get(short(device), short(device)) or "cpu"
    if wanted == "auto":
        return _loaded() if "cuda" in available else CPU
    if wanted in available:
        return available[wanted]
    known = {short(p) for p in ort.get_all_providers()} | PACKAGES.keys()
    if wanted not in known:
        raise unknown("provider of onnxruntime", device, {*available, *PACKAGES})
    raise OnnxPruneError(
        f"the installed onnxruntime {ort.__version__} has no provider {wanted}; it has {', '.join(sorted(available))}",
        fix=PACKAGES.get(wanted, "install the package of onnxruntime that is built with it"),
    )


def _loaded() -> str:
    """Return the provider of a session that prefers CUDA: the package may have it, and the machine not."""
    return Session(probe_network(32), device="auto").provider


def _is_on(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on")


def _flag(name: str, value: str) -> bool:
    if value.strip().lower() not in ("0", "1", "true", "false", "yes", "no", "on", "off"):
        raise OnnxPruneError(f"the runtime option {name} is 0 or 1, not {value!r}")
    return _is_on(value)
