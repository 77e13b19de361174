"""`prune --max-drop`, `frontier` and its report end to end through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import CommandLine
from fake_runtimes import FakeRuntime, padded_law
from networks.small_digits import small_digits
from planning import FakeLatency

from onnxprune.analysis.coupling import Analysis
from onnxprune.ir.reader import load
from onnxprune.latency import prediction
from onnxprune.latency.runtimes import RUNTIMES
from onnxprune.pipeline.budget import frontier_run, max_drop
from onnxprune.pipeline.budget.path import PrunePath

DATA = ("--data", "digits:train", "--images", 100)
line = CommandLine()
run, ok, fails = line.run, line.out, line.fails


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def searched(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("search")
    plan = folder / "plan.json"
    text = ok(
        "prune", digits, "-o", folder / "s.onnx", *DATA, "--max-drop", 4, "--plan", plan, "--round-to", 8, "--json"
    )  # fmt: skip
    return folder, json.loads(text)


def test_the_model_written_is_the_cheapest_within_the_budget(
    digits: Path, searched: tuple[Path, dict[str, Any]]
) -> None:
    folder, found = searched
    within = [p for p in found["points"] if p["within"]]
    best = min(within, key=lambda p: p["kept"])
    assert best["drop"] <= 4
    assert found["after"]["macs"] / found["before"]["macs"] == pytest.approx(best["kept"])
    assert (found["metric"], found["unit"], found["samples"]) == ("top1", "points", 24)
    assert found["verification"]["weights"] == "identical"
    ok("verify", digits, folder / "s.onnx", folder / "plan.json")
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
        (("--data", "digits:train", "--images", 20), "at least 32"),
        ((*DATA, "--metric", "nonsense"), "nonsense"),
    ],
)
def test_options_that_do_not_fit_a_budget(digits: Path, more: tuple[Any, ...], says: str, tmp_path: Path) -> None:
    result = run("prune", digits, "-o", tmp_path / "s.onnx", "--max-drop", 1, *more)
    assert result.exit_code in (1, 2)
    assert says in result.stderr
    assert not list(tmp_path.iterdir())


CURVES = ("--points", 2, "--least", 0.3, "--criteria", "obs,l2", "--no-latency", "--round-to", 2, "--quantize", "int8")


@pytest.fixture(scope="module")
def frontier(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier") / "out"
    ok("frontier", digits, *DATA, "-o", folder, *CURVES)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_frontier_has_a_folder_for_each_point(digits: Path, frontier: Path) -> None:
    document = json.loads((frontier / "frontier.json").read_text())
    assert [p["curve"] for p in document["points"]] == ["obs"] * 2 + ["l2"] * 2 + ["obs, int8"] * 2 + ["l2, int8"] * 2
    for point in document["points"]:
        assert point["costs"]["macs"] == pytest.approx(point["target"], abs=0.05)
        home = (frontier / point["path"]).parent
        assert {"model.onnx", "plan.json", "point.json", "model-int8.onnx"} <= {p.name for p in home.iterdir()}
        ok("verify", digits, home / "model.onnx", home / "plan.json")
    floats, quantized = document["points"][0], document["points"][4]
    assert quantized["costs"]["bytes"] < 0.5 * floats["costs"]["bytes"]
    assert len((frontier / "frontier.csv").read_text().splitlines()) == 9


def test_an_interrupted_frontier_ends_with_the_same_bytes(digits: Path, frontier: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(frontier, copy)
    (copy / "frontier.json").unlink()
    shutil.rmtree(copy / "l2" / "0.3000")
    (copy / "obs" / "0.3000" / "point.json").unlink()  # killed before the record was written
    ok("frontier", digits, *DATA, "-o", copy, *CURVES)
    assert files(copy) == files(frontier)


def test_allocators_share_the_scores_of_the_original(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    score = PrunePath.first_scores

    def first_scores(self: PrunePath, share: float = 1.0) -> Any:
        counted.append(str(self.allocator))
        return score(self, share)

    monkeypatch.setattr(PrunePath, "first_scores", first_scores)
    command = ("frontier", digits, *DATA, "-o", tmp_path / "out", "--points", 1, "--least", 0.6, "--criteria", "l2")
    ok(*command, "--allocators", "global,uniform", "--no-latency", "--round-to", 8)
    assert counted == ["global"]
    assert (tmp_path / "out" / "l2-scores.json").exists()
    ok(*command, "--allocators", "uniform,global", "--no-latency", "--round-to", 8, "--restart")
    assert counted == ["global", "uniform"]


def test_other_data_than_the_journal_s_is_refused(digits: Path, frontier: Path) -> None:
    says = fails("frontier", digits, "--data", "digits:train", "--images", 80, "-o", frontier, *CURVES)
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
        (("--minimize", "latency", "--no-latency"), "leave out --no-latency"),
        (("--criteria", "nonsense"), "nonsense"),
        (("--data", "none"), "real samples"),
        (("--least", 0.0), "least"),
    ],
)
def test_frontiers_that_cannot_be_measured(digits: Path, more: tuple[Any, ...], says: str, tmp_path: Path) -> None:
    assert says in fails("frontier", digits, *DATA, "-o", tmp_path / "out", *more)


def test_a_frontier_of_latency_records_predictions_and_measurements(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []

    def predictor(analysis: Analysis, *, file: Path, **_: Any) -> FakeLatency:
        files.append(file)
        return FakeLatency(analysis, block=2)

    def timed(models: Sequence[Any], **_: Any) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(latency=SimpleNamespace(median=seconds)) for seconds in (2.0, *[1.5] * (len(models) - 1))
        ]

    monkeypatch.setattr(frontier_run, "latency_model", predictor)
    monkeypatch.setattr(frontier_run, "bench", timed)
    folder = tmp_path / "out"
    options = ("--points", 2, "--least", 0.5, "--criteria", "l2", "--minimize", "latency", "--round-to", 2)
    ok("frontier", digits, *DATA, "-o", folder, *options)
    document = json.loads((folder / "frontier.json").read_text())
    assert [p["target"] for p in document["points"]] == [0.75, 0.5]
    for point in document["points"]:
        assert point["costs"]["latency"] == 0.75
        assert point["costs"]["latency_predicted"] == pytest.approx(point["target"], abs=0.06)
    head, *lines = (folder / "frontier.csv").read_text().splitlines()
    assert head.split(",")[7:9] == ["latency", "latency_predicted"]
    assert len(lines) == 2
    assert files == [folder / "latency.json"]
    ok("report", folder, "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'data-figure="frontier-latency"' in page  # the chart begins with the cost that was saved
    assert "latency, predicted" in page
    says = fails("frontier", digits, *DATA, "-o", folder, *options, "--threads", 2)
    assert "other settings (threads)" in says


def test_the_last_candidates_of_a_latency_budget_are_measured(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(models: Sequence[Any], **_: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(latency=SimpleNamespace(median=1.0 / (1 + i))) for i in range(len(models))]

    monkeypatch.setattr(prediction, "latency_model", lambda analysis, **_: FakeLatency(analysis, block=8))
    monkeypatch.setattr(max_drop, "bench", timed)
    command = ("prune", digits, *DATA, "--max-drop", 20, "--minimize", "latency", "--criterion", "l2", "--round-to", 16)
    found = json.loads(ok(*command, "-o", tmp_path / "s.onnx", "--json"))
    assert 1 <= len(found["measured"]) <= 3
    assert all(m["before"] == 1.0 and m["share"] == m["after"] for m in found["measured"])
    text = ok(*command, "-o", tmp_path / "t.onnx")
    assert "latency, predicted" in text
    assert "measured" in text


def test_budgets_and_frontiers_take_a_runtime(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FakeRuntime, "law", staticmethod(padded_law(each=1e-8)))
    options = ("--minimize", "latency", "--runtime", "fake:moon", "--runtime-option", "speed=2")
    with RUNTIMES.isolated():
        RUNTIMES.register(FakeRuntime)
        command = ("prune", digits, *DATA, "--max-drop", 20, "--criterion", "l2", *options)
        found = json.loads(ok(*command, "-o", tmp_path / "s.onnx", "--json"))
        law = FakeRuntime.law
        whole = law(load(digits))
        assert all(m["before"] == pytest.approx(whole, rel=0.01) for m in found["measured"])
        shares = [m["share"] for m in found["measured"]]
        assert law(load(tmp_path / "s.onnx")) / whole == pytest.approx(min(shares, key=lambda s: abs(s - shares[1])))
        folder = tmp_path / "f"
        curve = ("--points", 2, "--least", 0.5, "--criteria", "l2", *options)
        found = json.loads(ok("frontier", digits, *DATA, "-o", folder, *curve, "--json"))
        for point in found["points"]:
            small = law(load(folder / point["path"])) / whole
            assert point["costs"]["latency"] == pytest.approx(small, rel=1e-6)
        says = fails("frontier", digits, *DATA, "-o", folder, *curve, "--runtime", "fake:mars")
        assert "other settings (runtime)" in says


def test_polish_is_kept_only_if_the_drop_shrinks(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    command = ("prune", digits, *DATA, "--max-drop", 6, "--criterion", "l2", "--round-to", 8, "--polish", 1)
    text = ok(*command, "-o", tmp_path / "s.onnx", "--json")
    [step] = json.loads(text)["polished"]
    assert step["epochs"] == 1
    assert step["kept"] == (step["after"]["drop"] < step["before"]["drop"])


def test_a_search_of_other_settings_is_refused_until_it_is_discarded(digits: Path, tmp_path: Path) -> None:
    small = tmp_path / "s.onnx"
    folder = small.with_name("s.onnx.points")
    folder.mkdir()
    (folder / "journal").write_text('{"journal": 1, "kind": "max-drop", "model": "another"}\n')
    command = ("prune", digits, "-o", small, *DATA, "--max-drop", 6, "--criterion", "l2", "--round-to", 8)
    assert "--restart" in fails(*command)
    assert not small.exists()
    ok(*command, "--restart")
    assert small.exists()
    assert not folder.exists()
