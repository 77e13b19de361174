"""Files of the latency cache, and the machine that their figures hold for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune._utils.files.input_files import read_text

SCHEMA = 1


def machine() -> str:
    """Return the processor, its cores and the GPU if there is one: times depend on them besides the model."""
    found = []
    with contextlib.suppress(OSError):
        text = read_text("/proc/cpuinfo", errors="replace").split("\n\n")[0]
        wanted = ("model name", "cpu family", "model", "stepping")
        found = [v.strip() for k, _, v in (line.partition(":") for line in text.splitlines()) if k.strip() in wanted]
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            found.append(read_text(path, errors="replace").splitlines()[0].partition(":")[2].strip())
    return ", ".join([*(found or [platform.machine(), platform.processor()]), f"{os.cpu_count()} cores"])


def cached_file(settings: Mapping[str, Any]) -> Path:
    """Return the file for a measurement with these settings: in `$ONNXPRUNE_CACHE`, or in the user's cache folder."""
    folder = os.environ.get("ONNXPRUNE_CACHE")
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        folder = str(Path(base) / "onnxprune" / "latency")
    key = hashlib.sha256(json.dumps([SCHEMA, settings], sort_keys=True).encode()).hexdigest()
    return Path(folder) / f"{key[:32]}.json"
