"""`plan` and `prune` by curves, for latency, in steps and compared, on the demo model; no test reads the clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import CommandLine
from planning import FakeLatency, made_curves, mirrored

from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.scoring import score
from onnxprune.ir.reader import load
from onnxprune.latency import prediction as latency_model
from onnxprune.pipeline import analyze
from onnxprune.planning.curves import Curves, save_curves
from onnxprune.plans import load_plan

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"


line = CommandLine()
run, ok, fails = line.run, line.out, line.fails


def document(*args: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ok(*args, "--json"))
    return found


def swept(criterion: str = "dscore", **params: Any) -> Curves:
    """Made by hand: the first group is the most sensitive, the last one the least."""
    scores = score(analyze(load(DIGITS)), criterion, **params)
    ratios = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75]
    names = list(scores.groups)
    values = {n: [round(0.96 - r * 0.4 / (i + 1), 4) for r in ratios] for i, n in enumerate(names)}
    return made_curves(scores, values, ratios=ratios, baseline=0.97)


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("curves") / "curves.json"
    save_curves(swept(), path)
    return path


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts a latency model without a clock in the place of the measured one; what it is asked for."""
    calls: list[dict[str, Any]] = []

    def fake(analysis: Analysis, *, progress: Callable[[int, int], None] | None = None, **options: Any) -> FakeLatency:
        calls.append(options)
        return FakeLatency(analysis, block=8)

    monkeypatch.setattr(latency_model, "latency_model", fake)
    return calls


def shares(doc: dict[str, Any]) -> dict[str, float]:
    return {what: doc["after"][what] / doc["before"][what] for what in doc["before"]}


# ------------------------------------------------------------------------------------------------------------ curves


def test_plan_by_curves_scores_as_they_were_made(curves: Path, tmp_path: Path) -> None:
    doc = document(
        "plan", DIGITS, "--curves", curves, "--min-group-accuracy", 0.85, "--round-to", 1, "-o", tmp_path / "p"
    )
    made = load_plan(tmp_path / "p")
    assert made.criterion["name"] == "dscore"
    assert (made.criterion["scope"], made.criterion["metric"], made.criterion["threshold"]) == (
        "sensitivity",
        "top1",
        0.85,
    )
    assert doc["metric"]["name"] == "top1"
    assert doc["metric"]["whole"] == 0.97
    assert doc["metric"]["predicted"] >= 0.85
    found = swept()
    for name, curve in found.groups.items():
        assert len(made.groups[name].removed) == found.largest(name, 0.85)
        assert curve.channels == made.groups[name].channels
    # The same with the criterion named, and with scores from a file.
    ok(
        "plan",
        DIGITS,
        "-c",
        "dscore",
        "--curves",
        curves,
        "--min-group-accuracy",
        0.85,
        "--round-to",
        1,
        "-o",
        tmp_path / "q",
    )
    ok("score", DIGITS, "-c", "dscore", "-o", tmp_path / "s.json")
    ok(
        "plan",
        DIGITS,
        "--scores",
        tmp_path / "s.json",
        "--curves",
        curves,
        "--min-group-accuracy",
        0.85,
        "--round-to",
        1,
        "-o",
        tmp_path / "r",
    )
    assert (tmp_path / "p").read_bytes() == (tmp_path / "q").read_bytes() == (tmp_path / "r").read_bytes()


def test_parameters_of_the_criterion_are_those_of_the_curves(tmp_path: Path) -> None:
    save_curves(swept("fpgm", mix_norm=0.3, reduce="max"), tmp_path / "c.json")
    common = ["--curves", tmp_path / "c.json", "--min-group-accuracy", 0.85, "-o", tmp_path / "p"]
    ok("plan", DIGITS, *common)
    assert load_plan(tmp_path / "p").criterion.items() >= {"name": "fpgm", "mix_norm": 0.3, "reduce": "max"}.items()
    for other in (["-c", "l2"], ["-p", "mix_norm=0.2"], ["--reduce", "mean"], ["-c", "fpgm"]):
        assert "another criterion" in fails("plan", DIGITS, *common, *other)


def test_prune_by_curves_and_a_target_verifies(curves: Path, tmp_path: Path) -> None:
    doc = document("prune", DIGITS, "--curves", curves, "--target", "macs=0.5", "-o", tmp_path / "s.onnx")
    assert shares(doc)["macs"] == pytest.approx(0.5, abs=0.01)
    assert doc["verification"]["max_relative"] <= 1e-4
    assert doc["latency"] is None
    text = ok("prune", DIGITS, "--curves", curves, "--min-group-accuracy", 0.9, "-o", tmp_path / "t.onnx")
    assert "proved" in text
    onnx.checker.check_model(str(tmp_path / "t.onnx"), full_check=True)


