"""Penalties equal loops over channels; what is zeroed is exactly the channel; plans come from what was trained."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from planning import kept_counts, share
from random_graphs.graphs import BLOCKS, Builder, Spec, T, build
from torch import nn

from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import load_data
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.evaluation import evaluate
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save
from onnxprune.passes import FuseBatchnorm, InsertBatchnorm
from onnxprune.pipeline import analyze, apply, compile_plan, score
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, Removal
from onnxprune.torch_bridge import bindings, to_torch, write_back
from onnxprune.training.methods import METHODS, Method, get_method
from onnxprune.training.methods._channel_parameters import members
from onnxprune.training.methods._valley import valley
from onnxprune.verification import relative_difference

Array = npt.NDArray[Any]
MODELS = Path(__file__).parent.parent.parent / "models"
EPS = float(np.finfo(np.float32).eps)
every_method = pytest.mark.parametrize("name", sorted(METHODS))

# One group A of 8 channels (a residual stream through a depthwise layer), one B of 6 that is appended to it.
TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,6,6] x) => (float[N,5] y) {
  a0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  a1 = BatchNormalization (a0, g0, s0, m0, v0)
  a2 = Relu (a1)
  a3 = Conv <group = 8, pads = [1, 1, 1, 1]> (a2, w1)
  a4 = BatchNormalization (a3, g1, s1, m1, v1)
  a5 = Relu (a4)
  a6 = Conv (a5, w2)
  a7 = Add (a6, a2)
  a8 = Conv (a7, w3)
  a9 = BatchNormalization (a8, g3, s3, m3, v3)
  b1 = Relu (a9)
  b2 = Concat <axis = 1> (a7, b1)
  b3 = GlobalAveragePool (b2)
  b4 = Flatten (b3)
  y = Gemm <transB = 1> (b4, wf, bf)
}"""
SHAPES: dict[str, tuple[int, ...]] = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (6, 8, 1, 1), "wf": (5, 14),
    "bf": (5,),
}  # fmt: skip
FILTERS = {"A": ("w0", "w1", "w2"), "B": ("w3",)}
OWN = {"A": ("b0", "g0", "s0", "g1", "s1"), "B": ("g3", "s3")}  # numbers of the channel beside its filters
GAMMAS = {"A": ("g0", "g1"), "B": ("g3",)}
READERS: dict[str, Callable[[Mapping[str, Array], int], list[Array]]] = {
    "A": lambda w, c: [w["w2"][:, c], w["w3"][:, c], w["wf"][:, c]],
    "B": lambda w, c: [w["wf"][:, 8 + c]],
}
GROUPS = {"A": "w0", "B": "w3"}  # their names
CHANNELS = {"A": 8, "B": 6}


def network(seed: int = 0) -> Model:
    """The graph above, with random weights."""
    proto = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(seed)
    shapes = dict(SHAPES)
    for i, n in (("0", 8), ("1", 8), ("3", 6)):
        shapes |= {f"{kind}{i}": (n,) for kind in "gsmv"}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)
        if name[0] in "gv":
            values = rng.uniform(0.4, 1.6, shape) * (rng.choice([-1, 1], shape) if name[0] == "g" else 1)
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return load(proto)


def weights(model: Model) -> dict[str, npt.NDArray[np.float64]]:
    return {n: np.asarray(t.values, np.float64) for n, t in model.graph.tensors().items() if hasattr(t, "values")}


def attached(name: str, model: Model, **params: Any) -> tuple[Method, nn.Module, Analysis]:
    analysis = analyze(model)
    module = to_torch(model)
    method = get_method(name, **params)
    method.attach(module, analysis)
    return method, module, analysis


def value(method: Method) -> float:
    penalty = method.penalty()
    assert penalty is not None
    assert penalty.shape == ()
    return float(penalty.detach().double())


# ------------------------------------------------------------------------------------------------- what belongs where


def test_members_are_the_axes_that_channels_sit_on_and_say_what_they_are() -> None:
    model = network()
    analysis = analyze(model)
    assert {g.name: g.channels for g in analysis} == {GROUPS[k]: CHANNELS[k] for k in GROUPS}
    found = {(m.initializer, m.axis): m.role for m in members(to_torch(model), analysis)}
    expected = {(n, 0): "filter" for names in FILTERS.values() for n in names}
    expected |= {(n, 0): "scale" for names in GAMMAS.values() for n in names}
    expected |= {(n, 0): "vector" for n in ("b0", "s0", "s1", "s3")}
    expected |= {("w2", 1): "reader", ("w3", 1): "reader", ("wf", 1): "reader"}
    assert found == expected


