"""Outputs that would destroy something, signals, streams that fail, and errors that nobody expected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from command_line import CommandLine

import onnxprune as op
from onnxprune.cli import main

MODEL = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"
PRUNE = ("--target", "channels=0.9", "-c", "l2")
prune = CommandLine("prune")
QUICK = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*words: object) -> list[str]:
    return [sys.executable, "-P", "-m", "onnxprune", *map(str, words)]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
        device.write_bytes(b"")
    except PermissionError:
        device = Path("/dev/null")
    prune.ok(MODEL, *PRUNE, "-o", device)
    assert device.is_char_device()
    assert "No space left" in prune.fails(MODEL, *PRUNE, "-o", "/dev/full")
    assert Path("/dev/full").is_char_device()
    assert "external data needs a file" in prune.fails(MODEL, *PRUNE, "-o", device, "--external-data")
    sweep = ("recover", MODEL, MODEL, "p.json", "--data", "none")
    assert "files are written beside" in CommandLine(*sweep).fails("-o", "/dev/null")


def test_a_pipe_gets_the_model(tmp_path: Path) -> None:
    prune.ok(MODEL, *PRUNE, "-o", tmp_path / "s.onnx")
    words = command("prune", MODEL, *PRUNE, "-o", "/dev/stdout", "--plan", tmp_path / "p.json")
    piped = subprocess.run(words, capture_output=True, env=QUICK, check=True)
    assert piped.stdout.startswith((tmp_path / "s.onnx").read_bytes())


def test_outputs_are_no_input_and_no_other_output(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(MODEL.read_bytes())
    os.link(model, tmp_path / "hard.onnx")
    (tmp_path / "soft.onnx").symlink_to(model)
    before = names(tmp_path)
    for name in ("m.onnx", "hard.onnx", "soft.onnx"):
        assert "is the input file" in prune.fails(model, *PRUNE, "-o", tmp_path / name)
        assert "is the input file" in prune.fails(model, *PRUNE, "-o", tmp_path / "s.onnx", "--plan", tmp_path / name)
    both = tmp_path / "s.onnx"
    assert "--output and --plan write the same file" in prune.fails(model, *PRUNE, "-o", both, "--plan", both)
    assert "written beside" in prune.fails(model, *PRUNE, "-o", both, "--plan", tmp_path / "s.onnx.data")
    assert names(tmp_path) == before


def test_external_data_of_the_input_is_not_replaced(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    op.save(op.load(MODEL), model, external=True)
    data = (tmp_path / "m.onnx.data").read_bytes()
    assert "is the input file" in prune.fails(model, *PRUNE, "-o", tmp_path / "m.onnx.data")
    assert (tmp_path / "m.onnx.data").read_bytes() == data


def test_data_of_a_killed_writer_is_removed_by_the_next_run(tmp_path: Path) -> None:
    for name in (".s.onnx.data.0.tmp", ".s.onnx.data.x8_k2p1q.tmp", ".s.onnx.0.tmp"):
        (tmp_path / name).write_bytes(b"half")
    prune.ok(MODEL, *PRUNE, "-o", tmp_path / "s.onnx")
    assert names(tmp_path) == ["s.onnx"]


def test_two_of_the_same_command_do_not_meet(tmp_path: Path) -> None:
    import fcntl

    lock = os.open(tmp_path / ".s.onnx.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert "another command is writing" in prune.fails(MODEL, *PRUNE, "-o", tmp_path / "s.onnx")
    assert names(tmp_path) == [".s.onnx.lock"]
    os.close(lock)  # its process is dead
    prune.ok(MODEL, *PRUNE, "-o", tmp_path / "s.onnx")
    assert names(tmp_path) == ["s.onnx"]


# ------------------------------------------------------------------------------------------------------------ signals

SLOW = """
import time
import numpy as np
def samples():
    for i in range(8):
        yield {"image": np.zeros((1, 8, 8), np.float32)}
    print("reading", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_a_command_with_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    words = command("prune", MODEL, "--target", "macs=0.5", "--data", "slow:samples", "-o", tmp_path / "s.onnx")
    number = getattr(signal, name)
    before = signal.signal(number, lambda *_: None)  # a signal that is ignored here (nohup) would be ignored there too
    try:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**QUICK, "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
    finally:
        signal.signal(number, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert err == f"stopped by {name}; nothing is left to resume\n"
    assert not out
    assert not [n for n in names(tmp_path) if n.startswith((".", "s.onnx"))]


def test_a_stopped_sweep_says_what_remains_and_the_same_command_continues(tmp_path: Path) -> None:
    output = tmp_path / "c.json"
    words = ("sensitivity", MODEL, "--data", "digits", "--images", 200, "-o")
    process = subprocess.Popen(command(*words, output), stderr=subprocess.PIPE, text=True, env=QUICK)
    journal = tmp_path / "c.json.journal"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    if process.returncode != 0:  # else it was faster than the signal
        assert process.returncode == 143
        assert "stopped by SIGTERM; the same command continues: " in err
        assert "finished parts in" in err
        CommandLine(*words, output).ok()
    CommandLine(*words, tmp_path / "whole.json").ok()
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert names(tmp_path) == ["c.json", "whole.json"]


def test_the_lock_of_a_killed_run_that_made_its_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / ".f.lock").write_bytes(b"")  # beside the folder, from before it was made
    CommandLine(
        "frontier", MODEL, "--data", "digits", "--images", 64, "--points", 1, "--criteria", "l2", "--no-latency", "-o",
        tmp_path / "f",
    ).ok()  # fmt: skip
    assert names(tmp_path) == ["f"]


# ------------------------------------------------------------------------------------------------- streams and errors


def test_a_full_or_closed_stdout_is_no_traceback(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command("inspect", MODEL), stdout=full, stderr=subprocess.PIPE, text=True, env=QUICK)
    assert (done.returncode, done.stderr) == (1, "error: cannot write the result: No space left on device\n")
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(command("inspect", MODEL), stdout=theirs, stderr=subprocess.PIPE, text=True, env=QUICK)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")
    closed = " ".join(map(str, command("inspect", MODEL)))
    done = subprocess.run(["sh", "-c", f"exec {closed} >&- 2>&-"], env=QUICK)
    assert done.returncode == 0


def test_names_with_escape_sequences_do_not_reach_the_terminal(tmp_path: Path) -> None:
    proto = onnx.load(MODEL)
    for node in proto.graph.node:
        node.name = "\x1b[2J" + node.name
    proto.graph.node.append(onnx.helper.make_node("\x1b[31mOdd", [proto.graph.output[0].name], ["more"], domain="odd"))
    proto.opset_import.add(domain="odd", version=1)
    proto.graph.output.add(name="more").type.tensor_type.elem_type = 1
    onnx.save(proto, tmp_path / "m.onnx")
    for words in (("inspect", tmp_path / "m.onnx"), ("prune", tmp_path / "m.onnx", *PRUNE, "-o", tmp_path / "s.onnx")):
        result = CommandLine(*words).run()
        assert "\x1b" not in result.output


def boom(*args: Any, **more: Any) -> Any:
    raise KeyError("line one\nline two\x1b")


def test_an_unexpected_exception_is_three_lines_and_an_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.ir.reader.load", boom)
    result = CliRunner().invoke(main, ["inspect", str(MODEL)])
    assert result.exit_code == 4
    assert result.stderr.startswith("error: internal error: KeyError")
    assert result.stderr.count("\n") == 3
    assert "\x1b" not in result.stderr
    assert "ONNXPRUNE_DEBUG=1" in result.stderr
    with pytest.raises(KeyError):
        CliRunner(env={"ONNXPRUNE_DEBUG": "1"}).invoke(main, ["inspect", str(MODEL)], catch_exceptions=False)


def test_a_data_function_that_exits_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quits.py").write_text("def samples():\n    raise SystemExit(0)\n")
    (tmp_path / "quits_early.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for source in ("quits:samples", "quits_early:samples"):
        said = prune.fails(MODEL, "--target", "macs=0.5", "--data", source, "-o", tmp_path / "s.onnx")
        assert "SystemExit" in said


def test_errors_are_a_document_with_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no models, whose names would be the advice
    result = CommandLine("inspect", "--json").run("nothing.onnx")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "error": {"what": "no such file: 'nothing.onnx'", "where": None, "fix": None, "exit": 1}
    }
    assert json.loads(CommandLine("inspect", "--json", "--nothing").run("x").stdout)["error"]["exit"] == 2


def test_files_without_an_end_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero"):
        path = tmp_path / name
        calls: list[tuple[object, ...]] = [
            ("inspect", path),
            ("apply", MODEL, path, "-o", tmp_path / "s.onnx"),
            ("plan", MODEL, "--ratio", 0.5, "--overrides", path, "-o", tmp_path / "p.json"),
            ("plan", MODEL, "--curves", path, "--min-group-accuracy", 0.9, "-o", tmp_path / "p.json"),
            ("score", MODEL, "-c", "hrank", "--data", path, "-o", tmp_path / "p.json"),
            ("run", path, "-o", tmp_path / "run"),
        ]
        for words in calls:
            assert CommandLine(*words).run().exit_code in (1, 2), words
