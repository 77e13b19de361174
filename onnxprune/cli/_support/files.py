"""Checks of the files that a command reads and writes, before it reads or writes any, and its lock on the output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from onnxprune._utils.files.atomic_files import check_outputs, is_stream, same_file
from onnxprune._utils.files.locks import only_run
from onnxprune.errors import OnnxPruneError

_BESIDE = (".data", ".journal", ".recovery", ".training", ".points")
"""Endings of what is written beside an output."""
_RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")
_LONGEST = 4096


def checked(params: Iterable[click.Parameter], values: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Check the files of a command; return a context that holds the lock on its output.

    Raises:
        OnnxPruneError: Two outputs are one file; an output is an input, or belongs to another output; files would be
            written beside a pipe or a device; another command is writing the output.
    """
    params = list(params)
    outputs = [
        (p.opts[-1], v) for p in params if getattr(p, "writes", False) and isinstance(v := values[p.name or ""], Path)
    ]
    inputs = list(_inputs(params, values))
    check_outputs(outputs, inputs)
    main = next((path for name, path in outputs if name == "--output"), None)
    if main is None:
        return nullcontext()
    others = [path for _, path in outputs if path is not main]
    for ending in _BESIDE:
        beside = main.with_name(main.name + ending) if main.name else main
        for path in (*others, *inputs):
            if beside is not main and same_file(path, beside):
                raise OnnxPruneError(
                    "this file is written beside the output", where=str(path), fix="name another output file"
                )
    resumable = any(p.name is not None and p.name.endswith("__restart") for p in params)
    return _locked(main, resumable=resumable and not (_optional(params, values)))


def _optional(params: list[click.Parameter], values: Mapping[str, Any]) -> bool:
    """Return whether the command keeps nothing to resume this time: `prune` without a search."""
    search = next((p.name for p in params if p.name is not None and p.name.endswith("__max_drop")), None)
    return search is not None and values[search] is None


def _inputs(params: Iterable[click.Parameter], values: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files that the values of a command name, other than its outputs."""
    for p in params:
        value = values.get(p.name or "")
        if getattr(p, "writes", False) or value is None:
            continue
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Path) or (isinstance(item, str) and 0 < len(item) < _LONGEST and os.path.isfile(item)):
                yield Path(item)


def _locked(output: Path, *, resumable: bool) -> AbstractContextManager[None]:
    if is_stream(output):
        if resumable:
            raise OnnxPruneError(
                f"{str(output)!r} is a pipe or a device, and files are written beside this output",
                fix="name a file",
            )
        return nullcontext()
    ranked = any(os.environ.get(name, "0") not in ("", "0") for name in _RANKS)  # one training in several processes
    if not output.name or ranked:
        return nullcontext()
    lock = output.with_name(f".{output.name}.lock")
    # A folder has a journal with a lock of its own, but a killed run that made the folder leaves this lock.
    if output.is_dir() and not lock.exists():
        return nullcontext()
    return only_run(
        lock, f"another command is writing {str(output)!r}",
        fix="wait for it, or use another -o",
    )  # fmt: skip
