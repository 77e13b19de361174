"""Recipes: read strictly, run in order, resumed wherever they were killed, with the same files in the end."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from command_line import CommandLine
from networks.image_models import classifier, pictures, saved
from planning import FakeLatency

import onnxprune as op
from onnxprune.analysis.cost import CostModel
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.machine import processor
from onnxprune.recipes import STEPS, _model_steps, load_recipe, run_recipe, shipped_recipes
from onnxprune.recipes._options import options, read, required
from onnxprune.recipes._steps import RecipeStep
from onnxprune.recipes.recipe import BenchSettings
from onnxprune.reports import collect

ROOT = Path(__file__).parent.parent.parent
DIGITS = ROOT / "models" / "digits_cnn.onnx"
SHIPPED = sorted((ROOT / "onnxprune" / "recipes" / "shipped").glob("*.toml"))

line = CommandLine()

HEAD = """
name = "test"
model = "onnxprune:digits_cnn.onnx"
data = "digits:train"
test_data = "digits:test"
images = 300
threads = 1
[bench]
runs = 0
"""

DECIDE_AND_CUT = (
    HEAD
    + """
[[step]]
do = "sensitivity"
criterion = "dscore"
ratios = [0.5]
images = 100
on = "test_data"
include = ["stem.conv", "transition.conv"]

[[step]]
do = "plan"
min_group_accuracy = 0.8

[[step]]
do = "apply"

[[step]]
do = "repeat"
times = 2

  [[step.step]]
  do = "score"
  criterion = "act_mean"
  images = 50

  [[step.step]]
  do = "prune"
  target = "channels=0.9"
  round_to = 1

[[step]]
do = "sparsify"
sparsity = 0.3

[[step]]
do = "evaluate"
on = "data"
images = 20
"""
)


def written(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Everything a run has made that does not tell the time, by its name in the folder."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("run.journal", "log.txt", "table.csv", "table.json", "training.json")
        and "training" not in p.relative_to(folder).parts
    }  # fmt: skip


# --------------------------------------------------------------------------------------------- reading of options


@dataclass(frozen=True)
class Inner:
    count: int = 1
    share: float | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str
    flags: tuple[bool, ...] = ()
    either: float | str | None = None
    on: bool = False


def test_options_of_inner_dataclasses_stand_in_the_same_table() -> None:
    assert list(options(Outer)) == ["count", "share", "name", "flags", "either", "on"]
    assert required(Outer) == ["name"]
    made = read(Outer, {"name": "x", "share": 1, "flags": [True], "either": 1}, "here")
    assert made == Outer(Inner(1, 1.0), "x", (True,), 1.0)
    assert isinstance(made.inner.share, float)
    assert read(Outer, {"name": "x"}, "here", {"count": 3, "nothing": 1}).inner.count == 3
    assert read(Outer, {"name": "x", "count": 2}, "here", {"count": 3}).inner.count == 2
    assert read(Outer, {"name": "x", "either": "auto"}, "here").either == "auto"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"name": "x", "cuont": 1}, "unknown key 'cuont'\n  at: here\n  try: did you mean 'count'?"),
        ({}, "the key 'name' is missing\n  at: here"),
        ({"name": 1}, "'name' takes text in quotes, not 1\n  at: here"),
        ({"name": "x", "count": True}, "'count' takes a whole number, not True"),
        ({"name": "x", "count": 1.0}, "'count' takes a whole number, not 1.0"),
        ({"name": "x", "share": "1"}, "'share' takes a number, not '1'"),
        ({"name": "x", "flags": [1]}, "'flags[0]' takes true or false, not 1"),
        ({"name": "x", "flags": True}, "'flags' takes a list"),
        ({"name": "x", "either": []}, "'either' takes a number or text in quotes, not []"),
    ],
)
def test_options_are_typed(table: dict[str, Any], says: str) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        read(Outer, table, "here")
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("cls", STEPS.values(), ids=list(STEPS))
def test_no_option_of_a_step_hides_another(cls: type[RecipeStep]) -> None:
    def names(c: Any) -> list[str]:
        from dataclasses import fields, is_dataclass
        from typing import get_type_hints

        hints = get_type_hints(c)
        return [n for f in fields(c) for n in (names(hints[f.name]) if is_dataclass(hints[f.name]) else [f.name])]

    assert len(names(cls)) == len(set(names(cls))) == len(options(cls))
    assert "do" not in options(cls)
    assert cls.do in {"score", "sensitivity", "plan", "apply", "prune", "retrain", "sparsify", "evaluate", "sweep"}


# ------------------------------------------------------------------------------------------------- reading recipes


def test_loops_are_unrolled_in_order(tmp_path: Path) -> None:
    text = HEAD + """
[[step]]
do = "repeat"
times = 2
  [[step.step]]
  do = "prune"
  criterion = "l2"
  ratio = 0.1
  [[step.step]]
  do = "repeat"
  times = 2
    [[step.step.step]]
    do = "sparsify"
    sparsity = 0.1
