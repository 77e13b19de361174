"""Memory that this process can still take before the machine swaps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

from onnxprune._utils.files.input_files import read_text

CONTAINER_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use, and statistics of a container (cgroup, versions 2 and 1)."""


def memory_at_hand(container_files: Sequence[tuple[str, str, str]] = CONTAINER_FILES) -> int | None:
    """Return the bytes that are free: of the machine, of the container and of the process; None if unknown."""
    found = []
    with contextlib.suppress(OSError):
        if match := re.search(r"MemAvailable: *(\d+) kB", read_text("/proc/meminfo")):
            found.append(int(match[1]) * 1024)
    for limit, used, statistics in container_files:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            found.append(int(read_text(limit)) - int(read_text(used)) + _cached(read_text(statistics)))
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            pages = int(read_text("/proc/self/statm").split()[0])
            found.append(most - pages * resource.getpagesize())
    return max(0, min(found)) if found else None


def _cached(statistics: str) -> int:
    """Return the bytes of a container's use that are cached files, which make room when memory is needed."""
    match = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
    return int(match[1]) if match is not None else 0
