"""Sessions of one group, from its first consumer to the outputs: a masked one for all trials, and dedicated ones.

Channels that are zero in every sample change nothing when they are removed: trials that differ only in such channels
share their outputs. Where it is measured to be faster, a dedicated session replaces the masked one: with the masks
folded into the weights (the same sums, with zeros on the other side of a product), or stripped. Stripping takes sums
in another order, so it serves only metrics that count decisions, and batches in which rounding could turn a decision
are run masked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Group, Kept
from onnxprune.criteria.model_runs._activation_cache import CachedActivations
from onnxprune.criteria.model_runs._batch_runner import BatchRunner
from onnxprune.criteria.model_runs.masked_segments import MASK_INPUT, MaskedSegmenter
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import scores_of
from onnxprune.ir.model import Array
from onnxprune.plans import Plan, Removal

Channels = npt.NDArray[np.int64]

_PROBE = 3  # batches that a decision is measured on
# Build a dedicated session only if its expected saving exceeds this multiple of its build cost.
_WORTH = 1.5


@dataclass
class _DedicatedSession:
    """A kind of session built for one trial: its build cost, and what each batch then saves, in seconds.

    Stripped, the saving grows with the removed channels; folded, it is the same for all trials.
    """

    kind: str  # "folded" or "stripped"
    setup: float
    saves: float  # per batch; stripped: per batch and channel

    def worth(self, removed: int, batches: int) -> float:
        """Return the seconds that a trial should save, with a margin for a wrong estimate."""
        return self.saves * (removed if self.kind == "stripped" else 1) * batches - _WORTH * self.setup

    def learn(self, gain: float, removed: int) -> None:
        """Replace the estimate by a newer measurement."""
        self.saves = gain / removed if self.kind == "stripped" else gain


class SuffixSessions:
    """Trials of one group on cached activations.

    Args:
        runner: Runs sessions on batches.
        segmenter: Builds the sessions' models.
        group: Group whose channels are removed.
        outputs: Outputs of the model that are measured.
        strip: "auto" measures which dedicated sessions are faster; "never", "folded" and "stripped" say which to use.

    Attributes:
        session: Masked session.
        memory: What was kept of each batch, by the channels that make a difference.
    """

    def __init__(
        self, runner: BatchRunner, segmenter: MaskedSegmenter, group: Group, outputs: list[str], *, strip: str
    ) -> None:
        self.runner, self.segmenter, self.analysis = runner, segmenter, segmenter.analysis
        self.group, self.strip, self._all_outputs = group, strip, outputs
        first = segmenter.consumers[group.name].first
        self.outputs = [n for n in outputs if segmenter.producer_index[n] >= first]
        self.session = runner.session(segmenter.masked(group.name, self.outputs))
        self.seconds: list[float] = []  # per batch, masked
        self.alternatives: list[_DedicatedSession] | None = None  # None: not measured yet
        self.memory: dict[bytes, list[Any]] = {}
        self.of: CachedActivations | None = None
        self.dead: Kept = np.zeros(self.analysis.count, bool)

    def run(self, removed: Channels, cached: CachedActivations) -> list[Any]:
        """Return what is kept of every cached batch when some of the group's channels are removed."""
        if self.of is not cached:
            self.of, self.memory, self.dead = cached, {}, self._dead(cached)
        kept = self._kept(removed)
        key = np.packbits(kept | self.dead).tobytes()
        if key not in self.memory:
            self.memory[key] = self._run(removed, kept, cached)
        return self.memory[key]

    def _kept(self, removed: Channels) -> Kept:
        kept = np.ones(self.analysis.count, bool)
        kept[self.group.components[removed]] = False
        return kept

    def _dead(self, cached: CachedActivations) -> Kept:
        """Return components that are zero in all cached samples at all consumers; none where they cannot be read."""
        reads = self.segmenter.consumers[self.group.name]
        none: Kept = np.zeros(self.analysis.count, bool)
        on_host = self.session.provider == "CPUExecutionProvider"
        if not on_host or any(name not in cached.values[0] for name, _ in reads.contractions):
            return none
        dead = none.copy()
        dead[self.group.components] = True
        for name, c in reads.contractions:
            components = self.analysis.component[c.labels]
            for values in cached.values:
                candidates = np.flatnonzero(dead[components])
                if not len(candidates):
                    break
                x = np.take(values[name].numpy(), candidates, c.axis)
                others = tuple(a for a in range(x.ndim) if a != c.axis)
                dead[components[candidates[(x != 0).any(others)]]] = False
        return dead

    def _run(self, removed: Channels, kept: Kept, cached: CachedActivations) -> list[Any]:
        if self.alternatives is None:
            self.alternatives = self._measure_alternatives(cached)
        count, batches = len(removed), len(cached.chunk)
        alternative = max(self.alternatives, key=lambda w: w.worth(count, batches), default=None)
        if alternative is None or alternative.worth(count, batches) <= 0:
            return self._run_masked(kept, cached, range(batches))
        session = self._built(alternative, removed)
        first = min(batches, max(_PROBE, self.runner.threads))
        out, seconds = self._run_dedicated(alternative, session, kept, cached, range(first))
        rest = range(first, batches)
        if self.strip == "auto":
            gain = float(np.median(self.seconds)) - float(np.median(seconds))
            alternative.learn(gain, count)
            if gain <= 0:
                return out + self._run_masked(kept, cached, rest)
        return out + self._run_dedicated(alternative, session, kept, cached, rest)[0]

    def _run_dedicated(
        self, alternative: _DedicatedSession, session: Session, kept: Kept, cached: CachedActivations, which: range
    ) -> tuple[list[Any], list[float]]:
        """Run batches in a dedicated session, and again masked where rounding could turn a decision."""
        undecided = self.runner.metric.undecided if alternative.kind == "stripped" else None
        out, seconds = [], []
        for wave in self.runner.waves(which):
            runs, took = self._outputs(session, cached, wave)
            seconds += took
            batches = cached.batches(wave)
            if undecided is not None:
                for k, (scores, *_) in enumerate(runs):
                    if undecided(scores_of(scores, len(scores)), self.runner.labels(batches[k : k + 1])).any():
                        runs[k] = self._outputs(self.session, cached, wave[k : k + 1], self._mask(kept))[0][0]
            out.append(self.runner.reduced(runs, batches))
        return out, seconds

    def _measure_alternatives(self, cached: CachedActivations) -> list[_DedicatedSession]:
        """Return the kinds of dedicated sessions with their savings, measured with nearly all channels removed."""
        anything_removed = bool(self.segmenter.removed.groups)
        if self.strip in ("stripped", "folded"):
            return [_DedicatedSession("folded" if anything_removed else self.strip, 0.0, np.inf)]
        first = max(_PROBE, self.runner.threads)
        # Few batches cannot save the build cost; on CUDA kernels are chosen anew for every session.
        if self.strip == "never" or len(cached.chunk) < 4 * first or self.session.provider != "CPUExecutionProvider":
            return []
        most = self.group.channels - max(1, self.group.channels // 20)
        removed = np.arange(most)
        self._run_masked(self._kept(removed), cached, range(first))
        slow = min(self.seconds)
        decides = self.runner.metric.undecided is not None and not anything_removed
        out = []
        for kind in ("folded", "stripped") if decides else ("folded",):
            alternative = _DedicatedSession(kind, 0.0, 0.0)
            start = time.perf_counter()
            session = self._built(alternative, removed)
            alternative.setup = time.perf_counter() - start
            alternative.learn(slow - min(self._outputs(session, cached, range(first))[1]), most)
            out.append(alternative)
        return out

    def _built(self, alternative: _DedicatedSession, removed: Channels) -> Session:
        plan = Plan("", {self.group.name: Removal(self.group.channels, tuple(sorted(removed.tolist())))})
        build = self.segmenter.stripped if alternative.kind == "stripped" else self.segmenter.folded
        return self.runner.session(build(self.group.name, plan, self.outputs))

    def _run_masked(self, kept: Kept, cached: CachedActivations, which: range) -> list[Any]:
        out = []
        for wave in self.runner.waves(which):
            runs, seconds = self._outputs(self.session, cached, wave, self._mask(kept))
            self.seconds += seconds
            out.append(self.runner.reduced(runs, cached.batches(wave)))
        return out

    def _mask(self, kept: Kept) -> dict[str, Any]:
        return {MASK_INPUT: self.session.to_device(kept.astype(np.float32))}

    def _outputs(
        self, session: Session, cached: CachedActivations, which: range, more: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[list[list[Array]], list[float]]:
        """Return all outputs of some batches, with those that a mask cannot reach, and the seconds of each batch."""

        def run(k: int) -> tuple[list[Array], float]:
            start = time.perf_counter()
            values = {**cached.values[k], **more}
            made = session.run_bound({n: values[n] for n in session.inputs}, self.outputs)
            found = dict(zip(self.outputs, made, strict=True))
            outputs = [(found[n] if n in found else values[n]).numpy() for n in self._all_outputs]
            return self.runner.real(outputs, cached.chunk[k]), time.perf_counter() - start

        runs = self.runner.parallel(run, which)
        return [outputs for outputs, _ in runs], [seconds for _, seconds in runs]
