"""Recipes: whole methods as files of steps. Reading is strict: an unknown key is an error, and so is a step that needs
an artifact no earlier step produces.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from onnxprune._utils.registry import Registry
from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.data import preprocess_of
from onnxprune.ir.reader import SHIPPED, shipped_model
from onnxprune.options import (
    AnalysisOptions,
    Benchmark,
    InputShapes,
    Patience,
    Planning,
    Preprocessing,
    Sampling,
    SensitivitySweep,
    TaskOptions,
    declared,
    option,
)
from onnxprune.recipes._measuring_steps import EvaluateStep, SweepStep
from onnxprune.recipes._model_steps import ApplyStep, PruneStep, RetrainStep, SparsifyStep
from onnxprune.recipes._options import options, read
from onnxprune.recipes._planning_steps import PlanStep, ScoreStep, SensitivityStep
from onnxprune.recipes._steps import DATA, MODEL, RecipeDefaults, RecipeStep, after

STEPS: Registry[str, type[RecipeStep]] = Registry("step", key=lambda cls: cls.do)
"""Kinds of steps by the name a recipe calls them."""
for _step in (
    ScoreStep, SensitivityStep, PlanStep, ApplyStep, PruneStep, RetrainStep, SparsifyStep, EvaluateStep, SweepStep,
):  # fmt: skip
    STEPS.register(_step)

RENAMED = {
    old.removeprefix("--").replace("-", "_"): d.name
    for cls in (Planning, SensitivitySweep) for d in declared(cls) for old in d.spec.old
}  # fmt: skip
"""Old keys of steps, which are still read, and what they are called now."""

REPEAT = "repeat"
_PARTS = ("preprocess", "bench", "shapes")  # tables of the recipe's own
HELD_OUT = "every 4th sample of data"
"""Source of test data that is held out of `data`."""

_log = logging.getLogger(__name__)
_MAX_STEPS = 999
FORMAT = Format("recipe", 2**20, syntax="toml")
Table = dict[str, Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class BenchSettings(Benchmark):
    """Options of measuring latency for the table."""

    runs: int = option(30, help="Timed runs of each model; 0: latency is left out.", heading="Latency", ge=0)


@dataclass(frozen=True, kw_only=True, repr=False)
class _RecipeHeader(Sampling, Patience):
    """Keys of a recipe before its steps."""

    name: str
    model: str
    analysis: AnalysisOptions
    task_options: TaskOptions
    about: str = ""
    data: str = ""
    val_data: str = ""
    test_data: str = ""
    class_map: str = ""
    images_dir: str = ""
    seed: int = option(0, help="Seed of all steps.", heading="Runtime", ge=0)
    threads: int = option(0, help="CPU threads of all steps; 0: all cores.", heading="Runtime", ge=0)
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name) or self.name.startswith("."):
            raise OnnxPruneError(f"'name' is of letters, digits and -_. only, not {self.name!r}")


@dataclass(frozen=True)
class StepEntry:
    """Step with its position.

    Attributes:
        number: from 1 on, repeated ones counted each time.
        step: the step.
        turn: iterations of the loops around it: "2/8", or "" outside of loops.
    """

    number: int
    step: RecipeStep
    turn: str = ""

    @property
    def key(self) -> str:
        """Return the name of its folder."""
        return f"{self.number:02d}-{self.step.do}"

    @property
    def title(self) -> str:
        """Return the title for messages."""
        return f"step {self.number} ({self.step.do}{', turn ' + self.turn if self.turn else ''})"


@dataclass(frozen=True)
class Recipe:
    """Recipe with its loops unrolled.

    Attributes:
        name: default name of the run's folder.
        about: a line of description.
        model: the original model's file.
        sources: sources of its data, by the names of `DATA`.
        beside: files beside the data: "class_map" and "images_dir".
        images: use only so many of `data`, evenly from the classes.
        data_timeout: seconds for one image, and for one item of a data function.
        defaults: options shared by all steps.
        bench: options of measuring latency.
        entries: the steps, loops unrolled.
        base: folder to which paths are relative.
        text: text of the file, and `changes` to it.
    """

    name: str
    about: str
    model: Path
    sources: Mapping[str, str]
    beside: Mapping[str, str]
    images: int | None
    data_timeout: float
    defaults: RecipeDefaults
    bench: BenchSettings
    entries: tuple[StepEntry, ...]
    base: Path
    text: str = field(repr=False)
    changes: tuple[str, ...] = ()


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    folder = Path(str(resources.files("onnxprune.recipes") / "shipped"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _recipe_path(name: Path | str) -> tuple[Path, bool]:
    """Return the file of a recipe, and whether it comes with the package; a file of one's own is first."""
    path = Path(name)
    if path.is_file():
        return path, False
    shipped = shipped_recipes()
    plain = str(name).removesuffix(".toml")
    if plain in shipped:
        return shipped[plain], True
    if path.suffix == ".toml" or path.parent != Path():
        raise OnnxPruneError(f"no such file: {str(path)!r}", fix=f"or a recipe that ships: {', '.join(shipped)}")
    raise unknown("recipe", plain, shipped)


