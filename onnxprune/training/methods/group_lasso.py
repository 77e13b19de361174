"""Group lasso on coupled channels: all weights of a channel shrink together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnxprune.errors import OnnxPruneError
from onnxprune.training.methods._base import Method, Scored, check_number
from onnxprune.training.methods._channel_parameters import ChannelAxis, SquaredNorms


@dataclass
class GroupLasso(Method):
    """`strength * sum_c sqrt(n_c) * ||w_c||`, the Euclidean norm of all `n_c` entries that channel c is coupled to.

    These are the filters of every layer that produces the channel, its biases, BatchNorm scales and shifts, and the
    weights that read it; Wen et al. penalise the filters of single layers, Fang et al. (DepGraph) coupled ones. The
    root of n_c gives the gradient the same size per entry, `strength`, in groups of any size. An entry that both reads
    and produces the channel (within a residual stream) counts once for each. Where the norm is zero the subgradient 0
    is used, so channels converge to zero.

    The plan ranks channels by that norm, `||w_c|| / sqrt(n_c)`.

    Args:
        strength: lambda.
        readers: penalise the weights that consume a channel as well. Filters alone can shrink at no cost before a
            BatchNorm that undoes it.
    """

    strength: float = 1e-4
    readers: bool = True

    name: ClassVar[str] = "group_lasso"
    title: ClassVar[str] = "group lasso on coupled channels"
    source: ClassVar[str] = (
        "Wen et al. 2016, Learning Structured Sparsity in Deep Neural Networks; "
        "Fang et al. 2023, DepGraph: Towards Any Structural Pruning"
    )
    default_normalize: ClassVar[str] = "mean"  # as the criterion l2

    _norms: SquaredNorms | None = field(init=False, repr=False, compare=False, default=None)
    _groups: list[tuple[str, npt.NDArray[np.int64]]] = field(
        init=False, repr=False, compare=False, default_factory=list
    )

    def __post_init__(self) -> None:
        check_number(self.name, "strength", self.strength, 0, inf)
        if not isinstance(self.readers, bool):
            raise OnnxPruneError(f"{self.name}: readers must be true or false; got {self.readers!r}")

    def _resolve(self, axes: tuple[ChannelAxis, ...]) -> None:
        chosen = [m for m in axes if self.readers or m.role != "reader"]
        self._norms = SquaredNorms(chosen, self.analysis.count)
        held = self._norms.sizes.numpy() > 0
        self._groups = [(g.name, g.components) for g in self.analysis.groups if held[g.components[0]]]
        if not self._groups:
            raise OnnxPruneError(f"{self.name}: no channel that trains can be removed", fix="see `onnxprune inspect`")

    def penalty(self) -> Tensor:
        """Return the penalty, a scalar."""
        if self._norms is None:
            raise self._unattached()
        squares = self._norms()[1:]  # without what cannot be removed
        # The root has no slope at zero; below the smallest normal number the clamp's slope, 0, replaces it.
        norms = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
        return self.strength * (self._norms.sizes[1:].sqrt() * norms).sum()

    def _measured(self) -> Mapping[str, Scored]:
        if self._norms is None:
            raise self._unattached()
        with torch.no_grad():
            squares, sizes = self._norms().double().cpu().numpy(), self._norms.sizes.double().cpu().numpy()
        return {name: np.sqrt(squares[components] / sizes[components]) for name, components in self._groups}
