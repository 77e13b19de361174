"""Retraining: what it reaches, what it leaves alone, what it refuses, and that a killed run goes on as if it had not
been."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, InputSpec, Preprocess, to_input
from onnxprune.ir.model import Array, Model
from onnxprune.ir.writer import to_proto
from onnxprune.training import Settings, ValidationMetrics, get_method, retrain
from onnxprune.training._callbacks import MovingAverage
from onnxprune.training._datasets import (
    Batches,
    SampleIndices,
    Samples,
    find_transforms,
    seeded,
    split,
)
from onnxprune.training._guards import known_errors
from onnxprune.training._schedules import factor, make_optimizer, make_schedule, parameter_groups
from onnxprune.training._session import steepest
from onnxprune.training.checkpoints import LAST, load_state, remove_checkpoints, save_state

MODELS = Path(__file__).parent.parent.parent / "models"
ONE = Settings(epochs=1, batch=25, lr=0.05, device="cpu", val_share=0.2)
TWO = replace(ONE, epochs=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from more, and test processes share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def original(file: str = "digits_cnn_folded.onnx") -> Model:
    return op.load(MODELS / file)


@cache
def pruned(file: str = "digits_cnn_folded.onnx") -> Model:
    """So many channels gone, and the wrong ones, that most of the accuracy is gone with them."""
    model = original(file)
    analysis = op.analyze(model)
    plan = op.plan(op.score(analysis, "random"), op.Target(macs=0.3), constraints=op.Constraints(round_to=4))
    return op.apply(model, plan, analysis=analysis)


@cache
def digits(images: int = 800) -> Data:
    return op.load_data("digits:train", images=images)


@cache
def test_digits() -> Data:
    return op.load_data("digits:test")


test_digits.__test__ = False  # type: ignore[attr-defined]


@cache
def twice() -> Any:
    """Two epochs that other tests look at."""
    return retrain(pruned(), digits(), settings=TWO)


def weights(model: Model) -> dict[str, Any]:
    return {n: t.values for n, t in model.graph.tensors().items() if hasattr(t, "values")}


def same(a: Model, b: Model) -> bool:
    mine, yours = weights(a), weights(b)
    return mine.keys() == yours.keys() and all(np.array_equal(mine[n], yours[n]) for n in mine)


def parsed(text: str, seed: int = 0, **shapes: tuple[int, ...]) -> Model:
    """A graph in ONNX's text form with random weights of these shapes."""
    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, shape in shapes.items():
        values = rng.standard_normal(shape) / math.sqrt(max(1, math.prod(shape[1:])))
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return op.load(proto)


def with_softmax(model: Model) -> Model:
    """Ends in probabilities, as Keras models do."""
    proto = to_proto(model)
    proto.graph.node.append(helper.make_node("Softmax", [proto.graph.output[0].name], ["probabilities"], axis=-1))
    old = proto.graph.output[0].type.tensor_type
    dims = [d.dim_param or d.dim_value for d in old.shape.dim]
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("probabilities", old.elem_type, dims))
    return op.load(proto)


# ------------------------------------------------------------------------------------------------ what it reaches


@pytest.mark.parametrize("file", ["digits_cnn.onnx", "digits_cnn_folded.onnx"])
def test_accuracy_comes_back(file: str) -> None:
    before = op.evaluate(pruned(file), test_digits()).top1
    assert before < 0.6
    done = twice() if file == "digits_cnn_folded.onnx" else retrain(pruned(file), digits(), settings=TWO)
    assert done.improved
    assert done.epoch > 0
    assert op.evaluate(done.model, test_digits()).top1 > max(0.8, before + 0.3)


def test_figures_are_those_of_the_file_in_onnxruntime() -> None:
    # The only differences are float32 sums in another order, and BatchNorm folded into weights.
    done = twice()
    assert [e.epoch for e in done.history] == [0, 1, 2]
    for model, figures in ((pruned(), done.before), (done.model, done.after)):
        found = op.evaluate(model, done.val)
        assert figures.top1 == pytest.approx(found.top1, abs=1.01 / len(done.val))
        assert figures.loss == pytest.approx(found.loss, rel=1e-3)


