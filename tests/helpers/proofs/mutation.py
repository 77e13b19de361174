"""Subjects of mutation tests: correctly pruned models, inputs that exercise them, and the effects of mutants.

Whether a mutant computes another function is decided without the proof: it and the model that it was made from run in
onnxruntime, one thread, without optimizations, so that unchanged nodes give unchanged bits. Inputs differ in size and
in distribution. Small changes come with a *probe*, the same change made large: if that shows, so does the small one in
exact arithmetic. A difference that rounding might explain is decided in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from networks.residual import with_blocks
from networks.structures import FOLDER, fill, unpack
from onnx import helper, numpy_helper

from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.passes import Pipeline
from onnxprune.passes.remove_blocks import removal_passes
from onnxprune.pipeline import analyze
from onnxprune.plans import Plan
from onnxprune.verification import verify
from proofs import proof_cases
from proofs.widened import differs

ROOT = Path(__file__).resolve().parents[3]
Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

# Above this difference, relative to the scale of its channel, no sum in another order explains it.
CERTAIN = {"float64": 1e-8, "float32": 1e-3, "float16": 3e-2}

# Elements of all tensors up to which the reference implementation is fast enough.
SLOW = 10**6

# Small structures of diverse kinds; the first ones are the fastest.
STRUCTURES = (
    "hf_vit.ts", "squeezenet1_1.ts", "hf_bert.ts", "timm_test_nfnet.ts", "light_shufflenet", "hf_llama.ts",
    "hf_whisper_encoder.ts", "mobilenet_v2.dyn", "timm_test_vit_relpos.ts", "hf_t5_encoder.ts", "hf_segformer.ts",
    "shufflenet_v2_x1_0.dyn", "timm_test_efficientnet_ln.ts", "hf_gpt2.ts", "light_squeezenet", "hf_swin.ts",
    "mnasnet1_0.dyn", "timm_test_maxvit.ts", "hf_albert.ts", "mobilenet_v3_large.ts", "hf_clip_vision.ts",
    "timm_ghostnet_050.ts", "hf_gemma.ts", "timm_regnetx_002.ts", "hf_mobilebert.ts", "efficientnet_b0.ts",
    "timm_mobilenetv3_small_050.ts", "hf_bloom.ts", "keras_mobilenetv2", "timm_starnet_s050.ts", "hf_beit.ts",
    "timm_skresnet18.ts", "hf_dinov2.ts", "timm_edgenext_xx_small.ts", "hf_opt.ts", "regnet_y_400mf.dyn",
    "timm_efficientvit_m0.ts", "hf_mistral.ts", "timm_legacy_seresnet18.ts", "hf_qwen2.ts", "mobilenet_v2.bn",
    "timm_repghostnet_050.ts", "hf_roberta.ts", "timm_pvt_v2_b0.ts", "hf_gpt_neox.ts", "timm_mobilenetv2_035.ts",
    "hf_deit.ts", "raft_small.dyn", "hf_electra.ts", "ssdlite320_mobilenet_v3_large.ts",
)  # fmt: skip
DIGITS = ("digits_cnn", "digits_cnn_folded", "digits_keras")


class NotASubject(Exception):
    """The model cannot be mutated: nothing to prune, or its pruned version does not run."""


@dataclass
class Subject:
    """A correctly pruned model and everything that mutants of it share.

    Attributes:
        name: Name of the model and of its variant.
        original: Model before pruning.
        analysis: Analysis of the original.
        plan: Removed channels.
        proto: the pruned model; mutators copy it.
        feeds: inputs of several sizes and distributions that the pruned model accepts.
        known: shape and element type of every tensor of the pruned graph with the first feeds.
        small: values of tensors of at most 16 elements with the first feeds.
        tiny: (initializer, axis, index) of output columns that are a million times smaller than the others.
    """

    name: str
    original: onnx.ModelProto
    analysis: Analysis
    plan: Plan
    proto: onnx.ModelProto
    feeds: tuple[Feeds, ...]
    known: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = field(default_factory=dict, repr=False)
    small: dict[str, Array] = field(default_factory=dict, repr=False)
    tiny: tuple[str, int, int] | None = None
    _expected: dict[int, list[Any]] = field(default_factory=dict, repr=False)

    def copy(self) -> onnx.ModelProto:
        """A copy of the pruned model to edit."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return proto

    def stripped(self, plan: Plan) -> onnx.ModelProto:
        """The original pruned by another plan."""
        return to_proto(Pipeline(removal_passes(plan, self.analysis))(self.analysis.model))

    def expected(self, which: int) -> list[Any]:
        """Outputs of the pruned model."""
        if which not in self._expected:
            self._expected[which] = session(self.proto).run(None, dict(self.feeds[which]))
        return self._expected[which]

    def accepts(self, proto: onnx.ModelProto) -> str:
        """Verdict of the proof: "" if it accepts, else the error."""
        try:
            verify(self.analysis, self.plan, load(proto))
        except OnnxPruneError as err:
            return f"{type(err).__name__}: {err.what}"
        return ""

    def change(self, proto: onnx.ModelProto) -> str:
        """Return the kind of difference: "invalid" (onnxruntime rejects it), "same", "unclear" (rounding), "other"."""
        try:
            mutant = session(proto)
        except Exception:  # onnxruntime has exceptions of its own
            return "invalid"
        if [o.name for o in mutant.get_outputs()] != [o.name for o in self.proto.graph.output]:
            return "other"
        unclear = False
        for which, feeds in enumerate(self.feeds):
            try:
                got = mutant.run(None, dict(feeds))
            except Exception:  # the pruned model runs with these
                return "other"
            for a, b in zip(got, self.expected(which), strict=True):
                found = difference(a, b)
                if found > CERTAIN.get(getattr(b, "dtype", np.dtype(np.float32)).name, 0.0):
                    return "other"
                unclear |= found > 0
        if not unclear:
            return "same"
        work = sum(int(np.prod(shape)) for shape, _ in self.known.values())
        return differs(proto, self.proto, self.feeds, difference, slow=work < SLOW)


