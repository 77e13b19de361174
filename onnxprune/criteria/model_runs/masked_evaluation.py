"""Masked evaluation: a metric when channels of one group are removed, without a model for each trial.

- **Masks are inputs.** One session per group serves all of its trials (`_suffix_sessions`).
- **Prefix caching.** A mask changes nothing before the group's first consumer, so a session starts there, from
  activations that were computed once. They are advanced from group to group through fixed segments of the graph
  (`_activation_cache`): a trial gives the same number to the last bit whatever was measured before it.
- **Removal by steps.** Channels removed between trials (`MaskedEvaluator.remove`) are masked in every later segment, in
  the weights where possible. Groups removed in the order of their first consumer keep cached activations valid.
- **Batches in parallel.** Threads run whole batches beside each other, each on one core (`_batch_runner`): small layers
  gain more from it than from being split among threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.model_runs._activation_cache import ActivationCache
from onnxprune.criteria.model_runs._batch_runner import BatchRunner
from onnxprune.criteria.model_runs._suffix_sessions import SuffixSessions
from onnxprune.criteria.model_runs.masked_segments import MaskedSegmenter
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Feeds, Preprocess
from onnxprune.execution.sessions import provider_of
from onnxprune.execution.tasks.metrics import Metric, MetricValue, Samples, scores_of
from onnxprune.execution.tasks.task import BoundTask
from onnxprune.ir.model import Array
from onnxprune.plans import Plan, Removal

A = TypeVar("A")
Channels = npt.NDArray[np.int64]
Order = Channels

# Activations of one batch that fit the second-level cache make small convolutions a tenth to a half faster; a GPU needs
# much work at once.
_CACHE = {"cpu": 2 * 2**20, "cuda": 2**30}
_BATCHES = {"cpu": (8, 64), "cuda": (64, 512)}
CACHE_MEMORY = 2 * 2**30


def default_batch(segmenter: MaskedSegmenter, device: str = "cpu") -> int:
    """Return the samples per run: on the CPU those whose largest activation fits 2 MiB, 8 to 64; on CUDA 64 to 512."""
    kind = "cuda" if provider_of(device) == "CUDAExecutionProvider" else "cpu"
    return int(np.clip(_CACHE[kind] // max(1, segmenter.largest()), *_BATCHES[kind]))


def even_batch(samples: int, batch: int, threads: int) -> int:
    """Return the samples per run, at most `batch`, that give all threads the same work."""
    rounds = -(-samples // (batch * threads))
    return -(-samples // (rounds * threads))


class MaskedEvaluator:
    """Measures trials on one model, one data set, one device.

    Args:
        analysis: Coupling analysis of the model.
        orders: Channels of each group, first to be removed first; `measure` needs those of the groups it is given.
        data: Samples and labels.
        metric: Metric to measure.
        batch: Samples per run; 0: `default_batch`.
        threads: Batches at a time, each on one core; 0: as many as there are cores. On CUDA one after the other.
        cache_memory: Bytes that cached activations may take. If they do not fit, a share of the samples is cached at a
            time.
        strip: "auto" uses dedicated sessions where they are measured to be faster; "never", and for tests "folded" and
            "stripped", say which to use.
        task: Task that the metric belongs to; None for a general metric.
        known: Baseline and number of classes, if they were measured before: then only metrics that compare with the
            baseline's outputs run it again.

    Attributes:
        baseline: Metric of the original.
        classes: Number of the model's classes, where the metric needs labels.
        runner: Runs sessions on the batches.
        segmenter: Cuts the graph.
        cache: Activations at hand.

    Raises:
        OnnxPruneError: The data does not fit the model or the metric, or outputs are not finite.
    """

    def __init__(
        self,
        analysis: Analysis,
        orders: dict[str, Order],
        data: Data,
        metric: Metric,
        *,
        preprocess: Preprocess | None = None,
        batch: int = 0,
        threads: int = 0,
        device: str = "cpu",
        cache_memory: int = CACHE_MEMORY,
        strip: str = "auto",
        task: BoundTask | None = None,
        known: tuple[MetricValue, int] | None = None,
    ) -> None:
        self.analysis, self.orders, self.metric, self.strip = analysis, orders, metric, strip
        self.segmenter = MaskedSegmenter(analysis)
        how = preprocess or Preprocess()
        self.segmenter.set_sizes(Feeds(analysis.model, data, how, 1))
        batch = (task.batch if task is not None else None) or batch or default_batch(self.segmenter, device)
        self.feeds = Feeds(analysis.model, data, how, batch)
        self.outputs = metric.outputs_read(self.segmenter.outputs)
        output_bytes = self.segmenter.bytes_of(self.outputs)
        self.runner = BatchRunner(self.feeds, metric, output_bytes, device=device, threads=threads, task=task)
        self.cache = ActivationCache(self.runner, self.segmenter, cache_memory)
        self.current: SuffixSessions | None = None
        if known is not None and metric.needs == "labels":
            self.baseline, self.classes = known
        else:
            self.classes = 0
            self.baseline = self.joined(self._run_baseline())

    @property
    def provider(self) -> str:
        """Execution provider of the sessions; "" before the first one."""
        return self.runner.provider

    @property
    def removed(self) -> Plan:
        """Channels removed in all trials."""
        return self.segmenter.removed

    def remove(self, group: str, channels: Channels | Sequence[int]) -> None:
        """Remove channels of a group in all later trials, besides those removed before.

        Cached activations remain valid if they lie before the group's first consumer.
        """
        before = self.removed.groups.get(group)
        removed = sorted({int(c) for c in channels} | set(before.removed if before is not None else ()))
        removal = Removal(self.analysis[group].channels, tuple(removed))
        self.segmenter.removed = Plan("", {**self.removed.groups, group: removal})
        self.current = None
        self.cache.forget_after(self.segmenter.consumers[group].first)

    def joined(self, collected: Sequence[Any]) -> MetricValue:
        """Return the metric from what was kept of all batches."""
        return self.runner.joined(collected)

    def measure(self, group: str, removals: Sequence[int]) -> Iterator[tuple[int, MetricValue]]:
        """Measure trials of one group, and yield each as soon as it is known.

        Args:
            group: Name of the group.
            removals: Numbers of removed channels, in the order to be measured.

        Raises:
            OnnxPruneError: onnxruntime, the outputs or a user's metric fail; with the group and the count.
        """
        if not self.removed.groups and not self._reached(group):
            yield from ((n, self.baseline) for n in removals)
            return
        order = self.orders[group]
        yield from zip(removals, self._each(group, [order[:n] for n in removals], self.joined), strict=True)

    def samples(self, group: str, removals: Sequence[Channels | Sequence[int]]) -> Iterator[Samples]:
        """Measure trials of one group, and yield the numbers of all samples of each as soon as they are known.

        Args:
            group: Name of the group.
            removals: Channels that each trial removes; none: the reference of the others. Channels that are zero in all
                samples give exactly its numbers.

        Returns:
            float64 [samples] for each trial. The numbers of all of a group's trials are cached until the next group.

        Raises:
            OnnxPruneError: As `measure`; or the metric gives no number per sample.
        """
        if self.metric.samples is None:
            raise OnnxPruneError(f"the metric {self.metric.name!r} gives no number per sample")
        yield from self._each(group, [np.asarray(t, np.int64) for t in removals], np.concatenate)

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[range, list[Array]]]:
        """Yield tensors inside the model, without what is removed: the samples of each batch and the named tensors.

        Runs start at the cut whose activations are at hand, if all of the tensors are computed behind it.

        Args:
            names: Tensors that nodes compute; each [samples * k, ...].
        """
        segmenter, runner = self.segmenter, self.runner
        made = [segmenter.producer_index[n] for n in names]
        cached = self.cache.complete_before(min(made))
        start = 0 if cached is None else cached.node_index
        session = runner.session(segmenter.bare_segment(start, max(made) + 1, names))

        def run(i: int) -> tuple[range, list[Array]]:
            values = runner.to_device(session, i) if cached is None else cached.values[i]
            found = [o.numpy() for o in session.run_bound({n: values[n] for n in session.inputs}, names)]
            real, size = self.feeds.real(i), self.feeds.size(i)
            return self.feeds.span(i), [v[: len(v) // size * real] for v in found]

        for i in range(0, len(self.feeds), runner.threads):
            yield from runner.parallel(run, range(i, min(i + runner.threads, len(self.feeds))))

    def _run_baseline(self) -> list[Any]:
        """Run the model without what is removed; the first time keep outputs if the metric compares with them."""
        runner, model = self.runner, self.analysis.model
        if self.removed.groups:
            model = self.segmenter.bare_segment(0, len(self.segmenter.nodes), self.outputs)
        session = runner.session(model)
        collected = []
        for wave in runner.waves(range(len(self.feeds))):
            runs = runner.parallel(lambda i: runner.real(session.run(runner.feed(i), self.outputs), i), wave)
            if self.metric.needs != "labels" and len(runner.reference) < len(self.feeds):
                runner.reference += runs
            elif not self.classes and self.metric.classifies:
                self.classes = scores_of(runs[0][0], len(runs[0][0])).shape[1]
            collected.append(runner.reduced(runs, wave))
        return collected

    def _each(self, group: str, removals: Sequence[Channels], of: Callable[[list[Any]], A]) -> Iterator[A]:
        """Yield the function `of` of what was kept of all batches, for every trial."""
        first = self.segmenter.consumers[group].first
        if not self._reached(group):
            same = of(self._run_baseline())
            yield from (same for _ in removals)
            return
        chunks = self.cache.chunks(first)
        if self.current is None or self.current.group.name != group:
            self.current = None  # release its session before the next one is built
            self.current = SuffixSessions(
                self.runner, self.segmenter, self.analysis[group], self.outputs, strip=self.strip
            )
        collected: list[list[Any]] = [[] for _ in removals]
        for chunk in chunks:
            cached = self.cache.hold(first, chunk, self.current.session)
            for i, removed in enumerate(removals):
                try:
                    collected[i] += self.current.run(removed, cached)
                    done = of(collected[i]) if chunk is chunks[-1] else None
                except OnnxPruneError as err:
                    single = len(removed) == 1
                    which = f"without channel {removed[0]}" if single else f"with {len(removed)} channels removed"
                    where = f"group {group!r} {which}" + (f", {err.where}" if err.where else "")
                    raise OnnxPruneError(err.what, where=where, fix=err.fix) from err
                if done is not None:
                    collected[i] = []
                    yield done

    def _reached(self, group: str) -> bool:
        """Return whether a measured output is computed behind the group's first consumer."""
        return any(self.segmenter.producer_index[n] >= self.segmenter.consumers[group].first for n in self.outputs)
