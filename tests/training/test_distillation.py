"""The teacher says the same in every runtime; losses equal their formulas; features pair by name and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from random_graphs.graphs import Spec, build
from scipy.special import log_softmax, rel_entr, softmax

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import load_data
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, apply, plan, score
from onnxprune.planning.constraints import Constraints
from onnxprune.plans import Plan
from onnxprune.training import _distillation
from onnxprune.training._distillation import (
    Teacher,
    distillation_loss,
    feature_loss,
    features_under,
    matching_features,
)

Array = npt.NDArray[np.float32]
DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
EPS = float(np.finfo(np.float32).eps)
# Float32 sums in another order, through a dozen layers.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
both = pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])


def model_of(text: str, shapes: Mapping[str, Sequence[int]], seed: int = 0) -> Model:
    """A graph written out, with random weights."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]) or 1)
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return load(proto)


BLOCK = "a = Conv (x, w0) b = Relu (a) c = Conv (b, w1) d = Relu (c) e = Conv (d, w2) f = Add (e, b) "
SHAPES = {"w0": (8, 3, 1, 1), "w1": (6, 8, 1, 1), "w2": (8, 6, 1, 1), "w3": (5, 8, 1, 1)}


def block(rest: str, batch: str = "N") -> Model:
    """A residual block whose sum is f, and what follows."""
    return model_of(f"g (float[{batch},3,4,4] x) => (float[{batch},5,4,4] y) {{ {BLOCK}{rest} }}", SHAPES)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 3, 4, 4)).astype(np.float32))


# ------------------------------------------------------------------------------------------------------- the teacher


@both
def test_teacher_gives_the_logits_of_the_model(runtime: str) -> None:
    model, x = load(DIGITS), load_data("digits", images=40).x
    teacher = Teacher(model, runtime=runtime, threads=1)
    assert teacher.runtime == runtime
    assert teacher.names == ("logits",)
    (logits,) = teacher(torch.from_numpy(x))
    assert not logits.requires_grad
    np.testing.assert_allclose(logits.numpy(), Session(model, threads=1).run({"image": x})[0], **CLOSE)


@both
def test_features_are_the_values_of_those_tensors(runtime: str) -> None:
    model = block("h = Relu (f) y = Conv (h, w3)")
    x = images(7)
    logits, h, b = Teacher(model, features=("h", "b"), runtime=runtime, threads=1)(x)
    w = {n: t.values[:, :, 0, 0] for n, t in model.graph.tensors().items() if n in SHAPES}

    def conv(name: str, v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.einsum("oi,nihw->nohw", w[name].astype(np.float64), v)

    first = np.maximum(conv("w0", x.double().numpy()), 0)
    total = np.maximum(conv("w2", np.maximum(conv("w1", first), 0)) + first, 0)
    np.testing.assert_allclose(b.numpy(), first, **CLOSE)
    np.testing.assert_allclose(h.numpy(), total, **CLOSE)
    np.testing.assert_allclose(logits.numpy(), conv("w3", total), **CLOSE)


@both
def test_a_feature_may_be_the_logits_themselves_or_asked_twice(runtime: str) -> None:
    teacher = Teacher(block("y = Conv (f, w3)"), features=("f", "y", "f"), runtime=runtime, threads=1)
    y, f, again, f2 = teacher(images(2))
    assert torch.equal(y, again)
    assert torch.equal(f, f2)


@both
def test_teacher_ending_in_softmax_gives_what_comes_before(runtime: str) -> None:
    whole = block("h = Conv (f, w3) y = Softmax <axis = 1> (h)")
    x = images(4)
    teacher = Teacher(whole, runtime=runtime, threads=1)
    assert teacher.names == ("h",)
    probabilities = Session(whole, threads=1).run({"x": x.numpy()})[0]
    np.testing.assert_allclose(torch.softmax(teacher(x)[0], 1).numpy(), probabilities, **CLOSE)
    assert teacher(x)[0].min() < 0


@both
@pytest.mark.parametrize("samples", [1, 4, 6, 9])
def test_teacher_with_a_fixed_batch_takes_any_number_of_samples(runtime: str, samples: int) -> None:
    x = images(samples)
    fixed = Teacher(block("y = Conv (f, w3)", batch="4"), features=("f",), runtime=runtime, threads=1)(x)
    free = Teacher(block("y = Conv (f, w3)"), features=("f",), runtime=runtime, threads=1)(x)
    for ours, theirs in zip(fixed, free, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), **CLOSE)


