"""Accuracy back without training: from an original, what a plan left of it, and samples, to better weights.

Stages follow each other: `recalibrate_batchnorm`, then `reconstruct_weights`. After each the outputs are compared with
the original's on samples that no stage has seen; a stage that does not bring them nearer is undone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune._utils.atomic_files import atomic
from onnxprune._utils.journal import Journal
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.execution.evaluation import evaluate
from onnxprune.execution.graph_segments import Segments
from onnxprune.execution.output_distance import OutputDistance
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import PROVENANCE, Model
from onnxprune.options.recovery import STAGES as STAGES
from onnxprune.pipeline import analyze_for
from onnxprune.planning.sensitivity_sweep import data_digest
from onnxprune.plans import Plan
from onnxprune.recovery._lockstep import check_wiring
from onnxprune.recovery.recalibrate_batchnorm import RecalibrateBatchnorm
from onnxprune.recovery.reconstruct_weights import ReconstructWeights, Solution

LEAST = 16  # samples
_HOLDOUT_STRIDE = 8  # each so-many-th sample judges
_MAX_HOLDOUT = 512  # of them at most
_MEMORY = 2**28  # bytes of the original's outputs on them
_RUN = 2**26  # bytes of the largest activation of one run


@dataclass(frozen=True)
class RecoveryStage:
    """What became of the model.

    Attributes:
        name: "as cut", or the pass.
        distance: of the outputs from the original's on held-out samples (`OutputDistance`); inf if one is not finite.
        top1: accuracy on these; None without labels, or where outputs are not finite.
        seconds: what it took.
        kept: whether it stays; a stage that did not help is undone.
        note: what there is to say, how many layers were solved for.
    """

    name: str
    distance: float
    top1: float | None
    seconds: float
    kept: bool
    note: str = ""


@dataclass(frozen=True)
class Recovered:
    """A model with its weights solved for.

    Attributes:
        model: pruned, with new weights.
        stages: in order, the cut first.
        original: accuracy of the original on the held-out samples; None without labels.
        samples: used by the stages, and held out.
    """

    model: Model = field(repr=False)
    stages: tuple[RecoveryStage, ...]
    original: float | None
    samples: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which knows no infinity."""
        return {
            "original_top1": self.original,
            "samples": self.samples[0],
            "held_out": self.samples[1],
            "stages": [asdict(s) | {"distance": s.distance if np.isfinite(s.distance) else None} for s in self.stages],
        }


def check_samples(data: Data) -> None:
    """Refuses too few samples.

    Raises:
        OnnxPruneError: with how many are needed.
    """
    if len(data) < LEAST:
        raise OnnxPruneError(f"recovery needs at least {LEAST} samples; there are {len(data)}", fix="give more data")


def split(data: Data) -> tuple[Data, Data]:
    """(samples to solve with, samples to judge by): each eighth judges, 512 at most.

    Raises:
        OnnxPruneError: too few samples.
    """
    check_samples(data)
    index = np.arange(len(data))
    judges = index[_HOLDOUT_STRIDE - 1 :: _HOLDOUT_STRIDE]
    judges = judges[np.linspace(0, len(judges) - 1, min(len(judges), _MAX_HOLDOUT)).astype(np.int64)]
    return _part(data, np.setdiff1d(index, judges)), _part(data, judges)


def _part(data: Data, which: npt.NDArray[np.int64]) -> Data:
    return Data(data.x[which], None if data.y is None else data.y[which], data.name)


