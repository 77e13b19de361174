"""Contract of every criterion that uses data, run over the whole registry on the bundled models.

A new criterion adds one line to `FACTS`. Its definition is tested in a file of its own.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import DataCriterion, all_criteria, get
from onnxprune.criteria.base import ScoringContext
from onnxprune.criteria.normalize import METHODS
from onnxprune.criteria.scoring import Scores, score, score_together
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.ir.writer import to_proto

MODELS = Path(__file__).parent.parent.parent / "models"
GROUP = "residual1.a.conv"  # of digits_cnn: between two convolutions, in no residual stream
SOME = ("stem.conv", GROUP, "dense.b.conv")  # a residual stream, read before GROUP; and channels that are concatenated
SAMPLES = 20  # two of each class; a batch of 16 and a rest
UNLABELLED = 16  # in batches of this size criteria that need no labels get none


@dataclass(frozen=True)
class Facts:
    """Properties of one criterion beyond the common contract.

    Attributes:
        params: with which it is quick on few samples.
        dead: what a channel scores that is zero on all data: the "lowest" (with whatever else is as low), or "zero"
            where others can be worth less than nothing.
        apart: whether the scores of a group do not depend on which other groups are scored.
        folded: whether scores are the same with BatchNorm kept and folded.
        tolerance: between two ways to compute the same, as a share of the group's largest score: sums over float32
            activations of a dozen layers.
    """

    params: dict[str, Any] = field(default_factory=dict)
    dead: str = "lowest"
    apart: bool = True
    folded: bool = True
    tolerance: float = 1e-5


FACTS = {
    "apoz": Facts(),
    "act_mean": Facts(),
    "act_var": Facts(),
    "hrank": Facts(),
    "pls_vip": Facts(apart=False),  # one regression over all groups
    "loss_change": Facts(dead="zero", tolerance=1e-4),  # a small difference of two losses, signed
    "senpis": Facts({"samples": 2}, apart=False, tolerance=1e-4),  # the same, with the earlier layers' filters gone
    "taylor": Facts(),
    "gradient": Facts(),
    "lrp": Facts(),
    "obs": Facts(folded=False, tolerance=1e-4),  # errors at the reading convolution, before its BatchNorm; ridge
    "thinet": Facts(folded=False),  # errors at the reading convolution, before its BatchNorm
}
RULES = {
    name: cls(**FACTS[name].params if name in FACTS else {})
    for name, cls in all_criteria().items()
    if issubclass(cls, DataCriterion) and not cls.blocks_only
}
every = pytest.mark.parametrize("name", RULES)


@cache
def digits(model: str = "", samples: int = SAMPLES) -> op.Data:
    """Samples in the model's layout."""
    data = op.load_data("digits:train", images=samples)
    return op.Data(data.x.transpose(0, 2, 3, 1).copy(), data.y, data.name) if "keras" in model else data


@cache
def analysis_of(model: str) -> Analysis:
    """A model that ships, or `fixed` (its batch is 16) or `dead` (channel 5 of `GROUP` is zero) made from one."""
    if model == "fixed":
        proto = to_proto(op.load(MODELS / "digits_cnn_folded.onnx"))
        for value in [*proto.graph.input, *proto.graph.output]:
            value.type.tensor_type.shape.dim[0].dim_value = 16
        return op.analyze(op.load(proto))
    if model == "dead":
        changed = op.load(MODELS / "digits_cnn_folded.onnx")
        conv = next(n for n in changed.graph.nodes if n.name == "/residual1/a/conv/Conv")
        for t in conv.inputs[1:]:
            values = np.array(t.values)
            values[5] = 0
            t.values = values
        return op.analyze(changed)
    return op.analyze(op.load(MODELS / f"{model}.onnx"))


@cache
def scored(name: str, model: str, batch: int = 64, groups: tuple[str, ...] | None = SOME) -> Scores:
    """Scores of some groups of digits_cnn in any of its forms, or of all (None)."""
    data = digits(model)
    if batch == UNLABELLED and RULES[name].needs == "data":
        data = op.Data(data.x, None, "unlabelled")
    calibration = Calibration(data, batch=batch, threads=1)
    return score(analysis_of(model), RULES[name], groups=groups and list(groups), calibration=calibration)


