"""Solved layers and blocks in a folder, so that an interrupted recovery continues."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.files.atomic_files import atomic
from onnxprune._utils.files.input_files import GIB, read_bytes
from onnxprune._utils.files.journal import FORMAT, Journal
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Array
from onnxprune.recovery.reconstruct_blocks import BlockSolution
from onnxprune.recovery.reconstruct_weights import Solution

_LARGEST = 64 * GIB  # bytes of the arrays of one layer


@dataclass(frozen=True)
class _SolutionEntry:
    """Value of a journal entry: the file of the arrays, if any, its digest, and the errors before and after."""

    file: str | None
    digest: str | None
    errors: tuple[float, float] | tuple[float, float, float]


class SolutionStore:
    """A journal, and one file of arrays for each layer or block.

    Args:
        folder: Folder; None stores nothing.
        settings: Description of the run; another one in the journal is refused.
        restart: Discard an earlier run.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any], restart: bool) -> None:
        self.folder = folder
        if folder is not None:
            try:
                folder.mkdir(exist_ok=True)
            except OSError as err:
                raise OnnxPruneError(f"cannot create the folder {str(folder)!r}: {err.strerror or err}") from err
        self.journal = Journal(folder / "journal" if folder is not None else None, settings, restart=restart)

    def load_layer(self, stage: int, node: str) -> Solution | None:
        """Return the solution of an earlier run, or None."""
        found = self._load(f"{stage} {node}")
        if found is None:
            return None
        (before, after, *more), arrays = found
        ridge = more[0] if more else 0.0
        if arrays is None:
            return Solution(node, None, None, before, after, ridge)
        return Solution(node, arrays["matrix"], arrays.get("shift"), before, after, ridge)

    def save_layer(self, stage: int, solution: Solution) -> None:
        """Store a solution."""
        arrays = None
        if solution.matrix is not None:
            arrays = {"matrix": solution.matrix} | ({} if solution.shift is None else {"shift": solution.shift})
        self._save(f"{stage} {solution.node}", [solution.before, solution.after, solution.ridge], arrays)

    def load_block(self, stage: int, block: str) -> BlockSolution | None:
        """Return the solution of an earlier run, or None."""
        found = self._load(f"{stage} {block}")
        if found is None:
            return None
        (before, after, *_), arrays = found
        if arrays is None:
            return BlockSolution(block, None, before, after)
        names = [str(n) for n in arrays["names"]]
        return BlockSolution(block, {n: arrays[f"weight{i}"] for i, n in enumerate(names)}, before, after)

    def save_block(self, stage: int, solution: BlockSolution) -> None:
        """Store a solution."""
        arrays = None
        if solution.weights is not None:  # names of constants are not names of files
            arrays = {"names": np.array([*solution.weights])}
            arrays |= {f"weight{i}": v for i, v in enumerate(solution.weights.values())}
        self._save(f"{stage} {solution.block}", [solution.before, solution.after], arrays)

    def close(self) -> None:
        """Close the journal; remove the folder if it holds no solutions."""
        self.journal.close()
        if self.folder is not None and not self.journal.entries:
            self.journal.finish()
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _load(self, key: str) -> tuple[list[float], dict[str, Array] | None] | None:
        entry = self.journal.entries.get(key)
        if entry is None or self.folder is None:
            return None
        found = FORMAT.fields(_SolutionEntry, entry, f"{self.folder / 'journal'}, {key}")
        if found.file is None:
            return list(found.errors), None
        path = self.folder / Path(found.file).name
        fix = "start again with --restart"
        try:
            data = read_bytes(path, _LARGEST)
        except OSError as err:
            what = f"cannot read a layer of the interrupted run: {err.strerror or err}"
            raise OnnxPruneError(what, where=str(path), fix=fix) from err
        if hashlib.sha256(data).hexdigest() != found.digest:
            raise OnnxPruneError("a layer of the interrupted run was damaged or changed", where=str(path), fix=fix)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return list(found.errors), {n: arrays[n] for n in arrays.files}

    def _save(self, key: str, errors: list[float], arrays: Mapping[str, Array] | None) -> None:
        """Store arrays; the journal entry follows after they are on disk."""
        if self.folder is None or key in self.journal.entries:
            return
        name = digest = None
        if arrays is not None:
            name = f"{len(self.journal.entries):04d}.npz"
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)  # type: ignore[arg-type]  # mypy matches names to flags
            digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
            try:
                with atomic(self.folder / name) as file:
                    file.write(buffer.getbuffer())
            except OSError as err:
                raise OnnxPruneError(
                    f"cannot write a solved layer: {err.strerror or err}", where=str(self.folder),
                    fix="free disk space and run the same command again",
                ) from err  # fmt: skip
        self.journal.add(key, {"file": name, "errors": errors, "digest": digest})
