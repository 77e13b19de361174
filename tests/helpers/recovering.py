"""Shared helpers of the recovery tests: pruned models, tensors inside them, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import numpy_helper
from random_graphs.graphs import SIDE

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.calibration import Calibration, exposing
from onnxprune.execution.data import Data, load_data
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.passes import Pipeline, StripChannels
from onnxprune.pipeline import plan, score
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, Removal

Array = NDArray[Any]
MODELS = Path(__file__).parent.parent.parent / "models"
FIRST = "a = Conv <pads = [1, 1, 1, 1]> (x, w, d) b = Tanh (a) "


def parsed(
    body: str,
    shapes: dict[str, tuple[int, ...]],
    result: str = "float[N,a,b,c] y",
    *,
    x: str = "float[N,3,6,6]",
    dtype: Any = np.float32,
    values: dict[str, Array] | None = None,
) -> Analysis:
    """A model from text with random constants; those named s* are positive."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> agraph ({x} x) => ({result}) {{ {body} }}'
    if dtype != np.float32:
        text = text.replace("float[", {np.float16: "float16[", np.float64: "double["}[dtype])
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    made = {
        n: rng.uniform(0.5, 2, s) if n.startswith("s") else rng.standard_normal(s) * max(1, np.prod(s[1:])) ** -0.5
        for n, s in shapes.items()
    }
    for name, array in {**made, **(values or {})}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array).astype(dtype), name))
    return op.analyze(load(proto))


def noise(count: int, *shape: int, seed: int = 1) -> Data:
    """Samples without labels."""
    shape = shape or (3, SIDE, SIDE)
    return Data(np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32), None, "noise")


def samples(data: Data, batch: int = 16) -> Calibration:
    """A calibration on one thread."""
    return Calibration(data, batch=batch, threads=1)


def cut(analysis: Analysis, removed: Mapping[str, Sequence[int]]) -> tuple[Plan, Model]:
    """Return a plan that removes some channels of some groups, and the pruned model as read from a file."""
    groups = {name: Removal(analysis[name].channels, tuple(gone)) for name, gone in removed.items()}
    made = Plan(analysis.source.fingerprint, groups)
    return made, load(to_proto(Pipeline([StripChannels(made, analysis)])(analysis.model)))


def cut_at_random(analysis: Analysis, seed: int, share: float = 0.5) -> tuple[Plan, Model]:
    """Remove about a share of every group's channels."""
    rng = np.random.default_rng(seed)
    gone = {}
    for g in analysis.groups:
        count = min(g.channels - 1, int(rng.binomial(g.channels, share)))
        gone[g.name] = sorted(rng.choice(g.channels, count, replace=False).tolist())
    return cut(analysis, gone)


def digits(name: str, share: float, count: int = 120) -> tuple[Analysis, Plan, Model, Data]:
    """Return a bundled model, pruned by the norms of its filters to a share of its MACs, and training samples."""
    analysis = op.analyze(load(MODELS / f"{name}.onnx"))
    made = plan(score(analysis, "l2"), Target(macs=share))
    data = load_data("digits:train", images=count)
    if name == "digits_keras":
        data = Data(np.ascontiguousarray(data.x.transpose(0, 2, 3, 1)), data.y, data.name)
    return analysis, made, cut(analysis, {n: r.removed for n, r in made.groups.items()})[1], data


def tensors(model: Model, names: Sequence[str], x: Array) -> list[Array]:
    """Tensors inside a model on a batch, at least float32."""
    dtype = np.dtype(model.graph.inputs[0].dtype)
    return Session(exposing(model, names), threads=1).run({model.graph.inputs[0].name: x.astype(dtype)})


def outputs(model: Model, x: Array) -> Array:
    """The first output."""
    [found] = tensors(model, [model.graph.outputs[0].name], x)
    return found


def constants(model: Model) -> dict[str, Array]:
    """Values of all constants."""
    return {n: np.asarray(t.values) for n, t in model.graph.tensors().items() if isinstance(t, gs.Constant)}


def raw(model: Model) -> bytes:
    """The file's bytes."""
    return bytes(to_proto(model).SerializeToString())


def changed_constants(before: Model, after: Model) -> set[str]:
    """Names of the constants that differ, new ones included."""
    was, now = constants(before), constants(after)
    return {n for n in now if n not in was or was[n].tobytes() != now[n].tobytes()}
