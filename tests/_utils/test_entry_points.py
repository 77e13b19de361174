"""Operators, passes and criteria of another distribution: one that works, and ones that do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.execution.sessions import Session

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "extension"
DIGITS = ROOT / "models" / "digits_cnn.onnx"

Command = Callable[..., subprocess.CompletedProcess[str]]


def command_with(site: Path) -> Command:
    """Runs onnxprune with a folder of installed distributions on its path."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "onnxprune", *map(str, words)],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The example package, built and installed into a folder, and a model with its operator."""
    folder = tmp_path_factory.mktemp("extension")
    shutil.copytree(EXAMPLE, folder / "source")  # the build leaves files behind
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder / "site", folder / "source"], check=True, capture_output=True)
    model = folder / "snake.onnx"
    subprocess.run([sys.executable, EXAMPLE / "make_model.py", model], check=True)
    bare = onnx.load(model)  # as of a compiled library: nothing says what the operator does
    del bare.functions[:]
    onnx.save(bare, folder / "bare.onnx")
    return SimpleNamespace(model=model, bare=folder / "bare.onnx", run=command_with(folder / "site"))


def test_operator_of_another_distribution_is_pruned_and_verified(installed: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    done = installed.run(
        "prune", installed.model, "-o", out, "-c", "linf", "--ratio", 0.5, "--round-to", 1, "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["verification"]["max_relative"] <= 1e-4
    assert document["verification"]["effect"] > 1e-2
    shapes = {t.name: list(t.dims) for t in onnx.load(out).graph.initializer}
    assert shapes == {
        "stem": [8, 3, 3, 3], "stem_alpha": [8], "body": [12, 8, 3, 3], "body_alpha": [12], "head": [5, 12],
    }  # fmt: skip
    # By the criterion: the channels that stay are those of the largest weight.
    original = numpy_helper.to_array(next(t for t in onnx.load(installed.model).graph.initializer if t.name == "stem"))
    left = numpy_helper.to_array(next(t for t in onnx.load(out).graph.initializer if t.name == "stem"))
    best = np.sort(np.argsort(np.abs(original).reshape(16, -1).max(1))[8:])
    assert np.array_equal(left, original[best])


def test_pass_of_another_distribution_is_applied_by_name(installed: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "rewritten.onnx"
    done = installed.run("run-passes", installed.model, "remove_dropout", "fold_shapes", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nodes"] == [8, 7]
    assert "Dropout" not in [n.op_type for n in onnx.load(out).graph.node]
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    before, after = (Session(path).run({"x": x})[0] for path in (installed.model, out))
    assert np.array_equal(before, after)


def test_what_another_distribution_adds_is_listed(installed: SimpleNamespace) -> None:
    assert "com.example::Snake" in installed.run("ops").stdout
    assert "remove_dropout" in installed.run("passes").stdout
    assert "linf" in installed.run("criteria").stdout


def test_without_the_distribution_the_operator_is_seen_through(installed: SimpleNamespace, tmp_path: Path) -> None:
    document = json.loads(command_with(tmp_path)("inspect", installed.model, "--json").stdout)
    assert [g["name"] for g in document["groups"]] == ["stem", "body"]
    assert not document["hints"]


def test_an_operator_without_body_and_record_is_locked_with_a_hint(installed: SimpleNamespace, tmp_path: Path) -> None:
    run = command_with(tmp_path)
    document = json.loads(run("inspect", installed.bare, "--json").stdout)
    assert not document["groups"]
    assert {lock["op"] for lock in document["locked"] if lock["name"] == "stem"} == {"Snake"}
    (hint,) = document["hints"]
    assert "com.example::Snake has no record" in hint
    assert "onnxprune.ops" in hint
    assert "docs/extending.md" in hint
    assert (ROOT / "docs" / "extending.md").is_file()
    lines = run("inspect", installed.bare).stdout.splitlines()
    assert any("com.example::Snake has no record" in line for line in lines)
    assert max(map(len, lines)) <= 80


# ---------------------------------------------------------------------------------------------------- broken plug-ins

GOOD_CRITERION = """
from dataclasses import dataclass
from typing import ClassVar
from onnxprune.criteria import Criterion

@dataclass(frozen=True)
class C(Criterion):
    name: ClassVar[str] = "l1"
    title: ClassVar[str] = "t"
    source: ClassVar[str] = "s"
    default_normalize: ClassVar[str] = "none"

    def score_rows(self, rows, tensor):
        return rows[:, 0]
"""
OPS = "from onnxprune.ops import OpSpec, register\ndef rule(node, table):\n    {rule}\ndef add():\n    {add}\n"

# (group, name of the entry point, module, what the message says)
BROKEN = {
    "import error": ("ops", "com.example", "import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
    "no such attribute": ("ops", "com.example", "pass", "has no attribute"),
    "no function": ("ops", "com.example", "add = 3", "not callable"),
    "raises": ("ops", "com.example", "def add():\n    raise RuntimeError('out of luck')", "RuntimeError: out of luck"),
    "bad record": (
        "ops", "com.example", OPS.format(rule="pass", add="register(OpSpec('Snake', None, domain='com.example'))"),
        "has None for couple, which is not a function",
    ),
    "no record": ("ops", "com.example", OPS.format(rule="pass", add="register('Snake')"), "'Snake' is not a record"),
    "duplicate operator": (
        "ops", "com.example",
        OPS.format(rule="pass", add="[register(OpSpec(n, rule, domain=d)) for n, d in (SNAKE, ('Relu', ''))]")
        + "SNAKE = ('Snake', 'com.example')",
        "'Relu' is already registered",
    ),
    "bad pass": ("passes", "mine", "class add: name = 'mine'", "it does not derive from onnxprune.passes.Pass"),
    "duplicate pass": ("passes", "mine", "from onnxprune.passes import FoldShapes as add", "'fold_shapes' is"),
    "bad criterion": ("criteria", "mine", "add = int", "it derives neither from"),
    "duplicate criterion": ("criteria", "mine", GOOD_CRITERION + "add = C", "'l1' is already registered"),
}  # fmt: skip


def distribution(site: Path, group: str, name: str, module: str) -> Command:
    """An installed distribution with one entry point, written by hand."""
    info = site / "onnxprune_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxprune-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[onnxprune.{group}]\n{name} = onnxprune_broken:add\n")
    (site / "onnxprune_broken.py").write_text(module)
    return command_with(site)


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_broken_plugin_is_named_by_commands_that_need_it(
    case: tuple[str, str, str, str], installed: SimpleNamespace, tmp_path: Path
) -> None:
    group, name, module, message = case
    run = distribution(tmp_path / "site", group, name, module)
    needs: dict[str, list[object]] = {
        "ops": ["inspect", installed.model],
        "passes": ["run-passes", DIGITS, "mine", "-o", tmp_path / "out.onnx"],
        "criteria": ["score", DIGITS, "-c", "mine"],
    }
    failed = run(*needs[group])
    assert failed.returncode == 1
    assert failed.stderr.count("Traceback") == 0
    assert message in " ".join(failed.stderr.split())
    assert "error: " in failed.stderr
    assert "update or uninstall the distribution 'onnxprune-broken'" in failed.stderr


@pytest.mark.parametrize("case", ["import error", "duplicate pass", "bad criterion"])
def test_broken_plugin_does_not_stop_commands_that_do_not_need_it(case: str, tmp_path: Path) -> None:
    group, name, module, _ = BROKEN[case]
    run = distribution(tmp_path / "site", group, name, module)
    fine = run("plan", DIGITS, "--ratio", 0.5, "-o", tmp_path / "plan.json", "--json")
    assert fine.returncode == 0
    assert json.loads(fine.stdout)["removed_channels"]
    assert "onnxprune-broken" not in fine.stderr
    listed = run(group, "--json")  # what works; the warning names what does not
    assert listed.returncode == 0
    assert "Snake" not in listed.stdout
    assert "onnxprune-broken" in listed.stderr


def test_broken_plugin_of_another_domain_leaves_the_model_locked(installed: SimpleNamespace, tmp_path: Path) -> None:
    run = distribution(tmp_path / "site", "ops", "org.other", "import no_such_module_at_all")
    done = run("inspect", installed.bare, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["hints"]
    assert "onnxprune-broken" in done.stderr


WRONG_RULES = {
    "raises": ("raise KeyError('alpha')", "KeyError: 'alpha'"),
    "labels that do not fit": ("table.put(node.outputs[0], [None, table.fresh(7), None, None])", "of shape"),
    "labels of another rank": ("table.put(node.outputs[0], [None])", "of shape"),
}


@pytest.mark.parametrize("case", WRONG_RULES.values(), ids=WRONG_RULES.keys())
def test_rule_that_fails_is_an_error_that_names_node_and_distribution(
    case: tuple[str, str], installed: SimpleNamespace, tmp_path: Path
) -> None:
    rule, message = case
    module = OPS.format(rule=rule, add="register(OpSpec('Snake', rule, domain='com.example'))")
    failed = distribution(tmp_path / "site", "ops", "com.example", module)("inspect", installed.model)
    assert failed.returncode == 1
    assert message in failed.stderr
    assert "com.example::Snake" in failed.stderr
    assert "Snake 'Snake_1'" in failed.stderr
    assert "update or uninstall the distribution 'onnxprune-broken'" in failed.stderr
    assert "Traceback" not in failed.stderr