def test_curves_of_a_loss_take_the_other_option(tmp_path: Path) -> None:
    save_curves(mirrored(swept()), tmp_path / "c.json")
    common = ["plan", DIGITS, "--curves", tmp_path / "c.json", "-o", tmp_path / "p"]
    ok(*common, "--max-loss", 0.15)
    assert "try: --max-loss" in fails(*common, "--min-group-accuracy", 0.85)


def test_plot_shows_curves_and_plan(curves: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ok(
        "plan",
        DIGITS,
        "--curves",
        curves,
        "--min-group-accuracy",
        0.85,
        "-o",
        tmp_path / "p",
        "--plot",
        tmp_path / "p.png",
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_curves_that_are_none_or_do_not_fit_are_refused(curves: Path, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "x.onnx"]
    assert "cannot read" in fails("prune", DIGITS, "--curves", tmp_path / "none", "--min-group-accuracy", 0.9, *out)
    (tmp_path / "bad").write_text("{}")
    assert "not valid curves" in fails("prune", DIGITS, "--curves", tmp_path / "bad", "--min-group-accuracy", 0.9, *out)
    save_curves(replace(swept(), model="another"), tmp_path / "other")
    assert "another model" in fails("prune", DIGITS, "--curves", tmp_path / "other", "--min-group-accuracy", 0.9, *out)
    save_curves(replace(swept(), criterion={}), tmp_path / "nameless")
    assert "do not name" in fails("prune", DIGITS, "--curves", tmp_path / "nameless", "--min-group-accuracy", 0.9, *out)
    save_curves(replace(swept(), criterion={"name": "dscor"}), tmp_path / "odd")
    assert "did you mean" in fails("prune", DIGITS, "--curves", tmp_path / "odd", "--min-group-accuracy", 0.9, *out)
    for args, says in (
        (["--min-group-accuracy", "1.2"], "in [0, 1]"),
        (["--min-group-accuracy", "nan"], "in [0, 1]"),
        (["--min-group-accuracy", "0.99"], "already"),
        (["--min-group-accuracy", "0.9", "--attention", "head_dim"], "--attention heads"),
        (["--target", "macs=0.01"], "cannot be reached"),
        (["--target", "macs=0.5", "--allocator", "sensitiv"], "did you mean 'sensitivity'"),
        (["--min-group-accuracy", "0.9", "--allocator", "uniform"], "needs a target"),
    ):
        assert says in fails("prune", DIGITS, "--curves", curves, *args, *out)
    assert not (tmp_path / "x.onnx").exists()


# ----------------------------------------------------------------------------------------------------------- latency


PREDICTED = ("--latency-rounds", 0)


def test_latency_target_reports_promise_and_measurement(predicted: list[dict[str, Any]], tmp_path: Path) -> None:
    for command, args in (("plan", ["-o", tmp_path / "p"]), ("prune", ["-o", tmp_path / "s.onnx"])):
        doc = document(command, DIGITS, "--target", "latency=0.6", "--runs", 2, "--round-to", 8, *PREDICTED, *args)[
            "latency"
        ]
        assert doc["predicted"]["share"] == pytest.approx(0.6, abs=0.02)
        assert doc["measured"]["before"] > 0 < doc["measured"]["after"]
        assert doc["measured"]["share"] == pytest.approx(doc["measured"]["after"] / doc["measured"]["before"])
        assert (doc["batch"], doc["threads"], doc["runs"]) == (1, 1, 2)
        assert doc["provider"] == "CPUExecutionProvider"
        text = ok(command, DIGITS, "--target", "latency=0.6", "--runs", 2, "--round-to", 8, *PREDICTED, *args)
        assert "predicted (0.6" in text.replace("(0.59", "(0.6")
        assert "1 thread, batch 1, CPUExecutionProvider" in text
    assert predicted == [{"batch": 1, "threads": 1, "device": "cpu", "runtime": None}] * 4
    assert load_plan(tmp_path / "p").criterion["scope"] == "latency"


def test_latency_is_measured_only_where_it_is_asked_for(predicted: list[dict[str, Any]], tmp_path: Path) -> None:
    assert document("plan", DIGITS, "--target", "macs=0.5", "-o", tmp_path / "p")["latency"] is None
    assert document("plan", DIGITS, "--target", "macs=0.5", "--compare")["latency"] is None
    assert predicted == []
    doc = document("plan", DIGITS, "--ratio", 0.5, "--latency", "--batch", 3, "--threads", 2, "--runs", 1,
                   "-o", tmp_path / "p")  # fmt: skip
    assert (doc["latency"]["batch"], doc["latency"]["threads"]) == (1, 1)  # the fake one's
    ok("plan", DIGITS, "--target", "macs=0.5", "--allocator", "latency", "--runs", 1, "-o", tmp_path / "p")
    assert predicted == [{"batch": n, "threads": t, "device": "cpu", "runtime": None} for n, t in ((3, 2), (1, 1))]


def test_unreachable_latency_is_one_error(predicted: list[dict[str, Any]], tmp_path: Path) -> None:
    says = fails("prune", DIGITS, "--target", "latency=0.01", "-o", tmp_path / "x.onnx")
    assert "latency=0.01 cannot be reached" in says
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize("measure", ["memory", "channels", "bytes"])
def test_targets_of_other_measures(measure: str, tmp_path: Path) -> None:
    doc = document("prune", DIGITS, "--target", f"{measure}=0.6", "-o", tmp_path / "s.onnx")
    # Of activations that many channels share, one channel is more than a percent.
    assert shares(doc)[measure] == pytest.approx(0.6, abs=0.03 if measure == "memory" else 0.01)
    assert doc["before"]["channels"] - doc["after"]["channels"] == doc["removed_channels"]
    small = json.loads(ok("inspect", tmp_path / "s.onnx", "--json"))
    assert small["memory"] == doc["after"]["memory"]


# -------------------------------------------------------------------------------------------------------- comparison


def test_compare_shows_every_allocator_that_has_what_it_needs(
    predicted: list[dict[str, Any]], curves: Path, tmp_path: Path
) -> None:
    def rows_of(*args: object) -> dict[str, dict[str, Any]]:
        return {row["scope"]: row for row in document("plan", DIGITS, "--compare", "--runs", 1, *args)["compare"]}

    rows = rows_of("--target", "macs=0.5")
    assert list(rows) == ["uniform", "global", "saving"]
    assert [r["chosen"] for r in rows.values()] == [False, True, False]
    rows = rows_of("--target", "macs=0.5", "--curves", curves, "--latency", "-o", tmp_path / "p")
    assert list(rows) == ["uniform", "global", "saving", "sensitivity", "latency"]
    assert [n for n, r in rows.items() if r["chosen"]] == ["sensitivity"]
    assert rows["sensitivity"]["digest"] == load_plan(tmp_path / "p").digest
    for row in rows.values():
        assert row["macs"] == pytest.approx(0.5, abs=0.01)
        assert row["metric"] is None or 0 < row["metric"] <= 0.97
    assert rows["latency"]["latency"] <= rows["global"]["latency"]
    assert rows["sensitivity"]["metric"] >= (rows["uniform"]["metric"] or 0)
    # Without a target the others aim at the MACs of what the curves, or the ratio, give.
    rows = rows_of("--curves", curves, "--min-group-accuracy", 0.85)
    assert rows["uniform"]["macs"] == pytest.approx(rows["sensitivity"]["macs"], abs=0.01)
    rows = rows_of("--ratio", 0.5)
    assert [n for n, r in rows.items() if r["chosen"]] == ["uniform"]
    assert rows["global"]["macs"] == pytest.approx(rows["uniform"]["macs"], abs=0.01)


def test_comparison_is_one_table_of_80_columns(
    predicted: list[dict[str, Any]], curves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for args in (
        ["--compare", "--target", "macs=0.5", "--curves", curves, "--latency", "--runs", 1, "-o", "p.json"],
        ["--compare", "--target", "latency=0.6", "--runs", 1, "--latency-rounds", 0],
        ["--curves", curves, "--min-group-accuracy", 0.85, "-o", "p.json"],
        ["--ratio", 0, "-o", "p.json"],
        ["--help"],
    ):
        text = ok("plan", DIGITS, *args)
        assert max(map(len, text.splitlines())) <= 80, text
    text = ok("plan", DIGITS, "--compare", "--target", "macs=0.5", "--curves", curves, "--latency", "--runs", 1)
    head = next(line for line in text.splitlines() if line.split()[:1] == ["allocator"]).split()
    assert head == ["allocator", "macs", "params", "bytes", "memory", "channels", "latency", "top1"]
    assert next(line for line in text.splitlines() if line.lstrip().startswith("*")).split()[1] == "sensitivity"


def test_allocator_that_fails_is_a_row_of_the_comparison(tmp_path: Path) -> None:
    save_curves(replace(swept(), groups=dict(list(swept().groups.items())[:1])), tmp_path / "c.json")
    args = ["plan", DIGITS, "--compare", "--target", "macs=0.5", "--allocator", "global", "-c", "dscore", "--curves",
            tmp_path / "c.json"]  # fmt: skip
    [row] = [r for r in document(*args)["compare"] if r["scope"] == "sensitivity"]
    assert "cannot be reached" in row["error"]
    assert row["macs"] is None
    result = run(*args)
    assert result.exit_code == 0
    assert "sensitivity: the target macs=0.5 cannot be reached" in result.stderr


# ------------------------------------------------------------------------------------------------------------- steps


def test_one_step_gives_the_same_files(tmp_path: Path) -> None:
    for name, args in (("a", []), ("b", ["--steps", 1]), ("c", ["--steps", 1, "--schedule", "geometric"])):
        ok(
            "prune",
            DIGITS,
            "-c",
            "fpgm",
            "--target",
            "macs=0.5",
            *args,
            "-o",
            tmp_path / name,
            "--plan",
            tmp_path / f"{name}.p",
        )
    for name in ("b", "c"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "a").read_bytes()
        assert (tmp_path / f"{name}.p").read_bytes() == (tmp_path / "a.p").read_bytes()


def test_steps_make_one_plan_that_fits_the_original(tmp_path: Path) -> None:
    small, plan = tmp_path / "s.onnx", tmp_path / "p.json"
    doc = document("prune", DIGITS, "-c", "fpgm", "--target", "channels=0.43", "--steps", 8, "--schedule", "geometric",
                   "-o", small, "--plan", plan)  # fmt: skip
    assert shares(doc)["channels"] == pytest.approx(0.43, abs=0.01)
    assert load_plan(plan).criterion.items() >= {"steps": 8, "schedule": "geometric"}.items()
    ok("verify", DIGITS, small, plan)
    ok("plan", DIGITS, "-c", "fpgm", "--target", "channels=0.43", "--steps", 8, "--schedule", "geometric",
       "-o", tmp_path / "q.json")  # fmt: skip
    assert (tmp_path / "q.json").read_bytes() == plan.read_bytes()
    session = onnxruntime.InferenceSession(str(small), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((2, 1, 8, 8), np.float32)})[0].shape == (2, 10)
    once = document("plan", DIGITS, "-c", "fpgm", "--ratio", 0.7, "--round-to", 1, "-o", tmp_path / "r")
    often = document("plan", DIGITS, "-c", "fpgm", "--ratio", 0.7, "--round-to", 1, "--steps", 4, "-o", tmp_path / "t")
    assert once["after"] == often["after"]
    assert once["digest"] != often["digest"]


# ------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--min-group-accuracy", "0.9"], "need --curves"),
        (["--target", "macs=0.5", "--max-loss", "0.9"], "need --curves"),
        (["--curves", "CURVES"], "need --min-group-accuracy"),
        (["--curves", "CURVES", "--ratio", "0.5"], "--ratio and --curves exclude each other"),
        (["--curves", "CURVES", "--min-group-accuracy", "0.9", "--steps", "3"], "leave out --curves and --scores"),
        (["--scores", "s.json", "--target", "macs=0.5", "--steps", "3"], "leave out --curves and --scores"),
        (["--target", "macs=0.5", "--steps", "0"], "--steps"),
        (["--target", "macs=0.5", "--steps", "3", "--schedule", "cubic"], "--schedule"),
        (["--target", "macs=0.5", "--steps", "3", "--compare"], "--compare"),
        (["--target", "macs=0.5", "--plot", "p.png"], "--plot needs --curves"),
        (["--target", "macs=0.5", "--batch", "0"], "--batch"),
        (["--target", "macs=0.5", "--threads", "-1"], "--threads"),
        (["--target", ""], "cannot read the target"),
        (["--target", "latency"], "cannot read the target"),
        (["--target", "latency=0"], "in (0, 1]"),
        (["--target", "macs=0.5", "--allocator", "sensitivity"], "needs curves"),
        (["--target", "macs=0.5", "--steps", "2", "--allocator", "sensitivity"], "curves hold for the original"),
    ],
)
def test_what_does_not_go_together_is_one_error(args: list[str], says: str, curves: Path, tmp_path: Path) -> None:
    args = [str(curves) if a == "CURVES" else a for a in args]
    result = run("plan", DIGITS, *args, "-o", tmp_path / "p.json")
    assert result.exit_code in (1, 2)
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_needed_unless_plans_are_compared() -> None:
    assert "--output" in fails("plan", DIGITS, "--target", "macs=0.5", code=2)
    ok("plan", DIGITS, "--target", "macs=0.5", "--compare")
