"""`to_torch` and `write_back`, the two directions of the conversion, and the bindings that join them.

Only onnx2torch's converters are used, not its `convert`: that stores weights of MatMul, Add and Mul in buffers, which
optimizers skip, unties shared weights, and returns whole tuples for nodes with several outputs. Here every initializer
becomes one tensor of the module, bound to its name, and the graph itself never changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import getitem
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from torch import fx, nn

from onnxprune.analysis.group_naming import human_name
from onnxprune.analysis.shapes.shape_inference import Witness, witness
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.ir.model import Array, Model
from onnxprune.ir.writer import to_skeleton
from onnxprune.passes import NORMALIZE, Pipeline
from onnxprune.passes.edit import drop_dead
from onnxprune.torch_bridge import converters  # noqa: F401  (registers our converters)
from onnxprune.torch_bridge._weights import raw_tensors, trains
from onnxprune.torch_bridge.registry import find, since_version

_KEY = "onnxprune.bindings"


@dataclass(frozen=True)
class Binding:
    """Location of a graph constant in the module.

    Attributes:
        initializer: Name of the constant in the normalized graph.
        path: Key in the module's `state_dict()`.
        kind: "trained" (a parameter), "statistic" (of BatchNorm, written back) or "frozen" (a buffer, not written).
        op: Operator that reads the constant.
        transposed: The module holds the transpose.
        scale: Factor of the module's tensor relative to the constant (Gemm's alpha or beta).
    """

    initializer: str
    path: str
    kind: Literal["trained", "statistic", "frozen"]
    op: str
    transposed: bool = False
    scale: float = 1.0


class _Tensor:
    """Initializer as converters expect it, over an array that is not copied into a message first."""

    def __init__(self, name: str, values: Array) -> None:
        self.name, self.values = name, values

    def to_numpy(self) -> Array:
        return np.array(self.values)

    def to_torch(self) -> torch.Tensor:
        return _tensor(self.values)


class _BridgeGraph(OnnxGraph):
    """Graph as onnx2torch expects it; `shared` are the initializers that several nodes read."""

    def __init__(self, proto: onnx.GraphProto, constants: dict[str, Array], shared: set[str]) -> None:
        super().__init__(proto)
        self._initializers = {name: _Tensor(name, values) for name, values in constants.items()}
        self.shared = shared


def to_torch(model: Model, *, outputs: Sequence[str] | None = None, freeze: Sequence[str] = ()) -> fx.GraphModule:
    """Return a PyTorch module that computes the model, with the model's weights as parameters.

    The module takes the model's inputs in order and in the model's own layout (Keras models stay NHWC), and returns
    its output, or a tuple of several outputs. BatchNorm, convolutions and Gemm become modules of `torch.nn`;
    parameters have the names of their weights. The module is in training mode, as every new `nn.Module`.

    Args:
        model: Any model that `load` reads.
        outputs: Names of tensors of the normalized graph to return instead of the graph's outputs.
        freeze: Patterns of initializer names that become buffers instead of parameters, such as "features.0.*".

    Raises:
        OnnxPruneError: An operator without a converter (with operator, version and node), an unknown output, a
            pattern that matches no weight.
    """
    prepared = Pipeline(NORMALIZE)(model)
    graph = prepared.graph
    if outputs is not None:
        tensors = {t.name: t for n in graph.nodes for t in n.outputs} | {t.name: t for t in graph.inputs}
        for name in outputs:
            if name not in tensors:
                raise unknown("tensor", name, tensors)
        dtypes = witness(prepared).dtypes
        graph.outputs = [tensors[name] for name in outputs]
        for t in graph.outputs:
            t.dtype = t.dtype or dtypes.get(t.name, np.dtype(np.float32))
        drop_dead(graph)
    return _Assembly(prepared, freeze).module()


def bindings(module: nn.Module) -> tuple[Binding, ...]:
    """Return the binding of every constant of the graph that the module holds: trained, statistic or frozen.

    Raises:
        OnnxPruneError: The module was not made by `to_torch`.
    """
    inner = _unwrapped(module)
    found = getattr(inner, "meta", {}).get(_KEY) or getattr(inner, "onnx_bindings", None)
    if found is None:
        raise OnnxPruneError(
            "this module was not made by to_torch, so its tensors are not bound to a graph",
            fix="pass the module that to_torch returned, a copy or a wrapper of it",
        )
    return tuple(found)


def write_back(module: nn.Module, model: Model) -> Model:
    """Return the model with the module's trained tensors and BatchNorm statistics.

    Graph, names, metadata and interface are the model's. Copies of the module (`deepcopy`, averaged weights, DDP,
    `torch.compile`) are written back like the module itself.

    Args:
        module: Module from `to_torch`, trained.
        model: Model that `to_torch` converted, or one of the same structure.

    Raises:
        OnnxPruneError: The module was made from another graph, or a tensor is not finite.
    """
    bound = [b for b in bindings(module) if b.kind != "frozen"]
    state = _unwrapped(module).state_dict()
    prepared = Pipeline(NORMALIZE)(model)
    constants = {t.name: t for n in prepared.graph.nodes for t in n.inputs if isinstance(t, gs.Constant)}
    for b in bound:
        target = constants.get(b.initializer)
        if target is None or b.path not in state:
            raise OnnxPruneError(
                f"the module and the model do not belong together: no {b.initializer!r}",
                fix="write back into the model that to_torch was called with",
            )
        tensor = state[b.path].detach().cpu()
        value = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).numpy()
        if b.scale != 1:
            value = value / b.scale
        value = value.T if b.transposed else value
        if value.shape != tuple(target.values.shape):
            raise OnnxPruneError(
                f"the module holds {list(value.shape)}, the model {list(target.values.shape)}",
                where=f"initializer {b.initializer!r}",
                fix="write back into the model that to_torch was called with",
            )
        if not np.isfinite(value).all():
            raise OnnxPruneError("the trained weights are not finite", where=f"initializer {b.initializer!r}")
        target._values = np.ascontiguousarray(value.astype(target.values.dtype))
    return prepared


def logits_of(model: Model) -> Model:
    """Return the model without its final Softmax (or LogSoftmax); the model itself if it has none.

    Keras models return probabilities; training needs the logits. Initializers keep their names, so a module of the
    returned model can be written back into the complete one.
    """
    for index, t in enumerate(model.graph.outputs):
        producer = t.inputs[0] if t.inputs else None
        if producer is not None and producer.op in ("Softmax", "LogSoftmax") and not producer.domain:
            out = model.copy()
            source = out.graph.outputs[index].inputs[0].inputs[0]
            if source.dtype is None:
                source.dtype = out.graph.outputs[index].dtype
            if source.shape is None:
                source.shape = out.graph.outputs[index].shape
            out.graph.outputs[index] = source
            drop_dead(out.graph)
            return logits_of(out)
    return model


# ------------------------------------------------------------------------------------------------------- assembly


class _Paths:
    """Unique attribute paths for modules and tensors: no path is a prefix of another or hides a method."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.inner: set[str] = set()

    def new(self, name: str) -> str:
        """Return an unused path for a name; dots are kept, other characters invalid in identifiers become `_`."""
        parts = [_identifier(p) for p in name.split(".") if p] or ["tensor"]
        # The path of a tensor cannot be a prefix of others: such a name is joined with `_` instead of dots.
        base, n = ("_" if any(p in self.used for p in _prefixes(".".join(parts))) else ".").join(parts), 1
        while not self._free(path := base if n == 1 else f"{base}_{n}"):
            n += 1
        self.used.add(path)
        self.inner.update(_prefixes(path))
        return path

    def _free(self, path: str) -> bool:
        return path not in self.used and path not in self.inner and not any(p in self.used for p in _prefixes(path))