def session(proto: onnx.ModelProto) -> Any:
    """A session that computes node by node, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def difference(actual: Any, expected: Any) -> float:
    """Largest difference relative to the scale of its channel; infinite if type, shape or non-finite places differ."""
    if not isinstance(expected, np.ndarray):
        return 0.0 if str(actual) == str(expected) else float("inf")
    if not isinstance(actual, np.ndarray) or actual.dtype != expected.dtype or actual.shape != expected.shape:
        return float("inf")
    if np.array_equal(actual, expected, equal_nan=expected.dtype.kind == "f"):
        return 0.0
    if expected.dtype.kind != "f":
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    worst = 0.0
    gap, size = np.abs(np.where(finite, a - b, 0)), np.abs(np.where(finite, b, 0))
    for axis in {min(1, b.ndim - 1), b.ndim - 1} if b.ndim else {None}:
        others = None if axis is None else tuple(i for i in range(b.ndim) if i != axis)
        channel, scale = gap.max(axis=others), size.max(axis=others)
        worst = max(worst, float(np.max(np.where(channel > 0, channel / np.maximum(scale, 1e-300), 0))))
    return worst


# ------------------------------------------------------------------------------------------------------- inputs


def _assignments(proto: onnx.ModelProto) -> Iterator[dict[object, int]]:
    """Numbers for named and unnamed dynamic dimensions, several sets: batches, lengths and sides of their own."""
    names: dict[object, int] = {}
    initialized = {t.name for t in proto.graph.initializer}
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if not dim.HasField("dim_value") and value.name not in initialized:
                names.setdefault(dim.dim_param or (value.name, axis), axis if len(dims) <= 3 or axis < 2 else 2)
    batches, lengths = (1, 2, 3, 4), (9, 16, 33, 12)
    for sides in ((64, 96, 80, 72), (224, 256, 224, 256), (16, 14, 19, 24)):
        for which in range(4):
            out: dict[object, int] = {}
            for i, (name, axis) in enumerate(names.items()):
                table = {0: batches, 1: lengths}.get(axis, sides)
                shift = 0 if axis == 0 else i
                out[name] = table[(which + shift) % 4]
            yield out


def _feeds(proto: onnx.ModelProto, numbers: Mapping[object, int], kind: str, largest: int) -> Feeds:
    rng = np.random.default_rng([largest, *kind.encode()])
    initialized = {t.name for t in proto.graph.initializer}
    out: dict[str, Array] = {}
    for value in proto.graph.input:
        if value.name in initialized:
            continue
        tensor = value.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else numbers[d.dim_param or (value.name, axis)]
            for axis, d in enumerate(tensor.shape.dim)
        ]
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if dtype.kind == "b":
            out[value.name] = np.asarray(rng.random(shape) < 0.5)
        elif dtype.kind in "iu":
            out[value.name] = rng.integers(0, largest, shape).astype(dtype)
        elif kind == "image":
            out[value.name] = rng.uniform(0, 255, shape).astype(dtype)
        else:
            scale = {"normal": 1.0, "large": 1000.0}[kind]
            out[value.name] = (scale * rng.standard_normal(shape)).astype(dtype)
    return out


def exercising(proto: onnx.ModelProto) -> tuple[Feeds, ...]:
    """Inputs that a model accepts: two to four sizes, normal values, images of 0..255 and large ones.

    Raises:
        NotASubject: none is accepted.
    """
    run = session(proto)

    def accepted(feeds: Feeds) -> bool:
        try:
            run.run(None, dict(feeds))
        except Exception:  # onnxruntime has exceptions of its own
            return False
        return True

    largest = 0
    found: list[Feeds] = []
    kinds = itertools.cycle(("normal", "image", "large"))
    seen = []
    for numbers in _assignments(proto):
        if len(found) >= 4 or (numbers in seen and len(found) >= 3):
            break
        kind = next(kinds)
        rows = [largest] if largest else [1000, 99, 30, 2]
        for n in rows:
            feeds = _feeds(proto, numbers, kind, n)
            if accepted(feeds):
                found.append(feeds)
                seen.append(numbers)
                largest = n
                break
    if not found:
        raise NotASubject("its pruned version runs with none of the inputs")
    return tuple(found)


# ------------------------------------------------------------------------------------------------------- subjects


def subject(name: str, original: onnx.ModelProto, *, tiny: tuple[str, int, int] | None = None) -> Subject:
    """Prune a model to half of its channels and find inputs for it.

    Raises:
        NotASubject: nothing to prune, or the pruned model runs with none of the inputs.
        OnnxPruneError: the compiler refuses the model.
    """
    analysis = analyze(load(original))
    if not analysis.groups:
        raise NotASubject("nothing to prune")
    plan = proof_cases.halved(analysis)
    if name.endswith("+blocks"):
        if len(analysis.free_blocks) < 2:
            raise NotASubject("no blocks to choose from")
        plan = with_blocks(analysis, plan, [b.name for b in analysis.free_blocks[::2]])
    pruned: Model = Pipeline(removal_passes(plan, analysis))(analysis.model)
    proto = to_proto(pruned)
    out = Subject(name, original, analysis, plan, proto, exercising(proto), tiny=tiny)
    every = out.copy()
    names = list(dict.fromkeys(o for n in every.graph.node for o in n.output if o))
    del every.graph.output[:]
    every.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    values = session(every).run(names, dict(out.feeds[0]))
    for key, value in [*zip(names, values, strict=True), *out.feeds[0].items()]:
        if isinstance(value, np.ndarray):
            out.known[key] = (value.shape, value.dtype)
            if value.size <= 16:
                out.small[key] = value
    for tensor in proto.graph.initializer:
        out.known[tensor.name] = (tuple(tensor.dims), np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)))
    return out


def structure(name: str) -> onnx.ModelProto:
    """A structure of models/structures, filled."""
    return fill(unpack(FOLDER / f"{name}.onnx.xz"))


def with_dead_channels(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy in which a bias of -100 (or a norm's shift) switches off every second rectifier; None if there is none."""
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    weights = {t.name: t for t in out.graph.initializer}
    rectified = {n.input[0] for n in out.graph.node if n.op_type in ("Relu", "Clip")}
    biases = [
        n.input[2]
        for n in out.graph.node
        if n.op_type in ("Conv", "Gemm", "BatchNormalization")
        and n.output[0] in rectified
        and len(n.input) > 2
        and n.input[2] in weights
    ]
    for name in biases[::2]:
        tensor = weights[name]
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((values - 100).astype(values.dtype), name))
    return out if biases else None


