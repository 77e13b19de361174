"""Event logs: what a line holds, how often a stage says something, what a full disk does, and `--log-json`."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

import onnxprune as op
from onnxprune._utils.output.events import EventLog, current, logged, metrics_of
from onnxprune.cli import main
from onnxprune.errors import OnnxPruneError
from onnxprune.options import Events

MODEL = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"
LONG = {"score", "sensitivity", "prune", "frontier", "sweep", "recover", "retrain", "evaluate", "bench", "run"}
line = CommandLine()


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def test_a_stage_has_begin_end_and_at_most_one_event_for_each_percent(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e.jsonl") as log, log.stage("scoring") as tick:
        for i in range(1001):
            tick(i, 1000)
    found = events(tmp_path / "e.jsonl")
    assert [e["event"] for e in found] == ["stage_begin", *["progress"] * 101, "stage_end"]
    assert {e["stage"] for e in found} == {"scoring"}
    assert [e["done"] for e in found[1:-1]] == list(range(0, 1001, 10))
    assert all(datetime.fromisoformat(e["time"]).utcoffset() is not None for e in found)


def test_stages_with_the_same_title_start_again(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e.jsonl") as log:
        for _ in range(2):
            with log.stage("measuring") as tick:
                tick(1, 1)
    assert [e["event"] for e in events(tmp_path / "e.jsonl")] == ["stage_begin", "progress", "stage_end"] * 2


def test_metrics_are_the_finite_numbers_of_a_document_by_dotted_name() -> None:
    document = {"after": {"macs": 3, "ok": True, "name": "x", "none": None}, "points": [{"v": 0.5}, {"v": math.nan}]}
    assert metrics_of(document) == {"after.macs": 3, "points.0.v": 0.5}


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e.jsonl") as log:
        log.result({"loss": math.inf, "low": [math.nan, 1.0]})
    (found,) = events(tmp_path / "e.jsonl")
    assert found["document"] == {"loss": None, "low": [None, 1.0]}
    assert found["metrics"] == {"low.1": 1.0}


def test_a_log_is_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        with EventLog(tmp_path / "e.jsonl") as log:
            log.write("note", text="\u00e9")
    assert [e["text"] for e in events(tmp_path / "e.jsonl")] == ["\u00e9"] * 2


def test_a_disk_that_fails_ends_the_log_with_a_warning(tmp_path: Path) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    log = EventLog(tmp_path / "e.jsonl")
    assert log._file is not None
    log._file.close()
    log._file = Full()  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="no more events in .*: No space left"):
        log.write("note", text="x")
    log.write("note", text="y")


def test_a_file_that_cannot_be_opened_is_a_known_error(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match="cannot write events") as caught:
        EventLog(tmp_path / "nowhere" / "e.jsonl")
    assert caught.value.fix is not None


def test_an_error_is_in_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    with pytest.raises(OnnxPruneError), logged(path, "prune", "1"):
        raise OnnxPruneError("no such layer")
    assert current() is None
    assert events(path)[-1]["status"] == "failed"
    assert events(path)[-1]["error"] == "no such layer"
    with pytest.raises(KeyboardInterrupt), logged(path, "prune", "1"):
        raise KeyboardInterrupt
    assert events(path)[-1]["status"] == "interrupted"


def test_only_the_first_process_of_a_training_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with logged(tmp_path / "e.jsonl", "retrain", "1"):
        assert current() is None
    assert not (tmp_path / "e.jsonl").exists()


def test_python_functions_take_a_log_as_progress(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e.jsonl") as log:
        op.prune(MODEL, target="macs=0.5", criterion="taylor", data="digits", images=64, recover=False, progress=log)
    found = events(tmp_path / "e.jsonl")
    assert found[-1]["stage"] == "scoring"
    assert found[-1]["done"] == found[-1]["total"]


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_prune_logs_stages_and_result(tmp_path: Path, as_json: list[str]) -> None:
    log = tmp_path / "e.jsonl"
    out = line.ok("prune", MODEL, "-o", tmp_path / "s.onnx", "--target", "macs=0.5", "--log-json", log, *as_json)
    found = events(log)
    assert [found[0][k] for k in ("event", "command", "version")] == ["begin", "prune", op.__version__]
    assert "stage_begin" in {e["event"] for e in found}
    result = next(e for e in found if e["event"] == "result")
    assert result["metrics"]["after.macs"] < 0.51 * result["metrics"]["before.macs"]
    assert found[-1]["status"] == "done"
    if as_json:
        assert json.loads(out.stdout) == result["document"]


def test_a_failed_command_is_logged(tmp_path: Path) -> None:
    log = tmp_path / "e.jsonl"
    line.fails("bench", tmp_path / "missing.onnx", "--log-json", log)
    assert events(log)[-1]["status"] == "failed"
    assert "missing.onnx" in events(log)[-1]["error"]


def test_long_commands_have_the_option() -> None:
    from onnxprune.cli._support.options import option_classes

    found = set()
    for name, command in main.commands.items():
        inner: Any = getattr(command.callback, "__wrapped__", None)
        if inner is not None and Events in option_classes(inner).values():
            found.add(name)
    assert found == LONG
