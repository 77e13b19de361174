"""A command of the user as runtime, against a small profiler with a latency law of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import CommandLine
from fake_runtimes import file_law, profiler
from hypothesis import given
from hypothesis import strategies as st
from random_graphs.graphs import PROPERTY

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import Measurement, MeasurementStopped, make_runtime
from onnxprune.latency.runtimes._command import CommandRuntime
from onnxprune.latency.runtimes._command_output import check_pattern, read_times
from onnxprune.pipeline import analyze
from onnxprune.plans import load_plan

MODELS = Path(__file__).parents[3] / "models"
DIGITS = MODELS / "digits_cnn.onnx"
OTHER = MODELS / "digits_keras.onnx"
bench = CommandLine("bench")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def models() -> list[Model]:
    return [load(p) for p in (DIGITS, OTHER, DIGITS, OTHER)]


def made(spec: str, waits: list[float] | None = None, **options: object) -> CommandRuntime:
    """A command that notes its waits instead of sleeping."""
    runtime = make_runtime(spec, options)
    assert isinstance(runtime, CommandRuntime)
    runtime.sleep = (waits if waits is not None else []).append
    return runtime


def measured(runtime: CommandRuntime, models: list[Model]) -> Measurement:
    feeds = [random_feeds(analyze(m), 1) for m in models]
    return runtime.measure(models, feeds, threads=1, batch=1)


def calls(folder: Path) -> int:
    return int((folder / "calls").read_text())


@pytest.mark.parametrize(("mode", "places"), [("text", "{model}"), ("json", "{models}"), ("trtexec", "{model}")])
def test_the_times_are_those_that_the_command_prints(
    mode: str, places: str, models: list[Model], tmp_path: Path
) -> None:
    found = measured(made(profiler(tmp_path, mode, places), rounds=2), models[:2])
    for latency, path in zip(found.latencies, (DIGITS, OTHER), strict=True):
        assert latency.median == pytest.approx(file_law(path), rel=0.05)  # rewritten files differ by their metadata
    assert calls(tmp_path) == (2 if places == "{models}" else 4)


def test_models_run_in_turns_within_the_number_of_a_call(models: list[Model], tmp_path: Path) -> None:
    measured(made(profiler(tmp_path, "json", "{models}"), rounds=1, together=2), models[:3])
    assert calls(tmp_path) == 2


def test_noise_stays_within_its_size(models: list[Model], tmp_path: Path) -> None:
    found = measured(made(profiler(tmp_path, "noise"), rounds=3), [models[0], models[0]])
    assert found.share(1) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("mode", "options", "says"),
    [
        ("nothing", {}, "the command printed nothing"),
        ("garbage", {}, "the command printed"),
        ("negative", {}, "-3.5 ms is no latency"),
        ("bare", {}, "a number without a unit, 3.5"),
        ("bare", {"pattern": r"([\d.]+)"}, "the number 3.5 has no unit"),
        ("text", {"pattern": "time: (.*)"}, "matches nothing"),
        ("endless", {}, "printed more than 16 MB"),
        ("hang", {"timeout": 0.3}, "did not end within 0.3 s"),
        ("dies:0", {}, "exit status 1, 2 times: Segmentation fault"),
    ],
)
def test_what_goes_wrong_is_one_error(
    mode: str, options: dict[str, object], says: str, models: list[Model], tmp_path: Path
) -> None:
    with pytest.raises(MeasurementStopped) as err:
        measured(made(profiler(tmp_path, mode), retries=1, **options), models[:1])
    assert says in str(err.value)
    assert err.value.fix
    assert err.value.latencies == (None,)


def test_a_unit_makes_a_bare_number_a_time(models: list[Model], tmp_path: Path) -> None:
    found = measured(made(profiler(tmp_path, "bare"), pattern=r"([\d.]+)", unit="us"), models[:1])
    assert found.latencies[0].median == pytest.approx(3.5e-6)


def test_a_lost_connection_is_tried_again(models: list[Model], tmp_path: Path) -> None:
    waits: list[float] = []
    found = measured(made(profiler(tmp_path, "lost:2"), waits, rounds=1, retries=2), models[:1])
    assert found.latencies[0].median > 0
    assert waits == [1.0, 2.0]
    (tmp_path / "calls").unlink()
    with pytest.raises(MeasurementStopped, match="ssh has no connection") as err:
        measured(made(profiler(tmp_path, "lost:9"), retries=1), models[:1])
    assert "Connection refused" in err.value.what


def test_what_was_measured_before_a_failure_is_kept(models: list[Model], tmp_path: Path) -> None:
    with pytest.raises(MeasurementStopped, match="Segmentation fault") as err:
        measured(made(profiler(tmp_path, "dies:3"), retries=0), models)
    assert [la is not None for la in err.value.latencies] == [True, True, True, False]
    assert "node '/stem/conv/Conv' (Conv)" in str(err.value.where) or "digits_keras" in str(err.value.where)
    (tmp_path / "calls").unlink()
    # A failure in a later round leaves the rounds before.
    found = measured(made(profiler(tmp_path, "dies:3"), retries=0, rounds=5), models[:1])
    assert found.rounds == 3


def test_the_error_names_the_node_that_the_command_names(models: list[Model], tmp_path: Path) -> None:
    names = [n.name for n in models[0].graph.nodes if n.op == "Conv"]
    with pytest.raises(MeasurementStopped) as err:
        measured(made(profiler(tmp_path, "dies:0"), retries=0), models[:1])
    if "/stem/conv/Conv" in names:
        assert "node '/stem/conv/Conv' (Conv)" in str(err.value.where)
    assert "does not implement" in str(err.value.fix)


def test_bench_shows_what_was_measured_before_the_error(tmp_path: Path) -> None:
    spec = profiler(tmp_path, "dies:2")
    result = bench.run(DIGITS, OTHER, DIGITS, "--runtime", spec, "--runtime-option", "retries=0")
    assert result.exit_code == 1
    assert "digits_cnn.onnx" in result.stdout
    assert "digits_keras.onnx" in result.stdout
    assert "Segmentation fault" in result.stderr
    (tmp_path / "calls").unlink()
    result = bench.run(DIGITS, OTHER, DIGITS, "--runtime", spec, "--runtime-option", "retries=0", "--json")
    document = json.loads(result.stdout)
    assert [Path(e["model"]).name for e in document["partial"]] == ["digits_cnn.onnx", "digits_keras.onnx"]
    assert "Segmentation fault" in document["error"]["what"]


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("command:", {}, "has no command"),
        ("command:trtexec", {}, "does not get the model"),
        ("command:a {modle}", {}, "unknown placeholder {modle}"),
        ("command:a {model} {models}", {}, "either {model}"),
        ("command:a '{model}", {}, "cannot read the command"),
        ("command:a {model}", {"patern": "x"}, "did you mean 'pattern'"),
        ("command:a {model}", {"pattern": "("}, "no regular expression"),
        ("command:a {model}", {"pattern": "x"}, "no group"),
        ("command:a {model}", {"unit": "hours"}, "unknown unit of time 'hours'"),
        ("command:a {model}", {"timeout": "-1"}, "timeout is a positive number"),
        ("command:a {model}", {"timeout": "nan"}, "timeout is a positive number"),
        ("command:a {model}", {"rounds": "0"}, "rounds is a whole number from 1"),
    ],
)
def test_commands_that_cannot_be(spec: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(OnnxPruneError) as err:
        make_runtime(spec, options)
    assert says in str(err.value)


def test_a_command_that_does_not_exist_is_no_traceback() -> None:
    says = bench.fails(DIGITS, "--runtime", "command:no-such-profiler {model}")
    assert "cannot start the command: No such file or directory" in says
    assert "at: no-such-profiler" in says


def test_placeholders_and_braces(tmp_path: Path) -> None:
    command = CommandRuntime("sh -c 'echo {{x}} {threads} {batch}' -- {model} {inputs}")
    files = [tmp_path / "00-m.onnx"]
    assert command._filled(files, {"threads": "2", "batch": "3", "runs": "4"}) == [
        "sh", "-c", "echo {x} 2 3", "--", str(files[0]), str(tmp_path / "00-m.npz"),
    ]  # fmt: skip
    many = [tmp_path / "00-m.onnx", tmp_path / "01-n.onnx"]
    values = {"threads": "1", "batch": "1", "runs": "1"}
    assert CommandRuntime("a {models}")._filled(many, values) == ["a", *map(str, many)]
    assert CommandRuntime("a --onnx={models}")._filled(many, values) == ["a", f"--onnx={many[0]},{many[1]}"]


# ---------------------------------------------------------------------------------------------------- output formats

ONE = [Path("a.onnx")]
TWO = [Path("a.onnx"), Path("b.onnx")]


@pytest.mark.parametrize(
    ("text", "pattern", "unit", "seconds"),
    [
        ('{"ms": 1.5}', None, None, [[1.5e-3]]),
        ('log\n{"median_us": 250, "mean_us": 300}\n', None, None, [[250e-6]]),
        ('{"latency_ms": [1, 2, 3]}', None, None, [[1e-3, 2e-3, 3e-3]]),
        ('{"latency": 2.0}', None, "ms", [[2e-3]]),
        ('{"seconds": 0.25, "note": "x"}', None, None, [[0.25]]),
        ("Average latency: 3.25 ms", None, None, [[3.25e-3]]),
        ("mean = 9 ms, median = 4 ms", None, None, [[4e-3]]),
        ("took 12us", None, None, [[12e-6]]),
        ("inference 1.5e-2 s", None, None, [[1.5e-2]]),
        ("avg: 5.5 (ms)", None, None, [[5.5e-3]]),
        ("t=3.5", r"t=([\d.]+)", "ms", [[3.5e-3]]),
        ("t=3.5 us", r"t=([\d.]+)", None, [[3.5e-6]]),
        ("t=3.5us", r"t=(?P<value>[\d.]+)(?P<unit>\w+)", None, [[3.5e-6]]),
        ("run 1 ms\nrun 3 ms", r"run (\d+)", None, [[1e-3, 3e-3]]),
    ],
)
def test_outputs_that_are_read(text: str, pattern: str | None, unit: str | None, seconds: list[list[float]]) -> None:
    found = read_times(text, ONE, check_pattern(pattern) if pattern else None, unit)
    assert found == [pytest.approx(s) for s in seconds]


def test_several_models_are_in_order_or_named() -> None:
    assert read_times('{"ms": 1}\n{"ms": 2}', TWO) == [[1e-3], [2e-3]]
    named = '{"model": "/far/b.onnx", "ms": 2}\n{"model": "a.onnx", "ms": 1}\n{"model": "a.onnx", "ms": 3}'
    assert read_times(named, TWO) == [[1e-3, 3e-3], [2e-3]]


@pytest.mark.parametrize(
    ("text", "models", "says"),
    [
        ("a 1 ms b 2 ms", ONE, "several times (1 ms, 2 ms"),
        ('{"ms": "fast"}', ONE, "'fast' is no time"),
        ('{"ms": -1}', ONE, "is no latency"),
        ('{"ms": 0}', ONE, "is no latency"),
        ('{"ms": []}', ONE, "empty"),
        ('{"ms": true}', ONE, "True is no time"),
        ('{"ms": 1e99}', ONE, "is no latency"),
        ('{"ms": 1' + "0" * 400 + "}", ONE, "a number without a unit"),
        ('{"latency": 3}', ONE, "has no unit"),
        ('{"ms": 1}', TWO, "1 times for 2 models"),
        ('{"model": "c.onnx", "ms": 1}\n{"model": "a.onnx", "ms": 1}', TWO, "no time of b.onnx"),
        ("hello", ONE, "no time: 'hello'"),
        ("median = nan ms", ONE, "no time"),
    ],
)
def test_outputs_that_are_refused(text: str, models: list[Path], says: str) -> None:
    with pytest.raises(OnnxPruneError) as err:
        read_times(text, models)
    assert says in str(err.value)


WORDS = st.sampled_from([
    "ms", "us", "s", "median", "mean", " = ", "-", "1.5", "0", "nan", "1e999", "{", "}",
     '"ms"', ": ", "[", "]", ",", "\n",
    "Latency", "GPU Compute Time", '{"ms": 2}', '{"model": "a.onnx", "ms": [1]}', "null", "\\", "\u0661",
])  # fmt: skip


@PROPERTY(max_examples=150)
@given(st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=20).map("".join)), st.booleans(), st.booleans())
def test_any_output_is_times_or_one_error(text: str, several: bool, patterned: bool) -> None:
    models = TWO if several else ONE
    pattern = check_pattern(r"(\S+)\s*(?P<unit>\w+)?") if patterned else None
    try:
        found = read_times(text, models, pattern)
    except OnnxPruneError:
        return
    assert len(found) == len(models)
    assert all(0 < seconds <= 1e5 for values in found for seconds in values)
    assert all(found)


# -------------------------------------------------------------------------------------------------------- end to end


def test_prune_meets_a_target_on_the_users_device(tmp_path: Path) -> None:
    spec = profiler(tmp_path, "json", "{models}")
    small = tmp_path / "small.onnx"
    options = ("--runtime", spec, "--runtime-option", "rounds=1", "--runtime-option", "block=4")
    text = CommandLine("prune").out(
        DIGITS, "-o", small, "--target", "latency=0.6", *options, "--plan", tmp_path / "p.json"
    )
    assert "proved" in text
    shares = re.search(r"measured \(([\d.]+)\)", text)
    assert shares is not None
    assert float(shares[1]) == pytest.approx(0.6, abs=0.012)
    assert load_plan(tmp_path / "p.json").criterion["scope"] == "latency"
    before = calls(tmp_path)
    CommandLine("plan").ok(DIGITS, "-o", tmp_path / "q.json", "--target", "latency=0.6", *options)
    assert calls(tmp_path) - before <= 4  # the latency model and the block are cached
