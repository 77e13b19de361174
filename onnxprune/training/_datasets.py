"""Batches for training and validation, preprocessed by `onnxprune.execution.data.to_input` as everywhere else.

Augmentation works on samples in the data's own dtype, as CHW tensors, before they are normalized. Random choices of a
batch are drawn from (seed, epoch, step), so they are the same with any number of workers and after a resume.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from onnxprune._utils.import_strings import find_function
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.data import Data, InputSpec, Preprocess, arrangement, to_input
from onnxprune.ir.model import Array
from onnxprune.training._settings import Settings, augment_name

Transform = Callable[[torch.Tensor], torch.Tensor]


class SampleIndices(NamedTuple):
    """Samples of one batch.

    Attributes:
        indices: indices of the samples.
        real: number of samples that count; the rest only fill the batch.
        seed: seed of the batch's random choices.
    """

    indices: npt.NDArray[np.int64]
    real: int
    seed: int


class Batch(NamedTuple):
    """Batch for the model: inputs [n, ...], labels [n] or None, and the number of samples that count."""

    x: torch.Tensor
    y: torch.Tensor | None
    real: int


class Batches(Sampler[SampleIndices]):
    """Samples of each process at each step: whole batches, the last one filled up from the first.

    Args:
        count: number of samples.
        batch: samples per step and process.
        rank: rank of this process, of `world`.
        seed: seed of the order; None: in order.
        epoch: the first epoch.
        sizes: number of each sample's size; batches have samples of one size.
    """

    def __init__(
        self, count: int, batch: int, *, rank: int = 0, world: int = 1, seed: int | None = None, epoch: int = 0,
        sizes: npt.NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        self.sizes = sizes
        self.count, self.batch, self.rank, self.world, self.seed = count, batch, rank, world, seed
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls it before every one."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.sizes is None:
            return -(-self.count // (self.batch * self.world))
        batches = sum(-(-int(n) // self.batch) for n in np.bincount(self.sizes))
        return -(-batches // self.world)

    def __iter__(self) -> Iterator[SampleIndices]:
        epoch, steps = self.epoch, len(self)
        order = np.arange(self.count)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        if self.sizes is not None:
            yield from self._by_size(order, self.sizes, epoch, steps)
            return
        order = np.resize(order, steps * self.world * self.batch)  # repeats it from the start
        for step in range(steps):
            place = step * self.world + self.rank
            start = place * self.batch
            real = max(0, min(self.batch, self.count - start))
            yield SampleIndices(order[start : start + self.batch], real, seed_of(self.seed or 0, epoch, place))

    def _by_size(
        self, order: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], epoch: int, steps: int
    ) -> Iterator[SampleIndices]:
        """Yield batches of one size each, every one filled up from the samples of its size, in random order."""
        batches: list[tuple[npt.NDArray[np.int64], int]] = []
        for size in np.unique(sizes):
            own = order[sizes[order] == size]
            for start in range(0, len(own), self.batch):
                part = own[start : start + self.batch]
                batches.append((np.resize(np.concatenate([part, own]), self.batch), len(part)))
        turn = np.arange(len(batches))
        if self.seed is not None:
            turn = np.random.default_rng([self.seed, epoch, 1]).permutation(turn)
        for step in range(steps):
            place = step * self.world + self.rank
            indices, real = batches[turn[place % len(batches)]]
            yield SampleIndices(indices, real if place < len(batches) else 0, seed_of(self.seed or 0, epoch, place))


def seed_of(*numbers: int) -> int:
    """Derive one 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and PyTorch's generators and restore them after: a user's function may use any."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Samples(Dataset[Batch]):
    """Data as batches for the model.

    Args:
        data: samples and labels.
        into: the model's input.
        how: preprocessing, with what the model decides.
        transforms: augmentations of each sample; none for validation.
        labelled: whether batches have labels.

    Attributes:
        last: whether channels are on the last axis of the samples.
        sizes: number of each sample's size, if they are of several; a batch has samples of one.
        shape: shape of a sample; None if they differ.
    """

    def __init__(
        self, data: Data, into: InputSpec, how: Preprocess, transforms: Sequence[tuple[str, Transform]] = (),
        labelled: bool = True,
    ) -> None:  # fmt: skip
        self.data, self.into, self.how = data, into, how
        self.transforms = list(transforms)
        first = self._read(np.zeros(1, np.int64))
        self.last = first.ndim == 4 and arrangement(first, into, how, data.name).layout == "nhwc"
        self.sizes = sizes_of(data, how)
        self.shape = first.shape[1:] if self.sizes is None else None
        self.labelled = labelled and data.y is not None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, pick: SampleIndices) -> Batch:
        x = self._read(pick.indices)
        if self.transforms:
            with seeded(pick.seed):
                x = self._augmented(x)
        values = to_input(x, self.into, self.how, self.data.name)
        y = torch.from_numpy(self.data.y[pick.indices]) if self.labelled and self.data.y is not None else None
        return Batch(as_tensor(values), y, pick.real)

    def _read(self, indices: npt.NDArray[np.int64]) -> Array:
        """Return samples as they are before normalization, never a view of the data."""
        [x] = self.data.source.read(indices, self.how)[0].values()
        return x if x.flags.owndata and x.flags.writeable else np.array(x)

    def _augmented(self, x: Array) -> Array:
        out: list[torch.Tensor] = []
        for row in x:
            sample = torch.from_numpy(np.ascontiguousarray(row.transpose(2, 0, 1) if self.last else row))
            for name, transform in self.transforms:
                try:
                    changed = transform(sample)
                except Exception as err:  # a user's function may raise anything
                    raise OnnxPruneError(f"the augmentation {name!r} failed: {type(err).__name__}: {err}") from err
                if not isinstance(changed, torch.Tensor) or changed.dtype != sample.dtype:
                    raise OnnxPruneError(
                        f"the augmentation {name!r} made {getattr(changed, 'dtype', type(changed).__name__)} "
                        f"of {sample.dtype}",
                        fix="return a tensor of the dtype it was given; pixels are normalized afterwards",
                    )
                sample = changed
            if out and out[0].shape != sample.shape:
                raise OnnxPruneError(
                    f"augmented samples differ in shape: {list(out[0].shape)} and {list(sample.shape)}",
                    fix="an augmentation gives every sample the same size",
                )
            out.append(sample)
        whole = torch.stack(out).numpy()
        return np.ascontiguousarray(whole.transpose(0, 2, 3, 1)) if self.last else whole


