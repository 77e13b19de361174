"""to_torch and write_back: what the module computes, what of it trains, and how it returns."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from onnx import TensorProto, helper, numpy_helper
from random_graphs.graphs import BLOCKS, PROPERTY, Array, Spec, build, specs
from torch.optim.swa_utils import AveragedModel

import onnxprune as op
from onnxprune.execution.data import load_data
from onnxprune.execution.sessions import Session
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.torch_bridge import Binding, bindings, logits_of, to_torch, write_back
from onnxprune.verification import relative_difference

RNG = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    shape: Sequence[int | str] = ("n", 8),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> op.Model:
    """A model of one input x."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return load(onnx.shape_inference.infer_shapes(proto))


def node(kind: str, inputs: str, output: str = "y", **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), f"/net/{output.split()[0]}/{kind}", **attrs)


def run(model: op.Model, x: Array) -> list[Array]:
    return Session(model).run({model.graph.inputs[0].name: x})


def kinds(module: torch.nn.Module) -> dict[str, str]:
    return {b.initializer: b.kind for b in bindings(module)}


def digits() -> op.Model:
    from importlib import resources

    return load(str(resources.files("onnxprune.models") / "digits_cnn.onnx"))


@PROPERTY(max_examples=20)
@given(specs())
def test_module_computes_what_onnxruntime_computes_and_returns(spec: Spec) -> None:
    model = load(build(spec))
    module = to_torch(model).eval()
    feeds = random_feeds(op.analyze(model), 3)
    with torch.no_grad():
        mine = module(*(torch.from_numpy(v) for v in feeds.values())).numpy()
    assert relative_difference(mine, Session(model).run(feeds)[0]) < 1e-5
    same = write_back(module, model)
    for before, after in zip(Session(model).run(feeds), Session(same).run(feeds), strict=True):
        np.testing.assert_array_equal(before, after)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.05 * p.abs().mean() * torch.randn(p.shape, generator=torch.Generator().manual_seed(spec.seed))
        mine = module(*(torch.from_numpy(v) for v in feeds.values())).numpy()
    assert relative_difference(mine, Session(write_back(module, model)).run(feeds)[0]) < 1e-5


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_block_trains_all_its_weights(name: str) -> None:
    spec = Spec((name,), seed=3, opset=21)
    model = load(build(spec))
    module = to_torch(model)
    before = copy.deepcopy(module.state_dict())
    feeds = random_feeds(op.analyze(model), 4)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, eps=1e-30)
    (module(*(torch.from_numpy(v) for v in feeds.values())) ** 2).mean().backward()
    optimizer.step()
    after = module.state_dict()
    assert any(b.path in before and b.kind != "frozen" for b in bindings(module))
    for b in bindings(module):
        assert torch.equal(before[b.path], after[b.path]) == (b.kind == "frozen") if b.path in before else True, b


def test_dense_layer_of_keras_trains_weight_and_bias() -> None:
    model = model_of(
        [node("MatMul", "x w", "a"), node("Add", "a b")], {"w": floats(8, 3), "b": np.zeros(3, np.float32)}
    )
    module = to_torch(model)
    assert kinds(module) == {"w": "trained", "b": "trained"}
    assert {n for n, _ in module.named_parameters()} == {"w", "b"}


def test_numbers_masks_and_preprocessing_are_no_weights() -> None:
    mask = np.zeros((8, 8), np.float32)
    mask[np.triu_indices(8, 1)] = -100
    constants = {
        "mean": floats(1, 8), "std": np.full((1, 8), 2, np.float32), "w": floats(8, 8), "half": np.float32([0.5]),
        "mask": mask, "kept": np.float32([0, 1, 1, 1, 1, 0, 1, 1]), "scale": floats(8), "table": floats(10, 8),
    }  # fmt: skip
    nodes = [
        node("Sub", "x mean", "a"), node("Div", "a std", "b"), node("MatMul", "b w", "c"), node("Mul", "c half", "d"),
        node("Add", "d mask", "e"), node("Mul", "e kept", "f"), node("Mul", "f scale", "y"),
    ]  # fmt: skip
    found = kinds(to_torch(model_of(nodes, {k: v for k, v in constants.items() if k != "table"}, (8, 8))))
    assert {k for k, v in found.items() if v == "trained"} == {"w", "scale"}
    assert {k for k, v in found.items() if v == "frozen"} == {"mean", "std", "half", "mask", "kept"}