@both
def test_teacher_takes_inputs_of_another_precision(runtime: str) -> None:
    teacher = Teacher(block("y = Conv (f, w3)"), runtime=runtime, threads=1)
    x = images(3)
    assert torch.equal(teacher(x.double())[0], teacher(x)[0])


@both
def test_teacher_learns_nothing_and_changes_nothing(runtime: str) -> None:
    model = load(DIGITS)
    before = model.fingerprint
    teacher = Teacher(model, runtime=runtime, threads=1)
    x = torch.from_numpy(load_data("digits", images=20).x).requires_grad_()
    first = teacher(x)[0]
    assert not first.requires_grad
    assert torch.equal(teacher(x)[0], first)  # in evaluation mode: no statistics move
    model._fingerprint = None
    assert model.fingerprint == before


def test_auto_is_onnxruntime_on_the_cpu() -> None:
    assert Teacher(block("y = Conv (f, w3)"), threads=1).runtime == "onnxruntime"


def test_auto_takes_the_other_runtime_where_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OnnxPruneError("no such operator")

    x = images(2)
    expected = Teacher(block("y = Conv (f, w3)"), threads=1)(x)[0]
    monkeypatch.setattr(_distillation, "Session", refuse)
    teacher = Teacher(block("y = Conv (f, w3)"), threads=1)
    assert teacher.runtime == "torch"
    np.testing.assert_allclose(teacher(x)[0].numpy(), expected.numpy(), **CLOSE)
    with pytest.raises(OnnxPruneError, match="no such operator"):
        Teacher(block("y = Conv (f, w3)"), runtime="onnxruntime")
    monkeypatch.setattr(_distillation, "to_torch", refuse)
    with pytest.raises(OnnxPruneError, match="no such operator"):
        Teacher(block("y = Conv (f, w3)"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "tensorrt"}, "unknown runtime 'tensorrt'"),
        ({"features": ("nothing",)}, "unknown tensor of the teacher 'nothing'"),
        ({"features": ("x",)}, "unknown tensor of the teacher 'x'"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"device": "meta"}, "does not run on 'meta'"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(OnnxPruneError, match=words):
        Teacher(block("y = Conv (f, w3)"), **options)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(OnnxPruneError, match="torch finds no device"):
        Teacher(block("y = Conv (f, w3)"), device="cuda")


def test_a_teacher_of_two_inputs_is_refused() -> None:
    two = model_of("g (float[N,4] x, float[N,4] z) => (float[N,4] y) { y = Add (x, z) }", {})
    with pytest.raises(OnnxPruneError, match="the teacher has 2 inputs"):
        Teacher(two)


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["auto", "torch"])
def test_teacher_on_cuda_agrees_with_the_cpu(runtime: str) -> None:
    model, x = load(DIGITS), torch.from_numpy(load_data("digits", images=40).x)
    teacher = Teacher(model, runtime=runtime, device="cuda")
    assert teacher.runtime == "torch"
    (logits,) = teacher(x.cuda())
    assert logits.device.type == "cuda"
    # Tensor cores may round products to TF32: 10 bits of mantissa.
    np.testing.assert_allclose(logits.cpu().numpy(), Teacher(model)(x)[0].numpy(), rtol=1e-2, atol=1e-1)


# -------------------------------------------------------------------------------------------------------- the losses


def kl(student: npt.NDArray[np.float64], teacher: npt.NDArray[np.float64], t: float) -> float:
    """The formula, sample by sample, with scipy."""
    total = 0.0
    for s, q in zip(student, teacher, strict=True):
        total += float(rel_entr(softmax(q / t), softmax(s / t)).sum()) * t * t
    return total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_distillation_loss_is_the_kl_divergence_times_the_squared_temperature(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = 3 * rng.standard_normal((2, 6, 5))
    loss = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert loss.item() == pytest.approx(kl(student, teacher, temperature), rel=1e-12)
    assert loss.item() > 0


def test_distillation_loss_of_dense_predictions_takes_pixels_as_samples() -> None:
    rng = np.random.default_rng(1)
    student, teacher = rng.standard_normal((2, 3, 5, 4, 2))
    flat = (a.transpose(0, 2, 3, 1).reshape(-1, 5) for a in (student, teacher))
    loss = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), 2.0)
    assert loss.item() == pytest.approx(kl(*flat, 2.0), rel=1e-12)


