"""Trials: what a metric becomes when channels of one group are not read any more, without building a model for each.

- **Masks are inputs.** One session per group serves all of its trials.
- **Prefix caching.** A mask changes nothing before the first node that reads the group, so a session starts there, from
  activations that were computed once. They are handed on from group to group through fixed pieces of the graph, always
  the same ones: a trial gives the same number to the last bit whatever was measured before it.
- **Removal by steps.** What is removed between trials (`MaskedEvaluator.remove`) is masked in every later piece, in the
  weights where that can be. Groups removed in the order of their first reader leave cached activations valid.
- **Batches in parallel.** Threads run whole batches beside each other, each on one core: small layers gain more from it
  than from being split among threads.
- **Exact shortcuts.** Channels that are zero in every sample change nothing when they go: trials that differ only in
  such channels share their outputs. Where it is measured to be faster, a session of a trial's own takes the place of
  the shared one: with the masks folded into the weights (the same sums, with zeros on the other side of a product), or
  stripped. Stripping takes sums in another order, so it serves only metrics that count decisions, and batches in which
  rounding could turn a decision are run masked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Analysis, Group, Kept
from onnxprune.criteria.masked_segments import MASK_INPUT, MaskedSegmenter
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Feeds, Preprocess
from onnxprune.execution.metrics import Metric, MetricValue, Samples, scores_of
from onnxprune.execution.sessions import Session, provider_of
from onnxprune.ir.model import Array
from onnxprune.plans import Plan, Removal

A = TypeVar("A")
B = TypeVar("B")
Channels = npt.NDArray[np.int64]
Order = Channels

# Activations of one batch that stay in the second-level cache make small convolutions a tenth to a half faster; a GPU
# wants much to do at once.
_CACHE = {"cpu": 2 * 2**20, "cuda": 2**30}
_BATCHES = {"cpu": (8, 64), "cuda": (64, 512)}
CACHE_MEMORY = 2 * 2**30
_WAVE = 16 * 2**20  # bytes of outputs that are looked at together
_PROBE = 3  # batches that a decision is measured on
# A session of a trial's own is built where what it should save is more than this many times what building costs.
_WORTH = 1.5


def default_batch(segmenter: MaskedSegmenter, device: str = "cpu") -> int:
    """Samples per run: on the CPU what keeps the largest activation within 2 MiB, 8 to 64; on CUDA 64 to 512."""
    kind = "cuda" if provider_of(device) == "CUDAExecutionProvider" else "cpu"
    return int(np.clip(_CACHE[kind] // max(1, segmenter.largest()), *_BATCHES[kind]))


def even_batch(samples: int, batch: int, threads: int) -> int:
    """Samples per run, at most `batch`, so that all threads have the same to do."""
    rounds = -(-samples // (batch * threads))
    return -(-samples // (rounds * threads))


class MaskedEvaluator:
    """Measures trials on one model, one data set, one device.

    Args:
        analysis: of the model.
        orders: per group its channels, first to go first; `measure` needs those of the groups it is asked for.
        data: samples and labels.
        metric: what is measured.
        batch: samples per run; 0: `default_batch`.
        threads: batches at a time, each on one core; 0: as many as there are cores. On CUDA one after the other.
        cache_memory: bytes that cached activations may take. What does not fit goes in pieces, a share of the samples
            at a time.
        strip: "auto" lets sessions of a trial's own stand in where that is measured faster; "never", and for tests
            "folded" and "stripped", say which.
        known: baseline and number of classes, if they were measured before: then only metrics that compare with the
            original's outputs run it again.

    Attributes:
        baseline: of the whole model.
        classes: of the model, where the metric needs labels.
        removed: what `remove` took.

    Raises:
        OnnxPruneError: data that does not fit the model or the metric, outputs that are not finite.
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
        known: tuple[MetricValue, int] | None = None,
    ) -> None:
        self.analysis, self.orders, self.metric = analysis, orders, metric
        self.device, self.strip = device, strip
        self.threads = threads or os.cpu_count() or 1
        self.segmenter = MaskedSegmenter(analysis)
        self.feeds = Feeds(
            analysis.model, data, preprocess or Preprocess(), batch or default_batch(self.segmenter, device)
        )
        self.cache_memory = cache_memory
        # Labels and scores of classes come from the first output; distances look at all of them.
        count = 1 if metric.needs == "labels" or metric.name == "kl" else None
        self.outputs = self.segmenter.outputs[:count]
        self.cuts = sorted({r.first for r in self.segmenter.consumers.values()} - {len(self.segmenter.nodes)})
        self.segments: dict[int, Session] = {}  # by place they lead to
        self.reference: list[list[Array]] = []
        self.pool: ThreadPoolExecutor | None = None
        self.cached: _CachedActivations | None = None
        self.current: _SuffixSessions | None = None
        self.provider = ""
        if known is not None and metric.needs == "labels":
            self.baseline, self.classes = known
        else:
            self.classes = 0
            self.baseline = self.joined(self._run_baseline())

    @property
    def removed(self) -> Plan:
        """Channels that are gone in all trials."""
        return self.segmenter.removed

    def remove(self, group: str, channels: Channels | Sequence[int]) -> None:
        """Takes channels of a group out of all trials from here on, besides those that were taken before.

        Cached activations stay where they lie before the group's first reader.
        """
        node_index = self.segmenter.consumers[group].first
        before = self.removed.groups.get(group)
        gone = sorted({int(c) for c in channels} | set(before.removed if before is not None else ()))
        removal = Removal(self.analysis[group].channels, tuple(gone))
        self.segmenter.removed = Plan("", {**self.removed.groups, group: removal})
        self.current = None
        self.segments = {p: s for p, s in self.segments.items() if p <= node_index}
        if self.cached is not None and self.cached.node_index > node_index:
            self.cached = None

    def _run_baseline(self) -> list[Any]:
        """Runs the model without what is removed; the first time keeps outputs where the metric compares with them."""
        model = self.analysis.model
        if self.removed.groups:
            model = self.segmenter.bare_segment(0, len(self.segmenter.nodes), self.outputs)
        session = self._session(model)
        collected = []
        for wave in self._waves(range(len(self.feeds))):
            runs = self.parallel(lambda i: self._real(session.run(self.feeds[i][0], self.outputs), i), wave)
            if self.metric.needs != "labels" and len(self.reference) < len(self.feeds):
                self.reference += runs
            elif not self.classes:
                self.classes = scores_of(runs[0][0], len(runs[0][0])).shape[1]
            collected.append(self._numbers(runs, wave))
        return collected

    def _waves(self, batches: range) -> list[range]:
        """Consecutive batches whose outputs are looked at together: few enough for memory, enough for all threads."""
        size = self.segmenter.bytes_of(self.outputs) * self.feeds.batch
        step = max(self.threads, _WAVE // max(1, size))
        return [batches[i : i + step] for i in range(0, len(batches), step)]

    def parallel(self, function: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """The function of every item, in their order; threads share the work."""
        return list(map(function, items) if self.pool is None else self.pool.map(function, items))

    def labels(self, batches: range) -> Any:
        """Of consecutive batches; None where the data has none."""
        y = self.feeds.data.y
        return None if y is None else y[batches[0] * self.feeds.batch : (batches[-1] + 1) * self.feeds.batch]

    def _session(self, model: Any) -> Session:
        session = Session(model, device=self.device, threads=1)
        if not self.provider:
            self.provider = session.provider
            if self.provider == "CPUExecutionProvider" and self.threads > 1:
                self.pool = ThreadPoolExecutor(self.threads, "onnxprune")
        return session

    def _real(self, outputs: Sequence[Array], i: int) -> list[Array]:
        """Outputs without those of the copies that fill up the last batch."""
        n = self.feeds.real(i)
        if n == self.feeds.batch:
            return list(outputs)
        return [o[:n] if o.ndim and len(o) == self.feeds.batch else o for o in outputs]

    def _numbers(self, runs: Sequence[Sequence[Array]], batches: range) -> Any:
        """What is kept of consecutive batches: numbers per sample, or the outputs for a user's function."""
        outputs = _together(runs)
        if self.metric.samples is None:
            return outputs
        reference = _together([self.reference[i] for i in batches]) if self.reference else ()
        return self.metric.samples(outputs, self.labels(batches), reference)

    def joined(self, collected: Sequence[Any]) -> MetricValue:
        """The metric from what was kept of all batches."""
        if self.metric.samples is not None:
            return self.metric.mean(np.concatenate(collected))
        return self.metric.of_all(_together(collected), self.feeds.data.y, _together(self.reference))

    def measure(self, group: str, removals: Sequence[int]) -> Iterator[tuple[int, MetricValue]]:
        """Measures trials of one group, each as soon as it is known.

        Args:
            group: its name.
            removals: how many channels go, in the order to be measured.

        Raises:
            OnnxPruneError: onnxruntime, the outputs or a user's metric fail; with the group and the count.
        """
        if not self.removed.groups and not self._reached(group):
            yield from ((n, self.baseline) for n in removals)
            return
        order = self.orders[group]
        yield from zip(removals, self._each(group, [order[:n] for n in removals], self.joined), strict=True)

    def samples(self, group: str, removals: Sequence[Channels | Sequence[int]]) -> Iterator[Samples]:
        """Measures trials of one group, each as soon as it is known, and gives the numbers of all samples.

        Args:
            group: its name.
            removals: for each the channels that go; none: what the others are to be compared with. Channels that are
                zero in all samples give exactly its numbers.

        Returns:
            float64 [samples] for each trial. The numbers of all of a group's trials are held until the next group.

        Raises:
            OnnxPruneError: as `measure`; the metric gives no number per sample.
        """
        if self.metric.samples is None:
            raise OnnxPruneError(f"the metric {self.metric.name!r} gives no number per sample")
        yield from self._each(group, [np.asarray(t, np.int64) for t in removals], np.concatenate)

    def _each(self, group: str, removals: Sequence[Channels], of: Callable[[list[Any]], A]) -> Iterator[A]:
        """What `of` makes of what was kept of all batches, for every trial."""
        reads = self.segmenter.consumers[group]
        if not self._reached(group):
            same = of(self._run_baseline())
            yield from (same for _ in removals)
            return
        chunks = self._chunks(reads.first)
        if self.current is None or self.current.group.name != group:
            self.current = None  # its session goes before the next one comes
            self.current = _SuffixSessions(self, self.analysis[group])
        collected: list[list[Any]] = [[] for _ in removals]
        for chunk in chunks:
            cached = self._cache(reads.first, chunk)
            for i, gone in enumerate(removals):
                try:
                    collected[i] += self.current.run(gone, cached)
                    done = of(collected[i]) if chunk is chunks[-1] else None
                except OnnxPruneError as err:
                    which = f"with {len(gone)} channels removed" if len(gone) != 1 else f"without channel {gone[0]}"
                    where = f"group {group!r} {which}" + (f", {err.where}" if err.where else "")
                    raise OnnxPruneError(err.what, where=where, fix=err.fix) from err
                if done is not None:
                    collected[i] = []
                    yield done

    def _reached(self, group: str) -> bool:
        """Whether anything that is measured comes after the group's first reader."""
        return any(self.segmenter.producer_index[n] >= self.segmenter.consumers[group].first for n in self.outputs)

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[range, list[Array]]]:
        """Tensors inside the model, without what is removed: batch by batch its samples and the named tensors.

        It starts at the cut where activations are at hand, if all of the tensors come after it.

        Args:
            names: of tensors that nodes make; each [samples * k, ...].
        """
        segmenter, cached = self.segmenter, self.cached
        made = [segmenter.producer_index[n] for n in names]
        whole = cached is not None and len(cached.chunk) == len(self.feeds) and cached.node_index <= min(made)
        at_hand = cached if whole else None
        start = 0 if at_hand is None else at_hand.node_index
        session = self._session(segmenter.bare_segment(start, max(made) + 1, names))

        def run(i: int) -> tuple[range, list[Array]]:
            values = self._to_device(session, i) if at_hand is None else at_hand.values[i]
            found = [o.numpy() for o in session.run_bound({n: values[n] for n in session.inputs}, names)]
            real, first = self.feeds.real(i), i * self.feeds.batch
            size = self.feeds.fixed or real
            return range(first, first + real), [v[: len(v) // size * real] for v in found]

        for i in range(0, len(self.feeds), self.threads):
            yield from self.parallel(run, range(i, min(i + self.threads, len(self.feeds))))

    def _to_device(self, session: Session, i: int) -> dict[str, Any]:
        """Batch i on a session's device."""
        return {n: session.to_device(v) for n, v in self.feeds[i][0].items()}

    def _chunks(self, node_index: int) -> list[range]:
        """Batches in as few shares as the memory for cached activations allows."""
        size = self.segmenter.bytes_of(self.segmenter.live(node_index)) * self.feeds.batch
        step = max(1, min(len(self.feeds), self.cache_memory // max(1, size)))
        return [range(i, min(i + step, len(self.feeds))) for i in range(0, len(self.feeds), step)]

    def _cache(self, node_index: int, chunk: range) -> _CachedActivations:
        """Activations of some batches at a cut: from those at an earlier cut where they are at hand."""
        cached = self.cached
        if cached is None or cached.chunk != chunk or cached.node_index > node_index:
            self.cached = None
            cached = _CachedActivations(0, chunk, [None] * len(chunk))
        if cached.node_index != node_index or cached.values[0] is None:
            route = [p for p in self.cuts if cached.node_index < p <= node_index]
            sessions = self._route(cached.node_index, route)
            before = cached.values
            cached.values = []  # what a batch comes from goes as soon as it is there
            advanced = self.parallel(lambda k: self._advance(before, k, chunk[k], sessions), range(len(chunk)))
            cached.values = advanced
            cached = _CachedActivations(node_index, chunk, cached.values)
            if len(chunk) == len(self.feeds):  # nobody comes back to these
                self.segments = {p: s for p, s in self.segments.items() if p > node_index}
        self.cached = cached
        return cached

    def _route(self, start: int, places: Sequence[int]) -> list[tuple[int, int, Session]]:
        """The pieces of the graph from one cut to the next."""
        out = []
        for node_index in places:
            if node_index not in self.segments:
                names = [n for n in self.segmenter.live(node_index) if self.segmenter.producer_index[n] >= start]
                self.segments[node_index] = self._session(self.segmenter.bare_segment(start, node_index, names))
            out.append((start, node_index, self.segments[node_index]))
            start = node_index
        return out

    def _advance(
        self, cached: list[dict[str, Any] | None], k: int, i: int, route: Sequence[tuple[int, int, Session]]
    ) -> dict[str, Any]:
        """The live tensors of batch i at the end of a route."""
        values, cached[k] = cached[k], None
        if values is None:
            session = route[0][2] if route else self._current().session
            values = self._to_device(session, i)
        for start, node_index, session in route:
            live = self.segmenter.live(node_index)
            names = [n for n in live if self.segmenter.producer_index[n] >= start]
            made = session.run_bound({n: values[n] for n in session.inputs}, names) if names else []
            values = {n: values[n] for n in live if n not in names} | dict(zip(names, made, strict=True))
        return values

    def _current(self) -> _SuffixSessions:
        assert self.current is not None
        return self.current


def _together(runs: Sequence[Sequence[Array]]) -> list[Array]:
    """The outputs of several batches as those of one."""
    try:
        return [c[0] if len(c) == 1 else np.concatenate(c) for c in zip(*runs, strict=True)]
    except ValueError as err:
        shapes = [list(o.shape) for o in runs[0]]
        raise OnnxPruneError(
            f"outputs of different batches cannot be put together: {shapes} ({err})",
            fix="the first axis of every output must be the samples",
        ) from err


@dataclass
class _CachedActivations:
    """Live tensors of some batches at a cut, on the device."""

    node_index: int
    chunk: range
    values: list[Any]

    def batches(self, which: range) -> range:
        """Numbers of batches by their places here."""
        return self.chunk[which.start : which.stop]


@dataclass
class _DedicatedSession:
    """A session of a trial's own: what building it costs and what a batch then saves, in seconds.

    Stripped, what is saved grows with the channels that go; folded, it is the same for all trials.
    """

    kind: str  # "folded" or "stripped"
    setup: float
    saves: float  # per batch; stripped: per batch and channel

    def worth(self, removed: int, batches: int) -> float:
        """Seconds that a trial should save, with room for a wrong guess."""
        return self.saves * (removed if self.kind == "stripped" else 1) * batches - _WORTH * self.setup

    def learn(self, gain: float, removed: int) -> None:
        """Takes over a newer measurement."""
        self.saves = gain / removed if self.kind == "stripped" else gain


class _SuffixSessions:
    """The sessions of one group, from its first reader to the end."""

    def __init__(self, evaluator: MaskedEvaluator, group: Group) -> None:
        self.evaluator, self.group = evaluator, group
        segmenter = evaluator.segmenter
        node_index = segmenter.consumers[group.name].first
        self.outputs = [n for n in evaluator.outputs if segmenter.producer_index[n] >= node_index]
        self.session = evaluator._session(segmenter.masked(group.name, self.outputs))
        self.seconds: list[float] = []  # per batch, masked
        self.alternatives: list[_DedicatedSession] | None = None  # sessions of a trial's own; None: not tried yet
        self.memory: dict[bytes, list[Any]] = {}  # what was kept of each batch, by the channels that really go
        self.of: _CachedActivations | None = None
        self.dead: Kept = np.zeros(evaluator.analysis.count, bool)

    def run(self, removed: Channels, cached: _CachedActivations) -> list[Any]:
        """What is kept of every held batch when some of the group's channels go."""
        if self.of is not cached:
            self.of, self.memory, self.dead = cached, {}, self._dead(cached)
        kept = self._kept(removed)
        key = np.packbits(kept | self.dead).tobytes()
        if key not in self.memory:
            self.memory[key] = self._run(removed, kept, cached)
        return self.memory[key]

    def _kept(self, removed: Channels) -> Kept:
        kept = np.ones(self.evaluator.analysis.count, bool)
        kept[self.group.components[removed]] = False
        return kept

    def _dead(self, cached: _CachedActivations) -> Kept:
        """Components that are zero in all held samples wherever they are read; none where that cannot be seen."""
        analysis, reads = self.evaluator.analysis, self.evaluator.segmenter.consumers[self.group.name]
        none: Kept = np.zeros(analysis.count, bool)
        on_host = self.session.provider == "CPUExecutionProvider"
        if not on_host or any(name not in cached.values[0] for name, _ in reads.contractions):
            return none
        dead = none.copy()
        dead[self.group.components] = True
        for name, c in reads.contractions:
            components = analysis.component[c.labels]
            for values in cached.values:
                open_ = np.flatnonzero(dead[components])
                if not len(open_):
                    break
                x = np.take(values[name].numpy(), open_, c.axis)
                others = tuple(a for a in range(x.ndim) if a != c.axis)
                dead[components[open_[(x != 0).any(others)]]] = False
        return dead

    def _run(self, removed: Channels, kept: Kept, cached: _CachedActivations) -> list[Any]:
        if self.alternatives is None:
            self.alternatives = self._measure_alternatives(cached)
        count = len(removed)
        alternative = max(self.alternatives, key=lambda w: w.worth(count, len(cached.chunk)), default=None)
        if alternative is None or alternative.worth(count, len(cached.chunk)) <= 0:
            return self._masked(kept, cached, range(len(cached.chunk)))
        session = self._built(alternative, removed)
        first = min(len(cached.chunk), max(_PROBE, self.evaluator.threads))
        out, seconds = self._own(alternative, session, kept, cached, range(first))
        rest = range(first, len(cached.chunk))
        if self.evaluator.strip == "auto":
            gain = float(np.median(self.seconds)) - float(np.median(seconds))
            alternative.learn(gain, count)
            if gain <= 0:
                return out + self._masked(kept, cached, rest)
        return out + self._own(alternative, session, kept, cached, rest)[0]

    def _own(
        self, alternative: _DedicatedSession, session: Session, kept: Kept, cached: _CachedActivations, which: range
    ) -> tuple[list[Any], list[float]]:
        """Batches run in a session of the trial's own, and again masked where rounding could turn a decision."""
        undecided = self.evaluator.metric.undecided if alternative.kind == "stripped" else None
        out, seconds = [], []
        for wave in self.evaluator._waves(which):
            runs, took = self._outputs(session, cached, wave)
            seconds += took
            batches = cached.batches(wave)
            if undecided is not None:
                scores = _together(runs)[0]
                near = np.flatnonzero(undecided(scores_of(scores, len(scores)), self.evaluator.labels(batches)))
                for k in np.unique(near // self.evaluator.feeds.batch).tolist():
                    runs[k] = self._outputs(self.session, cached, wave[k : k + 1], self._mask(kept))[0][0]
            out.append(self.evaluator._numbers(runs, batches))
        return out, seconds

    def _measure_alternatives(self, cached: _CachedActivations) -> list[_DedicatedSession]:
        """Other ways to run a trial, with what they save: measured with nearly all channels gone."""
        strip, removed = self.evaluator.strip, bool(self.evaluator.removed.groups)
        if strip in ("stripped", "folded"):
            return [_DedicatedSession("folded" if removed else strip, 0.0, np.inf)]
        first = max(_PROBE, self.evaluator.threads)
        # Too little to run cannot win back what setting up costs; on CUDA kernels are chosen anew for every session.
        if strip == "never" or len(cached.chunk) < 4 * first or self.session.provider != "CPUExecutionProvider":
            return []
        most = self.group.channels - max(1, self.group.channels // 20)
        gone = np.arange(most)
        self._masked(self._kept(gone), cached, range(first))
        slow = min(self.seconds)
        alternatives = []
        for kind in (
            ("folded", "stripped") if self.evaluator.metric.undecided is not None and not removed else ("folded",)
        ):
            alternative = _DedicatedSession(kind, 0.0, 0.0)
            start = time.perf_counter()
            session = self._built(alternative, gone)
            alternative.setup = time.perf_counter() - start
            alternative.learn(slow - min(self._outputs(session, cached, range(first))[1]), most)
            alternatives.append(alternative)
        return alternatives

    def _built(self, alternative: _DedicatedSession, removed: Channels) -> Session:
        name, segmenter = self.group.name, self.evaluator.segmenter
        plan = Plan("", {name: Removal(self.group.channels, tuple(sorted(removed.tolist())))})
        build = segmenter.stripped if alternative.kind == "stripped" else segmenter.folded
        return self.evaluator._session(build(name, plan, self.outputs))

    def _masked(self, kept: Kept, cached: _CachedActivations, which: range) -> list[Any]:
        out = []
        for wave in self.evaluator._waves(which):
            runs, seconds = self._outputs(self.session, cached, wave, self._mask(kept))
            self.seconds += seconds
            out.append(self.evaluator._numbers(runs, cached.batches(wave)))
        return out

    def _mask(self, kept: Kept) -> dict[str, Any]:
        return {MASK_INPUT: self.session.to_device(kept.astype(np.float32))}

    def _outputs(
        self, session: Session, cached: _CachedActivations, which: range, more: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[list[list[Array]], list[float]]:
        """All outputs of some batches, those that a mask cannot reach included; and the seconds each batch took."""

        def run(k: int) -> tuple[list[Array], float]:
            start = time.perf_counter()
            values = {**cached.values[k], **more}
            made = session.run_bound({n: values[n] for n in session.inputs}, self.outputs)
            found = dict(zip(self.outputs, made, strict=True))
            outputs = [(found[n] if n in found else values[n]).numpy() for n in self.evaluator.outputs]
            return self.evaluator._real(outputs, cached.chunk[k]), time.perf_counter() - start

        runs = self.evaluator.parallel(run, which)
        return [outputs for outputs, _ in runs], [seconds for _, seconds in runs]
