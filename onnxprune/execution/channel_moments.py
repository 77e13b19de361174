"""Mean and variance per channel of intermediate tensors, measured on data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import MEMORY, Probe, Statistic, calibrate
from onnxprune.ir.model import Array, Model

Vector = npt.NDArray[np.float64]

BLOCK = 2**17
"""Elements converted to float64 at a time: 1 MiB fits into the CPU cache."""


class Moments(Statistic):
    """Mean and biased variance per channel, over samples and positions.

    Args:
        tensor: Tensor name, for messages.
        axis: Channel axis.
        block: Elements converted to float64 at a time.
    """

    def __init__(self, tensor: str, axis: int = 1, *, block: int = BLOCK) -> None:
        self.tensor, self.axis, self._block = tensor, axis, block
        self.total = self.squares = np.zeros(0)
        self.count = 0

    def add(self, values: Array, samples: range) -> None:
        """Add to the sums in float64; every sample counts once, independent of the batches."""
        if values.ndim < 2:
            raise OnnxPruneError(f"the tensor {self.tensor!r} has no channels (its shape is {list(values.shape)})")
        values = np.moveaxis(values, self.axis, 1)
        channels = values.shape[1]
        if not len(self.total):
            self.total, self.squares = np.zeros(channels), np.zeros(channels)
        flat = values.reshape(len(values), channels, -1) if values.size else values.reshape(0, channels, 1)
        rows = max(1, self._block // max(1, flat[:1].size))
        for i in range(0, len(flat), rows):
            wide = flat[i : i + rows].astype(np.float64)
            self.total += wide.sum((0, 2))
            self.squares += np.einsum("ncm,ncm->c", wide, wide)
        self.count += flat.size // max(1, channels)

    @property
    def mean(self) -> Vector:
        """Mean, float64 [channels]."""
        return np.asarray(self.total / self.count)

    @property
    def variance(self) -> Vector:
        """Biased variance, float64 [channels]."""
        # The cancellation error of float64 sums is below the rounding of float32 activations.
        return np.maximum(self.squares / self.count - self.mean**2, 0)


def measure_statistics(
    model: Model,
    names: Sequence[str],
    feeds: Iterable[Mapping[str, Array]],
    *,
    device: str = "cpu",
    threads: int = 0,
    memory: int = MEMORY,
    block: int = BLOCK,
) -> dict[str, tuple[Vector, Vector]]:
    """Return the statistics that BatchNormalization stores: mean and variance per channel over samples and positions.

    The variance is biased. (Ioffe & Szegedy 2015 scale it by m / (m - 1) for inference; m is batch times positions.)

    Args:
        model: Any model; its graph is not changed. A model with a fixed batch gets complete batches.
        names: Floating-point tensors of its graph, [N, C, ...].
        feeds: Batches of inputs.
        device: "auto", "cpu" or "cuda".
        threads: Threads of onnxruntime; 0: its default.
        memory: Bytes of the tensors of one run; larger batches are run in parts.
        block: Elements converted to float64 at a time.

    Returns:
        Name -> (mean [C], variance [C]), float64.

    Raises:
        OnnxPruneError: See `calibrate`; or a tensor has no channels or no elements.
    """
    found = {name: Moments(name, block=block) for name in names}
    probes = [Probe(name, moments) for name, moments in found.items()]
    calibrate(model, probes, feeds, device=device, threads=threads, memory=memory)
    if any(not m.count for m in found.values()):
        raise OnnxPruneError("the data has no samples", fix="pass at least one sample")
    return {name: (m.mean, m.variance) for name, m in found.items()}
