"""The process replay: it records what the command line writes, and finds every difference of two recordings."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import onnx
import pytest
from command_line import CommandLine
from onnx import numpy_helper

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "models" / "digits_keras.onnx"
TWO_CASES = r"^digits_keras: (plan --ratio 0\.5|run-passes insert_masks)$"


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_replay", ROOT / "tools" / "plan_replay.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


replay = _tool()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Two cases of one model, recorded in a process of their own."""
    path = tmp_path_factory.mktemp("replay") / "records.json"
    assert replay.main(["-o", str(path), "--elements", "0", "--only", TWO_CASES]) == 0
    records: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return records


def test_a_record_holds_digests_of_what_the_commands_write(recorded: dict[str, dict[str, str]], tmp_path: Path) -> None:
    plan, small = tmp_path / "plan.json", tmp_path / "small.onnx"
    CommandLine().ok("plan", MODEL, "--ratio", "0.5", "-o", plan)
    CommandLine().ok("apply", MODEL, plan, "-o", small)
    data = json.loads(plan.read_text(encoding="utf-8"))
    del data["tool"]
    proto = onnx.load(small)
    assert proto.metadata_props
    assert not any(n.metadata_props for n in proto.graph.node)
    del proto.metadata_props[:]

    record = recorded["digits_keras: plan --ratio 0.5"]
    assert record == {
        "plan": hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest(),
        "file": hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest(),
    }


def test_a_refusal_is_recorded_with_its_status(recorded: dict[str, dict[str, str]]) -> None:
    assert list(recorded) == ["digits_keras: plan --ratio 0.5", "digits_keras: run-passes insert_masks"]
    record = recorded["digits_keras: run-passes insert_masks"]
    assert list(record) == ["error"]
    assert record["error"].startswith("exit 1: error: the pass 'insert_masks'")


def test_a_second_recording_in_this_process_is_equal(recorded: dict[str, dict[str, str]]) -> None:
    subject = replay.Subject(MODEL.stem, MODEL, "digits")
    assert replay.record_cases([subject], lambda name: name in recorded) == recorded


def test_metadata_does_not_change_the_digest_of_a_file_and_a_weight_does(tmp_path: Path) -> None:
    proto = onnx.load(MODEL)
    path = tmp_path / "edited.onnx"

    def digest() -> str:
        onnx.save(proto, path)
        return str(replay.file_digest(path))

    before = digest()
    for message in (proto, proto.graph, proto.graph.node[0], proto.graph.initializer[0], proto.graph.input[0]):
        message.metadata_props.add(key="a", value="b")
    assert digest() == before
    weight = next(t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 1e-6
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    assert digest() != before


@pytest.mark.parametrize(
    ("command", "option", "expected"),
    [
        ("rewrite", "--scope", ["rewrite", "m.onnx", "--scope", "x"]),
        ("run-passes", "--allocator", ["run-passes", "m.onnx", "--allocator", "x"]),
    ],
)
def test_renamed_commands_and_options_are_passed_as_the_version_knows_them(
    command: str, option: str, expected: Sequence[str]
) -> None:
    line = replay.CommandLine()
    line.main = click.Group(commands=[click.Command(command, params=[click.Option([option])])])
    assert line.spelled(["run-passes", "m.onnx", "--allocator", "x"]) == expected


def _compared(tmp_path: Path, before: Any, after: Any, *options: str) -> int:
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, records in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(records), encoding="utf-8")
    return int(replay.main(["--compare", *map(str, paths), *options]))


def test_equal_recordings_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = {"a": {"plan": "1", "file": "2"}, "b": {"error": "exit 1: no"}, "c": {"values": "3"}}
    assert _compared(tmp_path, records, records) == 0
    expected = "3 of 3 cases equal, 1 of 1 plans, 1 of 1 files, 1 of 1 values, 1 of 1 errors\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("after", "line"),
    [
        ({"a": {"plan": "1", "file": "0"}, "b": {"plan": "3"}}, "differs in file: a"),
        ({"a": {"plan": "0", "file": "0"}, "b": {"plan": "3"}}, "differs in file, plan: a"),
        ({"a": {"plan": "1", "file": "2"}, "b": {"error": "exit 1: no"}}, "differs in error, plan: b"),
        ({"a": {"plan": "1", "file": "2"}}, "only before: b"),
        ({"a": {"plan": "1", "file": "2"}, "b": {"plan": "3"}, "c": {"plan": "4"}}, "only after: c"),
    ],
)
def test_a_difference_is_named_and_fails(
    after: Any, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {"a": {"plan": "1", "file": "2"}, "b": {"plan": "3"}}
    assert _compared(tmp_path, before, after) == 1
    assert line in capsys.readouterr().out.splitlines()


def test_another_message_is_a_difference_unless_any_wording_is_accepted(tmp_path: Path) -> None:
    before = {"a": {"error": "exit 1: no group goes"}}
    reworded = {"a": {"error": "exit 1: no group is removed"}}
    assert _compared(tmp_path, before, reworded) == 1
    assert _compared(tmp_path, before, reworded, "--any-wording") == 0
    assert _compared(tmp_path, before, {"a": {"error": "exit 2: no group goes"}}, "--any-wording") == 1
    assert _compared(tmp_path, before, {"a": {"plan": "1"}}, "--any-wording") == 1


def test_recordings_without_cases_prove_nothing(tmp_path: Path) -> None:
    assert _compared(tmp_path, {}, {}) == 1