def recover(
    original: Model,
    pruned: Model,
    plan: Plan,
    calibration: Calibration,
    *,
    analysis: Analysis | None = None,
    stages: Sequence[str] = STAGES,
    rows: int = 40_000,
    rounds: int = 3,
    folder: Path | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Recovered:
    """Solves for the weights of a pruned model so that its outputs come back to the original's.

    Args:
        original: before pruning.
        pruned: as cut by the plan; perhaps trained since.
        plan: what was removed.
        calibration: samples; labels are only used to report accuracy.
        analysis: of the original, if at hand.
        stages: which, in order.
        rows: output positions looked at for each layer, in all samples together.
        rounds: of the alternation where Relu or Clip follows a layer.
        folder: keeps what is solved, layer by layer, so that an interrupted run goes on; the caller removes it.
        restart: throw away what an interrupted run has left there.
        progress: called with (layers done, layers).

    Raises:
        OnnxPruneError: models and plan that do not belong together; too few samples, samples that do not fit;
            activations that are not finite; a folder with another run's layers.
    """
    for name in stages:
        if name not in STAGES:
            raise unknown("stage", name, STAGES)
    analysis = analysis or analyze_for(original, plan)
    check_belongs(analysis, plan, pruned)
    calibration = _bounded(analysis, calibration)
    solving, judging = split(calibration.data)
    inside = replace(calibration, data=solving)
    judge = _HoldoutEvaluator(analysis, replace(calibration, data=judging))
    model = pruned
    best = judge.distance(pruned)
    done = [RecoveryStage("as cut", best, judge.top1(pruned) if np.isfinite(best) else None, 0.0, True)]
    store = _SolutionStore(folder, _settings(pruned, plan, calibration, stages, rows, rounds), restart)
    try:
        for i, name in enumerate(stages):
            start = time.perf_counter()
            note = ""
            if name == "recalibrate_batchnorm":
                new = RecalibrateBatchnorm(plan, analysis, inside)(model)
            else:
                counts = _SolutionCounter(store, i, progress)
                new = ReconstructWeights(
                    plan, analysis, inside, rows=rows, rounds=rounds, known=partial(store.load, i), done=counts
                )(model)
                note = f"{counts.solved} of {counts.total} layers"
            seconds = time.perf_counter() - start
            distance = judge.distance(new)
            kept = distance < best
            top1 = judge.top1(new) if np.isfinite(distance) else None
            done.append(RecoveryStage(name, distance, top1, seconds, kept, note))
            if kept:
                model, best = new, distance
    finally:
        store.close()
    helped = " ".join(s.name for s in done[1:] if s.kept)
    if helped:
        model = model.with_metadata({f"{PROVENANCE}.recovered": helped})
    return Recovered(model, tuple(done), judge.top1(original), (len(solving), len(judge.calibration)))


def _bounded(analysis: Analysis, calibration: Calibration) -> Calibration:
    """Fewer samples to a run where activations are large: a walk holds several of them, for both models."""
    each = Segments(analysis.model, analysis.witness).largest()
    return replace(calibration, batch=max(1, min(calibration.batch, _RUN // max(1, each))))


def check_belongs(analysis: Analysis, plan: Plan, pruned: Model) -> None:
    """Refuses a model that is not what a plan leaves.

    Raises:
        OnnxPruneError: other nodes, or a weight of another shape.
    """
    check_wiring(analysis.model, pruned)
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
                    f"the pruned model's weight {name!r} has {t.shape[axis]} channels on axis {axis}, the plan leaves "
                    f"{wanted}",
                    fix="give the model that this plan made (`onnxprune apply`)",
                )


class _HoldoutEvaluator:
    """Compares models with the original on held-out samples."""

    def __init__(self, analysis: Analysis, calibration: Calibration) -> None:
        seen = analysis.witness
        outputs = [t.name for t in analysis.source.graph.outputs]
        self.names = [n for n in outputs if n in seen.shapes and seen.dtypes.get(n, np.dtype(np.float32)).kind in "fV"]
        if not self.names:
            raise OnnxPruneError(
                "the model has no output of floats whose size is known, so nothing tells whether recovery helps",
                fix="give the model with its scores as an output",
            )
        batch = (seen.shapes.get(analysis.source.graph.inputs[0].name) or (1,))[0]
        each = sum(prod(seen.shapes[n]) * 8 for n in self.names) // batch
        fit = np.linspace(0, len(calibration) - 1, min(len(calibration), max(1, _MEMORY // max(1, each))))
        self.calibration = replace(calibration, data=_part(calibration.data, fit.astype(np.int64)))
        reference = list(self._outputs(analysis.source))
        if not all(np.isfinite(v).all() for values in reference for v in values.values()):
            raise OnnxPruneError(
                "the original's outputs are not finite on this data",
                fix="check the data and how it is scaled (--mean, --std); a float16 model may overflow",
            )
        self.measure = OutputDistance(self.names, reference)

    def _outputs(self, model: Model) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Batch by batch, without the copies that fill up the last one."""
        feeds = self.calibration.feeds(model)
        session = Session(model, device=self.calibration.device, threads=self.calibration.threads)
        for i in range(len(feeds)):
            values = dict(zip(self.names, session.run(feeds[i][0], self.names), strict=True))
            length, real = feeds.fixed or feeds.real(i), feeds.real(i)
            yield {n: v[: len(v) // length * real] if v.ndim and real < length else v for n, v in values.items()}

    def distance(self, model: Model) -> float:
        """From the original; infinite where an output is not finite."""
        found = []
        for values in self._outputs(model):
            if not all(np.isfinite(v).all() for v in values.values()):
                return float("inf")
            found.append(values)
        return self.measure(found)

    def top1(self, model: Model) -> float | None:
        """Accuracy; None where there are no labels, or no classes."""
        if self.calibration.data.y is None or not self.measure.classifier:
            return None
        c = self.calibration
        return evaluate(model, c.data, preprocess=c.preprocess, device=c.device, threads=c.threads).top1


@dataclass
class _SolutionCounter:
    """Takes in solutions: to the store and to the progress."""

    store: _SolutionStore
    stage: int
    progress: Callable[[int, int], None] | None
    solved: int = 0
    total: int = 0

    def __call__(self, solution: Solution, done: int, total: int) -> None:
        self.store.save(self.stage, solution)
        self.solved += solution.matrix is not None
        self.total = total
        if self.progress is not None:
            self.progress(done, total)


def _settings(
    pruned: Model, plan: Plan, calibration: Calibration, stages: Sequence[str], rows: int, rounds: int
) -> dict[str, Any]:
    return {
        "kind": "recovery",
        "model": pruned.fingerprint,
        "plan": plan.digest,
        "data": data_digest(calibration.data, calibration.preprocess),
        "stages": list(stages),
        "rows": rows,
        "rounds": rounds,
    }


class _SolutionStore:
    """Solved layers in a folder: a journal, and a file of arrays for each layer."""

    def __init__(self, folder: Path | None, settings: dict[str, Any], restart: bool) -> None:
        self.folder = folder
        if folder is not None:
            try:
                folder.mkdir(exist_ok=True)
            except OSError as err:
                raise OnnxPruneError(f"cannot make the folder {str(folder)!r}: {err.strerror or err}") from err
        self.journal = Journal(folder / "journal" if folder is not None else None, settings, restart=restart)

    def load(self, stage: int, node: str) -> Solution | None:
        """The solution of an earlier run."""
        entry = self.journal.entries.get(f"{stage} {node}")
        if entry is None or self.folder is None:
            return None
        before, after, ridge = (float(v) for v in entry["errors"])
        if entry["file"] is None:
            return Solution(node, None, None, before, after, ridge)
        path = self.folder / Path(str(entry["file"])).name
        try:
            with np.load(path, allow_pickle=False) as arrays:
                matrix, shift = arrays["matrix"], arrays["shift"] if "shift" in arrays.files else None
        except (OSError, ValueError, KeyError) as err:
            raise OnnxPruneError(
                f"cannot read a layer of the interrupted run: {err}", where=str(path), fix="start anew with --restart"
            ) from err
        return Solution(node, matrix, shift, before, after, ridge)

    def save(self, stage: int, solution: Solution) -> None:
        """Keeps a solution; the journal's line comes after the arrays are on disk."""
        key = f"{stage} {solution.node}"
        if self.folder is None or key in self.journal.entries:
            return
        name = None
        if solution.matrix is not None:
            name = f"{len(self.journal.entries):04d}.npz"
            arrays = {"matrix": solution.matrix} | ({} if solution.shift is None else {"shift": solution.shift})
            try:
                with atomic(self.folder / name) as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]  # mypy takes names for flags
            except OSError as err:
                raise OnnxPruneError(
                    f"cannot write a solved layer: {err.strerror or err}", where=str(self.folder),
                    fix="make room and go on with --resume",
                ) from err  # fmt: skip
        errors = [solution.before, solution.after, solution.ridge]
        self.journal.add(key, {"file": name, "errors": errors})

    def close(self) -> None:
        """Lets go of the folder; where nothing is in it that is worth keeping, it goes."""
        self.journal.close()
        if self.folder is not None and not self.journal.entries:
            self.journal.finish()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