def assert_alike(name: str, found: Scores, expected: Scores) -> None:
    """The same groups with the same scores, up to rounding; and there is something to tell them by."""
    assert set(found.groups) == set(expected.groups) != set()
    for group, scores in expected.groups.items():
        assert np.ptp(scores) > 0, group
        atol = FACTS[name].tolerance * np.abs(scores).max()
        np.testing.assert_allclose(found.groups[group], scores, rtol=0, atol=atol, err_msg=group)


# ---------------------------------------------------------------- what a class states


def test_facts_are_stated_for_exactly_the_registered_criteria() -> None:
    assert set(FACTS) == set(RULES)


@every
def test_class_states_what_it_is(name: str) -> None:
    rule = RULES[name]
    assert rule.name == name
    assert rule.title
    assert "\n" not in rule.title
    assert rule.needs in ("data", "labels")
    assert rule.default_normalize in METHODS
    assert set(rule.forbids) <= {"normalize", "global"}
    assert re.search("s_[cf]", type(rule).__doc__ or ""), "the docstring says what the score is"


@every
def test_frozen_dataclass_equal_by_parameters(name: str) -> None:
    rule = RULES[name]
    for attribute in (*vars(rule), "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, attribute, 1)
    again = get(name, **FACTS[name].params)
    assert again == rule
    assert hash(again) == hash(rule)


# ---------------------------------------------------------------- scores


@every
@pytest.mark.parametrize("model", ["digits_cnn", "digits_keras"])
def test_one_finite_score_for_every_channel(name: str, model: str) -> None:
    scores = scored(name, model, groups=None)
    assert list(scores.groups) == [g.name for g in analysis_of(model).groups]
    for group in analysis_of(model).groups:
        values = scores.groups[group.name]
        assert values.shape == (group.channels,)
        assert values.dtype == np.float64
        assert np.isfinite(values).all()
        assert np.ptp(values) > 0
    assert scores.normalize == RULES[name].default_normalize
    stated = json.loads(scores.to_json())["criterion"]
    assert stated == {"name": name, "reduce": RULES[name].default_reduce, **dataclasses.asdict(RULES[name])}  # type: ignore[call-overload]


@every
def test_batches_do_not_matter_nor_labels_that_are_not_needed(name: str) -> None:
    assert_alike(name, scored(name, "digits_cnn_folded", UNLABELLED), scored(name, "digits_cnn_folded"))


@every
def test_a_fixed_batch_does_not_matter(name: str) -> None:
    """20 samples in two batches of 16: the last is filled up with 12 copies, which do not count."""
    assert_alike(name, scored(name, "fixed"), scored(name, "digits_cnn_folded"))


@every
def test_folded_batchnorm_does_not_matter(name: str) -> None:
    found, expected = scored(name, "digits_cnn"), scored(name, "digits_cnn_folded")
    if FACTS[name].folded:
        assert_alike(name, found, expected)
    else:
        with pytest.raises(AssertionError):
            assert_alike(name, found, expected)


@every
def test_the_data_and_the_model_are_left_as_they_are(name: str) -> None:
    model = op.load(MODELS / "digits_keras.onnx")
    data = digits("digits_keras")
    x, before = data.x.copy(), to_proto(model).SerializeToString()
    analysis = op.analyze(model)
    inner = to_proto(analysis.model).SerializeToString()
    again = score(analysis, RULES[name], calibration=Calibration(data, threads=1))
    np.testing.assert_array_equal(data.x, x)
    assert to_proto(model).SerializeToString() == before
    assert to_proto(analysis.model).SerializeToString() == inner
    assert_alike(name, again, scored(name, "digits_keras", groups=None))


@every
def test_groups_alone(name: str) -> None:
    calibration = Calibration(digits(), threads=1)
    some = score(analysis_of("digits_cnn_folded"), RULES[name], groups=[GROUP], calibration=calibration)
    assert set(some.groups) == {GROUP}
    whole = scored(name, "digits_cnn_folded").groups[GROUP]
    same = np.allclose(some.groups[GROUP], whole, rtol=0, atol=FACTS[name].tolerance * np.abs(whole).max())
    assert same == FACTS[name].apart


def test_criteria_that_share_a_run_score_as_alone() -> None:
    analysis, calibration = analysis_of("digits_cnn_folded"), Calibration(digits(), threads=1)
    case = ScoringContext(analysis, tuple(analysis[name] for name in SOME), calibration)
    together = {name: rule for name, rule in RULES.items() if rule.probes(case)}
    assert {"apoz", "act_mean", "act_var", "hrank", "pls_vip"} <= set(together)
    for name, scores in zip(
        together,
        score_together(analysis, [*together.values()], groups=list(SOME), calibration=calibration),
        strict=True,
    ):
        assert_alike(name, scores, scored(name, "digits_cnn_folded"))


# ---------------------------------------------------------------- higher = keep


@every
def test_a_channel_that_computes_nothing_goes_first(name: str) -> None:
    values = scored(name, "dead").groups[GROUP]
    if FACTS[name].dead == "zero":
        assert values[5] == 0 < np.abs(values).max()
    else:
        assert values[5] <= values.min() + FACTS[name].tolerance * values.max()
        assert values.max() > 0


@every
def test_plans_from_the_scores_compile(name: str) -> None:
    scores = scored(name, "digits_cnn_folded")
    how: dict[str, Any] = {"ratio": 0.4} if "global" in RULES[name].forbids else {"target": op.Target(macs=0.8)}
    plan = op.plan(scores, **how, constraints=op.Constraints(round_to=4))
    assert plan.groups
    for group, removal in plan.groups.items():
        gone = np.isin(np.arange(removal.channels), removal.removed)
        assert scores.groups[group][gone].max() <= scores.groups[group][~gone].min()
    compiled = op.compile_plan(scores.analysis.source, plan, analysis=scores.analysis)
    assert compiled.verification is not None
    assert compiled.after.macs < compiled.before.macs


@every
def test_what_the_definition_forbids_is_refused(name: str) -> None:
    scores, forbids = scored(name, "digits_cnn_folded"), RULES[name].forbids
    if "normalize" in forbids:
        other = "mean" if scores.normalize != "mean" else "max"
        with pytest.raises(OnnxPruneError, match="must not be normalized"):
            op.plan(scores, ratio=0.3, normalize=other)
    if "global" in forbids:
        with pytest.raises(OnnxPruneError, match="cannot be ranked across layers"):
            op.plan(scores, op.Target(macs=0.6))
    assert all(len(reason) > 20 for reason in forbids.values())


# ---------------------------------------------------------------- bad input


@every
def test_no_data(name: str) -> None:
    with pytest.raises(OnnxPruneError, match=f"criterion '{name}' needs data"):
        score(analysis_of("digits_cnn_folded"), RULES[name])


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.needs == "labels"])
def test_no_labels(name: str) -> None:
    calibration = Calibration(op.Data(digits().x, None, "unlabelled"))
    with pytest.raises(OnnxPruneError, match=f"criterion '{name}' needs labels, and the data 'unlabelled' has none"):
        score(analysis_of("digits_cnn_folded"), RULES[name], calibration=calibration)


