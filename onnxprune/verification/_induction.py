"""Node-local induction: the kept entries of every tensor that both models have are equal.

The claim holds at the model's inputs. Both graphs are cut at every common tensor, and every node between two cuts
reads values chosen by the checker: full width in the reference, with arbitrary values in removed entries, and the kept
entries in the pruned model. If the results agree at the kept entries of every cut, then by induction over the graph
they agree at the outputs.
"""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.random_values import STYLES, Values
from onnxprune.execution.sessions import Session
from onnxprune.ir.branches import is_loop_end, is_loop_start
from onnxprune.ir.model import Array
from onnxprune.ir.proto_graph import COMPUTED, Graph, attributes, digest, reads
from onnxprune.verification._claims import Claims
from onnxprune.verification._compare import TensorComparison
from onnxprune.verification._constants import Constants
from onnxprune.verification._loops import check_loops

SEGMENT_BYTES = 256 * 2**20
"""Bound of the values exchanged with one pair of sessions; a larger single region is a segment of its own."""
_SMALL = 2**16  # bytes; constants up to this size are compared by content
_CUT_KINDS = ("f", "b")
BOUNDED = frozenset(("HardSigmoid", "Sigmoid", "Softmax"))
CHANNEL_COUNTS = frozenset(("group", "hidden_size", "kv_num_heads", "num_groups", "num_heads", "q_num_heads"))
"""Attributes that count channels and are independent of sizes; a node with one is always run."""

MakeSession = Callable[[onnx.ModelProto, Mapping[str, Array]], Session]


@dataclass(frozen=True)
class GraphCut:
    """Cuts of both graphs, and the regions to compare.

    Attributes:
        tensors: Tensors at which both graphs are cut.
        kinds: ONNX element type of every cut tensor.
        by_text: Targets whose regions are identical and lose nothing: nothing to compute.
        once: Targets whose regions are identical and lose channels: compared at one size.
        always: Targets whose regions differ: compared at every size.
        integers: Targets that hold integers computed from data. The graphs are not cut there, because not every integer
            is a valid index, except for regions that have no values otherwise.
    """

    tensors: set[str]
    kinds: dict[str, int]
    by_text: list[str]
    once: list[str]
    always: list[str]
    integers: set[str]

    @property
    def targets(self) -> list[str]:
        """All computed targets, in the order of the reference."""
        return [*self.once, *self.always]


def cut(reference: Graph, pruned: Graph, claims: Claims, constants: Constants, masked: Mapping[str, str]) -> GraphCut:
    """Return the cuts of both graphs and the regions to run.

    Args:
        reference: Masked reference.
        pruned: Pruned model.
        claims: Kept indices of each tensor.
        constants: Correspondence of constants.
        masked: Masked tensor of the reference -> the tensor it masks.

    Raises:
        VerificationError: The regions depend on each other in a cycle, so there is no induction.
    """
    tensors = {name for name in reference.inputs if name in pruned.inputs}
    kinds = {n: reference.inputs[n].type.tensor_type.elem_type for n in tensors}
    both = [n for n in reference.writer if n in pruned.writer and n not in reference.fixed and n not in pruned.fixed]
    scaled = {s.node for s in claims.statistics if s.counted}  # sums agree only after the division by their count
    for name in both:
        dtype = claims.dtypes.get(name)
        if dtype is None or name in scaled:
            continue
        if dtype.kind in _CUT_KINDS or dtype.itemsize == 1 or dtype.name == "bfloat16":
            tensors.add(name)
            kinds[name] = 1 if dtype.name == "bfloat16" else int(helper.np_dtype_to_tensor_dtype(dtype))
    loops = [n for n in reference.nodes if is_loop_start(n) or is_loop_end(n)]
    around = {o for n in loops for o in n.output if o}
    for name in around & pruned.writer.keys() & claims.dtypes.keys():
        tensors.add(name)
        kinds[name] = int(helper.np_dtype_to_tensor_dtype(claims.dtypes[name]))
    read = check_loops(reference, pruned, claims, tensors)
    integers = {n for n in both if n in claims.dtypes and claims.dtypes[n].kind in "iu" and n not in tensors}
    kinds |= {n: int(helper.np_dtype_to_tensor_dtype(claims.dtypes[n])) for n in integers}
    outputs = [o for o in reference.outputs if o in reference.writer]
    wanted = [
        n for n in reference.writer if (n in tensors or n in integers or n in outputs or n in read) and n not in around
    ]
    lost = {n for n in tensors if claims.removes(n)}
    text: dict[tuple[Any, ...], int] = {}
    compressed = constants.compressed
    origin = constants.origin
    keys_of = _keys(reference, tensors, lost, text, lambda n: n, {origin[n] for n in compressed}, masked)
    keys_in = _keys(pruned, tensors, lost, text, lambda n: origin.get(n, f"pruned//{n}"), compressed, {})
    by_text, once, always = [], [], []
    for name in wanted:
        (key, affected), (other, shrunk) = keys_of[name], keys_in.get(name, (-1, True))
        if key != other or key < 0:
            always.append(name)
        elif affected or shrunk or claims.removes(name):
            once.append(name)
        else:
            by_text.append(name)
    found = GraphCut(tensors, kinds, by_text, once, always, integers.difference(outputs, read))
    _check_order(reference, pruned, found)
    return found