class Loaders(pl.LightningDataModule):
    """Loaders of training and validation data for the calling process.

    Args:
        train: training samples, augmented.
        val: validation samples.
        settings: seed, workers.
        batch: samples per step and process.
        start: number of finished epochs.
    """

    def __init__(self, train: Samples, val: Samples, settings: Settings, batch: int, start: int = 0) -> None:
        super().__init__()
        self.train, self.val, self.settings, self.batch, self.start = train, val, settings, batch, start

    @property
    def steps(self) -> int:
        """Return the number of steps of an epoch."""
        return len(Batches(len(self.train), self.batch, world=self.settings.world, sizes=self.train.sizes))

    def train_dataloader(self) -> Any:
        """Return the loader of training data, shuffled anew every epoch."""
        return self._loader(self.train, self.settings.seed, self.start)

    def val_dataloader(self) -> Any:
        """Return the loader of validation data, in order."""
        return self._loader(self.val, None, 0)

    def _loader(self, samples: Samples, seed: int | None, epoch: int) -> Any:
        trainer = self.trainer
        batches = Batches(
            len(samples), self.batch, rank=trainer.global_rank, world=trainer.world_size, seed=seed, epoch=epoch,
            sizes=samples.sizes,
        )  # fmt: skip
        return DataLoader(
            samples, sampler=batches, batch_size=None, num_workers=self.settings.workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            # A separate generator, so that making an iterator does not draw from dropout's.
            generator=torch.Generator().manual_seed(self.settings.seed),
        )  # fmt: skip


def as_tensor(values: Array) -> torch.Tensor:
    """Convert an array to a tensor that shares its memory if possible."""
    if values.dtype.name == "bfloat16":  # a dtype of ml_dtypes, which PyTorch does not convert
        return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(values)


