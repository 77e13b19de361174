"""Criteria: importance scores of filters and channels, which order their removal.

Importing this package registers the built-in criteria. `get("l1")` makes one, `all_criteria()` lists them.
"""

from onnxprune.criteria import (
    activations,
    block_distance,
    bn_scale,
    dscore,
    geometric_median,
    hrank,
    lamp,
    loss_change,
    lrp,
    norms,
    obs,
    pls,
    random_scores,
    senpis,
    taylor,
    thinet,
)
from onnxprune.criteria._registry import all_criteria as all_criteria
from onnxprune.criteria._registry import get as get
from onnxprune.criteria._registry import get_class as get_class
from onnxprune.criteria._registry import register as register
from onnxprune.criteria.base import AnyCriterion as AnyCriterion
from onnxprune.criteria.base import Criterion as Criterion
from onnxprune.criteria.base import DataCriterion as DataCriterion

# Imported for registration.
_BUILT_IN = (
    activations,
    block_distance,
    bn_scale,
    dscore,
    geometric_median,
    hrank,
    lamp,
    loss_change,
    lrp,
    norms,
    obs,
    pls,
    random_scores,
    senpis,
    taylor,
    thinet,
)

__all__ = ["AnyCriterion", "Criterion", "DataCriterion", "all_criteria", "get", "get_class", "register"]