[[step]]
do = "evaluate"
on = "data"
"""  # fmt: skip
    recipe = load_recipe(written(tmp_path, text))
    assert [(e.key, e.turn) for e in recipe.entries] == [
        ("01-prune", "1/2"), ("02-sparsify", "1/2 1/2"), ("03-sparsify", "1/2 2/2"),
        ("04-prune", "2/2"), ("05-sparsify", "2/2 1/2"), ("06-sparsify", "2/2 2/2"), ("07-evaluate", ""),
    ]  # fmt: skip


def test_what_a_recipe_says_once_goes_to_every_step_that_does_not_say_otherwise(tmp_path: Path) -> None:
    text = HEAD.replace("threads = 1", "threads = 3\nseed = 5") + """
[[step]]
do = "retrain"
epochs = 1
[[step]]
do = "retrain"
seed = 7
threads = 1
"""  # fmt: skip
    first, second = (e.step.settings for e in load_recipe(written(tmp_path, text)).entries)  # type: ignore[attr-defined]
    assert (first.seed, first.threads, first.device, first.epochs) == (5, 3, "cpu", 1)
    assert (second.seed, second.threads, second.epochs) == (7, 1, 10)


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    shutil.copy(DIGITS, folder / "m.onnx")
    np.savez(folder / "d.npz", x=np.zeros((4, 1, 8, 8), np.float32), y=np.zeros(4, np.int64))
    text = 'name = "t"\nmodel = "m.onnx"\ntest_data = "d.npz"\n[[step]]\ndo = "sparsify"\nsparsity = 0.5\n'
    path = written(folder, text)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path("there/recipe.toml"))
    assert recipe.model.samefile(folder / "m.onnx")
    assert Path(recipe.sources["test_data"]).samefile(folder / "d.npz")
    other = load_recipe(path, model=Path("x.onnx"), sources={"test_data": "y.npz", "data": "z:f"})
    assert other.model == Path("x.onnx")
    assert other.sources == {"data": "z:f", "test_data": "y.npz"}


def test_changes(tmp_path: Path) -> None:
    changes = [
        "sensitivity.ratios=[0.25, 0.5]", "prune.target=macs=0.9", "score.criterion=l1", "repeat.times=1", "seed=3",
        "preprocess.mean=[0.5]", "bench.runs=4", 'name="other"',
    ]  # fmt: skip
    recipe = load_recipe(written(tmp_path, DECIDE_AND_CUT), changes=changes)
    steps: Any = {e.key: e.step for e in recipe.entries}
    assert list(steps) == [
        "01-sensitivity",
        "02-plan",
        "03-apply",
        "04-score",
        "05-prune",
        "06-sparsify",
        "07-evaluate",
    ]
    assert steps["01-sensitivity"].sweep.ratios == (0.25, 0.5)
    assert steps["05-prune"].planning.budget.target == "macs=0.9"
    assert (recipe.defaults.seed, recipe.defaults.preprocess.mean, recipe.bench, recipe.name) == (
        3, (0.5,), BenchSettings(runs=4), "other",
    )  # fmt: skip
    for change, says in (
        ("retrain.epochs=1", "no step 'retrain' to change"),
        ("seed", "cannot read the change 'seed'"),
        ("a.b.c=1", "cannot read the change"),
        ("seed=x", "'seed' takes a whole number, not 'x'"),
        ("sede=1", "did you mean 'seed'"),
    ):
        with pytest.raises(OnnxPruneError, match=re.escape(says)):
            load_recipe(written(tmp_path, DECIDE_AND_CUT), changes=[change])


def step(do: str, rest: str = "") -> str:
    """A step as a recipe has it."""
    return f'[[step]]\ndo = "{do}"\n{rest}\n'


STEP = step("sparsify", "sparsity = 0.5")
INNER = STEP.replace("[[step]]", "[[step.step]]")
BAD = [
    ("name = ", "not valid TOML"),
    ("", "the key 'name' is missing"),
    (HEAD, "there are no steps"),
    (STEP, "the key 'name' is missing"),
    ('name = "a/b"\nmodel = "m"\n' + STEP, "letters, digits"),
    ('name = "a"\nmodel = "onnxprune:digit_cnn.onnx"\n' + STEP, "did you mean 'digits_cnn.onnx'"),
    (HEAD + "seed = 1\n" + STEP, "unknown key 'seed'"),  # it stands in the table bench
    ("sede = 1\n" + HEAD + STEP, "did you mean 'seed'"),
    ("seed = -1\n" + HEAD + STEP, "seed must be a whole number, at least 0; got -1"),
    ('attention = "tails"\n' + HEAD + STEP, "unknown attention 'tails'"),
    ("preprocess = 1\n" + HEAD + STEP, "'preprocess' is a table"),
    (HEAD + "[preprocess]\nmaen = [1]\n" + STEP, "did you mean 'mean'"),
    (HEAD + "[preprocess]\nsize = [1]\n" + STEP, "size must be [height, width]"),
    (HEAD + '[preprocess]\nlayout = "nwhc"\n' + STEP, "unknown layout 'nwhc'"),
    (HEAD + "[[step]]\nsparsity = 0.5\n", "needs the key 'do'"),
    (HEAD + step("retrian"), "unknown step 'retrian'\n  at: recipe.toml, step 1\n  try: did you mean 'retrain'"),
    (HEAD + '[step]\ndo = "retrain"\n', "there are no steps"),
    (HEAD + STEP + step("retrain", 'epoch = 1'), "unknown key 'epoch'\n  at: recipe.toml, step 2 (retrain)"),
    (HEAD + step("retrain", 'epochs = 0'), "epochs must be a whole number, at least 1; got 0"),
    (HEAD + step("retrain", 'devices = 2'), "trains in one process"),
    (HEAD + step("retrain", 'ratio = 0.5'), "need a method"),
    (HEAD + step("retrain", 'method = "slim"'), "unknown method 'slim'"),
    (HEAD + step("retrain", 'method = "slimming"\nparams = {power = 1}'), "no parameter 'power'"),
    (HEAD + step("retrain", 'method = "slimming"\nratio = 2'), "in [0, 1)"),
    (HEAD + step("score"), "the key 'criterion' is missing"),
    (HEAD + step("score", 'criterion = "dscor"'), "did you mean 'dscore'"),
    (HEAD + step("score", 'criterion = "l1"\nparams = {x = 1}'), "no parameter 'x'"),
    (HEAD + step("score", 'criterion = "l1"\nimages = 0'), "images must be a whole number, at least 1; got 0"),
    (HEAD + step("sensitivity", 'criterion = "l1"\nmetric = "top2"'), "top2"),
    (HEAD + step("sensitivity", 'criterion = "l1"\nmax_loss = 1'), "of top1, more is better"),
    (HEAD + step("sensitivity", 'criterion = "l1"\non = "train"'), "'on' names one of"),
    (HEAD + step("plan", 'ratio = 0.5'), "needs scores, and no step before it makes any"),
    (HEAD + step("plan", 'criterion = "l1"'), "the budget is missing"),
    (HEAD + step("plan", 'criterion = "l1"\nratio = 0.5\ntarget = "macs=0.5"'), "excludes a target"),
    (HEAD + step("plan", 'criterion = "l1"\ntarget = "flaps=0.5"'), "cannot read the target"),
    (HEAD + step("plan", 'criterion = "l1"\nmin_group_accuracy = 0.5'), "needs curves"),
    (HEAD + step("plan", 'steps = 2\ntarget = "macs=0.5"'), "name a criterion"),
    (HEAD + step("plan", 'criterion = "l1"\nratio = 0.5\nmax_ratio = 1.0'), "max_ratio must be in [0, 1); got 1.0"),
    (HEAD + step("plan", 'criterion = "l1"\nratio = 0.5\nallocator = "local"'), "unknown allocator 'local'"),
    (HEAD + step("plan", 'criterion = "l1"\nratio = 0.5\nnormalize = "median"'), "unknown normalization 'median'"),
    (HEAD + step("plan", 'criterion = "l1"\nratio = 0.5\nreduce = "median"'), "unknown reduction 'median'"),
    (HEAD + step("plan", 'criterion = "l1"\nratio = 0.5\nschedule = "cubic"'), "unknown schedule 'cubic'"),
    (HEAD + step("apply"), "step 1 (apply) needs plan"),
    # Scores and plans are of the model they were made from.
    (HEAD + step("score", 'criterion = "l1"') + STEP + step("prune", 'ratio = 0.5'), "step 3 (prune) needs scores"),
    (HEAD + step("prune", 'criterion = "l1"\nratio = 0.5') + step("apply"), "step 2 (apply) needs plan"),
    (HEAD + step("sparsify"), "either 'sparsity' or 'pattern'"),
    (HEAD + step("sparsify", 'sparsity = 1.0'), "in [0, 1)"),
    (HEAD + step("sweep", 'points = [2.0]'), "in [0, 1)"),
    (HEAD + step("sweep", 'end = "gone"'), "unknown end 'gone'"),
    (HEAD + step("evaluate"), "the recipe names no 'val_data'"),
    (HEAD.replace('data = "digits:train"\n', "", 1) + step("retrain"), "the recipe names no 'data'"),
    (HEAD + step("repeat", "times = 0") + INNER, "'times' must be from 1"),
    (HEAD + step("repeat", 'times = 2'), "there are no steps"),
    (HEAD + step("repeat", 'times = 2\nsteps = 1'), "unknown key 'steps'"),
    (HEAD + step("repeat", "times = 999") + 2 * INNER, "at most 999 steps"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD, ids=[says for _, says in BAD])
def test_bad_recipes_give_one_error_and_no_folder(text: str, says: str, tmp_path: Path) -> None:
    message = line.fails("run", written(tmp_path, text), "-o", tmp_path / "run")
    assert says in message
    assert message.count("error:") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model", "missing.onnx"], "no such file"),
        (["--data", "missing.npz"], "cannot read 'missing.npz'"),
        (["--test-data", "nothing"], "cannot find the data 'nothing'"),
        (["--test-data", "nolabels.npz"], "has no labels"),
        (["--test-data", "other.npz"], "do not fit the model's input"),
        (["--set", 'prune.exclude=["nosuch"]'], "unknown group (in exclude) 'nosuch'"),
        (["--set", 'prune.protect=["frist"]'], "did you mean 'first'"),
        (["-o", "no/run"], "does not exist"),
        (["-o", "full"], "holds no run of a recipe"),
        (["-o", "recipe.toml"], "is the input file"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_known_before_anything_is_written(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("nolabels.npz", x=np.zeros((4, 1, 8, 8), np.float32))
    np.savez("other.npz", x=np.zeros((4, 3, 8, 8), np.float32), y=np.zeros(4, np.int64))
    written(tmp_path, DECIDE_AND_CUT)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    message = line.fails("run", "recipe.toml", *args)
    assert says in message
    assert message.count("error:") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert "no such file" in line.fails("run", "missing.toml")


def test_what_training_needs_is_known_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = written(tmp_path, HEAD + STEP + step("retrain", 'teacher = "teacher.onnx"'))
    message = line.fails("run", recipe, "-o", tmp_path / "run")
    assert "no such file" in message
    assert "at: step 2 (retrain)" in message
    monkeypatch.setattr(_model_steps, "find_spec", lambda name: None if name == "lightning" else object())
    message = line.fails("run", recipe, "-o", tmp_path / "run")
    assert "retraining needs lightning" in message
    assert "pip install 'onnxprune[train]'" in message
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


def test_old_keys_of_steps_are_read_and_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = step("prune", 'target = "macs=0.8"\nscope = "global"').replace("[[step]]", "[[step.step]]")
    text = HEAD + step("sensitivity", 'criterion = "l1"\non = "test_data"\nmin_accuracy = 0.7')
    text += step("sparsify", 'sparsity = 0.5\nscope = "global"') + step("score", 'criterion = "l1"')
    text += step("repeat", "times = 1") + inner
    new = text.replace("min_accuracy", "min_group_accuracy").replace('macs=0.8"\nscope', 'macs=0.8"\nallocator')
    assert load_recipe(written(tmp_path, new)).entries == load_recipe(written(tmp_path, text)).entries
    assert caplog.messages == [
        "recipe.toml: min_accuracy is now min_group_accuracy", "recipe.toml: scope is now allocator"
    ]  # fmt: skip


def test_an_old_key_in_a_change_is_the_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, HEAD + step("plan", 'criterion = "l1"\ntarget = "macs=0.5"\nallocator = "global"'))
    [entry] = load_recipe(path, changes=["plan.scope=uniform"]).entries
    assert entry.step == load_recipe(path, changes=["plan.allocator=uniform"]).entries[0].step
    assert caplog.messages == ["plan.scope=uniform: scope is now allocator"]


def test_a_key_under_both_names_is_refused(tmp_path: Path) -> None:
    text = HEAD + step("plan", 'criterion = "l1"\ntarget = "macs=0.5"\nallocator = "global"\nscope = "global"')
    with pytest.raises(OnnxPruneError, match="under its old name as well"):
        load_recipe(written(tmp_path, text))


# --------------------------------------------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run_recipe(load_recipe(written(folder, DECIDE_AND_CUT)), folder / "run")
    return folder / "run"


def test_every_step_leaves_its_files_and_a_row(whole: Path) -> None:
    made = {name for name in files(whole) if not name.endswith("step.json")}
    prune = ["model.onnx", "plan.json", "verification.json"]
    expected = {
        "01-sensitivity": ["curves.csv", "curves.json", "scores.json"], "02-plan": ["plan.json"],
        "03-apply": ["model.onnx", "verification.json"], "04-score": ["scores.json"], "05-prune": prune,
        "06-score": ["scores.json"],
        "07-prune": prune, "08-sparsify": ["model.onnx"], "09-evaluate": ["accuracy.json"],
    }  # fmt: skip
    assert made == {"recipe.toml"} | {f"{step}/{name}" for step, names in expected.items() for name in names}
    assert (whole / "recipe.toml").read_text() == DECIDE_AND_CUT
    table = json.loads((whole / "table.json").read_text())
    assert [r["step"] for r in table["steps"]] == ["00-original", *expected]
    assert table["model"] == str(whole / "08-sparsify" / "model.onnx")
    test = op.load_data("digits:test")
    for row in table["steps"]:
        changed = row["step"] == "00-original" or "model.onnx" in expected[row["step"]]
        assert (row["model"] is not None) == changed
        if changed:
            model = op.load(row["model"])
            found, cost = op.evaluate(model, test), CostModel(op.analyze(model)).baseline
            assert (row["top1"], row["macs"], row["params"], row["bytes"]) == (
                found.top1, cost.macs, cost.params, cost.bytes,
            )  # fmt: skip
            assert row["loss"] == pytest.approx(found.loss, abs=1e-9)
        else:
            assert row["macs"] is row["top1"] is None
        assert (row["seconds"] is None) == (row["step"] == "00-original")
        assert row["latency"] is None  # runs = 0
    rows = list(csv.DictReader((whole / "table.csv").read_text().splitlines()))
    assert [r["step"] for r in rows] == [r["step"] for r in table["steps"]]
    assert [r["turn"] for r in rows][4:8] == ["1/2", "1/2", "2/2", "2/2"]
    log = (whole / "log.txt").read_text()
    assert [f"step {i} (" in log for i in range(1, 10)] == [True] * 9


def test_each_plan_is_against_the_model_it_was_made_from(whole: Path) -> None:
    steps = ["03-apply", "05-prune", "07-prune"]
    models = {step: op.load(whole / step / "model.onnx") for step in steps}
    assert op.load_plan(whole / "02-plan" / "plan.json").model == op.load(DIGITS).fingerprint
    for before, after in pairwise(steps):
        plan = op.load_plan(whole / after / "plan.json")
        assert plan.model == models[before].fingerprint
        groups = op.analyze(models[before])
        assert plan.removed == round(0.1 * sum(g.channels for g in groups))
        assert sum(g.channels for g in op.analyze(models[after])) == sum(g.channels for g in groups) - plan.removed


def test_steps_do_what_the_commands_of_the_same_name_do(whole: Path, tmp_path: Path) -> None:
    digits = ["--data", "digits:test", "--images", 100]
    groups = ["--include", "stem.conv", "--include", "transition.conv"]
    curves, plan, small = tmp_path / "c.json", tmp_path / "p.json", tmp_path / "s.onnx"
    line.ok("sensitivity", DIGITS, *digits, "-c", "dscore", "--ratios", 0.5, *groups, "-o", curves)
    line.ok("plan", DIGITS, "--curves", curves, "--min-group-accuracy", 0.8, "-o", plan)
    line.ok("apply", DIGITS, plan, "-o", small)
    assert plan.read_bytes() == (whole / "02-plan" / "plan.json").read_bytes()
    assert small.read_bytes() == (whole / "03-apply" / "model.onnx").read_bytes()
    last, sparse = whole / "07-prune" / "model.onnx", tmp_path / "z.onnx"
    line.ok("sparsify", last, "--sparsity", 0.3, "-o", sparse)
    assert sparse.read_bytes() == (whole / "08-sparsify" / "model.onnx").read_bytes()
    # The data of criteria: the recipe's 300 images of the training data, and of those 50.
    scores = json.loads((whole / "04-score" / "scores.json").read_text())
    line.ok("score", small, "-c", "act_mean", "--data", "digits:train", "--images", 50, "-o", tmp_path / "a.json")
    alone = json.loads((tmp_path / "a.json").read_text())
    assert scores["groups"].keys() == alone["groups"].keys()
    assert scores["criterion"] == alone["criterion"]


class Bomb(Exception):
    """Raised where a process might be killed."""


def test_a_run_that_fails_in_every_step_ends_with_the_same_files(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(written(tmp_path, DECIDE_AND_CUT))
    begun: list[str] = []

    def failing(run: Any) -> Any:
        def wrapped(self: Any, place: Any) -> Any:
            found = run(self, place)
            if place.folder.name not in begun:  # all of its files are written, nothing is on record
                begun.append(place.folder.name)
                raise Bomb
            return found

        return wrapped

    for cls in {type(e.step) for e in recipe.entries}:
        monkeypatch.setattr(cls, "run", failing(cls.run))
    for _ in recipe.entries:
        with pytest.raises(Bomb):
            run_recipe(recipe, tmp_path / "run")
    assert begun == [e.key for e in recipe.entries]
    run_recipe(recipe, tmp_path / "run")
    assert files(tmp_path / "run") == files(whole)


def test_what_is_half_there_is_thrown_away(whole: Path, tmp_path: Path) -> None:
    # As killed in step 3, with another model's leftovers in its folder, and something half written in the run's.
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    journal = (run / "run.journal").read_text().splitlines(keepends=True)
    kept = [text for text in journal if not re.match(r'\{"key": "0[3-9]', text)]
    (run / "run.journal").write_text("".join(kept) + '{"key": "03-apply", "val')
    mark = json.loads((run / "03-apply" / "step.json").read_text())
    (run / "03-apply" / "step.json").write_text(json.dumps({**mark, "from": {"model": "another"}}))
    (run / "03-apply" / "leftover").write_text("x")
    (run / ".table.csv.x.tmp").write_text("half")
    (run / "04-score" / ".scores.json.x.tmp").write_text("half")
    notes: list[str] = []
    run_recipe(load_recipe(written(tmp_path, DECIDE_AND_CUT)), run, notice=notes.append)
    assert files(run) == files(whole)
    assert notes[:2] == ["resuming after step 2 of 9", "step 3 (apply) begins"]
    assert "step 4 (score, turn 1/2) resumes" in notes


def test_a_finished_run_only_shows_its_table(whole: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, DECIDE_AND_CUT)
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run" / "run.journal").read_bytes()
    result = line.ok("run", recipe, "-o", tmp_path / "run")
    assert "all 9 steps are finished" in result.stderr
    assert (tmp_path / "run" / "run.journal").read_bytes() == before
    assert files(tmp_path / "run") == files(whole)
    assert max(len(row) for row in result.stdout.splitlines() if str(tmp_path) not in row) <= 80
    assert "07-prune (2/2)" in result.stdout
    document = json.loads(line.out("run", recipe, "-o", tmp_path / "run", "--json"))
    assert [r["step"] for r in document["steps"]][-1] == "09-evaluate"


def test_steps_that_are_not_begun_may_change_and_finished_ones_may_not(whole: Path, tmp_path: Path) -> None:
    recipe, run = written(tmp_path, DECIDE_AND_CUT), tmp_path / "run"
    shutil.copytree(whole, run)
    for args, says in (
        (
            ["--set", "plan.min_group_accuracy=0.9"],
            "step 2 (plan) is finished, with other options (min_group_accuracy)",
        ),
        (["--set", "prune.round_to=2"], "step 5 (prune, turn 1/2) is finished, with other options (round_to)"),
        (["--set", "repeat.times=1"], "of a run with other steps"),
        (["--model", ROOT / "models" / "digits_cnn_folded.onnx"], "written with other settings (model)"),
        (["--data", "digits:test"], "written with other settings (data)"),
        (["--set", "preprocess.std=[2.0]"], "written with other settings (data, test_data)"),
    ):
        message = line.fails("run", recipe, "-o", run, *args)
        assert says in message
        assert "--restart" in message
    assert files(run) == files(whole)
    # Where it runs may change; and a step may be added.
    more = written(tmp_path, DECIDE_AND_CUT + STEP, "more.toml")
    result = line.ok("run", more, "-o", run, "--set", "threads=2")
    assert "resuming after step 9 of 10" in result.stderr
    assert (run / "10-sparsify" / "model.onnx").is_file()


def test_a_run_of_an_earlier_version_goes_on(whole: Path, tmp_path: Path) -> None:
    recipe, run = written(tmp_path, DECIDE_AND_CUT), tmp_path / "run"
    shutil.copytree(whole, run)
    journal = (run / "run.journal").read_text()
    old = journal.replace('"allocator"', '"scope"').replace('"min_group_accuracy"', '"min_accuracy"')
    old = old.replace('"constraints"', '"limits"')
    assert old != journal
    (run / "run.journal").write_text(old)
    assert "all 9 steps are finished" in line.ok("run", recipe, "-o", run).stderr


def test_a_changed_file_is_noticed(whole: Path, tmp_path: Path) -> None:
    recipe, run = written(tmp_path, DECIDE_AND_CUT), tmp_path / "run"
    shutil.copytree(whole, run)
    plan = run / "02-plan" / "plan.json"
    plan.write_text(plan.read_text() + "\n")
    message = line.fails("run", recipe, "-o", run)
    assert "missing or has changed" in message
    assert "02-plan/plan.json" in message
    plan.unlink()
    assert "missing or has changed" in line.fails("run", recipe, "-o", run)
    journal = (run / "run.journal").read_text()
    (run / "run.journal").write_text(journal + '{"key": "10-sparsify", "value": {}}\n')
    assert "other steps" in line.fails("run", recipe, "-o", run)
    for key in ("00-original", "latency", "09-evaluate", "something"):
        (run / "run.journal").write_text(journal + f'{{"key": "{key}", "value": {{"figures": 1, "x": 2}}}}\n')
        message = line.fails("run", recipe, "-o", run)
        assert "not a valid journal" in message or "no step" in message
        assert key in message


def test_restart_begins_anew_and_leaves_what_is_not_its_own(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "notes.txt").write_text("mine")
    text = HEAD + STEP
    done = line.ok("run", written(tmp_path, text), "-o", run, "--restart")
    assert "going on" not in done.stderr
    assert set(files(run)) == {"notes.txt", "recipe.toml", "01-sparsify/model.onnx", "01-sparsify/step.json"}
    assert (run / "log.txt").read_text().count("begins") == 1


def test_latency_is_measured_once(tmp_path: Path) -> None:
    recipe = written(tmp_path, HEAD + STEP)
    args = ("run", recipe, "-o", tmp_path / "run", "--set", "bench.runs=3", "--json")
    first = json.loads(line.out(*args))
    assert [r["latency"] > 0 for r in first["steps"]] == [True, True]
    assert first["machine"].startswith(processor())
    assert f"onnxruntime {onnxruntime.__version__}" in first["machine"]
    assert json.loads(line.out(*args)) == first
    assert max(map(len, line.out(*args[:-1]).split("latency on")[0].splitlines())) <= 80


def test_a_report_of_a_run_names_the_machine_of_its_latency(tmp_path: Path) -> None:
    recipe, run = written(tmp_path, HEAD + STEP), tmp_path / "run"
    line.ok("run", recipe, "-o", run, "--set", "bench.runs=3")
    assert collect([run]).measured_on == json.loads((run / "table.json").read_text())["machine"]
    assert processor() in collect([run]).measured_on


def test_latency_of_an_earlier_version_is_kept_without_a_machine(tmp_path: Path) -> None:
    recipe, run = written(tmp_path, HEAD + STEP), tmp_path / "run"
    args = ("run", recipe, "-o", run, "--set", "bench.runs=3", "--json")
    first = json.loads(line.out(*args))
    path = run / "run.journal"
    path.write_text(path.read_text().replace(f', "machine": {json.dumps(first["machine"])}', ""))
    again = json.loads(line.out(*args))
    assert again == {**first, "machine": None}
    assert collect([run]).measured_on == "the machine is not on record"


def test_an_error_in_a_step_names_it_and_keeps_what_is_done(tmp_path: Path) -> None:
    text = HEAD + STEP + '[[step]]\ndo = "prune"\ncriterion = "l2"\ntarget = "macs=0.0001"\n'
    recipe, run = written(tmp_path, text), tmp_path / "run"
    message = line.fails("run", recipe, "-o", run)
    assert "cannot be reached" in message
    assert "at: step 2 (prune)" in message
    assert "step 2 (prune) failed: " in (run / "log.txt").read_text()
    result = line.ok("run", recipe, "-o", run, "--set", "prune.target=macs=0.5")
    assert "resuming after step 1 of 2" in result.stderr


def test_a_plan_takes_curves_into_account_where_they_are_asked_for(tmp_path: Path) -> None:
    text = HEAD + """
