"""Base class of training-time pruning methods, which act during training and return a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from onnxprune import __version__ as version
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.planning.analyze import analyze
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.planner import plan as make_plan
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan
from onnxprune.training.methods._channel_parameters import ChannelAxis, members

Scored = npt.NDArray[np.float64]

_ATTENTION = ("heads", "head_dim")


@dataclass
class Method(ABC):
    """Training-time pruning method. Subclasses are dataclasses whose fields are the user's parameters.

        method.attach(module, analysis)       # before training, and before `load_state_dict` when a run is resumed
        loss = loss + method.penalty()        # at every step, where it is not None
        method.after_epoch(epoch, epochs)     # when the epoch's last step is done, before weights are kept or measured
        plan = method.plan(trained, Target(macs=0.5))

    Scores of the channels are taken at the end of every epoch. They belong to the weights of that moment: where an
    earlier epoch's weights are kept in the end, its `state_dict` has to be loaded with them. They are kept by group,
    so the plan is made for the trained model as it is, even if BatchNorm that was inserted for training is folded by
    then.
    """

    name: ClassVar[str]
    """Name on the command line."""
    title: ClassVar[str]
    """One line for `--help`."""
    source: ClassVar[str]
    """Paper with the definition."""
    default_normalize: ClassVar[str] = "none"
    """Normalization that makes scores of groups comparable; see `onnxprune.criteria.normalize`."""

    _analysis: Analysis | None = field(init=False, repr=False, compare=False, default=None)
    _attention: int = field(init=False, repr=False, compare=False, default=0)
    _scores: dict[str, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        """Return the user's parameters."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @property
    def analysis(self) -> Analysis:
        """Return the analysis of the model in training.

        Raises:
            OnnxPruneError: the method is not attached.
        """
        if self._analysis is None:
            raise self._unattached()
        return self._analysis

    def _unattached(self) -> OnnxPruneError:
        return OnnxPruneError(f"the method {self.name!r} is not attached", fix="method.attach(module, analysis)")

    def attach(self, module: nn.Module, analysis: Analysis) -> None:
        """Find the parameters the method acts on and reset its state.

        Args:
            module: from `to_torch`, before it is wrapped or compiled.
            analysis: analysis of the model that was converted.

        Raises:
            OnnxPruneError: the two do not belong together, or the model lacks what the method needs.
        """
        self._analysis = analysis
        self._attention = _ATTENTION.index(analysis.choices.attention)
        self._scores = {}
        self._resolve(members(module, analysis))

    @abstractmethod
    def _resolve(self, axes: tuple[ChannelAxis, ...]) -> None:
        """Select the parameters that the method acts on."""

    def penalty(self) -> Tensor | None:
        """Return the term of the loss, a scalar on the parameters' device; None if there is none."""
        return None

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Act between two epochs and update the scores.

        Args:
            epoch: the finished epoch, from 0.
            epochs: number of epochs of the whole training.

        Raises:
            OnnxPruneError: weights that are not finite.
        """
        for name, values in self._measured().items():
            if not np.isfinite(values).all():
                raise OnnxPruneError(
                    f"{self.name}: the weights contain NaN or infinity",
                    where=f"group {name!r}",
                    fix="lower the learning rate or the method's strength",
                )
            self._scores[name] = torch.from_numpy(np.array(values, np.float64))

    @abstractmethod
    def _measured(self) -> Mapping[str, Scored]:
        """Return group name -> one score per channel, higher = keep, by the present weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `plan` and a resumed training: tensors and numbers only."""
        return {"attention": self._attention, "scores": {k: v.clone() for k, v in self._scores.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state from `state_dict`, after `attach` if the training continues.

        Raises:
            OnnxPruneError: another method's state, or one of other groups.
        """
        wanted = self.state_dict()
        scores = state.get("scores")
        fits = state.keys() == wanted.keys() and isinstance(scores, Mapping) and state["attention"] in (0, 1)
        if not fits or any(not isinstance(v, Tensor) or v.ndim != 1 for v in (scores or {}).values()):
            raise OnnxPruneError(f"this is no state of the method {self.name!r}", fix="resume with the method it had")
        assert scores is not None
        for name, values in scores.items():
            if self._analysis is not None and self._analysis[name].channels != len(values):
                raise OnnxPruneError(
                    f"the state counts {len(values)} channels where the model has {self._analysis[name].channels}",
                    where=f"group {name!r}",
                )
        self._attention = int(state["attention"])
        self._scores = {k: v.detach().to("cpu", torch.float64, copy=True) for k, v in scores.items()}

    def scores(self, model: Model) -> Scores:
        """Return the latest scores of the trained model's groups, for the further options of `onnxprune.plan`.

        Args:
            model: the trained one.

        Raises:
            OnnxPruneError: no epoch was trained, or the model has other groups.
        """
        if not self._scores:
            raise OnnxPruneError(
                f"the method {self.name!r} has seen no epoch of training",
                fix="call after_epoch at the end of every epoch, or load_state_dict",
            )
        analysis = analyze(model, attention=_ATTENTION[self._attention])
        for name, values in self._scores.items():
            if name not in analysis.by_name or analysis.by_name[name].channels != len(values):
                raise OnnxPruneError(
                    "the model is not the one that was trained with this method",
                    where=f"group {name!r}",
                    fix="pass what write_back returned",
                )
        groups = {g.name: self._scores[g.name].numpy() for g in analysis.groups if g.name in self._scores}
        return Scores(analysis, groups, {"name": self.name, **self.params}, self.default_normalize)

    def plan(
        self,
        model: Model,
        target: Target | None = None,
        ratio: float | None = None,
        constraints: Constraints | None = None,
    ) -> Plan:
        """Return the plan of the trained model.

        Args:
            model: the trained one.
            target: the share of a measure that is kept.
            ratio: instead, the share removed.
            constraints: rounding, protection, overrides.

        Raises:
            OnnxPruneError: as `scores` and `onnxprune.plan`.
        """
        return make_plan(self.scores(model), target, ratio=ratio, constraints=constraints, tool=version)


def check_number(method: str, name: str, value: object, low: float, high: float) -> None:
    """Raise on a parameter that is no number strictly between two bounds; the upper one may be infinite.

    Raises:
        OnnxPruneError: with the range.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not number or not low < value < high:  # type: ignore[operator]
        span = f"in ({low:g}, {high:g})" if isfinite(high) else f"above {low:g}"
        raise OnnxPruneError(f"{method}: {name} must be a number {span}; got {value!r}")
