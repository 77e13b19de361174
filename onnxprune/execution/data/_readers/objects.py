"""Python objects as data: arrays, dicts, Datasets, DataLoaders, generators, calibration readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune._utils.output.formatting import listed
from onnxprune._utils.processes.deadlines import Deadline, Late
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data, as_array, checked_data, with_targets
from onnxprune.execution.data._inputs import Expected
from onnxprune.execution.data._readers.arrays import ANYTHING, arrays_by_name, named
from onnxprune.execution.data._readers.images import Images, ImageSource, SpooledImages, is_image
from onnxprune.execution.data._sources import Source
from onnxprune.execution.data._spool import Spool, SpooledSource, SpooledTargets
from onnxprune.execution.data._targets import Boxes, kind_of
from onnxprune.ir.model import Array

_UNLIMITED = Deadline(0)


def read_object(
    given: Any,
    name: str,
    expected: Expected = ANYTHING,
    images: int | None = None,
    deadline: Deadline = _UNLIMITED,
) -> Data:
    """Return data from a Python object.

    Streams are read once and written to temporary files, batch by batch.

    Args:
        given: Data, a `Source`; (x, y), x, or a dict of arrays by input name (and y); a Dataset with a length; a
            DataLoader, an iterable, a generator or a function that returns one; or a CalibrationDataReader.
        name: Name in messages.
        expected: Form of the samples that the model takes, which tells single samples from batches.
        images: Samples to read of a stream without a length.
        deadline: Runs the functions and iterators of users.

    Raises:
        OnnxPruneError: The object is none of these, a stream fails, is late or empty, or its samples differ in form.
    """
    if isinstance(given, Data):
        return given
    if isinstance(given, Source):
        return Data(given, None, name)
    inputs = tuple(expected.ranks)
    if _is_array(given):
        return checked_data(given, None, name)
    if isinstance(given, Mapping):
        x, y = named(given, inputs)
        if not x:
            raise OnnxPruneError(f"the dict of {name!r} holds no samples", fix="add an array under the input's name")
        only = len(x) == 1 and next(iter(x)) == "x" and "x" not in inputs
        return arrays_by_name(x["x"] if only else x, y, name, expected)
    if isinstance(given, tuple) and len(given) == 2 and _is_array_like(given[0]):
        return checked_data(given[0], given[1], name)
    if isinstance(given, list) and given and isinstance(given[0], float | int):
        return checked_data(given, None, name)
    if hasattr(given, "get_next"):
        batched = None if expected.ranks else True
        stream = _Stream(name, expected, images, deadline, whole=expected.whole, batched=batched)
        return stream.read(iter(given.get_next, None))
    if _is_dataset(given):
        return _dataset(given, name, expected, images, deadline)
    if callable(given) and not isinstance(given, Iterable):
        made = within(deadline, lambda: _called(given, name), name, "the call")
        return read_object(made, name, expected, images, deadline)
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        items = within(deadline, lambda: iter(given), name, "the call")
        return _Stream(name, expected, images, deadline, whole=expected.whole).read(items, _length(given))
    raise OnnxPruneError(
        f"the data {name!r} is a {type(given).__name__}, which is no source of samples",
        fix="use (x, y), x, a dict of arrays, a Dataset, a DataLoader, a generator, or a CalibrationDataReader",
    )


def within(deadline: Deadline, function: Callable[[], Any], name: str, where: str) -> Any:
    """Return the result of a user's function.

    Raises:
        OnnxPruneError: It is late.
    """
    try:
        return deadline(function)
    except Late as err:
        raise _late(deadline, name, where) from err


def _late(deadline: Deadline, name: str, where: str) -> OnnxPruneError:
    return OnnxPruneError(
        f"the data {name!r} gave nothing within {deadline.seconds:g} s",
        where=where,
        fix="let it not block, or wait longer with --data-timeout SECONDS (0: no limit)",
    )


def _called(function: Callable[[], Any], name: str) -> Any:
    try:
        return function()
    except OnnxPruneError:
        raise
    except Exception as err:  # a user's function may raise anything
        raise OnnxPruneError(
            f"the data function {name!r} failed: {type(err).__name__}: {err}", fix="it takes no arguments"
        ) from err


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(value, "detach") and hasattr(value, "numpy"))


def _is_array_like(value: Any) -> bool:
    return _is_array(value) or (isinstance(value, Mapping) and all(_is_array(v) for v in value.values()))


def _is_dataset(given: Any) -> bool:
    """Return whether an object has random access to its samples, as a Dataset of PyTorch; a DataLoader has none."""
    random = hasattr(given, "__getitem__") and hasattr(given, "__len__")
    return random and not isinstance(given, Mapping | str | bytes | list | tuple)


def _length(given: Any) -> int | None:
    """Return the number of items that an iterable says it has; None if it says none."""
    try:
        return len(given)
    except (TypeError, NotImplementedError):
        return None


def _dataset(given: Any, name: str, expected: Expected, images: int | None, deadline: Deadline) -> Data:
    count = len(given) if images is None else min(images, len(given))
    if not count:
        raise OnnxPruneError(f"the data {name!r} is empty")

    def samples() -> Iterator[Any]:
        for i in np.linspace(0, len(given) - 1, count).astype(np.int64).tolist():
            yield given[i]

    limit = images if images is not None and images < len(given) else None
    batched = None if expected.ranks else False  # a Dataset of Keras has batches
    return _Stream(name, expected, limit, deadline, whole=expected.whole, batched=batched).read(samples())


class _Stream:
    """Reader of a stream: every item becomes samples in temporary files, and targets in memory.

    Args:
        name: Name in messages.
        expected: Form of the samples that the model takes.
        images: Samples to read at most; None: all.
        deadline: Runs the iterator.
        whole: Whether items are complete feeds.
        batched: Whether items are batches; None: by the number of axes, else yes.
    """

    def __init__(
        self,
        name: str,
        expected: Expected,
        images: int | None,
        deadline: Deadline,
        *,
        whole: bool,
        batched: bool | None = None,
    ) -> None:
        self.deadline = deadline
        self.name, self.ranks, self.images, self.whole, self.batched = name, expected.ranks, images, whole, batched
        self.spools: dict[str, Spool] = {}
        self.targets: list[Any] = []
        self.masks: Spool | None = None
        self.pictures = False
        self.count = 0

    def read(self, items: Iterator[Any], length: int | None = None) -> Data:
        """Read all items; `length` is the number that the object says it has."""
        number = 0
        while self.images is None or self.count < self.images:
            try:
                item = self.deadline(next, items, _END)
            except Late as err:
                raise _late(self.deadline, self.name, f"item {number}") from err
            except Exception as err:  # a user's stream may raise anything
                raise OnnxPruneError(
                    f"the data {self.name!r} failed after {self.count} samples: {type(err).__name__}: {err}",
                    where=f"item {number}",
                ) from err
            if item is _END:
                if length is not None and number < length:
                    raise OnnxPruneError(
                        f"the data {self.name!r} ended after {number} of the {length} items that it says it has",
                        fix="check its __len__ and __iter__",
                    )
                break
            self._add(item, number)
            number += 1
        if not self.count:
            raise OnnxPruneError(
                f"the data {self.name!r} has no samples",
                fix="a generator can be read once: pass the function that makes it, or a new one",
            )
        for spool in (*self.spools.values(), *filter(None, [self.masks])):
            spool.finish()
        data = self._data()
        if self.images is not None and self.count < self.images:
            line = f"the data ended after {self.count} samples, and {self.images} were asked for"
            data = replace(data, warnings=(*data.warnings, line))
        return data

    def _data(self) -> Data:
        if self.masks is not None:
            targets = SpooledTargets(self.masks)
            source: Source = SpooledSource(self.spools, whole=self.whole)
            if self.pictures:
                return Data(ImageSource(SpooledImages(self.spools[""], self.name), targets), None, self.name)
            return Data(source, None, self.name, targets=targets)
        if self.pictures:
            pictures: Images = SpooledImages(self.spools[""], self.name)
            masks = len(self.targets) and kind_of(self.targets[0]) in ("boxes", "masks")
            data = Data(ImageSource(pictures, self.targets if masks else None), None, self.name)
            return data if masks or not self.targets else with_targets(data, _stacked(self.targets), self.count)
        data = Data(SpooledSource(self.spools, whole=self.whole), None, self.name)
        return with_targets(data, _stacked(self.targets), self.count) if self.targets else data

    def _add(self, item: Any, number: int) -> None:
        x, y = self._parts(item)
        where = f"item {number} of {self.name!r}"
        if is_image(x):
            self.pictures = True
            self._store({"": np.asarray(x.convert("L" if x.mode in ("1", "L") else "RGB"))}, where)
            self._add_targets(y, 1, False, where)
            return
        if isinstance(x, tuple | list) and len(x) > 1 and _is_array(x[0]):
            raise OnnxPruneError(
                f"an item is a {type(x).__name__} of {len(x)}", where=where,
                fix="yield x, (x, y), or a dict of arrays by input name",
            )  # fmt: skip
        arrays = {str(k): as_array(v) for k, v in x.items()} if isinstance(x, Mapping) else {"": as_array(x)}
        for key, a in arrays.items():
            if a.dtype.kind not in "fiubV":
                raise OnnxPruneError(
                    f"{f'the input {key!r}' if key else 'a sample'} is {a.dtype}, not numbers", where=where
                )
        batched = not self.whole and self._is_batch(arrays, y)
        if not batched:
            if not self.whole and not isinstance(x, Mapping) and self.ranks and len(self.ranks) == 1:
                self._check_rank(arrays[""], where)
            self._store(arrays, where)
            self._add_targets(y, 1, False, where)
            return
        samples = len(next(a for a in arrays.values() if a.ndim))
        if self.images is not None:
            samples = min(samples, self.images - self.count)
        for i in range(samples):
            self._store({k: a[i] if a.ndim else a for k, a in arrays.items()}, where)
        self._add_targets(y, samples, True, where)

    def _parts(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, tuple | list) and len(item) == 2 and not isinstance(item[0], float | int):
            return item[0], item[1]
        if isinstance(item, tuple | list) and len(item) == 1:
            return item[0], None
        if isinstance(item, Mapping) and not self.whole:
            inputs = tuple(self.ranks)
            x, y = named(item, inputs)
            if len(x) == 1 and (key := next(iter(x))) in ("x", "image", "img", "pixel_values") and key not in inputs:
                return x[key], y
            return x, y
        return item, None

    def _is_batch(self, arrays: Mapping[str, Array], y: Any) -> bool:
        lengths = {len(a) for a in arrays.values() if a.ndim}
        if self.batched is not None:
            self.whole = self.whole or (self.batched and len(lengths) != 1)
            return self.batched and not self.whole
        known = self.ranks
        found = {known.get(k, next(iter(known.values())) if len(known) == 1 and not k else -1) for k in arrays}
        if -1 not in found and known:
            pairs = [(a.ndim, known.get(k, next(iter(known.values())))) for k, a in arrays.items()]
            if all(n == rank for n, rank in pairs):
                self.whole = self.whole or len(lengths) != 1  # complete feeds, whose first axes are not all samples
                return len(lengths) == 1
            return not all(n == rank - 1 or rank == 0 for n, rank in pairs)
        labels = None if y is None or isinstance(y, str | Boxes) else as_array(y)
        if labels is not None:
            return labels.ndim > 0 and {len(labels)} == lengths
        return len(lengths) == 1 and all(a.ndim not in (1, 3) for a in arrays.values())

    def _check_rank(self, sample: Array, where: str) -> None:
        [rank] = self.ranks.values()
        if sample.ndim != rank - 1:
            raise OnnxPruneError(
                f"a sample {list(sample.shape)} does not fit the model's input of {rank} axes",
                where=where, fix=f"yield samples of {rank - 1} axes, or batches of {rank}",
            )  # fmt: skip

    def _store(self, arrays: Mapping[str, Array], where: str) -> None:
        if not self.spools:
            self.spools = {name: Spool() for name in arrays}
        if set(arrays) != set(self.spools):
            raise OnnxPruneError(
                f"the samples hold {listed(map(repr, arrays), 8)}, those before {listed(map(repr, self.spools), 8)}",
                where=where, fix="every sample has the same inputs",
            )  # fmt: skip
        for name, a in arrays.items():
            spool = self.spools[name]
            if len(spool) and not self.pictures and len(spool.shape(0)) != a.ndim:
                raise OnnxPruneError(
                    f"a sample {list(a.shape)} has other axes than those before, {list(spool.shape(0))}",
                    where=where, fix="every sample has the same number of axes",
                )  # fmt: skip
            if len(spool) and spool.dtype(0) != a.dtype:
                a = self._converted(a, spool.dtype(0), where)
            spool.add(a)
        self.count += 1

    def _converted(self, a: Array, dtype: Any, where: str) -> Array:
        if a.dtype.kind != np.dtype(dtype).kind:
            raise OnnxPruneError(f"a sample is {a.dtype}, those before are {dtype}", where=where)
        return a.astype(dtype)

    def _add_targets(self, y: Any, samples: int, batched: bool, where: str) -> None:
        if y is None:
            if self.targets:
                raise OnnxPruneError("a sample has no target, and those before have", where=where)
            return
        if self.count - samples and not self.targets:
            raise OnnxPruneError("a sample has a target, and those before have none", where=where)
        if not batched:
            self._add_target(y)
            return
        own = list(y) if isinstance(y, list | tuple) else list(as_array(y))
        if len(own) < samples:
            raise OnnxPruneError(f"a batch of {samples} samples has {len(own)} targets", where=where)
        for target in own[:samples]:
            self._add_target(target)

    def _add_target(self, y: Any) -> None:
        if isinstance(y, Mapping):
            y = _boxes_of(y, self.name)
        target = y if isinstance(y, str | Boxes) else np.asarray(y) if is_image(y) else as_array(y)
        if isinstance(target, np.ndarray) and target.ndim >= 2:
            self.masks = Spool() if self.masks is None else self.masks
            self.masks.add(target)
            target = _STORED
        self.targets.append(target)


def _boxes_of(target: Mapping[str, Any], name: str) -> Boxes:
    """Return the target of a detector of torchvision, a dict of boxes and labels."""
    if not {"boxes", "labels"} <= set(target):
        raise OnnxPruneError(
            f"a target of {name!r} is a dict of {listed(map(repr, target))}",
            fix="use labels, arrays, texts, Boxes, or a dict of boxes [k, 4] and labels [k]",
        )
    boxes = as_array(target["boxes"]).astype(np.float32).reshape(-1, 4)
    classes = as_array(target["labels"]).astype(np.int64).reshape(-1)
    crowd = as_array(target.get("iscrowd", np.zeros(len(classes)))).astype(np.bool_).reshape(-1)
    if not len(boxes) == len(classes) == len(crowd):
        raise OnnxPruneError(f"a target of {name!r} has {len(boxes)} boxes and {len(classes)} labels")
    return Boxes(boxes, classes, crowd)


_END = object()
_STORED = np.zeros(())  # stands for a target in the temporary file


def _stacked(targets: Sequence[Any]) -> Any:
    """Return targets as one array where they are numbers of equal shape."""
    if isinstance(targets[0], str | Boxes):
        return list(targets)
    shapes = {np.shape(t) for t in targets}
    return np.stack([np.asarray(t) for t in targets]) if len(shapes) == 1 else list(targets)
