"""Registry of criteria: the built-in ones and those of other packages."""

from __future__ import annotations

from typing import Any

from onnxprune._utils.registry import Registry, make
from onnxprune.criteria.base import AnyCriterion, Criterion, DataCriterion
from onnxprune.criteria.normalize import METHODS


def _problem(cls: Any) -> str | None:
    """Return the reason why `cls` breaks the interface of `Criterion`, or None."""
    if not (isinstance(cls, type) and issubclass(cls, Criterion | DataCriterion)):
        return "it derives neither from onnxprune.criteria.Criterion nor from DataCriterion"
    # Read from the class itself: a plain subclass of a dataclass would inherit the mark but not the fields.
    params = cls.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen:
        return "it is not a frozen dataclass"
    if cls.__abstractmethods__:
        return f"{', '.join(sorted(cls.__abstractmethods__))} is missing"
    for attribute in ("name", "title", "source", "needs", "default_normalize"):
        if not getattr(cls, attribute, ""):
            return f"`{attribute}` is missing"
    if cls.needs not in (("weights",) if issubclass(cls, Criterion) else ("data", "labels")):
        return f"`needs` is {cls.needs!r}"
    if issubclass(cls, Criterion) and cls.reads not in ("filters", "bn_scale"):
        return f"`reads` is {cls.reads!r}"
    if cls.default_reduce not in cls.reductions:
        return f"`default_reduce` {cls.default_reduce!r} is not among its `reductions`"
    if cls.default_normalize not in METHODS:
        return f"`default_normalize` is {cls.default_normalize!r}"
    return None


_SYNONYMS = {
    "magnitude": "l2", "weight_magnitude": "l2", "norm": "l2", "l2_norm": "l2", "l1_norm": "l1", "filter_norm": "l2",
    "bn": "bn_scale", "batchnorm": "bn_scale", "gamma": "bn_scale", "slimming": "bn_scale",
    "network_slimming": "bn_scale", "geometric_median": "fpgm", "gm": "fpgm", "d_score": "dscore", "d_step": "dstep",
    "taylor_fo": "taylor", "taylor_first_order": "taylor", "first_order": "taylor", "grad": "gradient",
    "hessian": "obs", "obd": "obs", "second_order": "obs", "optimal_brain_surgeon": "obs", "oracle": "loss_change",
    "rank": "hrank", "pls": "pls_vip", "vip": "pls_vip", "relevance": "lrp", "rand": "random",
    "activation": "act_mean", "activations": "act_mean", "activation_mean": "act_mean", "mean_activation": "act_mean",
    "activation_variance": "act_var", "zeros": "apoz",
}  # fmt: skip


def _synonym(name: str) -> str:
    """Return the criterion that a common other name, or another spelling, stands for."""
    folded = name.strip().lower().replace("-", "_").replace(" ", "_")
    return _SYNONYMS.get(folded, folded)


CRITERIA: Registry[str, type[AnyCriterion]] = Registry(
    "criterion", problem=_problem, plugins="onnxprune.criteria", synonym=_synonym, synonyms=_SYNONYMS
)
"""Criteria by name. Third-party ones are classes, each under an entry point of its name."""

register = CRITERIA.register
"""Register a criterion under its name; a class decorator."""


def get_class(name: str) -> type[AnyCriterion]:
    """Return the class of the criterion `name`, which may be another common name of it.

    Raises:
        OnnxPruneError: Unknown criterion (with the nearest names).
    """
    return CRITERIA[name]


def get(name: str, **params: Any) -> AnyCriterion:
    """Return the criterion `name` with the user's parameters: `get("fpgm", mix_norm=0.1)`.

    Raises:
        OnnxPruneError: Unknown criterion (with the nearest names), or unknown parameter (with the valid ones).
    """
    return make(CRITERIA.kind, name, CRITERIA[name], params)


def all_criteria() -> dict[str, type[AnyCriterion]]:
    """Return every criterion, sorted by name; a copy."""
    return dict(sorted(CRITERIA.items()))
