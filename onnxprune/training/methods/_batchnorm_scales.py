"""Base of methods on BatchNorm scales: the scales of prunable channels, and plans by |gamma|."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnxprune import __version__ as version
from onnxprune.criteria.bn_scale import BnScale
from onnxprune.criteria.scoring import score
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.planning.constraints import Constraints, check_ratio
from onnxprune.planning.planner import plan as make_plan
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan
from onnxprune.training.methods._base import Method, Scored
from onnxprune.training.methods._channel_parameters import ChannelAxis, root

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TrainedScale(BnScale):
    """`bn_scale` on the module's scales instead of the file's, by the weight's name in the graph."""

    values: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def filter_scores(self, weight: npt.NDArray[Any], *, tensor: str = "") -> Scored:
        return super().filter_scores(self.values.get(tensor, weight), tensor=tensor)


@dataclass
class ScaleMethod(Method):
    """Base of methods that shrink the BatchNorm scales of unneeded channels.

    Groups without BatchNorm lose nothing. The score of a channel with several scales (a residual stream) is their mean.
    """

    _scales: list[ChannelAxis] = field(init=False, repr=False, compare=False, default_factory=list)
    _groups: list[str] = field(init=False, repr=False, compare=False, default_factory=list)
    _free: Tensor | None = field(init=False, repr=False, compare=False, default=None)

    def _resolve(self, axes: tuple[ChannelAxis, ...]) -> None:
        self._scales = [m for m in axes if m.role == "scale"]
        scaled = np.zeros(self.analysis.count, bool)
        for m in self._scales:
            scaled[m.components] = True
        scaled[0] = False
        # All channels of a group are on the same axes, so the first one decides.
        self._groups = [g.name for g in self.analysis.groups if scaled[g.components[0]]]
        if not self._groups:
            raise OnnxPruneError(
                f"the method {self.name!r} needs BatchNormalization, and none that trains scales a channel that could "
                "be removed (exporters fold it into the convolution before)",
                fix="put it in with the pass insert_batchnorm, export with BatchNorm kept, or choose another method",
            )
        bare = [g.name for g in self.analysis.groups if g.name not in set(self._groups)]
        if bare:
            _log.warning(
                "%s: %d of %d groups have no BatchNormalization and are not pruned: %s",
                self.name, len(bare), len(self.analysis), ", ".join(bare[:8]) + (", ..." if len(bare) > 8 else ""),
            )  # fmt: skip
        flags = np.concatenate([m.components for m in self._scales]) > 0
        self._free = None if flags.all() else torch.from_numpy(np.flatnonzero(flags))

    def gammas(self) -> Tensor:
        """Return the scales of all removable channels, [n], at least float32, with gradients."""
        if not self._scales:
            raise self._unattached()
        values = torch.cat(
            [m.parameter.float() if m.parameter.dtype.itemsize < 4 else m.parameter for m in self._scales]
        )
        if self._free is None:
            return values
        if self._free.device != values.device:
            self._free = self._free.to(values.device)
        return values.index_select(0, self._free)

    def _measured(self) -> Mapping[str, Scored]:
        trained = {m.initializer: m.parameter.detach().cpu().double().numpy() for m in self._scales}
        table = self.analysis.table
        values = {}
        for site in self.analysis.scale_sites:
            name = root(table, site.tensor)[0]
            if name in trained:
                values[site.tensor.name] = trained[name]
        return score(self.analysis, _TrainedScale(values), groups=self._groups).groups

    def plan(
        self,
        model: Model,
        target: Target | None = None,
        ratio: float | None = None,
        constraints: Constraints | None = None,
    ) -> Plan:
        """Return the plan by one threshold on |gamma| over all groups.

        Args:
            model: the trained one.
            target: the share of a measure that is kept.
            ratio: instead, the share of all channels with a scale that goes, wherever they are (the paper's
                percentile); other methods take a ratio from every group alike.
            constraints: rounding, protection, overrides.

        Raises:
            OnnxPruneError: as `scores` and `onnxprune.plan`.
        """
        scores = self.scores(model)
        if ratio is not None and target is None:
            check_ratio(ratio)
            scaled = sum(len(values) for values in scores.groups.values())
            target, ratio = Target(channels=1 - ratio * scaled / sum(g.channels for g in scores.analysis)), None
        return make_plan(scores, target, ratio=ratio, constraints=constraints, tool=version)