@pytest.mark.parametrize("trans", [0, 1])
def test_hidden_layers_of_gemm_and_matmul_are_found_however_the_module_holds_them(trans: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,3] y) {{
      a = Gemm <transB = {trans}> (x, wa, ba) b = Relu (a) c = MatMul (b, wb) d = Add (c, bb) e = Relu (d)
      y = Gemm <alpha = 0.5, transB = {trans}> (e, wc, bc) }}"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(1)
    shapes = {"wa": (4, 6), "ba": (6,), "wb": (6, 7), "bb": (7,), "wc": (7, 3), "bc": (3,)}
    for name, shape in shapes.items():
        flip = trans and name in ("wa", "wc")
        values = rng.standard_normal(shape[::-1] if flip else shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    model = load(proto)
    analysis, module = analyze(model), to_torch(model)
    found = members(module, analysis)
    assert sorted((m.initializer, m.role, len(m.components)) for m in found) == [
        ("ba", "vector", 6), ("bb", "vector", 7), ("wa", "filter", 6), ("wb", "filter", 7), ("wb", "reader", 6),
        ("wc", "reader", 7),
    ]  # fmt: skip
    w = {n: v.T if trans and n in ("wa", "wc") else v for n, v in weights(model).items()}
    w["wc"] = 0.5 * w["wc"]  # as the network computes with it
    total = sum(
        math.sqrt(4 + 1 + 7) * math.sqrt((w["wa"][:, c] ** 2).sum() + w["ba"][c] ** 2 + (w["wb"][c] ** 2).sum())
        for c in range(6)
    ) + sum(
        math.sqrt(6 + 1 + 3) * math.sqrt((w["wb"][:, c] ** 2).sum() + w["bb"][c] ** 2 + (w["wc"][c] ** 2).sum())
        for c in range(7)
    )
    lasso = get_method("group_lasso", strength=1.0)
    lasso.attach(module, analysis)
    assert value(lasso) == pytest.approx(total, rel=1e-5)
    soft = get_method("soft_filter", ratio=0.5)
    soft.attach(module, analysis)
    soft.after_epoch(0, 1)
    after = weights(write_back(module, model))
    first = after["wa"].T if trans else after["wa"]
    gone = np.flatnonzero((first == 0).all(0))
    assert gone.tolist() == sorted(np.argsort((w["wa"] ** 2).sum(0))[:3].tolist())
    assert (after["ba"][gone] == 0).all()
    assert ((after["wb"] == 0).all(0)).sum() == 3


@every_method
def test_a_module_of_another_model_is_refused(name: str) -> None:
    analysis = analyze(network())
    with pytest.raises(OnnxPruneError, match="not made by to_torch"):
        get_method(name).attach(nn.Conv2d(1, 1, 1), analysis)
    with pytest.raises(OnnxPruneError, match="do not belong together"):
        get_method(name).attach(to_torch(load(MODELS / "digits_cnn.onnx")), analysis)
    with pytest.raises(OnnxPruneError, match="do not belong together"):
        get_method(name).attach(to_torch(pruned_of(network())), analysis)


def pruned_of(model: Model) -> Model:
    """The same graph with fewer channels."""
    return apply(model, Plan("", {GROUPS["A"]: Removal(8, (0,))}))


# --------------------------------------------------------------------------------------------------------- penalties


def loop_lasso(model: Model, readers: bool) -> float:
    """sum_c sqrt(n_c) ||w_c||, channel by channel."""
    w = weights(model)
    total = 0.0
    for key in GROUPS:
        for c in range(CHANNELS[key]):
            parts = [w[n][c] for n in (*FILTERS[key], *OWN[key])] + (READERS[key](w, c) if readers else [])
            total += math.sqrt(sum(np.size(p) for p in parts)) * math.sqrt(sum(float((p**2).sum()) for p in parts))
    return total


@pytest.mark.parametrize("readers", [True, False])
def test_group_lasso_equals_a_loop_over_channels(readers: bool) -> None:
    model = network()
    method, _, _ = attached("group_lasso", model, strength=0.01, readers=readers)
    assert value(method) == pytest.approx(0.01 * loop_lasso(model, readers), rel=1e-5)


def test_slimming_equals_a_loop_over_channels() -> None:
    model = network()
    w = weights(model)
    total = sum(abs(float(w[n][c])) for k in GROUPS for n in GAMMAS[k] for c in range(CHANNELS[k]))
    method, _, _ = attached("slimming", model, strength=0.3)
    assert value(method) == pytest.approx(0.3 * total, rel=1e-6)


@pytest.mark.parametrize("t", [1.0, 1.2, 1.6])
def test_polarization_equals_a_loop_over_channels(t: float) -> None:
    model = network()
    w = weights(model)
    a = [abs(float(w[n][c])) for k in GROUPS for n in GAMMAS[k] for c in range(CHANNELS[k])]
    mean = sum(a) / len(a)
    method, _, _ = attached("polarization", model, strength=0.3, t=t)
    assert value(method) == pytest.approx(0.3 * (t * sum(a) - sum(abs(v - mean) for v in a)), rel=1e-5)


def test_polarization_of_numbers_worked_out_by_hand() -> None:
    model = network()
    method, module, _ = attached("polarization", model, strength=1.0, t=1.5)
    scales = [m.parameter for m in members(module, analyze(model)) if m.role == "scale"]
    with torch.no_grad():
        for p in scales:
            p.zero_()
        assert value(method) == 0
        for p in scales:  # 22 scales
            p.fill_(-2.0)
    assert value(method) == pytest.approx(1.5 * 44)  # all alike: no distance from the mean
    with torch.no_grad():
        for p in scales:
            p[::2] = 0.0
    # 11 of 0 and 11 of 2: the mean is 1, every distance 1.
    assert value(method) == pytest.approx(1.5 * 22 - 22)


def test_polarization_alone_leaves_the_papers_share_of_large_scales() -> None:
    # Zhuang et al.: the minimum over [0, a]^n has the share 1/2 - t/4 at a; here of n = 100 scales, t = 1.2.
    def regularizer(large: int) -> float:
        a = np.array([1.0] * large + [0.0] * (100 - large))
        return float(1.2 * a.sum() - np.abs(a - a.mean()).sum())

    assert min(range(101), key=regularizer) == 20


EXTRA = sorted(
    {"residual", "projection", "dense", "depthwise", "grouped_blocks", "grouped_positions", "conv_transpose", "shuffle",
     "shared_weight", "option_a", "squeeze_excite", "split_unequal", "mlp", "attention", "nhwc", "gather"} & set(BLOCKS)
)  # fmt: skip


@pytest.mark.parametrize("block", EXTRA)
@pytest.mark.parametrize("disguise", [False, True])
def test_group_lasso_equals_a_loop_over_labels_in_every_kind_of_coupling(block: str, disguise: bool) -> None:
    model = load(build(Spec((block, "conv"), seed=5, disguise=disguise)))
    analysis, module = analyze(model), to_torch(model)
    method = get_method("group_lasso", strength=1.0)
    method.attach(module, analysis)
    held = {b.initializer for b in bindings(module) if b.kind == "trained"}
    constants = weights(analysis.model)
    squares, sizes = np.zeros(analysis.count), np.zeros(analysis.count)
    for name in held:
        for axis, labels in enumerate(analysis.table.constants.get(name) or []):
            if labels is not None:
                for place, label in enumerate(labels.tolist()):
                    entries = np.take(constants[name], place, axis)
                    squares[analysis.component[label]] += float((entries**2).sum())
                    sizes[analysis.component[label]] += entries.size
    expected = float((np.sqrt(sizes[1:]) * np.sqrt(squares[1:])).sum())
    assert expected > 0
    assert value(method) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["slimming", "polarization", "group_lasso"])
