"""Report data from the folder of a recipe's run; missing and damaged files are listed and left out."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune._utils.files.input_files import opened, read_text
from onnxprune._utils.files.journal import read_entry
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.scoring import load_scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.evaluation import metric_text, metric_title
from onnxprune.ir.input_sizes import with_shapes
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze
from onnxprune.planning.curves import load_curves
from onnxprune.plans import Plan, load_plan
from onnxprune.recipes import load_recipe
from onnxprune.recipes.recipe import FORMAT as RECIPE
from onnxprune.recipes.runner import COPY, JOURNAL, LATENCY, LOG, ORIGINAL
from onnxprune.reports import _sections
from onnxprune.reports._documents import FORMAT, Fields
from onnxprune.reports._layers import layer_section
from onnxprune.reports._report_data import ModelSnapshot, ReportData

TABLE = "table.json"
_STEP = re.compile(r"\d{2,3}-[a-z]+")
_FIGURES = ("top1", "top1_error", "loss", "latency", "seconds")


def is_run(folder: Path) -> bool:
    """Return True if a folder is one of `onnxprune run`, even if files are missing."""
    return any((folder / name).is_file() for name in (JOURNAL, TABLE, COPY))


def collect_run(folder: Path, models: list[Model]) -> ReportData:
    """Collect report data from a run.

    Args:
        folder: Folder of the run.
        models: Models that the user named as well: one of them may be the original that the run cannot find.
    """
    return _RunCollector(folder, models).report


class _RunCollector:
    def __init__(self, folder: Path, given: list[Model]) -> None:
        self.folder = folder
        self.report = ReportData(folder.resolve().name)
        self.head: dict[str, Any] = {}
        self.records: dict[str, Fields] = {}
        self.table: Fields | None = None
        self._read_journal()
        with _sections.noting(self.report, TABLE):
            self.table = Fields(FORMAT.load(folder / TABLE), TABLE)
            self.report.title = self.table.text("recipe") or self.report.title
        self._read_recipe()
        self.keys = sorted(
            {p.name for p in folder.iterdir() if p.is_dir() and _STEP.fullmatch(p.name)}
            | {k for k in self.records if _STEP.fullmatch(k) and k != ORIGINAL}
        )
        self._stages()
        self._check_files()
        original = self._original(given)
        self.analysis: Analysis | None = None
        if original is not None:
            attention = self.head.get("attention")
            with _sections.noting(self.report, "the original model"):
                self.analysis = analyze(
                    original,
                    attention=attention if attention == "head_dim" else "heads",
                    include_inexact=self.head.get("inexact") is True,
                )
        self._plans_and_curves()
        self._more()
        self._facts(original)
        self._commands()

    # ------------------------------------------------------------------------------------------- what the run wrote

    def _read_journal(self) -> None:
        """Read the journal without writing to it; damaged lines are left out."""
        path = self.folder / JOURNAL
        try:
            lines = FORMAT.load_bytes(path).split(b"\n")
        except OnnxPruneError as err:
            self.report.problems.append(f"{JOURNAL}: {err.what}; which files the steps made cannot be checked")
            return
        for i, line in enumerate(lines):
            if i and not line.strip():
                continue
            try:
                if i == 0:
                    self.head = dict(Fields(FORMAT.parse(line, JOURNAL), JOURNAL).value)
                    self.head["journal"]  # no other line has it
                else:
                    key, value = read_entry(line, JOURNAL)
                    self.records[key] = Fields(value, f"{JOURNAL}, {key}")
            except (KeyError, OnnxPruneError):
                self.report.problems.append(f"{JOURNAL}: line {i + 1} is damaged; its record is left out")

    def _read_recipe(self) -> None:
        path = self.folder / COPY
        try:
            self.report.recipe = RECIPE.load_text(path)
            table = RECIPE.parse(self.report.recipe, COPY)
            if not table.get("step"):
                raise RECIPE.error("it has no steps", COPY)
            about = table.get("about")
            self.report.subtitle = about if isinstance(about, str) else ""
        except OnnxPruneError as err:
            self.report.problems.append(f"{COPY}: {err.what}; what the recipe says is left out")

    def _stages(self) -> None:
        """Read the steps from the table, or from the journal if the table is missing."""
        if self.table is not None:
            with _sections.noting(self.report, TABLE):
                rows = self.table.tables("steps")
                self.report.stages = [self._row(r) for r in rows]
                self._values([(r.text("step"), r) for r in rows])
                return
        valued: list[tuple[str, Fields]] = []
        known = self.records.get(LATENCY)
        latency: dict[str, Any] = dict(known.value.get("median") or {}) if known is not None else {}
        for key in (ORIGINAL, *self.keys):
            record = self.records.get(key)
            if record is None:
                if key != ORIGINAL:
                    self.report.stages.append(ModelSnapshot(key, "not finished, or not on record", model=False))
                continue
            with _sections.noting(self.report, key):
                stage = ModelSnapshot(key, record.text("note"), seconds=record.number("seconds"), model=False)
                if isinstance(record.value.get("figures"), dict):
                    figures = record.table("figures")
                    stage.model = True
                    _sections.set_cost(stage, figures)
                    _sections.set_accuracy(stage, figures)
                    valued.append((key, figures))
                    stage.latency = Fields(latency, JOURNAL).number(key)
                self.report.stages.append(stage)
        self._values(valued)

    def _values(self, steps: Sequence[tuple[str, Fields]]) -> None:
        """Add the metric of a task other than classification, step by step."""
        metric = next((d.text("metric") for _, d in steps if d.text("metric")), "")
        rows = [(key, metric_text(metric, value)) for key, d in steps if (value := d.number("value")) is not None]
        if rows:
            self.report.facts.append((f"{metric_title(metric)} on the test data", rows))

    def _row(self, r: Fields) -> ModelSnapshot:
        turn = r.text("turn")
        stage = ModelSnapshot(
            r.text("step") + (f" ({turn})" if turn else ""), r.text("note"), model=bool(r.text("model"))
        )
        for name in _FIGURES:
            setattr(stage, name, r.number(name))
        _sections.set_cost(stage, r)
        if stage.top1 is None and r.text("metric"):
            _sections.set_metric(stage, r)
        return stage

    def _check_files(self) -> None:
        """Compare every file in the journal with its digest."""
        for key, record in self.records.items():
            if "digests" not in record.value:
                continue
            with _sections.noting(self.report, key):
                for name, digest in record.table("digests").value.items():
                    path = self.folder / name
                    if not path.resolve().is_relative_to(self.folder.resolve()):
                        self.report.problems.append(f"{name}: is outside of the run's folder; not looked at")
                    elif not path.is_file():
                        self.report.problems.append(f"{name}: the file is missing")
                    elif _digest(path) != digest:
                        self.report.problems.append(f"{name}: the file has changed since the run wrote it")

    # --------------------------------------------------------------------------------------------------- the models

    def _original(self, given: list[Model]) -> Model | None:
        """Return the recipe's model if it exists and is unchanged."""
        wanted = self.head.get("model")
        for model in given:
            if model.fingerprint == wanted or not wanted:
                return model if model.sizes else with_shapes(model, self.head.get("shapes"))
        places: list[Path] = []
        if self.table is not None:
            with suppress(OnnxPruneError, IndexError):
                places.append(Path(self.table.tables("steps")[0].text("model")))
        with suppress(OnnxPruneError):
            places.append(load_recipe(self.folder / COPY).model)
        changed = False
        for path in places:
            with suppress(OnnxPruneError, OSError, ValueError):
                if path.is_file():
                    model = with_shapes(load(path), self.head.get("shapes"))
                    if model.fingerprint == wanted or not wanted:
                        return model
                    changed = True
        what = "has changed" if changed else "is not where it was"
        self.report.problems.append(
            f"the original model {what}: unpruned groups and locked channels cannot be shown; name it beside the "
            f"run's folder, `onnxprune report {self.folder.name} MODEL`"
        )
        return None

    def _plans_and_curves(self) -> None:
        cuts: list[_sections.AppliedPlan] = []
        found: dict[str, Plan] = {}
        for key in self.keys:
            path = self.folder / key / "plan.json"
            if path.is_file():
                with _sections.noting(self.report, f"{key}/plan.json"):
                    found[key] = load_plan(path)
        for key, plan in found.items():
            cuts.append(_sections.AppliedPlan(key, plan))
            self.report.facts.append((f"Plan of {key}", _sections.plan_facts(plan)))
        if len(cuts) == 1 and self.analysis is not None:
            cuts[0] = replace(cuts[0], scores=self._scores(cuts[0].plan))
        _sections.add_groups(self.report, self.analysis, cuts)
        if cuts:
            self.report.why = _sections.selection_reasons(cuts[0])
        if cuts and self.analysis is not None:
            with _sections.noting(self.report, cuts[0].name):
                self.report.layers = layer_section(self.analysis, cuts[0].plan)
        for key in self.keys:
            path = self.folder / key / "curves.json"
            if path.is_file():
                with _sections.noting(self.report, f"{key}/curves.json"):
                    curves = load_curves(path)
                    later = [plan for k, plan in found.items() if k >= key]
                    self.report.curves.append(_sections.sensitivity(key, curves, later))
                    self.report.facts.append((f"Curves of {key}", _sections.curves_facts(curves)))

    def _scores(self, plan: Plan) -> Any:
        assert self.analysis is not None
        for key in reversed(self.keys):
            path = self.folder / key / "scores.json"
            if path.is_file():
                with _sections.noting(self.report, f"{key}/scores.json"):
                    return load_scores(path, self.analysis).groups
        again = _sections.rescored(self.analysis, plan)
        return again.groups if again is not None else None

    def _more(self) -> None:
        """Add files of single steps: verification, training, accuracy on other data."""
        for key in self.keys:
            folder = self.folder / key
            for name in ("verification.json", "training.json", "accuracy.json"):
                if not (folder / name).is_file():
                    continue
                with _sections.noting(self.report, f"{key}/{name}"):
                    d = Fields(FORMAT.load(folder / name), f"{key}/{name}")
                    if name == "verification.json":
                        self.report.proofs.append(_sections.proof_of(key, d))
                    elif name == "training.json":
                        self.report.tables.append(_sections.training_table(f"Training of {key}", d))

    # ------------------------------------------------------------------------------------------ where it comes from

    def _facts(self, original: Model | None) -> None:
        plain = ("attention", "inexact", "shapes")
        rows = [(k if k in plain else f"{k} (SHA-256)", str(v)) for k, v in self.head.items() if k != "journal"]
        latency = self.records.get(LATENCY)
        if latency is not None and isinstance(latency.value.get("how"), dict):
            how = {k: v for k, v in latency.value["how"].items() if k != "models"}
            self.report.measured_on = str(how.pop("machine", "")) or "the machine is not on record"
            rows.append(("latency measured with", ", ".join(f"{k} {v}" for k, v in how.items())))
        rows += self._times()
        self.report.facts.insert(0, ("The run", rows))
        if original is not None:
            name = str(original.path) if original.path else "the original"
            self.report.facts.insert(1, ("The original model", [("file", name), *_sections.model_facts(original)]))

    def _times(self) -> list[tuple[str, str]]:
        """Read start and end from the first and last line of the log."""
        try:
            text = read_text(self.folder / LOG, errors="replace")
            times = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text, re.M)
        except OSError as err:
            self.report.problems.append(f"{LOG}: {err.strerror or err}; when it ran is not known")
            return []
        return [("begun", times[0]), ("last entry", times[-1])] if times else []

    def _commands(self) -> None:
        """Return the commands that repeat the run and this report."""
        words = ["onnxprune", "run", COPY]
        if self.table is not None:
            with _sections.noting(self.report, TABLE):
                words += self._changes(self.table)
        words += ["-o", self.folder.name]
        self.report.commands += [
            shlex.join(words), shlex.join(["onnxprune", "report", self.folder.name, "-o", "report.html"])
        ]  # fmt: skip

    def _changes(self, table: Fields) -> list[str]:
        """Return the changes to the recipe; paths in a recipe are relative to its original folder."""
        out = []
        first = next(iter(table.tables("steps")), None)
        model = first.text("model") if first is not None else ""
        if model:
            out += ["--model", model]
        sources = table.value.get("sources")
        if isinstance(sources, dict):
            for key in ("data", "val_data", "test_data"):
                if isinstance(sources.get(key), str):
                    out += [f"--{key.replace('_', '-')}", sources[key]]
        changes = table.value.get("changes")
        if isinstance(changes, list):
            for change in changes:
                out += ["--set", str(change)]
        return out


def _digest(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