def _identifier(part: str) -> str:
    clean = re.sub(r"\W", "_", part)
    return f"{clean}_" if hasattr(fx.GraphModule, clean) or clean in ("training", "graph", "meta") else clean


def _prefixes(path: str) -> Iterator[str]:
    for i, letter in enumerate(path):
        if letter == ".":
            yield path[:i]


class _Assembly:
    """Builder of the fx graph, node by node."""

    def __init__(self, prepared: Model, freeze: Sequence[str]) -> None:
        self.graph: gs.Graph = prepared.graph
        self.freeze = freeze
        self.raw = raw_tensors(self.graph)
        self.constants: dict[str, Array] = {}
        uses: dict[str, int] = {}
        for node in self.graph.nodes:
            for t in node.inputs:
                if isinstance(t, gs.Constant) and t.name:
                    self.constants[t.name] = t.values
                    uses[t.name] = uses.get(t.name, 0) + 1
        for pattern in freeze:
            if not any(fnmatchcase(name, pattern) for name in self.constants):
                raise OnnxPruneError(f"nothing to freeze: no weight is named like {pattern!r}")
        proto = to_skeleton(prepared, nest=False)[0]
        _describe(proto, witness(prepared))
        shared = {name for name, n in uses.items() if n > 1}
        self.onnx = _BridgeGraph(proto.graph, self.constants, shared)
        self.domains = {o.domain if o.domain != "ai.onnx" else "": o.version for o in proto.opset_import}
        self.root: dict[str, Any] = {}
        self.paths = _Paths()
        self.fx = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.bound: list[Binding] = []
        # One parameter per initializer and form, so that nodes that share a weight still share it.
        self.tied: dict[tuple[str, bool, float], nn.Parameter] = {}
        self.learned: set[str] = {
            t.name
            for node in self.graph.nodes
            for i, t in enumerate(node.inputs)
            if isinstance(t, gs.Constant) and trains(node, i, t.values, self.raw)
        }

    def module(self) -> fx.GraphModule:
        for i, t in enumerate(self.graph.inputs):
            name = re.sub(r"\W", "_", t.name)
            self.values[t.name] = self.fx.placeholder(name if name.isidentifier() else f"input_{i}")
        by_output = {tuple(n.output_values): n for n in self.onnx.nodes.values()}
        for node in self.graph.nodes:
            self._add(node, by_output[tuple(t.name for t in node.outputs)])
        results = tuple(self._value(t.name, None) for t in self.graph.outputs)
        self.fx.output(results[0] if len(results) == 1 else results)
        self.fx.lint()
        module = fx.GraphModule(self.root, self.fx, "OnnxModule")
        self._frozen_buffers(module)
        module.meta[_KEY] = tuple(self.bound)  # deepcopy keeps meta,
        module.onnx_bindings = tuple(self.bound)  # and pickle keeps attributes
        return module

    def _add(self, node: gs.Node, view: OnnxNode) -> None:
        domain = node.domain if node.domain not in (None, "ai.onnx") else ""
        opset = self.domains.get(domain, 1)
        converter = find(view, opset)
        try:
            made, mapping = converter(view, self.onnx)
        except OnnxPruneError as err:
            raise _at(err, node, since_version(node.op, opset, domain)) from err
        except Exception as err:  # onnx2torch raises bare exceptions of many kinds
            raise OnnxPruneError(
                f"cannot convert {node.op} version {since_version(node.op, opset, domain)} to PyTorch: "
                f"{type(err).__name__}: {err}",
                where=f"node {node.name!r}",
            ) from err
        held: dict[str, tuple[str, bool, float]] = getattr(made, "onnx_parameters", {})
        if held:
            weight = next(iter(held.values()))[0]
            path = self.paths.new(human_name(weight, node.name or weight))
        else:
            path = self.paths.new(node.name.strip("/").replace(".", "_") or node.op)
        self.root[path] = made
        for inner, (name, transposed, scale) in held.items():
            self._bind(made, path, inner, name, node.op, transposed, scale)
        args: list[fx.Node | None] = [self._value(name, node) if name else None for name in mapping.inputs]
        while args and args[-1] is None:
            args.pop()
        call = self.fx.call_module(path, tuple(args))
        call.meta["op"] = f"{domain}::{node.op}" if domain else node.op  # for callers that traverse the graph
        if len(node.outputs) == 1:
            self.values[node.outputs[0].name] = call
        else:
            for i, t in enumerate(node.outputs):
                if t.name:
                    self.values[t.name] = self.fx.call_function(getitem, (call, i))

    def _bind(self, made: nn.Module, path: str, inner: str, name: str, op: str, transposed: bool, scale: float) -> None:
        """Record the binding of a tensor in a module; tie it to other uses of the same initializer."""
        owner_path, _, leaf = inner.rpartition(".")
        owner = made.get_submodule(owner_path)
        tensor = getattr(owner, leaf)
        kind: Literal["trained", "statistic", "frozen"] = "statistic"
        if isinstance(tensor, nn.Parameter):
            kind = "trained"
            if self._frozen(name):
                kind = "frozen"
                delattr(owner, leaf)
                owner.register_buffer(leaf, tensor.detach())
            else:
                setattr(owner, leaf, self.tied.setdefault((name, transposed, scale), tensor))
        self.bound.append(Binding(name, f"{path}.{inner}", kind, op, transposed, scale))

    def _value(self, name: str, node: gs.Node | None) -> fx.Node:
        """Return the fx node of a tensor; initializers become parameters or buffers on first use."""
        if name in self.values:
            return self.values[name]
        if name not in self.constants:
            raise OnnxPruneError(
                f"nothing computes {name!r}", where=f"node {node.name!r}" if node is not None else None
            )
        op = node.op if node is not None else "output"
        tensor = _tensor(self.constants[name])
        learned = name in self.learned and not self._frozen(name)
        path = self.paths.new(_tensor_path(name, node))
        if learned:
            self.root[path] = self.tied.setdefault((name, False, 1.0), nn.Parameter(tensor))
        else:
            self.root[path] = tensor
        self.bound.append(Binding(name, path, "trained" if learned else "frozen", op))
        self.values[name] = self.fx.get_attr(path)
        return self.values[name]

    def _frozen(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.freeze)

    def _frozen_buffers(self, module: fx.GraphModule) -> None:
        """Exclude constants from the state dict: checkpoints and averages hold only what training changes."""
        for b in self.bound:
            if b.kind == "frozen":
                owner, _, leaf = b.path.rpartition(".")
                module.get_submodule(owner)._non_persistent_buffers_set.add(leaf)


