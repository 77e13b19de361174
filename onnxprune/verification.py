"""The proof: the stripped graph computes what the masked original computes.

Removing a channel means that every consumer stops reading it. The reference is therefore the caller's own model with
a mask multiplied in at every contraction input (pass insert_masks); both run in onnxruntime on the same inputs, at
two batch sizes where the batch is dynamic. Where removed channels feed a statistic (LayerNorm, a mean over channels)
that is not masking: the reference then computes the statistic on the channels that stay (pass slice_statistics).
Where a model decides (a detector its boxes), the pruned one gets the decisions of the reference: see `decisions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.coupling import Analysis
from onnxprune.decisions import decisions, given, removable
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.model import Array, Model
from onnxprune.passes.base import Pass, Pipeline
from onnxprune.passes.insert_masks import InsertMasks
from onnxprune.passes.slice_statistics import SliceStatistics
from onnxprune.passes.widen_floats import WidenFloats, narrow
from onnxprune.plans import Plan
from onnxprune.runtime import Session

# Relative to the largest magnitude of an output. float32: about 1,000 ulps, room for sums in another order through a
# deep network; the others by the same share of their precision.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# Where activations are rounded to 8 bits a number on the edge of two integers may fall to either side: one step of
# 255, times a weight that may be large. What runs in integers throughout agrees bit by bit.
QUANTIZED = 5e-2
BATCHES = (1, 5)


@dataclass(frozen=True)
class Verification:
    """What was compared and how far apart it was.

    Attributes:
        max_relative: largest |pruned - masked| over the largest |masked| of the same output; of numbers inside the
            model that are rounded and nothing else, means of both.
        tolerance: what is allowed, by the model's element type.
        outputs: the same figure per output.
        batches: batch sizes that were run.
        inputs: "random" or "data".
        effect: how far the reference is from the original, same measure, 1 for outputs of other shapes: 0 would prove
            nothing.
        inexact: groups whose removal is not masking alone; where there are any, statistics of the reference run over
            the channels that stay.
        computed_in: "float32" where float32 copies of bfloat16 models were compared, for lack of kernels; else "".
        decided: tensors that hold decisions (selected boxes, classes, comparisons): the pruned model was given those
            of the reference, and what they were decided by was compared among the outputs.
    """

    max_relative: float
    tolerance: float
    outputs: Mapping[str, float]
    batches: Sequence[int]
    inputs: str
    effect: float
    inexact: Sequence[str] = ()
    computed_in: str = ""
    decided: Sequence[str] = ()

    @property
    def reference(self) -> str:
        """What the pruned model was compared with, in words."""
        return "original, sliced in statistics and masked elsewhere" if self.inexact else "masked original"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "reference": self.reference}


def reference(analysis: Analysis, plan: Plan) -> Model:
    """The original of which every consumer stops reading what a plan removes.

    Masks stand at contractions; nodes that take a statistic over removed channels run on those that stay.
    """
    passes: list[Pass] = [InsertMasks(plan, analysis)]
    if analysis.inexact(plan):
        passes.append(SliceStatistics(plan, analysis))
    return Pipeline(passes)(analysis.source)


def relative_difference(actual: Array, expected: Array) -> float:
    """max |actual - expected| / max |expected|; infinite if shapes differ or finite and non-finite places do."""
    if actual.shape != expected.shape:
        return float("inf")
    if actual.dtype.kind not in "fV":
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(b[finite]).max())
    gap = float(np.abs(a[finite] - b[finite]).max())
    return gap / scale if scale else gap


def _effect(original: Array, masked: Array) -> float:
    """The difference a removal makes; outputs of another shape, or no longer finite, count 1."""
    found = relative_difference(original, masked)
    return found if np.isfinite(found) else 1.0


def mean_difference(actual: Array, expected: Array) -> float:
    """mean |actual - expected| / mean |expected|, for numbers that get rounded: single ones may be ill-conditioned.

    Which level of a pyramid a box belongs to is read from the logarithm of its area, and that may be nearly nothing.
    """
    worst = relative_difference(actual, expected)
    if not np.isfinite(worst) or actual.dtype.kind not in "fV":
        return worst
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(b)
    size = float(np.abs(b[finite]).mean()) if finite.any() else 0.0
    return float(np.abs(a[finite] - b[finite]).mean()) / size if size else worst


def random_feeds(analysis: Analysis, batch: int, seed: int = 0) -> dict[str, Array]:
    """Inputs a model accepts: normal values for floats, small numbers that every table holds for integers.

    They are float32 where the model says bfloat16, which runs as a float32 copy.
    """
    rng = np.random.default_rng(seed)
    graph = analysis.source.graph
    dims = analysis.witness.dims
    feeds: dict[str, Array] = {}
    for t in graph.inputs:
        shape = []
        for axis, n in enumerate(t.shape or ()):
            dynamic = (t.name, axis) in dims
            shape.append((batch if axis == 0 else dims[t.name, axis]) if dynamic else int(n))
        dtype = np.dtype(np.float32 if narrow(t.dtype) else t.dtype)
        if dtype.kind in "iu":
            feeds[t.name] = rng.integers(0, _largest_index(t), shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[t.name] = np.ones(shape, bool)
        else:
            feeds[t.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def _largest_index(t: gs.Tensor) -> int:
    """How many rows the smallest table has that an integer input looks up."""
    rows = [2**15]
    front = [t]
    while front:
        for node in front.pop().outputs:
            if node.op == "Gather" and isinstance(node.inputs[0], gs.Constant):
                rows.append(int(node.inputs[0].shape[int(node.attrs.get("axis", 0))]))
            elif node.op in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
                front.extend(node.outputs)
    return min(rows) if len(rows) > 1 else 2


def verify(
    analysis: Analysis,
    plan: Plan,
    pruned: Model,
    *,
    feeds: Sequence[Mapping[str, Array]] | None = None,
    tolerance: float | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Verification:
    """Compares a pruned model with the masked original (see `reference`).

    Args:
        analysis: of the original.
        plan: what was removed.
        pruned: the stripped model.
        feeds: real inputs; default: random ones at batch 1 and 5 (at the model's own batch where that is fixed).
        tolerance: overrides the one of the model's element type.

    Raises:
        VerificationError: they differ by more than the tolerance; nothing may be written then.
        OnnxPruneError: onnxruntime rejects one of the models.
    """
    sets = (
        list(feeds)
        if feeds is not None
        else [random_feeds(analysis, b, seed + i) for i, b in enumerate(_batches(analysis))]
    )
    batches = tuple(next((len(v) for v in f.values() if v.ndim), 1) for f in sets)
    if _interface(pruned) != _interface(analysis.source):
        raise VerificationError("the pruned model's inputs or outputs are not the original's")
    made = decisions(analysis, pruned)
    decided = list(made.tensors)
    results = _observed(analysis, pruned, decided)
    names = list(dict.fromkeys([*results, *made.reasons]))
    loose = made.rounded.difference(results)
    both = _run(reference(analysis, plan), [*names, *decided], sets, device, analysis)
    wanted = [found[: len(names)] for found in both]
    taken = [dict(zip(decided, found[len(names) :], strict=True)) for found in both]
    sets = [{**f, **more} for f, more in zip(sets, taken, strict=True)]
    got = _run(given(pruned, taken[0], analysis), names, sets, device, analysis)
    outputs = {}
    for i, name in enumerate(names):
        difference = mean_difference if name in loose else relative_difference
        outputs[name] = max(difference(g[i], w[i]) for g, w in zip(got, wanted, strict=True))
    limit = tolerance if tolerance is not None else _tolerance(analysis, wanted)
    floats = [w for w in wanted[0] if w.dtype.kind in "fV"]
    if floats and not any(np.isfinite(np.asarray(w, np.float64)).any() for w in floats):
        raise VerificationError(
            "the original computes no finite value on these inputs, so nothing can be compared",
            fix="verify on real inputs with --data",
        )
    worst = max(outputs.values(), default=0.0)
    try:
        plain = _run(given(analysis.source, taken[0], analysis), names, sets[:1], device, analysis)[0]
        effect = max((_effect(p, w) for p, w in zip(plain, wanted[0], strict=True)), default=0.0)
    except OnnxPruneError:
        if not decided:
            raise
        effect = 1.0  # the decisions do not fit what the original computes
    inexact = tuple(g.name for g in analysis.inexact(plan))
    kind = "data" if feeds is not None else "random"
    computed_in = "float32" if holds_bfloat16(analysis.source) else ""
    result = Verification(worst, limit, outputs, batches, kind, effect, inexact, computed_in, decided)
    if not worst <= limit:
        output = max(outputs, key=lambda n: outputs[n])
        raise VerificationError(
            f"the pruned model differs from the {result.reference} by {worst:.2g} relative (allowed: {limit:.0e})",
            where=f"output {output!r}",
            fix="please report this model; meanwhile, --exclude the groups that cause it",
        )
    return result


def holds_bfloat16(model: Model) -> bool:
    """Whether any tensor is bfloat16: onnxruntime's CPU has few kernels for it, and numpy cannot hand it one."""
    tensors = (t for g in (model.graph, *model.graph.subgraphs(recursive=True)) for t in g.tensors().values())
    casts = any(n.op == "Cast" and narrow(n.attrs.get("to")) for n in model.graph.nodes)
    return casts or any(narrow(t.dtype) for t in tensors)


def _interface(model: Model) -> tuple[list[str], list[str]]:
    return [t.name for t in model.graph.inputs], [t.name for t in model.graph.outputs]


def _observed(analysis: Analysis, pruned: Model, decided: Sequence[str]) -> list[str]:
    """The tensors to compare: the outputs, and in place of class numbers the scores behind them."""
    dtypes = analysis.witness.dtypes
    present = [{o.name for n in m.graph.nodes for o in n.outputs} for m in (analysis.source, pruned)]
    out: list[str] = []
    for t in analysis.source.graph.outputs:
        if t.name in decided:
            continue
        front, scores, seen = [t], [], {t.name}
        while front:
            x = front.pop()
            dtype = np.dtype(dtypes.get(x.name) or x.dtype or np.float32)
            if dtype.kind in "fV":
                scores.append(x.name)
            elif x.inputs and x.name not in decided:
                front.extend(i for i in x.inputs[0].inputs if not isinstance(i, gs.Constant) and i.name not in seen)
                seen.update(i.name for i in x.inputs[0].inputs)
        whole = [n for n in scores if all(n in p for p in present) and not removable(analysis, n)]
        out += whole if scores and len(whole) == len(scores) else [t.name]
    return list(dict.fromkeys(out))


def _run(
    model: Model, names: Sequence[str], sets: Sequence[Mapping[str, Array]], device: str, analysis: Analysis
) -> list[list[Array]]:
    """The named tensors of a model on every set of inputs; tensors inside it become outputs of a copy."""
    if [t.name for t in model.graph.outputs] != list(names):
        model = model.copy()
        tensors = model.graph.tensors()
        model.graph.outputs = [tensors[n] for n in names]
        for t in model.graph.outputs:
            t.dtype, t.shape = analysis.witness.dtypes.get(t.name, t.dtype), None
    if holds_bfloat16(model):
        model = WidenFloats()(model)
        sets = [{k: v.astype(np.float32) if narrow(v.dtype) else v for k, v in f.items()} for f in sets]
    session = Session(model, device=device)
    return [session.run(f, names) for f in sets]


def _batches(analysis: Analysis) -> tuple[int, ...]:
    graph = analysis.source.graph
    if any((t.name, 0) in analysis.witness.dims for t in graph.inputs):
        return BATCHES
    first = next((t.shape[0] for t in graph.inputs if t.shape), 1)
    return (int(first),)


def _tolerance(analysis: Analysis, outputs: Sequence[Sequence[Array]]) -> float:
    kinds = {o.dtype.name for run in outputs for o in run}
    own = max((TOLERANCE[k] for k in kinds if k in TOLERANCE), default=TOLERANCE["float32"])
    rounds = any(rounds_activations(n) for n in analysis.model.graph.nodes)
    return max(own, QUANTIZED) if rounds else own


def rounds_activations(node: gs.Node) -> bool:
    """Whether a node makes integers of activations; DequantizeLinear of a weight, and QuantizeLinear of one, do not."""
    if node.op == "QuantizeLinear":
        return not isinstance(node.inputs[0], gs.Constant)
    return str(node.op).startswith(("DynamicQuantize", "QLinear", "QGemm", "QAttention"))
