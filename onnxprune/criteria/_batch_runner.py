"""Runs of sessions on all batches of a data set, in threads, and reduction of their outputs to a metric."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Feeds
from onnxprune.execution.metrics import Metric, MetricValue
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array

A = TypeVar("A")
B = TypeVar("B")

_WAVE = 16 * 2**20  # bytes of outputs that are reduced together


class BatchRunner:
    """Runs sessions on batches of samples, and reduces their outputs.

    Args:
        feeds: Batches of inputs.
        metric: Metric that the outputs are reduced to.
        output_bytes: Bytes of one sample's outputs.
        device: "auto", "cpu" or "cuda".
        threads: Batches at a time, each on one core; 0: as many as there are cores. On CUDA one after the other.

    Attributes:
        provider: Execution provider of the sessions; "" before the first one.
        reference: Outputs of the baseline by batch, where the metric compares with them.
    """

    def __init__(self, feeds: Feeds, metric: Metric, output_bytes: int, *, device: str, threads: int) -> None:
        self.feeds, self.metric, self.device = feeds, metric, device
        self.threads = threads or os.cpu_count() or 1
        self.provider = ""
        self.reference: list[list[Array]] = []
        self._output_bytes = output_bytes
        self._pool: ThreadPoolExecutor | None = None

    def session(self, model: Any) -> Session:
        """Return a session of a model on the runner's device."""
        session = Session(model, device=self.device, threads=1)
        if not self.provider:
            self.provider = session.provider
            if self.provider == "CPUExecutionProvider" and self.threads > 1:
                self._pool = ThreadPoolExecutor(self.threads, "onnxprune")
        return session

    def parallel(self, function: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """Return the function of every item, in order; threads share the work."""
        return list(map(function, items) if self._pool is None else self._pool.map(function, items))

    def waves(self, batches: range) -> list[range]:
        """Split batches into those whose outputs are reduced together, within memory and enough for all threads."""
        size = self._output_bytes * self.feeds.batch
        step = max(self.threads, _WAVE // max(1, size))
        return [batches[i : i + step] for i in range(0, len(batches), step)]

    def to_device(self, session: Session, batch: int) -> dict[str, Any]:
        """Return the inputs of a batch on a session's device."""
        return {n: session.to_device(v) for n, v in self.feeds[batch][0].items()}

    def real(self, outputs: Sequence[Array], batch: int) -> list[Array]:
        """Return outputs without those of the copies that fill up the last batch."""
        n, size = self.feeds.real(batch), self.feeds.size(batch)
        if n == size:
            return list(outputs)
        return [o[:n] if o.ndim and len(o) == size else o for o in outputs]

    def labels(self, batches: range) -> Any:
        """Return the labels of consecutive batches; None if the data has none."""
        y = self.feeds.data.y
        return None if y is None else y[self.feeds.span(batches[0]).start : self.feeds.span(batches[-1]).stop]

    def reduced(self, runs: Sequence[Sequence[Array]], batches: range) -> Any:
        """Return what is kept of consecutive batches: numbers per sample, or the outputs for a user's function."""
        if self.metric.samples is not None and len({tuple(o.shape[1:] for o in run) for run in runs}) > 1:
            # Outputs of samples of several sizes are measured batch by batch.
            return np.concatenate([self.reduced([run], batches[k : k + 1]) for k, run in enumerate(runs)])
        outputs = concatenated(runs)
        if self.metric.samples is None:
            return outputs
        reference = concatenated([self.reference[i] for i in batches]) if self.reference else ()
        return self.metric.samples(outputs, self.labels(batches), reference)

    def joined(self, collected: Sequence[Any]) -> MetricValue:
        """Return the metric from what was kept of all batches."""
        if self.metric.samples is not None:
            return self.metric.mean(np.concatenate(collected))
        return self.metric.of_all(concatenated(collected), self.feeds.data.y, concatenated(self.reference))


def concatenated(runs: Sequence[Sequence[Array]]) -> list[Array]:
    """Return the outputs of several batches as those of one.

    Raises:
        OnnxPruneError: The outputs of the batches have other shapes behind the first axis.
    """
    try:
        return [c[0] if len(c) == 1 else np.concatenate(c) for c in zip(*runs, strict=True)]
    except ValueError as err:
        shapes = [list(o.shape) for o in runs[0]]
        raise OnnxPruneError(
            f"outputs of different batches cannot be put together: {shapes} ({err})",
            fix="the first axis of every output must be the samples",
        ) from err