def test_gradients_equal_finite_differences(name: str) -> None:
    method, module, _ = attached(name, network(3), strength=0.7)
    module.double()
    penalty = method.penalty()
    assert penalty is not None
    penalty.backward()
    rng = np.random.default_rng(0)
    step, checked = 1e-6, 0
    for p in module.parameters():
        for _ in range(3):
            place = int(rng.integers(p.numel()))
            flat = p.detach().view(-1)  # shares the parameter's memory
            before = float(flat[place])
            flat[place] = before + step
            up = value(method)
            flat[place] = before - step
            down = value(method)
            flat[place] = before
            given = 0.0 if p.grad is None else float(p.grad.view(-1)[place])
            # Central differences in float64: an error of step^2, and of the penalty's rounding over the step.
            assert given == pytest.approx((up - down) / (2 * step), abs=1e-6)
            checked += given != 0
    assert checked >= 9


def test_group_lasso_of_a_dead_channel_has_the_subgradient_zero() -> None:
    model = network()
    method, module, analysis = attached("group_lasso", model)
    with torch.no_grad():
        for m in members(module, analysis):
            m.parameter.zero_()
    penalty = method.penalty()
    assert penalty is not None
    assert penalty.item() < 1e-15
    penalty.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in module.parameters())


@pytest.mark.parametrize("name", ["slimming", "polarization", "group_lasso"])
def test_penalties_of_bfloat16_weights_are_summed_in_float32(name: str) -> None:
    method, module, _ = attached(name, network())
    whole = value(method)
    module.bfloat16()
    penalty = method.penalty()
    assert penalty is not None
    assert penalty.dtype == torch.float32
    assert float(penalty.detach()) == pytest.approx(whole, rel=2**-7)  # bfloat16 keeps 8 bits


def test_soft_filter_adds_no_penalty() -> None:
    assert attached("soft_filter", network())[0].penalty() is None


def test_scales_of_locked_channels_are_left_out() -> None:
    # The scale behind the last convolution belongs to the output, which nothing can be removed from.
    text = TEXT.replace(
        "b3 = GlobalAveragePool (b2)", "b7 = Conv (b2, w5) b3 = BatchNormalization (b7, g5, s5, m5, v5)"
    )
    text = text.replace("b4 = Flatten (b3)", "").replace("y = Gemm <transB = 1> (b4, wf, bf)", "y = Identity (b3)")
    proto = onnx.parser.parse_model(text.replace("float[N,5] y", "float[N,5,6,6] y"))
    for name, t in weights(network()).items():
        if name not in ("wf", "bf"):
            proto.graph.initializer.append(numpy_helper.from_array(t.astype(np.float32), name))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((5, 14, 1, 1), np.float32), "w5"))
    for kind in "gsmv":
        proto.graph.initializer.append(numpy_helper.from_array(np.full(5, 9.0, np.float32), f"{kind}5"))
    slimming, _, _ = attached("slimming", load(proto), strength=1.0)
    assert value(slimming) == pytest.approx(value(attached("slimming", network(), strength=1.0)[0]), rel=1e-6)
    with_readers = attached("group_lasso", load(proto), strength=1.0)[0]
    assert np.isfinite(value(with_readers))


# --------------------------------------------------------------------------------------------------- zero and grow back


def weakest(model: Model, ratio: float) -> dict[str, list[int]]:
    """Channels with the smallest norm over all filters that produce them."""
    w = weights(model)
    out = {}
    for key in GROUPS:
        norms = [sum(float((w[n][c] ** 2).sum()) for n in FILTERS[key]) for c in range(CHANNELS[key])]
        out[key] = sorted(np.argsort(norms, kind="stable")[: int(CHANNELS[key] * ratio)].tolist())
    return out


