"""Recovery without training: better weights for a pruned model from its original, the plan and calibration data.

Stages run in order: `recalibrate_batchnorm`, `reconstruct_weights`, and if asked for `reconstruct_blocks`. After each,
the model is evaluated on held-out samples: by the metric of its task if there are targets or a metric is named, else by
the distance of its outputs from the original's. A stage that does not improve it is undone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune._utils.output.formatting import counted, seconds
from onnxprune._utils.output.html import html_table
from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.execution.graph_segments import Segments
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.evaluation import evaluate, metric_text, metric_title
from onnxprune.execution.tasks.metrics import SHARES, Metric, kind_of
from onnxprune.execution.tasks.output_distance import OutputDistance, detection_divergence
from onnxprune.execution.tasks.task import bind_task
from onnxprune.ir.model import PROVENANCE, Model
from onnxprune.ir.writer import save
from onnxprune.options.recovery import ALL_STAGES as ALL_STAGES
from onnxprune.options.recovery import STAGES as STAGES
from onnxprune.options.tasks import TaskOptions, task_options
from onnxprune.planning.analyze import analyze_for
from onnxprune.planning.sensitivity_sweep import data_digest
from onnxprune.plans import Plan
from onnxprune.recovery._lockstep import check_wiring, without_blocks
from onnxprune.recovery._original_activations import OriginalActivations as OriginalActivations
from onnxprune.recovery._solutions import SolutionStore
from onnxprune.recovery.recalibrate_batchnorm import RecalibrateBatchnorm
from onnxprune.recovery.reconstruct_blocks import EPOCHS as EPOCHS
from onnxprune.recovery.reconstruct_blocks import BlockSolution, ReconstructBlocks
from onnxprune.recovery.reconstruct_weights import ReconstructWeights, Solution

LEAST = 16  # samples
_HOLDOUT_STRIDE = 8  # hold out every 8th sample
_MAX_HOLDOUT = 512  # maximum number of held-out samples
MEMORY = 2**28  # bytes of the original's outputs on them
_RUN = 2**25  # bytes of the largest activation of one run


@dataclass(frozen=True)
class RecoveryStage:
    """Result of one stage.

    Attributes:
        name: "as cut" for the pruned model, or the name of the stage.
        distance: Distance of the outputs from the original's on held-out samples (`OutputDistance`); inf if one is not
            finite.
        top1: Accuracy on held-out samples, if that is the metric; else None.
        seconds: Duration.
        kept: Whether the result was kept; a stage without improvement is undone.
        note: Remark for the user, such as the number of solved layers.
        value: Value of the metric on held-out samples; None without one, or with outputs that are not finite.
    """

    name: str
    distance: float
    top1: float | None
    seconds: float
    kept: bool
    note: str = ""
    value: float | None = None


@dataclass(frozen=True, repr=False)
class Recovered:
    """Recovered model and the stages that led to it.

    Attributes:
        model: Pruned model with recovered weights.
        stages: Stages in order, the pruned model first.
        original: Value of the metric for the original on held-out samples; None without a metric.
        samples: Numbers of samples (used by the stages, held out).
        metric: Name of the metric; "" for none.
        accepted_by: Figure by which stages are kept or undone: the name of the metric, or "distance".
    """

    model: Model = field(repr=False)
    stages: tuple[RecoveryStage, ...]
    original: float | None
    samples: tuple[int, int]
    metric: str = ""
    accepted_by: str = "distance"

    def __repr__(self) -> str:
        return f"<Recovered: {self.summary}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: every stage, on held-out samples."""
        rows = [["original", self.text(self.original), "0", ""]] if self.original is not None else []
        for s in self.stages:
            name = s.name + ("" if s.kept else " (undone)")
            rows.append([name, self.text(s.value) or "-", f"{s.distance:.4f}", seconds(s.seconds)])
        note = f"{self.samples[0]} samples, {self.samples[1]} held out; {self.rule}"
        return html_table("recovered", ["stage", self.title, "distance", "time"], rows, note=note)

    @property
    def title(self) -> str:
        """Name of the metric, as tables show it."""
        return metric_title(self.metric or "top1")

    def text(self, value: float | None) -> str:
        """Return a value of the metric, as tables show it; "" for None."""
        return "" if value is None else metric_text(self.metric, value)

    def save(self, path: str | os.PathLike[str], *, external: bool | None = None) -> Path:
        """Write the model; see `onnxprune.save`."""
        return save(self.model, path, external=external)

    @property
    def rule(self) -> str:
        """The rule by which stages are kept or undone."""
        by = "output distance" if self.accepted_by == "distance" else self.title
        return f"stages kept by {by} on held-out samples"

    @property
    def metrics(self) -> dict[str, tuple[float, float]]:
        """Figures on held-out samples, name -> (original, result): the metric, if any, "distance" of the outputs."""
        best = self.best
        figures = {} if self.original is None or best.value is None else {self.metric: (self.original, best.value)}
        return {**figures, "distance": (0.0, best.distance)}

    @property
    def best(self) -> RecoveryStage:
        """The stage that the model is of: the last that was kept."""
        return [s for s in self.stages if s.kept][-1]

    @property
    def summary(self) -> str:
        """The result in one line."""
        cut, best = self.stages[0], self.best
        line = f"output distance {cut.distance:.3g} -> {best.distance:.3g}"
        if cut.value is not None and best.value is not None:
            line += f", {self.title} {self.text(cut.value)} -> {self.text(best.value)}"
            line += f" (original {self.text(self.original)})" if self.original is not None else ""
        return f"{line} on {counted(self.samples[1], 'held-out sample')}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a JSON object; infinite distances become None."""
        return {
            "metric": self.metric,
            "accepted_by": self.accepted_by,
            "original": self.original,
            "original_top1": self.original if self.metric == "top1" else None,
            "samples": self.samples[0],
            "held_out": self.samples[1],
            "stages": [asdict(s) | {"distance": s.distance if np.isfinite(s.distance) else None} for s in self.stages],
        }


