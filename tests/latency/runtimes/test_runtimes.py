"""Runtimes by name, onnxruntime's providers and refusals, the block size."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from fake_runtimes import FakeRuntime, Refusing
from onnx import parser

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Kernel, Session, kernel_block
from onnxprune.execution.timing import session_timer
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import RUNTIMES, Inputs, Runtime, RuntimeInfo, block_of, make_runtime
from onnxprune.latency.runtimes._block_probe import COUNTS, probe_block
from onnxprune.latency.runtimes._onnxruntime import OnnxRuntime, placement
from onnxprune.latency.runtimes._refusals import refusal
from onnxprune.latency.runtimes.node_names import NodeNames
from onnxprune.pipeline import analyze

pytest.importorskip("onnxruntime")
DIGITS = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
with_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="needs openvino")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))


def feeds_of(model: Model) -> Inputs:
    return random_feeds(analyze(model), 1)


# ------------------------------------------------------------------------------------------------------- the registry


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=with_openvino), "command:cat {model}"])
def test_every_runtime_keeps_the_protocol(name: str) -> None:
    runtime = make_runtime(name)
    assert isinstance(runtime, Runtime)
    info = runtime.describe()
    assert info.name == name.partition(":")[0]
    assert json.loads(json.dumps(info.as_dict()))["device"] == info.device
    assert info == make_runtime(name).describe()


def test_a_runtime_is_passed_through_and_takes_no_options() -> None:
    fake = FakeRuntime()
    assert make_runtime(fake) is fake
    with pytest.raises(OnnxPruneError, match="given by name"):
        make_runtime(fake, {"a": "1"})


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("openvion", "unknown runtime 'openvion'\n  try: did you mean 'openvino'"),
        (":cuda", "cannot read the runtime"),
        ("TensorRT", "onnxruntime:tensorrt, the provider"),
    ],
)
def test_an_unknown_runtime_names_the_nearest(spec: str, says: str) -> None:
    with pytest.raises(OnnxPruneError) as err:
        make_runtime(spec)
    assert says in str(err.value)


def test_a_plug_in_adds_a_runtime_and_a_wrong_one_is_refused() -> None:
    with RUNTIMES.isolated():
        RUNTIMES.register(FakeRuntime)
        made = make_runtime("fake:moon", {"x": True, "y": 2})
        assert str(made.describe()) == "fake 1.0, moon"
        assert made.describe().options == {"x": "1", "y": "2"}

        class Half:
            name = "half"

            def describe(self) -> RuntimeInfo:
                raise NotImplementedError

        with pytest.raises(OnnxPruneError, match="not a runtime: it has no method 'block_size'"):
            RUNTIMES.register(Half)
    assert RUNTIMES.plugins is not None
    assert RUNTIMES.plugins.group == "onnxprune.runtimes"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(OnnxPruneError) as err:
        make_runtime("openvino")
    assert "pip install 'onnxprune[openvino]'" in str(err.value)


# -------------------------------------------------------------------------------------------------------- onnxruntime


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("onnxruntime:cpuu", {}, "unknown provider of onnxruntime 'cpuu'"),
        ("onnxruntime:qnn", {}, "has no provider qnn; it has"),
        ("onnxruntime", {"trt_fp16_enable": "1"}, "no option 'trt_fp16_enable'"),
        ("onnxruntime", {"fallback": "maybe"}, "fallback is 0 or 1, not 'maybe'"),
    ],
)
def test_providers_and_options_that_are_none(spec: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(OnnxPruneError) as err:
        make_runtime(spec, options)
    assert says in str(err.value)


def test_the_provider_can_be_spelled_in_full() -> None:
    for spec in ("onnxruntime", "onnxruntime:cpu", "onnxruntime:CPUExecutionProvider"):
        runtime = make_runtime(spec)
        assert isinstance(runtime, OnnxRuntime)
        assert runtime.provider == "CPUExecutionProvider"
        assert runtime.is_plain_cpu
    assert not OnnxRuntime("", {"session.intra_op.allow_spinning": "0"}).is_plain_cpu


def kernel(op: str, provider: str) -> Kernel:
    return Kernel(f"node_{op}", op, (), (), 1e-6, f"{provider}ExecutionProvider")


def test_a_fallback_of_heavy_operators_is_an_error_unless_allowed() -> None:
    mixed = [kernel("Relu", "CUDA"), kernel("Shape", "CPU")]
    name = "CUDAExecutionProvider"
    assert placement(name, [kernel("Conv", "CUDA")], allowed=False) == name
    assert placement(name, mixed, allowed=False) == f"{name}, 1 of 2 kernels on the CPU"
    heavy = [*mixed, kernel("FusedConv", "CPU")]
    with pytest.raises(OnnxPruneError, match="leaves 2 of 3 kernels to the CPU, FusedConv among them") as err:
        placement(name, heavy, allowed=False)
    assert err.value.where == "node 'node_FusedConv'"
    assert "fallback=1" in str(err.value.fix)
    assert placement(name, heavy, allowed=True) == f"{name}, 2 of 3 kernels on the CPU"


@pytest.fixture
def azure() -> str:
    """A provider of the CPU package that runs no operator of ours."""
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no second provider")
    return "onnxruntime:azure"


def test_a_provider_that_runs_nothing_is_reported(azure: str) -> None:
    model = load(DIGITS)
    with pytest.raises(OnnxPruneError, match="kernels to the CPU"):
        make_runtime(azure).measure([model], [feeds_of(model)], threads=1, batch=1, runs=1)
    found = make_runtime(azure, {"fallback": "1"}).measure([model], [feeds_of(model)], threads=1, batch=1, runs=1)
    assert found.ran.startswith("AzureExecutionProvider, ")
    assert found.latencies[0].median > 0


def test_options_that_a_provider_refuses_do_not_end_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    asked: list[dict[str, object]] = []

    class Recorded(onnxruntime.InferenceSession):
        def __init__(self, *args: object, **options: object) -> None:
            asked.append(options)
            super().__init__(*args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    Session(DIGITS, providers=[("CPUExecutionProvider", {})])
    Session(DIGITS, device="auto")
    assert [o["enable_fallback"] for o in asked] == [0, 1]


def test_a_bound_session_computes_the_same() -> None:
    model = load(DIGITS)
    session, feeds = Session(model, threads=1), feeds_of(model)
    binding = session.bind(feeds)
    session.raw.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], session.run(feeds)[0])
    assert not session.on_gpu
    assert session_timer(session, feeds)() > 0


REFUSED = """
<ir_version: 8, opset_import: ["" : 17, "strange" : 1]>
g (float[1,3,4,4] x) => (float[1,3,4,4] y) { a = Relu(x)  y = strange.Twist(a) }
"""


def test_a_model_that_onnxruntime_refuses_names_the_node() -> None:
    proto = parser.parse_model(REFUSED)
    proto.graph.node[1].name = "the_twist"
    model = load(proto)
    with pytest.raises(OnnxPruneError) as err:
        make_runtime("onnxruntime").measure([model], [{}], threads=1, batch=1)
    assert "onnxruntime cannot load the model" in err.value.what
    assert "Twist" in str(err.value)
    assert "operator Twist, first at node 'the_twist'" in str(err.value.where)


@pytest.mark.parametrize(
    ("message", "where", "fix"),
    [
        ("[E] Network has dynamic or shape inputs, but no optimization profile has been defined.", "", "--shape"),
        ("Error at node /stem/conv/Conv: Assertion failed", "node '/stem/conv/Conv' (Conv)", "another runtime"),
        ("UNSUPPORTED_NODE: GlobalAveragePool is not supported", "operator GlobalAveragePool, first at", "does not"),
        ("CUDA error: out of memory", "", "smaller --batch"),
        ("/ort/state.cc:1 std::f(const int&) Invalid OpenVINO EP option: x", "", "--runtime-option"),
        ("", "", "check that the runtime loads"),
    ],
)
def test_messages_of_runtimes_give_the_node_and_a_way_out(message: str, where: str, fix: str) -> None:
    err = refusal("trtexec", message, load(DIGITS))
    assert where in str(err.where)
    assert "digits_cnn.onnx" in str(err.where)
    assert fix in str(err.fix)
    assert err.what.startswith("trtexec cannot load the model: ")
    assert "state.cc" not in err.what


def test_long_messages_are_shortened_to_one_line() -> None:
    err = refusal("it", "Exception from src/core.cpp:12:\n" + "long\n" * 1000, load(DIGITS))
    assert "\n" not in err.what
    assert len(err.what) < 500
    assert "core.cpp" not in err.what


# --------------------------------------------------------------------------------------------------------- block size


def padded_times(block: int, counts: Sequence[int]) -> list[float]:
    """Times of a runtime that pads to a block, with a constant part and a wobble of a percent."""
    return [
        5e-6 + 1e-8 * (-(-c // block) * block) ** 2 * (1 + 0.01 * ((c * 7) % 3 - 1)) + 2e-7 * -(-c // block) * block
        for c in counts
    ]


@pytest.mark.parametrize("block", [32, 16, 8])
def test_the_probe_finds_the_block_of_padded_kernels(block: int) -> None:
    assert probe_block(lambda counts: padded_times(block, counts)) == block


def test_the_probe_finds_a_cliff_at_odd_counts() -> None:
    def slow_unless(multiple: int, counts: Sequence[int]) -> list[float]:
        return [(5e-5 + 1e-8 * c * c) * (1.5 if c % multiple else 1.0) for c in counts]

    assert probe_block(lambda counts: slow_unless(4, counts)) == 4
    assert probe_block(lambda counts: slow_unless(1, counts)) == 1
    assert sorted(c for some in COUNTS.values() for c in some)[0] >= 32


def test_onnxruntime_tells_its_block_without_a_clock() -> None:
    assert OnnxRuntime().block_size() == kernel_block("cpu") in (4, 8, 16)
    assert block_of(OnnxRuntime()) == kernel_block("cpu")


def test_the_block_is_probed_once_for_each_runtime(tmp_path: Path) -> None:
    class Counting(FakeRuntime):
        asked = 0

        def block_size(self) -> int:
            type(self).asked += 1
            return 24

    assert [block_of(Counting()) for _ in range(3)] == [24] * 3
    assert Counting.asked == 1
    block_of(Counting("elsewhere"))
    block_of(Counting("", {"x": "1"}))
    assert Counting.asked == 3
    block_of(Counting(), refresh=True)
    assert Counting.asked == 4
    for file in (tmp_path / "cache").iterdir():
        file.write_text("{")
    assert block_of(Counting()) == 24
    assert Counting.asked == 5


# ----------------------------------------------------------------------------------------------------------- OpenVINO


@with_openvino
def test_openvino_measures_and_profiles() -> None:
    runtime = make_runtime("openvino", {"INFERENCE_PRECISION_HINT": "f32"})
    model = load(DIGITS)
    feeds = feeds_of(model)
    found = runtime.measure([model, model], [feeds, feeds], threads=1, batch=1, runs=2, warmup=1)
    assert all(la.median > 0 for la in found.latencies)
    assert found.ran == "openvino CPU, f32"
    assert runtime.describe().precision == "f32"
    layers = runtime.profile(model, feeds, threads=1, runs=2)
    assert layers is not None
    names = {n.name for n in model.graph.nodes}
    known = [la for la in layers if la.nodes and la.nodes[0] in names]
    convolutions = [n for n in model.graph.nodes if n.op == "Conv"]
    assert {n.name for n in convolutions} <= {la.nodes[0] for la in known}
    assert make_runtime("openvino").describe() != runtime.describe()


@with_openvino
@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("openvino:TPU", {}, "unknown device of OpenVINO 'TPU'"),
        ("openvino", {"INFERENCE_NUM_THREAD": "1"}, "did you mean 'INFERENCE_NUM_THREADS'"),
    ],
)
def test_devices_and_properties_that_openvino_does_not_have(spec: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(OnnxPruneError) as err:
        make_runtime(spec, options)
    assert says in str(err.value)


@with_openvino
def test_a_model_that_openvino_refuses_names_the_operator() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,4,4] x, int64[1,3,4,4] i) => (float[1,3,4,4] y)
    { a = Relu(x)  y = MaxUnpool<kernel_shape=[1,1]>(a, i) }"""
    model = load(parser.parse_model(text))
    with pytest.raises(OnnxPruneError) as err:
        make_runtime("openvino").measure([model], [{}], threads=1, batch=1)
    assert "openvino cannot load the model" in err.value.what
    assert "operator MaxUnpool, first at node" in str(err.value.where)


