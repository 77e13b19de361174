"""Small residual graphs, written as text, and plans that remove their blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper, parser

from onnxprune.analysis.blocks import inner_groups
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.passes import Pipeline
from onnxprune.passes.remove_blocks import removal_passes
from onnxprune.plans import BlockRemoval, Plan, Removal

WIDTH = 8
_DOT = "_dot_"  # names of the text format have no dots


def graph(body: str, weights: Iterable[str], output: str = "out") -> onnx.ModelProto:
    """Return a model: input x [N, 8, 6, 6], 3x3 convolutions whose weights have these names, `name:in:out` if not 8."""
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> agraph (float[N, {WIDTH}, 6, 6] x) => (float[N, {WIDTH}, 6, 6] '
        f"{output}) {{ {body.replace('.', _DOT)} }}"
    )
    for node in proto.graph.node:
        node.input[:] = [n.replace(_DOT, ".") for n in node.input]
    rng = np.random.default_rng(0)
    for entry in weights:
        name, *sizes = entry.split(":")
        n, m = map(int, sizes) if sizes else (WIDTH, WIDTH)
        values = rng.standard_normal((m, n, 3, 3)).astype(np.float32) / (3 * n**0.5)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


def conv(out: str, x: str, weight: str) -> str:
    """Return the text of a 3x3 convolution."""
    return f"{out} = Conv<pads = [1, 1, 1, 1]>({x}, {weight}) "


def chain(blocks: int, *, flipped: bool = False) -> onnx.ModelProto:
    """Return post-activation residual blocks between two convolutions."""
    body, weights = conv("s0", "x", "stem.weight"), ["stem.weight"]
    for i in range(blocks):
        one, two = f"stage.{i}.conv1.weight", f"stage.{i}.conv2.weight"
        weights += [one, two]
        operands = f"b{i}, s{i}" if flipped else f"s{i}, b{i}"
        body += conv(f"a{i}", f"s{i}", f"stage.{i}.conv1.weight") + f"r{i} = Relu(a{i}) "
        body += conv(f"b{i}", f"r{i}", two) + f"y{i} = Add({operands}) s{i + 1} = Relu(y{i}) "
    return graph(body + conv("out", f"s{blocks}", "head.weight"), [*weights, "head.weight"])


def removing(analysis: Analysis, names: Iterable[str], every: int = 0) -> Plan:
    """Return the plan that removes blocks, and every so-many-th channel of all groups (0: none)."""
    groups = {
        g.name: Removal(g.channels, tuple(range(0, g.channels, every)))
        for g in (analysis.groups if every else ())
        if g.channels > 1
    }
    blocks = {b.name: BlockRemoval(b.output, b.operand) for b in map(analysis.block, names)}
    return Plan(analysis.source.fingerprint, groups, options=analysis.choices.options(), blocks=blocks)


def with_blocks(analysis: Analysis, plan: Plan, names: Iterable[str]) -> Plan:
    """Return a plan that removes blocks as well, and no channels of groups inside them."""
    blocks = [analysis.block(name) for name in names]
    inside = frozenset().union(*(inner_groups(analysis.model.graph, analysis.groups, b) for b in blocks))
    groups = {n: r for n, r in plan.groups.items() if n not in inside}
    return replace(plan, groups=groups, blocks={b.name: BlockRemoval(b.output, b.operand) for b in blocks})


def drawn_blocks(analysis: Analysis, rng: np.random.Generator, share: float = 0.4) -> list[str]:
    """Return some free blocks; of parallel branches that nothing else is added to never all."""
    names: list[str] = []
    for b in analysis.free_blocks:
        if rng.random() < share:
            try:
                removed(analysis, with_blocks(analysis, Plan("", {}), [*names, b.name]))
            except OnnxPruneError:
                continue
            names.append(b.name)
    return names


def block_plans(analysis: Analysis, seed: int = 0) -> Iterator[Plan]:
    """Yield the plans that remove each free block alone, and one that removes about half of them."""
    nothing = Plan(analysis.source.fingerprint, {}, options=analysis.choices.options())
    for block in analysis.free_blocks:
        yield with_blocks(analysis, nothing, [block.name])
    if half := drawn_blocks(analysis, np.random.default_rng(seed), 0.5):
        yield with_blocks(analysis, nothing, half)


def removed(analysis: Analysis, plan: Plan) -> Model:
    """Return the pruned model, unproved."""
    return Pipeline(removal_passes(plan, analysis))(analysis.model)


def dense(layers: int) -> onnx.ModelProto:
    """Return a dense block of layers that append 4 channels each, between a convolution of 8 and one to 8 channels."""
    body, weights = conv("f0", "x", "stem.weight"), ["stem.weight"]
    names = ["f0"]
    for i in range(layers):
        one, two = f"dense.{i}.conv1.weight", f"dense.{i}.conv2.weight"
        weights += [f"{one}:{WIDTH + 4 * i}:6", f"{two}:6:4"]
        body += f"c{i} = Concat<axis = 1>({', '.join(names)}) r{i} = Relu(c{i}) " + conv(f"a{i}", f"r{i}", one)
        body += f"s{i} = Relu(a{i}) " + conv(f"f{i + 1}", f"s{i}", two)
        names.append(f"f{i + 1}")
    body += f"c = Concat<axis = 1>({', '.join(names)}) r = Relu(c) " + conv("out", "r", "head.weight")
    return graph(body, [*weights, f"head.weight:{WIDTH + 4 * layers}:8"])


def c2f(bottlenecks: int, *, shortcut: bool = True) -> onnx.ModelProto:
    """Return a stage of a detector: half of the channels pass through bottlenecks, and all results are joined.

    Layers are 3x3 convolutions with SiLU; the result goes through another convolution.
    """

    def layer(out: str, x: str, weight: str) -> str:
        return conv(f"{out}c", x, f"{weight}.weight") + f"{out}g = Sigmoid({out}c) {out} = Mul({out}c, {out}g) "

    half, names = WIDTH // 2, ["a0", "m0"]
    body = layer("cv1", "x", "c2f.cv1") + "a0, m0 = Split<axis = 1>(cv1, halves) "
    weights = ["c2f.cv1.weight"]
    for i in range(bottlenecks):
        one, two = f"c2f.m.{i}.cv1", f"c2f.m.{i}.cv2"
        weights += [f"{one}.weight:{half}:{half}", f"{two}.weight:{half}:{half}"]
        body += layer(f"p{i}", f"m{i}", one) + layer(f"q{i}", f"p{i}", two)
        body += f"m{i + 1} = Add(m{i}, q{i}) " if shortcut else f"m{i + 1} = Identity(q{i}) "
        names.append(f"m{i + 1}")
    body += (
        f"c = Concat<axis = 1>({', '.join(names)}) " + layer("cv2", "c", "c2f.cv2") + conv("out", "cv2", "head.weight")
    )
    proto = graph(body, [*weights, f"c2f.cv2.weight:{half * len(names)}:{WIDTH}", "head.weight"])
    proto.graph.initializer.append(numpy_helper.from_array(np.array([half, half], np.int64), "halves"))
    return proto