def _at(err: OnnxPruneError, node: gs.Node, version: int) -> OnnxPruneError:
    """Return the error with operator, version and node, unless it has a location."""
    if err.where:
        return err
    return OnnxPruneError(f"cannot convert {node.op} version {version}: {err.what}", where=f"node {node.name!r}",
                          fix=err.fix)  # fmt: skip


def _tensor_path(name: str, node: gs.Node | None) -> str:
    """Return the path of a constant: its own name, or its node's if the exporter generated the name."""
    if node is None or not re.search(r"::|^_v_\d|^\d+$|/", name):
        return name
    what = {"MatMul": "weight", "Add": "bias", "Sub": "bias", "Mul": "scale", "Div": "scale", "PRelu": "slope"}
    return f"{human_name(name, node.name or name)}.{what.get(node.op, 'constant')}"


def _tensor(values: Array) -> torch.Tensor:
    """Return a tensor with its own memory (the array may be a read-only view of a file)."""
    array = np.array(values)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array)


def _describe(proto: onnx.ModelProto, shapes: Witness) -> None:
    """Write the rank and element type of every tensor of known shape into `value_info`, for the converters."""
    del proto.graph.value_info[:]
    inputs, outputs = {v.name for v in proto.graph.input}, {v.name: v for v in proto.graph.output}
    for name, shape in shapes.shapes.items():
        if name in inputs or name not in shapes.dtypes:
            continue
        kind = onnx.helper.np_dtype_to_tensor_dtype(shapes.dtypes[name])
        info = onnx.helper.make_tensor_value_info(name, kind, shape)
        if name in outputs:
            outputs[name].CopyFrom(info)
        else:
            proto.graph.value_info.append(info)


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside torch.compile, DDP and averaged-model wrappers."""
    while not isinstance(module, fx.GraphModule):
        inner = module._modules.get("_orig_mod") or module._modules.get("module")
        if inner is None:
            break
        module = inner
    return module
