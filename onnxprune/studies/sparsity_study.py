"""Weight pruning against unit pruning: what a classifier still knows at one sparsity after another, and its size.

The study: in every layer but the last, set k % of the weights to zero, those of smallest magnitude (weight), or k % of
the columns of its matrix [in, out], those of smallest Euclidean norm (unit), and draw accuracy against k. Units can
also really go: the same ones, by the l2 criterion, through a plan, stripped and verified.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from glob import escape
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.analysis.layer_weights import LayerWeight, layer_weights
from onnxprune.criteria.scoring import score
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.data import Data, Preprocess
from onnxprune.execution.evaluation import evaluate
from onnxprune.ir.compressed_size import compressed_size, nonzero_parameters
from onnxprune.ir.model import Model
from onnxprune.options.sparsity import ENDS
from onnxprune.options.sparsity import POINTS as POINTS
from onnxprune.passes.sparsify_weights import METHODS, SparsifyWeights, prunable
from onnxprune.pipeline import analyze, compile_plan, plan
from onnxprune.planning.constraints import Constraints

"""The sparsities of the study."""


@dataclass(frozen=True)
class SparsityPoint:
    """One pruned model.

    Attributes:
        what: "weight" or "unit".
        end: "zeros", or "strip" for units that were really removed.
        sparsity: share that was asked to go, of the weights (or units) of every pruned layer.
        reached: share of the pruned layers' weights that are zero or gone. Removed units take weights of the next
            layer with them, so here it is larger than what was asked.
        top1: accuracy, and `top1_error`, its standard error.
        loss: mean cross-entropy in nats.
        parameters: left in the whole model, zeros not counted.
        compressed_bytes: of the model's file in one zlib stream.
        verified: largest relative difference from the masked original; None where nothing was stripped.
    """

    what: str
    end: str
    sparsity: float
    reached: float
    top1: float
    top1_error: float
    loss: float
    parameters: int
    compressed_bytes: int
    verified: float | None = None


@dataclass(frozen=True)
class SparsityStudy:
    """A sweep over sparsities.

    Attributes:
        model: fingerprint of the original.
        data: name of the samples, and `images`, how many.
        scope: "layer" or "global".
        weights: names of the pruned ones.
        points: by what, then by sparsity.
        tool: version that made it.
    """

    model: str
    data: str
    images: int
    scope: str
    weights: tuple[str, ...]
    points: tuple[SparsityPoint, ...] = field(repr=False)
    tool: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def to_csv(self) -> str:
        """A table of the points: a column for each field of `Point`, numbers in full, nothing where there is none."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([f.name for f in fields(SparsityPoint)])
        writer.writerows(["" if v is None else v for v in asdict(p).values()] for p in self.points)
        return out.getvalue()


