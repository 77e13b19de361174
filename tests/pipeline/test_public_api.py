"""Public functions: one call for each job, results that print in a few lines, typed signatures."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxprune as op
from onnxprune import options
from onnxprune.cli import main
from onnxprune.pipeline import PruneOptions
from onnxprune.planning.curves import Curve, CurvePoint
from onnxprune.training import Epoch, Retrained, ValidationMetrics

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
FUNCTIONS = [name for name in op.__all__ if inspect.isfunction(getattr(op, name))]
MOST_LINES, MOST_CHARACTERS = 6, 600
HOSTILE = "<script>alert('x')</script>"


# ------------------------------------------------------------------------------------------------------------ jobs


@pytest.fixture(scope="module")
def data() -> op.Data:
    return op.load_data("digits:train", images=160)


@pytest.fixture(scope="module")
def pruned(data: op.Data) -> Any:
    return op.prune(DIGITS, target="macs=0.3", data=data, latency=False)


def test_prune_scores_plans_proves_and_recovers(pruned: op.Pruned, data: op.Data) -> None:
    assert pruned.plan.criterion["name"] == "obs"
    assert pruned.after.macs == pytest.approx(0.3 * pruned.before.macs, rel=0.05)
    assert pruned.verification is not None
    assert pruned.verification.inputs == "random and data"
    assert pruned.recovery is not None
    assert pruned.model is pruned.recovery.model
    original, result = pruned.metrics["top1"]
    assert original >= result > 0.5
    assert pruned.metrics["distance"][1] < pruned.recovery.stages[0].distance


def test_prune_without_data_scores_by_weights() -> None:
    done = op.prune(op.load(DIGITS), ratio=0.25, constraints=op.Constraints(round_to=1), verify=False)
    assert done.plan.criterion["name"] == "l2"
    assert (done.recovery, done.verification, dict(done.metrics)) == (None, None, {})
    assert "not verified" in repr(done)


def test_prune_writes_what_the_command_writes(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "command.onnx"
    words = [
        "prune",
        str(DIGITS),
        "-o",
        str(out),
        "--plan",
        str(plan),
        "--target",
        "macs=0.5",
        "--data",
        "digits:train",
    ]
    result = CliRunner().invoke(main, [*words, "--images", "100", "--round-to", "4"])
    assert result.exit_code == 0, result.output
    done = op.prune(
        str(DIGITS), target=op.Target(macs=0.5), data="digits:train", images=100, constraints=op.Constraints(round_to=4)
    )
    assert done.plan.to_json() == plan.read_text(encoding="utf-8")
    assert done.save(tmp_path / "call.onnx").read_bytes() == out.read_bytes()


def test_prune_in_steps_with_params() -> None:
    done = op.prune(DIGITS, target="macs=0.6", criterion="fpgm", params={"mix_norm": 0.2}, steps=2, verify=False)
    assert done.plan.criterion["mix_norm"] == 0.2
    assert done.plan.criterion["steps"] == 2


def test_prune_takes_the_criterion_of_the_curves() -> None:
    curves = curves_of({"name": "dscore", "reduce": "sum"})
    done = op.prune(DIGITS, min_group_accuracy=0.5, curves=curves, verify=False)
    assert (done.plan.criterion["name"], done.plan.criterion["reduce"]) == ("dscore", "sum")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.5, "recover": True}, "recovery needs samples"),
        ({"steps": 2, "curves": "nothing.json"}, "cannot read"),
        ({}, "either a ratio or a target"),
        ({"target": "maks=0.5"}, "cannot read the target"),
    ],
)
def test_options_of_prune_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(op.OnnxPruneError, match=message):
        op.prune(DIGITS, **options)


def test_stage_by_stage_gives_the_same(tmp_path: Path) -> None:
    model = op.load(DIGITS)
    analysis = op.analyze(DIGITS)
    scores = op.score(analysis, "dscore")
    plan = op.plan(scores, target="macs=0.5", constraints=op.Constraints(round_to=4))
    op.save_plan(plan, tmp_path / "plan.json")
    small = op.apply(onnx.load(DIGITS), tmp_path / "plan.json")
    once = op.prune(DIGITS, target="macs=0.5", criterion="dscore", constraints=op.Constraints(round_to=4))
    assert small.fingerprint == once.model.fingerprint
    op.save(small, tmp_path / "small.onnx")
    assert op.verify(model, tmp_path / "small.onnx", plan).weights == "identical"
    steps = op.plan_steps(analysis, "dscore", "macs=0.5", steps=1, constraints=op.Constraints(round_to=4))
    assert steps.groups == plan.groups


def test_recover_evaluate_and_bench_take_results(pruned: op.Pruned, data: op.Data) -> None:
    cut = op.apply(DIGITS, pruned.plan)
    better = op.recover(DIGITS, cut, pruned.plan, data=data, rounds=0)
    assert better.samples == (140, 20)
    assert better.metrics["distance"][1] < better.stages[0].distance
    assert op.evaluate(better, "digits:test", images=50).images == 50
    rows = op.bench([DIGITS, cut, better], runs=2, warmup=0)
    assert [r.name for r in rows] == ["digits_cnn.onnx"] * 3
    assert rows[0].speedup == 1
    with pytest.raises(op.OnnxPruneError, match="list of models"):
        op.bench([])


def test_recover_proves_the_model_first(pruned: op.Pruned, data: op.Data) -> None:
    other = op.prune(DIGITS, target="macs=0.3", criterion="random", verify=False)
    with pytest.raises(op.OnnxPruneError):
        op.recover(DIGITS, other, pruned.plan, data=data)


def test_retrain_takes_a_source_and_a_teacher(pruned: op.Pruned) -> None:
    pytest.importorskip("lightning")
    done = op.retrain(
        pruned, data="digits:train", images=128, teacher=DIGITS, epochs=1, settings=op.Settings(lr=0.001, threads=1)
    )
    assert len(done.history) == 2
    assert op.evaluate(done, "digits:test").top1 > 0.5


def test_sensitivity_takes_a_source() -> None:
    scores = op.score(op.analyze(DIGITS), "l1", groups=None)
    found = op.sensitivity(scores, "digits:test", ratios=(0.5,), include=["*"], threads=1)
    assert found.metric == "top1"


@pytest.mark.parametrize("given", [3, None, op.Target(macs=0.5)])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(op.OnnxPruneError, match="a model is expected"):
        op.analyze(given)


# ------------------------------------------------------------------------------------------------------ signatures


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_says_what_a_function_takes(name: str) -> None:
    for p in inspect.signature(getattr(op, name)).parameters.values():
        assert p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL), f"{name}: {p}"
        assert p.annotation is not p.empty, f"{name}: {p}"
        assert not re.search(r"\bAny\b", str(p.annotation)), f"{name}: {p}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_names_every_argument(name: str) -> None:
    function: Callable[..., Any] = getattr(op, name)
    text = inspect.getdoc(function) or ""
    assert text
    if name in ("plan_steps", "sensitivity", "save", "load", "load_data", "save_plan", "load_plan", "save_curves",
                "load_curves", "to_proto"):  # fmt: skip
        return
    for p in inspect.signature(function).parameters:
        assert re.search(rf"^ +{p}: ", text, re.M), f"{name}: {p}"


PRUNE_OPTIONS = (
    options.Scoring, options.Planning, options.CurvesInput, options.AnalysisOptions, options.Measuring,
    options.Verifying, options.AfterPruning,
)  # fmt: skip


def test_keywords_of_prune_have_the_defaults_of_its_options() -> None:
    fields = [f for cls in PRUNE_OPTIONS for f in dataclasses.fields(cls)]
    declared = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    keywords = {name: p.default for name, p in inspect.signature(op.prune).parameters.items() if name in declared}
    assert len(keywords) >= 15
    assert keywords == {name: declared[name] for name in keywords}


def test_help_is_in_the_order_of_the_job() -> None:
    text = op.__doc__ or ""
    listed = re.findall(r"^    ([a-z_]+)(?:, ([a-z_]+))?  +\S", text, re.M)
    names = [name for pair in listed for name in pair if name]
    aside = {"to_proto", "load_curves", "save_curves", "load_plan", "save_plan"}
    assert set(names) == set(FUNCTIONS) - aside
    order = [
        "analyze",
        "score",
        "sensitivity",
        "latency_model",
        "plan",
        "apply",
        "verify",
        "recover",
        "retrain",
        "bench",
    ]
    for ordered in (names, op.__all__):
        places = [ordered.index(n) for n in order]
        assert places == sorted(places)
    assert "score every channel" in pydoc.render_doc(op)


def test_help_needs_no_extra() -> None:
    code = """