def test_graph_names_interface_and_metadata_stay(tmp_path: Path) -> None:
    before = to_proto(pruned().with_metadata({"author": "somebody"}))
    done = retrain(op.load(before), digits(), settings=ONE)
    path = op.save(done.model, tmp_path / "r.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    after = to_proto(op.load(path))
    assert [(n.op_type, n.name, list(n.input), list(n.output)) for n in after.graph.node] == [
        (n.op_type, n.name, list(n.input), list(n.output)) for n in before.graph.node
    ]
    assert {(t.name, tuple(t.dims), t.data_type) for t in after.graph.initializer} == {
        (t.name, tuple(t.dims), t.data_type) for t in before.graph.initializer
    }
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    props = {p.key: p.value for p in after.metadata_props}
    assert {p.key: p.value for p in before.metadata_props}.items() <= props.items()
    note = json.loads(props["onnxprune.retrained"])
    assert (note["epoch"], note["epochs"], note["after"]["top1"]) == (1, 1, done.after.top1)


def test_every_weight_moves_and_the_given_model_does_not() -> None:
    before = {n: v.copy() for n, v in weights(pruned()).items()}
    done = twice()
    after = weights(done.model)
    assert set(done.trained) == {n for n, v in before.items() if v.dtype == np.float32 and v.size > 1}
    assert not [n for n in done.trained if np.array_equal(before[n], after[n])]
    assert all(np.array_equal(v, weights(pruned())[n]) for n, v in before.items())


def test_frozen_weights_stay() -> None:
    model = pruned()
    names = sorted(n for n, v in weights(model).items() if v.ndim == 4)[:2]
    done = retrain(
        model, digits(), settings=Settings(epochs=1, insert_batchnorm=False, freeze=tuple(names), keep="last")
    )
    before, after = weights(model), weights(done.model)
    assert set(names) <= set(done.frozen)
    assert {n for n in before if np.array_equal(before[n], after[n]) and before[n].dtype.kind == "f"} == set(names)
    with pytest.raises(OnnxPruneError, match="no weight is named like 'nothing"):
        retrain(model, digits(), settings=Settings(epochs=1, freeze=("nothing*",)))


def test_batchnorm_that_the_file_has_trains_with_its_statistics() -> None:
    model = pruned("digits_cnn.onnx")
    done = retrain(model, digits(200), settings=ONE)
    before, after = weights(model), weights(done.model)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert {n.rpartition(".")[2] for n in changed} >= {"running_mean", "running_var", "weight", "bias"}
    assert [n.op for n in done.model.graph.nodes] == [n.op for n in model.graph.nodes]


def test_the_same_seed_gives_the_same_model_and_another_does_not() -> None:
    settings = replace(ONE, augment=("crop=1", "flip"), mixup=0.2)
    first = retrain(pruned(), digits(200), settings=settings)
    torch.rand(7)  # what others draw does not matter
    assert same(first.model, retrain(pruned(), digits(200), settings=settings).model)
    assert not same(first.model, retrain(pruned(), digits(200), settings=replace(settings, seed=1)).model)


def test_random_generators_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    retrain(pruned(), digits(200), settings=replace(ONE, augment=("flip",)))
    numbers = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(numbers[0], torch.rand(3))
    assert np.array_equal(numbers[1], np.random.rand(3))


def test_threads_are_those_asked_for_and_given_back() -> None:
    seen: list[int] = []
    torch.set_num_threads(2)
    retrain(pruned(), digits(100), settings=Settings(epochs=1, batch=50, threads=1, device="cpu"),
            progress=lambda done, total: seen.append(torch.get_num_threads()))  # fmt: skip
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_nothing_is_printed_and_callbacks_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    ticks: list[tuple[int, int]] = []
    lines: list[str] = []
    retrain(
        pruned(), digits(200), settings=ONE, progress=lambda a, b: ticks.append((a, b)), notice=lines.append
    )  # fmt: skip
    assert capfd.readouterr() == ("", "")
    assert ticks == [(i + 1, 7) for i in range(7)]  # 160 samples in batches of 25
    assert "160 samples and 40 to validate, batch 25" in lines[0]
    assert "on the CPU" in lines[0]


def test_logs_are_written(tmp_path: Path) -> None:
    done = retrain(pruned(), digits(200), settings=ONE, folder=tmp_path / "run")
    assert done.logs == tmp_path / "run"
    rows = (tmp_path / "run/csv/version_0/metrics.csv").read_text().splitlines()
    assert {"epoch", "step", "lr", "train_loss_epoch", "val_top1", "val_loss"} <= set(rows[0].split(","))
    assert list((tmp_path / "run/tensorboard/version_0").glob("events*"))
    apart = replace(ONE, log_dir=str(tmp_path / "logs"))
    retrain(pruned(), digits(200), settings=apart, folder=tmp_path / "other")
    assert (tmp_path / "logs/csv/version_0/metrics.csv").exists()
    assert not (tmp_path / "other/csv").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adamw", "lr": 0.01},
        {"schedule": "onecycle", "clip": 1.0},
        {"schedule": "step", "warmup": 0.2, "label_smoothing": 0.1},
        {"schedule": "constant", "nesterov": False, "momentum": 0.0, "lr": 0.05},
        {"mixup": 0.1, "augment": ("crop=1",)},
        {"precision": "bf16"},
        {"ema": 0.9},
        {"insert_batchnorm": False, "lr": 0.02},
        {"lr": "auto"},
    ],
    ids=lambda change: next(iter(change.items())),
)
def test_every_way_of_training_helps(change: dict[str, Any]) -> None:
    done = retrain(pruned(), digits(300), settings=replace(TWO, **change))
    assert done.improved
    assert done.after.loss < 0.75 * done.before.loss
    # Half precision rounds what the validation sees, not what the file computes.
    close = 0.02 if "precision" in change else 1e-3
    assert done.after.loss == pytest.approx(op.evaluate(done.model, done.val).loss, rel=close)
    if change.get("lr") == "auto":
        assert 1e-5 < done.lr < 1


# -------------------------------------------------------------------------------------------------- kinds of models


def test_softmax_at_the_end_stays_and_the_logits_are_trained() -> None:
    plain, ended = twice(), retrain(with_softmax(pruned()), digits(), settings=TWO)
    assert ended.model.graph.nodes[-1].op == "Softmax"
    assert ended.model.graph.outputs[0].name == "probabilities"
    assert ended.history[2].train_loss == pytest.approx(plain.history[2].train_loss, rel=1e-5)
    found = op.evaluate(ended.model, ended.val)
    assert found.loss == pytest.approx(ended.after.loss, rel=1e-3)
    assert found.top1 == pytest.approx(ended.after.top1, abs=1.01 / len(ended.val))


KERAS = """agraph (float[N,8,8,1] image) => (float[N,10] y) {
  a = Transpose <perm: ints = [0, 3, 1, 2]> (image) b = Conv <pads: ints = [1, 1, 1, 1]> (a, w0, b0) c = Relu (b)
  d = Conv <strides: ints = [2, 2]> (c, w1, b1) e = Relu (d) f = Flatten (e) g = MatMul (f, w2) h = Add (g, b2)
  y = Softmax <axis: int = -1> (h) }"""


