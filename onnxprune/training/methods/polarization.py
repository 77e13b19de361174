"""Polarization regularizer: pushes BatchNorm scales apart, some to zero and the others away from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from glob import escape
from math import inf
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from onnxprune import __version__ as version
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.planning.constraints import Constraints, FeasibleCounts
from onnxprune.planning.depth import refuse_blocks
from onnxprune.planning.planner import plan as make_plan
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan
from onnxprune.training.methods._base import check_number
from onnxprune.training.methods._batchnorm_scales import ScaleMethod
from onnxprune.training.methods._channel_parameters import ChannelAxis
from onnxprune.training.methods._valley import valley


@dataclass
class Polarization(ScaleMethod):
    """`strength * (t * sum a_i - sum |a_i - mean(a)|)` with `a_i = |gamma_i|` over all channels that can be removed.

    The second term rewards distance from the mean of all layers, so scales end near zero or well above it. On its
    own the regularizer is least where the share 1/2 - t/4 of the scales is as large as allowed and the rest is zero.
    The paper keeps gamma in [0, a]; here its sign is free and |gamma| <= bound is restored after every epoch.

    Without a target or ratio the plan's threshold is the valley between the two clusters (see `valley`); group by group
    the kept count is rounded up, so that no channel above the valley is removed. With one, plans are as for `slimming`.

    Args:
        strength: the paper's lambda, 1e-4 with training from scratch. A few epochs on a trained network need more.
        t: pulls all scales towards zero; the paper uses 1.0 to 1.6. From 2 on nothing would be kept.
        bound: largest |gamma|, the paper's a; None: the largest at the start, so that nothing is clipped then.
    """

    strength: float = 1e-4
    t: float = 1.2
    bound: float | None = None

    name: ClassVar[str] = "polarization"
    title: ClassVar[str] = "BatchNorm scales pushed apart (polarization regularizer)"
    source: ClassVar[str] = "Zhuang et al. 2020, Neuron-level Structured Pruning using Polarization Regularizer"

    _largest: float = field(init=False, repr=False, compare=False, default=0.0)

    def __post_init__(self) -> None:
        check_number(self.name, "strength", self.strength, 0, inf)
        check_number(self.name, "t", self.t, 0, 2)
        if self.bound is not None:
            check_number(self.name, "bound", self.bound, 0, inf)

    def _resolve(self, axes: tuple[ChannelAxis, ...]) -> None:
        super()._resolve(axes)
        self._largest = self.bound if self.bound is not None else float(self.gammas().detach().abs().max())

    def penalty(self) -> Tensor:
        """Return the penalty, a scalar; it may be negative."""
        a = self.gammas().abs()
        return self.strength * (self.t * a.sum() - (a - a.mean()).abs().sum())

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Restore |gamma| <= bound, then update the scores."""
        with torch.no_grad():
            for m in self._scales:
                free = torch.from_numpy(m.components > 0).to(m.parameter.device)
                bounded = m.parameter.clamp(-self._largest, self._largest)
                m.parameter.copy_(torch.where(free, bounded, m.parameter))
        super().after_epoch(epoch, epochs)

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the bound."""
        return {**super().state_dict(), "bound": self._largest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state, with the bound of the start of the training."""
        super().load_state_dict(state)
        self._largest = float(state["bound"])

    def plan(
        self,
        model: Model,
        target: Target | None = None,
        ratio: float | None = None,
        constraints: Constraints | None = None,
    ) -> Plan:
        """Return the plan as `ScaleMethod.plan`; without target and ratio, remove the channels below the valley.

        Raises:
            OnnxPruneError: as there; no valley.
        """
        if target is not None or ratio is not None:
            return super().plan(model, target, ratio, constraints)
        refuse_blocks(constraints, "a plan at the valley")
        scores = self.scores(model)
        constraints = constraints or Constraints()
        # The valley is that of removable channels; protected groups do not count.
        feasible = FeasibleCounts(scores.analysis, constraints, scores.groups)
        if not feasible.free:
            raise OnnxPruneError("no group can be pruned", fix="protect or override less")
        threshold = valley(np.concatenate([scores.groups[g.name] for g in feasible.free]))
        counts = {}
        for g in feasible.free:
            above = int((scores.groups[g.name] >= threshold).sum())
            counts[escape(g.name)] = {
                "channels": feasible.rounded_up(g, max(above, feasible.minimum_of(g)), feasible.step)
            }
        fixed = replace(constraints, overrides={**constraints.overrides, **counts})
        return make_plan(scores, ratio=0.0, constraints=fixed, tool=version)
