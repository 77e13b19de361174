"""Description of the machine and the runtime that a latency was measured on."""

from __future__ import annotations

import contextlib
import os
import platform

from onnxprune._utils.files.input_files import read_text

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


def measured_on(runtime: str, *, batch: int, threads: int) -> str:
    """Return processor, cores, system, runtime, batch and threads in one line.

    Args:
        runtime: Name, version and device of the runtime.
        batch: Samples per run.
        threads: Threads of the runtime; 0: all.
    """
    count = f"{threads} thread{'s' if threads != 1 else ''}" if threads else "all threads"
    system = f"{platform.system()} {platform.machine()}"
    return f"{processor()}, {os.cpu_count()} cores, {system}, {runtime}, batch {batch}, {count}"
