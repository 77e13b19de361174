"""Soft filter pruning: zeroes the weakest filters after every epoch; training may restore them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from onnxprune import __version__ as version
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.planner import plan as make_plan
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan
from onnxprune.training.methods._base import Method, Scored, check_number
from onnxprune.training.methods._channel_parameters import ChannelAxis, SquaredNorms


@dataclass
class SoftFilter(Method):
    """Zeroes the share `ratio` of each group with the smallest Euclidean norm after every epoch; training continues.

    The norm of a channel is that of all filters that produce it together. With them its biases, BatchNorm scale and
    shift and other parameters of the channel become zero, so that the network computes what the pruned one will (the
    paper zeroes filters only). The channel's consumers are not changed.

    Zeroed channels grow back by the optimizer's momentum, and by gradients where no rectifier that is flat at zero
    stands between them and the loss: train with momentum or Adam.

    The plan removes the channels that were zeroed last: the same share of every group, exactly them with
    `Constraints(round_to=1)`.

    Args:
        ratio: the share zeroed, the paper's P; in (0, 1).
        progressive: let the share grow over the epochs, three quarters of it in the first eighth (asymptotic soft
            filter pruning, He et al. 2019): `ratio * (1 - 4 ** (-8 x)) / (1 - 4 ** -8)` when x of the epochs are done.
    """

    ratio: float = 0.3
    progressive: bool = False

    name: ClassVar[str] = "soft_filter"
    title: ClassVar[str] = "the weakest filters zeroed after every epoch (soft filter pruning)"
    source: ClassVar[str] = "He et al. 2018, Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks"
    default_normalize: ClassVar[str] = "mean"  # as the criterion l2

    _own: list[ChannelAxis] = field(init=False, repr=False, compare=False, default_factory=list)
    _norms: SquaredNorms | None = field(init=False, repr=False, compare=False, default=None)
    _groups: list[tuple[str, npt.NDArray[np.int64]]] = field(
        init=False, repr=False, compare=False, default_factory=list
    )

    def __post_init__(self) -> None:
        check_number(self.name, "ratio", self.ratio, 0, 1)
        if not isinstance(self.progressive, bool):
            raise OnnxPruneError(f"{self.name}: progressive must be true or false; got {self.progressive!r}")

    def _resolve(self, axes: tuple[ChannelAxis, ...]) -> None:
        filters = [m for m in axes if m.role == "filter"]
        self._own = [m for m in axes if m.role != "reader"]
        self._norms = SquaredNorms(filters, self.analysis.count)
        produced = self._norms.sizes.numpy() > 0
        self._groups = [(g.name, g.components) for g in self.analysis.groups if produced[g.components[0]]]
        if not self._groups:
            raise OnnxPruneError(f"{self.name}: no filter that trains can be removed", fix="see `onnxprune inspect`")

    def share(self, epoch: int, epochs: int) -> float:
        """Return the share to zero after an epoch (from 0) of so many."""
        if not self.progressive:
            return self.ratio
        done = min(1.0, (epoch + 1) / max(1, epochs))
        return float(self.ratio * (1 - 4 ** (-8 * done)) / (1 - 4**-8))

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Update the scores, then zero the weakest channels of each group, never all of them."""
        super().after_epoch(epoch, epochs)
        share = self.share(epoch, epochs)
        gone = np.zeros(self.analysis.count, bool)
        for name, components in self._groups:
            count = min(floor(len(components) * share + 1e-9), len(components) - 1)
            # Of equal scores the lower index first, as in plans.
            weakest = np.argsort(self._scores[name].numpy(), kind="stable")[:count]
            gone[components[weakest]] = True
        with torch.no_grad():
            for m in self._own:
                places = torch.from_numpy(np.flatnonzero(gone[m.components])).to(m.parameter.device)
                m.parameter.index_fill_(m.axis, places, 0.0)

    def _measured(self) -> Mapping[str, Scored]:
        if self._norms is None:
            raise self._unattached()
        with torch.no_grad():
            norms = self._norms().double().sqrt().cpu().numpy()
        return {name: norms[components] for name, components in self._groups}

    def plan(
        self,
        model: Model,
        target: Target | None = None,
        ratio: float | None = None,
        constraints: Constraints | None = None,
    ) -> Plan:
        """Return a plan of the weakest channels, the same share of every group: `self.ratio` by default.

        Raises:
            OnnxPruneError: as `scores` and `onnxprune.plan`.
        """
        if target is None and ratio is None:
            ratio = self.ratio
        return make_plan(
            self.scores(model), target, ratio=ratio, allocator="uniform", constraints=constraints, tool=version
        )
