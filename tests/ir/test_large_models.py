"""Models of gigabytes, in the small: weights are looked at one at a time, and no copy of the whole file is made."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune as op
from onnxprune.ir import protobuf_wire
from onnxprune.ir.model import Model
from onnxprune.pipeline import compile_plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts pages in /proc")

LAYERS, NARROW, WIDE = 16, 256, 1024
TENSOR = 4 * NARROW * WIDE  # bytes: 1 MiB
FILE = 2 * LAYERS * TENSOR
PAGE = os.sysconf("SC_PAGE_SIZE")
SMALL = 4 * 2**20  # bytes: one fault may map 2 MiB around a place, and a weight may lie across two such


def perceptron(layers: int = LAYERS) -> onnx.ModelProto:
    """Residual pairs of MatMul; all weights are of one size."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for i in range(layers):
        for name, shape in ((f"up{i}", (NARROW, WIDE)), (f"down{i}", (WIDE, NARROW))):
            weights.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
        nodes += [
            helper.make_node("MatMul", [x, f"up{i}"], [f"u{i}"]),
            helper.make_node("Relu", [f"u{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"down{i}"], [f"d{i}"]),
            helper.make_node("Add", [x, f"d{i}"], [f"y{i}"]),
        ]
        x = f"y{i}"
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", NARROW])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", NARROW])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(folder: Path, external: bool) -> tuple[Path, Path]:
    """The model's file and the one that holds its weights."""
    path = folder / "large.onnx"
    if external:
        onnx.save(perceptron(), path, save_as_external_data=True, location="large.data", size_threshold=0)
        return path, folder / "large.data"
    path.write_bytes(perceptron().SerializeToString())
    return path, path


def resident(path: Path) -> int:
    """Bytes of a mapped file that count as this process's memory."""
    total = 0
    # Page tables, not smaps: the kernel writes smaps for every mapping, of which a process that has run thousands of
    # tests has thousands.
    with open("/proc/self/maps", encoding="utf-8") as maps, open("/proc/self/pagemap", "rb", buffering=0) as pages:
        for line in maps:
            if line.rstrip().endswith(str(path)):
                first, last = (int(address, 16) // PAGE for address in line.split()[0].split("-"))
                pages.seek(8 * first)
                entries = np.frombuffer(pages.read(8 * (last - first)), np.uint64)
                total += PAGE * int((entries >> np.uint64(63)).sum())  # bit 63: present
    return total


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Callable[[], int]]]:
    """Watches a file: the largest number of its bytes in memory when pages are let go of, and now."""

    def watch(path: Path) -> Callable[[], int]:
        peak = [0]
        let_go = protobuf_wire.release

        def release(array: object) -> None:
            peak[0] = max(peak[0], resident(path))
            let_go(array)  # type: ignore[arg-type]

        monkeypatch.setattr(protobuf_wire, "release", release)
        return lambda: max(peak[0], resident(path))

    yield watch
    tracemalloc.stop()


def allocated() -> int:
    """Most bytes that numpy and Python held since the last call."""
    peak = tracemalloc.get_traced_memory()[1]
    gc.collect()  # or the next peak stands on what waits for it
    tracemalloc.reset_peak()
    return peak


@pytest.mark.parametrize("external", [True, False], ids=["external", "one-file"])
def test_weights_are_not_read_to_analyze_and_one_at_a_time_to_prune(
    external: bool, tmp_path: Path, watched: Callable[[Path], Callable[[], int]]
) -> None:
    path, data = written(tmp_path, external)
    assert data.stat().st_size >= FILE
    op.save(op.load(perceptron(1)), tmp_path / "warm.onnx")  # what is imported on the way is not counted
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    model = op.load(path)
    assert resident(data) == 0
    groups = op.analyze(model)
    assert resident(data) == 0
    peak = watched(data)
    assert model.fingerprint
    assert peak() <= TENSOR + SMALL
    plan = op.plan(op.score(groups, "l2"), op.Target(params=0.5))
    assert peak() <= TENSOR + SMALL
    assert allocated() - before < 6 * TENSOR  # one weight in float64, and its square

    pruned = compile_plan(model, plan, analysis=groups, check=False)
    op.save(pruned.model, tmp_path / "small.onnx")
    assert peak() <= TENSOR + SMALL
    assert resident(data) == 0
    left = pruned.after.bytes
    assert left < 0.6 * FILE
    assert allocated() - before < left + 5 * TENSOR


def test_what_is_not_stripped_is_neither_copied_nor_kept(
    tmp_path: Path, watched: Callable[[Path], Callable[[], int]]
) -> None:
    path, data = written(tmp_path, True)
    model = op.load(path)
    op.save(op.load(perceptron(1)), tmp_path / "warm.onnx")
    peak = watched(data)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    op.save(model, tmp_path / "copy.onnx")
    assert allocated() - before < FILE / 4  # a process that has run other tests allocates some on the side
    assert peak() <= TENSOR + SMALL
    assert resident(data) == 0
    assert (tmp_path / "copy.onnx.data").stat().st_size >= FILE


def test_released_arrays_keep_their_values(tmp_path: Path) -> None:
    path, data = written(tmp_path, False)
    model: Model = op.load(path)
    weight = model.graph.tensors()["down3"].values
    whole = weight.copy()
    assert resident(data) >= TENSOR
    protobuf_wire.release(weight.T[::-2])
    assert resident(data) == 0
    with protobuf_wire.scattered(weight):
        assert weight[5, 7] == whole[5, 7]
    assert np.array_equal(weight, whole)


# The peak of the process's own memory, mapped pages included; unlike ru_maxrss without the parent's at the fork.
COMMAND = """
import sys
from onnxprune.cli import main

def peak():
    return next(1024 * int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))

for name in ("tiny", "large"):
    command = ["prune", name + ".onnx", "-o", name + "-out.onnx", "--target", "params=0.5", "--no-verify", "--json"]
    main(command, standalone_mode=False)
    print(peak(), file=sys.stderr)
"""


def test_prune_takes_less_memory_than_the_file_is_long(tmp_path: Path) -> None:
    written(tmp_path, True)
    op.save(op.load(perceptron(1)), tmp_path / "tiny.onnx")
    done = subprocess.run([sys.executable, "-c", COMMAND], cwd=tmp_path, capture_output=True, text=True, check=True)
    tiny, large = map(int, done.stderr.split()[-2:])
    assert large - tiny < 0.9 * FILE