def load_recipe(
    path: Path | str,
    *,
    changes: Sequence[str] = (),
    model: Path | None = None,
    sources: Mapping[str, str] | None = None,
) -> Recipe:
    """Read a recipe.

    A recipe that ships names bundled data. With `sources["data"]` alone, its accuracy is measured on every 4th sample
    of that data, which no step reads.

    Args:
        path: path of the TOML file, or the name of a recipe that ships.
        changes: "KEY=VALUE" for a key of the recipe, "preprocess.KEY=VALUE", "bench.KEY=VALUE" and "shapes.KEY=VALUE"
            for those tables, "STEP.KEY=VALUE" for all steps of a kind.
        model: instead of the recipe's.
        sources: instead of the recipe's data, by the names of `DATA`.

    Raises:
        OnnxPruneError: unreadable, not TOML, an unknown or missing key, an invalid value, a step that needs an artifact
            no earlier step produces.
    """
    path, shipped = _recipe_path(path)
    text = FORMAT.load_text(path)
    table = FORMAT.parse(text, str(path))
    for do, step in _tables(table.get("step")):
        for key in [k for k in step if k in RENAMED]:
            _set(step, _current(do, key, path.name), step.pop(key), path.name)
    for change in changes:
        _change(table, change)
    for key, value in {**(sources or {}), **({"model": str(model)} if model else {})}.items():
        table[key] = value
    if shipped and "data" in (sources or {}):
        for key in ("val_data", "test_data"):
            if key in table and key not in (sources or {}):
                del table[key]
                if key == "test_data":
                    table[key] = HELD_OUT
    given = set(sources or {}) | ({"model"} if model else set())
    return replace(_recipe(table, path, text, given), changes=tuple(changes))


def _recipe(table: Table, path: Path, text: str, overridden: set[str]) -> Recipe:
    where, base = path.name, path.parent
    parts = {key: _part(table, key, where) for key in _PARTS}
    rest = {key: value for key, value in table.items() if key not in (*parts, "step")}
    for key in rest:
        if key not in options(_RecipeHeader):
            err = unknown("key", key, [*options(_RecipeHeader), *parts, "step"])
            raise OnnxPruneError(err.what, where=where, fix=err.fix)
    head = read(_RecipeHeader, rest, where)
    pre = read(Preprocessing, parts["preprocess"], f"{where}, table preprocess")
    bench = read(BenchSettings, parts["bench"], f"{where}, table bench", {"device": head.device})
    shapes = read(InputShapes, {"shapes": parts["shapes"]}, f"{where}, table shapes")
    how = preprocess_of(pre)
    task = head.task_options
    if task.alphabet is not None:
        task = replace(task, alphabet=str(base / task.alphabet))
    defaults = RecipeDefaults(how, head.seed, head.threads, head.device, head.analysis, task, shapes)
    step_defaults = {"seed": head.seed, "threads": head.threads, "device": head.device}
    step_defaults |= {f.name: getattr(task, f.name) for f in fields(task) if getattr(task, f.name) is not None}
    entries = tuple(
        StepEntry(i + 1, step, turn)
        for i, (step, turn) in enumerate(_steps(table.get("step"), where, step_defaults, ""))
    )
    sources = {}
    for key in DATA:
        source = getattr(head, key)
        if source:
            sources[key] = source if key in overridden else _data_source(source, base)
    recipe = Recipe(
        head.name, head.about, Path(head.model) if "model" in overridden else _model_path(head.model, base), sources,
        {k: _data_source(v, base) for k in ("class_map", "images_dir") if (v := getattr(head, k))},
        head.images, head.data_timeout, defaults, bench, entries, base, text,
    )  # fmt: skip
    _check_order(recipe, where)
    return recipe


def _part(table: Table, key: str, where: str) -> Table:
    part = table.get(key, {})
    if not isinstance(part, dict):
        raise OnnxPruneError(f"{key!r} is a table", where=where, fix=f"[{key}]")
    return part