def check_samples(data: Data) -> None:
    """Raise if there are too few samples.

    Raises:
        OnnxPruneError: Names the minimum number.
    """
    if len(data) < LEAST:
        raise OnnxPruneError(f"recovery needs at least {LEAST} samples; there are {len(data)}", fix="use more data")


def split(data: Data) -> tuple[Data, Data]:
    """Return (samples for fitting, held-out samples): every 8th sample is held out, 512 at most.

    Raises:
        OnnxPruneError: There are too few samples.
    """
    check_samples(data)
    index = np.arange(len(data))
    judges = index[_HOLDOUT_STRIDE - 1 :: _HOLDOUT_STRIDE]
    judges = judges[np.linspace(0, len(judges) - 1, min(len(judges), _MAX_HOLDOUT)).astype(np.int64)]
    return _part(data, np.setdiff1d(index, judges)), _part(data, judges)


def _part(data: Data, which: npt.NDArray[np.int64]) -> Data:
    return data.take(which)


def recover(
    original: Model,
    pruned: Model,
    plan: Plan,
    calibration: Calibration,
    *,
    analysis: Analysis | None = None,
    stages: Sequence[str] = STAGES,
    rows: int = 40_000,
    rounds: int = 6,
    epochs: int = EPOCHS,
    folder: Path | None = None,
    restart: bool = False,
    task: TaskOptions | None = None,
    originals: OriginalActivations | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Recovered:
    """Re-solve the weights of a pruned model so that its outputs approach the original's.

    A stage is kept if it improves the metric on held-out samples. If a metric that is a share changes by no more than
    its standard error, the distance of the outputs from the original's decides; it decides alone without a metric that
    is named, or one of the task with targets.

    Args:
        original: Model before pruning.
        pruned: Model pruned by the plan, possibly retrained since.
        plan: Channels that were removed.
        calibration: Calibration data; targets serve the metric on held-out samples only.
        analysis: Coupling analysis of the original, if available.
        stages: Names of the stages, in order.
        rows: Output positions used for each layer, over all samples.
        rounds: Rounds of the alternation if an activation follows a layer.
        epochs: Epochs of `reconstruct_blocks`, for each block.
        folder: Folder that stores solved layers, so that an interrupted run continues; the caller removes it.
        restart: Discard the layers of an interrupted run.
        task: Task and metric; default: guessed from the model and the targets.
        originals: Activations of the original, shared by several recoveries on the same samples.
        memory: Bytes of the original's outputs on held-out samples; fewer samples are used if they need more.
        progress: Called with (layers done, layers in all).

    Raises:
        OnnxPruneError: Models and plan do not belong together; there are too few samples, or they do not fit;
            activations are not finite; or the folder holds another run's layers.
    """
    for name in stages:
        if name not in ALL_STAGES:
            raise unknown("stage", name, ALL_STAGES)
    if "reconstruct_blocks" in stages:
        from onnxprune import torch_bridge  # noqa: F401  (before anything slow: an error that names the extra)
    analysis = analyze_for(original, plan) if analysis is None else analysis
    check_belongs(analysis, plan, pruned)
    calibration = _bounded(analysis, calibration)
    solving, judging = split(calibration.data)
    inside = replace(calibration, data=solving)
    judge = _holdout_evaluator(analysis, replace(calibration, data=judging), task_options(task), memory, originals)
    model = pruned
    best = judge.stage("as cut", pruned, 0.0)
    done = [best]
    store = SolutionStore(folder, _settings(pruned, plan, calibration, stages, rows, rounds, epochs), restart)
    try:
        for i, name in enumerate(stages):
            start = time.perf_counter()
            note = ""
            if name == "recalibrate_batchnorm":
                new = RecalibrateBatchnorm(plan, analysis, inside, originals)(model)
            elif name == "reconstruct_blocks":
                counts = _SolutionCounter(store, i, progress)
                new = ReconstructBlocks(
                    plan, analysis, inside, epochs, known=partial(store.load_block, i), done=counts.add_block
                )(model)
                note = f"{counts.solved} of {counts.total} blocks"
            else:
                counts = _SolutionCounter(store, i, progress)
                new = ReconstructWeights(
                    plan, analysis, inside, rows=rows, rounds=rounds, known=partial(store.load_layer, i),
                    done=counts.add_layer, originals=originals,
                )(model)  # fmt: skip
                note = f"{counts.solved} of {counts.total} layers"
            stage = judge.stage(name, new, time.perf_counter() - start, note)
            stage = replace(stage, kept=judge.improves(stage, best))
            done.append(stage)
            if stage.kept:
                model, best = new, stage
    finally:
        store.close()
    if how := calibration.preprocess.as_dict():
        model = model.with_metadata({f"{PROVENANCE}.preprocess": json.dumps(how, sort_keys=True)})
    helped = " ".join(s.name for s in done[1:] if s.kept)
    if helped:
        model = model.with_metadata({f"{PROVENANCE}.recovered": helped})
    return Recovered(
        model, tuple(done), judge.value_of_original(), (len(solving), len(judge.calibration)), judge.metric,
        judge.metric if judge.decides else "distance",
    )  # fmt: skip


def _bounded(analysis: Analysis, calibration: Calibration) -> Calibration:
    """Reduce the batch if activations are large: the cursors of both models hold several of them."""
    segments = Segments(analysis.model, analysis.witness)
    segments.set_sizes(replace(calibration, batch=1).feeds(analysis.model))
    each = segments.largest()
    return replace(calibration, batch=max(1, min(calibration.batch, _RUN // max(1, each))))


def check_belongs(analysis: Analysis, plan: Plan, pruned: Model) -> None:
    """Raise if a model is not the original pruned by the plan.

    Raises:
        OnnxPruneError: Nodes differ, or a weight has another shape.
    """
    check_wiring(without_blocks(analysis, plan), pruned)
    kept = analysis.kept(plan)
    tensors = pruned.graph.tensors()
    for name, axes in analysis.table.constants.items():
        t = tensors.get(name)
        if t is None or not hasattr(t, "values"):
            continue
        for axis, labels in enumerate(axes[: len(t.shape)]):
            if labels is None:
                continue
            wanted = int(kept[analysis.component[labels]].sum())
            if t.shape[axis] != wanted:
                raise OnnxPruneError(
                    f"the pruned model's weight {name!r} has {t.shape[axis]} channels on axis {axis}, the plan keeps "
                    f"{wanted}",
                    fix="pass the model pruned by this plan (`onnxprune apply`)",
                )


def _holdout_evaluator(
    analysis: Analysis, calibration: Calibration, task: TaskOptions, memory: int, originals: OriginalActivations | None
) -> _HoldoutEvaluator:
    """Return the evaluator on held-out samples, shared by the recoveries of one store."""
    make = partial(_HoldoutEvaluator, analysis, calibration, task, memory)
    if originals is None:
        return make()
    key = ("held out", len(calibration), calibration.batch, repr(task), memory)
    return originals.once(analysis.witness, key, make)


class _HoldoutEvaluator:
    """Comparison of models with the original on held-out samples."""

    def __init__(self, analysis: Analysis, calibration: Calibration, task: TaskOptions, memory: int) -> None:
        self.original = analysis.source
        self._known: tuple[float | None, ...] = ()
        seen = analysis.witness
        outputs = [t.name for t in analysis.source.graph.outputs]
        self.names = [n for n in outputs if n in seen.shapes and seen.dtypes.get(n, np.dtype(np.float32)).kind in "fV"]
        if detection := detection_divergence(analysis.source, outputs):  # boxes have labels of integers
            self.names += [n for n in detection.reads or () if n not in self.names]
        if not self.names:
            raise OnnxPruneError(
                "the model has no output of floats whose size is known, so recovery cannot be evaluated",
                fix="use a model with its scores as an output",
            )
        batch = (seen.shapes.get(analysis.source.graph.inputs[0].name) or (1,))[0]
        each = sum(prod(seen.shapes.get(n, ())) * 8 for n in self.names) // max(1, batch)
        fit = np.linspace(0, len(calibration) - 1, min(len(calibration), max(1, memory // max(1, each))))
        self.calibration = replace(calibration, data=_part(calibration.data, fit.astype(np.int64)))
        reference = list(self._outputs(analysis.source))
        if not all(np.isfinite(v).all() for values in reference for v in values.values()):
            raise OnnxPruneError(
                "the original's outputs are not finite on this data",
                fix="check the data and its scaling (--mean, --std); a float16 model may overflow",
            )
        self.measure = OutputDistance(self.names, reference, analysis.source)
        self.task, found, self.decides = self._task(task)
        self.metric = found.name if found is not None else ""
        self.higher = found is None or found.higher_is_better

    def _task(self, options: TaskOptions) -> tuple[TaskOptions, Metric | None, bool]:
        """Return the task with its metric, the metric, and whether it decides about stages.

        Classifiers report none without labels, unless it is named: their distance from the original is shown anyway.
        """
        c = self.calibration
        feed, targets = replace(c, batch=1).feeds(self.original)[0]
        try:
            bound = bind_task(self.original, options, targets=kind_of(targets), feed=feed)
        except OnnxPruneError:
            if options != TaskOptions():
                raise
            return options, None, False  # targets of another kind are not needed
        if options == TaskOptions() and (
            (bound.name == "classify" and (targets is None or not self.measure.classifier))
            or (bound.name == "regress" and targets is None)
        ):
            return options, None, False
        metric = bound.metric(options.metric, labelled=targets is not None)
        decides = options.metric is not None or (targets is not None and metric.needs == "labels")
        own = TaskOptions(task=bound.name, metric=metric.name, alphabet=options.alphabet, blank=options.blank)
        return own, metric, decides

    def _outputs(self, model: Model) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield outputs batch by batch, without the copies that pad the last one."""
        feeds = self.calibration.feeds(model)
        session = Session(model, device=self.calibration.device, threads=self.calibration.threads)
        for i in range(len(feeds)):
            values = dict(zip(self.names, session.run(feeds[i][0], self.names), strict=True))
            length, real = feeds.size(i), feeds.real(i)
            yield {n: v[: len(v) // length * real] if v.ndim and real < length else v for n, v in values.items()}

    def distance(self, model: Model) -> float:
        """Return the distance from the original; infinite if an output is not finite."""
        found = []
        for values in self._outputs(model):
            if not all(np.isfinite(v).all() for v in values.values()):
                return float("inf")
            found.append(values)
        return self.measure(found)

    def value(self, model: Model) -> float | None:
        """Return the value of the metric; None if there is none."""
        if not self.metric:
            return None
        c = self.calibration
        return evaluate(
            model, c.data, preprocess=c.preprocess, task=self.task, reference=self.original, device=c.device,
            threads=c.threads, check=False,
        ).value  # fmt: skip

    def value_of_original(self) -> float | None:
        """Return the value of the metric for the original; None if there is none."""
        if not self._known:
            self._known = (self.value(self.original),)
        return self._known[0]

    def stage(self, name: str, model: Model, seconds: float, note: str = "") -> RecoveryStage:
        """Return the result of a stage, kept."""
        distance = self.distance(model)
        value = self.value(model) if np.isfinite(distance) else None
        return RecoveryStage(name, distance, value if self.metric == "top1" else None, seconds, True, note, value)

    def improves(self, new: RecoveryStage, best: RecoveryStage) -> bool:
        """Return whether a stage is better than the best one so far.

        The metric decides if it differs, and if it is a share, by more than its standard error.
        """
        if not np.isfinite(new.distance):
            return False
        if not self.decides or best.value is None or new.value is None:
            return new.distance < best.distance
        share = min(max(best.value, 0.0), 1.0) if self.metric in SHARES else 0.0
        if abs(new.value - best.value) <= sqrt(share * (1 - share) / max(1, len(self.calibration))):
            return new.distance < best.distance
        return (new.value > best.value) == self.higher


@dataclass
class _SolutionCounter:
    """Callbacks that store solutions and report progress."""

    store: SolutionStore
    stage: int
    progress: Progress | None
    solved: int = 0
    total: int = 0

    def add_layer(self, solution: Solution, done: int, total: int) -> None:
        self.store.save_layer(self.stage, solution)
        self._count(solution.matrix is not None, done, total)

    def add_block(self, solution: BlockSolution, done: int, total: int) -> None:
        self.store.save_block(self.stage, solution)
        self._count(solution.weights is not None, done, total)

    def _count(self, solved: bool, done: int, total: int) -> None:
        self.solved += solved
        self.total = total
        if self.progress is not None:
            self.progress(done, total)


def _settings(
    pruned: Model, plan: Plan, calibration: Calibration, stages: Sequence[str], rows: int, rounds: int, epochs: int
) -> dict[str, Any]:
    return {
        "kind": "recovery",
        "model": pruned.fingerprint,
        "plan": plan.digest,
        "data": data_digest(calibration.data, calibration.preprocess),
        "stages": list(stages),
        "rows": rows,
        "rounds": rounds,
    } | ({"epochs": epochs} if "reconstruct_blocks" in stages else {})
