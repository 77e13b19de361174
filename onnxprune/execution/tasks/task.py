"""Tasks by name: targets, metrics, distances from the original's outputs, and a guess from the model.

A task is bound to a model before it is used: names of outputs, numbers of classes, alphabets and sizes are read then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune._utils.registry import Registry
from onnxprune.analysis.shapes.shape_inference import Witness, witness
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.tasks.metrics import LOWER_IS_BETTER, METRICS, Metric, MetricValue, Outcome, get_metric
from onnxprune.ir.image_layout import layout_of
from onnxprune.ir.model import Array, Model
from onnxprune.options.tasks import TaskOptions

Shape = tuple[int | str | None, ...]

# Operators that keep the meaning of values: the operator before them decides what an output is.
_TRANSPARENT = frozenset(("Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"))


@dataclass(frozen=True)
class Tensor:
    """Input or output of a model: name, shape (numbers, names or None), element type, and the operator behind it."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    operator: str = ""

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def size(self, axis: int) -> int | None:
        """Size of an axis; None if it is dynamic."""
        found = self.shape[axis]
        return found if isinstance(found, int) and found > 0 else None


@dataclass(frozen=True)
class ModelView:
    """Parts of a model that tell its task."""

    model: Model

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """Entries of the model's metadata."""
        return self.model.metadata

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the model."""
        return tuple(self._tensor(t) for t in self.model.graph.inputs)

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        """Outputs of the model."""
        return tuple(self._output(t) for t in self.model.graph.outputs)

    @cached_property
    def operators(self) -> frozenset[str]:
        """Operators of the graph."""
        return frozenset(n.op for n in self.model.graph.nodes)

    @cached_property
    def image(self) -> tuple[Tensor, str] | None:
        """The image input, of four axes, with its layout; None if there is none."""
        for tensor, view in zip(self.model.graph.inputs, self.inputs, strict=True):
            if view.rank == 4:
                return view, layout_of(tensor) or "nchw"
        return None

    @property
    def image_axes(self) -> tuple[int, int]:
        """Axes of height and width of the image input."""
        return (1, 2) if self.image is not None and self.image[1] == "nhwc" else (2, 3)

    def image_size(self, feed: Mapping[str, Array]) -> tuple[int, int] | None:
        """Return (height, width) of the images of a batch; None without an image input."""
        if self.image is None or self.image[0].name not in feed:
            return None
        shape = feed[self.image[0].name].shape
        return shape[self.image_axes[0]], shape[self.image_axes[1]]

    def output(self, name: str) -> Tensor | None:
        """Return an output by name; None if there is none."""
        return next((t for t in self.outputs if t.name == name), None)

    def _tensor(self, t: gs.Tensor) -> Tensor:
        shape = t.shape
        if shape is None:
            shape = self._witness.shapes.get(t.name) or ()
        dtype = np.dtype(t.dtype) if t.dtype is not None else np.dtype(np.float32)
        return Tensor(t.name, tuple(shape), dtype, _operator(t))

    def _output(self, t: gs.Tensor) -> Tensor:
        """Return an output; sizes that the file only names are numbers if they are the same for all inputs."""
        declared = self._tensor(t)
        if t.shape is None or all(isinstance(n, int) for n in declared.shape[1:]):
            return declared
        try:
            sizes = self._witness.symbolic(t.name) or ()
        except OnnxPruneError:  # no sizes were found at which the model runs; the user may give some
            return declared
        if len(sizes) != declared.rank:
            return declared
        known = (
            n if i and isinstance(n, int) else d for i, (n, d) in enumerate(zip(sizes, declared.shape, strict=True))
        )
        return replace(declared, shape=tuple(known))

    @cached_property
    def _witness(self) -> Witness:
        return witness(self.model)


def _operator(tensor: gs.Tensor) -> str:
    node = deciding_node(tensor)
    return str(node.op) if node is not None else ""


def deciding_node(tensor: gs.Tensor) -> gs.Node | None:
    """Return the node that decides the meaning of a tensor; None for an input or a constant."""
    for _ in range(64):
        if not tensor.inputs:
            return None
        node = tensor.inputs[0]
        if node.op not in _TRANSPARENT or not node.inputs:
            return node
        tensor = node.inputs[0]
    return None


class Watch:
    """Collects figures of a task's results, and returns warnings on implausible ones."""

    def add(self, outcome: Outcome) -> None:
        """Add the results of a batch."""

    def warnings(self, values: Mapping[str, MetricValue]) -> list[str]:
        """Return one line for every implausible result, with the probable reason.

        Raises:
            OnnxPruneError: No other explanation is possible than wrong data.
        """
        return []


@dataclass(frozen=True)
class BoundTask:
    """Task of one model.

    Attributes:
        name: Name of the task.
        reason: Reason of the choice.
        metrics: Metrics against targets; the first is the main one.
        distances: Metrics against the original's outputs; the first is the main one.
        view: The model.
        guessed: Whether the task was guessed from the model or the data.
        batch: Samples per run that the outputs require; None: any number.
        watch: Returns a new `Watch`.
    """

    name: str
    reason: str
    metrics: tuple[Metric, ...]
    distances: tuple[Metric, ...]
    view: ModelView = field(repr=False)
    guessed: bool = True
    batch: int | None = None
    watch: Callable[[], Watch] = Watch

    @property
    def statement(self) -> str:
        """The choice in one line."""
        return f"task: {self.name} ({self.reason}{'; --task overrides' if self.guessed else ''})"

    def metric(self, name: str | None, *, labelled: bool) -> Metric:
        """Return a metric by name, or the main one.

        Args:
            name: Name of a metric of the task, of a general one, or `package.module:function`.
            labelled: Whether the data has targets; without them distances from the original's outputs precede.

        Raises:
            OnnxPruneError: There is no such metric.
        """
        first, second = (self.metrics, self.distances) if labelled else (self.distances, self.metrics)
        if name is None:
            return first[0]
        if ":" in name:
            return get_metric(name)
        for metric in (*first, *second):
            if metric.name == name:
                return metric
        general = METRICS.find(name)
        if general is not None and general.needs == "reference":
            return general
        known = [m.name for m in (*first, *second)]
        raise unknown(f"metric of the task {self.name}", name, [*dict.fromkeys(known), "package.module:function"])

    def size(self, feed: Mapping[str, Array]) -> tuple[int, int] | None:
        """Return (height, width) of the images of a batch; None without an image input."""
        return self.view.image_size(feed)


