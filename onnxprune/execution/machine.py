"""Description of the machine and the runtime that a latency was measured on."""

from __future__ import annotations

import contextlib
import os
import platform

from onnxprune._utils.input_files import read_text
from onnxprune.execution.sessions import import_onnxruntime

_NAMES = ("model name", "Model", "Hardware", "cpu model")  # of a processor in /proc/cpuinfo, by architecture


def processor() -> str:
    """Return the model of the processor; its architecture where the system does not tell."""
    with contextlib.suppress(OSError):
        text = read_text("/proc/cpuinfo", errors="replace")
        lines = [line.partition(":") for line in text.splitlines()]
        for name in _NAMES:
            for key, _, value in lines:
                if key.strip() == name and value.strip():
                    return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def measured_on(provider: str, *, batch: int, threads: int) -> str:
    """Return processor, cores, system, runtime with its version, batch and threads in one line."""
    runtime = f"onnxruntime {import_onnxruntime().__version__}"
    cores = f"{os.cpu_count()} cores"
    count = f"{threads} thread{'s' if threads != 1 else ''}" if threads else "all threads"
    system = f"{platform.system()} {platform.machine()}"
    return f"{processor()}, {cores}, {system}, {runtime} ({provider}), batch {batch}, {count}"