# --------------------------------------------------------------------------------------------------- names of layers


def test_layers_of_runtimes_are_found_by_node_and_output_names() -> None:
    text = (
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,4,4] x) => (float[1,8,4,4] y)
    <float[8,3,1,1] w = {"""
        + ",".join(["0.5"] * 24)
        + """}> { c = Conv(x, w)  y = Relu(c) }"""
    )
    proto = parser.parse_model(text)
    proto.graph.node[0].name, proto.graph.node[1].name = "/stem/Conv", "/stem/Relu"
    names = NodeNames(load(proto))
    assert names.of("/stem/Conv") == ("/stem/Conv",)
    assert names.of("y_nchwc") == ("/stem/Conv",)  # a fused convolution has the name of its output
    assert names.of("/stem/Conv/MatMulScaleFusion/") == ("/stem/Conv",)  # the name of a fusion behind that of its node
    assert names.of("fused /stem/Conv_token_12") == ("/stem/Conv",)
    assert names.of("/stem/Relu") == ("/stem/Relu",)
    assert names.of("/stem/Relu", fused=True) == ("/stem/Conv",)
    assert names.of("Reorder_5") == ()


# ------------------------------------------------------------------------------------------------------- command line

bench = CommandLine("bench")


def test_bench_states_the_runtime_and_its_errors(tmp_path: Path) -> None:
    with RUNTIMES.isolated():
        RUNTIMES.register(FakeRuntime)
        RUNTIMES.register(Refusing)
        text = bench.out(DIGITS, DIGITS, "--runtime", "fake:moon", "--runs", 3)
        assert "moon" in text
        document = json.loads(bench.out(DIGITS, "--runtime", "fake", "--json"))
        assert document[0]["provider"] == "nowhere"
        assert "at: node 'x'" in bench.fails(DIGITS, "--runtime", "refusing")
    assert "unknown runtime" in bench.fails(DIGITS, "--runtime", "fake")
    assert "must be a name" in bench.fails(DIGITS, "--runtime", ":x")
    assert "takes NAME=VALUE, not 'x'" in bench.fails(DIGITS, "--runtime-option", "x", code=2)
    assert "unknown device" in bench.fails(DIGITS, "--device", "tpu")


def test_a_saved_model_stays_as_it_was_when_it_is_measured(tmp_path: Path) -> None:
    before = onnx.load(DIGITS).SerializeToString()
    bench.ok(DIGITS, "--runs", 1)
    assert onnx.load(DIGITS).SerializeToString() == before


@with_openvino
def test_bench_in_openvino_end_to_end() -> None:
    options = ("--runtime", "openvino", "--runtime-option", "INFERENCE_PRECISION_HINT=f32", "--runs", 2, "--profile")
    text = bench.out(DIGITS, DIGITS, *options)
    assert "openvino CPU, f32" in text
    assert "all layers: " in text
