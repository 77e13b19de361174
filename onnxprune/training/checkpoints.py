"""Checkpoints: written atomically after every epoch, read without unpickling objects, refused for another run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from onnxprune._utils.fields import Index
from onnxprune._utils.files.atomic_files import atomic
from onnxprune._utils.files.input_files import opened
from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError
from onnxprune.training._callbacks import Epoch, Recorder
from onnxprune.training._learner import Learner
from onnxprune.training._settings import different

LAST = "last.ckpt"
_HEADER = "onnxprune"
_SCHEMA = 1
FORMAT = Format("checkpoint", 0, _SCHEMA, fix="start anew with --restart")  # PyTorch reads the file


@dataclass(frozen=True)
class _RecorderState:
    """State of `Recorder`."""

    history: list[Epoch]
    best: Index
    stopped: str | None


@dataclass(frozen=True)
class _CheckpointHeader:
    """Header of a checkpoint, besides its schema.

    Attributes:
        run: Settings and inputs of the run; another run does not resume from it.
        lr: Learning rate at the start.
        recorder: State of the recorder.
        method: State of the training-time pruning method.
    """

    run: Mapping[str, Any]
    lr: float
    recorder: _RecorderState
    method: Mapping[str, Any] | None


class Checkpoints(Checkpoint):
    """Writes the best weights and the state for resuming after every epoch.

    The best weights are named by their epoch and older ones are removed last, so that the file `last.ckpt` refers to
    exists whenever the run is killed.

    Args:
        folder: where they go.
        recorder: whose history and weights are kept.
        header: what the run is of; another run does not resume from it.
    """

    def __init__(self, folder: Path, recorder: Recorder, header: Mapping[str, Any]) -> None:
        self.folder, self.recorder, self.header = folder, recorder, dict(header)

    def on_save_checkpoint(self, trainer: Any, learner: Learner, checkpoint: dict[str, Any]) -> None:
        """Add the header and the state of a method."""
        method = learner.aside.method
        checkpoint[_HEADER] = {
            "schema": _SCHEMA, "run": self.header, "lr": learner.lr, "recorder": self.recorder.state_dict(),
            "method": dict(method.state_dict()) if method is not None else None,
        }  # fmt: skip

    def on_load_checkpoint(self, trainer: Any, learner: Learner, checkpoint: dict[str, Any]) -> None:
        """Restore the state of a method."""
        method, state = learner.aside.method, checkpoint[_HEADER]["method"]
        if method is not None and state is not None:
            method.load_state_dict(state)

    def on_train_epoch_end(self, trainer: Any, learner: Learner) -> None:
        """Write the checkpoint; Lightning calls it after all other callbacks."""
        recorder = self.recorder
        done = len(recorder.history) - 1
        if trainer.is_global_zero and recorder.best == done and recorder.best_weights is not None:
            save_state(recorder.best_weights, self.folder / best_name(recorder.best))
        trainer.save_checkpoint(self.folder / LAST)
        if trainer.is_global_zero:
            for path in self.folder.glob(best_name("*")):
                if path.name != best_name(recorder.best):
                    path.unlink(missing_ok=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files written atomically and read without unpickling objects."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        save_state(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; `weights_only` is always on."""
        return load_state(Path(path))


