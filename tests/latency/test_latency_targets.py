"""Latency targets met as measured, and latency models of any runtime, in a runtime with a law of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine
from fake_runtimes import FakeRuntime, padded_law
from planning import FakeLatency

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.latency._measuring import design, variant
from onnxprune.latency._runtime_variants import RuntimeVariants
from onnxprune.latency.layers import profile_layers
from onnxprune.latency.prediction import latency_model
from onnxprune.latency.runtimes import RUNTIMES, Inputs, LayerTime
from onnxprune.latency.targeting import CorrectedLatency, plan_for_latency
from onnxprune.passes import Pipeline, StripChannels
from onnxprune.pipeline import analyze, plan, score
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.plans import Plan

DIGITS = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze(load(DIGITS))


def maker(analysis: Analysis, round_to: int = 4) -> Callable[[LatencyPredictor, Target], Plan]:
    scores = score(analysis, "l2")
    limits = op.Constraints(round_to=round_to)
    return lambda predictor, target: plan(scores, target, latency=predictor, constraints=limits)


def stripped(analysis: Analysis, made: Plan) -> Model:
    return Pipeline([StripChannels(made, analysis)])(analysis.model)


# --------------------------------------------------------------------------------------------------------- correction


def test_a_corrected_model_agrees_with_the_measurements(analysis: Analysis) -> None:
    latency = FakeLatency(analysis, block=1)
    every = np.ones(analysis.count, bool)
    half = every.copy()
    for g in analysis.groups:
        half[g.components[: g.channels // 2]] = False
    predicted = latency.seconds(half) / latency.baseline
    corrected = CorrectedLatency(latency, [(predicted, 0.7)])
    assert corrected.share(half) == pytest.approx(0.7)
    assert corrected.seconds(every) == corrected.baseline == latency.baseline
    assert (corrected.batch, corrected.threads, corrected.provider) == (1, 1, "FakeExecutionProvider")
    assert CorrectedLatency(latency, []).share(half) == pytest.approx(predicted)


def test_a_correction_never_predicts_more_time_for_fewer_channels(analysis: Analysis) -> None:
    corrected = CorrectedLatency(FakeLatency(analysis), [(0.5, 0.8), (0.6, 0.7), (0.4, 0.45)])
    kept, last = np.ones(analysis.count, bool), 1.0
    for g in analysis.groups:
        for c in g.components[1:]:
            kept[c] = False
            assert corrected.share(kept) <= last + 1e-12
            last = corrected.share(kept)


# ------------------------------------------------------------------------------------------------------------ the loop


class Skewed(FakeRuntime):
    """Runtime whose latency is not what the predictor of the tests says: a constant part, and blocks."""

    law = staticmethod(padded_law(block=4, base=30e-6, each=1e-9))


@pytest.mark.parametrize("share", [0.5, 0.65, 0.8])
def test_a_wrong_prediction_is_corrected_until_the_target_is_met(analysis: Analysis, share: float) -> None:
    runtime = Skewed()
    predictor = FakeLatency(analysis, block=4)
    found = plan_for_latency(analysis, Target(latency=share), maker(analysis), predictor, runtime=runtime)
    measured = runtime.law(stripped(analysis, found.plan)) / runtime.law(analysis.model)
    assert found.speedup.measured.share == pytest.approx(measured)
    assert found.speedup.measured.share == pytest.approx(share, rel=0.02)
    assert found.speedup.note == ""
    assert 1 <= len(found.speedup.rounds) <= 4
    last = found.speedup.rounds[-1]
    assert last.predicted == pytest.approx(last.measured, rel=0.05)
    document = json.loads(json.dumps(found.speedup.as_dict()))
    assert len(document["rounds"]) == len(found.speedup.rounds)
    assert document["note"] is None
    # The uncorrected prediction misses it.
    first = maker(analysis)(predictor, Target(latency=share))
    assert runtime.law(stripped(analysis, first)) / runtime.law(analysis.model) != pytest.approx(share, rel=0.02)


def test_coarse_blocks_are_named_as_the_reason(analysis: Analysis) -> None:
    runtime = Skewed()
    found = plan_for_latency(
        analysis, Target(latency=0.843), maker(analysis, round_to=32), FakeLatency(analysis, block=32),
        runtime=runtime, tolerance=0.001,
    )  # fmt: skip
    assert found.speedup.note
    assert "whole blocks" in found.speedup.note or "not met in 4 rounds" in found.speedup.note
    measured = [r.measured for r in found.speedup.rounds]
    assert found.speedup.measured.share == min(measured, key=lambda m: abs(m - 0.843))


def test_a_target_below_what_can_be_removed_keeps_the_fastest_plan(analysis: Analysis) -> None:
    class Slow(FakeRuntime):
        law = staticmethod(padded_law(base=1e-3))  # nearly all time is in no layer

    found = plan_for_latency(analysis, Target(latency=0.4), maker(analysis), FakeLatency(analysis), runtime=Slow())
    assert "no plan is that fast as measured: the target latency=0.4 cannot be reached" in found.speedup.note
    assert found.speedup.measured.share > 0.8
    with pytest.raises(OnnxPruneError, match="cannot be reached"):
        plan_for_latency(analysis, Target(latency=0.001), maker(analysis), FakeLatency(analysis), runtime=Slow())


def test_a_busy_machine_is_measured_again_and_named_as_the_reason(analysis: Analysis) -> None:
    class Noisy(Skewed):
        # Every third measurement of the pruned model is disturbed by a fifth.
        noise = (1.0, 1.0, 1.0, 1.2, 1.0, 1.0)
        spread = 0.3

    runtime = Noisy()
    found = plan_for_latency(
        analysis, Target(latency=0.5), maker(analysis), FakeLatency(analysis, block=4), runtime=runtime, runs=3
    )
    assert found.speedup.note == ""
    assert found.speedup.measured.share == pytest.approx(0.5, rel=0.02)  # the median of three
    assert len(runtime.measured) == 3 * len(found.speedup.rounds)
    found = plan_for_latency(
        analysis, Target(latency=0.5), maker(analysis), FakeLatency(analysis, block=4), runtime=Noisy(), runs=3,
        rounds=1, tolerance=1e-6,
    )  # fmt: skip
    assert "the machine is busy: measured shares are uncertain by" in found.speedup.note


def test_a_runtime_that_fails_later_leaves_the_plans_measured_before(analysis: Analysis) -> None:
    class Dies(Skewed):
        fails_after = 2

    found = plan_for_latency(
        analysis, Target(latency=0.5), maker(analysis), FakeLatency(analysis, block=4), runtime=Dies(), tolerance=1e-6
    )
    assert "the runtime failed in round 2: the fake runtime has stopped" in found.speedup.note
    assert len(found.speedup.rounds) == 1
    dies = Dies()
    dies.fails_after = 0
    with pytest.raises(OnnxPruneError, match="has stopped"):
        plan_for_latency(analysis, Target(latency=0.5), maker(analysis), FakeLatency(analysis), runtime=dies)


def test_no_plan_is_measured_twice(analysis: Analysis) -> None:
    runtime = Skewed()
    plan_for_latency(
        analysis, Target(latency=0.861), maker(analysis, 32), FakeLatency(analysis), runtime=runtime, rounds=9,
        tolerance=1e-6,
    )  # fmt: skip
    assert all(n == 2 for n in runtime.measured)
    assert len(runtime.measured) <= 9


# --------------------------------------------------------------------------------------------- models of any runtime


def test_the_model_of_a_runtime_with_times_of_layers_predicts_unseen_plans(analysis: Analysis) -> None:
    runtime = FakeRuntime()
    model = latency_model(analysis, runtime=runtime)
    assert model.provider == "fake 1.0, nowhere"
    assert runtime.profiled > 10
    for counts in design(analysis, 8, 6, seed=5):
        made = variant(analysis, counts)
        seconds = runtime.law(stripped(analysis, made))
        assert model.seconds(analysis.kept(made)) == pytest.approx(seconds, rel=0.05)


def test_the_model_of_a_runtime_that_times_whole_runs_is_usable(analysis: Analysis) -> None:
    class Whole(FakeRuntime):
        layered = False

    runtime = Whole()
    model = latency_model(analysis, runtime=runtime)
    assert runtime.profiled == 0
    for counts in design(analysis, 8, 6, seed=5):
        made = variant(analysis, counts)
        seconds = runtime.law(stripped(analysis, made))
        assert model.seconds(analysis.kept(made)) == pytest.approx(seconds, rel=0.15)


def test_a_compiled_subgraph_is_no_layer(analysis: Analysis) -> None:
    class Compiled(FakeRuntime):
        def profile(self, model: Model, inputs: Inputs, *, threads: int, runs: int = 20) -> list[LayerTime]:
            self.profiled += 1
            return [LayerTime("EP_subgraph_1", "EP_subgraph_1", self.law(model))]

    runtime = Compiled()
    model = latency_model(analysis, runtime=runtime)
    assert runtime.profiled == 1
    for counts in design(analysis, 8, 6, seed=5):
        made = variant(analysis, counts)
        seconds = runtime.law(stripped(analysis, made))
        assert model.seconds(analysis.kept(made)) == pytest.approx(seconds, rel=0.15)
    found = profile_layers(analysis.source, stripped(analysis, made), runtime)
    assert [(r.name, r.reason) for r in found.layers] == [("(EP_subgraph_1)", "")]


def test_models_are_cached_by_runtime_options_device_threads_and_batch(analysis: Analysis) -> None:
    def asked(runtime: FakeRuntime, **options: int) -> bool:
        latency_model(analysis, runtime=runtime, **options)
        return bool(runtime.measured)

    assert asked(FakeRuntime())
    assert not asked(FakeRuntime())
    assert asked(FakeRuntime("elsewhere"))
    assert asked(FakeRuntime("", {"precision": "half"}))
    assert asked(FakeRuntime(), threads=2)
    assert asked(FakeRuntime(), batch=2)
    assert not asked(FakeRuntime(), batch=2)


def test_variants_measured_before_a_failure_are_not_measured_again(analysis: Analysis, tmp_path: Path) -> None:
    class Dies(FakeRuntime):
        fails_after = 11  # the third call fails

    dies = Dies()
    with pytest.raises(OnnxPruneError, match="has stopped"):
        latency_model(analysis, runtime=dies)
    assert [p.suffix for p in (tmp_path / "cache").iterdir() if p.suffix == ".journal"] == [".journal"]
    again = FakeRuntime()
    model = latency_model(analysis, runtime=again)
    fresh = FakeRuntime()
    whole = latency_model(analysis, runtime=fresh, refresh=True)
    assert sum(again.measured) == sum(fresh.measured) - 10  # two calls of the original and four variants
    assert model.baseline == pytest.approx(whole.baseline)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix == ".journal"]


@pytest.mark.parametrize("text", ["", "{", '{"journal": 1}\n{"key": "0", "value": 3}\n'])
def test_a_damaged_journal_is_measured_anew(analysis: Analysis, tmp_path: Path, text: str) -> None:
    path = tmp_path / "variants.journal"
    path.write_text(text)
    found = RuntimeVariants(analysis, FakeRuntime(), batch=1, threads=1, journal=path).samples(8)
    assert len(found) == 20


def test_drift_of_the_original_is_taken_out(analysis: Analysis) -> None:
    class Drifting(FakeRuntime):
        # The second half of the calls finds a machine that is twice as slow.
        noise = (*[1.0] * 10, *[2.0] * 10)

    steady = RuntimeVariants(analysis, FakeRuntime(), batch=1, threads=1).samples(8)
    drifted = RuntimeVariants(analysis, Drifting(), batch=1, threads=1).samples(8)
    a, b = (np.array([s.seconds for s in samples]) for samples in (steady, drifted))
    np.testing.assert_allclose(b / a, np.full(len(a), (b / a)[0]), rtol=1e-9)


# ------------------------------------------------------------------------------------------------- API, recipes, CLI


def test_the_api_prunes_for_a_runtime_object() -> None:
    runtime = Skewed()
    pruned = op.prune(DIGITS, target="latency=0.6", criterion="l2", runtime=runtime, verify=False)
    assert pruned.speedup is not None
    assert pruned.speedup.measured.share == pytest.approx(0.6, rel=0.02)
    assert runtime.law(pruned.model) / runtime.law(load(DIGITS)) == pytest.approx(0.6, rel=0.03)
    assert pruned.speedup.provider == "nowhere"
    rows = op.bench([DIGITS, pruned], runtime=runtime)
    assert rows[1].speedup == pytest.approx(1 / 0.6, rel=0.03)


def test_commands_take_a_runtime(tmp_path: Path) -> None:
    with RUNTIMES.isolated():
        RUNTIMES.register(FakeRuntime)
        options = ("--runtime", "fake:moon")
        p, s = tmp_path / "p.json", tmp_path / "s.onnx"
        document = json.loads(CommandLine("plan").out(DIGITS, "-o", p, "--target", "latency=0.7", *options, "--json"))
        assert document["latency"]["measured"]["share"] == pytest.approx(0.7, rel=0.02)
        assert document["latency"]["provider"] == "moon"
        text = CommandLine("prune").out(DIGITS, "-o", s, "--target", "latency=0.7", *options)
        assert "measured plan" in text
        assert "moon" in text
        # Blocks of 8 are the runtime's, not the CPU's.
        kept = {g: r.channels - len(r.removed) for g, r in op.load_plan(p).groups.items() if r.removed}
        assert all(n % 8 == 0 for n in kept.values())
        document = json.loads(CommandLine("plan").out(
            DIGITS, "-o", p, "--target", "latency=0.7", *options, "--latency-rounds", 0, "--json"
        ))  # fmt: skip
        assert "rounds" not in document["latency"]


def test_a_recipe_plans_for_a_runtime(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f"""name = "fast"
model = "{DIGITS}"
[bench]
runtime = "fake"
runs = 2
[[step]]
do = "prune"
criterion = "l2"
target = "latency=0.7"
runtime = "fake"
runtime_options = {{ x = 1 }}
""",
        encoding="utf-8",
    )
    with RUNTIMES.isolated():
        RUNTIMES.register(FakeRuntime)
        CommandLine("run").ok(recipe, "-o", tmp_path / "out")
        law = FakeRuntime.law
        small = load(tmp_path / "out" / "01-prune" / "model.onnx")
        assert law(small) / law(load(DIGITS)) == pytest.approx(0.7, rel=0.03)
        assert "latency 0." in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
