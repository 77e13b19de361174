"""Run of a recipe in its own folder: step by step, each recorded before the next one begins.

    FOLDER/recipe.toml        copy of the recipe
    FOLDER/run.journal        finished steps, with digests of their files (see `onnxprune._utils.files.journal`)
    FOLDER/log.txt            log with times
    FOLDER/01-sensitivity/    artifacts of the first step, and so on
    FOLDER/table.csv, .json   every step with accuracy, cost and time

`step.json` in a step's folder identifies the step: files of a killed step are reused only if it is the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.files.atomic_files import append_text, check_output, remove_all_dead, write_text
from onnxprune._utils.files.input_files import opened
from onnxprune._utils.files.journal import FORMAT as JOURNAL_FORMAT
from onnxprune._utils.files.journal import Journal
from onnxprune._utils.output.progress import StartProgress, no_progress
from onnxprune._utils.strict import Format
from onnxprune.analysis.cost import Cost, CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, fit, load_data
from onnxprune.execution.machine import measured_on
from onnxprune.execution.tasks.evaluation import evaluate
from onnxprune.ir.model import Model
from onnxprune.latency.bench import bench
from onnxprune.latency.runtimes import make_runtime
from onnxprune.options import TaskOptions
from onnxprune.pipeline import held_out
from onnxprune.planning.sensitivity_sweep import data_digest
from onnxprune.recipes._steps import MODEL, StepContext, StepResult, after
from onnxprune.recipes._table import RunTable, StepRow
from onnxprune.recipes.recipe import HELD_OUT, RENAMED, Recipe, StepEntry

JOURNAL, LOG, COPY, MARK = "run.journal", "log.txt", "recipe.toml", "step.json"
_MARK = Format("step file", 2**24)
ORIGINAL, LATENCY = "00-original", "latency"
_RENAMED = {**RENAMED, "limits": "constraints"}  # old names in journals
_FREE = {"threads", "device", "jobs", "workers"}
_FIGURES = ("top1", "top1_error", "loss", "macs", "params", "bytes", "metric", "value", "value_error")
_STEP = re.compile(r"\d{2,3}-[a-z]+")

Record = dict[str, Any]


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    restart: bool = False,
    progress: StartProgress = no_progress,
    notice: Callable[[str], None] | None = None,
) -> RunTable:
    """Run a recipe, or the rest of it.

    Args:
        recipe: from `load_recipe`.
        folder: folder of the run, made if missing. An earlier run of the same model and data is resumed if its finished
            steps are those of the recipe; later ones may have changed.
        restart: discard an earlier run.
        progress: a context for a step's title, which returns a function of (done, total).
        notice: called with messages for the user.

    Raises:
        OnnxPruneError: a missing model or data; a folder that is no run's, or one of other steps; whatever a step
            raises, with its number. What is finished stays.
    """
    model = recipe.defaults.load(recipe.model)
    recipe, data = _read_data(recipe, model, notice)
    analysis = recipe.defaults.analyze(model)
    for e in recipe.entries:
        try:
            e.step.check(analysis, recipe.base)
        except OnnxPruneError as err:
            raise _at(err, e.title) from err
    # Errors of model and data are raised before a folder exists that only a restart would reuse.
    figures = None if (folder / JOURNAL).exists() else _figures(recipe, analysis, data)
    _make_folder(folder)
    settings = {
        "model": model.fingerprint,
        **{key: data_digest(d, recipe.defaults.preprocess) for key, d in data.items()},
        **analysis.choices.options(),
    }
    if recipe.defaults.shapes.shapes:
        settings["shapes"] = {name: list(shape) for name, shape in recipe.defaults.shapes.shapes.items()}
    book = Journal(folder / JOURNAL, settings, restart=restart)
    try:
        if restart:
            _clear(folder)
        _forget_temporary(folder)
        run = _RecipeRun(recipe, folder, analysis, data, book, progress, notice)
        run.steps(figures)
        return run.table()
    finally:
        book.close()


def _read_data(recipe: Recipe, model: Model, notice: Callable[[str], None] | None) -> tuple[Recipe, dict[str, Data]]:
    """Read all data, match it with the model, and return the recipe with the preprocessing that the model decides."""
    data: dict[str, Data] = {}
    labels = recipe.defaults.task == TaskOptions()
    for key, source in recipe.sources.items():
        if source == HELD_OUT:
            data["data"], data[key] = held_out(data["data"])
            if notice is not None:
                notice(f"{key}: {HELD_OUT} ({len(data[key])}), which no step reads; or give --test-data")
            continue
        images = recipe.images if key == "data" else None
        read = load_data(
            source, images=images, model=model, images_dir=recipe.beside.get("images_dir"),
            class_map=recipe.beside.get("class_map"), data_timeout=recipe.data_timeout,
        )  # fmt: skip
        tested = key == "test_data" or (key == "data" and HELD_OUT in recipe.sources.values())
        found = fit(model, read, recipe.defaults.preprocess, labels=labels and tested)
        recipe = replace(recipe, defaults=replace(recipe.defaults, preprocess=found.preprocess))
        data[key] = found.data
        for line in found.data.warnings:
            if notice is not None:
                notice(f"Warning: {key}: {line}")
    return recipe, data


@dataclass(frozen=True)
class _Figures(Cost):
    """Cost of a model in the journal and, with test data, its accuracy."""

    top1: float | None = None
    top1_error: float | None = None
    loss: float | None = None
    metric: str | None = None
    value: float | None = None
    value_error: float | None = None


@dataclass(frozen=True)
class _OriginalRecord:
    figures: _Figures


@dataclass(frozen=True)
class _LatencyRecord:
    how: Mapping[str, Any]
    median: Mapping[str, float]


@dataclass(frozen=True)
class _StepRecord:
    """Entry of a finished step."""

    step: Mapping[str, Any]
    turn: str
    files: Mapping[str, str]
    digests: Mapping[str, str]
    figures: _Figures | None
    note: str
    seconds: float
    resumed: bool


class _RecipeRun:
    """Run in progress."""

    def __init__(
        self, recipe: Recipe, folder: Path, analysis: Analysis, data: Mapping[str, Data], journal: Journal,
        progress: StartProgress, notice: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.data, self.journal = recipe, folder, data, journal
        self.analysis, self.progress, self.notice = analysis, progress, notice
        self.files = {MODEL: recipe.model}
        self._check_finished()
        write_text(folder / COPY, recipe.text)

    # ------------------------------------------------------------------------------------------------ the journal

    def _check_finished(self) -> None:
        """Raise if other steps are finished in the folder, or if its files have changed."""
        finished = [key for key in self.journal.entries if _STEP.fullmatch(key) and key != ORIGINAL]
        wanted = [e.key for e in self.recipe.entries[: len(finished)]]
        fix = "repeat the recipe it was begun with, use another folder (-o), or throw it away with --restart"
        if finished != wanted:
            raise OnnxPruneError(
                f"this folder is of a run with other steps ({', '.join(finished)})", where=str(self.folder), fix=fix
            )
        shapes = {ORIGINAL: _OriginalRecord, LATENCY: _LatencyRecord, **dict.fromkeys(finished, _StepRecord)}
        for key, record in self.journal.entries.items():
            if key not in shapes:
                raise OnnxPruneError("the journal holds something that is no step", where=key, fix=fix)
            JOURNAL_FORMAT.fields(shapes[key], record, f"{self.folder / JOURNAL}, {key}", complete=False)
        for e in self.recipe.entries[: len(finished)]:
            record = self.journal.entries[e.key]
            wrong = _different(_renamed(record["step"], _options(e)), _options(e))
            if wrong:
                raise OnnxPruneError(
                    f"{e.title} is finished, with other options ({', '.join(sorted(wrong))})", where=e.key, fix=fix
                )
            self._check_files(e, record)
            for name, digest in record["digests"].items():
                if _digest(self.folder / name) != digest:
                    raise OnnxPruneError(
                        "a file of a finished step is missing or has changed", where=str(self.folder / name),
                        fix="put it back, or begin anew with --restart",
                    )  # fmt: skip

    def _check_files(self, e: StepEntry, record: Record) -> None:
        """Raise unless a finished step has recorded all artifacts that later steps read, each with its digest."""
        for what in e.step.produces:
            name = record["files"].get(what)
            if name not in record["digests"] or not name.startswith(f"{e.key}/") or ".." in Path(name).parts:
                raise JOURNAL_FORMAT.error(f"{e.title} records no {what}", str(self.folder / JOURNAL), (e.key,))
        if (record["figures"] is not None) != (MODEL in e.step.produces):
            raise JOURNAL_FORMAT.error(f"figures do not match {e.title}", str(self.folder / JOURNAL), (e.key,))

    # -------------------------------------------------------------------------------------------------- the steps

    def steps(self, figures: Record | None) -> None:
        """Run the remaining steps.

        Args:
            figures: figures of the recipe's model, if known.
        """
        entries = self.recipe.entries
        done = sum(e.key in self.journal.entries for e in entries)
        if done == len(entries):
            self._notify(f"all {done} steps are finished")
        elif done:
            self._notify(f"resuming after step {done} of {len(entries)}")
        if ORIGINAL not in self.journal.entries:
            changes = "".join(f", {c}" for c in self.recipe.changes)
            self._log(f"{self.recipe.name}: {len(entries)} steps, from {self.recipe.model}{changes}")
            self.journal.add(ORIGINAL, {"figures": figures or _figures(self.recipe, self.analysis, self.data)})
        for e in entries:
            if e.key not in self.journal.entries:
                self._step(e)
            record = self.journal.entries[e.key]
            e.step.tidy(self.folder / e.key)  # also for a run that was killed here
            have = after(self.files, e.step.produces)
            self.files |= {what: self.folder / record["files"][what] for what in e.step.produces}
            self.files = {what: path for what, path in self.files.items() if what in have}

    def _step(self, e: StepEntry) -> None:
        folder = self.folder / e.key
        resumed = self._begin(e, folder)
        self._notify(f"{e.title} {'resumes' if resumed else 'begins'}")
        start = time.perf_counter()
        try:
            with self.progress(e.title) as tick:
                context = StepContext(
                    folder,
                    dict(self.files),
                    self.recipe.model,
                    self.recipe.base,
                    self.data,
                    self.recipe.defaults,
                    tick,
                    lambda text: self._notify(f"{e.key}: {text}"),
                )
                found = e.step.run(context)
        except OnnxPruneError as err:
            self._log(f"{e.title} failed: {err}".replace("\n", ";"))
            raise _at(err, e.title) from err
        seconds = time.perf_counter() - start
        figures = None
        if MODEL in found.files:
            made = self.recipe.defaults.analyze(self.recipe.defaults.load(found.files[MODEL]))
            figures = _figures(self.recipe, made, self.data)
        record: Record = {
            "step": _options(e),
            "turn": e.turn,
            "files": {what: self._name(path) for what, path in found.files.items()},
            "digests": self._digests(found),
            "figures": figures,
            "note": found.note,
            "seconds": seconds,
            "resumed": resumed,
        }
        self.journal.add(e.key, record)
        self._notify(f"{e.title} done in {seconds:.1f} s: {found.note}{_figures_text(record['figures'])}")

    def _begin(self, e: StepEntry, folder: Path) -> bool:
        """Make the step's folder; return True if the step resumes from files there."""
        mark = {
            "run": self.journal.settings, "do": e.step.do, "options": _options(e),
            "from": {what: _digest(path) for what, path in self.files.items()},
        }  # fmt: skip
        try:
            there = _read_mark(folder / MARK) if folder.is_dir() else None
            if isinstance(there, dict) and not _different(_renamed(there, mark), mark):
                _forget_temporary(folder)
                return True
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
        except OSError as err:
            raise OnnxPruneError(f"cannot make the folder {str(folder)!r}: {err.strerror or err}") from err
        write_text(folder / MARK, json.dumps(mark, indent=1, sort_keys=True) + "\n")
        return False

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _digests(self, found: StepResult) -> dict[str, str]:
        paths = list(found.files.values())
        paths += [p for p in (path.with_name(path.name + ".data") for path in paths) if p.exists()]  # weights beside
        return {self._name(path): _digest(path) for path in paths}

    # -------------------------------------------------------------------------------------------------- the table

    def table(self) -> RunTable:
        """Return the table of all steps; latencies are measured now, all under the same conditions."""
        records = {ORIGINAL: self.journal.entries[ORIGINAL]} | {
            e.key: self.journal.entries[e.key] for e in self.recipe.entries
        }  # fmt: skip
        latencies, machine = self._latencies([key for key, r in records.items() if r["figures"] is not None])
        rows = []
        for key, r in records.items():
            figures = r["figures"] or {}
            path = self.recipe.model if key == ORIGINAL else self.folder / r["files"].get(MODEL, "")
            worth = {name: figures.get(name) for name in _FIGURES}
            rows.append(
                StepRow(
                    step=key, turn=r.get("turn", ""), model=str(path) if figures else None, **worth,
                    latency=latencies.get(key), seconds=r.get("seconds"), note=r.get("note", ""),
                )
            )  # fmt: skip
        table = RunTable(self.recipe.name, tuple(rows), self.recipe.sources, self.recipe.changes, machine)
        write_text(self.folder / "table.csv", table.to_csv())
        write_text(self.folder / "table.json", json.dumps(table.as_dict(), indent=1, allow_nan=False) + "\n")
        return table

    def _latencies(self, keys: list[str]) -> tuple[dict[str, float], str]:
        """Return the seconds of a run of each model, by the step that made it, and where they were measured."""
        b = self.recipe.bench
        if not b.runs:
            return {}, ""
        known = self.journal.entries.get(LATENCY)
        settings = {k: v for k, v in asdict(b).items() if k not in ("runtime", "runtime_options")}
        how = {**settings, "models": keys}
        if not b.is_default:
            how |= {"runtime": b.runtime, "runtime_options": dict(b.runtime_options)}
        if known is not None and {k: v for k, v in known["how"].items() if k != "machine"} == how:
            return dict(known["median"]), known["how"].get("machine", "")
        where = make_runtime(b.runtime, b.runtime_options, device=b.device)
        # Each in turn with the original, as in `onnxprune bench`: more models would evict each other's caches.
        whole: list[float] = []
        median: dict[str, float] = {}
        with self.progress("measuring latency") as tick:
            for i, key in enumerate(k for k in keys if k != ORIGINAL):
                other = self.recipe.defaults.load(self.folder / self.journal.entries[key]["files"][MODEL])
                pair = bench([self.analysis.source, other], **settings, runtime=where)
                whole.append(pair[0].latency.median)
                median[key] = pair[1].latency.median
                tick(i + 1, len(keys) - 1)
            if not whole:
                whole = [bench([self.analysis.source], **settings, runtime=where)[0].latency.median]
        median = {ORIGINAL: float(np.median(whole)), **median}
        machine = measured_on(str(where.describe()), batch=b.batch, threads=b.threads)
        self.journal.add(LATENCY, {"how": {**how, "machine": machine}, "median": median})
        return median, machine

    # ---------------------------------------------------------------------------------------------------- the log

    def _notify(self, text: str) -> None:
        self._log(text)
        if self.notice is not None:
            self.notice(text)

    def _log(self, text: str) -> None:
        try:
            append_text(self.folder / LOG, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        except OSError as err:
            raise OnnxPruneError(f"cannot write the log: {err.strerror or err}", where=str(self.folder / LOG)) from err


def _figures(recipe: Recipe, analysis: Analysis, data: Mapping[str, Data]) -> Record:
    """Return the cost of a model and, with test data, its accuracy."""
    defaults = recipe.defaults
    figures: Record = vars(CostModel(analysis).baseline).copy()
    if "test_data" in data:
        found = evaluate(
            analysis.source, data["test_data"], preprocess=defaults.preprocess, task=defaults.task,
            reference=defaults.load(recipe.model) if defaults.task != TaskOptions() else None, threads=defaults.threads,
            device=defaults.device,
        )  # fmt: skip
        if found.task == "classify" and found.main == "top1" and "loss" in found.metrics:
            figures |= {"top1": found.top1, "top1_error": found.top1_error, "loss": found.loss}
        else:
            figures |= {"metric": found.main, "value": found.value, "value_error": found.metrics[found.main].error}
    return figures


def _make_folder(folder: Path) -> None:
    """Make or accept the folder of a run.

    Raises:
        OnnxPruneError: it holds something else, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise OnnxPruneError(f"{str(folder)!r} is not a folder")
    if folder.is_dir() and not (folder / JOURNAL).exists() and any(folder.iterdir()):
        raise OnnxPruneError(
            "the folder is not empty and holds no run of a recipe", where=str(folder), fix="another -o"
        )
    check_output(folder / JOURNAL) if folder.is_dir() else check_output(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as err:
        raise OnnxPruneError(f"cannot make the folder {str(folder)!r}: {err.strerror or err}") from err


def _clear(folder: Path) -> None:
    """Remove the files of an earlier run, and no others."""
    for path in folder.iterdir():
        if path.is_dir() and _STEP.fullmatch(path.name) and (path / MARK).exists():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name in (LOG, COPY, "table.csv", "table.json"):
            path.unlink(missing_ok=True)


def _forget_temporary(folder: Path) -> None:
    """Remove partial files of a killed run."""
    remove_all_dead(folder)


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or nothing if it does not exist."""
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _read_mark(path: Path) -> Any:
    """Return what `step.json` holds; None if it is missing or damaged."""
    try:
        return _MARK.load(path)
    except OnnxPruneError:
        return None


def _options(e: StepEntry) -> Record:
    """Return a step's options as read back from JSON."""
    return json.loads(json.dumps(asdict(e.step)))  # type: ignore[no-any-return, call-overload]  # a dataclass


def _renamed(record: Any, like: Record) -> Any:
    """Return recorded options under the names of `like`: earlier versions recorded old names."""
    if not isinstance(record, dict):
        return record
    names = {key: _RENAMED[key] if key not in like and key in _RENAMED else key for key in record}
    return {
        name: _renamed(record[key], like[name]) if isinstance(like.get(name), dict) else record[key]
        for key, name in names.items()
    }


def _different(one: Any, other: Any) -> set[str]:
    """Return the names of options in which two records differ, nested ones included.

    Speed and device of a step do not count: a run may be resumed elsewhere.
    """
    out: set[str] = set()
    for key in (one.keys() | other.keys()) - _FREE:
        a, b = one.get(key), other.get(key)
        if a != b:
            out |= _different(a, b) if isinstance(a, dict) and isinstance(b, dict) else {key}
    return out


def _at(err: OnnxPruneError, title: str) -> OnnxPruneError:
    """Return the error with the step it happened in."""
    return type(err)(err.what, where=f"{title}, {err.where}" if err.where else title, fix=err.fix)


def _figures_text(figures: Record | None) -> str:
    if figures is not None and "metric" in figures:
        return f"; {figures['metric']} {figures['value']:.4f}, {figures['macs']} MACs"
    if figures is None or "top1" not in figures:
        return ""
    return f"; top1 {figures['top1']:.4f}, loss {figures['loss']:.4f}, {figures['macs']} MACs"