def saved_run(
    folder: Path | None, run: Mapping[str, Any], *, resume: bool, restart: bool, rank: int
) -> dict[str, Any] | None:
    """Return the checkpoint to resume from, None to start anew.

    Args:
        folder: folder of the run; it may be missing.
        run: identity of the run.
        resume: require a checkpoint of this run.
        restart: discard a checkpoint.
        rank: rank of this process; only the first removes files.

    Returns:
        Header, and under "state_dict" the weights that were validated last.

    Raises:
        OnnxPruneError: the checkpoint is of another run or damaged, or `resume` is set and there is none.
    """
    if folder is None:
        if resume:
            raise OnnxPruneError("there is no folder to resume from")
        return None
    if folder.exists() and not folder.is_dir():
        raise OnnxPruneError(f"{str(folder)!r} is not a folder")
    path = folder / LAST
    if restart and rank == 0:
        remove_checkpoints(folder)
    if restart or not path.exists():
        if resume and not restart:
            raise OnnxPruneError("there is no checkpoint to resume from", where=str(path), fix="leave out --resume")
        return None
    whole = load_state(path)
    head = FORMAT.fields(_CheckpointHeader, whole.get(_HEADER), str(path))
    if not isinstance(whole.get("state_dict"), dict) or head.recorder.best >= len(head.recorder.history):
        raise FORMAT.error("it has no weights, or no history", str(path))
    if not _is_optimizer_state(whole.get("optimizer_states")):
        raise FORMAT.error("the state of its optimizer is damaged", str(path))
    if not _has_counters({k: whole.get(k) for k in ("epoch", "global_step", "loops")}):
        raise FORMAT.error("the counters of its progress are damaged", str(path))
    if not _is_plain(head.run):
        raise FORMAT.error("the record of its run is damaged", str(path))
    wrong = different(head.run, run)
    if "settings" in wrong and isinstance(head.run.get("settings"), dict):
        wrong.remove("settings")
        wrong += different(head.run["settings"], run["settings"])
    if wrong:
        raise OnnxPruneError(
            f"the checkpoint is of another run (not the same: {', '.join(wrong)})",
            where=str(path),
            fix="repeat its command, or discard it with --restart",
        )
    return {**whole[_HEADER], "state_dict": whole["state_dict"]}


def _is_plain(found: object) -> bool:
    """Return whether a value is text, numbers, flags and None, in lists and dicts at any depth."""
    if isinstance(found, dict):
        return all(map(_is_plain, found)) and all(map(_is_plain, found.values()))
    if isinstance(found, list | tuple):
        return all(map(_is_plain, found))
    return found is None or type(found) in (str, int, float, bool)


def _is_optimizer_state(found: object) -> bool:
    """Return whether a value is a list of states of optimizers, whose entries by parameter are dicts."""
    return isinstance(found, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("state"), dict)
        and all(isinstance(v, dict) for v in one["state"].values())
        for one in found
    )


_COUNTERS = frozenset(("epoch", "global_step", "ready", "started", "processed", "completed", "_batches_that_stepped"))


def _has_counters(progress: object, name: str = "") -> bool:
    """Return whether the state of Lightning's loops is plain, and its counters are integers from 0."""
    if name in _COUNTERS:
        return type(progress) is int and progress >= 0
    if isinstance(progress, dict):
        return all(_has_counters(value, key) for key, value in progress.items())
    return _is_plain(progress)


def make_folder(folder: Path) -> None:
    """Make a folder for checkpoints or logs at the first write.

    Raises:
        OnnxPruneError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OnnxPruneError(f"cannot make the folder {str(folder)!r}: {err.strerror or err}") from err


def best_name(epoch: int | str) -> str:
    """Return the file name of the best weights."""
    return f"best-{epoch}.pt"


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoint; logs are kept."""
    for path in [folder / LAST, *folder.glob(best_name("*")), *folder.glob(".*.tmp"), *folder.glob(".lr_find*")]:
        path.unlink(missing_ok=True)


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values and flush them to the disk.

    Raises:
        OnnxPruneError: it cannot be written.
    """
    try:
        with atomic(path) as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as err:  # PyTorch's zip writer raises RuntimeError on a full disk
        raise OnnxPruneError(
            f"cannot write the checkpoint: {getattr(err, 'strerror', None) or str(err).splitlines()[0]}",
            where=str(path),
            fix="free space, and continue from the last epoch with the same command",
        ) from err


def load_state(path: Path) -> dict[str, Any]:
    """Read a file of `save_state`; only tensors and plain values are unpickled.

    Raises:
        OnnxPruneError: there is no such file, or it is something else.
    """
    fix = "start anew with --restart"
    try:
        with opened(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles: an error follows
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as err:
        raise OnnxPruneError("the checkpoint is missing", where=str(path), fix=fix) from err
    except Exception as err:  # torch.load raises many kinds, of zip, pickle and its own
        raise OnnxPruneError(
            f"not a checkpoint, or a damaged one ({type(err).__name__})", where=str(path), fix=fix
        ) from err
    if not isinstance(state, dict):
        raise OnnxPruneError("not a checkpoint", where=str(path), fix=fix)
    return state
