"""Latency of layers before and after pruning, and why layers did not get faster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import CommandLine
from fake_runtimes import FakeRuntime, layer_law
from random_graphs.graphs import Spec, build

import onnxprune as op
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save
from onnxprune.latency.layer_figures import layer_seconds
from onnxprune.latency.layers import LayerProfile, profile_layers
from onnxprune.latency.runtimes import RUNTIMES, Inputs, LayerTime, make_runtime
from onnxprune.latency.runtimes.node_names import node_name
from onnxprune.pipeline import analyze

pytest.importorskip("onnxruntime")
DIGITS = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))


class Layers(FakeRuntime):
    """Times by kind: products by padded work, element-wise ones by a constant, one kernel that changes."""

    block = 16

    def profile(self, model: Model, inputs: Inputs, *, threads: int, runs: int = 20) -> Sequence[LayerTime]:
        whole = "onnxprune.plan" not in model.metadata
        out = [
            LayerTime(node_name(n), n.op, 1e-3 * layer_law(n, block=16, each=1.0), "blocked", (node_name(n),))
            for n in model.graph.nodes
            if layer_law(n)
        ]
        out += [
            LayerTime(node_name(n), n.op, 3e-3 if whole else 2.9e-3, "plain", (node_name(n),))
            for n in model.graph.nodes
            if n.op == "GlobalAveragePool"
        ]
        return [*out, LayerTime("r1", "ReorderOutput", 1e-3 if whole else 2e-3)]


@pytest.fixture(scope="module")
def pruned() -> Model:
    return op.prune(DIGITS, target="macs=0.5", criterion="l2", constraints=op.Constraints(round_to=4)).model


def test_the_reason_is_stated_for_layers_that_are_slower_than_their_work(pruned: Model) -> None:
    found = profile_layers(load(DIGITS), pruned, Layers())
    rows = {r.name: r for r in found.layers}
    assert found.compared
    assert found.block == 16
    for row in found.layers:
        if row.op == "Conv" and row.work is not None and row.before and row.after is not None:
            slow = row.after > (row.work + 0.15) * row.before
            assert bool(row.reason) == (slow or row.work == 1)
            if "no multiple" in row.reason:
                assert any(int(n) % 16 for n in row.channels_after.split(" -> "))
    pool = next(r for r in rows.values() if r.op == "GlobalAveragePool")
    assert pool.work is not None
    assert pool.work < 1
    assert pool.reason.startswith(("memory-bound", "48 channels", "40 channels")) or "no multiple" in pool.reason
    reorder = rows["(ReorderOutput)"]
    assert reorder.reason.startswith("reorders")
    assert reorder.lost == pytest.approx(2e-3)
    assert list(found.layers) == sorted(found.layers, key=lambda r: -max(r.before or 0, r.after or 0))
    text = "\n".join(found.summary())
    assert text.startswith("all layers: ")
    assert "reorders (1 layer)" in text
    assert "unaligned counts of channels" in text


def test_one_model_has_no_comparison() -> None:
    model = load(DIGITS)
    found = profile_layers(model, model, Layers())
    assert not found.compared
    assert all(r.after is None and not r.reason for r in found.layers)
    assert found.summary()[0].startswith("all layers: ")
    assert found.as_dict()["after"] is None


def test_the_rows_behind_the_most_are_one_row(pruned: Model) -> None:
    found = profile_layers(load(DIGITS), pruned, Layers())
    rows = found.rows(most=3)
    assert len(rows) == 4
    assert rows[-1][0] == f"{len(found.layers) - 3} more"
    assert all(len(r) == len(found.COLUMNS) for r in rows)


def test_onnxruntime_finds_every_convolution(pruned: Model) -> None:
    found = profile_layers(load(DIGITS), pruned, make_runtime("onnxruntime"), runs=2)
    names = {r.name for r in found.layers if r.work is not None}
    assert {n.name for n in load(DIGITS).graph.nodes if n.op in ("Conv", "Gemm")} <= names
    document = json.loads(json.dumps(found.as_dict()))
    assert document["before"] == pytest.approx(sum(r["before"] or 0 for r in document["rows"]))


def test_models_with_other_layers_and_without_names() -> None:
    one, other = (load(build(Spec(("conv", "residual"), seed=s))) for s in (0, 3))
    for node in other.graph.nodes:
        node.name = ""
    found = profile_layers(one, other, make_runtime("onnxruntime"), runs=1)
    assert found.layers
    assert analyze(one).groups


def test_bench_profile_end_to_end(pruned: Model, tmp_path: Path) -> None:
    small = tmp_path / "s.onnx"
    save(pruned, small)
    text = CommandLine("bench").out(DIGITS, small, "--runs", 2, "--profile")
    assert "layers of digits_cnn.onnx and s.onnx, onnxruntime" in text
    assert "all layers: " in text
    table = text[text.index("layers of") :]
    heading = next(line for line in table.splitlines() if line.strip().startswith("layer "))
    assert heading.split() == list(LayerProfile.COLUMNS)
    assert next(n.name for n in load(DIGITS).graph.nodes if n.op == "Conv") in table
    document = json.loads(CommandLine("bench").out(DIGITS, small, "--runs", 2, "--profile", "--json"))
    assert [Path(m["model"]).name for m in document["models"]] == ["digits_cnn.onnx", "s.onnx"]
    assert {"name", "before", "after", "work", "reason", "lost"} <= document["layers"]["rows"][0].keys()


def test_a_runtime_without_times_of_layers_says_so() -> None:
    class Whole(FakeRuntime):
        layered = False

    with RUNTIMES.isolated():
        RUNTIMES.register(Whole)
        says = CommandLine("bench").fails(DIGITS, "--runtime", "fake", "--profile")
    assert "fake has no times of layers" in says
    assert "--profile needs onnxruntime or openvino" in says


def test_a_report_shows_the_latency_of_layers(pruned: Model, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")
    small, document, page = tmp_path / "s.onnx", tmp_path / "layers.json", tmp_path / "r.html"
    save(pruned, small)
    document.write_text(CommandLine("bench").out(DIGITS, small, "--runs", 2, "--profile", "--json"), encoding="utf-8")
    CommandLine("report").ok(DIGITS, small, document, "-o", page, "--no-verify")
    text = page.read_text(encoding="utf-8")
    assert "Latency of layers: layers.json" in text
    assert "share of the work" in text
    document.write_text('{"models": [], "layers": {"rows": [{"name": 3}]}}', encoding="utf-8")
    result = CommandLine("report").ok(DIGITS, small, document, "-o", page, "--no-verify", "--no-latency")
    assert "not a text" in result.stderr


def test_a_report_measures_in_the_runtime(pruned: Model, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")
    small, plan, page = tmp_path / "s.onnx", tmp_path / "p.json", tmp_path / "r.html"
    CommandLine("plan").ok(DIGITS, "--target", "macs=0.5", "--round-to", 8, "-o", plan)
    CommandLine("apply").ok(DIGITS, plan, "-o", small)
    with RUNTIMES.isolated():
        RUNTIMES.register(FakeRuntime)
        CommandLine("report").ok(DIGITS, small, plan, "-o", page, "--no-verify", "--runtime", "fake:moon")
    assert "moon" in page.read_text(encoding="utf-8")
    analyses = [analyze(load(p)) for p in (DIGITS, small)]
    fake = FakeRuntime()
    times = layer_seconds(analyses, runtime=fake)
    assert fake.profiled == 2
    for analysis, found in zip(analyses, times, strict=True):
        for node in analysis.source.graph.nodes:
            if layer_law(node):
                assert found[node.outputs[0].name] == pytest.approx(layer_law(node))
    fake.layered = False
    assert layer_seconds(analyses, runtime=fake) == []
