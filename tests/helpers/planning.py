"""What tests of planning share: a network by hand, a latency model without a clock, curves without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.criteria.scoring import Scores
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.planning.curves import Curve, CurvePoint, Curves
from onnxprune.plans import Plan

WIDE = """<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,3,6,6] x) => (float[N,5,6,6] y) {
  a = Conv (x, w0) b = Relu (a) c = Conv (b, w1) d = Relu (c) e = Conv (d, w2) f = Add (e, b) y = Conv (f, w3) }"""


def wide_model(seed: int = 0) -> Model:
    """Groups w0 of 64 channels (a residual stream) and w1 of 96, so that blocks of 16 leave something to choose."""
    proto = onnx.parser.parse_model(WIDE)
    rng = np.random.default_rng(seed)
    for name, shape in {"w0": (64, 3), "w1": (96, 64), "w2": (64, 96), "w3": (5, 64)}.items():
        values = rng.standard_normal((*shape, 1, 1)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


def kept_counts(made: Plan, analysis: Analysis) -> dict[str, int]:
    """Channels left per group."""
    gone = {name: len(r.removed) for name, r in made.groups.items()}
    return {g.name: g.channels - gone.get(g.name, 0) for g in analysis.groups}


def share(made: Plan, analysis: Analysis, measure: str) -> float:
    """The share of a measure that a plan keeps."""
    cost = CostModel(analysis)
    return cost.cost(analysis.kept(made)).ratio(cost.baseline, measure)


class FakeLatency:
    """Seconds that are linear in the kept channels of every group, rounded up to whole blocks; no clock.

    Args:
        analysis: of the model.
        weights: seconds per channel and group, by place; the last one counts for all further groups. A group of
            weight 0 is one whose channels save nothing.
        block: of the kernels.
        base: seconds that nothing saves.
    """

    batch, threads, provider = 1, 1, "FakeExecutionProvider"

    def __init__(
        self, analysis: Analysis, weights: Sequence[float] = (1.0,), block: int = 16, base: float = 0.0
    ) -> None:
        self.groups = [(g.components, weights[min(i, len(weights) - 1)]) for i, g in enumerate(analysis.groups)]
        self.block = block
        self.base = base
        self.baseline = self.seconds(np.ones(analysis.count, bool))

    def seconds(self, kept: Kept) -> float:
        """Seconds of one run."""
        blocks = [weight * -(-int(kept[components].sum()) // self.block) for components, weight in self.groups]
        return 1e-6 * (self.base + self.block * sum(blocks))


def made_curves(
    scores: Scores,
    values: Mapping[str, Sequence[float]],
    *,
    ratios: Sequence[float] | None = None,
    baseline: float = 0.9,
    metric: str = "top1",
    higher_is_better: bool = True,
    bisected: float | None = None,
) -> Curves:
    """Curves with these values at these ratios (default: tenths) of some groups."""
    analysis = scores.analysis
    groups = {}
    for name, column in values.items():
        channels = analysis[name].channels
        at = ratios or [0.1 * (i + 1) for i in range(len(column))]
        points = tuple(CurvePoint(r, int(channels * r + 1e-9), v, None) for r, v in zip(at, column, strict=True))
        groups[name] = Curve(channels, points)
    return Curves(
        analysis.source.fingerprint,
        dict(scores.criterion),
        metric,
        higher_is_better,
        CurvePoint(0.0, 0, baseline, None),
        groups,
        options=analysis.choices.options(),
        bisected=bisected,
    )


def mirrored(curves: Curves) -> Curves:
    """The same curves of a metric where lower is better: 1 - value."""

    def turned(p: CurvePoint) -> CurvePoint:
        return replace(p, value=1 - p.value)

    groups = {n: Curve(c.channels, tuple(turned(p) for p in c.points)) for n, c in curves.groups.items()}
    return replace(curves, groups=groups, baseline=turned(curves.baseline), metric="loss", higher_is_better=False)