def test_inputs_with_channels_last_as_from_keras() -> None:
    model = parsed(
        KERAS, w0=(16, 1, 3, 3), b0=(16,), w1=(24, 16, 2, 2), b1=(24,), w2=(384, 10), b2=(10,)
    )  # fmt: skip
    floats = Data(digits().x.transpose(0, 2, 3, 1), digits().y, "floats")
    pixels = Data((floats.x * 255).astype(np.uint8), digits().y, "pixels")
    settings = replace(TWO, lr=0.05, augment=("crop=1",))
    for data in (floats, pixels):
        done = retrain(model, data, settings=settings)
        assert done.improved
        assert done.after.top1 is not None
        assert done.after.top1 > 0.5
        assert done.after.loss == pytest.approx(op.evaluate(done.model, done.val).loss, rel=1e-3)
        assert set(done.trained) == {"w0", "b0", "w1", "b1", "w2", "b2"}
        assert not np.array_equal(weights(done.model)["w2"], weights(model)["w2"])


def test_a_fixed_batch_is_the_batch() -> None:
    proto = to_proto(pruned())
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 30
    lines: list[str] = []
    done = retrain(op.load(proto), digits(200), settings=ONE, notice=lines.append)
    assert "batch 30" in lines[0]
    assert done.improved
    assert done.after.top1 == pytest.approx(op.evaluate(done.model, done.val).top1, abs=1.01 / len(done.val))


MLP = """agraph (float[N,64] x) => (float[N,10] y) {
  a = Gemm <transB: int = 1> (x, w0, b0) b = Relu (a) c = MatMul (b, w1) y = Add (c, b1) }"""


def test_samples_need_not_be_images() -> None:
    model = parsed(MLP, w0=(32, 64), b0=(32,), w1=(32, 10), b1=(10,))
    data = Data(digits().x.reshape(-1, 64), digits().y, "features")
    done = retrain(model, data, settings=replace(TWO, lr=0.1, mixup=0.1))
    assert done.after.top1 is not None
    assert done.after.top1 > 0.6
    with pytest.raises(OnnxPruneError, match="crop is for images"):
        retrain(model, data, settings=replace(ONE, augment=("crop",)))


def test_normalisation_is_that_of_evaluate() -> None:
    how = Preprocess(mean=[0.3], std=[0.4])
    done = retrain(pruned(), digits(300), preprocess=how, settings=replace(ONE, augment=("flip",)))
    assert done.after.loss == pytest.approx(op.evaluate(done.model, done.val, preprocess=how).loss, rel=1e-3)


# ------------------------------------------------------------------------------------------------------- distilling


def test_the_original_teaches_without_labels() -> None:
    data = Data(digits(500).x, None, "no labels")
    done = retrain(pruned(), data, teacher=original(), settings=TWO)
    assert done.metric == "distillation"
    assert done.improved
    assert done.after.loss < 0.5 * done.before.loss
    assert op.evaluate(done.model, test_digits()).top1 > op.evaluate(pruned(), test_digits()).top1 + 0.2
    ignored = retrain(pruned(), digits(500), teacher=original(), settings=replace(TWO, unlabelled=True))
    assert ignored.metric == "distillation"
    # Only which samples are held back differs: labels make the split stratified.
    assert ignored.after.loss < 0.5 * ignored.before.loss


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_the_original_teaches_beside_labels(runtime: str) -> None:
    settings = replace(ONE, teacher_runtime=runtime, mixup=0.1, alpha=0.5)
    done = retrain(pruned(), digits(300), teacher=original(), settings=settings)
    assert done.metric == "top1"
    assert done.improved
    alone = retrain(pruned(), digits(300), settings=replace(settings, alpha=0.0))
    assert not same(done.model, alone.model)


def test_a_teacher_of_no_weight_changes_nothing() -> None:
    settings = replace(ONE, alpha=0.0)
    with_one = retrain(pruned(), digits(200), teacher=original(), settings=settings)
    assert same(with_one.model, retrain(pruned(), digits(200), settings=settings).model)


SEGMENTER = """agraph (float[N,1,8,8] image) => (float[N,3,8,8] y) {
  a = Conv <pads: ints = [1, 1, 1, 1]> (image, w0, b0) b = Relu (a)
  y = Conv <pads: ints = [1, 1, 1, 1]> (b, w1, b1) }"""


def test_maps_of_logits_are_distilled() -> None:
    shapes = {"w0": (12, 1, 3, 3), "b0": (12,), "w1": (3, 12, 3, 3), "b1": (3,)}
    teacher, student = (parsed(SEGMENTER, seed, **shapes) for seed in (0, 1))
    data = Data(digits().x, None, "images")
    done = retrain(student, data, teacher=teacher, settings=replace(TWO, lr=0.05, temperature=1.0))
    assert done.improved
    assert done.after.loss < 0.8 * done.before.loss


def test_features_of_the_teacher_are_matched() -> None:
    analysis = op.analyze(original())
    plan = op.plan(
        op.score(analysis, "random"), op.Target(macs=0.6),
        constraints=op.Constraints(round_to=4, protect=["residual"]),
    )  # fmt: skip
    small = op.apply(original(), plan, analysis=analysis)
    settings = replace(ONE, features=1.0)
    done = retrain(small, digits(300), teacher=original(), settings=settings)
    assert done.improved
    without = retrain(small, digits(300), teacher=original(), settings=replace(settings, features=0.0))
    assert done.history[1].train_loss is not None
    assert without.history[1].train_loss is not None
    assert done.history[1].train_loss > without.history[1].train_loss  # the distance is added


# ------------------------------------------------------------------------------------------- what is kept, and when


