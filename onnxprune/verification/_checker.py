"""Proof that a pruned model equals the masked original for every input and every admissible size."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.random_values import Values
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import PROVENANCE, Array, Model
from onnxprune.ir.proto_graph import SIDE, Graph, multiplies_integers, quantizes
from onnxprune.passes.widen_floats import WidenFloats, narrow
from onnxprune.verification import _sizes as sizes
from onnxprune.verification._certificate import TOLERANCE, Verification
from onnxprune.verification._claims import Claims
from onnxprune.verification._compare import relative_difference
from onnxprune.verification._computed import in_float64, is_smooth, rounded_from
from onnxprune.verification._constants import compare_constants, compare_nodes
from onnxprune.verification._induction import REPORT, Induction, cut
from onnxprune.verification._interface import check_belongs, check_interface
from onnxprune.verification._reference import Reference
from onnxprune.verification._selections import with_forced_selections
from onnxprune.verification._sessions import Sessions
from onnxprune.verification._size_runs import SizedRun, SizeFinder
from onnxprune.verification._whole_runs import WholeRuns

if TYPE_CHECKING:
    from onnxprune.analysis.coupling import Analysis
    from onnxprune.plans import Plan

Feeds = Mapping[str, Array]
_MOST_SIZES = 10  # assignments, including those next to constants of the shape arithmetic
_TRIES = 40  # assignments tried on the original


def verify(
    analysis: Analysis,
    plan: Plan,
    pruned: Model,
    *,
    feeds: Sequence[Feeds] | None = None,
    tolerance: float | None = None,
    device: str = "cpu",
    threads: int = 0,
    seed: int = 0,
) -> Verification:
    """Prove that a pruned model equals the masked original of an analysis.

    Args:
        analysis: Analysis of the original; only its claims of what is kept are read.
        plan: Channels to remove.
        pruned: The pruned model. If its metadata records that it was recovered or retrained, it is checked in
            everything but the values of its weights.
        feeds: The user's inputs, for whole runs in addition to random ones.
        tolerance: Largest relative difference; default: by element type.
        device: "cpu", "cuda" or "auto".
        threads: Threads of onnxruntime; 0: its default.
        seed: Seed of all random values.

    Raises:
        VerificationError: The models differ (names the first differing node), or a node could not be checked.
        OnnxPruneError: onnxruntime rejects the original.
    """
    started = time.perf_counter()
    session = functools.partial(Session, device=device, threads=threads, arena=False)
    job = _Job(analysis.source, plan, pruned, Claims.of(analysis, plan), tolerance, session, seed)
    job.admitted = analysis.witness.settled
    return job.prove(feeds or (), started)


class _Job:
    def __init__(
        self, original: Model, plan: Plan, pruned: Model, claims: Claims, tolerance: float | None,
        session: Callable[..., Session], seed: int,
    ) -> None:  # fmt: skip
        self.claims, self.seed = claims, seed
        self.own_tolerance = tolerance
        self.admitted: Mapping[tuple[str, int], int] = {}  # sizes to try first, by input and axis
        self.changed = any(f"{PROVENANCE}.{what}" in pruned.metadata for what in ("recovered", "retrained"))
        check_belongs(original, plan, pruned)
        one, other = Graph.of(original), Graph.of(pruned)
        check_interface(one, other, claims)
        self.constants = compare_constants(one, other, claims, weights=not self.changed)
        compare_nodes(one, other, self.constants)
        self.widened = holds_bfloat16(original)
        if self.widened:
            one, other = Graph.of(WidenFloats()(original)), Graph.of(WidenFloats()(pruned))
        for name, values in self.constants.replaced.items():
            other.constants[name] = onnx.TensorProto(
                name=name, data_type=other.constants[name].data_type, dims=values.shape
            )
            other.arrays[name] = values.astype(np.float32) if values.dtype.name == "bfloat16" else values
        self.plain = Graph(**{**one.__dict__, "nodes": list(one.nodes), "constants": dict(one.constants)})
        self.computed = self._copy_computed(one, other)
        self.masked = Reference(one, claims)
        self.reference, self.pruned = one, other
        quantized = any(quantizes(n) and n.input[0] not in one.fixed for n in one.nodes)
        self.sessions = Sessions(session, any(multiplies_integers(n) for n in one.nodes), quantized)
        self.cut = cut(self.reference, self.pruned, claims, self.constants, self.masked.masked)
        self.values = Values(one, other, seed)
        self.induction = Induction(
            one, other, claims, self.cut, self.values, self.tolerance, self.sessions.region_session
        )
        self.whole_runs = WholeRuns(
            self.plain, self.masked, other, self.cut.tensors, claims, self.sessions, self.tolerance,
            exact=tolerance is not None, seed=seed,
        )  # fmt: skip

    def _copy_computed(self, one: Graph, other: Graph) -> list[str]:
        """Use the pruned model's values for float constants that the original computes from sizes; return their names.

        They agree up to rounding only, which may be a large share near zero and is checked by `_compare_computed`.
        """
        names = [n for n in self.constants.computed if n in one.fixed and other.value(n).dtype.kind == "f"]
        for name in names:
            if not self.claims.removes(name):
                node = onnx.NodeProto()
                node.CopyFrom(one.nodes[one.writer[name]])
                node.output[:] = [f"{name}//as computed" if o == name else o for o in node.output]
                one.nodes[one.writer[name]] = node
                one.constants[name] = other.constants[name]
                if name in other.arrays:
                    one.arrays = {**one.arrays, name: other.arrays[name]}
        self.plain.index()
        one.index()
        return names

    def tolerance(self, dtype: np.dtype) -> float:
        """Return the largest allowed difference at one tensor."""
        if self.own_tolerance is not None:
            return self.own_tolerance
        return TOLERANCE.get(dtype.name, TOLERANCE["float32"])

    def prove(self, data: Sequence[Feeds], started: float) -> Verification:
        """Run the induction at all sizes, then whole runs; return the certificate."""
        data = [{k: v.astype(np.float32) if narrow(v.dtype) else v for k, v in feeds.items()} for feeds in data]
        runs = self._runs(data)
        self.induction.sizes = [r.shapes for r in runs] + [self.claims.shapes]
        decided, truths = self.induction.with_single_truths()
        combinations = self.values.distinguish(truths)
        self.induction.run_once(0, self.cut.targets)
        for run in runs[1:]:
            self.induction.run(run.shapes, run.number, self.induction.computed(self.cut.always, run.shapes))
        for number in range(1, combinations if decided else 1):
            self.induction.run_once(number, decided)
        if len(runs) == 1:  # a model of fixed sizes: use other values instead
            self.induction.run_once(2, self.cut.always)
        # Other styles of values activate channels that were constant, and test nodes with another operator.
        for i, style in enumerate(("wide", "image", "positive", "huge")):
            quiet = [*self.induction.quiet(), *(self.induction.other_operators())]
            if quiet:
                self.induction.run_once(100 + i, list(dict.fromkeys(quiet)), style)
        for number in range(200, 206):  # one value per channel may be near zero by chance, several are not
            exceeding = self.induction.exceeding()
            if not exceeding:
                break
            for style, again in exceeding.items():
                self.induction.run_once(number, again, style)
        self._run_on_derived_values(runs)
        self._accept_empty(runs)
        self._compare_computed(runs)
        self.induction.raise_on_difference()
        outputs, effect = self.whole_runs.compare(runs, data)
        worst, tensor, axis, index = self.induction.outcome.worst
        return Verification(
            nodes=len(self.pruned.nodes),
            tensors=len(self.cut.targets) + len(self.cut.by_text),
            by_text=len(self.cut.by_text),
            sizes=list(dict.fromkeys(sizes.describe(r.sizes, self.reference) for r in runs)),
            max_relative=worst,
            worst=(self.reference.name(tensor) if tensor else "", tensor, axis, index),
            tolerance=self._overall_tolerance(),
            outputs=outputs,
            inputs="random and data" if data else "random",
            effect=effect,
            weights="not compared" if self.changed else "identical",
            inexact=self.claims.inexact,
            computed_in="float32" if self.widened else "",
            branches=self._never_executed(runs),
            seconds=time.perf_counter() - started,
        )

    def _never_executed(self, runs: Sequence[SizedRun]) -> list[str]:
        """Return the branches with nodes that were checked at the sizes of the analysis only."""
        left = list(self.cut.targets)
        for run in runs:
            done = set(self.induction.computed(left, run.shapes))
            left = [t for t in left if t not in done]
        return self.reference.branches_of(left) if left else []

    def _overall_tolerance(self) -> float:
        kinds = [self.tolerance(d) for d in self.induction.dtypes.values()]
        return max(kinds, default=self.tolerance(np.dtype(np.float32)))

    def _runs(self, data: Sequence[Feeds]) -> list[SizedRun]:
        """Return runs at assignments that the original accepts, with the shapes of the leaves under each.

        The first run records the shapes of all leaves, the others those of regions that are run at every size, and of
        leaves in branches that were not executed before.
        """
        dims = sizes.dynamic(self.reference)
        probes = sizes.probes(self.reference) if dims else []
        sized = self.plain.needed(self.computed, self.cut.tensors)[1]
        wanted = self.induction.leaves(self.cut.targets) | sized | (self.cut.tensors & set(self.cut.targets))
        finder = self._finder(wanted)
        offers = sizes.candidates(dims, {d.name: n for d in dims if (n := self.admitted.get((d.input, d.axis)))})
        for _, assigned in zip(range(_TRIES), offers, strict=False):
            if finder.attempt(assigned):
                break
        if not finder.runs:
            for feed in data:
                finder.fed(_sizes_of(feed, dims), feed)
        if not finder.runs:
            raise OnnxPruneError(
                f"onnxruntime failed to run the original on random inputs of all sizes tried: {finder.error}",
                fix="name a size that it takes with --shape, verify on real inputs with --data, or skip the proof with "
                "--no-verify",
            )
        missing = wanted - finder.runs[0].shapes.keys()
        if not dims and not missing:
            return finder.runs
        # Tensors that are empty at the first size (half of a batch of one) are compared at the other sizes, too.
        empty = {n for n, s in finder.runs[0].shapes.items() if 0 in s}
        for t in [t for t in self.cut.once if empty and (t in empty or empty & self.induction.leaves([t]))]:
            self.cut.once.remove(t)
            self.cut.always.append(t)
        tested = sorted({n for p in probes for n in p.operands if n in self.reference.fixed})
        runs = finder.runs
        del finder  # releases its copy of the weights
        more = self._finder(self.induction.leaves(self.cut.always) | sized | missing, tested, runs)
        for _, assigned in zip(range(_TRIES), offers if dims else [{}] * self.values.choices, strict=False):
            if more.attempt(assigned):
                missing -= more.runs[-1].shapes.keys()
            if (len(more.runs) >= sizes.WANTED or not dims) and not missing:
                break
        if not dims:
            return more.runs
        numbers = more.compared(probes)
        around = sizes.neighbours(dims, self.reference, numbers or set(), more.runs[0].sizes)
        for assigned in around if numbers is not None else ():
            if len(more.runs) >= _MOST_SIZES:
                break
            more.attempt(assigned)
        return more.runs

    def _finder(self, leaves: Collection[str], tested: Sequence[str] = (), runs: Sequence[SizedRun] = ()) -> SizeFinder:
        observed = self.whole_runs.observed
        return SizeFinder(self.reference, self.sessions, self.values, observed, leaves, tested, runs)

    def _run_on_derived_values(self, runs: Sequence[SizedRun]) -> None:
        """Run regions without values of the checker's choice on values of a run of the reference.

        Where a selection found nothing in that run, it is forced to find something.
        """
        graph, iterated = self.reference, self.reference.iterated()

        def left() -> list[str]:
            found = self.induction.unseen()
            read = {t: self.induction.leaves([t]) | self.induction.between_integers([t]) for t in found}
            return [t for t in found if not iterated & read[t]]

        unseen = left()
        if not unseen:
            return
        names = self.induction.leaves(unseen) | self.induction.between_integers(unseen)
        inner = sorted(n for n in names if n not in graph.inputs)
        proto, external = graph.with_outputs(inner)
        for made, run in ((m, r) for m in (proto, with_forced_selections(proto)) for r in runs):
            unseen = left()
            if not unseen:
                return
            try:
                results = self.sessions.region_session(made, external).run(run.feeds, inner) if inner else []
            except OnnxPruneError:
                continue
            found = dict(zip(inner, results, strict=True)) | {n: v for n, v in run.feeds.items() if n in names}
            for t in unseen:
                self._try(self.induction.compare, [t], {n: found[n] for n in self.induction.leaves([t])})
            for t in left():
                self._try(self.induction.alone, t, found)

    def _accept_empty(self, runs: Sequence[SizedRun]) -> None:
        """Accept results that are empty at every size, behind If nodes whose branches give results of one shape."""
        pairs = self.reference.branches_by_data()
        if not pairs or not self.induction.unseen():
            return
        iterated = self.reference.iterated() & pairs.keys()
        outside = {o: pair for o, pair in pairs.items() if o not in iterated}
        names = sorted({n for pair in outside.values() for n in pair} - self.reference.inputs.keys())
        settled = set(pairs)
        for run in runs:
            try:
                results = self._values_of(names, run.feeds)
                repeated = self._sizes_by_side(sorted(iterated), run.feeds)
            except OnnxPruneError:
                return
            shapes = {n: v.shape for n, v in (*run.feeds.items(), *results.items())}
            settled -= {o for o, (a, b) in outside.items() if shapes[a] != shapes[b]}
            settled -= {o for o, (a, b) in repeated.items() if a is None or b is None or not np.array_equal(a, b)}
        self.induction.accept_empty(settled)

    def _values_of(self, names: Sequence[str], feeds: Feeds) -> dict[str, Array]:
        """Return values of the reference, in branches that are not executed, too."""
        if not names:
            return {}
        results = self.sessions.region_session(*self.reference.with_outputs(names)).run(feeds, names)
        return dict(zip(names, results, strict=True))

    def _sizes_by_side(self, names: Sequence[str], feeds: Feeds) -> dict[str, tuple[Array | None, Array | None]]:
        """Return the shapes of results of Ifs in the body of a Loop, of every iteration, if all take one branch."""
        if not names:
            return {}
        proto, external, sizes_of = self.reference.with_side(names)
        wanted = [s for s in sizes_of if s]
        session = self.sessions.region_session(proto, external)
        first, second = (
            dict(zip(wanted, session.run({**feeds, SIDE: np.array(side)}, wanted), strict=True))
            for side in (True, False)
        )
        return {n: (first.get(s), second.get(s)) for n, s in zip(names, sizes_of, strict=True)}

    def _try(self, compare: Callable[..., None], *args: object) -> None:
        """Compare, unless the reference does not run on these values."""
        try:
            compare(*args)
        except VerificationError:
            raise
        except OnnxPruneError:
            return

    def _compare_computed(self, runs: Sequence[SizedRun]) -> None:
        """Compare float constants of the pruned model that the original computes from sizes, at every size."""
        for name in self.computed:
            own, cuts = self.pruned.value(name), self.cut.tensors
            indices, leaves = self.plain.needed([name], cuts)
            kinds = {n: self.cut.kinds[n] for n in sorted(leaves)}
            for run in runs if kinds else runs[:1]:
                feeds = {n: np.zeros(run.shapes[n], helper.tensor_dtype_to_np_dtype(k)) for n, k in kinds.items()}
                region = self.plain.cut_out(indices, kinds, {n: v.ndim for n, v in feeds.items()}, cuts, [name])
                value = self.claims.compress(name, self.sessions.region_session(*region).run(feeds, [name])[0])
                if own.dtype == np.float32 and is_smooth(region[0]):
                    agrees = rounded_from(own, value, self.claims.compress(name, in_float64(*region, feeds)))
                else:
                    limit = min(self.tolerance(own.dtype), 64 * float(np.finfo(own.dtype).eps))
                    agrees = relative_difference(own, value) <= limit
                if not agrees:
                    raise VerificationError(
                        "the pruned model has another constant than the original computes",
                        where=f"constant {name!r}",
                        fix=REPORT,
                    )


def _sizes_of(feed: Feeds, dims: list[sizes.Dimension]) -> dict[str, int]:
    return {d.name: int(feed[d.input].shape[d.axis]) for d in dims if d.input in feed}


def holds_bfloat16(model: Model) -> bool:
    """Return whether any tensor is bfloat16: onnxruntime's CPU has few kernels for it, and numpy cannot hand it one."""
    tensors = (t for g in (model.graph, *model.graph.subgraphs(recursive=True)) for t in g.tensors().values())
    casts = any(n.op == "Cast" and narrow(n.attrs.get("to")) for n in model.graph.nodes)
    return casts or any(narrow(t.dtype) for t in tensors)
