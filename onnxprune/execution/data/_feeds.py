"""Batches of data in the form of a model's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from onnxprune._utils.output.formatting import counted, listed
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._inputs import InputSpec, inputs_of, samples_first, to_input
from onnxprune.execution.data._preprocess import Preprocess
from onnxprune.execution.data._resolve import resolved
from onnxprune.execution.data._targets import Targets
from onnxprune.ir.model import Array, Model


class Feeds:
    """Batches of data for a model: batch i is (feeds, targets), read and prepared on access.

    All samples of a batch have one shape. Samples that differ in shape are put in the order of their shapes: `data`
    holds them in the order of the batches, and `order` their numbers in the data given.

    A model with a fixed batch gets complete batches: the inputs of an incomplete batch are padded with copies, its
    targets are not.

    Attributes:
        data: Samples in the order of the batches.
        order: For each of them its number in the data given.
        how: Preprocessing, with what the model decides.
        batch: Samples of a batch at most.
        fixed: Samples of every batch if the model fixes them, else None.
        mixed: Whether the samples differ in shape.

    Raises:
        OnnxPruneError: The data's names are not the model's inputs, or the samples do not fit them.
    """

    def __init__(self, model: Model, data: Data, how: Preprocess, batch: int = 64) -> None:
        self.inputs = matched_inputs(model, data)
        self.how = resolved(how, model, data)
        source = data.source
        self.fixed = None if source.whole else _fixed_batch(list(self.inputs.values()))
        self.batch: int = 1 if source.whole else self.fixed or batch
        keys = source.sizes(self.how)
        self.mixed = keys is not None and len(set(keys)) > 1
        self.order: npt.NDArray[np.int64] = np.arange(len(data))
        if keys is not None:
            numbers = {key: k for k, key in enumerate(dict.fromkeys(keys))}
            group = np.array([numbers[key] for key in keys], np.int64)
            order = np.argsort(group, kind="stable")
            if not np.array_equal(order, self.order):
                self.order, data, group = order, data.take(order), group[order]
            edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(data)]
        else:
            edges = [0, len(data)]
        self.data, self._source = data, data.source
        self._spans = [
            range(i, min(i + self.batch, stop))
            for start, stop in pairwise(edges)
            for i in range(start, stop, self.batch)
        ]

    @property
    def into(self) -> InputSpec:
        """Only input of the model.

        Raises:
            OnnxPruneError: There are several.
        """
        if len(self.inputs) != 1:
            raise OnnxPruneError(
                f"the model has {len(self.inputs)} inputs; this needs a model with one",
                fix="use a criterion that runs the model in onnxruntime only, such as obs",
            )
        return next(iter(self.inputs.values()))

    @property
    def name(self) -> str:
        """Name of the only input."""
        return self.into.name

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, i: int) -> tuple[dict[str, Array], Targets]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        span = self._spans[i]
        arrays, read = self._source.read(span, self.how)
        feeds = {}
        for key, spec in self.inputs.items():
            x = arrays[key]
            if self._source.whole:
                feeds[spec.name] = _as_given(x, spec, self.data.name)
            elif not spec.shape:
                feeds[spec.name] = _scalar(x, spec, self.data.name)
            else:
                if self.fixed and len(x) < self.fixed:
                    x = np.concatenate([x, np.repeat(x[-1:], self.fixed - len(x), axis=0)])
                own = self.how if len(self.inputs) == 1 or len(spec.shape) == 4 else Preprocess()
                x = to_input(x, spec, own, self.data.name)
                feeds[spec.name] = x[0] if spec.single else x
        return feeds, self.data.targets_of(slice(span.start, span.stop), read)

    def span(self, i: int) -> range:
        """Return the numbers of the samples of batch i in `data`."""
        return self._spans[i]

    def indices(self, i: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the samples of batch i in the data given."""
        return self.order[self._spans[i].start : self._spans[i].stop]

    def real(self, i: int) -> int:
        """Return the number of samples of batch i that are not copies."""
        return len(self._spans[i])

    def size(self, i: int) -> int:
        """Return the number of samples of batch i with the copies that fill it."""
        return self.fixed or len(self._spans[i])


def matched_inputs(model: Model, data: Data) -> dict[str, InputSpec]:
    """Return the model's inputs by the names that the data calls them.

    Raises:
        OnnxPruneError: The names differ; both lists are shown.
    """
    specs, names = inputs_of(model), data.source.names
    own = {spec.name: spec for spec in specs}
    if len(specs) == 1 and names == ("",):
        return {"": specs[0]}
    if set(names) == set(own):
        return own
    needed = listed((repr(n) for n in own), 8)
    given = "one array without a name" if names == ("",) else listed((repr(n) for n in names), 8)
    has = f"{counted(len(own), 'input')} ({needed})"
    raise OnnxPruneError(
        f"the data {data.name!r} does not match the model: the model has {has}, the data has {given}",
        fix="name every array as the input it is for" if len(specs) > 1 else f"name the array {specs[0].name!r} or 'x'",
    )


def _fixed_batch(specs: Sequence[InputSpec]) -> int | None:
    if not samples_first(specs):
        sizes = ", ".join(f"{spec.name!r}: {spec.batch or '?'}" for spec in specs if spec.shape)
        raise OnnxPruneError(
            f"the first axes of the model's inputs differ ({sizes}), so they are not the samples",
            fix="pass complete feeds: a CalibrationDataReader, or dicts of arrays as the model takes them",
        )
    return next((spec.batch for spec in specs if spec.shape), None)


def _scalar(x: Array, spec: InputSpec, name: str) -> Array:
    if not (x == x[:1]).all():
        raise OnnxPruneError(
            f"the model's input {spec.name!r} is one number for a whole batch, and it differs between samples",
            where=name, fix="use the same number for all samples",
        )  # fmt: skip
    return np.asarray(x[0], spec.dtype)


def _as_given(x: Array, spec: InputSpec, name: str) -> Array:
    dims = list(spec.shape)
    if x.ndim != len(dims) or any(isinstance(d, int) and 0 < d != n for d, n in zip(dims, x.shape, strict=True)):
        raise OnnxPruneError(
            f"the array {list(x.shape)} of {name!r} does not fit the model's input {spec.name!r} {dims}"
        )
    if x.dtype.kind == "f" and spec.dtype.kind not in "fV":
        raise OnnxPruneError(f"the data {name!r} holds {x.dtype}, the model's input {spec.name!r} is {spec.dtype}")
    return np.ascontiguousarray(x, spec.dtype) if x.ndim else np.asarray(x, spec.dtype)


def model_batches(
    model: Model, data: Data, how: Preprocess, batch: int = 64
) -> Iterator[tuple[dict[str, Array], Targets]]:
    """Return an iterator over the batches of `Feeds`."""
    feeds = Feeds(model, data, how, batch)
    return (feeds[i] for i in range(len(feeds)))
