"""Guards around Lightning: silence its advice and convert its exceptions to errors with a remedy."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from onnxprune._utils.files.locks import only_run
from onnxprune.errors import OnnxPruneError

P = ParamSpec("P")
T = TypeVar("T")
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_GONE = ("Connection reset by peer", "Connection closed by peer", "remote process exited")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice and banners; errors are raised, not logged."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Lightning uses a class that newer PyTorch deprecates.
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            # In half precision the first steps may be skipped, until their gradients no longer overflow.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
            # Batches are slices of memory: worker processes would cost more than they save.
            warnings.filterwarnings("ignore", message=r"The '\w+' does not have many workers")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def known_errors() -> Iterator[None]:
    """Convert exceptions of PyTorch and Lightning for user mistakes to errors with a remedy."""
    handler = signal.getsignal(signal.SIGINT)
    memory = OnnxPruneError("not enough memory on the device", fix="a smaller --batch, or --precision bf16")
    try:
        yield
    except torch.cuda.OutOfMemoryError as err:
        raise memory from err
    except OnnxPruneError as err:
        # A loader's worker process sends its traceback as text; the message is at the end.
        name = f"{OnnxPruneError.__name__}: "
        if "DataLoader worker" not in err.what or name not in err.what:
            raise
        raise OnnxPruneError(err.what.rpartition(name)[2].strip()) from err
    except SIGTERMException as err:
        raise OnnxPruneError(
            "ended from outside (SIGTERM)", fix="the same command continues from the last epoch"
        ) from err
    except SystemExit as err:
        # Lightning turns Ctrl-C into an exit and switches Ctrl-C off.
        if isinstance(err.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from err
        raise
    except (RuntimeError, ValueError) as err:
        text = str(err)
        if any(sign in text for sign in _MEMORY):
            raise memory from err
        if any(sign in text for sign in _GONE):
            raise OnnxPruneError(
                "another process of this training has ended", fix="see its message; the same command continues"
            ) from err
        if "Expected more than 1 value per channel" in text:
            raise OnnxPruneError(
                "BatchNorm needs more than one sample per step", fix="--batch 2 or more, or --no-insert-batchnorm"
            ) from err
        raise


def alone(train: Callable[P, T]) -> Callable[P, T]:
    """Let only one training at a time work in the argument `folder`; its other processes are not locked out."""

    @wraps(train)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        folder = kwargs.get("folder")
        if not isinstance(folder, Path) or process_rank():
            return train(*args, **kwargs)
        lock = folder.with_name(f".{folder.name}.lock")
        with only_run(lock, "another training is working in this folder", "wait for it, or use another -o"):
            return train(*args, **kwargs)

    return run


def process_rank() -> int:
    """Return the rank of this process, 0 in the one that writes and prints.

    Lightning reads it from the variables of torchrun, SLURM and its own launcher; before a Trainer exists, the first
    process of another machine is identified by that machine's number.
    """
    machine = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return int(getattr(rank_zero_only, "rank", 0) or 0) or (int(machine) if machine.isdecimal() else 0)


class NullStream:
    """Stream that discards its input."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False