def test_the_input_is_kept_where_nothing_is_better() -> None:
    good = original()
    wrong = Data(digits(200).x, (digits(200).y + 1) % 10, "wrong labels")  # type: ignore[operator]
    done = retrain(good, wrong, val=digits(100), settings=ONE)
    assert (done.epoch, done.improved) == (0, False)
    assert done.model is good
    assert done.after == done.before
    last = retrain(good, wrong, val=digits(100), settings=replace(ONE, keep="last"))
    assert (last.epoch, last.improved) == (1, False)
    assert last.after.loss > last.before.loss
    assert last.after.loss == pytest.approx(op.evaluate(last.model, digits(100)).loss, rel=1e-3)


def test_the_best_epoch_is_kept_not_the_last() -> None:
    # A constant rate so large that the figures go up and down.
    settings = replace(ONE, epochs=4, lr=0.3, schedule="constant", insert_batchnorm=False)
    done = retrain(pruned("digits_cnn.onnx"), digits(200), settings=settings)
    best = done.history[0]
    for line in done.history[1:]:
        best = line if line.figures.better_than(best.figures) else best
    assert done.epoch == best.epoch
    assert done.after == best.figures
    assert done.after.loss == pytest.approx(op.evaluate(done.model, done.val).loss, rel=1e-2)


def test_what_is_replaced_must_be_worse() -> None:
    done = retrain(pruned(), digits(300), settings=ONE, replaces=original())
    assert done.epoch == 1  # better than the pruned model, but not than the original
    assert not done.improved
    assert done.replaced is not None
    assert done.replaced.top1 == op.evaluate(original(), done.val).top1
    again = retrain(pruned(), digits(300), settings=ONE, replaces=done.model)
    assert again.replaced is not None
    assert not again.improved  # no better than itself
    assert retrain(pruned(), digits(300), settings=ONE, replaces=pruned()).improved
    unlabelled = replace(ONE, unlabelled=True)
    assert not retrain(pruned(), digits(200), settings=unlabelled, teacher=original(), replaces=original()).improved


def test_patience_ends_a_training_that_gets_nowhere() -> None:
    settings = replace(ONE, epochs=9, lr=1e-9, patience=2, schedule="constant", insert_batchnorm=False)
    done = retrain(pruned(), digits(200), settings=settings)
    assert [e.epoch for e in done.history] == [0, 1, 2, 3]
    assert done.stopped == "no better for 2 epochs"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (ValidationMetrics(0.9, 1.0), ValidationMetrics(0.8, 0.5)),
        (ValidationMetrics(0.9, 0.4), ValidationMetrics(0.9, 0.5)),
        (ValidationMetrics(None, 0.4), ValidationMetrics(None, 0.5)),
        (ValidationMetrics(0.1, 9.0), ValidationMetrics(0.9, math.nan)),
    ],
)
def test_which_figures_are_better(better: ValidationMetrics, worse: ValidationMetrics) -> None:
    assert better.better_than(worse)
    assert not worse.better_than(better)
    assert not better.better_than(better)


def test_a_pruning_method_ends_in_a_plan() -> None:
    method = get_method("slimming", strength=1e-2)
    model = original("digits_cnn.onnx")
    lines: list[str] = []
    done = retrain(model, digits(300), settings=TWO, method=method, notice=lines.append)
    assert done.epoch == 2  # what the method has made of it counts, not the best accuracy
    plain = retrain(model, digits(300), settings=replace(TWO, keep="last"))
    scales = [n for n in weights(model) if ".bn" in n and n.endswith("weight")]
    assert scales
    assert sum(np.abs(weights(done.model)[n]).sum() for n in scales) < sum(
        np.abs(weights(plain.model)[n]).sum() for n in scales
    )
    plan = method.plan(done.model, op.Target(macs=0.5), constraints=op.Constraints(round_to=4))
    small = op.apply(done.model, plan)
    assert op.evaluate(small, test_digits()).top1 > 0.3


# --------------------------------------------------------------------------------------------------- interruptions

_poison = {"left": 0}


def poison(sample: Any) -> Any:
    """An augmentation that goes bad after a while."""
    _poison["left"] -= 1
    return sample * math.nan if _poison["left"] < 0 else sample


def test_a_loss_that_is_no_number_keeps_the_best_so_far() -> None:
    _poison["left"] = 10**9
    settings = replace(ONE, epochs=3, augment=(poison,))
    whole = retrain(pruned(), digits(200), settings=replace(settings, epochs=3))
    assert whole.stopped is None
    _poison["left"] = 25 + 7 * 25 + 30  # the trial batch, an epoch of seven batches, and a batch of the second
    done = retrain(pruned(), digits(200), settings=settings)
    assert done.stopped == "the loss became nan at epoch 2, step 2"
    assert (done.epoch, len(done.history)) == (1, 2)
    assert done.improved
    assert done.after.loss == pytest.approx(op.evaluate(done.model, done.val).loss, rel=1e-3)


def test_a_loss_that_is_no_number_at_once_is_an_error() -> None:
    _poison["left"] = 30
    with pytest.raises(OnnxPruneError, match=r"nan at epoch 1, step 1, and no epoch before was better") as err:
        retrain(pruned(), digits(200), settings=replace(TWO, augment=(poison,)))
    assert "--lr" in str(err.value)
    with pytest.raises(OnnxPruneError, match=r"the loss became (nan|inf) at epoch 1, step"):
        retrain(pruned(), digits(200), settings=replace(TWO, lr=1e30, insert_batchnorm=False))


class Killed(BaseException):
    """Ends a process in the middle of a step, as far as the files are concerned."""


_fuse = {"left": 10**9}


def fused(sample: Any) -> Any:
    _fuse["left"] -= 1
    if _fuse["left"] == 0:
        raise Killed
    return sample