def test_distillation_loss_is_zero_only_for_equal_distributions() -> None:
    teacher = torch.from_numpy(np.random.default_rng(2).standard_normal((4, 5)))
    assert distillation_loss(teacher.clone(), teacher, 4.0).item() == 0
    # A constant added to all classes changes no distribution.
    assert distillation_loss(teacher + 3, teacher, 4.0).item() == pytest.approx(0, abs=1e-14)
    for place in range(5):
        other = teacher.clone()
        other[0, place] += 0.01
        assert distillation_loss(other, teacher, 4.0).item() > 1e-7


def test_gradients_of_the_distillation_loss_are_the_analytic_ones_and_go_to_the_student_only() -> None:
    rng = np.random.default_rng(3)
    t = 3.0
    student, teacher = (torch.from_numpy(a).requires_grad_() for a in rng.standard_normal((2, 4, 5)))
    distillation_loss(student, teacher, t).backward()
    assert teacher.grad is None
    assert student.grad is not None
    # d/ds of T^2 KL / n is T (softmax(s / T) - softmax(q / T)) / n.
    expected = t * (softmax(student.detach() / t, 1) - softmax(teacher.detach() / t, 1)) / 4
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher.detach(), t), (student,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    # In half precision exp and the squared temperature would overflow or lose all digits.
    student, teacher = (40 * torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0))).to(dtype)
    loss = distillation_loss(student, teacher, 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(kl(student.double().numpy(), teacher.double().numpy(), 1.0), rel=100 * EPS)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(OnnxPruneError, match="temperature"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 1)])
def test_logits_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OnnxPruneError, match="the teacher's"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(shape), 1.0)
    with pytest.raises(OnnxPruneError, match="the student's logits"):
        distillation_loss(torch.zeros(3), torch.zeros(3), 1.0)


def test_feature_loss_is_the_mean_of_relative_squared_differences() -> None:
    rng = np.random.default_rng(4)
    ours = [rng.standard_normal(s) for s in ((3, 4, 2, 2), (3, 6))]
    theirs = [5 * rng.standard_normal(a.shape) + 2 for a in ours]
    expected = np.mean([((a - b) ** 2).mean() / b.var() for a, b in zip(ours, theirs, strict=True)])
    loss = feature_loss([torch.from_numpy(a) for a in ours], [torch.from_numpy(b) for b in theirs])
    assert loss.item() == pytest.approx(float(expected), rel=1e-12)


def test_feature_loss_scores_the_mean_as_one_and_the_teacher_as_zero() -> None:
    theirs = [7 + torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]
    assert feature_loss([theirs[0].mean().expand(5, 4, 3)], theirs).item() == pytest.approx(1, rel=1e-12)
    assert feature_loss(theirs, theirs).item() == 0


def test_feature_loss_of_a_constant_feature_stays_finite_and_its_gradients_are_right() -> None:
    ours = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    dead = torch.zeros(3, 4, dtype=torch.float64)
    assert feature_loss([dead], [dead]).item() == 0
    assert torch.isfinite(feature_loss([ours * 1e-160], [dead]))
    theirs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: feature_loss([s], [theirs.detach()]), (ours,))
    feature_loss([ours], [theirs]).backward()
    assert theirs.grad is None


def test_features_that_do_not_pair_are_refused() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(OnnxPruneError, match="do not pair"):
        feature_loss([], [])
    with pytest.raises(OnnxPruneError, match="do not pair"):
        feature_loss([a], [a, a])
    with pytest.raises(OnnxPruneError, match="feature 1"):
        feature_loss([a, a], [a, b])


# ---------------------------------------------------------------------------------------------------- what is matched


def test_features_are_residual_sums_or_the_activation_that_alone_reads_them() -> None:
    relu, plain = block("h = Relu (f) y = Conv (h, w3)"), block("y = Conv (f, w3)")
    assert matching_features(relu, relu) == ("h",)
    assert matching_features(plain, plain) == ("f",)
    # Read twice, the sum itself goes on: a pre-activation network.
    twice = block("h = Relu (f) i = Conv (h, w3) j = Conv (f, w3) y = Add (i, j)")
    assert matching_features(twice, twice) == ("f",)  # y is an output: the logits, matched as such