def test_soft_filter_zeroes_exactly_the_weakest_channels() -> None:
    model = network(4)
    method, module, _ = attached("soft_filter", model, ratio=0.5)
    method.after_epoch(0, 3)
    before, after = weights(model), weights(write_back(module, model))
    expected = weakest(model, 0.5)
    assert [len(v) for v in expected.values()] == [4, 3]
    for key, gone in expected.items():
        for name in (*FILTERS[key], *OWN[key]):
            assert (after[name][gone] == 0).all()
            rest = np.setdiff1d(np.arange(CHANNELS[key]), gone)
            if name != "w2":
                np.testing.assert_array_equal(after[name][rest], before[name][rest])
            assert (after[name][rest] != 0).all()
    for name in ("wf", "bf", "m0", "v0", "m3"):  # readers and statistics stay
        np.testing.assert_array_equal(after[name], before[name])


def test_a_zeroed_channel_is_zero_behind_its_normalization_so_its_removal_changes_nothing() -> None:
    model = network(5)
    method, module, _ = attached("soft_filter", model, ratio=0.5)
    method.after_epoch(0, 1)
    trained = write_back(module, model)
    made = method.plan(trained, constraints=Constraints(round_to=1))
    assert {GROUPS[k]: tuple(v) for k, v in weakest(model, 0.5).items()} == {
        name: r.removed for name, r in made.groups.items()
    }
    pruned = apply(trained, made)
    x = {"x": np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)}
    whole, small = (Session(m, threads=1).run(x)[0] for m in (trained, pruned))
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", EXTRA)
def test_removing_what_was_zeroed_changes_nothing_in_every_kind_of_coupling(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rectifiers keep a zero; a sigmoid or softplus would make a constant of it, which readers see.
    monkeypatch.setattr(Builder, "act", lambda b, x: T(b.node("Relu", x.name), x.c, x.h, x.w))
    for seed, disguise in ((0, False), (1, True)):
        model = load(build(Spec((block, "conv"), seed=seed, disguise=disguise)))
        method, module, analysis = attached("soft_filter", model, ratio=0.4)
        method.after_epoch(0, 1)
        trained = write_back(module, model)
        made = method.plan(trained, constraints=Constraints(round_to=1))
        assert made.removed == sum(int(0.4 * g.channels) for g in analysis) > 0
        x = {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)}
        whole, small = (Session(m, threads=1).run(x)[0] for m in (trained, apply(trained, made)))
        assert relative_difference(small, whole) < 1e-5


def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    data = load_data("digits:train", images=640)
    assert data.y is not None
    order = np.random.default_rng(epoch).permutation(len(data))
    for i in range(0, len(order), 64):
        part = order[i : i + 64]
        yield torch.from_numpy(data.x[part]), torch.from_numpy(data.y[part])


def train(module: nn.Module, method: Method, epochs: int, lr: float = 0.02, first: int = 0, total: int = 0) -> None:
    """A plain loop, as a user writes one."""
    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(module.parameters(), lr, momentum=0.9)
    module.train()
    for epoch in range(first, first + epochs):
        for x, y in batches(epoch):
            loss = nn.functional.cross_entropy(module(x), y)
            penalty = method.penalty()
            optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()
            optimizer.step()
        method.after_epoch(epoch, total or first + epochs)
    module.eval()


def dead(module: nn.Module, analysis: Analysis) -> Array:
    """Components all of whose filters are zero."""
    alive = np.zeros(analysis.count, bool)
    for m in members(module, analysis):
        if m.role == "filter":
            rows = m.parameter.detach().movedim(m.axis, 0).flatten(1).abs().sum(1).numpy()
            np.logical_or.at(alive, m.components, rows > 0)
    prunable = np.concatenate([g.components for g in analysis])
    return np.setdiff1d(prunable, np.flatnonzero(alive))


