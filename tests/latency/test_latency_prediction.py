"""Latency models from times of known formulas; onnxruntime's own profile only for its structure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import parser
from random_graphs.graphs import Spec, build

from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Kernel, Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.latency import prediction
from onnxprune.latency._channel_axes import ChannelAxes
from onnxprune.latency._fitting import fit
from onnxprune.latency._measuring import MeasuringEffort, VariantMeasurement, VariantTimer, design, variant
from onnxprune.latency.prediction import LatencyModel, latency_model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.pipeline import analyze

DIGITS = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"
DENSE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Formula = Callable[[str, list[float], list[float]], float]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))


def analyzed(*blocks: str, seed: int = 0) -> Analysis:
    return analyze(load(build(Spec(blocks, seed=seed))))


def shape(analysis: Analysis, t: gs.Tensor, kept: Kept) -> tuple[int, ...]:
    """Of a tensor when only some channels are there."""
    full = analysis.table.shape(t)
    keeps = [analysis.keep(t.name, i, kept) for i in range(len(full))]
    return tuple(n if k is None else int(k.sum()) for n, k in zip(full, keeps, strict=True))


def seconds_of(op: str, ins: list[float], outs: list[float]) -> float:
    """A formula of the kind that kernels follow, of elements read and written."""
    if op in DENSE:
        return 3e-6 + 2e-9 * ins[0] + 3e-9 * outs[0] + 5e-9 * ins[1]
    return 1e-6 + 1e-9 * sum(ins) + 1e-9 * sum(outs)


def kernels_of(analysis: Analysis, kept: Kept, formula: Formula = seconds_of, block: int = 1) -> list[Kernel]:
    """Return the kernels that a runtime without fusion would report."""
    out = []
    for node in analysis.model.graph.nodes:
        ins = tuple(shape(analysis, t, kept) for t in node.inputs if t.name)
        outs = tuple(shape(analysis, t, kept) for t in node.outputs if t.name)
        padded = [[float(np.prod([*[-(-n // block) * block for n in s[:2]], *s[2:]])) for s in side]
                  for side in (ins, outs)]  # fmt: skip
        out.append(Kernel(node.name, node.op, ins, outs, formula(node.op, *padded)))
    return out


def sample(analysis: Analysis, kept: Kept, block: int = 1) -> VariantMeasurement:
    """A variant whose whole run takes 10 % and 50 us more than its kernels."""
    kernels = kernels_of(analysis, kept, block=block)
    return VariantMeasurement(kept, kernels, 1.1 * sum(k.seconds for k in kernels) + 5e-5)


def variants(analysis: Analysis, block: int, count: int, seed: int) -> list[Kept]:
    return [analysis.kept(variant(analysis, c)) for c in design(analysis, block, count, seed)]


def fitted(analysis: Analysis, samples: list[VariantMeasurement], block: int = 1) -> LatencyModel:
    axes = ChannelAxes.of(analysis, block)
    return LatencyModel(axes, fit(analysis, samples, axes), batch=1, threads=1, provider="none")


RECOVERED = [
    ("conv", "residual"),
    ("dense", "depthwise"),
    ("squeeze_excite", "pools"),
    ("mlp", "strided"),
    ("attention", "conv_transpose"),
    ("gated", "shuffle"),
]


@pytest.mark.parametrize("blocks", RECOVERED, ids="-".join)
@pytest.mark.parametrize("seed", [0, 1])
def test_recovers_the_formula_on_variants_it_has_not_seen(blocks: tuple[str, ...], seed: int) -> None:
    analysis = analyzed(*blocks, seed=seed)
    model = fitted(analysis, [sample(analysis, k) for k in variants(analysis, 1, 24, seed=0)])
    for kept in variants(analysis, 1, 12, seed=1):
        assert model.seconds(kept) == pytest.approx(sample(analysis, kept).seconds, rel=0.01)


def chain(*widths: int) -> Analysis:
    """Convolutions 3 -> widths -> 5, each followed by a Relu."""
    sizes = [3, *widths, 5]
    lines, weights = [], []
    for i, (a, b) in enumerate(pairwise(sizes)):
        lines.append(f"c{i} = Conv<pads=[1,1,1,1]>({'x' if i == 0 else f'r{i - 1}'}, w{i})")
        lines.append(f"{'y' if i == len(widths) else f'r{i}'} = Relu(c{i})")
        weights.append(f"float[{b},{a},3,3] w{i}")
    graph = ", ".join(f"{w} = {{{','.join(['0.5'] * _elements(w))}}}" for w in weights)
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,4,4] x) => (float[1,5,4,4] y) <{graph}> {{'
    return analyze(load(parser.parse_model(text + "\n".join(lines) + "}")))


def _elements(weight: str) -> int:
    return int(np.prod([int(n) for n in weight[weight.index("[") + 1 : weight.index("]")].split(",")]))


def test_channels_count_in_whole_blocks() -> None:
    analysis = chain(24, 32)
    model = fitted(analysis, [sample(analysis, k, block=4) for k in variants(analysis, 4, 24, seed=0)], block=4)
    names = [g.name for g in analysis.groups]
    times = {n: model.seconds(analysis.kept(variant(analysis, {names[0]: n, names[1]: 16}))) for n in (13, 15, 16, 17)}
    assert times[13] == times[15] == times[16] < times[17]
    kept = analysis.kept(variant(analysis, {names[0]: 13, names[1]: 30}))
    assert model.seconds(kept) == pytest.approx(sample(analysis, kept, block=4).seconds, rel=0.01)


def test_prediction_is_positive_and_falls_with_every_channel() -> None:
    analysis = analyzed("residual", "depthwise", "squeeze_excite")
    model = fitted(analysis, [sample(analysis, k) for k in variants(analysis, 1, 24, seed=0)])
    kept = np.ones(analysis.count, bool)
    last = model.baseline
    assert last == model.seconds(kept) == pytest.approx(sample(analysis, kept).seconds, rel=0.01)
    for g in analysis.groups:
        for c in g.components[1:]:
            kept[c] = False
            now = model.seconds(kept)
            assert 0 < now <= last * (1 + 1e-9)
            last = now


def test_one_disturbed_variant_does_not_decide() -> None:
    analysis = chain(24, 32)
    samples = [sample(analysis, k) for k in variants(analysis, 1, 24, seed=0)]
    slow = [replace(k, seconds=5 * k.seconds) for k in samples[7].kernels]
    samples[7] = VariantMeasurement(samples[7].kept, slow, 5 * samples[7].seconds)
    model = fitted(analysis, samples)
    for kept in variants(analysis, 1, 8, seed=1):
        assert model.seconds(kept) == pytest.approx(sample(analysis, kept).seconds, rel=0.05)


def test_whole_runs_count_where_the_machine_was_quiet() -> None:
    analysis = chain(24, 32)
    samples = [sample(analysis, k) for k in variants(analysis, 1, 24, seed=0)]
    noisy = [s if i % 3 == 0 else replace(s, seconds=4 * s.seconds, quiet=False) for i, s in enumerate(samples)]
    assert fitted(analysis, noisy).baseline == pytest.approx(samples[0].seconds, rel=0.01)
    assert fitted(analysis, [replace(s, quiet=False) for s in samples]).baseline == pytest.approx(
        samples[0].seconds, rel=0.01
    )


def test_kernels_are_told_by_their_shapes_not_by_their_names() -> None:
    # As after the runtime's own optimisations: fused names, renumbered ones, packed weights that are not stated,
    # kernels that some variants have and others have not.
    analysis = chain(24, 32)

    def mangled(kept: Kept, serial: int) -> VariantMeasurement:
        kernels = []
        for i, k in enumerate(kernels_of(analysis, kept)):
            packed = k.inputs[:1] if k.op == "Conv" else k.inputs
            kernels.append(Kernel(f"fused {i}", "FusedConv" if k.op == "Conv" else k.op, packed, k.outputs, k.seconds))
        kernels.append(Kernel(f"Reorder_token_{serial}", "Reorder", ((1, 8),), ((1, 8),), 4e-6))
        if serial % 2:
            kernels.append(Kernel(f"Transpose_token_{serial}", "Other", ((1, 8),), ((1, 8),), 2e-6))
        return VariantMeasurement(kept, kernels, sum(k.seconds for k in kernels))

    model = fitted(analysis, [mangled(k, 100 + i) for i, k in enumerate(variants(analysis, 1, 24, seed=0))])
    for kept in variants(analysis, 1, 8, seed=1):
        assert model.seconds(kept) == pytest.approx(mangled(kept, 0).seconds, rel=0.03)


def test_where_kernels_are_only_started_whole_runs_count() -> None:
    analysis = chain(24, 32)

    def started(kept: Kept) -> VariantMeasurement:
        kernels = [replace(k, seconds=1e-6) for k in kernels_of(analysis, kept)]
        read = sum(np.prod(s) for k in kernels for s in (*k.inputs, *k.outputs))
        products = sum(np.prod(k.inputs[1]) * 16 for k in kernels if k.op == "Conv")  # at each of 4 x 4 places
        return VariantMeasurement(kept, kernels, float(1e-4 + 2e-9 * read + 3e-9 * products))

    axes = ChannelAxes.of(analysis, 1)
    found = fit(analysis, [started(k) for k in variants(analysis, 1, 24, seed=0)], axes, clocked=False)
    model = LatencyModel(axes, found, batch=1, threads=1, provider="none")
    for kept in variants(analysis, 1, 8, seed=1):
        assert model.seconds(kept) == pytest.approx(started(kept).seconds, rel=1e-3)


def test_padded_shapes_are_recognised() -> None:
    analysis = chain(24, 32)

    def padded(kept: Kept) -> VariantMeasurement:
        kernels = kernels_of(analysis, kept, block=4)
        shapes = [[tuple((s[0], -(-s[1] // 4) * 4, *s[2:]) for s in side) for side in (k.inputs, k.outputs)]
                  for k in kernels]  # fmt: skip
        kernels = [replace(k, inputs=i, outputs=o) for k, (i, o) in zip(kernels, shapes, strict=True)]
        return VariantMeasurement(kept, kernels, sum(k.seconds for k in kernels))

    model = fitted(analysis, [padded(k) for k in variants(analysis, 2, 24, seed=0)], block=4)
    for kept in variants(analysis, 4, 8, seed=1):
        assert model.seconds(kept) == pytest.approx(padded(kept).seconds, rel=0.05)


def test_a_model_without_groups_has_one_latency() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }'
    analysis = analyze(load(parser.parse_model(text)))
    assert not analysis.groups
    assert fitted(analysis, [sample(analysis, np.ones(1, bool))]).baseline == pytest.approx(5.11e-5, rel=0.05)


def test_variants_are_whole_blocks_and_cover_small_and_large() -> None:
    analysis = chain(24, 64)
    counts = design(analysis, 16, 24)
    assert counts == design(analysis, 16, 24)
    assert counts[0] == {g.name: g.channels for g in analysis.groups}
    first, second = (sorted({c[g.name] for c in counts}) for g in analysis.groups)
    assert first == [16, 24]
    assert second == [16, 32, 48, 64]


# -------------------------------------------------------------------------------------------- the cache


class FakeBench:
    """A bench whose times follow the formula; counts how often it was asked."""

    asked = 0
    provider = "CPUExecutionProvider"

    def __init__(self, analysis: Analysis, **_: object) -> None:
        self.analysis = analysis

    def __enter__(self) -> FakeBench:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def samples(self, block: int, progress: object) -> list[VariantMeasurement]:
        type(self).asked += 1
        return [sample(self.analysis, k) for k in variants(self.analysis, block, 24, seed=0)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> type[FakeBench]:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(prediction, "VariantTimer", FakeBench)
    FakeBench.asked = 0
    return FakeBench


def digits(seed: int | None = None) -> Analysis:
    """The demo network; with a seed, retrained: other weights."""
    model = load(DIGITS)
    if seed is None:
        return analyze(model)
    rng = np.random.default_rng(seed)
    retrained = model.copy()
    for t in retrained.graph.tensors().values():
        if isinstance(t, gs.Constant) and t.dtype.kind == "f":
            t.values = rng.standard_normal(t.shape).astype(t.dtype)
    return analyze(Model(retrained.graph, model.sidecar))


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir()) if (tmp_path / "cache").exists() else []


def test_the_cache_answers_as_the_measurement_did(bench: type[FakeBench], tmp_path: Path) -> None:
    first = latency_model(digits())
    assert bench.asked == 1
    (path,) = files(tmp_path)
    assert path.suffix == ".json"
    again = latency_model(digits())
    assert bench.asked == 1
    assert (again.batch, again.threads, again.provider) == (1, 1, "CPUExecutionProvider")
    for kept in variants(digits(), 8, 6, seed=1):
        assert again.seconds(kept) == first.seconds(kept)
    latency_model(digits(), refresh=True)
    assert bench.asked == 2


def test_retrained_weights_find_it_and_nothing_else_does(
    bench: type[FakeBench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latency_model(digits())
    assert latency_model(digits(seed=3)).baseline > 0
    assert bench.asked == 1
    latency_model(analyzed("conv"))
    latency_model(digits(), threads=2)
    latency_model(digits(), batch=4)
    assert bench.asked == 4
    monkeypatch.setattr(prediction, "machine", lambda: "another one")
    latency_model(digits())
    assert bench.asked == 5
    assert len(files(tmp_path)) == 5


def test_structure_tells_models_apart() -> None:
    same = prediction.structure(digits())
    assert same == prediction.structure(digits()) == prediction.structure(digits(seed=1))
    others = [prediction.structure(a) for a in (chain(24, 32), chain(32, 24), chain(24), analyzed("conv"))]
    assert len({same, *others}) == 5


DAMAGED = {
    "empty": lambda d: "",
    "not JSON": lambda d: "{",
    "not an object": lambda d: "[]",
    "nested": lambda d: "[" * 100_000,
    "other schema": lambda d: json.dumps(d | {"schema": 99}),
    "other settings": lambda d: json.dumps(d | {"settings": {}}),
    "unknown key": lambda d: json.dumps(d | {"more": 1}),
    "no terms": lambda d: json.dumps({k: v for k, v in d.items() if k != "terms"}),
    "terms no list": lambda d: json.dumps(d | {"terms": 3}),
    "term no list": lambda d: json.dumps(d | {"terms": [3]}),
    "term empty": lambda d: json.dumps(d | {"terms": [[]]}),
    "not finite": lambda d: json.dumps(d | {"terms": [[float("nan"), 1]]}),
    "no such axis": lambda d: json.dumps(d | {"terms": [[1.0, 10**6]]}),
    "negative axis": lambda d: json.dumps(d | {"terms": [[1.0, -1]]}),
    "axis no number": lambda d: json.dumps(d | {"terms": [[1.0, True]]}),
    "curve too short": lambda d: json.dumps(d | {"curve": [1.0, 1.0]}),
    "curve of text": lambda d: json.dumps(d | {"curve": ["1", "1", "1"]}),
    "not text": lambda d: b"\xff\xfe",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_cache_is_measured_anew(bench: type[FakeBench], tmp_path: Path, damage: str) -> None:
    first = latency_model(digits())
    (path,) = files(tmp_path)
    bad = DAMAGED[damage](json.loads(path.read_text()))
    path.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    assert latency_model(digits()).baseline == first.baseline
    assert bench.asked == 2
    latency_model(digits())
    assert bench.asked == 2  # it was written over


def test_a_file_keeps_the_measurement(bench: type[FakeBench], tmp_path: Path) -> None:
    file, analysis = tmp_path / "latency.json", digits()
    first = latency_model(analysis, file=file)
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    again = latency_model(analysis, file=file, refresh=True)
    kept = np.ones(analysis.count, bool)
    kept[analysis.groups[0].components[:8]] = False
    assert again.seconds(kept) == first.seconds(kept)
    with pytest.raises(OnnxPruneError, match="with other settings") as err:
        latency_model(analysis, file=file, threads=2)
    assert err.value.where == str(file)
    file.write_text("{")
    with pytest.raises(OnnxPruneError, match="damaged"):
        latency_model(analysis, file=file)


def test_without_a_cache_nothing_is_read_or_written(bench: type[FakeBench], tmp_path: Path) -> None:
    latency_model(digits(), cache=False)
    latency_model(digits(), cache=False)
    assert bench.asked == 2
    assert not files(tmp_path)


def test_a_cache_folder_that_cannot_be_made_is_no_error(
    bench: type[FakeBench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert latency_model(digits()).baseline > 0


def test_the_users_cache_folder_is_the_default(
    bench: type[FakeBench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONNXPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    latency_model(digits())
    assert len(list((tmp_path / "xdg" / "onnxprune" / "latency").iterdir())) == 1


def test_what_fell_back_to_another_provider_is_not_cached(
    bench: type[FakeBench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "provider", "AnotherExecutionProvider")
    assert latency_model(digits()).provider == "AnotherExecutionProvider"
    assert not files(tmp_path)


@pytest.mark.parametrize(("options", "says"), [({"batch": 0}, "batch 0"), ({"threads": -1}, "threads -1")])
def test_counts_are_checked(options: dict[str, int], says: str) -> None:
    with pytest.raises(OnnxPruneError, match=says):
        latency_model(digits(), **options)


def test_an_unknown_device_is_named() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(OnnxPruneError, match="unknown device 'tpu'"):
        latency_model(digits(), device="tpu")


# ------------------------------------------------------------------------------------------ the real thing


def test_a_profile_names_what_ran(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    analysis = digits()
    session = Session(analysis.model, threads=1, profile=tmp_path)
    for _ in range(3):
        session.run(random_feeds(analysis, 2))
    runs = session.kernels()
    assert len(runs) == 3
    assert [k.name for k in runs[0]] == [k.name for k in runs[2]]
    assert any("Conv" in k.op for k in runs[0])
    assert all(k.seconds >= 0 and k.outputs for k in runs[0])
    assert not list(tmp_path.iterdir())


def test_the_body_of_a_loop_counts_once(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[64] x) => (float[64] y) <int64 n = {50}, bool go = {1}> {
        y = Loop(n, go, x) <body = b (int64 i, bool c, float[64] v) => (bool d, float[64] w) {
            d = Identity(c)
            u = Sin(v)
            w = Add(u, v)
        }>
    }"""
    session = Session(parser.parse_model(text), threads=1, profile=tmp_path)
    session.run({"x": np.ones(64, np.float32)})
    (run,) = session.kernels()
    assert [k.op for k in run if k.op != "Constant"] == ["Loop"]


