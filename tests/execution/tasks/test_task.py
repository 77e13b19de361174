"""Every task keeps its promises: guesses its own model, binds, and every metric of it gives a number."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from networks.task_models import MODELS, Builder, backbone, detector, recognizer
from onnx import TensorProto, helper

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Boxes, Data, load_data
from onnxprune.execution.tasks.evaluation import evaluate, metric_title
from onnxprune.execution.tasks.metrics import LOWER_IS_BETTER, SHARES, kind_of
from onnxprune.execution.tasks.task import TASKS, ModelView, bind_task, guess_task, higher_is_better
from onnxprune.ir.model import Model
from onnxprune.options.tasks import TASK_NAMES, TaskOptions, task_options

RNG = np.random.default_rng(3)
N = 12


def images(count: int = N, width: int = 32, height: int = 32) -> Any:
    return RNG.standard_normal((count, 3, height, width)).astype(np.float32)


def boxes(k: int) -> Boxes:
    low = RNG.uniform(0, 20, (k, 2))
    return Boxes(np.concatenate([low, low + 8], 1).astype(np.float32), RNG.integers(0, 3, k), np.zeros(k, np.bool_))


def data_of(task: str, *, targets: bool = True) -> Data:
    """Samples for the model of a task, with random targets."""
    x = images(height=8) if task == "recognize" else images()
    if not targets:
        return Data(x, None, "data")
    if task in ("classify", "embed"):
        return Data(x, np.arange(N) % 4, "data")
    made = {
        "detect": lambda i: boxes(2), "segment": lambda i: RNG.integers(0, 5, (32, 32)),
        "recognize": lambda i: "abc"[: i % 3 + 1], "regress": lambda i: np.float32(i),
    }[task]  # fmt: skip
    return Data(x, None, "data", [made(i) for i in range(N)])


@pytest.fixture(params=TASK_NAMES)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_registry_holds_the_declared_tasks() -> None:
    assert set(TASKS) == set(TASK_NAMES)
    assert len({t.precedence for t in TASKS.values()}) == len(TASK_NAMES)


def test_the_python_api_takes_nouns_as_well() -> None:
    nouns = ("classification", "detection", "segmentation", "recognition", "embedding", "regression")
    assert tuple(task_options(n).task for n in nouns) == TASK_NAMES
    assert task_options(TaskOptions(task="detect", alphabet="a"), "map50") == TaskOptions(
        task="detect", metric="map50", alphabet="a"
    )


def test_every_task_guesses_its_own_model(task: str) -> None:
    bound = bind_task(op.load(MODELS[task]()))
    assert bound.name == task
    assert bound.guessed
    assert bound.statement.startswith(f"task: {task} (")
    assert bound.statement.endswith("; --task overrides)")


@pytest.mark.parametrize("name", ["detect", "segment", "recognize"])
def test_outputs_whose_sizes_are_only_named_are_known_by_their_nodes(name: str) -> None:
    # Ultralytics declares [batch, Concatoutput0_dim_1, anchors] for an export with dynamic=True.
    proto = MODELS[name]()
    before = bind_task(op.load(proto))
    for x in (*proto.graph.input, *proto.graph.output):
        for i, d in enumerate(x.type.tensor_type.shape.dim):
            if x in proto.graph.output or i != 1:
                d.dim_param = f"{x.name}_{i}"
    view = ModelView(op.load(proto))
    sizes = [t.shape for t in view.outputs]
    assert any(isinstance(n, int) for shape in sizes for n in shape[1:])
    assert not any(isinstance(shape[0], int) for shape in sizes)
    after = bind_task(op.load(proto))
    assert (after.name, after.guessed) == (before.name, True)


def test_sizes_stay_as_declared_where_none_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Model) -> None:
        raise OnnxPruneError("no size")

    monkeypatch.setattr("onnxprune.execution.tasks.task.witness", fails)
    proto = MODELS["segment"]()
    for d in proto.graph.output[0].type.tensor_type.shape.dim:
        d.dim_param = "any"
    assert [t.shape for t in ModelView(op.load(proto)).outputs] == [("any",) * 4]


def test_names_and_directions_are_declared(task: str) -> None:
    bound = bind_task(op.load(MODELS[task]()), TaskOptions(task=task))
    names = [m.name for m in (*bound.metrics, *bound.distances)]
    assert tuple(dict.fromkeys(names)) == TASKS[task].metrics
    for metric in (*bound.metrics, *bound.distances):
        assert metric.higher_is_better == (metric.name not in LOWER_IS_BETTER)
        assert higher_is_better(TaskOptions(task=task, metric=metric.name)) == metric.higher_is_better
    assert {m.needs for m in bound.metrics} == {"labels"}
    assert {m.needs for m in bound.distances} == {"reference"}


def test_every_metric_gives_a_number_on_random_targets(task: str) -> None:
    model = op.load(MODELS[task]())
    found = evaluate(model, data_of(task), batch=5)
    assert found.task == task
    assert found.samples == N
    assert list(found.metrics) == [m.name for m in bind_task(model).metrics]
    for name, value in found.metrics.items():
        assert np.isfinite(value.value)
        assert value.error is None or value.error >= 0
        if name in SHARES - {"character_accuracy"}:
            assert 0 <= value.value <= 1
        assert metric_title(name) in repr(found)


def test_a_model_agrees_with_itself_without_targets(task: str) -> None:
    model = op.load(MODELS[task]())
    found = evaluate(model, data_of(task, targets=False), reference=model, batch=5)
    assert list(found.metrics) == [m.name for m in bind_task(model).distances]
    for metric in bind_task(model).distances:
        best = 1.0 if metric.higher_is_better else 0.0
        assert found.metrics[metric.name].value == pytest.approx(best, abs=1e-6), metric.name


def test_without_targets_and_reference_there_is_one_error(task: str) -> None:
    with pytest.raises(OnnxPruneError, match="has no labels") as err:
        evaluate(op.load(MODELS[task]()), data_of(task, targets=False))
    assert "--reference" in str(err.value)


def test_a_batch_does_not_change_the_values(task: str) -> None:
    model, data = op.load(MODELS[task]()), data_of(task)
    one, all_ = evaluate(model, data, batch=1), evaluate(model, data, batch=N)
    for name, value in one.metrics.items():
        assert all_.metrics[name].value == pytest.approx(value.value, abs=1e-5)


def test_a_users_metric_works_for_every_task(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_metrics")
    seen: list[Any] = []
    module.f = lambda outputs, targets: seen.append((outputs, targets)) or 0.25  # type: ignore[attr-defined]
    module.g = lambda outputs, targets, reference: float(np.abs(outputs - reference).max())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_metrics", module)
    model, data = op.load(MODELS[task]()), data_of(task)
    found = evaluate(model, data, task=TaskOptions(metric="own_metrics:f"), batch=5)
    assert found.value == 0.25
    outputs, targets = seen[0]
    assert len(outputs) == len(targets) == N
    assert kind_of(targets) == (data.kind if task not in ("classify", "embed") else "labels")
    assert evaluate(model, data, task=TaskOptions(metric="own_metrics:g"), reference=model).value == 0
    with pytest.raises(OnnxPruneError, match="compares with the outputs of the original"):
        evaluate(model, data, task=TaskOptions(metric="own_metrics:g"))


@pytest.mark.parametrize(
    ("function", "says"),
    [(lambda: 0.0, "takes no argument"), (lambda a, b, c, d: 0.0, "takes 4 arguments"),
     (lambda a, *, scale: 0.0, "takes the keyword 'scale'")],
)  # fmt: skip
def test_another_signature_is_one_error(function: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_metrics")
    module.f = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_metrics", module)
    with pytest.raises(OnnxPruneError, match=says) as err:
        evaluate(op.load(MODELS["classify"]()), data_of("classify"), task=TaskOptions(metric="own_metrics:f"))
    assert "f(outputs, targets)" in str(err.value)


def test_a_metric_of_another_task_is_refused_with_those_of_the_task() -> None:
    with pytest.raises(OnnxPruneError, match="unknown metric of the task classify 'map'"):
        evaluate(op.load(MODELS["classify"]()), data_of("classify"), task=TaskOptions(metric="map"))


def test_targets_of_another_kind_are_refused() -> None:
    with pytest.raises(OnnxPruneError, match="the targets are boxes, and the task classify takes class labels"):
        evaluate(op.load(MODELS["classify"]()), data_of("detect"), task=TaskOptions(task="classify"))


def test_boxes_of_a_class_that_the_model_does_not_have_are_refused() -> None:
    target = Boxes(np.array([[1, 1, 9, 9]], np.float32), np.array([7]), np.zeros(1, np.bool_))
    with pytest.raises(OnnxPruneError, match="boxes of the class 7, the model 3 classes"):
        evaluate(op.load(detector()), Data(images(1), None, "d", [target]))


@pytest.mark.parametrize("names", ["", "{", "[]", "7", "{" * 5000])
def test_names_in_the_metadata_that_are_none_are_ignored(names: str) -> None:
    model = op.load(detector(metadata=False)).with_metadata({"names": names})
    assert bind_task(model, TaskOptions(task="detect")).name == "detect"


def test_targets_decide_where_the_model_does_not() -> None:
    bound = bind_task(op.load(detector(metadata=False)), targets="boxes")
    assert (bound.name, bound.reason) == ("detect", "the targets are boxes")
    assert bind_task(op.load(recognizer(metadata=False)), targets="texts").name == "recognize"


def test_a_recognizer_of_several_widths() -> None:
    model = op.load(recognizer())
    narrow, wide = images(4, 32, 8), images(4, 48, 8)
    both = load_data([(v, "ab") for v in (*narrow, *wide)])
    found = evaluate(model, both, reference=model)
    assert found.samples == 8
    assert evaluate(model, both, task=TaskOptions(metric="agreement"), reference=model).value == 1


def outputs_only(*outputs: tuple[str, list[Any], int]) -> Any:
    """View of a model that only has outputs of these names, shapes and types."""
    b = Builder()
    x = b.add("ReduceMean", backbone(b))
    for name, shape, dtype in outputs:
        y = b.add("Cast", x, to=dtype)
        b.add("Identity", y, name=name)
        b.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
    graph = helper.make_graph(b.nodes, "g", [b.input], b.outputs, b.weights)
    return ModelView(op.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)))


@pytest.mark.parametrize(
    ("outputs", "task", "reason"),
    [
        ([("scores", ["n", 1000], 1)], "classify", "one output [n, 1000]"),
        ([("embedding", ["n", 512], 1)], "embed", "named embedding"),
        ([("logits", ["n", 100, 92], 1), ("pred_boxes", ["n", 100, 4], 1)], "detect", "DETR head"),
        ([("boxes", ["k", 4], 1), ("labels", ["k"], 7), ("scores", ["k"], 1)], "detect", "boxes, labels and scores"),
        ([("3076", ["k", 4], 1), ("3077", ["k"], 7), ("3078", ["k"], 1)], "detect", "boxes, labels and scores"),
        ([("o", ["n", 84, 21], 1)], "detect", "[n, 4 + 80 classes, 21 boxes]"),
        ([("o", ["n", 63, 85], 1)], "detect", "[n, 63 boxes, 5 + 80 classes]"),
        ([("o", ["n", 21, 85], 1)], "detect", "[n, 21 boxes, 5 + 80 classes]"),
        ([("a", ["n", 4], 1), ("b", ["n", 10], 1)], "regress", "no other task"),
        ([("o", ["n", "length"], 1)], "regress", "no other task"),
        ([("o", ["n", 21, 32, 32], 1)], "segment", "[n, 21 classes, height, width]"),
        ([("o", ["n", 32, 32], 7)], "segment", "classes of pixels"),
        ([("o", ["n", 3, 32, 32], 1)], "regress", "no other task"),
        ([("o", ["n", 1], 1)], "regress", "no other task"),
    ],
)
def test_guesses_from_outputs(outputs: list[Any], task: str, reason: str) -> None:
    found, why = guess_task(outputs_only(*outputs))
    assert found.name == task
    assert reason in why


def test_time_major_frames_are_found_by_the_name_of_the_batch() -> None:
    b = Builder(size=(8, "w"))
    x = b.add("ReduceMean", backbone(b), axes=[2], keepdims=0)
    frames = b.add("Transpose", x, perm=[2, 0, 1])  # [w / 2, n, 16]
    weight = b.constant(b.rng.standard_normal((16, 12)), np.float32)
    b.output(b.add("Softmax", b.add("MatMul", frames, weight), axis=2), "p", ["t", "n", 12])
    turned, straight = op.load(b.model()), op.load(recognizer("abcdefghijk"))
    x = images(6, 32, 8)
    data = Data(x, None, "d")
    for batch in (1, 4):
        found = evaluate(turned, data, task=TaskOptions(task="recognize"), reference=turned, batch=batch)
        assert found.metrics["agreement"].value == 1
        assert found.samples == 6
    assert bind_task(straight).name == "recognize"


def test_tensor_types_are_those_of_onnx() -> None:
    assert (TensorProto.FLOAT, TensorProto.INT64) == (1, 7)
