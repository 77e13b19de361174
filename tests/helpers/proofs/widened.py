"""Run float32 models in float64, where a difference by rounding and a small one by intent lie far apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = np.ndarray[Any, Any]
Runner = Callable[[Mapping[str, Array]], list[Any]]

NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16)
# Inputs that stay float32 whatever the data is.
KEPT = {"Resize": (1, 2), "Upsample": (1,), "NonMaxSuppression": (3, 4)}


def widened(proto: ModelProto) -> ModelProto:
    """Return a copy in which every float32 and float16 tensor is float64."""
    out = ModelProto()
    out.CopyFrom(proto)
    _widen(out.graph)
    return out


def _widen(graph: GraphProto) -> None:
    kept = {n.input[i] for n in graph.node for i in KEPT.get(n.op_type, ()) if i < len(n.input)}
    for tensor in graph.initializer:
        if tensor.name not in kept:
            _widen_tensor(tensor)
    for node in graph.node:
        for a in node.attribute:
            if a.HasField("t") and not kept.intersection(node.output):
                _widen_tensor(a.t)
            if node.op_type == "Cast" and a.name == "to" and a.i in NARROW:
                a.i = TensorProto.DOUBLE
            for body in (*a.graphs, a.g):
                if body.node:
                    _widen(body)
    for value in (*graph.input, *graph.output):
        _widen_value(value)
    del graph.value_info[:]


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in NARROW:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def _widen_value(value: ValueInfoProto) -> None:
    if value.type.tensor_type.elem_type in NARROW:
        value.type.tensor_type.elem_type = TensorProto.DOUBLE


def runner(proto: ModelProto, *, slow: bool) -> Runner | None:
    """Return a function that runs a model in float64; None if there are no kernels for it.

    Args:
        proto: a float32 model.
        slow: use onnx's reference implementation where onnxruntime has no kernel (convolutions, most notably).
    """
    wide = widened(proto)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    run: Any
    try:
        run = onnxruntime.InferenceSession(wide.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime has exceptions of its own
        if not slow:
            return None
        try:
            run = ReferenceEvaluator(wide)
        except Exception:  # the reference raises whatever Python raises
            return None

    def call(feeds: Mapping[str, Array]) -> list[Any]:
        wide_feeds = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in feeds.items()}
        with np.errstate(all="ignore"):
            return list(run.run(None, wide_feeds))

    return call


def differs(one: ModelProto, two: ModelProto, sets: Sequence[Mapping[str, Array]], gap: Any, slow: bool) -> str:
    """Compare two models in float64: "other", "same" or "unclear".

    Args:
        one: a model.
        two: another one, with the same inputs and outputs.
        sets: inputs.
        gap: relative difference of two arrays.
        slow: as for `runner`.
    """
    runners = [runner(p, slow=slow) for p in (one, two)]
    if runners[0] is None or runners[1] is None:
        return "unclear"
    worst = 0.0
    for feeds in sets:
        try:
            results = [r(feeds) for r in runners if r is not None]
        except Exception:  # as above
            return "unclear"
        worst = max(worst, *(gap(a, b) for a, b in zip(*results, strict=True)), 0.0)
    return "other" if worst > 1e-9 else "same" if worst < 1e-12 else "unclear"
