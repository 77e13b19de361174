"""Every public architecture that ships as a structure: analysed, pruned at random and to a target, proved.

`tests/goldens/structures.json` holds what is free and what is locked; after a wanted change of coverage write it anew
with `python tools/structures.py golden` and read the diff. The slowest run with `-m slow` (or `-m ""`: all).
"""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks.structures import FOLDER, MAX_UNPACKED, StructureError, all_structures, coverage, fill, filled, unpack
from onnxruntime.transformers.float16 import convert_float_to_float16

import onnxprune as op
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.verification import TOLERANCE, verify

GOLDEN = Path(__file__).parent.parent / "goldens" / "structures.json"
EXPECTED = json.loads(GOLDEN.read_text(encoding="utf-8"))
SLOW = ("vgg16_bn.", "maxvit_t.", "swin_t.ts", "vit_b_32.", "deeplabv3_resnet50.", "fcn_resnet50.ts")
QUICK = {"mmacs": 700, "nodes": 900, "mparams": 40}  # of the zoo's models, what is small enough to be proved every time
ZOO = (
    "timm_", "hf_", "light_", "faster", "fcos", "keypoint", "maskrcnn", "mvit", "r3d", "raft_l", "retina", "s3d",
    "ssd", "swin3d",
)  # fmt: skip
ALWAYS = ("fasterrcnn_mobilenet", "ssdlite")  # larger, but nothing else selects boxes
# Too little of them is free for half of the MACs to go: what their locked groups say.
OUT_OF_REACH = ("mvit_v1_b.ts", "hf_deberta_v2.ts", "timm_mvitv2_tiny.ts", "timm_test_efficientnet_ln.ts")


def _cases() -> list[object]:
    """Structures by name; the expensive ones run only in the slow part of the suite."""
    cases = []
    for path in all_structures():
        name = path.name.removesuffix(".onnx.xz")
        size = EXPECTED.get(name, {}).get("size", {})
        large = any(size.get(what, 0) > most for what, most in QUICK.items())
        large = large and name.startswith(ZOO) and not name.startswith(ALWAYS)
        marks = pytest.mark.slow if large or name.startswith(SLOW) else ()
        cases.append(pytest.param(path, id=name, marks=marks))
    return cases


