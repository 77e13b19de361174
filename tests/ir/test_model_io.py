"""Models in and out: nothing is lost on the way, and no damaged or hostile file does more than a named error."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs.graphs import PROPERTY, SIDE, Array, Spec, build, specs

from onnxprune._utils.files.atomic_files import atomic, write_text
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.ir import protobuf_wire
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save, to_proto, to_skeleton

SPEC = Spec(("conv", "residual"), seed=11)


def tiny(**weights: Array) -> onnx.ModelProto:
    """x -> Conv(w) -> y, small enough to be cut at every byte; other initializers stand for themselves."""
    w = weights.pop("w", np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 2, 2])],
        [numpy_helper.from_array(a, n) for n, a in {"w": w, **weights}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def output(model: Model | onnx.ModelProto | Path) -> Array:
    session = Session(model, threads=1)
    shape = (2, 3, SIDE, SIDE) if not isinstance(model, onnx.ModelProto) or len(model.graph.node) > 1 else (2, 3, 2, 2)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return np.asarray(session.run({"x": x})[0])


def test_weight_that_only_a_branch_uses_survives(tmp_path: Path) -> None:
    large = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)  # large: mapped, not parsed
    branches = []
    for op in ("Add", "Sub"):
        node = helper.make_node(op, ["x", "large"], [op])
        branches.append(helper.make_graph([node], op, [], [helper.make_tensor_value_info(op, TensorProto.FLOAT, None)]))
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    graph = helper.make_graph(
        [node],
        "branches",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 64, 64]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [numpy_helper.from_array(large, "large")],
    )
    source = write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a")
    save(load(source), tmp_path / "b.onnx")
    feeds = {"x": np.zeros((2, 3, 64, 64), np.float32), "c": np.array(False)}
    (y,) = Session(onnx.load(tmp_path / "b.onnx"), threads=1).run(feeds)
    assert np.array_equal(y, np.broadcast_to(-large, y.shape))


# ------------------------------------------------------------------------------------------------ nothing is lost


def annotated() -> onnx.ModelProto:
    proto = build(SPEC)
    proto.doc_string, proto.domain, proto.model_version = "the model", "org.example", 7
    proto.producer_name, proto.producer_version = "maker", "1.2"
    proto.metadata_props.add(key="model key", value="model value")
    proto.graph.doc_string = "the graph"
    proto.graph.metadata_props.add(key="graph key", value="graph value")
    for i, node in enumerate(proto.graph.node):
        node.doc_string = f"node {i}"
        node.metadata_props.add(key="node key", value=str(i))
    for i, tensor in enumerate(proto.graph.initializer):
        tensor.doc_string = f"tensor {i}"
    proto.graph.input[0].doc_string = "pixels"
    proto.graph.output[0].doc_string = "scores"
    note = proto.graph.quantization_annotation.add(tensor_name=proto.graph.node[0].input[1])
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=proto.graph.node[0].input[2])
    return proto


@pytest.mark.parametrize("through_a_file", [False, True])
def test_round_trip_keeps_annotations_and_names(through_a_file: bool, tmp_path: Path) -> None:
    proto = annotated()
    if through_a_file:
        save(load(write(proto, tmp_path / "in.onnx")), tmp_path / "out.onnx")
        again = onnx.load(tmp_path / "out.onnx")
    else:
        again = to_proto(load(annotated()))
    for name in ("doc_string", "domain", "model_version", "producer_name", "producer_version", "ir_version"):
        assert getattr(again, name) == getattr(proto, name), name
    assert list(again.metadata_props) == list(proto.metadata_props)
    assert list(again.opset_import) == list(proto.opset_import)
    assert again.graph.name == proto.graph.name
    assert again.graph.doc_string == "the graph"
    assert list(again.graph.metadata_props) == list(proto.graph.metadata_props)
    assert list(again.graph.quantization_annotation) == list(proto.graph.quantization_annotation)
    assert list(again.graph.input) == list(proto.graph.input)
    assert list(again.graph.output) == list(proto.graph.output)

    def nodes(p: onnx.ModelProto) -> list[onnx.NodeProto]:
        for node in p.graph.node:
            node.attribute.sort(key=lambda a: a.name)
        return list(p.graph.node)

    assert nodes(again) == nodes(proto)
    before = {t.name: t for t in proto.graph.initializer}
    after = {t.name: t for t in again.graph.initializer}
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].doc_string == tensor.doc_string
        assert np.array_equal(numpy_helper.to_array(after[name]), numpy_helper.to_array(tensor))


def test_with_metadata_replaces_an_entry_and_leaves_the_model_alone() -> None:
    proto = tiny()
    proto.metadata_props.add(key="a", value="1")
    model = load(proto)
    changed = to_proto(model.with_metadata({"a": "2", "b": "3"}))
    assert {p.key: p.value for p in changed.metadata_props} == {"a": "2", "b": "3"}
    assert {p.key: p.value for p in to_proto(model).metadata_props} == {"a": "1"}


def test_loading_does_not_change_the_proto() -> None:
    proto = build(Spec(("gather", "resize"), seed=3, disguise=True))
    before = proto.SerializeToString()
    load(proto)
    assert proto.SerializeToString() == before


def test_spelled_out_standard_domain_is_the_standard_domain() -> None:
    proto = tiny()
    proto.opset_import[0].domain = "ai.onnx"
    again = to_proto(load(proto))
    assert [(o.domain, o.version) for o in again.opset_import] == [("", 17)]
    assert np.array_equal(output(again), output(tiny()))


def test_initializers_may_be_inputs_as_before_ir_4() -> None:
    proto = tiny()
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 1, 1]))
    model = load(proto)
    assert [t.name for t in model.graph.inputs if t.name == "x"] == ["x"]
    assert np.array_equal(output(to_proto(model)), output(tiny()))


def test_opset_9_is_read_and_8_is_not() -> None:
    proto = tiny()
    proto.opset_import[0].version = 9
    assert load(proto).opset == 9
    proto.opset_import[0].version = 8
    with pytest.raises(OnnxPruneError, match="opset 8; 9 is the oldest"):
        load(proto)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint8", "int64", "bool", "bfloat16"])
def test_element_types_survive_inline_and_mapped(dtype: str, tmp_path: Path) -> None:
    kind = getattr(TensorProto, {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper()))
    np_dtype = helper.tensor_dtype_to_np_dtype(kind)
    for count in (3, 1000):  # below and above what is mapped
        values = (np.arange(count) % 2).astype(np_dtype)
        proto = tiny()
        proto.graph.initializer.append(numpy_helper.from_array(values, "extra"))
        proto.graph.node.append(helper.make_node("Cast", ["extra"], ["z"], to=TensorProto.FLOAT))
        proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [count]))
        model = load(write(proto, tmp_path / f"{count}.onnx"))
        out = save(model, tmp_path / f"{count}-out.onnx")
        again = {t.name: t for t in onnx.load(out).graph.initializer}["extra"]
        assert again.data_type == kind
        assert np.array_equal(numpy_helper.to_array(again).astype(np.float32), values.astype(np.float32))


def test_four_bit_weights_survive(tmp_path: Path) -> None:
    proto = tiny()
    values = np.arange(-8, 8, dtype=np.int8).repeat(40)
    proto.opset_import[0].version, proto.ir_version = 21, 10
    proto.graph.initializer.append(helper.make_tensor("extra", TensorProto.INT4, [640], values.tolist()))
    proto.graph.node.append(helper.make_node("Cast", ["extra"], ["z"], to=TensorProto.FLOAT))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [640]))
    out = save(load(write(proto, tmp_path / "in.onnx")), tmp_path / "out.onnx")
    again = {t.name: t for t in onnx.load(out).graph.initializer}["extra"]
    assert again.data_type == TensorProto.INT4
    assert np.array_equal(numpy_helper.to_array(again).astype(np.int8), values)


# --------------------------------------------------------------------------------------------------------- wire


@PROPERTY(max_examples=30)
@given(specs(half=True))
def test_wire_reads_and_writes_what_protobuf_does(tmp_path_factory: pytest.TempPathFactory, spec: Spec) -> None:
    proto = build(spec)
    path = write(proto, tmp_path_factory.mktemp("wire") / "m.onnx")
    skeleton, raw, buf = protobuf_wire.read(path)
    for i, place in raw.items():
        assert not skeleton.graph.initializer[i].raw_data
        skeleton.graph.initializer[i].raw_data = buf[place.offset : place.offset + place.length]
    assert skeleton == proto
    shell, arrays = to_skeleton(load(path))
    file = io.BytesIO()
    protobuf_wire.write(file, shell, arrays)
    assert onnx.load_from_string(file.getvalue()) == to_proto(load(path))
    assert len(file.getvalue()) <= protobuf_wire.size(shell, arrays)


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    model = load(write(tiny(w=np.ones((4, 3, 30, 30), np.float32)), tmp_path / "m.onnx"))
    weight = model.graph.tensors()["w"].values
    assert not weight.flags.owndata
    assert not weight.flags.writeable


def test_saved_file_equals_the_proto(tmp_path: Path) -> None:
    model = load(build(SPEC))
    save(model, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == to_proto(model)


# ------------------------------------------------------------------------------------------------ external data


def external(tmp_path: Path, proto: onnx.ModelProto | None = None) -> Path:
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    onnx.save_model(proto or build(SPEC), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    return path


def test_external_data_stays_external_and_runs(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    assert model.external
    assert {f.parent for f in model.data_files} == {tmp_path / "in"}
    assert all(f.is_file() and f.suffix != ".onnx" for f in model.data_files)
    out = save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").is_file()
    again = onnx.load(out, load_external_data=False)
    assert any(t.data_location == TensorProto.EXTERNAL for t in again.graph.initializer)
    expected = output(load(build(SPEC)))
    assert np.array_equal(output(out), expected)
    assert np.array_equal(output(load(out)), expected)


def test_external_data_can_come_in_and_external_can_be_asked_for(tmp_path: Path) -> None:
    inline = save(load(external(tmp_path)), tmp_path / "inline.onnx", external=False)
    assert not (tmp_path / "inline.onnx.data").exists()
    apart = save(load(inline), tmp_path / "apart.onnx", external=True)
    assert (tmp_path / "apart.onnx.data").is_file()
    assert np.array_equal(output(apart), output(inline))


def external_tensor(
    folder: Path, *, data: bytes = b"\0" * 48, dims: tuple[int, ...] = (4, 3, 1, 1), **entries: str
) -> Path:
    proto = tiny()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(data)
    return write(proto, folder / "m.onnx")


def test_external_tensor_without_length_is_the_rest_of_the_file(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32)
    path = external_tensor(tmp_path, data=b"\0" * 16 + values.tobytes(), offset="16")
    assert np.array_equal(load(path).graph.tensors()["w"].values.ravel(), values)


@pytest.mark.parametrize(
    "location", ["../w.bin", "a/../../w.bin", "/etc/passwd", "", "..\\w.bin", "C:\\w.bin", "C:w.bin", "w\0.bin", "."]
)
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(b"\0" * 48)
    with pytest.raises(OnnxPruneError, match=r"not inside the model's folder|is missing|symbolic"):
        load(external_tensor(folder, location=location))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_external_data_behind_a_symbolic_link_is_refused(what: str, tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "m"
    secret.mkdir()
    folder.mkdir()
    (secret / "w.bin").write_bytes(b"\0" * 48)
    path = external_tensor(folder, location="link" if what == "file" else "link/w.bin")
    (folder / "link").symlink_to(secret / "w.bin" if what == "file" else secret)
    with pytest.raises(OnnxPruneError, match="symbolic link"):
        load(path)


def test_model_in_a_linked_folder_may_have_external_data(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    external_tensor(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert load(tmp_path / "link" / "m.onnx").external


def test_missing_external_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match=r"no\.bin.*missing"):
        load(external_tensor(tmp_path, location="no.bin"))


def test_external_data_needs_a_path(tmp_path: Path) -> None:
    proto = onnx.load(external_tensor(tmp_path), load_external_data=False)
    with pytest.raises(OnnxPruneError, match="given without one"):
        load(proto)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "1"}, {"offset": "-4"}, {"offset": "49"}, {"length": "49"}, {"length": "44"}, {"length": "-48"},
        {"offset": "9999999999999999999999", "length": "1"}, {"length": "abc"}, {"offset": "1e1"}, {"offset": "nan"},
    ],
)  # fmt: skip
def test_external_offsets_outside_the_file_or_shape_are_refused(entries: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError):
        load(external_tensor(tmp_path, **entries))


@pytest.mark.parametrize("dims", [(2**20, 2**20, 2**10, 1), (4, 3, 1, 2), (-4, -3, 1, 1), (4, -3, 1, 1), (3, 3, 1, 1)])
@pytest.mark.parametrize("data", [b"", b"\0" * 48], ids=["empty", "48 bytes"])
def test_external_shape_that_does_not_fit_is_refused(dims: tuple[int, ...], data: bytes, tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError):
        load(external_tensor(tmp_path, dims=dims, data=data))


# ------------------------------------------------------------------------------------------- damaged and hostile


@pytest.mark.parametrize("make", [tiny, lambda: tiny(w=np.ones((40, 3, 1, 1), np.float32))], ids=["inline", "mapped"])
@pytest.mark.parametrize("by", ["protobuf", "wire"])
def test_file_cut_off_anywhere_is_a_named_error(make: Callable[[], onnx.ModelProto], by: str, tmp_path: Path) -> None:
    whole = make().SerializeToString()
    if by == "wire":
        file = io.BytesIO()
        protobuf_wire.write(file, *to_skeleton(load(make())))
        whole = file.getvalue()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole)
    load(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(OnnxPruneError):
            load(path)


@PROPERTY(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_damaged_bytes_load_or_are_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], insert: bool
) -> None:
    data = bytearray(tiny().SerializeToString())
    for place, value in changes:
        if insert:
            data.insert(place % len(data), value)
        else:
            data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(data)
    with contextlib.suppress(OnnxPruneError):
        load(path)


@PROPERTY(max_examples=100)
@given(st.binary(max_size=60))
def test_random_bytes_are_a_named_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(data)
    with pytest.raises(OnnxPruneError):
        load(path)


@pytest.mark.parametrize("dims", [(2**20,) * 4, (2**62, 2**62, 1, 1), (4, 3, 1, 2), (-4, -3, 1, 1), (-1, 3, 1, 1)])
def test_shape_that_does_not_fit_its_data_is_refused_before_memory_is_asked_for(dims: tuple[int, ...]) -> None:
    proto = tiny()
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    with pytest.raises(OnnxPruneError):
        load(proto)


def test_mapped_weight_whose_shape_does_not_fit_is_refused(tmp_path: Path) -> None:
    proto = tiny(w=np.ones((40, 3, 1, 1), np.float32))
    proto.graph.initializer[0].dims[0] = 41
    with pytest.raises(OnnxPruneError, match=r"holds 480 bytes .* needs 492"):
        load(write(proto, tmp_path / "m.onnx"))


def test_unknown_element_type_is_refused() -> None:
    proto = tiny()
    proto.graph.initializer[0].data_type = 999
    with pytest.raises(OnnxPruneError):
        load(proto)


def test_weight_that_is_an_input_without_value_is_named() -> None:
    proto = tiny()
    del proto.graph.initializer[:]
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 1, 1]))
    with pytest.raises(OnnxPruneError, match="'w' is a graph input without a value") as caught:
        load(proto)
    assert caught.value.where == "Conv 'conv'"


def test_model_the_checker_rejects_is_refused() -> None:
    proto = tiny()
    proto.graph.node[0].input[0] = "nothing"
    with pytest.raises(OnnxPruneError, match="checker rejects"):
        load(proto)


def test_model_without_a_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match="holds no graph"):
        load(write(onnx.ModelProto(ir_version=8), tmp_path / "m.onnx"))


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match="no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(OnnxPruneError, match="is a folder"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------------------ writing


def test_writer_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    real = protobuf_wire.write

    def fails(file: io.BytesIO, *rest: object) -> None:
        real(file, *rest)  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(protobuf_wire, "write", fails)
    with pytest.raises(OnnxPruneError, match="No space left"):
        save(load(build(SPEC)), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_interrupted_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as file:  # noqa: PT012
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with atomic(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_output_may_not_be_the_input(tmp_path: Path) -> None:
    path = write(build(SPEC), tmp_path / "m.onnx")
    (tmp_path / "link.onnx").symlink_to(path)
    before = path.read_bytes()
    for same in (path, tmp_path / "." / "m.onnx", tmp_path / "link.onnx"):
        with pytest.raises(OnnxPruneError, match="the output is the input"):
            save(load(path), same)
    assert path.read_bytes() == before


def test_output_in_a_missing_folder_or_on_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxPruneError, match="does not exist"):
        save(load(tiny()), tmp_path / "no" / "m.onnx")
    with pytest.raises(OnnxPruneError, match="is a folder"):
        save(load(tiny()), tmp_path)
    with pytest.raises(OnnxPruneError, match="does not exist"):
        write_text(tmp_path / "no" / "plan.json", "x")


def test_fingerprint_tells_weights_structure_and_names_apart_but_not_files(tmp_path: Path) -> None:
    one = load(build(SPEC))
    assert load(write(build(SPEC), tmp_path / "m.onnx")).fingerprint == one.fingerprint
    proto = build(SPEC)
    proto.doc_string = "said"
    assert load(proto).fingerprint == one.fingerprint
    changed = tiny(w=np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1) + 1e-3)
    assert load(changed).fingerprint != load(tiny()).fingerprint
    proto = tiny()
    proto.graph.node[0].attribute.append(helper.make_attribute("strides", [2, 2]))
    assert load(proto).fingerprint != load(tiny()).fingerprint


def test_output_whose_data_file_is_the_inputs_is_refused_and_the_data_survives(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "a.onnx", save_as_external_data=True, location="b.onnx.data", size_threshold=0)
    before = (tmp_path / "b.onnx.data").read_bytes()
    with pytest.raises(OnnxPruneError, match="is the input file"):
        save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx.data").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx.data"]