def sizes_of(data: Data, how: Preprocess) -> npt.NDArray[np.int64] | None:
    """Return the number of each sample's size; None if all are equal."""
    keys = data.source.sizes(how)
    if keys is None or len(set(keys)) < 2:
        return None
    numbers = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def find_transforms(
    augment: Sequence[str | Callable[..., Any]], data: Data, last: bool, shape: Sequence[int] | None = None
) -> list[tuple[str, Transform]]:
    """Return augmentations by name.

    Args:
        augment: names or functions.
        data: samples that they change.
        last: whether channels are on the last axis of the samples.
        shape: shape of a sample; default: that of the data's array, if it is one.

    Raises:
        OnnxPruneError: an unknown one, a function that cannot be imported, crops and flips of what is no image.
    """
    found: list[tuple[str, Transform]] = []
    for entry in augment:
        name = augment_name(entry)
        if not isinstance(entry, str):
            found.append((name, entry))
            continue
        kind, equals, value = entry.partition("=")
        if kind in ("crop", "flip") and ":" not in entry:
            shape = data.x.shape[1:] if shape is None and isinstance(data.x, np.ndarray) else shape
            if shape is None:
                raise OnnxPruneError(
                    f"{kind} is for images of one size; the data {data.name!r} has several",
                    fix="set a size (--size HEIGHTxWIDTH), or use a function of your own",
                )
            if len(shape) != 3:
                raise OnnxPruneError(f"{kind} is for images; the data {data.name!r} holds samples {list(shape)}")
            height, width = shape[:2] if last else shape[1:]
            found.append((name, _flip(name, equals) if kind == "flip" else _crop(name, equals, value, height, width)))
        elif ":" in entry:
            found.append((name, find_function(entry, "augmentation")))
        else:
            raise unknown("augmentation", entry, ["crop", "crop=4", "flip", "package.module:function"])
    return found


def _flip(name: str, equals: str) -> Transform:
    if equals:
        raise OnnxPruneError(f"flip takes no number: {name!r}")
    from torchvision.transforms import v2

    flip: Transform = v2.RandomHorizontalFlip()
    return flip


def _crop(name: str, equals: str, value: str, height: int, width: int) -> Transform:
    if equals and not (value.isdecimal() and int(value) > 0):
        raise OnnxPruneError(f"crop takes the pixels to pad by, not {name!r}", fix="for example crop=4")
    from torchvision.transforms import v2

    crop: Transform = v2.RandomCrop((height, width), padding=int(value) if equals else max(1, height // 8))
    return crop


def split(data: Data, share: float, seed: int) -> tuple[Data, Data]:
    """Split into training and validation data: the same share of every class if there are labels, drawn by the seed.

    Raises:
        OnnxPruneError: one of the parts would be empty.
    """
    rng = np.random.default_rng([seed, len(data)])
    order = rng.permutation(len(data))
    if data.y is None:
        chosen = order[: round(share * len(data))]
    else:
        labels = data.y[order]
        chosen = np.concatenate(
            [of[: round(share * len(of))] for of in (order[labels == label] for label in np.unique(labels))]
        )
    if not 0 < len(chosen) < len(data):
        raise OnnxPruneError(
            f"{share:g} of {len(data)} samples leave nothing to {'train' if len(chosen) else 'validate'} on",
            where=data.name,
            fix="more data, another share (--val-share), or validation data of its own (--val-data)",
        )
    mask = np.zeros(len(data), np.bool_)
    mask[chosen] = True
    return _part(data, ~mask), _part(data, mask)


def _part(data: Data, mask: npt.NDArray[np.bool_]) -> Data:
    return data.take(mask)


def check_classes(data: Data, classes: int) -> None:
    """Raise on labels outside the classes of a model.

    Raises:
        OnnxPruneError: names the first one.
    """
    assert data.y is not None
    wrong = np.flatnonzero((data.y < 0) | (data.y >= classes))
    if len(wrong):
        raise OnnxPruneError(
            f"the data {data.name!r} has the label {int(data.y[wrong[0]])} (sample {int(wrong[0])}), "
            f"the model {classes} classes, 0 to {classes - 1}",
            fix="labels are the places of the model's outputs",
        )


def digest(*parts: Data | Preprocess | None) -> str:
    """Return a digest of data: shapes, dtypes, all labels and a sample of the values."""
    out = hashlib.sha256()
    for part in parts:
        if isinstance(part, Data) and not isinstance(part.x, np.ndarray):
            out.update(part.digest())
        elif isinstance(part, Data):
            flat = part.x.reshape(-1)
            out.update(f"{part.x.shape} {part.x.dtype} {part.y is not None}".encode())
            out.update(np.ascontiguousarray(flat[:: max(1, flat.size // 4096)]).tobytes())
            if part.y is not None:
                out.update(part.y.tobytes())
        elif part is not None:
            out.update(json.dumps(part.as_dict(), sort_keys=True).encode())
    return out.hexdigest()