[[step]]
do = "sensitivity"
criterion = "l2"
ratios = [0.5]
images = 50
on = "test_data"
plot = true
[[step]]
do = "plan"
target = "macs=0.7"
[[step]]
do = "plan"
target = "macs=0.7"
allocator = "global"
[[step]]
do = "plan"
criterion = "l1"
target = "macs=0.7"
[[step]]
do = "plan"
criterion = "l1"
target = "macs=0.7"
steps = 2
"""  # fmt: skip
    run_recipe(load_recipe(written(tmp_path, text)), tmp_path / "run")
    made = [op.load_plan(tmp_path / "run" / f"0{i}-plan" / "plan.json").criterion for i in (2, 3, 4, 5)]
    assert [m.get("scope") for m in made] == ["sensitivity", None, None, None]
    assert [m["name"] for m in made] == ["l2", "l2", "l1", "l1"]
    assert made[3]["steps"] == 2
    assert (tmp_path / "run" / "01-sensitivity" / "curves.svg").read_bytes().startswith(b"<?xml")
    assert [(tmp_path / "run" / f"0{i}-plan" / "scores.json").exists() for i in (2, 3, 4, 5)] == [
        False, False, True, False,
    ]  # fmt: skip


def test_a_plan_for_latency_asks_for_a_model_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.latency.prediction.latency_model", lambda analysis, **_: FakeLatency(analysis))
    text = HEAD + step("prune", 'criterion = "l2"\ntarget = "latency=0.7"\nround_to = 1\nlatency_rounds = 0')
    run_recipe(load_recipe(written(tmp_path, text)), tmp_path / "run")
    made = op.load_plan(tmp_path / "run" / "01-prune" / "plan.json")
    assert made.criterion["scope"] == "latency"
    whole = op.analyze(op.load(DIGITS))
    latency = FakeLatency(whole)
    assert latency.seconds(whole.kept(made)) / latency.baseline == pytest.approx(0.7, abs=0.05)


# -------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the subprocesses have, so that both compute the same."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TRAIN = HEAD + """
[[step]]
do = "prune"
criterion = "random"
target = "macs=0.3"
round_to = 4

