"""Comparison of criteria: rank correlations, overlap of removed channels, and the weights that each keeps.

Positive and negative weights of a channel are summed separately, as in D-Score (Park & Kim 2022, figures 4 and 5 show
them in the order of several criteria).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune._utils.files.atomic_files import write_text
from onnxprune._utils.output.html import html_table, share
from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.criteria import AnyCriterion
from onnxprune.criteria import get as get_criterion
from onnxprune.criteria.dscore import sign_sums
from onnxprune.criteria.scoring import Scored, Scores, filters_first, score_together
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.calibration import Calibration
from onnxprune.planning.constraints import check_ratio
from onnxprune.planning.sensitivity_sweep import removed_at

Pair = tuple[str, str]


@dataclass(frozen=True)
class Agreement:
    """Agreement of two criteria, on one group or averaged over groups.

    Attributes:
        spearman: Rank correlation in [-1, 1]; tied scores have their mean rank. None if undefined, because a criterion
            scores all channels alike.
        kendall: tau-b in [-1, 1], corrected for ties; None likewise.
        overlap: Share of the removed channels that both remove; the ratio by chance. None if nothing is removed.
    """

    spearman: float | None
    kendall: float | None
    overlap: float | None


@dataclass(frozen=True)
class RankedGroup:
    """Channels of a group in the order of every criterion, and their weights by sign.

    Attributes:
        name: Name of the group.
        positive: Sum of the positive weights that produce a channel, float64 [channels].
        negative: Sum of the magnitudes of the negative ones, float64 [channels].
        orders: Criterion -> channels in order of removal (equal scores: the lower index first).
        removed: Number of removed channels.
    """

    name: str
    positive: Scored = field(repr=False)
    negative: Scored = field(repr=False)
    orders: Mapping[str, npt.NDArray[np.int64]] = field(repr=False)
    removed: int

    def kept(self, criterion: str) -> tuple[float, float]:
        """Return the sums of the positive and of the negative weights that a criterion keeps."""
        stay = self.orders[criterion][self.removed :]
        return float(self.positive[stay].sum()), float(self.negative[stay].sum())


@dataclass(frozen=True)
class CriteriaComparison:
    """Comparison of several criteria on one model.

    Attributes:
        scores: Scores by criterion, named as the user did.
        ratio: Share removed from every group.
        groups: Group name -> pair of criteria -> agreement.
    """

    scores: Mapping[str, Scores] = field(repr=False)
    ratio: float
    groups: Mapping[str, Mapping[Pair, Agreement]]

    def _repr_html_(self) -> str:
        """Return the means over the groups for every pair of criteria as an HTML table."""
        rows = []
        for pair in self.pairs:
            mean = self.mean(pair)
            figures = ["-" if v is None else f"{v:.3f}" for v in (mean.spearman, mean.kendall)]
            rows.append([", ".join(pair), *figures, "-" if mean.overlap is None else share(mean.overlap, 1)])
        title = f"criteria on {len(self.groups)} groups, {share(self.ratio, 1)} of each removed"
        return html_table(title, ["criteria", "Spearman", "Kendall", "removed alike"], rows)

    @property
    def pairs(self) -> list[Pair]:
        """Every pair of criteria, once."""
        return list(combinations(self.scores, 2))

    @property
    def analysis(self) -> Analysis:
        """Coupling analysis of the model."""
        return next(iter(self.scores.values())).analysis

    def mean(self, pair: Pair) -> Agreement:
        """Return the unweighted mean over the groups for which a figure is defined."""
        found = [agreements[pair] for agreements in self.groups.values()]
        return Agreement(*(_mean([getattr(a, what) for a in found]) for what in ("spearman", "kendall", "overlap")))

    def layer(self, pattern: str | None = None) -> RankedGroup:
        """Return the widest group whose name matches a glob pattern (default: any); the first of equal ones.

        Raises:
            OnnxPruneError: No group matches.
        """
        names = [n for n in self.groups if pattern is None or fnmatchcase(n, pattern)]
        if not names:
            raise unknown("group", pattern or "", self.groups)
        return self._layer(max((self.analysis[n] for n in names), key=lambda g: g.channels))

    def _layer(self, group: Group) -> RankedGroup:
        positive, negative = signs(self.analysis, group)
        orders = {name: order(s.groups[group.name]) for name, s in self.scores.items()}
        return RankedGroup(group.name, positive, negative, orders, removed_at(group.channels, self.ratio))

    def as_dict(self) -> dict[str, Any]:
        """Return the means, and pairs and kept weights by group, as a JSON object."""
        groups = {}
        for name, agreements in self.groups.items():
            layer = self._layer(self.analysis[name])
            whole = float(layer.positive.sum()), float(layer.negative.sum())
            groups[name] = {
                "channels": len(layer.positive),
                "removed": layer.removed,
                "pairs": [_record(pair, a) for pair, a in agreements.items()],
                "weights": _weights(*whole),
                "kept": {criterion: _weights(*layer.kept(criterion)) for criterion in self.scores},
            }
        return {
            "schema": 1,
            "model": self.analysis.source.fingerprint,
            "ratio": self.ratio,
            "criteria": {name: dict(s.criterion) for name, s in self.scores.items()},
            "mean": [_record(pair, self.mean(pair)) for pair in self.pairs],
            "groups": groups,
        }

    def to_csv(self) -> str:
        """Return a CSV table with one line per group and pair."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["group", "channels", "removed", "one", "other", "spearman", "kendall", "overlap"])
        for name, agreements in self.groups.items():
            channels = self.analysis[name].channels
            for pair, a in agreements.items():
                figures = ["" if v is None else repr(v) for v in (a.spearman, a.kendall, a.overlap)]
                writer.writerow([name, channels, removed_at(channels, self.ratio), *pair, *figures])
        return out.getvalue()


