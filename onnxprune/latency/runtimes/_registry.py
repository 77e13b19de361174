"""Runtimes by name, and the block size of a runtime from a cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune._utils.files.atomic_files import write_text
from onnxprune._utils.registry import Registry
from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import provider_of
from onnxprune.latency._cache_files import cached_file, machine
from onnxprune.latency.runtimes._protocol import Runtime
from onnxprune.latency.runtimes._providers import provider_alias

DEFAULT = "onnxruntime"
_METHODS = ("describe", "block_size", "measure", "profile")
_BLOCK = Format("block size", 2**16, 1)

RuntimeClass = Callable[[str, Mapping[str, str]], Runtime]


def _problem(cls: Any) -> str | None:
    if not isinstance(cls, type) or not isinstance(getattr(cls, "name", None), str):
        return "not a class with a name"
    missing = [m for m in _METHODS if not callable(getattr(cls, m, None))]
    return f"it has no method {missing[0]!r}" if missing else None


RUNTIMES: Registry[str, RuntimeClass] = Registry(
    "runtime",
    problem=_problem,
    modules=(
        "onnxprune.latency.runtimes._onnxruntime",
        "onnxprune.latency.runtimes._openvino",
        "onnxprune.latency.runtimes._command",
    ),
    plugins="onnxprune.runtimes",
)
"""Classes of runtimes by name."""


def make_runtime(
    spec: str | Runtime | None = None, options: Mapping[str, Any] | None = None, *, device: str = "cpu"
) -> Runtime:
    """Return a runtime from its name.

    Args:
        spec: "onnxruntime", "onnxruntime:cuda", "openvino", "command:trtexec --onnx={model}", or a runtime; None:
            onnxruntime.
        options: Options of the runtime by name.
        device: For onnxruntime without a provider: "cpu", "cuda" or "auto".

    Raises:
        OnnxPruneError: An unknown runtime, device or option, or a package that is missing.
    """
    if spec is not None and not isinstance(spec, str):
        if options:
            raise OnnxPruneError("runtime options are for runtimes given by name", fix="create the runtime with them")
        return spec
    name, _, rest = (spec or DEFAULT).partition(":")
    if not name.strip():
        raise OnnxPruneError(f"cannot read the runtime {spec!r}", fix="for example onnxruntime:cuda or openvino")
    if name.strip() == DEFAULT and not rest.strip() and device != "cpu":
        provider_of(device)
        rest = device
    if name.strip() not in RUNTIMES and (provider := provider_alias(name)) is not None:
        raise OnnxPruneError(
            f"unknown runtime {name.strip()!r}", fix=f"onnxruntime:{provider}, the provider of onnxruntime"
        )
    return RUNTIMES[name.strip()](rest.strip(), {str(k): _text(v) for k, v in (options or {}).items()})


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class _BlockFile:
    """Contents of a file with a block size."""

    settings: Mapping[str, Any]
    block: int


def block_of(runtime: Runtime, *, refresh: bool = False) -> int:
    """Return the block size of a runtime, probed once for each machine, version and device.

    Args:
        runtime: Runtime to probe.
        refresh: Probe even if the cache has an entry.
    """
    settings = {"kind": "block", "machine": machine(), "runtime": runtime.describe().as_dict()}
    path = cached_file(settings)
    if not refresh:
        with contextlib.suppress(OnnxPruneError):
            found = _BLOCK.read(_BlockFile, path)
            if found.settings == settings and 1 <= found.block <= 1024:
                return found.block
    block = runtime.block_size()
    with contextlib.suppress(OSError, OnnxPruneError):  # best effort
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"schema": 1, "settings": settings, "block": block}) + "\n")
    return block