def _keys(
    graph: Graph, tensors: Collection[str], lost: Collection[str], text: dict[tuple[Any, ...], int],
    origin: Callable[[str], str], shrunk: Collection[str], masked: Mapping[str, str],
) -> dict[str, tuple[int, bool]]:  # fmt: skip
    """Return, for every tensor, a number for the text that computes it from cuts, and whether that loses channels."""

    def number(*parts: Any) -> int:
        return text.setdefault(parts, len(text))

    known: dict[str, tuple[int, bool]] = {"": (number("absent"), False)}
    defined: dict[str, tuple[int, bool]] = {}
    for name in graph.inputs:
        known[name] = (number("cut", name), name in lost)
    for name, tensor in graph.constants.items():
        small = name not in graph.arrays and tensor.ByteSize() <= _SMALL and name not in shrunk
        key = number("value", *digest(graph.value(name))) if small else number("constant", origin(name))
        known[name] = (key, name in shrunk)
    for sparse in graph.sparse:
        known[sparse.values.name] = (number("sparse", sparse.SerializeToString()), False)
    for node in graph.nodes:
        operands = [known.get(n, (-1, True)) for n in node.input]
        inner = [known.get(n, (-1, True)) for n in reads(node)[len([n for n in node.input if n]) :]]
        touched = any(a for _, a in (*operands, *inner))
        broken = any(k < 0 for k, _ in (*operands, *inner))
        while operands and operands[-1][0] == known[""][0]:
            operands.pop()
        counts = any(a.name in CHANNEL_COUNTS for a in node.attribute)
        touched |= counts
        text_of = attributes(node, CHANNEL_COUNTS) if counts else attributes(node)
        parts = (node.domain, node.op_type, text_of, *(k for k, _ in operands), "", *(k for k, _ in inner))
        for place, name in enumerate(node.output):
            if not name:
                continue
            if name in masked:
                defined[name] = (known[masked[name]][0], True)
            elif node.op_type == "Identity" and not broken:
                defined[name] = operands[0]
            else:
                defined[name] = (-1 if broken else number(*parts, place), touched)
            known[name] = (number("cut", name), name in lost) if name in tensors else defined[name]
    return defined


def _check_order(reference: Graph, pruned: Graph, found: GraphCut) -> None:
    order: dict[str, set[str]] = {}
    for name in (*found.targets, *found.by_text):
        order[name] = reference.needed([name], found.tensors)[1] | pruned.needed([name], found.tensors)[1]
    try:
        graphlib.TopologicalSorter(order).prepare()
    except graphlib.CycleError as err:
        raise VerificationError(
            "its nodes depend on each other in another order than the original's", where=pruned.where(err.args[1][0])
        ) from err


@dataclass
class InductionResult:
    """Result of the induction.

    Attributes:
        worst: (difference, tensor, axis, index) of the largest difference.
    """

    worst: tuple[float, str, int, int] = (0.0, "", -1, 0)