def test_zeroed_filters_grow_back_and_are_chosen_anew() -> None:
    model = load(MODELS / "digits_cnn.onnx")
    method, module, analysis = attached("soft_filter", model, ratio=0.3)
    method.after_epoch(0, 3)
    gone = dead(module, analysis)
    assert len(gone) == sum(int(0.3 * g.channels) for g in analysis)
    optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9)
    # Momentum from before, as in the middle of a training: the first steps after zeroing.
    for p in module.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.full_like(p, 1e-3)
    module.train()
    for x, y in batches(0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    assert len(dead(module, analysis)) == 0
    method.after_epoch(1, 3)
    assert len(dead(module, analysis)) == len(gone)


def test_progressive_shares_grow_to_the_whole_with_three_quarters_in_the_first_eighth() -> None:
    method = get_method("soft_filter", ratio=0.4, progressive=True)
    shares = [method.share(e, 80) for e in range(80)]  # type: ignore[attr-defined]
    assert all(a < b for a, b in pairwise(shares))
    assert shares[9] == pytest.approx(0.3, rel=1e-4)
    assert shares[-1] == pytest.approx(0.4, rel=1e-12)
    assert get_method("soft_filter", ratio=0.4).share(0, 80) == 0.4  # type: ignore[attr-defined]
    soft, module, analysis = attached("soft_filter", load(MODELS / "digits_cnn.onnx"), ratio=0.5, progressive=True)
    counts = []
    for epoch in (0, 7, 39):
        soft.after_epoch(epoch, 40)
        counts.append(len(dead(module, analysis)))
    assert counts[0] < counts[1] < counts[2] == sum(g.channels // 2 for g in analysis)


def test_a_group_never_loses_all_of_its_channels() -> None:
    model = network()
    method, module, analysis = attached("soft_filter", model, ratio=0.999)
    method.after_epoch(0, 1)
    assert len(dead(module, analysis)) == 8 + 6 - 2


# ------------------------------------------------------------------------------------------------------------- valley


def heaps(rng: np.random.Generator, low: int, high: int) -> Array:
    """A heap near zero and one of useful scales, as polarization leaves them."""
    return np.concatenate([np.abs(rng.normal(0, 0.004, low)), np.clip(rng.normal(0.5, 0.15, high), 0.1, None)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("low", "high"), [(30, 30), (800, 200), (100, 1900), (12, 4), (20000, 6000)])
def test_valley_lies_between_two_heaps(low: int, high: int, seed: int) -> None:
    v = np.random.default_rng(seed).permutation(heaps(np.random.default_rng(seed), low, high))
    threshold = valley(v)
    assert (v < threshold).sum() == low


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_valley_scales_with_the_values(scale: float) -> None:
    v = heaps(np.random.default_rng(0), 50, 30)
    assert valley(scale * v) == pytest.approx(scale * valley(v), rel=1e-9)


def test_valley_of_heaps_that_touch_is_where_values_are_fewest() -> None:
    rng = np.random.default_rng(1)
    v = np.exp(np.concatenate([rng.normal(-3.5, 0.45, 4000), rng.normal(0, 0.45, 2000)]))
    # Two normal densities of one width meet where their logs are equal: the middle, moved by log(4000/2000) s^2 / d.
    meet = np.exp(-1.75 + np.log(2) * 0.45**2 / 3.5)
    assert valley(v) == pytest.approx(meet, rel=0.2)


ONE_HEAP: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda r, n: np.abs(r.normal(1, 0.25, n)),
    "half normal": lambda r, n: np.abs(r.normal(0, 1, n)),
    "uniform": lambda r, n: r.uniform(0, 1, n),
    "exponential": lambda r, n: r.exponential(1, n),
    "log-normal": lambda r, n: np.exp(r.normal(0, 0.7, n)),
}


@pytest.mark.parametrize("n", [40, 400, 20000])
@pytest.mark.parametrize("kind", ONE_HEAP)
@pytest.mark.parametrize("seed", range(4))
def test_one_heap_has_no_valley(kind: str, n: int, seed: int) -> None:
    with pytest.raises(OnnxPruneError, match="no valley") as caught:
        valley(ONE_HEAP[kind](np.random.default_rng(seed), n))
    assert "--target" in str(caught.value.fix)


@pytest.mark.parametrize("v", [[], [1.0], [0.0, 0.0, 0.0], [0.7] * 20, [*[1.0] * 99, 0.0], [0.8] * 10 + [1.2] * 10])
def test_equal_scales_single_ones_and_outliers_are_no_heaps(v: list[float]) -> None:
    with pytest.raises(OnnxPruneError, match="no valley"):
        valley(np.array(v))


# ------------------------------------------------------------------------------------------------------------- plans


def small_scales(model: Model, module: nn.Module, gone: Mapping[str, Sequence[int]]) -> None:
    """Makes the scales of some channels small, as sparse training does."""
    places = {n: list(gone[k]) for k in GROUPS for n in GAMMAS[k]}
    with torch.no_grad():
        for m in members(module, analyze(model)):
            if m.role == "scale":
                m.parameter.copy_(torch.linspace(0.6, 1.4, len(m.parameter)))
                m.parameter[places[m.initializer]] *= 1e-3


GONE = {"A": (1, 4, 6), "B": (0, 5)}


@pytest.mark.parametrize("name", ["slimming", "polarization"])
def test_plans_by_scale_are_those_of_the_criterion_bn_scale(name: str) -> None:
    model = network()
    method, module, _ = attached(name, model)
    small_scales(model, module, GONE)
    method.after_epoch(0, 1)
    trained = write_back(module, model)
    ours, theirs = method.scores(trained), score(analyze(trained), "bn_scale")
    assert ours.groups.keys() == theirs.groups.keys()
    for group, values in theirs.groups.items():
        np.testing.assert_allclose(ours.groups[group], values, rtol=1e-12)
    assert ours.analysis.source is trained
    constraints = Constraints(round_to=1)
    made = method.plan(trained, Target(channels=9 / 14), constraints=constraints)
    assert made.model == trained.fingerprint != model.fingerprint
    assert {n: r.removed for n, r in made.groups.items()} == {GROUPS[k]: v for k, v in GONE.items()}
    assert made.criterion["name"] == name
    # A ratio is the paper's: of all channels together, by one threshold.
    assert method.plan(trained, ratio=5 / 14, constraints=constraints).groups == made.groups
    compile_plan(trained, made)


def test_polarization_without_a_target_cuts_in_the_valley() -> None:
    model = network()
    method, module, _ = attached("polarization", model)
    small_scales(model, module, GONE)
    method.after_epoch(0, 1)
    trained = write_back(module, model)
    made = method.plan(trained, constraints=Constraints(round_to=1))
    assert {n: r.removed for n, r in made.groups.items()} == {GROUPS[k]: v for k, v in GONE.items()}
    compile_plan(trained, made)
    # Whole blocks are rounded up: of A 5 stay, in blocks of four all 8; of B 4.
    blocks = method.plan(trained, constraints=Constraints(round_to=4))
    assert kept_counts(blocks, analyze(trained)) == {GROUPS["A"]: 8, GROUPS["B"]: 4}
    only = method.plan(trained, constraints=Constraints(round_to=1, exclude=[GROUPS["B"]]))
    assert set(only.groups) == {GROUPS["A"]}
    own = method.plan(trained, constraints=Constraints(round_to=1, overrides={GROUPS["B"]: {"channels": 3}}))
    assert kept_counts(own, analyze(trained)) == {GROUPS["A"]: 5, GROUPS["B"]: 3}
    least = method.plan(trained, constraints=Constraints(round_to=1, min_channels=6))
    assert kept_counts(least, analyze(trained)) == {GROUPS["A"]: 6, GROUPS["B"]: 6}


def test_polarization_without_a_valley_asks_for_a_target() -> None:
    model = network()
    method, _, _ = attached("polarization", model)
    method.after_epoch(0, 1)
    with pytest.raises(OnnxPruneError, match="no valley") as caught:
        method.plan(model)
    assert "--target" in str(caught.value.fix)
    assert method.plan(model, Target(macs=0.6), constraints=Constraints(round_to=1)).groups


def test_polarization_keeps_scales_within_their_bound() -> None:
    model = network()
    method, module, analysis = attached("polarization", model)
    scales = [m.parameter for m in members(module, analysis) if m.role == "scale"]
    largest = max(float(p.detach().abs().max()) for p in scales)
    with torch.no_grad():
        for p in scales:
            p[0], p[1] = 50.0, -50.0
    method.after_epoch(0, 1)
    for p in scales:
        assert p[0].item() == pytest.approx(largest)
        assert p[1].item() == pytest.approx(-largest)
    tight, module, analysis = attached("polarization", model, bound=0.5)
    tight.after_epoch(0, 1)
    assert all(m.parameter.abs().max() <= 0.5 for m in members(module, analysis) if m.role == "scale")


def test_group_lasso_ranks_by_the_coupled_norm() -> None:
    model = network(6)
    method, _, _ = attached("group_lasso", model)
    method.after_epoch(0, 1)
    w = weights(model)
    for key in GROUPS:
        values = []
        for c in range(CHANNELS[key]):
            parts = [w[n][c] for n in (*FILTERS[key], *OWN[key])] + READERS[key](w, c)
            values.append(math.sqrt(sum(float((p**2).sum()) for p in parts) / sum(np.size(p) for p in parts)))
        np.testing.assert_allclose(method.scores(model).groups[GROUPS[key]], values, rtol=1e-5)
    made = method.plan(model, ratio=0.5, constraints=Constraints(round_to=1))
    assert kept_counts(made, analyze(model)) == {GROUPS["A"]: 4, GROUPS["B"]: 3}
    with pytest.raises(OnnxPruneError, match="either a ratio or a target"):
        method.plan(model)


def test_soft_filter_takes_the_same_share_of_every_group_for_a_target() -> None:
    model = load(MODELS / "digits_cnn.onnx")
    method, _, analysis = attached("soft_filter", model, ratio=0.5)
    method.after_epoch(0, 1)
    made = method.plan(model, Target(channels=0.5), constraints=Constraints(round_to=1))
    assert all(
        abs(n / g.channels - 0.5) < 0.05 for g, n in zip(analysis, kept_counts(made, analysis).values(), strict=True)
    )


@every_method
def test_no_plan_without_training_or_for_another_model(name: str) -> None:
    model = network()
    method, _, _ = attached(name, model)
    with pytest.raises(OnnxPruneError, match="no epoch"):
        method.plan(model, Target(macs=0.5))
    method.after_epoch(0, 1)
    with pytest.raises(OnnxPruneError, match="not the one that was trained"):
        method.plan(load(MODELS / "digits_cnn.onnx"), Target(macs=0.5))


@every_method
def test_plans_and_penalties_need_a_method_that_is_attached(name: str) -> None:
    method = get_method(name)
    with pytest.raises(OnnxPruneError, match="not attached"):
        method.after_epoch(0, 1)
    if name == "soft_filter":
        assert method.penalty() is None
    else:
        with pytest.raises(OnnxPruneError, match="not attached"):
            method.penalty()


@every_method
def test_weights_that_are_not_finite_stop_the_method(name: str) -> None:
    method, module, _ = attached(name, network())
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(float("nan"))
    with pytest.raises(OnnxPruneError, match="NaN"):
        method.after_epoch(0, 1)


# ------------------------------------------------------------------------------------------------------- state, errors


def through_a_file(state: Mapping[str, Any]) -> dict[str, Any]:
    """As a checkpoint holds it: nothing but tensors and numbers is read back."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@every_method
def test_state_makes_the_same_plan_in_another_process(name: str) -> None:
    model = network(2)
    method, module, analysis = attached(name, model)
    small_scales(model, module, GONE)
    method.after_epoch(0, 2)
    trained = write_back(module, model)
    state = through_a_file(method.state_dict())
    fresh = get_method(name)  # never attached: a plan needs no module
    fresh.load_state_dict(state)
    for target in (Target(macs=0.6), Target(channels=0.7)):
        assert fresh.plan(trained, target).groups == method.plan(trained, target).groups
    resumed = get_method(name)
    resumed.attach(module, analysis)
    resumed.load_state_dict(state)
    assert resumed.state_dict().keys() == method.state_dict().keys()
    for group, values in method.state_dict()["scores"].items():
        assert torch.equal(resumed.state_dict()["scores"][group], values)
    # A state is a copy: what the method does next does not change it.
    before = {k: v.clone() for k, v in state["scores"].items()}
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0.5)
    resumed.after_epoch(1, 2)
    assert all(torch.equal(state["scores"][k], v) for k, v in before.items())
    assert any(not torch.equal(resumed.state_dict()["scores"][k], v) for k, v in before.items())


@every_method
def test_a_training_that_is_resumed_ends_like_one_that_is_not(name: str) -> None:
    model = load(MODELS / "digits_cnn.onnx")

    def one_epoch(module: nn.Module, method: Method, epoch: int) -> None:
        train(module, method, 1, first=epoch, total=2)

    straight, whole, _ = attached(name, model)
    one_epoch(whole, straight, 0)
    state = through_a_file({"module": whole.state_dict(), "method": straight.state_dict()})
    one_epoch(whole, straight, 1)
    resumed, other, _ = attached(name, model)
    other.load_state_dict(state["module"])
    resumed.load_state_dict(state["method"])
    one_epoch(other, resumed, 1)
    for group, values in straight.state_dict()["scores"].items():
        assert torch.equal(resumed.state_dict()["scores"][group], values)
    assert resumed.state_dict().get("bound") == straight.state_dict().get("bound")


@every_method
@pytest.mark.parametrize(
    "state",
    [{}, {"attention": 0}, {"attention": 0, "scores": [1.0]}, {"attention": 7, "scores": {}},
     {"attention": 0, "scores": {"w0": 3.0}}, {"attention": 0, "scores": {}, "something": 1}],
)  # fmt: skip
def test_a_state_of_something_else_is_refused(name: str, state: dict[str, Any]) -> None:
    method, _, _ = attached(name, network())
    with pytest.raises(OnnxPruneError, match="no state of"):
        method.load_state_dict(state)


@every_method
def test_a_state_of_other_groups_is_refused(name: str) -> None:
    method, _, _ = attached(name, network())
    method.after_epoch(0, 1)
    wrong = method.state_dict()
    wrong["scores"]["w0"] = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(OnnxPruneError, match="counts 3 channels where the model has 8"):
        method.load_state_dict(wrong)
    wrong["scores"] = {"w77": torch.zeros(3, dtype=torch.float64)}
    with pytest.raises(OnnxPruneError, match="unknown group"):
        method.load_state_dict(wrong)


@pytest.mark.parametrize("name", ["slimming", "polarization"])
def test_without_batchnorm_the_way_out_is_named(name: str) -> None:
    with pytest.raises(OnnxPruneError, match="needs BatchNormalization") as caught:
        attached(name, load(MODELS / "digits_cnn_folded.onnx"))
    assert "insert_batchnorm" in str(caught.value.fix)


def test_groups_without_batchnorm_stay_whole_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    text = TEXT.replace("a9 = BatchNormalization (a8, g3, s3, m3, v3)", "").replace("Relu (a9)", "Relu (a8)")
    proto = onnx.parser.parse_model(text)
    for name, t in weights(network()).items():
        if name[1:] != "3" or name == "w3":
            proto.graph.initializer.append(numpy_helper.from_array(t.astype(np.float32), name))
    model = load(proto)
    with caplog.at_level("WARNING"):
        method, _, analysis = attached("slimming", model)
    assert "1 of 2 groups have no BatchNormalization and are not pruned: w3" in caplog.text
    method.after_epoch(0, 1)
    made = method.plan(model, ratio=0.5, constraints=Constraints(round_to=1))
    assert kept_counts(made, analysis) == {"w0": 4, "w3": 6}


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("slimming", {"strength": 0}, "strength must be a number above 0"),
        ("slimming", {"strength": -1.0}, "strength"),
        ("slimming", {"strength": float("nan")}, "strength"),
        ("slimming", {"strength": "much"}, "strength"),
        ("slimming", {"strength": True}, "strength"),
        ("slimming", {"ratio": 0.5}, "no parameter 'ratio'"),
        ("slimming", {"_scores": {}}, "no parameter '_scores'"),
        ("polarization", {"t": 2.0}, r"t must be a number in \(0, 2\)"),
        ("polarization", {"t": 0.0}, "t must"),
        ("polarization", {"bound": 0.0}, "bound"),
        ("soft_filter", {"ratio": 1.0}, r"ratio must be a number in \(0, 1\)"),
        ("soft_filter", {"ratio": 0.0}, "ratio"),
        ("soft_filter", {"progressive": "yes"}, "progressive must be true or false"),
        ("group_lasso", {"strength": float("inf")}, "strength"),
        ("group_lasso", {"readers": 1}, "readers must be true or false"),
        ("slimmming", {}, "did you mean 'slimming'"),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        get_method(name, **params)
    assert re.search(words, str(caught.value))


@every_method
def test_every_method_says_what_it_is(name: str) -> None:
    cls = METHODS[name]
    assert cls.name == name
    assert cls.title
    assert any(c.isdigit() for c in cls.source)
    assert cls.__doc__
    for f in fields(cls):
        if f.init:
            assert f"{f.name}:" in cls.__doc__, f"{f.name} is not documented"
    assert get_method(name) == get_method(name)
    assert str(get_method(name)).count("=") == len(get_method(name).params)


def test_methods_keep_nothing_from_one_training_in_the_next() -> None:
    method, _, _ = attached("slimming", network())
    method.after_epoch(0, 1)
    other = load(MODELS / "digits_cnn.onnx")
    method.attach(to_torch(other), analyze(other))
    with pytest.raises(OnnxPruneError, match="no epoch"):
        method.plan(other, Target(macs=0.5))


# ----------------------------------------------------------------------------------------------------------- together


def fresh_digits() -> Model:
    """The digits network with scales that no sparse training has touched: all 1, filters of one norm."""
    model = load(MODELS / "digits_cnn.onnx").copy()
    for node in model.graph.nodes:
        if node.op == "BatchNormalization":
            node.inputs[1].values = np.ones_like(node.inputs[1].values)
    return model


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("slimming", {"strength": 5e-3}),
        ("polarization", {"strength": 5e-3}),
        ("soft_filter", {"ratio": 0.5}),
        ("group_lasso", {"strength": 1e-4}),
    ],
)
def test_train_write_back_plan_and_prune(name: str, params: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = load(MODELS / "digits_cnn.onnx")
    method, module, analysis = attached(name, model, **params)
    before = None if name == "soft_filter" else value(method)
    train(module, method, 3)
    if before is not None:
        assert value(method) < before
    trained = write_back(module, model)
    made = method.plan(trained, Target(macs=0.5))
    assert made.model == trained.fingerprint
    assert abs(share(made, analyze(trained), "macs") - 0.5) <= 0.02
    pruned = apply(trained, made)  # verifies: the pruned model computes what the masked one does
    test = load_data("digits:test")
    assert evaluate(trained, test, threads=1).top1 > 0.9
    assert evaluate(pruned, test, threads=1).images == len(test)
    assert set(kept_counts(made, analysis)) == {g.name for g in analysis}


def test_slimming_makes_scales_smaller_the_stronger_it_is() -> None:
    means = []
    for strength in (1e-6, 0.03, 0.2):
        torch.manual_seed(0)
        method, module, _ = attached("slimming", fresh_digits(), strength=strength)
        train(module, method, 2)
        means.append(float(np.mean(np.concatenate([v.numpy() for v in method.state_dict()["scores"].values()]))))
    assert means[0] > 0.9  # they start at 1
    assert means[1] < means[0] - 0.03
    assert means[2] < means[1] - 0.03


def test_inserted_batchnorm_is_trained_folded_back_and_the_plan_still_knows_the_scales(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folded = load(MODELS / "digits_cnn_folded.onnx")
    x = load_data("digits:train", images=256).x
    ready = InsertBatchnorm([{"image": x}])(folded)
    method, module, analysis = attached("slimming", ready, strength=5e-3)
    assert {g.name: g.channels for g in analysis} == {g.name: g.channels for g in analyze(folded)}
    train(module, method, 2)
    trained = FuseBatchnorm(only_inserted=True)(write_back(module, ready))
    assert not any(n.op == "BatchNormalization" for n in trained.graph.nodes)
    kept = score(analyze(write_back(module, ready)), "bn_scale")
    ours = method.scores(trained)
    for group, values in kept.groups.items():
        np.testing.assert_allclose(ours.groups[group], values, rtol=1e-12)
    made = method.plan(trained, Target(macs=0.5))
    path = tmp_path / "trained.onnx"
    save(trained, path)
    again = load(path)  # as the command that prunes reads it
    assert made.model == again.fingerprint
    assert evaluate(apply(again, made), load_data("digits:test"), threads=1).top1 > 0.5


def test_natural_valley_of_a_network_that_was_trained_sparse() -> None:
    # The demo model was trained with half of every group decaying: its scales have two heaps.
    model = load(MODELS / "digits_cnn.onnx")
    method, _, analysis = attached("polarization", model)
    method.after_epoch(0, 1)
    made = method.plan(model, constraints=Constraints(round_to=1))
    for g in analysis:
        assert len(made.groups[g.name].removed) == g.channels // 2
    test = load_data("digits:test")
    whole, pruned = (evaluate(m, test, threads=1).top1 for m in (model, apply(model, made)))
    assert whole - pruned < 0.03


def test_scores_go_into_the_planner_with_all_of_its_options() -> None:
    model = network()
    method, _, _ = attached("group_lasso", model)
    method.after_epoch(0, 1)
    scores = method.scores(model)
    assert isinstance(scores, Scores)
    from onnxprune.planning.planner import plan

    made = plan(scores, Target(params=0.6), allocator="uniform", normalize="max", constraints=Constraints(round_to=1))
    assert isinstance(made, Plan)
    assert made.criterion["normalize"] == "max"


def test_penalty_of_a_large_network_takes_few_operations() -> None:
    # No loop over channels: the number of operations depends on the parameters alone.
    def operations(width: int) -> int:
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,4,4] x) => (float[N,2,4,4] y) '
            "{ a = Conv (x, p) b = Relu (a) c = Conv (b, q) d = Relu (c) y = Conv (d, r) }"
        )
        for name, shape in {"p": (width, 3, 1, 1), "q": (width, width, 1, 1), "r": (2, width, 1, 1)}.items():
            values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(values, name))
        method, _, _ = attached("group_lasso", load(proto))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            method.penalty()
        return sum(e.count for e in profile.key_averages())

    assert operations(8) == operations(512) < 100


@pytest.mark.gpu
@every_method
def test_methods_on_cuda_agree_with_the_cpu(name: str) -> None:
    model = network(7)
    here, module, _ = attached(name, model)
    analysis, there = analyze(model), get_method(name)
    other = to_torch(model)
    there.attach(other, analysis)
    other.cuda()  # as Lightning does, after the method is attached
    for method in (here, there):
        penalty = method.penalty()
        if penalty is not None:
            penalty.backward()
    if here.penalty() is not None:
        assert value(there) == pytest.approx(value(here), rel=1e-5)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=1e-4, atol=1e-7)
    here.after_epoch(0, 1)
    there.after_epoch(0, 1)
    for group, values in here.state_dict()["scores"].items():
        scored = there.state_dict()["scores"][group]
        assert scored.device.type == "cpu"
        torch.testing.assert_close(scored, values, rtol=1e-5, atol=1e-9)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-6, atol=1e-9)