def _steps(tables: Any, where: str, defaults: Mapping[str, Any], turn: str) -> Iterator[tuple[RecipeStep, str]]:
    """Return the steps with their iterations, loops unrolled."""
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise OnnxPruneError("there are no steps", where=where, fix='[[step]] do = "prune" ...')
    count = 0
    for i, table in enumerate(tables):
        place = f"{where}, step {i + 1}"
        do = table.get("do")
        if not isinstance(do, str):
            raise OnnxPruneError("a step needs the key 'do'", where=place, fix=f"one of {', '.join((*STEPS, REPEAT))}")
        place += f" ({do})"
        if do == REPEAT:
            found = _repeated(table, place, defaults, turn)
        elif do in STEPS:
            found = iter([(read(STEPS[do], {k: v for k, v in table.items() if k != "do"}, place, defaults), turn)])
        else:
            err = unknown("step", do, (*STEPS, REPEAT))
            raise OnnxPruneError(err.what, where=f"{where}, step {i + 1}", fix=err.fix)
        for step in found:
            count += 1
            if count > _MAX_STEPS:
                raise OnnxPruneError(f"a recipe has at most {_MAX_STEPS} steps", where=where)
            yield step


def _repeated(table: Table, where: str, defaults: Mapping[str, Any], turn: str) -> Iterator[tuple[RecipeStep, str]]:
    for key in table:
        if key not in ("do", "times", "step"):
            err = unknown("key", key, ("times", "step"))
            raise OnnxPruneError(err.what, where=where, fix=err.fix)
    times = table.get("times")
    if type(times) is not int or not 1 <= times <= _MAX_STEPS:
        raise OnnxPruneError(f"'times' must be from 1 to {_MAX_STEPS}; got {times!r}", where=where)
    for i in range(1, times + 1):
        yield from _steps(table.get("step"), where, defaults, f"{turn} {i}/{times}".strip())


def _check_order(recipe: Recipe, where: str) -> None:
    """Check that earlier steps produce the needs of every step."""
    have = {MODEL}
    for e in recipe.entries:
        for what in e.step.needs:
            if what not in have:
                raise OnnxPruneError(
                    f"{e.title} needs {what}, and no step before it makes any of the model as it is then",
                    where=where,
                    fix={"scores": "a step score before it, or a criterion of its own", "curves": "a step sensitivity "
                         "before it", "plan": "a step plan before it"}[what],
                )  # fmt: skip
        for what in e.step.needs_data:
            if what not in recipe.sources:
                raise OnnxPruneError(f"{e.title} needs data, and the recipe names no {what!r}", where=where)
        have = after(have, e.step.produces)


def _model_path(source: str, base: Path) -> Path:
    if not source.startswith(SHIPPED):
        return base / source
    return shipped_model(source.removeprefix(SHIPPED))


def _data_source(source: str, base: Path) -> str:
    """Resolve a data source: files beside the recipe come first; other sources are those of `load_data`."""
    beside = base / source
    return str(beside) if not source.startswith("digits") and source != HELD_OUT and beside.exists() else source


def _change(table: Table, change: str) -> None:
    """Set one key, of the recipe or of all steps of a kind."""
    name, equals, text = change.partition("=")
    *path, key = name.strip().split(".")
    if not equals or not key or len(path) > 1:
        raise OnnxPruneError(f"cannot read the change {change!r}", fix="seed=1, or retrain.epochs=2 for all such steps")
    value = _value(text.strip())
    if not path:
        table[key] = value
    elif path[0] in _PARTS:
        _part(table, path[0], change)
        table[path[0]] = {**table.get(path[0], {}), key: value}
    else:
        found = [step for do, step in _tables(table.get("step")) if do == path[0]]
        if not found:
            raise OnnxPruneError(f"the recipe has no step {path[0]!r} to change", where=change)
        key = _current(path[0], key, change)
        for step in found:
            step[key] = value


def _tables(steps: Any) -> Iterator[tuple[str, Table]]:
    """Return the tables of all steps, those in loops included, with the kind of each."""
    for table in steps if isinstance(steps, list) else ():
        if isinstance(table, dict):
            if isinstance(table.get("do"), str):
                yield table["do"], table
            yield from _tables(table.get("step"))


def _current(do: str, key: str, where: str) -> str:
    """Return the name that an option of a step has now, after a note if `key` is an old one."""
    known = options(STEPS[do]) if do in STEPS else {}
    if key in known or RENAMED.get(key) not in known:
        return key
    _log.warning("%s: %s is now %s", where, key, RENAMED[key])
    return RENAMED[key]


def _set(step: Table, key: str, value: Any, where: str) -> None:
    """Set a key that was given under its old name.

    Raises:
        OnnxPruneError: the step has the key under both names.
    """
    if key in step:
        raise OnnxPruneError(f"a step has {key!r} under its old name as well", where=where, fix="leave out the old one")
    step[key] = value


def _value(text: str) -> Any:
    """Parse a value as TOML; anything else is text."""
    try:
        return FORMAT.parse(f"x = {text}", "")["x"]
    except OnnxPruneError:
        return text
