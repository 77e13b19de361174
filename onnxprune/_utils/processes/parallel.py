"""Parallel work over processes or machines with joblib; tasks of a lost worker are repeated by another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from onnxprune.errors import OnnxPruneError, unknown

BACKENDS = ("loky", "dask", "ray")
_RETRIES = 3  # consecutive failures without a result between them


def spread(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    jobs: int,
    backend: str = "loky",
    address: str | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield (task index, result) of `function(task)` for every task, as results arrive.

    Args:
        function: Function to run in workers.
        tasks: Arguments of the calls.
        jobs: Number of workers.
        backend: "loky" (processes on this machine), "dask" or "ray" (a cluster).
        address: Address of the cluster; without one, dask and ray start workers on this machine.

    Raises:
        OnnxPruneError: Raised by the function, or workers are lost repeatedly.
    """
    left = dict(enumerate(tasks))
    failures = 0
    while left:
        try:
            with _cluster(backend, jobs, address):
                for i, result in _results(function, list(left.items()), jobs):
                    failures = 0
                    del left[i]
                    yield i, result
        except OnnxPruneError:
            raise
        except Exception as err:  # backends raise different exceptions for a dead worker
            failures += 1
            if failures > _RETRIES:
                why = f"{type(err).__name__}: {str(err).partition(chr(10))[0]}"
                raise OnnxPruneError(
                    f"workers failed repeatedly ({why})",
                    fix="use fewer --jobs or a smaller --batch if memory is short; finished points are kept",
                ) from err


def _results(function: Callable[[Any], Any], tasks: list[tuple[int, Any]], jobs: int) -> Iterator[tuple[int, Any]]:
    from joblib import Parallel, delayed

    calls = (delayed(_numbered)(function, i, task) for i, task in tasks)
    try:
        parallel = Parallel(n_jobs=jobs, batch_size=1, pre_dispatch="2*n_jobs", return_as="generator_unordered")
    except ValueError:  # the backend returns complete lists only (ray)
        with Parallel(n_jobs=jobs, batch_size=1) as plain:  # the same workers in every round
            for start in range(0, len(tasks), 4 * jobs):
                yield from plain(delayed(_numbered)(function, i, t) for i, t in tasks[start : start + 4 * jobs])
        return
    yield from parallel(calls)


def _numbered(function: Callable[[Any], Any], i: int, task: Any) -> tuple[int, Any]:
    _watch_parent()
    return i, function(task)


_watching = False


def _watch_parent() -> None:
    """Exit this worker when its parent is gone: release the memory if the parent is killed."""
    global _watching
    if _watching or multiprocessing.parent_process() is None:
        return
    _watching = True
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _cluster(backend: str, jobs: int, address: str | None) -> Iterator[None]:
    """Configure joblib's backend for the duration of the block."""
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if backend == "loky" and address:
        raise OnnxPruneError("--address needs a cluster backend", fix="add --backend dask or --backend ray")
    try:
        from joblib import parallel_config
    except ImportError as err:
        raise OnnxPruneError(f"--jobs needs joblib ({err})", fix="pip install joblib") from err
    start = {"loky": _loky, "dask": _dask, "ray": _ray}[backend]
    with start(jobs, address), parallel_config(backend=backend, n_jobs=jobs):
        yield


@contextlib.contextmanager
def _loky(jobs: int, address: str | None) -> Iterator[None]:
    with warnings.catch_warnings():
        # loky replaces workers whose memory has grown; here it grows as intended, by cached activations.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        yield


def _dask(jobs: int, address: str | None) -> AbstractContextManager[Any]:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as err:
        raise OnnxPruneError(f"--backend dask needs dask ({err})", fix="pip install 'onnxprune[dask]'") from err
    stack = contextlib.ExitStack()
    try:
        where = address or stack.enter_context(
            LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
        )
        stack.enter_context(Client(where, timeout=30))
    except (OSError, TimeoutError, ValueError) as err:
        stack.close()
        raise OnnxPruneError(f"cannot reach dask at {address!r}: {err}", fix="check --address") from err
    return stack


def _ray(jobs: int, address: str | None) -> AbstractContextManager[Any]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as err:
        raise OnnxPruneError(f"--backend ray needs ray ({err})", fix="pip install 'onnxprune[ray]'") from err
    stack = contextlib.ExitStack()
    if not ray.is_initialized():
        try:
            ray.init(
                address=address, **({} if address else {"num_cpus": jobs}), log_to_driver=False, logging_level="ERROR"
            )
        except (ConnectionError, ValueError, RuntimeError) as err:
            raise OnnxPruneError(f"cannot reach ray at {address!r}: {err}", fix="check --address") from err
        stack.callback(ray.shutdown)
    register_ray()
    return stack