def test_an_embedding_table_trains() -> None:
    graph = helper.make_graph(
        [node("Gather", "table x")], "test", [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(floats(10, 8), "table")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = to_torch(load(onnx.shape_inference.infer_shapes(proto)))
    assert kinds(module)["table"] == "trained"
    assert module(torch.tensor([[1, 2, 3, 4, 9]])).shape == (1, 5, 8)


def test_freeze_makes_buffers() -> None:
    model = model_of(
        [node("Gemm", "x w b", "a", transB=1), node("Gemm", "a v c")],
        {"w": floats(8, 8), "b": floats(8), "v": floats(8, 3), "c": floats(3)},
    )
    module = to_torch(model, freeze=["w", "[bc]"])
    assert kinds(module) == {"w": "frozen", "b": "frozen", "v": "trained", "c": "frozen"}
    assert len(list(module.parameters())) == 1
    np.testing.assert_allclose(module(torch.ones(2, 8)).detach().numpy(), run(model, np.ones((2, 8), np.float32))[0],
                               rtol=1e-5)  # fmt: skip


def test_a_pattern_that_freezes_nothing_is_an_error() -> None:
    model = model_of([node("MatMul", "x w")], {"w": floats(8, 3)})
    with pytest.raises(op.OnnxPruneError, match="no weight is named like 'v'"):
        to_torch(model, freeze=["w", "v"])


def test_paths_are_the_names_of_the_exporters_framework() -> None:
    model = model_of(
        [node("Gemm", "x layer1.0.fc.weight layer1.0.fc.bias", "a", transB=1),
         helper.make_node("Gemm", ["a", "onnx::Gemm_7"], ["y"], "/layer1/layer1.1/head/Gemm", transB=1)],
        {"layer1.0.fc.weight": floats(8, 8), "layer1.0.fc.bias": floats(8), "onnx::Gemm_7": floats(3, 8)},
    )  # fmt: skip
    assert {n for n, _ in to_torch(model).named_parameters()} == {
        "layer1.0.fc.weight", "layer1.0.fc.bias", "layer1.1.head.weight",
    }  # fmt: skip


def test_names_that_hide_attributes_or_each_other_still_work() -> None:
    names = ["forward", "a", "a.b", "a b", "a_b", "1", "train.weight", "π"]
    last, nodes = "x", []
    for i, name in enumerate(names):
        nodes.append(helper.make_node("MatMul", [last, name], [f"t{i}"], f"n{i}"))
        last = f"t{i}"
    nodes.append(node("Identity", last))
    model = model_of(nodes, {n: floats(8, 8) for n in names})
    module = to_torch(model).eval()
    assert len(list(module.parameters())) == len(names)
    x = floats(2, 8)
    with torch.no_grad():
        assert relative_difference(module(torch.from_numpy(x)).numpy(), run(model, x)[0]) < 1e-5


def test_a_weight_used_twice_is_one_parameter_and_returns_once() -> None:
    w = floats(128, 128)
    model = model_of([node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b w")], {"w": w}, ("n", 128))
    module = to_torch(model)
    assert len(list(module.parameters())) == 1
    with torch.no_grad():
        next(iter(module.parameters())).mul_(2)
    back = write_back(module, model)
    x = floats(3, 128)
    np.testing.assert_allclose(run(back, x)[0], 4 * run(model, x)[0], rtol=1e-5)
    assert len(to_proto(back).graph.initializer) == 1


def test_a_weight_read_in_two_forms_is_still_one_parameter() -> None:
    w = floats(128, 128)
    nodes = [node("Gemm", "x w", "a", transB=1, alpha=0.5), node("Gemm", "a w", "b"), node("MatMul", "b w")]
    model = model_of(nodes, {"w": w}, ("n", 128))
    module = to_torch(model)
    assert sum(p.numel() for p in module.parameters()) == w.size
    x = floats(3, 128)
    assert relative_difference(module(torch.from_numpy(x)).detach().numpy(), run(model, x)[0]) < 1e-5


@pytest.mark.parametrize("attrs", [{}, {"transB": 1}, {"alpha": 0.25}, {"alpha": 2.0, "beta": 0.5, "transB": 1}])
def test_gemm_returns_with_its_layout_and_factors(attrs: dict[str, Any]) -> None:
    w = floats(5, 8) if attrs.get("transB") else floats(8, 5)
    model = model_of([node("Gemm", "x w c", **attrs)], {"w": w, "c": floats(5)})
    module = to_torch(model)
    assert any(isinstance(m, torch.nn.Linear) for m in module.modules())
    with torch.no_grad():
        for p in module.parameters():
            p += torch.randn(p.shape)
    x = floats(4, 8)
    back = write_back(module, model)
    assert relative_difference(module(torch.from_numpy(x)).detach().numpy(), run(back, x)[0]) < 1e-5
    assert {t.name: t.dims for t in to_proto(back).graph.initializer} == {
        t.name: t.dims for t in to_proto(model).graph.initializer
    }


def test_batchnorm_statistics_return() -> None:
    model = digits()
    module = to_torch(model)
    x = torch.from_numpy(load_data("digits:train").x[:64])
    module.train()
    with torch.no_grad():
        module(x)
    statistics = [b for b in bindings(module) if b.kind == "statistic"]
    assert statistics
    assert len(statistics) % 2 == 0
    back = write_back(module, model)
    module.eval()
    with torch.no_grad():
        assert relative_difference(module(x).numpy(), run(back, x.numpy())[0]) < 1e-5
    assert relative_difference(run(back, x.numpy())[0], run(model, x.numpy())[0]) > 1e-3


def test_everything_but_the_weights_stays() -> None:
    model = digits().with_metadata({"who": "me"})
    module = to_torch(model)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.5)
    back = to_proto(write_back(module, model))
    before = to_proto(model)
    assert [t.name for t in back.graph.initializer] == [t.name for t in before.graph.initializer]
    for message in (before, back):
        del message.graph.initializer[:]
    assert back == before


def test_what_is_shared_by_chance_may_part() -> None:
    v = np.ones(4, np.float32)
    model = model_of([node("Gemm", "x w v", "a"), node("Mul", "a v")], {"w": floats(8, 4), "v": v})
    module = to_torch(model)
    assert len(list(module.parameters())) == 3
    with torch.no_grad():
        for p in module.parameters():
            p += torch.randn(p.shape)
    x = floats(2, 8)
    assert (
        relative_difference(module(torch.from_numpy(x)).detach().numpy(), run(write_back(module, model), x)[0]) < 1e-5
    )


def test_several_outputs_come_in_order_also_an_input_itself() -> None:
    nodes = [node("Split", "x", "a b", axis=1), node("Relu", "b", "c"), node("Identity", "x", "same")]
    model = model_of(nodes, {}, ("n", 8), ("c", "a", "same"), opset=13)
    x = floats(2, 8)
    for mine, theirs in zip(to_torch(model)(torch.from_numpy(x)), run(model, x), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_other_tensors_can_be_asked_for() -> None:
    model = model_of([node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v")],
                     {"w": floats(8, 8), "v": floats(8, 2)})  # fmt: skip
    module = to_torch(model, outputs=["b", "a"])
    b, a = module(torch.from_numpy(floats(2, 8)))
    assert torch.equal(b, a.relu())
    assert set(kinds(module)) == {"w"}
    with pytest.raises(op.OnnxPruneError, match="unknown tensor 'nothing'"):
        to_torch(model, outputs=["nothing"])


def test_a_tensor_without_a_type_can_be_asked_for_and_what_reads_it_knows_its_rank() -> None:
    model = load(build(Spec(("conv", "residual"), seed=1)))
    for n in model.graph.nodes:
        for t in n.outputs:
            if t not in model.graph.outputs:
                t.dtype = t.shape = None
    inner = next(n.inputs[0].name for n in model.graph.nodes if n.op == "GlobalAveragePool")
    last = model.graph.outputs[0].name
    feeds = random_feeds(op.analyze(model), 3)
    y, seen = to_torch(model, outputs=[last, inner]).eval()(*(torch.from_numpy(v) for v in feeds.values()))
    assert relative_difference(y.detach().numpy(), Session(model).run(feeds)[0]) < 1e-5
    assert seen.ndim == 4


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_logits_are_what_the_softmax_reads(kind: str) -> None:
    model = model_of([node("MatMul", "x w", "a"), node(kind, "a", axis=-1)], {"w": floats(8, 4)})
    logits = logits_of(model)
    assert [t.name for t in logits.graph.outputs] == ["a"]
    module = to_torch(logits)
    with torch.no_grad():
        next(iter(module.parameters())).mul_(2)
    back = write_back(module, model)
    assert [t.name for t in back.graph.outputs] == ["y"]
    x = floats(3, 8)
    expected = torch.from_numpy(2 * x @ model.graph.tensors()["w"].values)
    expected = expected.softmax(1) if kind == "Softmax" else expected.log_softmax(1)
    np.testing.assert_allclose(run(back, x)[0], expected.numpy(), rtol=1e-4, atol=1e-6)
    assert logits_of(digits()).graph.outputs[0].name == digits().graph.outputs[0].name


def test_copies_and_wrappers_write_back() -> None:
    model = digits()
    module = to_torch(model)
    module.meta["mine"] = 1
    averaged = AveragedModel(module, use_buffers=True)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(2)
    averaged.update_parameters(module)
    averaged.update_parameters(module)
    x = load_data("digits:test").x[:16]
    for wrapped in (copy.deepcopy(module), torch.nn.DataParallel(module), averaged,
                    pickle.loads(pickle.dumps(module))):  # fmt: skip
        wrapped.eval()
        back = write_back(wrapped, model)
        with torch.no_grad():
            assert relative_difference(wrapped(torch.from_numpy(x)).numpy(), run(back, x)[0]) < 1e-5


def test_half_precision_returns_in_half() -> None:
    model = load(build(Spec(("conv", "residual"), half=True)))
    module = to_torch(model).float()
    before, same = (to_proto(m).graph.initializer for m in (model, write_back(module, model)))
    assert [t.SerializeToString() for t in same] == [t.SerializeToString() for t in before]
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.25)
    trained = to_proto(write_back(module, model)).graph.initializer
    assert [t.data_type for t in trained] == [t.data_type for t in before]
    assert onnx.TensorProto.FLOAT16 in {t.data_type for t in trained}
    assert [t.SerializeToString() for t in trained] != [t.SerializeToString() for t in before]


def test_an_operator_without_converter_is_named_with_version_and_node() -> None:
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], "/net/lstm/LSTM", hidden_size=2)]
    model = model_of(nodes, {"w": floats(1, 8, 4), "r": floats(1, 8, 2)}, (3, "n", 4), opset=14)
    with pytest.raises(op.OnnxPruneError, match="LSTM version 14") as caught:
        to_torch(model)
    assert "/net/lstm/LSTM" in str(caught.value)


def test_foreign_modules_and_models_are_refused() -> None:
    with pytest.raises(op.OnnxPruneError, match="not made by to_torch"):
        bindings(torch.nn.Linear(2, 2))
    with pytest.raises(op.OnnxPruneError, match="not made by to_torch"):
        write_back(torch.nn.Linear(2, 2), digits())
    small = model_of([node("MatMul", "x w")], {"w": floats(8, 2)})
    with pytest.raises(op.OnnxPruneError, match="do not belong together"):
        write_back(to_torch(small), digits())
    wide = model_of([node("MatMul", "x w")], {"w": floats(8, 3)})
    with pytest.raises(op.OnnxPruneError, match=r"holds \[8, 2\], the model \[8, 3\]"):
        write_back(to_torch(small), wide)


def test_weights_that_are_not_finite_do_not_return() -> None:
    model = model_of([node("MatMul", "x w")], {"w": floats(8, 2)})
    module = to_torch(model)
    with torch.no_grad():
        next(iter(module.parameters()))[0, 0] = float("nan")
    with pytest.raises(op.OnnxPruneError, match="not finite") as caught:
        write_back(module, model)
    assert "'w'" in str(caught.value)


def test_the_model_is_not_changed() -> None:
    model = digits()
    before = to_proto(model).SerializeToString()
    module = to_torch(model)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    write_back(module, model)
    assert to_proto(model).SerializeToString() == before


def test_bindings_cover_all_parameters() -> None:
    module = to_torch(digits())
    bound: tuple[Binding, ...] = bindings(module)
    assert {b.path for b in bound if b.kind == "trained"} == {n for n, _ in module.named_parameters()}
    assert {b.path for b in bound if b.kind == "statistic"} <= {n for n, _ in module.named_buffers()}
