"""`onnxprune sensitivity` from the command line, on the demo model that ships."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import CommandLine

from onnxprune.cli import main
from onnxprune.planning.curves import load_curves

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
FAST = ("--data", "digits:test", "--images", 100, "--ratios", "0.3,0.6,0.9")


line = CommandLine("sensitivity", DIGITS)
run, ok, fails = line.run, line.ok, line.fails


def test_curves_table_and_statement_of_what_runs_where(tmp_path: Path) -> None:
    result = ok(*FAST, "-c", "dscore", "-o", tmp_path / "c.json")
    assert "running on CPUExecutionProvider" in result.stderr
    assert "batch 64" in result.stderr
    assert "top1" in result.stdout
    assert "stem.conv" in result.stdout
    curves = load_curves(tmp_path / "c.json")
    assert curves.criterion["name"] == "dscore"
    assert curves.settings == {"batch": 64, "provider": "CPUExecutionProvider"}
    assert [p.ratio for p in curves.groups["stem.conv"].points] == [0.3, 0.6, 0.9]
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]  # no journal is left


def test_json_is_one_document_the_same_as_the_file(tmp_path: Path) -> None:
    result = ok(*FAST, "-o", tmp_path / "c.json", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "c.json").read_text())


def test_picture_and_table_beside_the_file(tmp_path: Path) -> None:
    ok(*FAST, "-o", tmp_path / "c.json", "--plot", tmp_path / "c.svg", "--csv", tmp_path / "c.csv")
    assert (tmp_path / "c.svg").read_text().lstrip().startswith("<?xml")
    rows = (tmp_path / "c.csv").read_text().splitlines()
    assert rows[0] == "group,channels,ratio,removed,top1,standard_error"
    assert len(rows) == 1 + 7 * 4


def test_scores_from_a_file_give_the_same_curves(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["score", str(DIGITS), "-c", "l1", "-o", str(tmp_path / "s.json")]).exit_code == 0
    ok(*FAST, "-c", "l1", "-o", tmp_path / "a.json")
    ok(*FAST, "--scores", tmp_path / "s.json", "-o", tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_ratios_as_a_range(tmp_path: Path) -> None:
    ok(*FAST[:4], "--ratios", "0.1:0.7:0.3", "--include", "stem*", "-o", tmp_path / "c.json")
    assert [p.ratio for p in load_curves(tmp_path / "c.json").groups["stem.conv"].points] == [0.1, 0.4, 0.7]


def test_bisection_says_what_it_searched_for(tmp_path: Path) -> None:
    ok("--data", "digits:test", "--images", 100, "--min-group-accuracy", 0.9, "-o", tmp_path / "c.json")
    curves = load_curves(tmp_path / "c.json")
    assert curves.bisected == 0.9
    assert all(len(c.points) <= 5 for c in curves.groups.values())


def test_images_are_taken_evenly_from_the_classes(tmp_path: Path) -> None:
    ok("--data", "digits:test", "--images", 10, "--ratios", "0.5", "-o", tmp_path / "c.json")  # one of each, or refused
    assert "is empty" in fails("--data", "digits:test", "--images", 9, "--ratios", "0.5", "-o", tmp_path / "d.json")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--metric", "top2"), 1, "unknown metric 'top2'"),
        (("--metric", "json:loads"), 1, "the metric 'json:loads' failed"),
        (("--metric", "nowhere:f"), 1, "cannot import the metric"),
        (("--ratios", "a"), 2, "--ratios takes"),
        (("--ratios", "0.1:0.9:0"), 2, "--ratios takes"),
        (("--ratios", "0.5,1.5"), 1, "in (0, 1); got 1.5"),
        (("--ratios", ","), 1, "no ratios"),
        (("--include", "nothing"), 1, "unknown group 'nothing'"),
        (("--cache-memory", "lots"), 2, "--cache-memory takes"),
        (("--min-group-accuracy", "90"), 2, "share in [0, 1]"),
        (("--max-loss", "1"), 2, "--min-group-accuracy"),
        (("--metric", "loss", "--min-group-accuracy", "0.5"), 2, "--max-loss"),
        (("--min-group-accuracy", "0.5", "--max-loss", "1"), 2, "either"),
        (("--device", "cuda"), 1, "CUDA"),
        (("--plot", "c.jpg"), 1, "no picture format"),
        (("--plot", "no/such/folder/c.png"), 1, "does not exist"),
        (("--csv", str(DIGITS)), 1, "the output is the input file"),
        (("--backend", "mpi", "--jobs", "2"), 1, "unknown backend"),
        (("-c", "nothing"), 1, "unknown criterion"),
    ],
)
def test_nonsense_is_one_error_and_leaves_nothing(
    tmp_path: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    assert message in fails(*FAST, "-o", tmp_path / "c.json", *args, code=code)
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((20, 1, 9, 9), np.float32), "y": np.arange(20) % 10}, "do not fit the model's input"),
        ({"x": np.zeros((20, 3, 8, 8), np.float32), "y": np.arange(20) % 10}, "do not fit the model's input"),
        ({"x": np.zeros((20, 1, 8, 8), np.float32), "y": np.arange(20) % 11}, "the model 10 classes"),
        ({"x": np.zeros((20, 1, 8, 8), np.float32), "y": np.arange(20) % 10 * 2 % 10}, "class 1 is empty"),
        ({"x": np.zeros((20, 1, 8, 8), np.float32), "y": np.zeros(20)}, "integer labels"),
        ({"x": np.full((20, 1, 8, 8), np.nan, np.float32), "y": np.arange(20) % 10}, "not finite"),
        ({"x": np.zeros((20, 1, 8, 8), "U3"), "y": np.arange(20) % 10}, "array of numbers"),
        ({"y": np.arange(20)}, "no array x"),
    ],
)
def test_data_that_does_not_fit_is_one_error(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    assert message in fails("--data", tmp_path / "d.npz", "--ratios", "0.5", "-o", tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()


def test_an_empty_class_folder_is_one_error(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "data" / "dog" / "1.png")
    message = fails("--data", tmp_path / "data", "--ratios", "0.5", "-o", tmp_path / "c.json")
    assert "the class folder 'cat' holds no images" in message


def test_a_metric_that_raises_in_the_middle_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moody.py").write_text(
        "calls = 0\nlimit = 6\ndef f(outputs, labels):\n    global calls\n    calls += 1\n"
        "    if calls > limit:\n        raise RuntimeError('enough')\n"
        "    return float((outputs.argmax(1) == labels).mean())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    output = tmp_path / "c.json"
    message = fails(*FAST, "--metric", "moody:f", "-o", output)
    assert "metric 'moody:f' failed: RuntimeError: enough" in message
    assert "channels removed" in message
    journal = tmp_path / "c.json.journal"
    assert journal.read_bytes().count(b"\n") == 6  # the header, and 5 points: the first call was the baseline's
    import moody  # type: ignore[import-not-found]

    moody.limit = 1000
    moody.calls = 0
    ok(*FAST, "--metric", "moody:f", "-o", output)
    assert moody.calls == 1 + 7 * 3 - 5
    assert not journal.exists()


def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, journal = tmp_path / "c.json", tmp_path / "c.json.journal"
    real, left = os.fsync, [5]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        message = fails(*FAST, "-o", output)
    assert "No space left on device" in message
    assert "run the same command again" in message
    assert not output.exists()
    assert journal.exists()
    ok(*FAST, "-o", output)
    ok(*FAST, "-o", tmp_path / "whole.json")
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_journal_of_other_settings_is_refused_until_restart(tmp_path: Path) -> None:
    output, journal = tmp_path / "c.json", tmp_path / "c.json.journal"
    journal.write_text('{"journal": 1, "model": "another", "metric": "top1"}\n')
    message = fails(*FAST, "-o", output)
    assert "other settings" in message
    assert "model" in message
    assert journal.exists()
    ok(*FAST, "-o", output, "--restart")
    journal.write_text("not a journal\n")
    assert "not a valid journal" in fails(*FAST, "-o", output)


def test_dask_spreads_the_points(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    ok(*FAST, "-o", tmp_path / "one.json")
    command = [sys.executable, "-m", "onnxprune", "sensitivity", str(DIGITS), *map(str, FAST), "-o"]
    subprocess.run([*command, str(tmp_path / "two.json"), "--jobs", "2", "--backend", "dask"], check=True,
                   capture_output=True)  # fmt: skip
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.slow
def test_ray_spreads_the_points(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    ok(*FAST, "-o", tmp_path / "one.json")
    command = [sys.executable, "-m", "onnxprune", "sensitivity", str(DIGITS), *map(str, FAST), "-o"]
    subprocess.run([*command, str(tmp_path / "two.json"), "--jobs", "2", "--backend", "ray"], check=True,
                   capture_output=True)  # fmt: skip
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_cluster_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    message = fails(*FAST, "-o", tmp_path / "c.json", "--jobs", 2, "--backend", "dask", "--address", "nonsense://x")
    assert "cannot reach dask" in message


def test_the_runtime_of_a_sweep_is_onnxruntime(tmp_path: Path) -> None:
    out = ("-o", tmp_path / "c.json")
    result = ok(*FAST, *out, "--runtime", "onnxruntime:cpu", "--include", "stem.conv")
    assert "running on CPUExecutionProvider" in result.stderr
    says = fails(*FAST, *out, "--runtime", "openvino")
    assert "which openvino does not give" in says
    assert "`plan --curves` and `prune` take any --runtime" in says
    assert "contradicts" in fails(*FAST, *out, "--runtime", "onnxruntime:cpu", "--device", "cuda")