import sys
for name in ("torch", "lightning", "onnx2torch", "sklearn", "scipy"):
    sys.modules[name] = None
import onnxprune, pydoc
pydoc.render_doc(onnxprune)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------------------- reprs


def curves_of(criterion: dict[str, Any]) -> op.Curves:
    """Curves that fall from 0.9 to 0.4, of all groups."""
    analysis = op.analyze(DIGITS)
    points = tuple(CurvePoint(r, int(r * 16), 0.9 - r / 2 if r < 0.9 else 0.4, 0.01) for r in (0.25, 0.5, 0.75))
    groups = {g.name: Curve(g.channels, points) for g in analysis.groups}
    return op.Curves(analysis.source.fingerprint, criterion, "top1", True, CurvePoint(0, 0, 0.9, 0.01), groups)


@pytest.fixture(scope="module")
def results(pruned: op.Pruned, data: op.Data) -> dict[str, Any]:
    """One of each public result."""
    assert pruned.recovery is not None
    scores = op.score(pruned.analysis, "l2")
    history = (Epoch(0, None, 0.5, 1.0, None, 0.1), *(Epoch(i, 0.5, 0.6, 0.9, 0.01, 1.0) for i in range(1, 60)))
    figures = ValidationMetrics(0.5, 1.0)
    retrained = Retrained(
        pruned.model, figures, figures, 3, history, None, True, None, 0.01, ("w",) * 300, ("v",) * 300, data, None, 0
    )
    return {
        "Model": pruned.analysis.source, "pruned Model": pruned.model, "Data": data, "Analysis": pruned.analysis,
        "Group": pruned.analysis.groups[0], "Scores": scores, "Curves": curves_of({"name": "l2"}), "Plan": pruned.plan,
        "Pruned": pruned, "Verification": pruned.verification, "Recovered": pruned.recovery, "Retrained": retrained,
        "Compiled": op.compile_plan(op.load(DIGITS), pruned.plan, check=False),
        "Evaluation": op.evaluate(pruned, "digits:test", images=50),
        "BenchResults": op.bench([DIGITS] * 8, runs=1, warmup=0), "BenchResult": op.bench([pruned], runs=1)[0],
    }  # fmt: skip


