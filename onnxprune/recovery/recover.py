"""Recovery without training: better weights for a pruned model from its original, the plan and calibration data.

Stages run in order: `recalibrate_batchnorm`, `reconstruct_weights`, and if asked for `reconstruct_blocks`. After each,
the model is evaluated on held-out samples: by the metric of its task if there are targets or a metric is named, else by
the distance of its outputs from the original's. A stage that does not improve it is undone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.output.formatting import counted, seconds
from onnxprune._utils.output.html import html_table
from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.execution.tasks.evaluation import metric_text, metric_title
from onnxprune.ir.model import PROVENANCE, Model
from onnxprune.ir.writer import save
from onnxprune.options.recovery import ALL_STAGES as ALL_STAGES
from onnxprune.options.recovery import STAGES as STAGES
from onnxprune.options.tasks import TaskOptions, task_options
from onnxprune.planning.analyze import analyze_for
from onnxprune.planning.sensitivity_sweep import data_digest
from onnxprune.plans import Plan
from onnxprune.recovery._holdout_evaluator import MEMORY, HoldoutEvaluator, bounded_batch
from onnxprune.recovery._holdout_evaluator import RecoveryStage as RecoveryStage
from onnxprune.recovery._lockstep import check_wiring, without_blocks
from onnxprune.recovery._original_activations import OriginalActivations as OriginalActivations
from onnxprune.recovery._solutions import SolutionStore
from onnxprune.recovery.recalibrate_batchnorm import RecalibrateBatchnorm
from onnxprune.recovery.reconstruct_blocks import EPOCHS as EPOCHS
from onnxprune.recovery.reconstruct_blocks import BlockSolution, ReconstructBlocks
from onnxprune.recovery.reconstruct_weights import ReconstructWeights, Solution

LEAST = 16  # samples
STATISTICS = 256  # samples for mean and variance where the weights are solved afterwards, for which they are the start
_HOLDOUT_STRIDE = 8  # hold out every 8th sample
_MAX_HOLDOUT = 512  # maximum number of held-out samples


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
    return data.take(np.setdiff1d(index, judges)), data.take(judges)


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
    calibration = bounded_batch(analysis, calibration)
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
                few = inside.spread(STATISTICS) if "reconstruct_weights" in stages[i:] else inside
                new = RecalibrateBatchnorm(plan, analysis, few, originals)(model)
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
) -> HoldoutEvaluator:
    """Return the evaluator on held-out samples, shared by the recoveries of one store."""
    make = partial(HoldoutEvaluator, analysis, calibration, task, memory)
    if originals is None:
        return make()
    key = ("held out", len(calibration), calibration.batch, repr(task), memory)
    return originals.once(analysis.witness, key, make)


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
