"""Distillation from the original model, by its logits and, where shapes allow, by its features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
import torch
from torch import Tensor
from torch.nn import functional as fn

from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import PROVENANCE, Model
from onnxprune.options.training import TEACHER_RUNTIMES as RUNTIMES
from onnxprune.passes import NORMALIZE, Pipeline
from onnxprune.passes.edit import drop_dead
from onnxprune.planning.analyze import analyze_for
from onnxprune.plans import Plan
from onnxprune.torch_bridge import logits_of, to_torch

_log = logging.getLogger(__name__)

Run = Callable[[Tensor], list[Tensor]]
# Feature name -> axes, and the indices on them that a pruned student has.
KeptIndices = Mapping[str, Sequence[tuple[int, npt.NDArray[np.int64]]]]

# Operators after which a residual sum is the block's output, which the next blocks consume.
_ACTIVATIONS = frozenset(
    ("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
     "Softplus", "Gelu", "Mish", "Swish")
)  # fmt: skip


class Teacher:
    """Trained model in inference: returns its logits and the values of some of its tensors.

    Args:
        model: model with one input. A final Softmax or LogSoftmax is removed; only the first output is used.
        features: names of tensors of the normalized graph that are returned beside the logits.
        outputs: names of tensors that are returned in place of the logits.
        kept: feature name -> axis -> the indices that a pruned student has; other indices are dropped.
        runtime: "onnxruntime", "torch" (converted), or "auto": onnxruntime on the CPU, torch on CUDA, where nothing
            then crosses to the host; the other one where the first cannot take the model.
        device: "cpu", "cuda" or "cuda:1"; onnxruntime knows the first CUDA device only.
        threads: onnxruntime's, 0 for all cores; PyTorch's are set for the whole process by `torch.set_num_threads`.

    Attributes:
        names: names of the tensors that a call returns, the logits first.
        runtime: "onnxruntime" or "torch".

    Raises:
        OnnxPruneError: several inputs, an unknown feature, runtime or device, a model the runtime cannot take.
    """

    def __init__(
        self, model: Model, *, features: Sequence[str] = (), runtime: str = "auto", device: str = "cpu",
        threads: int = 0, kept: KeptIndices | None = None, outputs: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if runtime not in RUNTIMES:
            raise unknown("runtime", runtime, RUNTIMES)
        self._device = _device(device)
        view = Pipeline(NORMALIZE)(model if outputs else logits_of(model))
        if len(view.graph.inputs) != 1:
            raise OnnxPruneError(f"the teacher has {len(view.graph.inputs)} inputs; training feeds one")
        known = {t.name for n in view.graph.nodes for t in n.outputs if t.name}
        for name in (*outputs, *features):
            if name not in known:
                raise unknown("tensor of the teacher", name, known)
        source = view.graph.inputs[0]
        self._input: str = source.name
        bfloat = np.dtype(source.dtype).name == "bfloat16"  # which numpy does not know
        self._dtype = torch.bfloat16 if bfloat else torch.from_numpy(np.zeros(0, source.dtype)).dtype
        samples = (source.shape or [None])[0]
        self._batch = samples if isinstance(samples, int) and samples > 0 else None
        first = tuple(outputs) or (view.graph.outputs[0].name,)
        self.names: tuple[str, ...] = (*first, *features)
        self._kept = [() if name in first else tuple((kept or {}).get(name, ())) for name in self.names]
        self.runtime, self._run = self._started(view, runtime, threads)

    def _started(self, view: Model, runtime: str, threads: int) -> tuple[str, Run]:
        """Return a runtime that can run the model, and its runner."""
        order = [runtime]
        if runtime == "auto":
            order = ["torch", "onnxruntime"] if self._device.type == "cuda" else ["onnxruntime", "torch"]
        problem: OnnxPruneError | None = None
        for name in order:
            try:
                run = self._converted(view) if name == "torch" else self._loaded(view, threads)
            except OnnxPruneError as err:
                problem = problem or err  # the error of the preferred runtime describes the model's problem
                _log.info("the teacher does not run in %s: %s", name, err.what)
            else:
                return name, run
        assert problem is not None
        raise problem

    def _converted(self, view: Model) -> Run:
        names = list(dict.fromkeys(self.names))
        module = to_torch(view, outputs=names).eval().requires_grad_(False).to(self._device)

        def run(inputs: Tensor) -> list[Tensor]:
            results = module(inputs.to(self._device, self._dtype))
            found = dict(zip(names, [results] if isinstance(results, Tensor) else results, strict=True))
            return [found[name].to(inputs.device) for name in self.names]

        return run

    def _loaded(self, view: Model, threads: int) -> Run:
        exposed = _exposed(view, list(dict.fromkeys(self.names)))
        session = Session(exposed, device=self._device.type, threads=threads)

        def run(inputs: Tensor) -> list[Tensor]:
            array = np.ascontiguousarray(inputs.detach().to("cpu", self._dtype).numpy())
            return [torch.from_numpy(a).to(inputs.device) for a in session.run({self._input: array}, self.names)]

        return run

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> list[Tensor]:
        """Return logits and features of a batch.

        Args:
            inputs: the model's inputs [n, ...]. A model with a fixed batch runs in parts of that size.

        Returns:
            the tensors of `names`, without gradients, on the inputs' device.
        """
        n, batch = len(inputs), self._batch
        if batch is None or n == batch:
            found = self._run(inputs)
        else:
            filled = torch.cat([inputs, inputs[-1:].expand(-n % batch, *inputs.shape[1:])])
            pieces = [self._run(part) for part in filled.split(batch)]
            found = [torch.cat(column)[:n] for column in zip(*pieces, strict=True)]
        for i, axes in enumerate(self._kept):
            for axis, indices in axes:
                found[i] = found[i].index_select(axis, torch.from_numpy(indices).to(found[i].device))
        return found


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise OnnxPruneError(f"unknown device {name!r}", fix="cpu, cuda or cuda:1") from err
    if device.type not in ("cpu", "cuda"):
        raise OnnxPruneError(f"a teacher does not run on {name!r}", fix="cpu, cuda or cuda:1")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OnnxPruneError("CUDA was asked for, but torch finds no device", fix="use the device cpu")
    return device


def _exposed(view: Model, names: Sequence[str]) -> Model:
    """Return the model with these tensors as its outputs."""
    out = view.copy()
    tensors = out.graph.tensors()
    dtypes = witness(view).dtypes
    for name in names:
        if tensors[name].dtype is None:  # an output must say its element type
            tensors[name].dtype = dtypes.get(name, np.dtype(np.float32))
    out.graph.outputs = [tensors[name] for name in names]
    drop_dead(out.graph)
    return out


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `T^2 * KL(softmax(teacher / T) || softmax(student / T))`, Hinton, Vinyals & Dean 2015.

    The factor T^2 keeps the gradients as large as those of the labels' loss, whatever the temperature.

    Args:
        student: logits [n, classes] or [n, classes, ...]; pixels count as samples.
        teacher: likewise; no gradient goes there.
        temperature: T > 0; larger values weigh the teacher's scores of wrong classes more.

    Returns:
        the mean over samples, >= 0, in nats; a scalar.

    Raises:
        OnnxPruneError: other shapes, or a temperature that is not positive.
    """
    if not (isfinite(temperature) and temperature > 0):
        raise OnnxPruneError(f"a temperature is a number above 0; got {temperature!r}", fix="for example 4")
    if student.shape != teacher.shape or student.ndim < 2:
        raise OnnxPruneError(
            f"the student's logits are {list(student.shape)}, the teacher's {list(teacher.shape)}",
            fix="both must be [samples, classes, ...]: use the model that the student was pruned from",
        )
    ours = fn.log_softmax(_wide(student) / temperature, 1)
    theirs = fn.log_softmax(_wide(teacher.detach()) / temperature, 1)
    return fn.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean() * temperature**2


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean squared difference of features, relative to the teacher's variance; Romero et al. 2015 (FitNets).

    Dividing by the variance weighs features of all depths alike: a student that returns the teacher's mean scores 1.

    Args:
        student: features [n, ...].
        teacher: features of the same shapes, without gradient.

    Returns:
        the mean over features; a scalar.

    Raises:
        OnnxPruneError: none, or features that do not pair.
    """
    if not student or len(student) != len(teacher):
        raise OnnxPruneError(f"{len(student)} features of the student do not pair with {len(teacher)} of the teacher")
    terms = []
    for i, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        if ours.shape != theirs.shape:
            raise OnnxPruneError(
                f"the student's feature is {list(ours.shape)}, the teacher's {list(theirs.shape)}",
                where=f"feature {i}",
                fix="match only tensors whose channels were not pruned (see matching_features)",
            )
        wanted = _wide(theirs.detach())
        spread = wanted.var(correction=0).clamp_min(torch.finfo(wanted.dtype).tiny ** 0.5)
        terms.append(fn.mse_loss(_wide(ours), wanted) / spread)
    return torch.stack(terms).mean()


def _wide(t: Tensor) -> Tensor:
    """Convert to at least float32: sums of exponentials and squares overflow in half precision."""
    return t if t.dtype == torch.float64 else t.float()


def matching_features(student: Model, teacher: Model) -> tuple[str, ...]:
    """Return residual outputs that both models have under the same name and shape, in graph order.

    A residual output is the sum of two activations, or the output of the activation function after it if that is the
    sum's only consumer: the input of the next block. If channels of a residual stream were removed, the shapes differ;
    `Constraints(protect=["residual"])` prevents this.

    Args:
        student: the pruned model.
        teacher: the original.

    Returns:
        names of tensors of the normalized graphs; outputs of the models are not among them.
    """
    ours, theirs = _stage_outputs(student), _stage_outputs(teacher)
    return tuple(name for name, shape in ours.items() if theirs.get(name) == shape)


def features_under(plan: Plan, student: Model, teacher: Model) -> KeptIndices:
    """Return residual outputs and outputs of activation functions that student and teacher share, in graph order.

    The plan allows matching features in pruned residual streams and inside blocks as well.

    Args:
        plan: plan by which the student was pruned from the teacher.
        student: the pruned model, trained or not.
        teacher: the original.

    Returns:
        for every feature, by its name in the normalized graphs, the axes that lost indices and the remaining indices.

    Raises:
        OnnxPruneError: the plan is not the teacher's, or the student's metadata names another plan.
    """
    said = student.metadata
    if said.get(f"{PROVENANCE}.source") == teacher.fingerprint and said.get(f"{PROVENANCE}.plan") != plan.digest:
        raise OnnxPruneError(
            "the model was pruned from this teacher by another plan", fix="pass the plan that it was pruned by"
        )
    analysis = analyze_for(teacher, plan)
    left = analysis.kept(plan)
    ours, theirs = _stage_outputs(student, activations=True), _stage_outputs(teacher, activations=True)
    found: dict[str, list[tuple[int, npt.NDArray[np.int64]]]] = {}
    for name, shape in ours.items():
        if name not in theirs:
            continue
        masks = [analysis.keep(name, axis, left) for axis in range(1, len(theirs[name]) + 1)]
        if shape == tuple(n if m is None else int(m.sum()) for n, m in zip(theirs[name], masks, strict=True)):
            found[name] = [(axis, np.flatnonzero(m)) for axis, m in enumerate(masks, 1) if m is not None]
    return found


def _stage_outputs(model: Model, *, activations: bool = False) -> dict[str, tuple[int, ...]]:
    """Return residual outputs, optionally those of activation functions, with their shapes without the batch."""
    normal = Pipeline(NORMALIZE)(model)
    seen = witness(normal)
    outputs = {t.name for t in normal.graph.outputs}
    computed = {t.name for t in normal.graph.inputs}  # from the input, not from weights alone
    found: dict[str, tuple[int, ...]] = {}
    for node in normal.graph.nodes:
        data = [t for t in node.inputs if t.name in computed]
        if not data:
            continue
        computed.update(t.name for t in node.outputs if t.name)
        if node.domain:
            continue
        shape = seen.shapes.get(node.outputs[0].name)
        if activations and node.op in _ACTIVATIONS:
            out = node.outputs[0]
        elif node.op in ("Add", "Sum") and len(data) > 1 and all(seen.shapes.get(t.name) == shape for t in data):
            out = _activated(node.outputs[0])
        else:
            continue
        if shape is None or len(shape) < 2:
            continue
        dtype = seen.dtypes.get(out.name)
        if out.name not in outputs and dtype is not None and dtype.kind in "fV":
            found[out.name] = shape[1:]
    return found


def _activated(t: gs.Variable) -> gs.Variable:
    """Return the output of a tensor's only consumer if that is an activation function."""
    reader = t.outputs[0] if len(t.outputs) == 1 else None
    return reader.outputs[0] if reader is not None and reader.op in _ACTIVATIONS and not reader.domain else t
