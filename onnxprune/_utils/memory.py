"""Memory that this process can still take before the machine swaps."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from onnxprune._utils.input_files import read_text

_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


NVIDIA = Path("/proc/driver/nvidia")  # is there while the driver is loaded


def limit_memory(driver: Path = NVIDIA) -> None:
    """Let this process take no more memory than is free, so that an allocation fails before the machine swaps.

    Only private memory that can be written to counts; mapped files and reserved addresses do not.

    Args:
        driver: Folder of a driver that maps much more than it uses, as CUDA does; where it exists there is no limit.
    """
    if driver.exists():
        return
    free = memory_at_hand()
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import resource

        match = re.search(r"VmData: *(\d+) kB", read_text("/proc/self/status"))
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if free is not None and match is not None and soft == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_DATA, (free + int(match[1]) * 1024, hard))


def memory_at_hand() -> int | None:
    """Return the bytes that are free: of the machine, of the container and of the process; None if unknown."""
    found = []
    with contextlib.suppress(OSError):
        if match := re.search(r"MemAvailable: *(\d+) kB", read_text("/proc/meminfo")):
            found.append(int(match[1]) * 1024)
    for limit, used in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            found.append(int(read_text(limit)) - int(read_text(used)))
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            pages = int(read_text("/proc/self/statm").split()[0])
            found.append(most - pages * resource.getpagesize())
    return max(0, min(found)) if found else None