@pytest.mark.parametrize(
    "change",
    [
        {"ema": 0.95, "schedule": "onecycle", "mixup": 0.2, "patience": 3},
        {"optimizer": "adamw", "lr": 0.002, "warmup": 1.0},
    ],
    ids=["ema", "adamw"],
)
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, change: dict[str, Any]) -> None:
    workers = int("optimizer" in change)  # may differ from the run that is continued
    settings = replace(ONE, epochs=3, augment=("crop=1", fused), **change)
    model, data, folder = pruned(), digits(200), tmp_path / "run"
    _fuse["left"] = 10**9
    whole = retrain(model, data, settings=settings, teacher=model, folder=tmp_path / "whole")
    _fuse["left"] = 25 + 175 + 60  # a trial batch, an epoch of seven batches, and some of the second
    with pytest.raises(Killed):
        retrain(model, data, settings=settings, teacher=model, folder=folder)
    assert len(load_state(folder / LAST)["onnxprune"]["recorder"]["history"]) == 2
    lines: list[str] = []
    resumed = retrain(
        model, data, settings=replace(settings, workers=workers), teacher=model, folder=folder, resume=True,
        notice=lines.append,
    )  # fmt: skip
    assert "resuming after epoch 1 of 3" in lines[-1]
    assert resumed.epoch == whole.epoch
    assert [e.figures for e in resumed.history] == [e.figures for e in whole.history]
    assert [(e.lr, e.train_loss) for e in resumed.history] == [(e.lr, e.train_loss) for e in whole.history]
    assert same(resumed.model, whole.model)
    # Once more: there is nothing left to train, and the last epoch is there to be asked for.
    again = retrain(model, data, settings=settings, teacher=model, folder=folder, resume=True)
    assert same(again.model, whole.model)
    last = {"teacher": model, "folder": folder, "resume": True}
    kept = retrain(model, data, settings=replace(settings, keep="last"), **last)
    fresh = retrain(model, data, settings=replace(settings, keep="last"), teacher=model)
    assert kept.epoch == 3
    assert same(kept.model, fresh.model)


def test_a_method_is_resumed_with_its_scores(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = replace(TWO, keep="last")
    method = get_method("soft_filter")
    done = retrain(pruned(), digits(200), settings=settings, method=method, folder=folder)
    again = get_method("soft_filter")
    resumed = retrain(pruned(), digits(200), settings=settings, method=again, folder=folder, resume=True)
    assert same(done.model, resumed.model)
    target = op.Target(macs=0.7)
    assert method.plan(done.model, target).digest == again.plan(resumed.model, target).digest


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model, data = pruned(), digits(200)
    retrain(model, data, settings=TWO, folder=folder)

    def refused(
        message: str, *, model: Model = model, data: Data = data, settings: Settings = TWO, **more: Any
    ) -> None:
        with pytest.raises(OnnxPruneError, match=message):
            retrain(model, data, settings=settings, folder=folder, **{"resume": True, **more})

    refused("another run .*model", model=pruned("digits_cnn.onnx"))
    refused("another run .*data, samples", data=digits(300))
    refused("another run .*data", data=Data(data.x, data.y[::-1], "turned"))  # type: ignore[index]
    refused("another run .*data", preprocess=Preprocess(mean=[0.5]))
    refused("another run .*epochs, lr", settings=replace(TWO, epochs=3, lr=0.1))
    refused("another run .*augment", settings=replace(TWO, augment=("flip",)))
    refused("another run .*teacher", teacher=original())
    refused("another run .*method", method=get_method("slimming"))
    state = load_state(folder / "last.ckpt")
    counters = state["loops"]["fit_loop"]["epoch_loop.scheduler_progress"]["total"]
    for key, value in (("ready", {"a": 1}), ("ready", -1), ("completed", True)):
        before, counters[key] = counters[key], value
        save_state(state, folder / "last.ckpt")
        refused("counters of its progress are damaged")
        counters[key] = before
    save_state({**state, "epoch": None}, folder / "last.ckpt")
    refused("counters of its progress are damaged")
    loop = state["loops"]["fit_loop"]["epoch_loop.state_dict"]
    for key, value in (("_batches_that_stepped", {}), ("more", torch.zeros(3))):
        before = dict(loop)
        loop[key] = value
        save_state(state, folder / "last.ckpt")
        refused("counters of its progress are damaged")
        loop.clear()
        loop.update(before)
    save_state({**state, "optimizer_states": [{"state": {0: None}}]}, folder / "last.ckpt")
    refused("state of its optimizer is damaged")
    run = state["onnxprune"]["run"]
    for value in (torch.zeros(0), [torch.zeros(2)], {"deep": {1: np.float32(1)}}):
        before, run["model"] = run["model"], value
        save_state(state, folder / "last.ckpt")
        refused("record of its run is damaged|not a checkpoint")
        run["model"] = before
    line = state["onnxprune"]["recorder"]["history"][0]
    for key, value in (("top1", 10**400), ("top1", 1.5), ("loss", -(10**400))):
        before, line[key] = line[key], value
        save_state(state, folder / "last.ckpt")
        refused(f"'{key}' takes a number.*, not")
        line[key] = before
    save_state(state, folder / "last.ckpt")
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:1000])
    refused("damaged one")
    save_state({"something": torch.zeros(1)}, folder / "last.ckpt")
    refused("not a valid checkpoint")
    (folder / "last.ckpt").unlink()
    refused("no checkpoint to resume from")
    assert retrain(model, data, settings=TWO, folder=folder).improved


def test_restart_throws_the_old_run_away_and_logs_stay(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = retrain(pruned(), digits(200), settings=ONE, folder=folder)
    assert sorted(p.name for p in folder.iterdir()) == ["best-1.pt", "csv", "last.ckpt", "tensorboard"]
    other = retrain(pruned(), digits(200), settings=replace(ONE, seed=3), folder=folder, restart=True)
    assert not same(first.model, other.model)
    assert sorted(p.name for p in (folder / "csv").iterdir()) == ["version_0", "version_1"]
    remove_checkpoints(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["csv", "tensorboard"]


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"onnxprune": Evil()}, folder / LAST, pickle_module=pickle)
    with pytest.raises(OnnxPruneError, match="not a checkpoint, or a damaged one"):
        retrain(pruned(), digits(200), settings=ONE, folder=folder, resume=True)