def with_tiny_column(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, int, int]] | None:
    """A copy in which one channel of an output is a million times smaller than the others, and its weight's column."""
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    weights = {t.name: t for t in out.graph.initializer}
    ends = {o.name for o in out.graph.output}
    for node in reversed(out.graph.node):
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not ends.intersection(node.output):
            continue
        if len(node.input) < 2 or node.input[1] not in weights:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else numpy_helper.to_array(weights[node.input[1]]).ndim - 1
        values = numpy_helper.to_array(weights[node.input[1]]).copy()
        index = values.shape[axis] // 2
        np.moveaxis(values, axis, 0)[index] *= 1e-6
        weights[node.input[1]].CopyFrom(numpy_helper.from_array(values, node.input[1]))
        if len(node.input) > 2 and node.input[2] in weights:
            bias = numpy_helper.to_array(weights[node.input[2]]).copy()
            bias.reshape(-1)[index] *= 1e-6
            weights[node.input[2]].CopyFrom(numpy_helper.from_array(bias, node.input[2]))
        return out, (node.input[1], axis, index)
    return None


def sources() -> dict[str, Any]:
    """Return constructors of every original, by name: hand-made ones, digits with variants, structures."""
    out: dict[str, Any] = {}
    done: list[onnx.ModelProto] = []
    for case in proof_cases.cases().values():
        if not any(case.original is other for other in done):
            done.append(case.original)
            out[f"case:{case.name}"] = lambda case=case: (case.original, None)
    for name in (*DIGITS, *STRUCTURES):

        def plain(name: str = name) -> onnx.ModelProto:
            return onnx.load(ROOT / "models" / f"{name}.onnx") if name in DIGITS else structure(name)

        out[name] = lambda plain=plain: (plain(), None)
        out[f"{name}+dead"] = lambda plain=plain: (with_dead_channels(plain()), None)
        out[f"{name}+tiny"] = lambda plain=plain: with_tiny_column(plain()) or (None, None)
        out[f"{name}+blocks"] = lambda plain=plain: (plain(), None)
    return out