def test_biases_broadcasts_and_positions_are_no_residual_outputs() -> None:
    text = """g (float[N,3,4,4] x) => (float[N,5,4,4] y) { a = Conv (x, w0) b = Add (a, bias) c = GlobalAveragePool (b)
      d = Add (b, c) e = Conv (d, w1) f = Add (e, positions) y = Conv (f, w2) }"""
    shapes = {
        "w0": (8, 3, 1, 1), "bias": (1, 8, 1, 1), "w1": (8, 8, 1, 1), "positions": (1, 8, 4, 4), "w2": (5, 8, 1, 1)
    }  # fmt: skip
    model = model_of(text, shapes)
    assert matching_features(model, model) == ()


def test_pruned_streams_do_not_match_and_protected_ones_do() -> None:
    model = load(DIGITS)
    groups = analyze(model)
    scores = score(groups, "l2")
    whole = matching_features(model, model)
    # Of the four sums of the network: two residual blocks, one separable block with a shortcut.
    assert len(whole) == 3
    kept = apply(model, plan(scores, ratio=0.5, constraints=Constraints(protect=["residual"])))
    assert matching_features(kept, model) == whole
    pruned = apply(model, plan(scores, ratio=0.5))
    assert matching_features(pruned, model) == ()


@pytest.mark.parametrize("blocks", [("residual", "mlp"), ("projection", "attention", "option_a")])
def test_teacher_and_pruned_student_give_the_matched_features(blocks: tuple[str, ...]) -> None:
    model = load(build(Spec(blocks, seed=3)))
    scores = score(analyze(model), "l1")
    try:
        student = apply(model, plan(scores, ratio=0.5, constraints=Constraints(round_to=1, protect=["residual"])))
    except OnnxPruneError as err:  # nothing else to prune would leave nothing to test
        pytest.fail(str(err))
    names = matching_features(student, model)
    assert names
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32))
    ours, theirs = (Teacher(m, features=names, runtime="onnxruntime", threads=1)(x) for m in (student, model))
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    assert feature_loss(ours[1:], theirs[1:]) > 0
    assert feature_loss(theirs[1:], theirs[1:]) == 0
    assert np.isfinite(log_softmax(theirs[0].numpy(), 1)).all()


@both
def test_under_its_plan_a_student_is_matched_in_pruned_streams_and_inside_blocks(runtime: str) -> None:
    model = load(DIGITS)
    made = plan(score(analyze(model), "l2"), ratio=0.5)
    student = apply(model, made)
    found = features_under(made, student, model)
    assert set(matching_features(model, model)) < found.keys()  # without the plan none of them matches
    assert all(axes for axes in found.values())
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32))
    names = tuple(found)
    sliced = Teacher(model, features=names, kept=found, runtime=runtime, threads=1)(x)
    whole = Teacher(model, features=names, runtime=runtime, threads=1)(x)
    ours = Teacher(student, features=names, runtime=runtime, threads=1)(x)
    assert [t.shape for t in ours] == [t.shape for t in sliced]
    analysis = analyze(model)
    for name, some, all_of_it in zip(names, sliced[1:], whole[1:], strict=True):
        mask = analysis.keep(name, 1, analysis.kept(made))
        assert mask is not None
        assert torch.equal(some, all_of_it[:, torch.from_numpy(np.flatnonzero(mask))])


def test_a_plan_that_removes_nothing_matches_whatever_is_activated() -> None:
    model = block("h = Relu (f) y = Conv (h, w3)")
    assert dict(features_under(Plan(model.fingerprint, {}), model, model)) == {"b": [], "d": [], "h": []}


def test_a_student_that_was_cut_by_another_plan_is_refused() -> None:
    model = load(DIGITS)
    scores = score(analyze(model), "l2")
    student = apply(model, plan(scores, ratio=0.25))
    with pytest.raises(OnnxPruneError, match="by another plan"):
        features_under(plan(scores, ratio=0.75), student, model)
    unsigned = student.with_metadata({"onnxprune.source": "elsewhere"})
    assert not features_under(plan(scores, ratio=0.75), unsigned, model)  # other shapes everywhere