def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxprune.training.checkpoints.os.fsync", full)
    with pytest.raises(OnnxPruneError, match="No space left on device"):
        retrain(pruned(), digits(200), settings=ONE, folder=tmp_path / "run")
    assert not (tmp_path / "run" / LAST).exists()


# ------------------------------------------------------------------------------------------------------- bad input


def twisted(sample: Any) -> Any:
    return sample.double()


def uneven(sample: Any) -> Any:
    return sample[..., : int(torch.randint(4, 8, ()))]


def broken(sample: Any) -> Any:
    raise RuntimeError("enough")


def labels(values: list[int]) -> Data:
    return Data(digits(100).x, np.resize(np.array(values, np.int64), 100), "labels")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": labels([0, 1, 10, 2])}, r"the label 10 \(sample \d+\), the model 10 classes"),
        ({"data": labels([0, -1])}, r"the label -1 \(sample \d+\)"),
        ({"val": labels([12])}, r"the label 12 \(sample 0\)"),
        ({"data": Data(digits(100).x, None, "nothing")}, "has no labels, so there is nothing to learn from"),
        ({"settings": replace(ONE, unlabelled=True)}, "labels are left out"),
        ({"settings": replace(ONE, features=1.0)}, "features are matched with a teacher's"),
        ({"val": Data(digits(100).x, None, "bare")}, "validation data 'bare' has no labels"),
        ({"val": Data(digits(100).x[:0], digits(100).y[:0], "none")}, "'none' is empty"),  # type: ignore[index]
        ({"data": Data(digits(100).x[:1], digits(100).y[:1], "few")}, "leave nothing to"),  # type: ignore[index]
        ({"settings": replace(ONE, batch=500)}, "500 samples per step are more than the 80"),
        ({"settings": replace(ONE, batch=50, devices=2)}, "100 samples per step are more than the 80"),
        ({"data": Data(np.zeros((100, 1, 9, 9), np.float32), digits(100).y, "big")}, "do not fit the model's input"),
        ({"val": Data(np.zeros((100, 1, 9, 9), np.float32), digits(100).y, "big")}, "do not fit the model's input"),
        ({"settings": replace(ONE, precision="16")}, "needs CUDA"),
        ({"settings": replace(ONE, augment=("blur",))}, "unknown augmentation 'blur'"),
        ({"settings": replace(ONE, augment=("crop=x",))}, "crop takes the pixels"),
        ({"settings": replace(ONE, augment=("flip=2",))}, "flip takes no number"),
        ({"settings": replace(ONE, augment=("no_such_module:f",))}, "cannot import the augmentation"),
        ({"settings": replace(ONE, augment=(twisted,))}, "made torch.float64 of torch.float32"),
        ({"settings": replace(ONE, augment=(uneven,))}, "differ in shape"),
        ({"settings": replace(ONE, augment=(broken,))}, "broken' failed: RuntimeError: enough"),
        ({"method": "slimming", "settings": replace(ONE, ema=0.9)}, "leave out --ema"),
        ({"resume": True}, "no folder to resume from"),
    ],
)
def test_nonsense_is_one_error(arguments: dict[str, Any], message: str) -> None:
    if isinstance(arguments.get("method"), str):
        arguments = {**arguments, "method": get_method(arguments["method"])}
    with pytest.raises(OnnxPruneError, match=message):
        retrain(pruned(), **{"data": digits(100), "settings": ONE, **arguments})


def test_a_teacher_with_other_outputs_is_refused() -> None:
    shapes = {"w0": (4, 1, 3, 3), "b0": (4,), "w1": (3, 4, 3, 3), "b1": (3,)}
    with pytest.raises(OnnxPruneError, match=r"the teacher's output is \[25, 3, 8, 8\], the model's \[25, 10\]"):
        retrain(pruned(), digits(100), teacher=parsed(SEGMENTER, **shapes), settings=ONE)


FLAT = """agraph (float[N,1,H,W] image) => (float[M,10] y) <int64[2] shape = {-1, 64}> {
  a = Reshape (image, shape) y = MatMul (a, w) }"""


def test_an_image_size_that_constants_forbid_is_one_error() -> None:
    model = parsed(FLAT, w=(64, 10))
    data = Data(np.zeros((100, 1, 9, 9), np.float32), digits(100).y, "nines")
    with pytest.raises(OnnxPruneError, match=r"cannot run the model on samples \[1, 9, 9\](.|\n)*--size"):
        retrain(model, data, settings=ONE)
    assert retrain(model, digits(100), settings=ONE).improved


def test_several_inputs_and_half_precision_are_refused() -> None:
    two = parsed("agraph (float[N,4] a, float[N,4] b) => (float[N,4] y) { y = Add (a, b) }")
    with pytest.raises(OnnxPruneError, match="the model has 2 inputs"):
        retrain(two, Data(np.zeros((100, 4), np.float32), digits(100).y, "four"), settings=ONE)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> agraph (float16[N,64] x) => (float16[N,10] y) { y = MatMul (x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((64, 10), np.float16), "w"))
    data = Data(digits(100).x.reshape(-1, 64), digits(100).y, "features")
    with pytest.raises(OnnxPruneError, match=r"float16 are too coarse(.|\n)*'w'"):
        retrain(op.load(proto), data, settings=ONE)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "smaller --batch"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "smaller --batch"),
        (ValueError("Expected more than 1 value per channel when training, got [1, 4]"), "--batch 2"),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer."),
            "the same command continues",
        ),
    ],
)
def test_what_pytorch_raises_says_what_to_lower(error: Exception, wanted: str) -> None:
    with pytest.raises(OnnxPruneError, match=wanted), known_errors():
        raise error


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="a bug"), known_errors():
        raise RuntimeError("a bug")