@every
def test_too_few_samples(name: str) -> None:
    analysis, data = analysis_of("digits_cnn_folded"), digits()
    case = ScoringContext(analysis, analysis.groups, Calibration(data))
    least = RULES[name].least_samples(case)
    assert 1 <= least <= SAMPLES
    assert data.y is not None
    fewer = op.Data(data.x[: least - 1], data.y[: least - 1], "few")
    with pytest.raises(OnnxPruneError, match=f"'{name}' needs at least {least} samples here; there are {least - 1}"):
        score(analysis, RULES[name], calibration=Calibration(fewer))


@every
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_is_not_finite(name: str, value: float) -> None:
    data = digits()
    x = data.x.copy()
    x[7, 0, 3, 3] = value
    with pytest.raises(OnnxPruneError, match="finite"):
        score(
            analysis_of("digits_cnn_folded"), RULES[name], calibration=Calibration(op.Data(x, data.y, "bad"), threads=1)
        )


@every
def test_data_that_does_not_fit(name: str) -> None:
    wide = op.Data(np.zeros((SAMPLES, 1, 9, 9), np.float32), digits().y, "wide")
    with pytest.raises(OnnxPruneError, match="'wide' do not fit the model's input"):
        score(analysis_of("digits_cnn_folded"), RULES[name], calibration=Calibration(wide))