def compare_criteria(
    analysis: Analysis,
    criteria: Sequence[str] | Mapping[str, AnyCriterion],
    *,
    ratio: float = 0.5,
    reduce: str | None = None,
    groups: list[str] | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> CriteriaComparison:
    """Return the comparison of several criteria, scored in one run over the data.

    Args:
        analysis: Coupling analysis of the model.
        criteria: At least two, in the form of `parsed`, or instances by name.
        ratio: Share that each would remove from every group, in [0, 1).
        reduce, groups, calibration, progress: See `onnxprune.criteria.scoring.score_together`.

    Raises:
        OnnxPruneError: See `score_together`; or less than two criteria, a duplicate, or a ratio out of range.
    """
    check_ratio(ratio)
    if not isinstance(criteria, Mapping):
        twice = sorted({name for name in criteria if list(criteria).count(name) > 1})
        if twice:
            raise OnnxPruneError(f"the criterion {twice[0]!r} is given twice", fix="compare it with another one")
        criteria = {name: parsed(name) for name in criteria}
    if len(criteria) < 2:
        raise OnnxPruneError("a comparison needs at least two criteria", fix="for example l1,fpgm,dscore")
    found = score_together(
        analysis, list(criteria.values()), reduce=reduce, groups=groups, calibration=calibration, progress=progress
    )
    scores = dict(zip(criteria, found, strict=True))
    names = next(iter(scores.values())).groups
    pairs = list(combinations(scores, 2))
    agreements = {
        name: {(a, b): agreement(scores[a].groups[name], scores[b].groups[name], ratio) for a, b in pairs}
        for name in names
    }
    return CriteriaComparison(scores, ratio, agreements)


def parsed(text: str) -> AnyCriterion:
    """Return a criterion from text, with parameters after colons: `fpgm`, or `fpgm:mix_norm=0.1`.

    Raises:
        OnnxPruneError: Unknown criterion or parameter, or a parameter without a value.
    """
    name, *settings = text.split(":")
    params: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise OnnxPruneError(f"cannot read the criterion {text!r}", fix="NAME, or NAME:PARAMETER=VALUE")
        params[key] = _value(value)
    return get_criterion(name, **params)


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def agreement(one: Scored, other: Scored, ratio: float) -> Agreement:
    """Return the agreement of two criteria's scores [channels] of one group."""
    count = removed_at(len(one), ratio)
    both = len(np.intersect1d(order(one)[:count], order(other)[:count]))
    overlap = both / count if count else None
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return Agreement(None, None, overlap)
    from scipy.stats import kendalltau, spearmanr

    # The p-values are unused; the exact p-value of Kendall's tau would dominate the run time.
    tau = kendalltau(one, other, method="asymptotic").statistic
    return Agreement(float(spearmanr(one, other).statistic), float(tau), overlap)


def order(scores: Scored) -> npt.NDArray[np.int64]:
    """Return the channels in order of removal."""
    return np.argsort(scores, kind="stable").astype(np.int64)


def signs(analysis: Analysis, group: Group) -> tuple[Scored, Scored]:
    """Return sums of the positive weights and of the magnitudes of the negative weights that produce each channel.

    A coupled channel is produced by filters of several weights; all of them count.

    Returns:
        Two arrays, float64 [channels].
    """
    positive, negative = np.zeros(analysis.count), np.zeros(analysis.count)
    done: set[tuple[str, int]] = set()
    for site in analysis.filter_sites:
        places = analysis.component[site.labels]
        key = (site.tensor.name, site.axis)
        if key in done or not np.isin(places, group.components).any():
            continue
        done.add(key)
        rows = filters_first(analysis.weight(site.tensor), site.axis, site.groups).astype(np.float64)
        for total, part in zip((positive, negative), sign_sums(rows.reshape(len(rows), -1)), strict=True):
            np.add.at(total, places, part)
    return positive[group.components], negative[group.components]


def save_comparison(comparison: CriteriaComparison, path: Path) -> None:
    """Write a comparison atomically, as CSV or, for any other suffix, as JSON.

    Raises:
        OnnxPruneError: The file cannot be written.
    """
    if path.suffix.lower() == ".csv":
        write_text(path, comparison.to_csv())
    else:
        write_text(path, json.dumps(comparison.as_dict(), indent=1, allow_nan=False) + "\n")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _record(pair: Pair, a: Agreement) -> dict[str, Any]:
    return {"one": pair[0], "other": pair[1], **vars(a)}


def _weights(positive: float, negative: float) -> dict[str, float | None]:
    total = positive + negative
    return {"positive": positive, "negative": negative, "positive_share": positive / total if total else None}
