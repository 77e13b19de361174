"""Files that once led to a traceback, blocked a command or filled the memory: one error each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from damage.attack_targets import network, samples
from onnx import helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(network())
    (tmp_path / "x.npz").write_bytes(samples())
    return tmp_path / "m.onnx"


def refused(*words: object) -> str:
    """Return the message of a call that must fail with one of at most three lines."""
    said = CommandLine(*words).fails()
    message = said[said.index("error: ") :]
    assert len(message.splitlines()) <= 3
    assert message.isprintable() or all(c.isprintable() or c == "\n" for c in message)
    return message


def changed(path: Path, change: Callable[[onnx.ModelProto], Any]) -> Path:
    proto = onnx.load(path)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def node(proto: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if n.op_type == op)


def attribute(op: str, name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        found = node(proto, op)
        for i, a in enumerate(found.attribute):
            if a.name == name:
                del found.attribute[i]
                break
        found.attribute.append(helper.make_attribute(name, value))

    return change


ATTRIBUTES = [
    *(("Conv", "group", n) for n in (0, -1, 2**62)),
    ("ConvTranspose", "group", 0),
    *((op, "strides", v) for op in ("Conv", "MaxPool", "ConvTranspose") for v in ([0, 0], [-1, -1], [2**62, 2**62])),
    *((op, "dilations", v) for op in ("Conv", "ConvTranspose") for v in ([0, 0], [2**62, 2**62])),
    *((op, "pads", v) for op in ("Conv", "AveragePool") for v in ([2**62] * 4, [-(2**40)] * 4, [1])),
    *((op, "kernel_shape", v) for op in ("MaxPool", "AveragePool") for v in ([0, 0], [-2, -2], [2**62, 1], [2])),
    ("Gather", "axis", 2**40), ("Concat", "axis", -7), ("Reshape", "allowzero", 9), ("Gemm", "transB", 7),
]  # fmt: skip


@pytest.mark.parametrize(("op", "name", "value"), ATTRIBUTES, ids=str)
def test_impossible_attributes(model: Path, op: str, name: str, value: Any) -> None:
    changed(model, attribute(op, name, value))
    for words in (("inspect", model), ("prune", model, "--ratio", 0.5, "-c", "l2", "-o", model.with_name("s.onnx"))):
        result = CommandLine(*words).run()
        assert result.exit_code in (0, 1), result.output
        assert (result.exit_code == 0) or result.stderr.count("error: ") == 1


def test_sizes_beyond_any_memory(model: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        dims = proto.graph.input[0].type.tensor_type.shape.dim
        dims[2].dim_value = dims[3].dim_value = 2**62

    message = refused("inspect", changed(model, change))
    assert "not enough memory" in message or "size" in message


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"\xc3("])
@pytest.mark.parametrize("what", [b"node0", b"w0", b"x"])
def test_names_that_are_not_utf8(model: Path, bad: bytes, what: bytes) -> None:
    size = bytes([len(what)])
    data = model.read_bytes()
    assert size + what in data
    model.write_bytes(data.replace(size + what, size + (bad + what)[: len(what)]))
    assert "not UTF-8" in refused("inspect", model)


def test_dimensions_and_places_that_are_not_utf8(model: Path) -> None:
    def place(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="PLACE")

    def name(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "PLACE"

    for change in (place, name):
        model.write_bytes(network())
        changed(model, change)
        model.write_bytes(model.read_bytes().replace(b"PLACE", b"PL\xff\xfeE"))
        assert "not UTF-8" in refused("inspect", model)


LONG, DEEP = "9" * 5000, "[" * 3000 + "]" * 3000


@pytest.mark.parametrize("text", [LONG, "1" * 400, "1e400", DEEP, "true", "null", '"x"', "NaN", "[]", "-1", "1.5"])
def test_documents_with_values_of_any_kind(model: Path, text: str) -> None:
    out = model.with_name("o.json")
    plan, scores, curves = (model.with_name(n) for n in ("p.json", "sc.json", "c.json"))
    CommandLine("plan", model, "--ratio", 0.5, "-c", "l2", "-o", plan).ok()
    CommandLine("score", model, "-c", "l2", "-o", scores).ok()
    CommandLine("sensitivity", model, "--data", model.with_name("x.npz"), "-c", "l2", "-o", curves).ok()
    calls = {
        plan: ("apply", model, plan, "-o", model.with_name("s.onnx")),
        scores: ("plan", model, "--target", "macs=0.5", "--scores", scores, "-o", out),
        curves: ("plan", model, "--curves", curves, "--min-group-accuracy", 0.01, "-o", out),
    }
    for path, words in calls.items():
        document = json.loads(path.read_text())
        for key in [k for k in document if k not in ("tool", "criterion", "data", "settings", "blocks", "options")]:
            path.write_text(json.dumps({**document, key: "MARK"}).replace('"MARK"', text))
            result = CommandLine(*words).run()
            wrong_type = key not in ("bisected", "normalize", "metric", "model", "higher_is_better")
            assert result.exit_code == 1 or not wrong_type, (path.name, key, result.output)
            if result.exit_code:
                assert len(result.stderr[result.stderr.index("error: ") :].splitlines()) <= 3
                assert not out.exists() or not out.unlink()
    overrides = model.with_name("ov.json")
    overrides.write_text(f'{{"groups": {{"w0": {text}}}}}')
    refused("plan", model, "--ratio", 0.5, "-c", "l2", "--overrides", overrides, "-o", out) if text != "1.5" else None
    assert not out.exists()


def test_true_is_no_schema(model: Path) -> None:
    plan = model.with_name("p.json")
    CommandLine("plan", model, "--ratio", 0.5, "-c", "l2", "-o", plan).ok()
    plan.write_text(plan.read_text().replace('"schema": 1', '"schema": true'))
    assert "schema" in refused("apply", model, plan, "-o", model.with_name("s.onnx"))


@pytest.mark.parametrize("value", ["null", "[]", "{}", '{"figures": null}', '{"figures": {"macs": null}}', "1", '"x"'])
def test_a_journal_of_a_run_with_anything(model: Path, value: str) -> None:
    recipe = model.with_name("r.toml")
    recipe.write_text('name="n"\nmodel="m.onnx"\ndata="x.npz"\n[bench]\nruns=0\n[[step]]\ndo="score"\ncriterion="l2"\n')
    run = ("run", recipe, "-o", model.with_name("run"))
    CommandLine(*run).ok()
    journal = model.with_name("run") / "run.journal"
    lines = journal.read_text().splitlines()
    for i in range(1, len(lines)):
        key = json.loads(lines[i])["key"]
        damaged = [*lines[:i], f'{{"key": {json.dumps(key)}, "value": {value}}}', *lines[i + 1 :]]
        journal.write_text("\n".join(damaged) + "\n")
        assert "journal" in refused(*run)


@pytest.mark.parametrize("change", [
    {"files": {}}, {"files": {"plan": "02-plan/scores.json"}},
    {"files": {"plan": "../p.json"}, "digests": {"../p.json": ""}},
    {"digests": {}}, {"figures": {"macs": 1, "params": 1, "bytes": 1, "memory": 1}},
], ids=str)  # fmt: skip
def test_a_journal_of_a_run_without_the_files_of_a_step(model: Path, change: dict[str, Any]) -> None:
    recipe = model.with_name("r.toml")
    recipe.write_text(
        'name="n"\nmodel="m.onnx"\n[bench]\nruns=0\n[[step]]\ndo="score"\ncriterion="l2"\n'
        '[[step]]\ndo="plan"\nratio=0.5\n[[step]]\ndo="apply"\n'
    )
    run = ("run", recipe, "-o", model.with_name("run"))
    CommandLine(*run).ok()
    journal = model.with_name("run") / "run.journal"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    planned = next(line for line in lines[1:] if line["key"] == "02-plan")
    planned["value"] |= change
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    assert "not a valid journal" in refused(*run)


@pytest.mark.parametrize("array", [
    np.array("text"), np.array([["a"]]), np.zeros((4, 1, 8, 8), [("a", "f4")]), np.zeros((2, 3), complex),
    np.zeros((0, 1, 8, 8)), np.array(1.0), np.full((4, 1, 8, 8), np.nan),
], ids=lambda a: f"{a.dtype}{a.shape}")  # fmt: skip
def test_arrays_of_anything(model: Path, array: Any) -> None:
    np.save(model.with_name("x.npy"), array)
    refused("score", model, "-c", "hrank", "--data", model.with_name("x.npy"), "-o", model.with_name("o.json"))


def test_checkpoints_with_odd_headers(model: Path) -> None:
    import torch

    words = ("retrain", model, "--data", model.with_name("x.npz"), "--epochs", 1, "--batch", 16, "--keep", "last")
    output = model.with_name("t.onnx")
    folder = model.with_name("t.onnx.training")
    folder.mkdir()
    header = {
        "schema": 1, "run": {"settings": {}}, "lr": 0.1, "method": None,
        "recorder": {"history": [], "best": 0, "stopped": None},
    }  # fmt: skip
    for odd in (
        {}, None, [], {**header, "schema": True}, {**header, "run": None}, {**header, "lr": "x"},
        {**header, "recorder": {"history": [None], "best": 0, "stopped": None}},
        {**header, "recorder": {"history": [], "best": -1, "stopped": None}}, header,
        {**header, "run": {"settings": None}},
    ):  # fmt: skip
        torch.save({"onnxprune": odd, "state_dict": {}}, folder / "last.ckpt")
        refused(*words, "-o", output)
    assert not output.exists()


def test_a_data_function_that_blocks_ends_the_command(model: Path) -> None:
    model.with_name("blocking.py").write_text("import threading\ndef f():\n    threading.Event().wait()\n")
    words = ["evaluate", model.name, "--data", "blocking:f", "--data-timeout", "0.01"]
    command = [sys.executable, "-m", "onnxprune", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=model.parent, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: the data 'blocking:f' gave nothing within 0.01 s\n  at: the call\n"
        "  try: let it not block, or wait longer with --data-timeout SECONDS (0: no limit)\n"
    )


def test_a_recipe_sets_the_time_for_its_data(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.with_name("blocking2.py").write_text("import threading\ndef f():\n    threading.Event().wait()\n")
    monkeypatch.chdir(model.parent)
    recipe = model.with_name("r.toml")
    recipe.write_text(
        'name="n"\nmodel="m.onnx"\ndata="blocking2:f"\ndata_timeout=0.01\n[[step]]\ndo="score"\ncriterion="l2"\n'
    )
    assert "'blocking2:f' gave nothing within 0.01 s" in refused("run", recipe, "-o", model.with_name("run"))