def study(
    model: Model,
    data: Data,
    *,
    what: Sequence[str] = METHODS,
    points: Sequence[float] = POINTS,
    end: str = "zeros",
    scope: str = "layer",
    exclude: Sequence[str] = (),
    include_last: bool = False,
    preprocess: Preprocess | None = None,
    batch: int = 64,
    threads: int = 0,
    device: str = "cpu",
    tool: str = "",
    keep: Callable[[SparsityPoint, Model], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SparsityStudy:
    """Prunes the same model to every sparsity, and measures each result.

    Args:
        model: a classifier.
        data: samples with labels.
        what: "weight", "unit" or both.
        points: sparsities, in [0, 1).
        end: how units end: "zeros", or "strip", removed. Residual streams are then removed as a whole, by the mean norm
            of the layers that write to them.
        scope: "layer" or "global"; see the pass sparsify_weights. Units are stripped by layer only.
        exclude: glob patterns of weights left whole.
        include_last: prune the last layer, too; it cannot be stripped.
        preprocess: how pixels become the model's input.
        batch: samples per run.
        threads: of onnxruntime; 0 leaves the choice to it.
        device: "auto", "cpu" or "cuda".
        tool: version, for the record.
        keep: called with every point and its model.
        progress: called with (done, total) points.

    Raises:
        OnnxPruneError: an argument that makes no sense, data without labels or that does not fit, no unit to strip.
        VerificationError: a stripped model does not compute what its masked original does.
    """
    asked = _checked(what, points, end, scope)
    chosen = prunable(model, exclude, include_last)
    strip = _UnitStripper(model, chosen) if end == "strip" and "unit" in what else None
    layers = _outputs(chosen)
    whole = _remaining_weights(model.graph, layers, np.size)
    found: list[SparsityPoint] = []
    for method, sparsity in asked:
        proof: float | None = None
        if method == "unit" and strip is not None:
            small, proof = strip(sparsity)
            reached = 1 - _remaining_weights(small.graph, layers, np.count_nonzero) / strip.total_weights
        else:
            small = SparsifyWeights(sparsity, method, scope, exclude=tuple(exclude), include_last=include_last)(model)
            reached = 1 - _remaining_weights(small.graph, layers, np.count_nonzero) / whole
        result = evaluate(small, data, preprocess=preprocess, batch=batch, threads=threads, device=device)
        found.append(
            SparsityPoint(
                method, end if method == "unit" else "zeros", sparsity, reached, result.top1, result.top1_error,
                result.loss, nonzero_parameters(small), compressed_size(small), proof,
            )
        )  # fmt: skip
        if keep is not None:
            keep(found[-1], small)
        if progress is not None:
            progress(len(found), len(asked))
    return SparsityStudy(
        model.fingerprint, data.name, len(data), scope, tuple(w.name for w in chosen), tuple(found), tool
    )


def _checked(what: Sequence[str], points: Sequence[float], end: str, scope: str) -> list[tuple[str, float]]:
    """Every point that is wanted, once."""
    for name in what:
        if name not in METHODS:
            raise unknown("kind of pruning", name, METHODS)
    if end not in ENDS:
        raise unknown("end", end, ENDS)
    if end == "strip" and scope != "layer" and "unit" in what:
        raise OnnxPruneError("units are stripped layer by layer", fix="--scope layer, or --end zeros")
    if not what or not points:
        raise OnnxPruneError("there is nothing to measure", fix="--what weight,unit --points 0,0.5,0.9")
    sparsities = sorted(set(map(float, points)))
    for method in what:
        for sparsity in sparsities:
            SparsifyWeights(sparsity, method, scope)  # refuses what makes no sense before anything is measured
    return [(method, sparsity) for method in dict.fromkeys(what) for sparsity in sparsities]


class _UnitStripper:
    """Removes the units of smallest norm from the layers that are pruned.

    Args:
        model: the original.
        chosen: its weights that are pruned.
    """

    def __init__(self, model: Model, chosen: Sequence[LayerWeight]) -> None:
        self.model = model
        self.analysis = analyze(model)
        layers = _outputs(chosen)
        groups = [g for g in self.analysis.groups if _produced_by(self.analysis, g, layers)]
        if not groups:
            raise OnnxPruneError(
                "none of the pruned layers' units can be removed", fix="see `onnxprune inspect`, or --end zeros"
            )
        self.include = tuple(escape(g.name) for g in groups)
        self.scores = score(self.analysis, "l2", groups=[g.name for g in groups])
        self.total_weights = _remaining_weights(self.analysis.model.graph, layers, np.size)

    def __call__(self, sparsity: float) -> tuple[Model, float | None]:
        """The smaller model, and how far it is from the masked original."""
        if sparsity == 0:
            return self.model, None
        constraints = Constraints(round_to=1, max_ratio=sparsity, include=self.include)
        done = compile_plan(
            self.model, plan(self.scores, ratio=sparsity, constraints=constraints), analysis=self.analysis
        )  # fmt: skip
        assert done.verification is not None
        return done.model, done.verification.max_relative


def _outputs(weights: Sequence[LayerWeight]) -> frozenset[str]:
    """What the weights' layers write: names that normalizing and stripping leave alone."""
    return frozenset(u.node.outputs[0].name for w in weights for u in w.uses)


def _produced_by(analysis: Analysis, group: Group, layers: frozenset[str]) -> bool:
    """Whether a group's channels are made by these layers alone."""
    inside = np.zeros(analysis.count, np.bool_)
    inside[group.components] = True
    makers = [
        node.outputs[0].name
        for site in analysis.filter_sites
        if inside[analysis.component[site.labels]].any()
        for node in site.tensor.outputs
    ]
    return bool(makers) and layers.issuperset(makers)


def _remaining_weights(graph: gs.Graph, layers: frozenset[str], measure: Callable[[Any], Any]) -> int:
    """Sum of a measure over the weights of some layers."""
    return sum(
        int(measure(w.values)) for w in layer_weights(graph) if any(u.node.outputs[0].name in layers for u in w.uses)
    )