class Task(ABC):
    """Kind of output, and its metrics."""

    name: ClassVar[str]
    title: ClassVar[str]
    targets: ClassVar[tuple[str, ...]]
    """Kinds of targets that it accepts; see `kind_of`."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of its metrics: against targets, then against the original's outputs."""
    precedence: ClassVar[int]
    """Place in the order in which tasks are guessed."""

    @abstractmethod
    def guess(self, view: ModelView) -> str | None:
        """Return the reason for which a model is of this task; None if it does not seem so."""

    @abstractmethod
    def bind(self, view: ModelView, options: TaskOptions, feed: Mapping[str, Array] | None) -> BoundTask:
        """Return the task of a model.

        Args:
            view: The model.
            options: Options of the task.
            feed: Inputs of the first batch; None: unknown.

        Raises:
            OnnxPruneError: The model's outputs are not of this task.
        """


TASKS: Registry[str, Task] = Registry(
    "task",
    modules=tuple(
        f"onnxprune.execution.tasks.{name}"
        for name in ("detect", "recognize", "segment", "embed", "classify", "regress")
    ),
)
"""Tasks by name."""

_KINDS = {"labels": "class labels", "boxes": "boxes", "masks": "masks", "texts": "texts", "values": "numbers"}
_BY_TARGETS = {"boxes": "detect", "masks": "segment", "texts": "recognize", "values": "regress"}


def bind_task(
    model: Model, options: TaskOptions | None = None, *, targets: str = "none", feed: Mapping[str, Array] | None = None
) -> BoundTask:
    """Return the task of a model: the one that is named, or a guess from the targets and the model.

    Args:
        model: The model.
        options: Options of the task.
        targets: Kind of the data's targets; see `kind_of`.
        feed: Inputs of the first batch; None: unknown.

    Raises:
        OnnxPruneError: The task is unknown, takes other targets, or does not fit the model's outputs.
    """
    options = options or TaskOptions()
    view = ModelView(model)
    if options.task is not None:
        task, reason = TASKS[options.task], "given"
    else:
        task, reason = guess_task(view, targets)
    if targets != "none" and targets not in task.targets:
        raise OnnxPruneError(
            f"the targets are {_KINDS[targets]}, and the task {task.name} takes "
            f"{' or '.join(_KINDS[t] for t in task.targets)}",
            fix=f"choose another --task ({', '.join(t.name for t in TASKS.values() if targets in t.targets)})",
        )
    bound = task.bind(view, options, feed)
    return replace(bound, reason=reason if options.task is None else bound.reason, guessed=options.task is None)


def guess_task(view: ModelView, targets: str = "none") -> tuple[Task, str]:
    """Return the task that a model and its targets suggest, with the reason."""
    if targets in _BY_TARGETS:
        return TASKS[_BY_TARGETS[targets]], f"the targets are {_KINDS[targets]}"
    for task in sorted(TASKS.values(), key=lambda t: t.precedence):
        reason = task.guess(view) if targets == "none" or targets in task.targets else None
        if reason is not None and not (targets == "labels" and task.name == "regress"):
            return task, reason
    if targets == "labels":
        return TASKS["classify"], "the targets are class labels"
    return TASKS["regress"], "no other task fits the outputs"


def higher_is_better(options: TaskOptions) -> bool:
    """Return whether larger values of a run's metric are better, before model and data are read.

    Raises:
        OnnxPruneError: No task has such a metric.
    """
    name = options.metric
    if name is None:
        return options.task != "regress"
    if ":" in name:
        return get_metric(name).higher_is_better
    tasks = [TASKS[options.task]] if options.task is not None else list(TASKS.values())
    known = [*METRICS, *(m for t in tasks for m in t.metrics)]
    if name not in known:
        raise unknown("metric", name, [*dict.fromkeys(known), "package.module:function"])
    return name not in LOWER_IS_BETTER


def find_metric(
    model: Model, options: TaskOptions | None, *, targets: str, feed: Mapping[str, Array] | None = None
) -> tuple[Metric, BoundTask | None]:
    """Return the metric of a run, and the task that it belongs to; None for a general metric.

    Raises:
        OnnxPruneError: Task or metric are unknown, or do not fit the model or the targets.
    """
    options = options or TaskOptions()
    if options.metric is not None and options.task is None:
        general = METRICS.find(options.metric) if targets in ("none", "labels") else None
        if general is not None or ":" in options.metric:
            return general or get_metric(options.metric), None
    bound = bind_task(model, options, targets=targets, feed=feed)
    metric = bound.metric(options.metric, labelled=targets != "none")
    if metric.needs == "labels" and targets == "none":
        raise OnnxPruneError(
            f"the data has no targets, which the metric {metric.name!r} needs",
            fix=f"add targets, or choose --metric {', '.join(m.name for m in bound.distances)}",
        )
    return metric, bound
