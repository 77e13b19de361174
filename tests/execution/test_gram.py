"""Second moments and the surgeon: against least squares by numpy, block by block, removal after removal."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from least_squares import Layer
from onnx import numpy_helper
from random_graphs.graphs import PROPERTY, Spec, build

from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.linear_layers import LinearNode, linear_node
from onnxprune.execution.gram import (
    BlockOBS,
    Gram,
    Inverse,
    consumers,
    damped,
    picked_positions,
    resolved,
    row_blocks,
    solved,
    stretches,
)
from onnxprune.execution.sessions import Session
from onnxprune.ir.reader import load
from onnxprune.passes import InsertMasks
from onnxprune.pipeline import analyze
from onnxprune.plans import Plan, Removal

MODELS = Path(__file__).parent.parent.parent / "models"
RIDGE = 1e-3


def layer(seed: int, sizes: list[int], *, rows: int = 80, spare: int = 0) -> Layer:
    """Blocks of these sizes, their indices shuffled; `spare` inputs are in no block."""
    rng = np.random.default_rng(seed)
    n = sum(sizes) + spare
    x = rng.standard_normal((rows, n)) @ rng.standard_normal((n, n))
    index = rng.permutation(n)
    stops = np.cumsum(sizes)
    blocks = [index[stop - size : stop] for stop, size in zip(stops, sizes, strict=True)]
    return Layer(x, rng.standard_normal((n, int(rng.integers(1, 6)))), blocks)


# ------------------------------------------------------------------------------------------------------- the surgeon


@PROPERTY(max_examples=40)
@given(
    st.integers(0, 2**16),
    st.lists(st.integers(0, 4), min_size=2, max_size=7).filter(any),
    st.integers(0, 3),
    st.sampled_from((1e-6, RIDGE, 0.3)),
    st.sampled_from((1, 3, 5, 128)),
)
def test_rises_are_those_of_least_squares_after_any_removals(
    seed: int, sizes: list[int], spare: int, ridge: float, pending: int
) -> None:
    case = layer(seed, sizes, spare=spare)
    solver = BlockOBS(case.covariance, case.weight, case.blocks, ridge, pending=pending)
    gone = np.zeros(0, np.int64)
    order = np.random.default_rng(seed).permutation(len(sizes)).tolist()
    largest = case.fitted(np.arange(len(case.weight)), ridge)[1]
    for i, block in enumerate(order):
        before = case.fitted(gone, ridge)[1]
        wanted = np.zeros(len(sizes))
        for other in order[i:]:
            wanted[other] = case.fitted(np.concatenate([gone, case.blocks[other]]), ridge)[1] - before
        np.testing.assert_allclose(solver.error_increases(), wanted, rtol=1e-6, atol=1e-9 * largest)
        solver.remove(block)
        gone = np.concatenate([gone, case.blocks[block]])
    assert not solver.error_increases().any()


def test_a_block_that_is_gone_is_not_removed_again() -> None:
    case = layer(0, [2, 3, 1])
    solver = BlockOBS(case.covariance, case.weight, case.blocks, RIDGE)
    solver.remove(1)
    once = solver.error_increases()
    solver.remove(1)
    np.testing.assert_array_equal(solver.error_increases(), once)
    assert once[1] == 0 < once[0]


@PROPERTY(max_examples=30)
@given(st.integers(0, 2**16), st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 6))
def test_resolved_is_least_squares(seed: int, sizes: list[int], count: int) -> None:
    case = layer(seed, sizes)
    gone = np.concatenate([*case.blocks[:count], np.zeros(0, np.int64)])
    found = resolved(case.covariance, case.weight, gone, RIDGE)
    wanted, _ = case.fitted(gone, RIDGE)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8 * np.abs(case.weight).max())
    assert not found[gone].any()


def degenerate(kind: str) -> Layer:
    case = layer(3, [3] * 6, rows=200)
    x = case.x.copy()
    if kind == "rank":
        x = x[:4]  # 4 rows, 18 inputs
    elif kind == "copies":
        x[:, case.blocks[1]] = x[:, case.blocks[0]]
    elif kind == "constant":
        x[:, np.concatenate(case.blocks[2:4])] = 0  # centred: what is constant varies by nothing
    elif kind == "zero":
        x[:] = 0
    elif kind == "huge":
        x[:, case.blocks[0]] *= 1e15
    elif kind == "tiny":
        x *= 1e-150
    return Layer(x, case.weight, case.blocks)


@pytest.mark.parametrize("kind", ["rank", "copies", "constant", "zero", "huge", "tiny"])
@pytest.mark.parametrize("ridge", [1e-8, RIDGE])
def test_degenerate_moments_stay_finite(kind: str, ridge: float) -> None:
    case = degenerate(kind)
    solver = BlockOBS(case.covariance, case.weight, case.blocks, ridge)
    for block in range(len(case.blocks)):
        rises = solver.error_increases()
        assert np.isfinite(rises).all()
        assert (rises >= 0).all()
        solver.remove(block)
        gone = np.concatenate(case.blocks[: block + 1])
        assert np.isfinite(resolved(case.covariance, case.weight, gone, ridge)).all()


def test_what_others_can_stand_in_for_costs_nothing() -> None:
    copies, constant = degenerate("copies"), degenerate("constant")
    rises = BlockOBS(copies.covariance, copies.weight, copies.blocks, 1e-8).error_increases()
    assert rises[:2].max() < 1e-5 * rises[2:].min()
    weight = resolved(copies.covariance, copies.weight, copies.blocks[1], 1e-8)
    np.testing.assert_allclose(
        weight[copies.blocks[0]], (copies.weight[copies.blocks[0]] + copies.weight[copies.blocks[1]]), rtol=1e-4
    )
    rises = BlockOBS(constant.covariance, constant.weight, constant.blocks, 1e-8).error_increases()
    assert rises[2:4].max() < 1e-5 * np.delete(rises, [2, 3]).min()


def test_without_any_input_the_weights_alone_decide() -> None:
    case = degenerate("zero")
    rises = BlockOBS(case.covariance, case.weight, case.blocks, RIDGE).error_increases()
    np.testing.assert_allclose(rises, [np.square(case.weight[b]).sum() for b in case.blocks])


def test_inverse_solves_and_is_whole() -> None:
    matrix = damped(layer(1, [12]).covariance, RIDGE)
    right = np.random.default_rng(0).standard_normal((12, 3))
    wanted = np.linalg.inv(matrix)
    inverse = Inverse(matrix)
    np.testing.assert_allclose(inverse.dense(), wanted, rtol=1e-8, atol=1e-9 * np.abs(wanted).max())
    np.testing.assert_array_equal(inverse.dense(), inverse.dense().T)
    np.testing.assert_allclose(inverse(right), wanted @ right, rtol=1e-7)
    np.testing.assert_allclose(solved(matrix, right), wanted @ right, rtol=1e-7)


def test_an_inverse_may_take_the_memory_of_its_matrix() -> None:
    matrix = damped(layer(2, [12]).covariance, RIDGE)
    kept, right = matrix.copy(), np.eye(12)
    wanted = Inverse(matrix)(right)
    np.testing.assert_array_equal(matrix, kept)
    inverse = Inverse(matrix, overwrite=True)
    assert np.shares_memory(inverse._factor[0], matrix)
    np.testing.assert_array_equal(inverse(right), wanted)


def test_damping_is_a_share_of_the_mean_diagonal() -> None:
    covariance = np.diag([1.0, 2.0, 6.0])
    np.testing.assert_allclose(damped(covariance, 0.1), np.diag([1.3, 2.3, 6.3]))
    np.testing.assert_array_equal(covariance, np.diag([1.0, 2.0, 6.0]))
    np.testing.assert_array_equal(damped(np.zeros((2, 2)), 0.1), np.eye(2))


# --------------------------------------------------------------------------------------------------- what it is told


def conv(groups: int = 1) -> LinearNode:
    weight = np.random.default_rng(0).standard_normal((4, 6 // groups, 2, 2)).astype(np.float32)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,6,5,4] x) => (float[N,4,n,m] y) '
        f"{{ y = Conv <group = {groups}, pads = [1, 0, 0, 0]> (x, w) }}"
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    found = linear_node(load(proto).graph.nodes[0])
    assert found is not None
    return found


@PROPERTY(max_examples=30)
@given(
    st.integers(0, 2**16),
    st.lists(st.integers(1, 199), max_size=5),
    st.sampled_from((1, 2)),
    st.sampled_from((1, 7, 100)),
    st.sampled_from((1, 3)),
    st.sampled_from((2**22, 500)),
)
def test_gram_is_the_covariance_of_the_rows_however_they_are_cut(
    seed: int, cuts: list[int], groups: int, positions: int, each: int, block: int
) -> None:
    rng, node, samples = np.random.default_rng(seed), conv(groups), 200
    x = (rng.standard_normal((samples * each, 6, 5, 4)) + rng.standard_normal((6, 1, 1))).astype(np.float32)
    found, whole = Gram(node, positions, seed, block=block), Gram(node, positions, seed)
    whole.add(x, range(samples))
    edges = sorted({0, samples, *cuts})
    for a, b in pairwise(edges):
        found.add(x[a * each : b * each], range(a, b))
    assert found.rows == whole.rows == len(x) * min(positions, node.count(x))
    rows = np.concatenate(
        [
            node.rows(x[i * each : (i + 1) * each], picked_positions(node.count(x), positions, i, seed))
            for i in range(samples)
        ],
        axis=1,
    ).astype(np.float64)
    for g in range(groups):
        wanted = np.cov(rows[g].T, bias=True)
        about_zero = rows[g].T @ rows[g] / rows.shape[1]
        for one in (found, whole):
            np.testing.assert_allclose(one.covariance(g), wanted, rtol=0, atol=1e-12 * wanted.max())
            np.testing.assert_allclose(one.moments(g), about_zero, rtol=0, atol=1e-12 * about_zero.max())
            np.testing.assert_allclose(one.mean[g], rows[g].mean(0), rtol=0, atol=1e-12)


def test_inputs_that_hardly_vary_keep_their_covariance() -> None:
    rng, node = np.random.default_rng(0), conv()
    # Steps of float32 around 1000; their squares differ in the 13th digit and beyond.
    x = (1000 + np.float32(2**-14) * rng.integers(-3, 4, (64, 6, 5, 4))).astype(np.float32)
    found = Gram(node, 100)
    for i in range(0, 64, 8):
        found.add(x[i : i + 8], range(i, i + 8))
    rows = node.rows(x)[0].astype(np.float64)
    wanted = np.cov((rows - rows[0]).T, bias=True)
    np.testing.assert_allclose(found.covariance(), wanted, rtol=0, atol=1e-9 * wanted.max())
    np.linalg.cholesky(damped(found.covariance(), 1e-8))


def test_positions_are_those_of_64_samples_together() -> None:
    assert picked_positions(5, 5, 0) is None
    first = picked_positions(100, 7, 0, seed=3)
    assert first is not None
    assert len(set(first.tolist())) == 7
    assert first.tolist() == sorted(first.tolist())
    assert 0 <= first.min() <= first.max() < 100
    np.testing.assert_array_equal(picked_positions(100, 7, 63, seed=3), first)
    for sample, seed in ((64, 3), (0, 4)):
        other = picked_positions(100, 7, sample, seed)
        assert other is not None
        assert other.tolist() != first.tolist()


@PROPERTY(max_examples=50)
@given(st.integers(0, 300), st.integers(1, 300))
def test_stretches_part_the_samples_where_positions_change(start: int, count: int) -> None:
    parts = stretches(range(start, start + count))
    assert [i for part in parts for i in part] == list(range(start, start + count))
    assert all(part.start // 64 == (part.stop - 1) // 64 for part in parts)
    assert all(a.stop % 64 == 0 for a in parts[:-1])


def test_row_blocks_are_bounded() -> None:
    node, x = conv(), np.zeros((4, 6, 5, 4), np.float32)
    blocks = list(row_blocks(node, x, range(4), 100, 0, width=50, block=1000))
    assert {b.shape[1] for b in blocks} == {20}  # of 1000 elements 50 wide: 5 positions of 4 samples
    assert sum(b.shape[1] for b in blocks) == 4 * node.count(x)


# ---------------------------------------------------------------------------------------------------------- consumers


def parsed(body: str, shapes: dict[str, tuple[int, ...]], output: str = "float[N,5] y") -> Analysis:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,3,6,6] x) => ({output}) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return analyze(load(proto))


CASES = {
    "conv": ("a = Conv (x, w) b = Relu (a) y = Conv (b, v)", {"w": (8, 3, 3, 3), "v": (5, 8, 4, 4)}),
    "grouped": ("a = Conv (x, w) b = Relu (a) y = Conv <group = 2> (b, v)", {"w": (8, 3, 3, 3), "v": (4, 4, 4, 4)}),
    "depthwise": (
        "a = Conv (x, w) b = Relu (a) c = Conv <group = 8> (b, v) y = Conv (c, u)",
        {"w": (8, 3, 3, 3), "v": (8, 1, 3, 3), "u": (5, 8, 2, 2)},
    ),
    "flatten": ("a = Conv (x, w) b = Relu (a) f = Flatten (b) y = Gemm (f, v)", {"w": (8, 3, 3, 3), "v": (128, 5)}),
    "transposed": (
        "a = Conv (x, w) b = Relu (a) y = ConvTranspose <group = 2> (b, v)",
        {"w": (8, 3, 3, 3), "v": (8, 3, 2, 2)},
    ),
    "concat": (
        "a = Conv (x, w) b = Conv (x, u) c = Concat <axis = 1> (a, b) y = Conv (c, v)",
        {"w": (8, 3, 3, 3), "u": (4, 3, 3, 3), "v": (5, 12, 4, 4)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_zero_rows_are_a_mask_on_the_channel(name: str) -> None:
    analysis = parsed(*CASES[name], output="float[N,a,b,c] y" if name != "flatten" else "float[N,5] y")
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
    assert len(analysis.groups) == (2 if name == "concat" else 1)
    for group in analysis.groups:
        plan = Plan("", {group.name: Removal(group.channels, (1, 2))})
        [wanted] = Session(InsertMasks(plan, analysis)(analysis.model), threads=1).run({"x": x})
        model = analysis.model.copy()
        nodes = {n.outputs[0].name: n for n in model.graph.nodes}
        found = consumers(analysis, [group])
        assert found
        assert all(c.reads(group) for c in found)
        for c in found:
            node = linear_node(nodes[c.node.output])
            assert node is not None
            matrix = node.matrix()
            for q in range(node.groups):
                blocks = c.blocks(q, group.components)
                assert len(blocks) == group.channels
                for block in blocks[1:3]:
                    matrix[q][block] = 0
            node.set_weights(matrix)
        [y] = Session(model, threads=1).run({"x": x})
        np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("body", "shapes", "channels"),
    [
        ("c = Conv <group = 4> (b, v) y = Conv (c, u)", {"v": (12, 2, 3, 3), "u": (5, 12, 2, 2)}, 4),
        ("c = ConvTranspose <group = 8> (b, v) y = Conv (c, u)", {"v": (8, 1, 3, 3), "u": (5, 8, 2, 2)}, 8),
    ],
)
def test_where_whole_convolution_groups_go_their_readers_count(
    body: str, shapes: dict[str, tuple[int, ...]], channels: int
) -> None:
    analysis = parsed("a = Conv (x, w) b = Relu (a) " + body, {"w": (8, 3, 3, 3), **shapes}, "float[N,a,b,c] y")
    [group] = analysis.groups
    assert group.channels == channels
    assert [c.node.node.inputs[1].name for c in consumers(analysis, [group])] == ["u"]


def test_readers_without_weights_of_their_own_are_left_out() -> None:
    analysis = analyze(load(build(Spec(("channel_sum", "attention")))))
    nodes = {o.name: n for n in analysis.model.graph.nodes for o in n.outputs}
    summing = [nodes[c.output] for c in analysis.contractions]
    assert {"ReduceSum", "MatMul", "Conv"} <= {n.op for n in summing}
    found = {c.node.node.outputs[0].name for c in consumers(analysis, analysis.groups)}
    for node in summing:
        weighed = node.op != "ReduceSum" and isinstance(node.inputs[1], gs.Constant)
        assert (node.outputs[0].name in found) == weighed
    assert len(found) < len({n.outputs[0].name for n in summing})


@pytest.mark.parametrize("name", ["digits_cnn", "digits_cnn_folded", "digits_keras"])
def test_every_group_of_the_shipped_models_has_readers(name: str) -> None:
    analysis = analyze(load(MODELS / f"{name}.onnx"))
    assert analysis.groups
    for group in analysis.groups:
        found = consumers(analysis, [group])
        assert found
        for c in found:
            assert c.components.shape == (c.node.groups, c.node.inputs)
            sizes = {
                sum(len(c.blocks(q, group.components)[i]) for q in range(c.node.groups)) for i in range(group.channels)
            }
            assert len(sizes) == 1  # every channel is read as often as the others
            assert min(sizes) >= c.node.kernel
