"""Points of a path in a folder, a subfolder each, so that an interrupted run continues.

    NAME/model.onnx, NAME/plan.json, NAME/scores.json, NAME/point.json

A point is complete once its record is there, which is written last. It is always read back from its files, so that a
run that was interrupted ends with the bytes of one that was not.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from onnxprune._utils.fields import Bounds
from onnxprune._utils.files.atomic_files import write_text
from onnxprune._utils.files.journal import Journal
from onnxprune._utils.output.formatting import counted
from onnxprune._utils.processes.interruption import keeps
from onnxprune._utils.strict import Format
from onnxprune.analysis.cost import Cost
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.scoring import Scores, load_scores, save_scores
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save
from onnxprune.pipeline.budget.path import PathPoint, PrunePath
from onnxprune.plans import load_plan, save_plan

MODEL, PLAN, SCORES, RECORD = "model.onnx", "plan.json", "scores.json", "point.json"
JOURNAL = "journal"
FORMAT = Format("point", 2**26, fix="start again with --restart")

Share = Annotated[float, Bounds(above=0, at_most=1)]


@dataclass(frozen=True)
class PointRecord:
    """Contents of `point.json`.

    Attributes:
        target: Share that was asked for.
        kept: Share that the model keeps.
        before: Cost of the original.
        after: Cost of the model.
        certificate: Certificate of the proof.
        recovery: Stages of the recovery.
        figures: Metric, latency and others, added after the model was written.
        scored: Share that the model keeps on which the scores were computed.
    """

    target: Share
    kept: Share
    before: Cost
    after: Cost
    certificate: Mapping[str, Any]
    recovery: Mapping[str, Any]
    figures: Mapping[str, Any]
    scored: Share = 1.0


_LATENCY = "_latency"  # ending of the keys of measured latency


@dataclass(frozen=True)
class _Reading:
    """Metric of a model, in `figures`; bytes of an int8 model."""

    value: float
    error: float | None
    drop: float
    drop_error: float | None
    bytes: int | None = None


@dataclass(frozen=True)
class _Timing:
    """Measured latency of a model, in `figures`."""

    seconds: float
    share: float
    machine: str = ""


@contextlib.contextmanager
def point_store(folder: Path, settings: Mapping[str, Any], *, restart: bool = False) -> Iterator[PointStore]:
    """Open a folder of points, locked against other runs.

    Args:
        folder: The folder; made if it is missing.
        settings: Settings that the points depend on; a folder with other settings is refused.
        restart: Discard the points of an earlier run.

    Raises:
        OnnxPruneError: The folder holds points of other settings, is in use, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OnnxPruneError(f"cannot make the folder {str(folder)!r}: {err.strerror or err}") from err
    if not (folder / JOURNAL).exists() and any(folder.iterdir()):
        raise OnnxPruneError("the folder holds other files", where=str(folder), fix="name an empty or a new folder")
    journal = Journal(folder / JOURNAL, settings, restart=restart)
    keeps(journal, lambda: _kept(folder))
    try:
        if restart:
            for record in list(folder.glob(f"**/{RECORD}")):
                shutil.rmtree(record.parent)
            for scores in folder.glob(f"*-{SCORES}"):
                scores.unlink()
        yield PointStore(folder)
    finally:
        journal.close()


def _kept(folder: Path) -> str:
    """Return the finished points of a folder in words; "" for none. Its journal only holds their settings."""
    count = sum(1 for _ in folder.glob(f"**/{RECORD}"))
    return f"{counted(count, 'finished point')} in {str(folder)!r}" if count else ""


@dataclass(frozen=True)
class PointStore:
    """Points in a folder; `point_store` opens one."""

    folder: Path

    def record(self, name: str) -> PointRecord | None:
        """Return the record of a point; None if it is not complete."""
        path = self.folder / name / RECORD
        if not path.exists():
            return None
        found = FORMAT.read(PointRecord, path)
        for key, value in found.figures.items():
            if value is not None or key.endswith(_LATENCY):
                cls = _Timing if key.endswith(_LATENCY) else _Reading
                FORMAT.fields(cls, value, str(path), ("figures", key), complete=False)
        return found

    def shared_scores(self, name: str, path: PrunePath) -> Scores:
        """Return the scores of the original, computed once for all curves of a criterion.

        Args:
            name: Name of the file, before "-scores.json".
            path: Settings of the scores.
        """
        file = self.folder / f"{name}-{SCORES}"
        if not file.exists():
            save_scores(path.first_scores(), file)
        return load_scores(file, path.analysis)

    def read(self, name: str, analysis: Analysis) -> PathPoint | None:
        """Return a point of an earlier run; None if it is not complete.

        Raises:
            OnnxPruneError: Its files are damaged, or belong to another model.
        """
        found = self.record(name)
        if found is None:
            return None
        home = self.folder / name
        return PathPoint(
            found.target, found.kept, load_plan(home / PLAN), load(home / MODEL), load_scores(home / SCORES, analysis),
            found.before, found.after, found.certificate, found.recovery, found.scored,
        )  # fmt: skip

    def write(self, name: str, point: PathPoint, analysis: Analysis) -> PathPoint:
        """Write a point, and return it as it is read back.

        Raises:
            OnnxPruneError: A file cannot be written.
        """
        home = self.folder / name
        home.mkdir(parents=True, exist_ok=True)
        save(point.model, home / MODEL)
        save_plan(point.plan, home / PLAN)
        save_scores(point.scores, home / SCORES)
        self._record(name, PointRecord(
            point.target, point.kept, point.before, point.after, without_seconds(point.certificate),
            without_seconds(point.recovery), {}, point.scored,
        ))  # fmt: skip
        found = self.read(name, analysis)
        assert found is not None
        return found

    def add_figures(self, name: str, figures: Mapping[str, Any]) -> PointRecord:
        """Add figures to the record of a point.

        Raises:
            OnnxPruneError: The point is not there, or the record cannot be written.
        """
        found = self.record(name)
        if found is None:
            raise OnnxPruneError(f"the folder has no point {name!r}", where=str(self.folder))
        return self._record(name, PointRecord(**{**vars(found), "figures": {**found.figures, **figures}}))

    def _record(self, name: str, record: PointRecord) -> PointRecord:
        text = json.dumps(asdict(record), sort_keys=True, allow_nan=False)
        write_text(self.folder / name / RECORD, text + "\n")
        return record


def without_seconds(value: Any) -> Any:
    """Return a JSON value without durations, which differ from run to run."""
    if isinstance(value, Mapping):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list | tuple) else value
