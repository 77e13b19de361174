"""Prove that a pruned model equals the masked original for every input and every admissible size."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.model import PROVENANCE, Array, Model
from onnxprune.passes.widen_floats import WidenFloats, narrow
from onnxprune.proto_graph import Graph, multiplies_integers, quantizes
from onnxprune.random_values import Values
from onnxprune.runtime import Session
from onnxprune.verification import _sizes as sizes
from onnxprune.verification._certificate import QUANTIZED, TOLERANCE, Verification
from onnxprune.verification._claims import Claims
from onnxprune.verification._compare import TensorComparison, relative_difference
from onnxprune.verification._constants import compare_constants, compare_nodes
from onnxprune.verification._induction import REPORT, Induction, cut
from onnxprune.verification._reference import Reference
from onnxprune.verification._selections import with_forced_selections

if TYPE_CHECKING:
    from onnxprune.coupling import Analysis
    from onnxprune.plans import Plan

Feeds = Mapping[str, Array]
_MOST_SIZES = 10  # assignments, those next to constants of the shape arithmetic included
_TRIES = 24  # assignments offered to the original
_HEADS = frozenset(("Sigmoid", "Softmax", "LogSoftmax", "HardSigmoid"))
_VIEWS = frozenset(("Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Concat"))


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
    """Prove a pruned model against the original that an analysis was made of.

    Args:
        analysis: Analysis of the original; only its claims of what is kept are read.
        plan: Channels to remove.
        pruned: The pruned model. One that says in its metadata that it was recovered or retrained is checked in
            everything but the values of its weights.
        feeds: The user's inputs, for whole runs beside random ones.
        tolerance: Largest relative difference; default: by element type.
        device: "cpu", "cuda" or "auto".
        threads: Threads of onnxruntime; 0 leaves the choice to it.
        seed: Seed of all random values.

    Raises:
        VerificationError: the models differ, with the first node that differs; or a node could not be checked.
        OnnxPruneError: onnxruntime rejects the original.
    """
    started = time.perf_counter()
    session = functools.partial(Session, device=device, threads=threads, arena=False)
    job = _Job(analysis.source, plan, pruned, Claims.of(analysis, plan), tolerance, session, seed)
    return job.prove(feeds or (), started)


@dataclass(frozen=True)
class _SizedRun:
    """One admissible assignment: shapes of all leaves, inputs and what the reference computes of them."""

    number: int
    sizes: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    feeds: dict[str, Array]
    expected: dict[str, Array]


class _Finder:
    """Runs the reference under assignments of sizes and notes the shapes of leaves.

    Args:
        job: the proof.
        leaves: whose shapes are wanted.
        tested: small tensors of the shape arithmetic whose values are wanted, too.
        runs: earlier ones, to be continued.
    """

    def __init__(
        self, job: _Job, leaves: Collection[str], tested: Sequence[str], runs: Sequence[_SizedRun] = ()
    ) -> None:
        self.job = job
        self.runs = list(runs)
        self.error = ""
        graph = job.reference
        self._inner = sorted(n for n in leaves if n not in graph.inputs)
        self._tested = [n for n in tested if n in graph.fixed]
        self._seen: dict[str, list[Array]] = {n: [] for n in self._tested}
        self._tried: list[dict[str, int]] = [r.sizes for r in runs]
        proto, external = graph.with_outputs(list(dict.fromkeys([*job.observed, *self._tested])))
        for i, name in enumerate(self._inner):
            proto.graph.node.append(helper.make_node("Shape", [name], [f"//shape{i}"]))
            proto.graph.output.add(name=f"//shape{i}")
        self._names = [o.name for o in proto.graph.output]
        self._session = job.model_session(proto, external)

    def attempt(self, assigned: dict[str, int]) -> bool:
        """Run at one assignment, on inputs of a style of its own; return whether the original takes it."""
        if assigned and assigned in self._tried:
            return False
        self._tried.append(assigned)
        graph, number = self.job.reference, len(self.runs)
        shapes = {n: sizes.shape(n, graph, assigned) for n in graph.inputs}
        if self.runs and not sizes.affordable(shapes, self.runs[0].shapes, graph):
            return False
        style = ("unit", "positive", "unit", "image")[number % 4]
        for largest in (2, 1) if number else (2, 10, 1):
            try:
                feeds = self.job.values.inputs(shapes, number, style, largest)
            except OnnxPruneError as err:  # an input that takes no numbers
                self.error = err.what
                return False
            if self.fed(assigned, feeds):
                return True
        return False

    def fed(self, assigned: dict[str, int], feeds: dict[str, Array]) -> bool:
        """Run on these inputs."""
        try:
            # Copies, since an output keeps all memory of its session's arena.
            results = (np.array(v) for v in self._session.run(feeds, self._names))
            found = dict(zip(self._names, results, strict=True))
        except OnnxPruneError as err:
            self.error = err.what
            return False
        shapes = {n: tuple(found.pop(f"//shape{i}").tolist()) for i, n in enumerate(self._inner)}
        for name, values in self._seen.items():
            values.append(found[name])
        shapes |= {n: v.shape for n, v in feeds.items()}
        wanted = {n: found[n] for n in self.job.observed}
        self.runs.append(_SizedRun(len(self.runs), assigned, shapes, feeds, wanted))
        return True

    def compared(self, probes: Sequence[sizes.SizeComparison]) -> set[int] | None:
        """Return the numbers that dynamic sizes are compared with; None where none is compared with anything.

        Comparisons with -1, 0 and 1 ask whether a size was given, or is to be inferred, and do not count.
        """
        moving = {n for n, v in self._seen.items() if v and any(not np.array_equal(w, v[0]) for w in v[1:])}
        numbers: set[int] = set()
        found = False
        for probe in probes:
            if not moving.intersection(probe.operands):
                continue
            fixed = [v for n in probe.operands if n not in moving for v in self._seen.get(n, [])[:1]]
            more = {
                int(x)
                for v in fixed
                if v.dtype.kind in "iu"
                for x in v.reshape(-1)[:4]
                if 1 < x <= sizes.LARGEST_NUMBER
            }
            numbers |= more | set(probe.numbers)
            found = found or bool(more or probe.numbers) or len(moving.intersection(probe.operands)) > 1
        return numbers if found else None


class _Job:
    def __init__(
        self, original: Model, plan: Plan, pruned: Model, claims: Claims, tolerance: float | None,
        session: Callable[..., Session], seed: int,
    ) -> None:  # fmt: skip
        self.claims, self.seed = claims, seed
        self.own_tolerance = tolerance
        self.session = session
        self.changed = any(f"{PROVENANCE}.{what}" in pruned.metadata for what in ("recovered", "retrained"))
        _check_belongs(original, plan, pruned)
        one, other = Graph.of(original), Graph.of(pruned)
        _check_interface(one, other, claims)
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
        self.quantized = any(quantizes(n) and not _fixed(n, one) for n in one.nodes)
        self.integers = any(multiplies_integers(n) for n in one.nodes)
        self.cut = cut(self.reference, self.pruned, claims, self.constants, self.masked.masked)
        self.values = Values(one, other, seed)
        self.induction = Induction(one, other, claims, self.cut, self.values, self.tolerance, self.region_session)
        self.observed = self._observables()

    def _copy_computed(self, one: Graph, other: Graph) -> list[str]:
        """Give the reference the pruned model's values of float constants that the original computes from sizes.

        They agree up to rounding only, which `_compare_computed` checks apart: near zero that may be a large share.
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
        """Return the largest difference allowed at one tensor."""
        if self.own_tolerance is not None:
            return self.own_tolerance
        return TOLERANCE.get(dtype.name, TOLERANCE["float32"])

    def region_session(self, proto: onnx.ModelProto, weights: Mapping[str, Array]) -> Session:
        """Make a session of some nodes, as they are; kernels for integers are exact only in optimized graphs."""
        return self.session(proto, weights=weights, optimize=self.integers, exact_integers=self.integers)

    def model_session(self, proto: onnx.ModelProto, weights: Mapping[str, Array]) -> Session:
        """Make a session of a whole model; Q/DQ pairs stay as they are, since masks part them in one model only."""
        optimize = self.integers or not self.quantized
        try:
            return self.session(proto, weights=weights, optimize=optimize, exact_integers=self.integers)
        except OnnxPruneError:
            # onnxruntime's optimizer breaks some graphs, such as an If with a constant condition whose input is shown.
            return self.session(proto, weights=weights, optimize=False)

    # ------------------------------------------------------------------------------------------------ the proof

    def prove(self, data: Sequence[Feeds], started: float) -> Verification:
        """Run the induction at all sizes, then whole runs."""
        runs = self._runs(data)
        for i, run in enumerate(runs):
            self.induction.run(run.shapes, run.number, self.cut.targets if i == 0 else self.cut.always)
        self.induction.run(runs[0].shapes, 1, self.induction.with_single_truths(runs[0].shapes))
        if len(runs) == 1:  # a model of fixed sizes: other values instead
            self.induction.run(runs[0].shapes, 2, self.cut.always)
        # A style of values after the other wakes what is quiet, and what another operator computes.
        for i, style in enumerate(("wide", "image", "positive", "huge")):
            quiet = [*self.induction.quiet(), *(self.induction.other_operators())]
            if quiet:
                self.induction.run(runs[0].shapes, 100 + i, list(dict.fromkeys(quiet)), style)
        for number in range(200, 206):  # one value per channel may be near zero by chance; several are not
            exceeding = self.induction.exceeding()
            if not exceeding:
                break
            for style, again in exceeding.items():
                self.induction.run(runs[0].shapes, number, again, style)
        self._run_on_derived_values(runs)
        self._compare_computed(runs)
        self.induction.raise_on_difference()
        outputs, effect = self._whole_runs(runs, data)
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
            seconds=time.perf_counter() - started,
        )

    def _overall_tolerance(self) -> float:
        kinds = [self.tolerance(d) for d in self.induction.dtypes.values()]
        return max(kinds, default=self.tolerance(np.dtype(np.float32)))

    def _runs(self, data: Sequence[Feeds]) -> list[_SizedRun]:
        """Find assignments that the original accepts, and the shapes of the leaves under each.

        The first run tells the shapes of all leaves, the others those of regions that are run at every size.
        """
        dims = sizes.dynamic(self.reference)
        probes = sizes.probes(self.reference) if dims else []
        sized = self.plain.needed(self.computed, self.cut.tensors)[1]
        wanted = self.induction.leaves(self.cut.targets) | sized | (self.cut.tensors & set(self.cut.targets))
        finder = _Finder(self, wanted, ())
        offers = sizes.candidates(dims)
        for _, assigned in zip(range(_TRIES), offers, strict=False):
            if finder.attempt(assigned):
                break
        if not finder.runs:
            for feed in data:
                finder.fed(_sizes_of(feed, dims), self._fed(feed))
        if not finder.runs:
            raise OnnxPruneError(
                f"onnxruntime does not run the original on random inputs of any size that was tried: {finder.error}",
                fix="verify on real inputs with --data, or skip the proof with --no-verify",
            )
        if not dims:
            return finder.runs
        # What is empty at the first size (half of a batch of one) is run at the others, too.
        empty = {n for n, s in finder.runs[0].shapes.items() if 0 in s}
        for t in [t for t in self.cut.once if empty and (t in empty or empty & self.induction.leaves([t]))]:
            self.cut.once.remove(t)
            self.cut.always.append(t)
        tested = sorted({n for p in probes for n in p.operands if n in self.reference.fixed})
        runs = finder.runs
        del finder  # its session holds a copy of the weights
        more = _Finder(self, self.induction.leaves(self.cut.always) | sized, tested, runs)
        for _, assigned in zip(range(_TRIES), offers, strict=False):
            if len(more.runs) >= sizes.WANTED:
                break
            more.attempt(assigned)
        numbers = more.compared(probes)
        around = sizes.neighbours(dims, self.reference, numbers or set(), more.runs[0].sizes)
        for assigned in around if numbers is not None else ():
            if len(more.runs) >= _MOST_SIZES:
                break
            more.attempt(assigned)
        return more.runs

    def _fed(self, feed: Feeds) -> dict[str, Array]:
        return {k: v.astype(np.float32) if narrow(v.dtype) else v for k, v in feed.items()}

    def _run_on_derived_values(self, runs: Sequence[_SizedRun]) -> None:
        """Give regions that take no values of the checker's choice those of a run of the reference.

        Where that holds nothing, a selection found nothing: it is made to find something.
        """
        unseen = self.induction.unseen()
        if not unseen:
            return
        graph = self.reference
        names = self.induction.leaves(unseen) | self.induction.between_integers(unseen)
        inner = sorted(n for n in names if n not in graph.inputs)
        proto, external = graph.with_outputs(inner)
        for made, run in ((m, r) for m in (proto, with_forced_selections(proto)) for r in runs):
            unseen = self.induction.unseen()
            if not unseen:
                return
            try:
                results = self.region_session(made, external).run(run.feeds, inner) if inner else []
            except OnnxPruneError:
                continue
            found = dict(zip(inner, results, strict=True)) | {n: v for n, v in run.feeds.items() if n in names}
            for t in unseen:
                self._try(self.induction.compare, [t], {n: found[n] for n in self.induction.leaves([t])})
            for t in self.induction.unseen():
                self._try(self.induction.alone, t, found)

    def _try(self, compare: Callable[..., None], *args: object) -> None:
        """Compare, unless the reference does not run on these values."""
        try:
            compare(*args)
        except VerificationError:
            raise
        except OnnxPruneError:
            return

    def _compare_computed(self, runs: Sequence[_SizedRun]) -> None:
        """Compare float constants of the pruned model that the original computes from sizes, at every size."""
        names, cuts = self.computed, self.cut.tensors
        if not names:
            return
        indices, leaves = self.plain.needed(names, cuts)
        kinds = {n: self.cut.kinds[n] for n in sorted(leaves)}
        for run in runs:
            feeds = {n: np.zeros(run.shapes[n], helper.tensor_dtype_to_np_dtype(k)) for n, k in kinds.items()}
            proto, external = self.plain.cut_out(indices, kinds, {n: v.ndim for n, v in feeds.items()}, cuts, names)
            for name, value in zip(names, self.region_session(proto, external).run(feeds, names), strict=True):
                own = self.pruned.value(name)
                limit = min(self.tolerance(own.dtype), 64 * float(np.finfo(own.dtype).eps))
                if not relative_difference(own, self.claims.compress(name, value)) <= limit:
                    raise VerificationError(
                        "the pruned model has another constant than the original computes",
                        where=f"constant {name!r}",
                        fix=REPORT,
                    )

    # ------------------------------------------------------------------------------------------------ whole runs

    def _observables(self) -> list[str]:
        """Return what whole runs compare: outputs, and in place of decided ones the numbers in front of decisions.

        In front of a final Sigmoid or Softmax the numbers are compared as well as behind it.
        """
        graph = self.reference
        decided = graph.discontinuous({*self.masked.masked, *self.masked.sliced})
        out: list[str] = []
        for name in graph.outputs:
            front, seen = [name], {name}
            while front:
                t = front.pop()
                ours = t in self.cut.tensors or t in graph.outputs
                if t not in graph.writer or t in graph.fixed:
                    continue
                node = graph.nodes[graph.writer[t]]
                quantized = quantizes(node) and t not in graph.outputs
                if t not in decided and ours and not quantized and not self.claims.removes(t):
                    out.append(t)
                    head = _behind_head(t, graph)
                    if head in self.cut.tensors and not self.claims.removes(head) and head not in decided:
                        out.append(head)
                    continue
                more = [n for n in node.input if n and n not in seen]
                seen.update(more)
                front += more
        found = [n for n in dict.fromkeys(out) if n in self.pruned.writer]
        return found or [n for n in graph.outputs if n in graph.writer and n in self.pruned.writer and n not in decided]

    def _whole_runs(self, runs: Sequence[_SizedRun], data: Sequence[Feeds]) -> tuple[dict[str, float], float]:
        """Run both models whole on random inputs and on the user's; return differences and the effect of removal."""
        names = list(dict.fromkeys(self.observed))
        proto, external = self.pruned.with_outputs(
            list(self.pruned.outputs) + [n for n in names if n not in self.pruned.outputs]
        )
        session = self.model_session(proto, external)
        found = {n: TensorComparison(bounded=bool(_behind_head(n, self.reference))) for n in names}
        pairs: list[tuple[Feeds, Mapping[str, Array]]] = [(r.feeds, r.expected) for r in runs]
        if data and names:
            whole = self.model_session(*self.reference.with_outputs(names))
            pairs += [
                (f, dict(zip(names, map(np.array, whole.run(f, names)), strict=True))) for f in map(self._fed, data)
            ]
            del whole
        for feeds, wanted in pairs:
            for n, value in self._outputs(session, feeds, names).items():
                found[n].add(value, wanted[n])
        del session  # it holds a copy of the weights
        worst = {n: found[n].worst()[0] for n in names}
        for n in names:
            limit = self._limit(runs[0].expected[n].dtype)
            beyond = worst[n]
            if worst[n] > limit and self.own_tolerance is None:
                beyond = found[n].beyond(self._noise(pairs, n))
            if not beyond <= limit:
                raise VerificationError(
                    f"the pruned model differs from the masked original by {worst[n]:.2g} relative"
                    f" (allowed: {limit:.0e}){': ' * bool(found[n].problem)}{found[n].problem}",
                    where=f"output {n!r}, in a whole run", fix=REPORT,
                )  # fmt: skip
        return worst, self._effect(runs, names)

    def _outputs(self, session: Session, feeds: Feeds, names: Sequence[str]) -> dict[str, Array]:
        try:
            return dict(zip(names, session.run(feeds, names), strict=True)) if names else {}
        except OnnxPruneError as err:
            raise VerificationError(f"the pruned model fails where the original runs: {err.what}") from err

    def _limit(self, dtype: np.dtype) -> float:
        own = self.tolerance(dtype)
        return max(own, QUANTIZED) if self.quantized and self.own_tolerance is None else own

    def _noise(self, pairs: Sequence[tuple[Feeds, Mapping[str, Array]]], name: str) -> TensorComparison:
        """Return what rounding errors in the masks make of an output of the reference, over all runs."""
        proto, external = self.reference.with_outputs([name])
        session = self.model_session(self.masked.noisy(proto, self.seed), external)
        found = TensorComparison()
        for feeds, wanted in pairs:
            found.add(session.run(feeds, [name])[0], wanted[name])
        return found

    def _effect(self, runs: Sequence[_SizedRun], names: Sequence[str]) -> float:
        """Return how far the reference is from the original on the smallest inputs; 1 where shapes differ."""
        if not names:
            return 0.0
        run = min(runs, key=lambda r: sum(v.size for v in r.feeds.values()))
        proto, external = self.plain.with_outputs(list(names))
        got = self.model_session(proto, external).run(run.feeds, names)
        out = 0.0
        for n, value in zip(names, got, strict=True):
            found = TensorComparison()
            found.add(value, run.expected[n])
            worst = found.worst()[0]
            out = max(out, min(worst, 1.0) if np.isfinite(worst) else 1.0)
        return out