def _random_half(analysis: op.Analysis, seed: int = 0) -> op.Plan:
    rng = np.random.default_rng(seed)
    groups = {}
    for g in analysis:
        gone = rng.choice(g.channels, g.channels // 2, replace=False)
        groups[g.name] = op.Removal(g.channels, tuple(sorted(gone.tolist())))
    return op.Plan(analysis.source.fingerprint, groups)


def _expected(path: Path) -> dict[str, object]:
    return {k: v for k, v in EXPECTED[path.name.removesuffix(".onnx.xz")].items() if k != "size"}


@pytest.mark.parametrize("path", _cases())
def test_structure(path: Path) -> None:
    model = filled(path)
    analysis = op.analyze(model)
    assert coverage(analysis) == _expected(path)
    if not analysis.groups:
        return

    half = op.compile_plan(model, _random_half(analysis), analysis=analysis)
    assert half.verification is not None
    assert len(half.verification.sizes) >= (3 if analysis.witness.dims else 1)
    assert half.verification.max_relative <= 1e-4
    assert half.verification.effect > 1e-3, "the masks do not matter, so nothing was proved"
    assert half.after.params < half.before.params

    scores = op.score(analysis, "l2")
    if path.name.startswith(OUT_OF_REACH):
        with pytest.raises(op.OnnxPruneError, match="cannot be reached"):
            op.plan(scores, op.Target(macs=0.5))
        return
    plan = op.plan(scores, op.Target(macs=0.5))
    least = op.compile_plan(model, plan, analysis=analysis)
    assert least.verification is not None
    assert least.verification.max_relative <= 1e-4
    assert least.verification.effect > 1e-3
    assert least.after.ratio(least.before, "macs") == pytest.approx(0.5, abs=0.02)


STREAMS = ("convnext_tiny.", "maxvit_t.", "swin_t.", "vit_b_32.")
QUICK = ("convnext_tiny.ts", "swin_t.dyn")


def _stream_cases() -> list[object]:
    paths = [path for path in all_structures() if path.name.startswith(STREAMS)]
    return [
        pytest.param(p, id=p.name.removesuffix(".onnx.xz"), marks=() if p.name.startswith(QUICK) else pytest.mark.slow)
        for p in paths
    ]


@pytest.mark.parametrize("path", _stream_cases())
def test_inexact_groups_halve_the_residual_stream_too(path: Path) -> None:
    model = filled(path)
    analysis = op.analyze(model, include_inexact=True)
    assert {lock.op for lock in analysis.locked} == {"output"}
    assert {g.kind for g in analysis if not g.exact} == {"stream"}
    half = replace(_random_half(analysis), options={"inexact": True})
    done = op.compile_plan(model, half, analysis=analysis)
    assert done.verification is not None
    assert len(done.verification.inexact) >= 1
    assert done.verification.max_relative <= 1e-4 < done.verification.effect
    assert done.after.ratio(done.before, "params") <= 0.35


@pytest.mark.parametrize("name", ["hf_convnextv2.ts", "hf_electra.ts", "hf_segformer.ts", "hf_swin.ts"])
@pytest.mark.filterwarnings("ignore:the float32 number:UserWarning")  # weights below float16's smallest number
def test_inexact_groups_in_float16(name: str) -> None:
    model = op.load(convert_float_to_float16(fill(unpack(FOLDER / f"{name}.onnx.xz"))))
    kinds = {np.dtype(t.dtype).name for t in model.graph.tensors().values() if t.dtype is not None}
    assert "float16" in kinds - {"float32"} == kinds
    analysis = op.analyze(model, include_inexact=True)
    assert {lock.op for lock in analysis.locked} == {"output"}
    half = replace(_random_half(analysis), options={"inexact": True})
    done = op.compile_plan(model, half, analysis=analysis)
    assert done.verification is not None
    assert len(done.verification.inexact) >= 1
    tolerance = TOLERANCE["float16"]
    assert done.verification.max_relative <= tolerance / 2 < tolerance == done.verification.tolerance
    # The same model is refused where one channel of the stream that sits on most weights is another.
    group = max((g for g in analysis if not g.exact), key=lambda g: len(g.sites))
    gone = half.groups[group.name].removed
    swapped = sorted([*gone[1:], min(set(range(group.channels)) - set(gone))])
    wrong = replace(half, groups={**half.groups, group.name: op.Removal(group.channels, tuple(swapped))})
    with pytest.raises(op.VerificationError):
        verify(analysis, wrong, done.model, feeds=[random_feeds(analysis, 1)])


def test_golden_is_complete() -> None:
    assert sorted(EXPECTED) == [p.name.removesuffix(".onnx.xz") for p in all_structures()]


def test_structures_stay_small() -> None:
    sizes = [p.stat().st_size for p in all_structures()]
    assert len(sizes) >= 100
    assert sum(sizes) < 4 * 2**20
    assert max(sizes) < 100_000


def test_filling_is_repeatable_and_seeded() -> None:
    path = next(p for p in all_structures() if p.name.startswith("squeezenet1_1.ts"))
    again, other = fill(unpack(path), 1), fill(unpack(path), 2)
    assert fill(unpack(path), 1).SerializeToString() == again.SerializeToString()
    assert again.SerializeToString() != other.SerializeToString()


def _packed(folder: Path, data: bytes, cut: int = 0) -> Path:
    path = folder / "bad.onnx.xz"
    packed = lzma.compress(data)
    path.write_bytes(packed[: len(packed) - cut])
    return path


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="holds more than"):
        unpack(_packed(tmp_path, bytes(MAX_UNPACKED + 1)))


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="cut off"):
        unpack(_packed(tmp_path, b"x" * 100, cut=20))


def test_what_is_not_xz_or_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx.xz").write_bytes(b"not xz at all")
    with pytest.raises(StructureError, match="not xz"):
        unpack(tmp_path / "no.onnx.xz")
    with pytest.raises(StructureError, match="not an ONNX model"):
        unpack(_packed(tmp_path, b"\xff\xff\xff\xff"))


@pytest.mark.parametrize("dims", [(2**20, 2**20), (-1, 100)])
def test_a_shape_beyond_memory_is_refused(dims: tuple[int, int]) -> None:
    proto = onnx.ModelProto()
    proto.graph.node.add(op_type="Relu", input=["x"], output=["y"])
    proto.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=dims)
    if min(dims) < 0:
        proto.graph.initializer.add(name="v", data_type=onnx.TensorProto.FLOAT, dims=[-1, -100])
    with pytest.raises(StructureError, match="elements"):
        fill(proto)