def test_ctrl_c_stays_what_it_is() -> None:
    def as_lightning_does() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.exit(1)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), known_errors():
        as_lightning_does()
    assert signal.getsignal(signal.SIGINT) is handler


def test_one_sample_per_step_needs_no_batchnorm() -> None:
    model = parsed(
        KERAS.replace("float[N,8,8,1]", "float[N,2,2,1]"), w0=(4, 1, 3, 3), b0=(4,), w1=(4, 4, 2, 2), b1=(4,),
        w2=(4, 10), b2=(10,),
    )  # fmt: skip
    data = Data(digits(100).x[:20, :, :2, :2].transpose(0, 2, 3, 1), digits(100).y[:20], "two")  # type: ignore[index]
    settings = replace(ONE, batch=1)
    assert len(retrain(model, data, settings=replace(settings, insert_batchnorm=False)).history) == 2


def test_cuda_that_is_not_there_is_one_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    with pytest.raises(OnnxPruneError, match="finds no CUDA device"):
        retrain(pruned(), digits(100), settings=replace(ONE, device="cuda"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxprune.training as training

    for name in [n for n in sys.modules if n.startswith("onnxprune.training.") and "settings" not in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "lightning.pytorch", raising=False)
    with pytest.raises(OnnxPruneError, match=r"lightning(.|\n)*pip install 'onnxprune\[train\]'"):
        training.__getattr__("retrain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number, at least 1"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"batch": True}, "batch must be a whole number"),
        ({"workers": -1}, "workers must be"),
        ({"lr": 0.0}, "the learning rate must be a number or auto, above 0"),
        ({"lr": math.nan}, "the learning rate must be a number or auto, above 0"),
        ({"lr": "fast"}, "a number or 'auto'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'(.|\n)*adamw"),
        ({"schedule": "linear"}, "unknown schedule"),
        ({"precision": "8"}, "unknown precision"),
        ({"device": "tpu"}, "unknown device"),
        ({"keep": "all"}, "unknown keep"),
        ({"teacher_runtime": "jax"}, "unknown teacher runtime"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight decay must be at least 0"),
        ({"warmup": 10.0}, "a warm-up of 10 epochs does not fit 10 epochs"),
        ({"label_smoothing": 1.0}, "label smoothing must be"),
        ({"mixup": -0.1}, "mixup must be"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"patience": 0}, "patience must be"),
        ({"ema": 1.0}, "decay of the moving average must be"),
        ({"val_share": 0.0}, "val share must be"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"alpha": 1.1}, r"alpha must be in \[0, 1\]"),
        ({"features": -1.0}, "features must be"),
        ({"augment": "crop"}, "augment is a tuple"),
        ({"freeze": "conv1"}, "freeze is a tuple"),
    ],
)
def test_settings_are_checked_when_they_are_made(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        Settings(**change)


def test_settings_load_no_torch() -> None:
    code = "from onnxprune.training import Settings; Settings(); import sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# ------------------------------------------------------------------------------------------------------------ parts


class Parts(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.norm = nn.LayerNorm([8, 4, 4])
        self.head = nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.position = nn.Parameter(torch.ones(1, 5, 8))


def test_weight_decay_spares_norms_biases_and_scales() -> None:
    module = Parts()
    decayed, spared = parameter_groups(module, 0.1)
    names = {id(p): n for n, p in module.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"conv.weight", "head.weight", "position"}
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    optimizer = make_optimizer(module, Settings(optimizer="adamw"), 0.01)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]


def test_learning_rates_over_the_steps() -> None:
    def at(kind: str, warmup: int = 0) -> list[float]:
        return [factor(i, kind=kind, steps=8, warmup=warmup) for i in range(8)]

    assert at("constant") == [1.0] * 8
    assert at("step") == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert at("cosine") == pytest.approx([(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])
    assert at("cosine", 2) == pytest.approx([0.5, 1] + [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_cycle_rises_and_falls(optimizer: str) -> None:
    settings = Settings(schedule="onecycle", lr=0.1, optimizer=optimizer, warmup=0.5)
    made = make_optimizer(Parts(), settings, 0.1)
    schedule = make_schedule(made, settings, 20)
    rates = []
    for _ in range(20):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.1, rel=0.02)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[0] < 0.01
    assert rates[-1] < 1e-3


def test_steepest_descent_of_a_range_test() -> None:
    lrs = list(np.logspace(-6, 0, 100))
    losses = [2.0 - 1.5 / (1 + math.exp(-8 * (math.log10(lr) + 2))) for lr in lrs]  # falls fastest at 1e-2
    assert steepest(lrs, losses) == pytest.approx(1e-2, rel=0.2)
    assert steepest(lrs, [1.0] * 100) is None
    assert steepest(lrs[:5], losses[:5]) is None
    assert steepest(lrs, [*losses[:90], *[math.nan] * 10]) == pytest.approx(1e-2, rel=0.2)


def test_batches_hold_every_sample_once_and_fill_up_the_last() -> None:
    for world in (1, 3):
        ranks = [list(Batches(10, 2, rank=r, world=world, seed=4)) for r in range(world)]
        assert {len(r) for r in ranks} == {len(Batches(10, 2, world=world))}
        picks = [p for step in zip(*ranks, strict=True) for p in step]
        assert all(len(p.indices) == 2 for p in picks)
        flat = np.concatenate([p.indices for p in picks])
        assert sorted(flat[:10].tolist()) == list(range(10))
        assert np.array_equal(flat[10:], flat[: len(flat) - 10])
        assert sum(p.real for p in picks) == 10
        assert len({p.seed for p in picks}) == len(picks)
    sampler = Batches(10, 2, seed=4)
    first = [p.indices.tolist() for p in sampler]
    sampler.set_epoch(1)
    assert [p.indices.tolist() for p in sampler] != first
    assert [p.indices.tolist() for p in Batches(10, 2, seed=4, epoch=1)] == [p.indices.tolist() for p in sampler]
    assert [p.indices.tolist() for p in Batches(4, 3)] == [[0, 1, 2], [3, 0, 1]]


def test_the_split_takes_the_same_share_of_every_class() -> None:
    y = np.repeat([0, 1, 2], [50, 30, 1])
    data = Data(np.arange(81, dtype=np.float32)[:, None], y, "d")
    train, val = split(data, 0.2, 7)
    assert np.bincount(val.y).tolist() == [10, 6]  # type: ignore[arg-type]
    assert sorted([*train.x[:, 0], *val.x[:, 0]]) == list(range(81))
    assert np.array_equal(split(data, 0.2, 7)[1].x, val.x)
    assert not np.array_equal(split(data, 0.2, 8)[1].x, val.x)
    bare = split(Data(data.x, None, "d"), 0.2, 7)
    assert (len(bare[0]), len(bare[1])) == (65, 16)


def test_augmentation_keeps_layout_and_depends_on_the_seed_alone() -> None:
    rng = np.random.default_rng(0)
    pixels = Data(rng.integers(1, 255, (6, 8, 10, 3), np.uint8), None, "pixels")
    into = InputSpec(["N", 3, 8, 10], np.dtype(np.float32), "nchw")
    how = Preprocess(mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2])
    plain = Samples(pixels, into, how)
    assert plain.last
    whole = SampleIndices(np.arange(6), 6, 0)
    assert np.array_equal(plain[whole].x.numpy(), to_input(pixels.x, into, how, "pixels"))
    moved = Samples(pixels, into, how, find_transforms(("crop=2", "flip"), pixels, True))
    a, b, c = (moved[SampleIndices(np.arange(6), 6, seed)].x for seed in (1, 1, 2))
    assert a.shape == (6, 3, 8, 10)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    # A crop moves the picture by at most its padding, which is black before normalisation.
    only = Samples(pixels, into, Preprocess(), find_transforms(("crop=2",), pixels, True))
    cropped = only[SampleIndices(np.arange(1), 1, 3)].x[0].numpy()
    padded = np.pad(pixels.x[0].transpose(2, 0, 1).astype(np.float32) / 255, ((0, 0), (2, 2), (2, 2)))
    places = [(i, j) for i in range(5) for j in range(5) if np.array_equal(padded[:, i : i + 8, j : j + 10], cropped)]
    assert len(places) == 1


def test_where_the_channels_are() -> None:
    def last(x: Array, shape: Sequence[int | str | None], own: str | None, layout: str = "auto") -> bool:
        into = InputSpec(shape, np.dtype(np.float32), own)
        return Samples(Data(x, None, "d"), into, Preprocess(layout=layout)).last

    floats = np.zeros((2, 8, 8, 3), np.float32)
    assert last(floats.astype(np.uint8), ["N", 3, 8, 8], "nchw")
    assert last(floats, ["N", 8, 8, 3], "nhwc")
    assert not last(floats.transpose(0, 3, 1, 2), ["N", 3, 8, 8], "nchw")
    assert last(floats, ["N", 3, 8, 8], "nchw", "nhwc")
    assert not last(floats.transpose(0, 3, 1, 2), ["N", 8, 8, 3], "nhwc", "nchw")
    assert not last(np.zeros((2, 5), np.float32), ["N", 5], None, "nhwc")


def test_seeding_is_undone_even_by_an_error() -> None:
    import random

    random.seed(1)
    torch.manual_seed(1)
    expected = random.Random(1).random(), torch.rand(1, generator=torch.Generator().manual_seed(1))
    with contextlib.suppress(ZeroDivisionError), seeded(9):
        drawn = torch.rand(1)
        raise ZeroDivisionError
    with seeded(9):
        assert torch.equal(torch.rand(1), drawn)
    assert random.random() == expected[0]
    assert torch.equal(torch.rand(1), expected[1])


def test_the_moving_average_leaves_numbers_and_masks_alone() -> None:
    average = MovingAverage(0.9)._kwargs["avg_fn"]
    assert torch.equal(average(torch.tensor([3]), torch.tensor([5]), 4), torch.tensor([5]))
    mask = torch.tensor([0.0, -math.inf])
    assert torch.equal(average(mask, mask.clone(), torch.tensor(4)), mask)
    # After four steps (1 + 4) / (10 + 4) counts, after many the decay.
    assert average(torch.tensor([0.0]), torch.tensor([1.0]), 4).item() == pytest.approx(1 - 5 / 14)
    assert average(torch.tensor([0.0]), torch.tensor([1.0]), 10**6).item() == pytest.approx(0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("change", [{}, {"precision": "16", "ema": 0.9}, {"lr": "auto", "workers": 1}])
def test_cuda_trains(change: dict[str, Any], tmp_path: Path) -> None:
    settings = replace(TWO, device="cuda", **change)
    done = retrain(pruned(), digits(), settings=settings, teacher=original(), folder=tmp_path / "run")
    assert done.improved
    assert op.evaluate(done.model, test_digits()).top1 > 0.8
    # Training may round to TF32 or half precision, the file does not.
    assert done.after.loss == pytest.approx(op.evaluate(done.model, done.val).loss, rel=0.05)
    resumed = retrain(
        pruned(), digits(), settings=settings, teacher=original(), folder=tmp_path / "run", resume=True
    )  # fmt: skip
    assert same(resumed.model, done.model)