# Over soon, however slow or busy the machine.
BRIEF = MeasuringEffort(variants=6, least_rounds=1, rounds=2, short=0.0, patience=0.05)


@pytest.mark.parametrize("batch", [1, 3])
def test_measures_a_real_model(tmp_path: Path, batch: int) -> None:
    pytest.importorskip("onnxruntime")
    analysis, ticks = digits(), []
    model = latency_model(analysis, batch=batch, effort=BRIEF, progress=lambda done, total: ticks.append((done, total)))
    assert ticks == [(i, 6) for i in range(1, 7)]
    assert (model.batch, model.threads, model.provider) == (batch, 1, "CPUExecutionProvider")
    assert np.isfinite(model.baseline)
    assert model.baseline > 0
    for kept in variants(analysis, 8, 6, seed=1):
        assert 0 < model.seconds(kept) < np.inf
    assert len(files(tmp_path)) == 1


def test_a_large_model_makes_do_with_fewer_variants() -> None:
    pytest.importorskip("onnxruntime")
    effort = replace(BRIEF, least_variants=3, seconds=-1.0)
    ticks = []
    with VariantTimer(digits(), batch=1, threads=1, device="cpu", effort=effort) as real:
        samples = real.samples(8, lambda done, total: ticks.append((done, total)))
    assert len(samples) == 3
    assert ticks == [(1, 6), (2, 6), (6, 6)]
    assert all(s.seconds > 0 and s.kernels for s in samples)