[[step]]
do = "retrain"
epochs = 2
batch = 25
lr = 0.05
teacher = "original"
augment = ["bomb:f"]
"""  # fmt: skip


@pytest.mark.usefixtures("one_thread")
def test_killed_while_it_trains_it_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.py").write_text(
        "import os\ncalls = 0\ndef f(x):\n    global calls\n    calls += 1\n"
        "    if calls == int(os.environ.get('BOMB', -1)):\n        os.kill(os.getpid(), 9)\n    return x\n"
    )
    recipe, run = written(tmp_path, TRAIN), tmp_path / "run"
    command = [sys.executable, "-m", "onnxprune", "run", str(recipe), "-o", str(run)]
    env = {**os.environ, "BOMB": str(25 + 250 + 130), "OMP_NUM_THREADS": "1"}  # half of the second epoch
    killed = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not (run / "02-retrain" / "model.onnx").exists()
    assert (run / "02-retrain" / "training" / "last.ckpt").exists()
    monkeypatch.syspath_prepend(str(tmp_path))
    result = line.ok("run", recipe, "-o", run)
    assert "resuming after step 1 of 2" in result.stderr
    assert "02-retrain: resuming after epoch 1 of 2" in result.stderr
    assert not list((run / "02-retrain" / "training").glob("*.ckpt"))
    line.ok("run", recipe, "-o", tmp_path / "whole")
    assert files(run) == files(tmp_path / "whole")
    table = json.loads((run / "table.json").read_text())["steps"]
    assert table[2]["top1"] > table[1]["top1"] + 0.2
    # Killed once more, behind the model and before the record of it: the checkpoint of the last epoch serves.
    journal = (tmp_path / "whole" / "run.journal").read_text().splitlines(keepends=True)
    (tmp_path / "whole" / "run.journal").write_text("".join(journal[:3]))
    line.ok("run", recipe, "-o", tmp_path / "whole")
    assert files(run) == files(tmp_path / "whole")


QUICK = [
    "images=200", "bench.runs=0", "retrain.epochs=1", "retrain.batch=50", "retrain.keep=last",
    "sensitivity.ratios=[0.5]", "sensitivity.images=100", "repeat.times=1", "sweep.points=[0.0, 0.5]",
    "sweep.images=50", "score.params={samples=2, amount=0.5}",
]  # fmt: skip


def quick(path: Path) -> list[str]:
    """The changes that apply to a recipe."""
    text = path.read_text()
    head = [c for c in QUICK if c.partition("=")[0] in ("images", "bench.runs")]
    steps = [c for c in QUICK if c not in head and f'do = "{c.partition(".")[0]}"' in text]
    return [c for c in head + steps if not c.startswith("score.params") or "senpis" in text]


def test_the_methods_that_ship() -> None:
    names = ["dscore-parallel", "layer-pruning", "one-shot", "pls-iterative", "recover", "senpis", "slimming",
             "unit-vs-weight"]  # fmt: skip
    assert [p.stem for p in SHIPPED] == names
    for path in SHIPPED:
        recipe = load_recipe(path)
        assert recipe.name == path.stem
        assert recipe.about
        assert recipe.model.samefile(DIGITS)


def test_recipes_are_listed_and_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [path.stem for path in SHIPPED]
    listed = json.loads(line.out("run", "--list", "--json"))
    assert [r["name"] for r in listed] == names == list(shipped_recipes())
    assert all(r["about"] in re.sub(r"\s+", " ", line.out("run", "--list")) or len(r["about"]) > 60 for r in listed)
    for name in names:
        assert load_recipe(name).name == load_recipe(f"{name}.toml").name == name
    written(tmp_path, load_recipe("senpis").text.replace('"senpis"', '"mine"', 1)).rename("senpis")
    assert load_recipe("senpis").name == "mine"  # a file of one's own comes first
    Path("senpis").unlink()
    Path("senpis").mkdir()  # the default folder of its run
    assert load_recipe("senpis").name == "senpis"
    assert "did you mean 'senpis'?" in line.fails("run", "snpis")
    assert "no such file: 'none.toml'\n  try: or a recipe that ships: dscore-parallel" in line.fails("run", "none.toml")
    assert "Missing argument 'RECIPE'" in line.fails("run", code=2)


@pytest.mark.usefixtures("one_thread")
def test_a_shipped_recipe_runs_on_data_of_ones_own(tmp_path: Path) -> None:
    test = op.load_data("digits:test")
    np.savez(tmp_path / "d.npz", x=test.x, y=test.y)
    args = ["run", "one-shot", "--model", DIGITS, "--data", tmp_path / "d.npz", "--set", "bench.runs=0",
            "--set", "retrain.epochs=1", "--set", "retrain.keep=last", "--json"]  # fmt: skip
    result = line.ok(*args, "-o", tmp_path / "own")
    assert f"test_data: every 4th sample of data ({len(test) // 4}" in result.stderr
    document = json.loads(result.stdout)
    assert document["sources"] == {"data": str(tmp_path / "d.npz"), "test_data": "every 4th sample of data"}
    assert document["steps"][-1]["top1"] > 0.9
    both = json.loads(line.out(*args, "--test-data", "digits:train", "-o", tmp_path / "both"))
    assert both["sources"]["test_data"] == "digits:train"
    np.savez(tmp_path / "few.npz", x=test.x[:20], y=test.y[:20])
    few = [str(a).replace("d.npz", "few.npz") for a in args]
    assert "a metric on held-out samples needs at least 32 samples; there are 20" in line.fails(
        *few, "-o", tmp_path / "f"
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("path", SHIPPED, ids=[p.stem for p in SHIPPED])
def test_shipped_recipes_run(path: Path, tmp_path: Path) -> None:
    changes = [word for change in quick(path) for word in ("--set", change)]
    document = json.loads(line.out("run", path, "-o", tmp_path / "run", *changes, "--json"))
    rows = document["steps"]
    assert len(rows) == 1 + len(load_recipe(path, changes=quick(path)).entries)
    last = next(r for r in reversed(rows) if r["model"])
    assert last["macs"] < 0.9 * rows[0]["macs"]
    assert (tmp_path / "run" / "01-score" / "classes.csv").exists() == (path.stem == "senpis")
    assert op.evaluate(op.load(document["model"]), op.load_data("digits:test")).top1 == last["top1"]


# ------------------------------------------------------------------------------------------------------------ docs


def test_the_page_names_every_step_and_option_and_its_recipe_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    for do, cls in STEPS.items():
        (section,) = re.findall(rf"^\| `{do}` \|(.*)$", page, re.M)
        missing = [name for name in options(cls) if not re.search(rf"`{name}\b", section)]
        covered = {
            "retrain": set(options(op.Settings)) | set(options(op.Constraints)),
            "plan": set(options(op.Constraints)), "prune": set(options(op.Constraints)),
        }.get(do, set())  # fmt: skip
        assert set(missing) <= covered, do
    (block,) = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    assert tomllib.loads(block)["step"]
    recipe = load_recipe(written(tmp_path, block))
    assert [e.step.do for e in recipe.entries][:3] == ["score", "prune", "retrain"]


def test_a_recipe_reads_folders_of_images_as_the_command_line_does(tmp_path: Path) -> None:
    model = saved(classifier(classes=4), tmp_path / "m.onnx")
    for k, name in enumerate(("cat", "dog")):
        pictures(tmp_path / "val" / name, [(20, 30 + k)] * 3)
    (tmp_path / "map.json").write_text('{"cat": 3, "dog": 1}')
    text = """
name = "folders"
model = "m.onnx"
test_data = "val"
class_map = "map.json"
[preprocess]
preset = "imagenet"
[bench]
runs = 0
[[step]]
do = "evaluate"
on = "test_data"
"""
    line.ok("run", written(tmp_path, text), "-o", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "01-evaluate" / "accuracy.json").read_text())
    options_ = ("--data", tmp_path / "val", "--class-map", tmp_path / "map.json", "--preprocess", "imagenet")
    wanted = json.loads(line.out("evaluate", model, *options_, "--json"))
    assert {k: found[k] for k in ("top1", "loss", "images")} == {k: wanted[k] for k in ("top1", "loss", "images")}
    broken = written(tmp_path, text.replace("imagenet", "imagnet"))
    assert "did you mean 'imagenet'" in line.fails("run", broken, "-o", tmp_path / "other")