class Induction:
    """Comparison of the regions between cuts.

    Args:
        reference: Masked reference.
        pruned: Pruned model.
        claims: Kept indices of each tensor.
        found: Cuts of both graphs.
        values: Source of random values.
        tolerance: (element type) -> largest allowed difference.
        session: Factory of onnxruntime sessions.

    Attributes:
        sizes: Shapes of leaves at the assignments that were tried, in order of preference.
    """

    def __init__(
        self, reference: Graph, pruned: Graph, claims: Claims, found: GraphCut, values: Values,
        tolerance: Callable[[np.dtype], float], session: MakeSession,
    ) -> None:  # fmt: skip
        self.reference = reference
        self.pruned = pruned
        self.claims = claims
        self.cut = found
        self.values = values
        self.tolerance = tolerance
        self.session = session
        bounded = {t for t in found.targets if reference.nodes[reference.writer[t]].op_type in BOUNDED}
        self.results: dict[str, TensorComparison] = {t: TensorComparison(bounded=t in bounded) for t in found.targets}
        self.styles: dict[tuple[str, str], TensorComparison] = {}  # other styles have their own scales
        self.dtypes: dict[str, np.dtype] = {}
        self.outcome = InductionResult()
        self.refusals: dict[str, str] = {}  # target -> why the reference did not run on values of the checker's choice
        self.used: set[str] = set()
        self._position = {t: i for i, t in enumerate(reference.writer)}
        self._selected = reference.selected()
        self.sizes: list[Mapping[str, tuple[int, ...]]] = []

    def leaves(self, targets: Iterable[str]) -> set[str]:
        """Return the cut tensors that the regions of these targets read."""
        out: set[str] = set()
        for t in targets:
            for graph in (self.reference, self.pruned):
                out |= graph.needed([t], self.cut.tensors)[1]
        return out

    def run(
        self, shapes: Mapping[str, tuple[int, ...]], number: int, targets: Sequence[str], style: str = "unit"
    ) -> None:
        """Run regions at one assignment of sizes.

        Args:
            shapes: Shapes of all leaves, full width.
            number: Number of the run; random values depend on it.
            targets: Targets to compare.
            style: Style of random floats.

        Raises:
            VerificationError: The pruned model does not run where the reference does.
        """
        for part in self._segments(shapes, sorted(targets, key=self._position.__getitem__)):
            self._segment(shapes, number, part, style)

    def computed(self, targets: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Return the targets of which all leaves have shapes: the others are in branches that were not executed."""
        return [t for t in targets if self.leaves([t]) <= shapes.keys()]

    def run_once(self, number: int, targets: Sequence[str], style: str = "unit") -> None:
        """Run every region at the first sizes at which its branch was executed; see `run`."""
        left = list(targets)
        for shapes in self.sizes:
            part = self.computed(left, shapes)
            if part:
                self.run(shapes, number, part, style)
            done = set(part)
            left = [t for t in left if t not in done]

    def _segments(self, shapes: Mapping[str, tuple[int, ...]], targets: Sequence[str]) -> Iterable[list[str]]:
        part: list[str] = []
        held: set[str] = set()
        size = 0
        for t in targets:
            leaves = self.leaves([t])
            bytes_of = {n: 8 * int(np.prod(shapes.get(n, (0,)))) for n in leaves | {t}}
            more = sum(b for n, b in bytes_of.items() if n not in held or n == t)
            if part and size + more > SEGMENT_BYTES:
                yield part
                part, held, size, more = [], set(), 0, sum(bytes_of.values())
            part.append(t)
            held |= leaves
            size += more
        if part:
            yield part

    def _segment(self, shapes: Mapping[str, tuple[int, ...]], number: int, targets: list[str], style: str) -> None:
        feeds = {n: self._value(n, shapes[n], number, style) for n in sorted(self.leaves(targets))}
        try:
            self.compare(targets, feeds, style)
        except OnnxPruneError as err:
            if isinstance(err, VerificationError):
                raise
            if len(targets) == 1:
                self.refusals[targets[0]] = err.what
            self._divided(shapes, number, targets, style)

    def compare(self, targets: Sequence[str], feeds: dict[str, Array], style: str = "unit") -> None:
        """Run and compare regions on given values of their leaves.

        Args:
            targets: Targets to compare.
            feeds: Values of the leaves, full width.
            style: Style of the values.

        Raises:
            OnnxPruneError: The reference does not run on them.
            VerificationError: The pruned model does not run where the reference does.
        """
        cuts = self.cut.tensors | feeds.keys()
        wanted = self._compute(self.reference, targets, feeds, cuts)
        narrow = {n: self.claims.compress(n, v) for n, v in feeds.items()}
        del feeds
        try:
            got = self._compute(self.pruned, targets, narrow, cuts)
        except OnnxPruneError as err:
            self._blame(targets, narrow, err)
        for t in targets:
            full = wanted.pop(t)
            expected = self.claims.compress(t, full)
            found = self.results[t]
            if style != "unit":
                found = self.styles.setdefault((t, style), TensorComparison(bounded=found.bounded))
            found.add(got.pop(t), expected)
            # All channels removed, or no element for any data: empty tensors agree.
            found.empty |= full.size == 0
            found.nothing_kept |= expected.size == 0 and (full.size > 0 or t not in self._selected)
            self.dtypes[t] = expected.dtype

    def _value(self, name: str, shape: tuple[int, ...], number: int, style: str) -> Array:
        dtype = _dtype(self.cut.kinds[name])
        return self.values.tensor(name, shape, dtype, number, style, largest=10 if style == "unit" else 2)

    def between_integers(self, targets: Iterable[str]) -> set[str]:
        """Return the leaves of regions that are also cut at integers."""
        cuts = self.cut.tensors | self.cut.integers
        return {n for t in targets for g in (self.reference, self.pruned) for n in g.needed([t], cuts)[1]}

    def alone(self, target: str, found: Mapping[str, Array]) -> None:
        """Run a region that is also cut at integers, with the integers computed by a run of the reference.

        Args:
            target: Target to compare.
            found: Values of the leaves in that run; empty dimensions are set to three.
        """
        feeds = {}
        for n in sorted(self.between_integers([target])):
            shape = tuple(d or 3 for d in found[n].shape)
            if n not in self.cut.integers:
                feeds[n] = self._value(n, shape, 0, "unit")
            else:
                feeds[n] = found[n] if found[n].size else np.zeros(shape, _dtype(self.cut.kinds[n]))
        self.compare([target], feeds)
        self.used |= self.cut.integers & feeds.keys()

    def _compute(
        self, graph: Graph, targets: Sequence[str], feeds: Mapping[str, Array], cuts: Collection[str]
    ) -> dict[str, Array]:
        indices, leaves = graph.needed(targets, cuts)
        kinds = {n: self.cut.kinds[n] for n in sorted(leaves)}
        ranks = {n: feeds[n].ndim for n in kinds}
        proto, external = graph.cut_out(indices, kinds, ranks, cuts, targets)
        session = self.session(proto, external)
        results = session.run({n: feeds[n] for n in kinds}, [o.name for o in proto.graph.output])
        return {o.name.removesuffix(COMPUTED): r for o, r in zip(proto.graph.output, results, strict=True)}

    def _divided(self, shapes: Mapping[str, tuple[int, ...]], number: int, targets: list[str], style: str) -> None:
        """Run the halves of a segment that the reference rejects; a single region gets values of other styles."""
        if len(targets) > 1:
            middle = len(targets) // 2
            for part in (targets[:middle], targets[middle:]):
                self._segment(shapes, number, part, style)
            return
        following = STYLES[STYLES.index(style) + 1 : STYLES.index(style) + 2] or ()
        if following and following[0] in ("image", "wide", "positive"):
            self._segment(shapes, number, targets, following[0])

    def _blame(self, targets: Sequence[str], feeds: Mapping[str, Array], error: OnnxPruneError) -> None:
        """Raise for the first region that the pruned model does not compute."""
        for t in targets:
            try:
                self._compute(self.pruned, [t], feeds, self.cut.tensors | feeds.keys())
            except OnnxPruneError as err:
                raise VerificationError(
                    f"the pruned model fails where the original runs: {err.what}", where=self.pruned.where(t)
                ) from err
        raise VerificationError(f"the pruned model fails where the original runs: {error.what}") from error

    def unseen(self) -> list[str]:
        """Return the targets that were not compared yet."""
        seen = {t for (t, _), c in self.styles.items() if c.has_elements or c.problem}
        return [t for t, c in self.results.items() if not c.has_elements and not c.problem and t not in seen]

    def accept_empty(self, settled: Collection[str]) -> None:
        """Count results as compared that are empty at every size tried, for any data.

        Args:
            settled: Results of If nodes whose branches gave results of one shape at all these sizes.
        """
        selected = self.reference.selected(settled)
        for t in self.unseen():
            self.results[t].nothing_kept = self.results[t].empty and t not in selected

    def with_single_truths(self) -> tuple[list[str], set[str]]:
        """Return the targets whose regions read single truth values, and these: all values must be run."""
        shapes = {n: s for known in reversed(self.sizes) for n, s in known.items()}
        single = {
            n
            for n, k in self.cut.kinds.items()
            if k == onnx.TensorProto.BOOL and int(np.prod(shapes.get(n, (2,)))) == 1
        }
        return [t for t in self.cut.targets if single & self.leaves([t])] if single else [], single

    def other_operators(self) -> list[str]:
        """Return the targets computed by another operator than in the original."""
        nodes, others = self.reference.nodes, self.pruned.nodes
        return [
            t for t in self.cut.always
            if nodes[self.reference.writer[t]].op_type != others[self.pruned.writer[t]].op_type
        ]  # fmt: skip

    def quiet(self) -> list[str]:
        """Return the targets of which some index held one value in all runs of all styles."""
        woken = {t for (t, _), c in self.styles.items() if not c.quiet()}
        return [t for t, c in self.results.items() if t not in woken and c.has_elements and not c.problem and c.quiet()]

    def exceeding(self) -> dict[str, list[str]]:
        """Return, by style, the targets that differ by a quarter of the tolerance or more."""
        out: dict[str, list[str]] = {}
        found = [(t, "unit", c) for t, c in self.results.items()] + [(t, s, c) for (t, s), c in self.styles.items()]
        for t, style, c in found:
            if c.has_elements and not c.problem and c.worst()[0] > self.tolerance(self.dtypes[t]) / 4:
                out.setdefault(style, []).append(t)
        return out

    def raise_on_difference(self) -> None:
        """Raise for the first target that differs.

        Raises:
            VerificationError: Names the first node, in the original's order, that breaks the induction or could not
                be checked.
        """
        unseen = set(self.unseen())
        styles: dict[str, list[TensorComparison]] = {t: [c] for t, c in self.results.items()}
        for (t, _), c in self.styles.items():
            styles[t].append(c)
        for t in sorted(self.results, key=self._position.__getitem__):
            where = f"{self.reference.where(t)}, tensor {t!r}"
            if t in unseen and (t not in self.cut.integers or t in self.used):
                why = self.refusals.get(t, "the original computes nothing there on values of the checker's choice")
                raise VerificationError(
                    f"it could not be checked: {why}",
                    where=where,
                    fix="verify on real inputs with --data",
                )
            for c in styles[t]:
                if c.problem:
                    raise VerificationError(f"the pruned model differs: {c.problem}", where=where, fix=REPORT)
                if not c.has_elements:
                    continue
                worst, axis, index = c.worst()
                limit = self.tolerance(self.dtypes[t])
                if not worst <= limit:
                    place = f" (index {index} of axis {axis})" if axis >= 0 else ""
                    raise VerificationError(
                        f"the pruned model differs from the masked original by {worst:.2g} relative"
                        f"{place}; allowed: {limit:.0e}",
                        where=where,
                        fix=REPORT,
                    )
                if worst > self.outcome.worst[0] or not self.outcome.worst[1]:
                    self.outcome.worst = (worst, t, axis, index)


def _dtype(kind: int) -> np.dtype:
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind))


REPORT = "please report this model; meanwhile, --exclude the groups that cause it"
