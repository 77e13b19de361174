"""Runs of sessions on all batches of a data set, in threads, and reduction of their outputs to a metric."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from onnxprune.execution.data import Feeds
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import Metric, MetricValue, Outcome, Targets, all_targets
from onnxprune.execution.tasks.task import BoundTask
from onnxprune.ir.model import Array

A = TypeVar("A")
B = TypeVar("B")

_WAVE = 16 * 2**20  # bytes of outputs that are reduced together


class BatchRunner:
    """Runs sessions on batches of samples, and reduces their outputs.

    Args:
        feeds: Batches of inputs.
        metric: Metric that the outputs are reduced to.
        task: Task that the metric belongs to; None for a general metric.
        output_bytes: Bytes of one sample's outputs.
        device: "auto", "cpu" or "cuda".
        threads: Batches at a time, each on one core; 0: as many as there are cores. On CUDA one after the other.

    Attributes:
        provider: Execution provider of the sessions; "" before the first one.
        reference: Outputs of the baseline by batch, where the metric compares with them.
    """

    def __init__(
        self, feeds: Feeds, metric: Metric, output_bytes: int, *, device: str, threads: int,
        task: BoundTask | None = None,
    ) -> None:  # fmt: skip
        self.feeds, self.metric, self.device, self.task = feeds, metric, device, task
        # Targets and sizes of images by batch: batches are prepared once for each cut of the graph, not for each trial.
        self._targets: dict[int, tuple[Targets, tuple[int, int] | None]] = {}
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

    def feed(self, batch: int) -> dict[str, Array]:
        """Return the inputs of a batch; its targets are kept."""
        feed, targets = self.feeds[batch]
        self._targets[batch] = targets, self.task.size(feed) if self.task is not None else None
        return feed

    def to_device(self, session: Session, batch: int) -> dict[str, Any]:
        """Return the inputs of a batch on a session's device."""
        return {n: session.to_device(v) for n, v in self.feed(batch).items()}

    def real(self, outputs: Sequence[Array], batch: int) -> list[Array]:
        """Return outputs without those of the copies that fill up the last batch, for metrics that count rows."""
        n, size = self.feeds.real(batch), self.feeds.size(batch)
        if n == size or self.metric.collect is not None:
            return list(outputs)
        return [o[:n] if o.ndim and len(o) == size else o for o in outputs]

    def labels(self, batches: range) -> Any:
        """Return the targets of consecutive batches; None if the data has none."""
        return all_targets([self._targets_of(i)[0] for i in batches])

    def _targets_of(self, batch: int) -> tuple[Targets, tuple[int, int] | None]:
        if batch not in self._targets:
            self.feed(batch)
        return self._targets[batch]

    def reduced(self, runs: Sequence[Sequence[Array]], batches: range) -> Any:
        """Return what is kept of consecutive batches; see `Metric.reduced`."""
        outcomes = []
        for i, outputs in zip(batches, runs, strict=True):
            targets, size = self._targets_of(i)
            reference = self.reference[i] if self.reference else ()
            outcomes.append(Outcome(outputs, targets, reference, self.feeds.real(i), size, self.feeds.size(i)))
        return self.metric.reduced(outcomes)

    def joined(self, collected: Sequence[Any]) -> MetricValue:
        """Return the metric from what was kept of all batches."""
        return self.metric.joined(collected)
