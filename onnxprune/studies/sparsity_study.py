"""Weight pruning against unit pruning: accuracy and size of a classifier over a range of sparsities.

In every layer but the last, k % of the weights with smallest magnitude (weight), or k % of the columns of its matrix
[in, out] with smallest Euclidean norm (unit), are set to zero; accuracy is recorded against k. Units can also be
removed: the same ones, by the l2 criterion, through a plan, stripped and verified.
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

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.analysis.layer_weights import LayerWeight, layer_weights
from onnxprune.criteria.scoring import score
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.data import Data, Preprocess
from onnxprune.execution.tasks.evaluation import evaluate
from onnxprune.ir.compressed_size import compressed_size, nonzero_parameters
from onnxprune.ir.model import Model
from onnxprune.options.sparsity import ENDS
from onnxprune.options.sparsity import POINTS as POINTS
from onnxprune.options.tasks import TaskOptions
from onnxprune.passes.sparsify_weights import METHODS, SparsifyWeights, prunable
from onnxprune.pipeline import analyze, compile_plan, plan
from onnxprune.planning.constraints import Constraints

"""Sparsities of the study."""


@dataclass(frozen=True)
class SparsityPoint:
    """One pruned model.

    Attributes:
        what: "weight" or "unit".
        end: "zeros", or "strip" for removed units.
        sparsity: Requested share of the weights (or units) of every pruned layer.
        reached: Share of the pruned layers' weights that are zero or removed. Removing units also removes weights of
            the next layer, so this exceeds the request.
        top1: Accuracy; `top1_error`: its standard error.
        loss: Mean cross-entropy in nats.
        parameters: Remaining non-zero parameters of the model.
        compressed_bytes: Bytes of the model's file as one zlib stream.
        verified: Largest relative difference from the masked original; None if nothing was stripped.
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
    """Result of a study.

    Attributes:
        model: Fingerprint of the original.
        data: Name of the data; `images`: number of samples.
        scope: "layer" or "global".
        weights: Names of the pruned weights.
        points: Points by `what`, then by sparsity.
        tool: Version that made the study.
    """

    model: str
    data: str
    images: int
    scope: str
    weights: tuple[str, ...]
    points: tuple[SparsityPoint, ...] = field(repr=False)
    tool: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the study as a JSON object."""
        return asdict(self)

    def to_csv(self) -> str:
        """Return a CSV table with a column per field of `SparsityPoint`, numbers unrounded, None as empty cells."""
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
    progress: Progress | None = None,
) -> SparsityStudy:
    """Prune one model to every sparsity and evaluate each result.

    Args:
        model: Classifier.
        data: Samples with labels.
        what: "weight", "unit" or both.
        points: Sparsities, in [0, 1).
        end: "zeros", or "strip" to remove units. Residual streams are then removed together, by the mean norm of the
            layers that write to them.
        scope: "layer" or "global"; see the pass sparsify_weights. Units are only stripped by layer.
        exclude: Glob patterns of weights that are not pruned.
        include_last: Prune the last layer, too; it cannot be stripped.
        preprocess: Conversion of pixels to the model's input.
        batch: Samples per run.
        threads: Threads of onnxruntime; 0: its default.
        device: "auto", "cpu" or "cuda".
        tool: Version, for the record.
        keep: Called with every point and its model.
        progress: Called with (done, total) points.

    Raises:
        OnnxPruneError: An invalid argument, data without labels or that does not fit, or no unit that can be stripped.
        VerificationError: A stripped model does not compute the same as its masked original.
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
        result = evaluate(
            small, data, preprocess=preprocess, task=TaskOptions(task="classify"), batch=batch, threads=threads,
            device=device,
        )  # fmt: skip
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
    """Return all requested (kind, sparsity) points, each once; raise for invalid arguments."""
    for name in what:
        if name not in METHODS:
            raise unknown("kind of pruning", name, METHODS)
    if end not in ENDS:
        raise unknown("end", end, ENDS)
    if end == "strip" and scope != "layer" and "unit" in what:
        raise OnnxPruneError("units are stripped layer by layer", fix="--scope layer, or --end zeros")
    if not what or not points:
        raise OnnxPruneError("no kind of pruning or no sparsity is given", fix="--what weight,unit --points 0,0.5,0.9")
    sparsities = sorted(set(map(float, points)))
    for method in what:
        for sparsity in sparsities:
            SparsifyWeights(sparsity, method, scope)  # reject invalid values before anything is measured
    return [(method, sparsity) for method in dict.fromkeys(what) for sparsity in sparsities]


class _UnitStripper:
    """Removal of the units with the smallest norm from the pruned layers.

    Args:
        model: Original model.
        chosen: Its pruned weights.
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
        """Return the smaller model and its relative difference from the masked original."""
        if sparsity == 0:
            return self.model, None
        constraints = Constraints(round_to=1, max_ratio=sparsity, include=self.include)
        done = compile_plan(
            self.model, plan(self.scores, ratio=sparsity, constraints=constraints), analysis=self.analysis
        )  # fmt: skip
        assert done.verification is not None
        return done.model, done.verification.max_relative


def _outputs(weights: Sequence[LayerWeight]) -> frozenset[str]:
    """Return the outputs of the weights' layers, whose names survive normalization and stripping."""
    return frozenset(u.node.outputs[0].name for w in weights for u in w.uses)


def _produced_by(analysis: Analysis, group: Group, layers: frozenset[str]) -> bool:
    """Return whether a group's channels are produced by these layers only."""
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
    """Return the sum of a measure over the weights of some layers."""
    return sum(
        int(measure(w.values)) for w in layer_weights(graph) if any(u.node.outputs[0].name in layers for u in w.uses)
    )