def _check_belongs(original: Model, plan: Plan, pruned: Model) -> None:
    """Refuse files that do not belong together.

    Raises:
        VerificationError: the pruned model's metadata names another plan or another original.
    """
    made_by, source = (pruned.metadata.get(f"{PROVENANCE}.{k}") for k in ("plan", "source"))
    if source and plan.model and source != plan.model:
        raise VerificationError(
            "the pruned model was made from another original (its metadata says which)",
            fix="give the original and the plan that it was made with",
        )
    if made_by and made_by != plan.digest:
        raise VerificationError(
            "the pruned model was made by another plan (its metadata says which)",
            fix="give the plan that prune or apply wrote for it",
        )


def _check_interface(one: Graph, other: Graph, claims: Claims) -> None:
    for kind, before, after in (("input", one.inputs, other.inputs), ("output", one.outputs, other.outputs)):
        if list(before) != list(after):
            raise VerificationError(
                f"the pruned model's {kind}s are {list(after)} where the original has {list(before)}"
            )
        for name, info in before.items():
            if claims.removes(name):
                raise VerificationError(f"the {kind} loses channels", where=f"{kind} {name!r}")
            kinds = [v.type.tensor_type.elem_type for v in (info, after[name])]
            ranks = [v.type.tensor_type.shape.dim for v in (info, after[name])]
            fixed = [[d.dim_value for d in dims] for dims in ranks]
            stated = all(v.type.tensor_type.HasField("shape") for v in (info, after[name]))
            agree = not stated or (
                len(fixed[0]) == len(fixed[1]) and all(not a or not b or a == b for a, b in zip(*fixed, strict=True))
            )
            if (kinds[0] and kinds[1] and kinds[0] != kinds[1]) or not agree:
                raise VerificationError(f"the {kind} has another element type or shape", where=f"{kind} {name!r}")
            if kind == "input" and [bool(n) for n in fixed[0]] != [bool(n) for n in fixed[1]]:
                raise VerificationError(f"the {kind} is dynamic in one of the models only", where=f"{kind} {name!r}")


def _behind_head(name: str, graph: Graph) -> str:
    """Return what a final Sigmoid or Softmax reads; "" where there is none."""
    for _ in range(4):
        if name not in graph.writer:
            return ""
        node = graph.nodes[graph.writer[name]]
        if node.op_type in _HEADS:
            return str(node.input[0])
        if node.op_type not in _VIEWS:
            return ""
        name = node.input[0]
    return ""


def _fixed(node: onnx.NodeProto, graph: Graph) -> bool:
    return node.input[0] in graph.fixed


def _sizes_of(feed: Feeds, dims: list[sizes.Dimension]) -> dict[str, int]:
    return {d.name: int(feed[d.input].shape[d.axis]) for d in dims if d.input in feed}


def holds_bfloat16(model: Model) -> bool:
    """Return whether any tensor is bfloat16: onnxruntime's CPU has few kernels for it, and numpy cannot hand it one."""
    tensors = (t for g in (model.graph, *model.graph.subgraphs(recursive=True)) for t in g.tensors().values())
    casts = any(n.op == "Cast" and narrow(n.attrs.get("to")) for n in model.graph.nodes)
    return casts or any(narrow(t.dtype) for t in tensors)