RESULTS = [
    "Model", "pruned Model", "Data", "Analysis", "Group", "Scores", "Curves", "Plan", "Pruned", "Verification",
    "Recovered", "Retrained", "Compiled", "Evaluation", "BenchResults", "BenchResult",
]  # fmt: skip


def short(value: object) -> str:
    text = repr(value)
    assert len(text.splitlines()) <= MOST_LINES, text
    assert len(text) <= MOST_CHARACTERS, text
    return text


class Tags(HTMLParser):
    """Tags of a page, which must close, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", RESULTS)
def test_results_print_in_a_few_lines_and_show_themselves(name: str, results: dict[str, Any]) -> None:
    assert set(results) == set(RESULTS)
    text = short(results[name])
    assert name.rpartition(" ")[2].removesuffix("s") in text
    shown = Tags(results[name]._repr_html_())
    assert {"table"} <= shown.tags <= {"div", "table", "caption", "b", "thead", "tbody", "tr", "th", "td"}


def test_reprs_name_what_counts(results: dict[str, Any]) -> None:
    assert repr(results["Model"]).startswith("<Model digits_cnn.onnx: ")
    assert "opset" in repr(results["Model"])
    assert f"removes {results['Plan'].removed} of " in repr(results["Plan"])
    assert "proved equal to the masked original" in repr(results["Verification"])
    assert "distance" in repr(results["Recovered"])
    assert "held-out samples" in repr(results["Pruned"])
    assert "epoch 3 of 59" in repr(results["Retrained"])
    assert "top1" in repr(results["Evaluation"])
    assert "speed-up 1.00" in repr(results["BenchResults"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (op.Target(macs=0.5), "Target(macs=0.5)"),
        (op.Constraints(), "Constraints()"),
        (op.Constraints(round_to=4, only=("mlp",)), "Constraints(round_to=4, only=('mlp',))"),
        (op.Settings(epochs=3), "Training(epochs=3)"),
        (op.Preprocess(mean=(0.5,)), "Preprocess(mean=(0.5,))"),
        (op.Removal(4, (1, 2)), "<Removal: 2 of 4 channels: 1, 2>"),
        (op.Data(np.zeros((2, 3)), None, "x.npz"), "<Data x.npz: 2 samples [3] float64, no labels>"),
    ],
)
def test_values_print_what_was_set(value: object, text: str) -> None:
    assert repr(value) == text


def test_the_options_of_passes_are_those_of_prune() -> None:
    arguments = get_type_hints(op.prune)
    del arguments["model"], arguments["return"]
    assert get_type_hints(PruneOptions) == arguments


def test_values_of_any_size_print_in_a_few_lines() -> None:
    many = {f"group{i}": op.Removal(10**6, tuple(range(5000))) for i in range(500)}
    short(op.Plan("", many, {"name": "l2"}))
    short(many["group0"])
    short(op.Constraints(exclude=tuple(f"layer{i}*" for i in range(500)), overrides={f"g{i}": 0.5 for i in range(500)}))
    short(op.Settings(freeze=tuple(f"layer{i}*" for i in range(500))))
    short(op.Data(np.zeros((2000, 3)), np.arange(2000), "x" * 2000))


def hostile() -> op.Model:
    text = "g (float[N,3] x) => (float[N,2] y) { h = Gemm (x, w) y = Gemm (h, v) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    rng = np.random.default_rng(0)
    for name, new, shape in (("w", HOSTILE + "w" * 500, (3, 16)), ("v", "v", (16, 2))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.random(shape, np.float32), new))
        for node in proto.graph.node:
            node.input[:] = [new if n == name else n for n in node.input]
    proto.graph.input[0].name = proto.graph.node[0].input[0] = HOSTILE
    return op.load(proto)


def test_names_that_are_markup_stay_text() -> None:
    model = hostile()
    done = op.prune(model, ratio=0.5, constraints=op.Constraints(round_to=1))
    assert done.verification is not None
    group = done.analysis.groups[0]
    shown: list[Any] = [model, group, done, done.analysis, done.plan, done.verification, op.score(done.analysis)]
    for value in shown:
        short(value)
        assert "script" not in Tags(value._repr_html_()).tags
    assert HOSTILE in Tags(model._repr_html_()).text
    assert HOSTILE in Tags(group._repr_html_()).text
