"""Residual blocks: the branches that are found, the ones that are not free, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from networks.residual import block_plans, c2f, chain, conv, dense, graph, removing
from networks.structures import FOLDER, analysed
from onnx import numpy_helper, parser

from onnxprune.analysis.blocks import inner_groups
from onnxprune.analysis.cost import CostModel
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import BlockRemoval, Plan


@pytest.mark.parametrize("flipped", [False, True])
def test_sequential_blocks_in_either_operand_order(flipped: bool) -> None:
    found = analyze(load(chain(3, flipped=flipped)))
    assert [b.name for b in found.blocks] == ["stage.0", "stage.1", "stage.2"]
    assert [(b.entry, b.branch, b.output, b.operand) for b in found.blocks] == [
        (f"s{i}", f"b{i}", f"y{i}", 0 if flipped else 1) for i in range(3)
    ]
    assert len({b.component for b in found.blocks}) == 3


def test_shortcut_with_weights_is_not_free() -> None:
    body = conv("a", "x", "a.weight") + conv("s", "x", "down.weight") + "y = Add(a, s) " + conv("out", "y", "w")
    (block,) = analyze(load(graph(body, ["a.weight", "down.weight", "w"]))).blocks
    assert block.reason == "the shortcut has weights of its own (Conv 'down')"


def test_values_used_elsewhere_are_not_free() -> None:
    body = conv("a", "x", "a.weight") + conv("b", "a", "b.weight") + "y = Add(x, b) z = Mul(y, a) "
    found = analyze(load(graph(body + conv("out", "z", "w"), ["a.weight", "b.weight", "w"]))).blocks
    assert not [b for b in found if not b.reason]


def test_nested_and_parallel_blocks() -> None:
    body = conv("i", "x", "inner.weight") + "n = Add(x, i) r = Relu(n) " + conv("o", "r", "outer.weight")
    body += (
        "y = Add(x, o) " + conv("p", "y", "p.weight") + conv("q", "y", "q.weight") + "pq = Add(p, q) z = Add(pq, y) "
    )
    found = analyze(
        load(graph(body + conv("out", "z", "w"), [f"{n}.weight" for n in ("inner", "outer", "p", "q")] + ["w"]))
    )
    assert [(b.branch, b.reason) for b in found.blocks] == [("i", ""), ("o", ""), ("p", ""), ("q", ""), ("pq", "")]
    inner, outer = found.blocks[:2]
    assert set(inner.nodes) < set(outer.nodes)


@pytest.mark.parametrize(
    ("name", "free", "locked"),
    [("resnet50.ts", 12, 4), ("mobilenet_v2.ts", 10, 0), ("vit_b_32.dyn", 24, 0), ("swin_t.ts", 24, 0),
     ("convnext_tiny.ts", 18, 0), ("efficientnet_b0.ts", 9, 0), ("timm_resnetv2_18.ts", 5, 3), ("hf_llama.ts", 4, 0),
     ("densenet121.ts", 58, 0), ("keras_densenet121", 58, 0), ("light_resnet50", 12, 4), ("googlenet.ts", 0, 0),
     ("timm_rdnet_tiny.ts", 0, 21), ("timm_cs3darknet_s.ts", 9, 0)],
)  # fmt: skip
def test_blocks_of_public_architectures(name: str, free: int, locked: int) -> None:
    found = analysed(FOLDER / f"{name}.onnx.xz")
    assert (len(found.free_blocks), len(found.blocks) - len(found.free_blocks)) == (free, locked)
    assert len({b.name for b in found.blocks} | {g.name for g in found.groups}) == len(found.blocks) + len(found)


def test_layers_of_a_dense_block() -> None:
    found = analyze(load(dense(3)))
    assert [(b.name, b.branch, b.reason, len(b.channels)) for b in found.blocks] == [
        (f"dense.{i}", f"f{i + 1}", "", 4) for i in range(3)
    ]
    assert all(sorted(found[g].components.tolist()) == sorted(b.channels) for b in found.blocks
               for g in inner_groups(found.model.graph, found.groups, b) if found[g].channels == 4)  # fmt: skip


@pytest.mark.parametrize("bottlenecks", [1, 3])
def test_bottlenecks_between_a_split_and_a_concat_are_removed_and_proved(bottlenecks: int) -> None:
    found = analyze(load(c2f(bottlenecks)))
    assert [(b.name, b.kind, b.reason) for b in found.blocks] == [
        (f"c2f.m.{i}", "conv", "") for i in range(bottlenecks)
    ]
    for plan in block_plans(found):
        done = compile_plan(found.source, plan, analysis=found)
        assert done.verification is not None
        assert done.after.macs < done.before.macs
    joint = removing(found, ["c2f.m.0"], every=2)
    inner = inner_groups(found.model.graph, found.groups, found.block("c2f.m.0"))
    plan = replace(joint, groups={name: r for name, r in joint.groups.items() if name not in inner})
    assert compile_plan(found.source, plan, analysis=found).verification is not None


def test_bottlenecks_without_a_shortcut_are_no_blocks() -> None:
    assert not analyze(load(c2f(2, shortcut=False))).blocks


def test_branches_of_an_inception_block_are_no_blocks() -> None:
    body = conv("a", "x", "a.weight") + conv("b", "x", "b.weight") + "c = Concat<axis = 1>(a, b) "
    found = analyze(load(graph(body + conv("out", "c", "w"), ["a.weight", "b.weight", "w:16:8"])))
    assert not found.blocks


def test_appended_channels_that_a_statistic_reads_are_not_free() -> None:
    body = conv("f", "x", "f.weight") + "c = Concat<axis = 1>(x, f) n = LpNormalization<axis = 1>(c) "
    body += "m = ReduceMean<axes = [1], keepdims = 1>(n) z = Mul(n, m) "
    (block,) = analyze(load(graph(body + conv("out", "z", "w"), ["f.weight", "w:16:8"]))).blocks
    assert block.reason == "the channels that it appends are locked"


@pytest.mark.parametrize("op", ["Add", "Sum"])
def test_blocks_may_end_in_a_sum(op: str) -> None:
    body = conv("f", "x", "f.weight") + f"y = {op}(x, f) " + conv("out", "y", "w")
    assert len(analyze(load(graph(body, ["f.weight", "w"]))).free_blocks) == 1


def test_cost_without_a_block_is_that_of_the_smaller_model() -> None:
    model = load(chain(2))
    found = analyze(model)
    block = found.blocks[0]
    plan = Plan(model.fingerprint, {}, blocks={block.name: BlockRemoval(block.output, block.operand)})
    done = compile_plan(model, plan)
    fresh = CostModel(analyze(done.model)).baseline
    assert (done.after.macs, done.after.params, done.after.bytes) == (fresh.macs, fresh.params, fresh.bytes)


def test_unknown_block_is_named() -> None:
    with pytest.raises(OnnxPruneError, match=r"stage\.0"):
        analyze(load(chain(1))).block("stage.9")


LOOP = """<ir_version: 8, opset_import: ["" : 17]> agraph (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y)
<int64 times = {2}, bool go = {1}> {
  z = Loop (times, go, x) <body = g (int64 i, bool on, float[N, 8, 6, 6] s) => (bool on_, float[N, 8, 6, 6] t) {
    on_ = Identity (on) a = Conv (s, one) r = Relu (a) b = Conv (r, two) c = Add (s, b) t = LAST }>
  y = Conv (z, other) }"""


@pytest.mark.parametrize(("last", "free"), [("Tanh (c)", False), ("Conv (c, other)", True)])
def test_a_block_that_holds_all_layers_of_a_loop_is_not_free(last: str, free: bool) -> None:
    proto = parser.parse_model(LOOP.replace("LAST", last))
    rng = np.random.default_rng(0)
    for name, (m, n) in {"one": (4, 8), "two": (8, 4), "other": (8, 8)}.items():
        proto.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal((m, n, 1, 1)).astype(np.float32), name)
        )
    analysis = analyze(load(proto))
    (block,) = analysis.blocks
    assert block.reason == ("" if free else "the body of its Loop has no other layers")
    for plan in block_plans(analysis):
        compile_plan(analysis.model, plan, analysis=analysis)
