"""`prune --max-drop`, `frontier` and its report end to end through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
DATA = ("--data", "digits:train", "--images", 100)
line = CommandLine()
run, ok, fails = line.run, line.out, line.fails


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("search")
    plan = folder / "plan.json"
    text = ok(
        "prune", DIGITS, "-o", folder / "s.onnx", *DATA, "--max-drop", 4, "--plan", plan, "--round-to", 8, "--json"
    )  # fmt: skip
    return folder, json.loads(text)


def test_the_model_written_is_the_cheapest_within_the_budget(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = searched
    within = [p for p in found["points"] if p["within"]]
    best = min(within, key=lambda p: p["kept"])
    assert best["drop"] <= 4
    assert found["after"]["macs"] / found["before"]["macs"] == pytest.approx(best["kept"])
    assert (found["metric"], found["unit"], found["samples"]) == ("top1", "points", 24)
    assert found["verification"]["weights"] == "identical"
    ok("verify", DIGITS, folder / "s.onnx", folder / "plan.json")
    for name, path in found["neighbours"].items():
        assert Path(path).name == f"s-{name}.onnx"
        assert Path(path).exists()
    assert not (folder / "s.onnx.points").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "--data"),
        ((*DATA, "--target", "macs=0.5"), "leave out --target"),
        ((*DATA, "--no-recover"), "leave out --no-recover"),
        ((*DATA, "--steps", 2), "--steps"),
        (("--data", "none"), "real samples"),
        ((*DATA, "--max-drop", -1), "max-drop"),
        (("--data", "digits:train", "--images", 20), "at least 32 samples"),
        ((*DATA, "--metric", "nonsense"), "nonsense"),
    ],
)
def test_options_that_do_not_fit_a_budget(more: tuple[Any, ...], says: str, tmp_path: Path) -> None:
    result = run("prune", DIGITS, "-o", tmp_path / "s.onnx", "--max-drop", 1, *more)
    assert result.exit_code in (1, 2)
    assert says in result.stderr
    assert not list(tmp_path.iterdir())


CURVES = ("--points", 2, "--least", 0.3, "--criteria", "obs,l2", "--no-latency", "--round-to", 8, "--quantize", "int8")


@pytest.fixture(scope="module")
def frontier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier") / "out"
    ok("frontier", DIGITS, *DATA, "-o", folder, *CURVES)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_frontier_has_a_folder_for_each_point(frontier: Path) -> None:
    document = json.loads((frontier / "frontier.json").read_text())
    assert [p["curve"] for p in document["points"]] == ["obs"] * 2 + ["l2"] * 2 + ["obs, int8"] * 2 + ["l2, int8"] * 2
    for point in document["points"]:
        assert point["costs"]["macs"] == pytest.approx(point["target"], abs=0.05)
        home = (frontier / point["path"]).parent
        assert {"model.onnx", "plan.json", "point.json", "model-int8.onnx"} <= {p.name for p in home.iterdir()}
        ok("verify", DIGITS, home / "model.onnx", home / "plan.json")
    floats, quantized = document["points"][0], document["points"][4]
    assert quantized["costs"]["bytes"] < 0.5 * floats["costs"]["bytes"]
    assert len((frontier / "frontier.csv").read_text().splitlines()) == 9


def test_an_interrupted_frontier_ends_with_the_same_bytes(frontier: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(frontier, copy)
    (copy / "frontier.json").unlink()
    shutil.rmtree(copy / "l2" / "0.3000")
    (copy / "obs" / "0.3000" / "point.json").unlink()  # killed before the record was written
    ok("frontier", DIGITS, *DATA, "-o", copy, *CURVES)
    assert files(copy) == files(frontier)


def test_other_data_than_the_journal_s_is_refused(frontier: Path) -> None:
    says = fails("frontier", DIGITS, "--data", "digits:train", "--images", 80, "-o", frontier, *CURVES)
    assert "other settings (data, evaluation)" in says


def test_report_draws_a_frontier(frontier: Path, tmp_path: Path) -> None:
    ok("report", frontier, "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'data-figure="frontier-macs"' in page
    assert 'data-figure="frontier-latency"' not in page
    assert 'download="frontier.csv"' in page
    assert page.count("obs/0.3000/model.onnx") >= 2


def test_a_damaged_frontier_is_refused(frontier: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    copy.mkdir()
    document = json.loads((frontier / "frontier.json").read_text())
    document["points"][0]["costs"]["warmth"] = 1.0
    (copy / "frontier.json").write_text(json.dumps(document))
    assert "costs of point 0" in fails("report", copy, "-o", tmp_path / "page.html")
    (copy / "frontier.json").write_text("{")
    assert "frontier" in fails("report", copy, "-o", tmp_path / "page.html")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--minimize", "latency"), "a frontier saves"),
        (("--criteria", "nonsense"), "nonsense"),
        (("--data", "none"), "real samples"),
        (("--least", 0.0), "least"),
    ],
)
def test_frontiers_that_cannot_be_measured(more: tuple[Any, ...], says: str, tmp_path: Path) -> None:
    assert says in fails("frontier", DIGITS, *DATA, "-o", tmp_path / "out", *more)


def test_polish_is_kept_only_if_the_drop_shrinks(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    text = ok(
        "prune", DIGITS, "-o", tmp_path / "s.onnx", *DATA, "--max-drop", 20, "--round-to", 16, "--polish", 1, "--json"
    )  # fmt: skip
    [step] = json.loads(text)["polished"]
    assert step["epochs"] == 1
    assert step["kept"] == (step["after"]["drop"] < step["before"]["drop"])
