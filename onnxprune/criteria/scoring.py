"""Scores of channels: a criterion applied to every weight or feature map of a group, reduced over the group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune._utils.files.atomic_files import write_text
from onnxprune._utils.output.formatting import counted
from onnxprune._utils.output.html import html_table
from onnxprune._utils.output.progress import Progress
from onnxprune._utils.strict import Format
from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.criteria._registry import CRITERIA
from onnxprune.criteria._registry import get as get_criterion
from onnxprune.criteria.base import REDUCTIONS, AnyCriterion, Criterion, DataCriterion, ScoringContext
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.calibration import Calibration
from onnxprune.ir import protobuf_wire
from onnxprune.ir.model import Array
from onnxprune.ops.label_table import FilterSite, ScaleSite

Scored = npt.NDArray[np.float64]
FORMAT = Format("scores", 2**30, 1, fix="create them again with `onnxprune score`")


@dataclass(frozen=True, repr=False)
class Scores:
    """Scores of channels, one number each; higher is kept.

    Attributes:
        analysis: Coupling analysis of the scored model.
        groups: Group name -> float64 [channels].
        criterion: Name, reduction and parameters.
        normalize: How scores of different groups are made comparable by default.
        per_class: Group name -> class -> float64 [channels], importance for one class, from criteria that compute it;
            empty for others, and for a file of scores.
        data: Name, number and preprocessing of the samples that were read; empty without any.
        blocks: Residual blocks in order of removal -> loss beside those before; empty if blocks were not scored.
    """

    analysis: Analysis = field(repr=False)
    groups: Mapping[str, Scored]
    criterion: Mapping[str, Any]
    normalize: str
    per_class: Mapping[str, Mapping[int, Scored]] = field(default_factory=dict, repr=False)
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    blocks: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def forbids(self) -> Mapping[str, str]:
        """Operations forbidden by the criterion's definition -> reason; empty for a criterion that is not installed."""
        rule = self._rule
        return rule.forbids if rule is not None else {}

    @property
    def default_allocator(self) -> str:
        """Default allocator of a target with these scores."""
        return self._rule.default_allocator if self._rule is not None else "global"

    @property
    def _rule(self) -> type[AnyCriterion] | None:
        return CRITERIA.find(str(self.criterion.get("name")))

    def __repr__(self) -> str:
        channels = sum(map(len, self.groups.values()))
        name = self.criterion.get("name")
        more = ", for each class as well" if self.per_class else ""
        more += f", {counted(len(self.blocks), 'block')}" if self.blocks else ""
        return f"<Scores by {name}: {counted(len(self.groups), 'group')}, {counted(channels, 'channel')}{more}>"

    def _repr_html_(self) -> str:
        """Return the spread of each group's scores as an HTML table."""
        rows = [
            [name, str(len(s)), f"{s.min():.4g}", f"{float(np.median(s)):.4g}", f"{s.max():.4g}"]
            for name, s in self.groups.items()
        ]
        title = f"scores by {self.criterion.get('name')}, higher is kept"
        return html_table(title, ["group", "channels", "lowest", "median", "highest"], rows)

    def to_json(self) -> str:
        """Return the text of the file that `score -o` writes."""
        return json.dumps(
            {
                "schema": 1,
                "model": self.analysis.source.fingerprint,
                "criterion": dict(self.criterion),
                "normalize": self.normalize,
                **({"data": dict(self.data)} if self.data else {}),
                "groups": {name: s.tolist() for name, s in self.groups.items()},
                **({"blocks": dict(self.blocks)} if self.blocks else {}),
            },
            allow_nan=False,
        )


def save_scores(scores: Scores, path: Path) -> None:
    """Write scores as JSON, atomically."""
    write_text(path, scores.to_json() + "\n")


@dataclass(frozen=True)
class _ScoresFile:
    """Contents of a file of scores."""

    model: str
    criterion: Mapping[str, Any]
    normalize: str
    groups: Mapping[str, tuple[float, ...]]
    data: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, float] = field(default_factory=dict)


def load_scores(path: Path, analysis: Analysis) -> Scores:
    """Read scores that `save_scores` wrote for the same model.

    Raises:
        OnnxPruneError: The file is invalid, belongs to another model, or has other groups.
    """
    found = FORMAT.fields(_ScoresFile, FORMAT.load(path), str(path), complete=False)
    if found.model != analysis.source.fingerprint:
        raise FORMAT.error("they belong to another model", str(path))
    for name, values in found.groups.items():
        channels = analysis[name].channels
        if len(values) != channels:
            raise FORMAT.error(f"{channels} numbers are due, not {len(values)}", str(path), ("groups", name))
    groups = {name: np.asarray(values, np.float64) for name, values in found.groups.items()}
    for name in found.blocks:
        analysis.block(name)
    return Scores(analysis, groups, found.criterion, found.normalize, data=found.data, blocks=found.blocks)


def score(
    analysis: Analysis,
    criterion: str | AnyCriterion = "l2",
    *,
    reduce: str | None = None,
    groups: list[str] | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    **params: Any,
) -> Scores:
    """Return the scores of all channels.

    A criterion scores the filters of one weight, or the feature maps of one tensor. Scores of a channel with several
    indices there (heads, shuffled channels) are averaged; `reduce` combines the weights or tensors of a group.

    Args:
        analysis: Coupling analysis of the model.
        criterion: Name or instance.
        reduce: "mean", "sum", "max" or "first"; default: the criterion's own.
        groups: Names of the groups to score; default: all.
        calibration: Calibration data, for criteria that need it.
        progress: Called with (done, total) weights or samples.
        params: Parameters of the criterion, if it is given by name.

    Raises:
        OnnxPruneError: Unknown criterion, parameter or group; a reduction that the criterion forbids; weights or
            activations that are not finite; `bn_scale` on a group without BatchNormalization; data, labels or classes
            that are missing or too few for the criterion; or an extra that is not installed.
    """
    rule = get_criterion(criterion, **params) if isinstance(criterion, str) else criterion
    return score_together(
        analysis, [rule], reduce=reduce, groups=groups, calibration=calibration, progress=progress
    )[0]  # fmt: skip


def score_together(
    analysis: Analysis,
    criteria: Sequence[AnyCriterion],
    *,
    reduce: str | None = None,
    groups: list[str] | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> list[Scores]:
    """Return the scores of several criteria, with one run over the data. Arguments and errors as for `score`."""
    for rule in criteria:
        if rule.blocks_only:
            raise OnnxPruneError(
                f"criterion {rule.name!r} scores whole blocks, not channels",
                fix="add --only blocks, or choose another criterion (`onnxprune criteria`)",
            )
    hows = [_reduction(rule, reduce) for rule in criteria]
    wanted = [analysis[name] for name in dict.fromkeys(groups)] if groups is not None else list(analysis.groups)
    by_data = [rule for rule in criteria if isinstance(rule, DataCriterion)]
    if by_data:
        calibration = _checked(calibration, by_data)
        read = calibration.as_dict()
        context = ScoringContext(analysis, tuple(wanted), calibration, progress)
        for looker in by_data:
            least = looker.least_samples(context)
            if len(calibration) < least:
                raise OnnxPruneError(
                    f"criterion {looker.name!r} needs at least {least} samples here; there are {len(calibration)}",
                    fix="use more data (--images), or choose another criterion",
                )
        probes = {id(rule): list(rule.probes(context)) for rule in by_data}
        calibration.collect(analysis.model, [p for own in probes.values() for p in own], progress=progress)
    else:
        read = {}
    out = []
    for rule, how in zip(criteria, hows, strict=True):
        if isinstance(rule, DataCriterion):
            rows = _Rows(analysis, wanted)
            for site in rule.score_sites(context, probes.pop(id(rule))):
                rows.add(site.components, site.scores)
                for label, values in site.per_class.items():
                    rows.add(site.components, values, label)
        else:
            assert isinstance(rule, Criterion)
            rows = _weight_rows(analysis, rule, wanted, progress)
        found = {
            group.name: _reduced(mine, how) if mine else _without_sites(analysis, rule, group)
            for group, mine in zip(wanted, rows.rows, strict=True)
        }
        fields: dict[str, Any] = asdict(rule) if is_dataclass(rule) and not isinstance(rule, type) else {}
        settings = {"name": rule.name, "reduce": how, **fields}
        out.append(
            Scores(
                analysis, found, settings, rule.default_normalize, rows.by_class(how), read if rule in by_data else {}
            )
        )
    return out


def _reduction(rule: AnyCriterion, reduce: str | None) -> str:
    how = reduce or rule.default_reduce
    if how not in REDUCTIONS:
        raise unknown("reduction", how, REDUCTIONS)
    if how not in rule.reductions:
        raise OnnxPruneError(
            f"criterion {rule.name!r} cannot be reduced by {how!r}", fix=f"choose from: {', '.join(rule.reductions)}"
        )
    return how


def _checked(calibration: Calibration | None, rules: Sequence[DataCriterion]) -> Calibration:
    """Return the calibration data if it meets the needs of the criteria, else raise."""
    if calibration is None:
        raise OnnxPruneError(
            f"criterion {rules[0].name!r} needs data", fix="use --data, or calibration=Calibration(data)"
        )
    labelled = [rule for rule in rules if rule.needs == "labels"]
    y = calibration.data.y
    if labelled and y is None:
        raise OnnxPruneError(
            f"criterion {labelled[0].name!r} needs labels, and the data {calibration.data.name!r} has none",
            fix="add an array y, or choose a criterion without labels (`onnxprune criteria`)",
        )
    return calibration


class _Rows:
    """Scores per group, with one row for each scored tensor."""

    def __init__(self, analysis: Analysis, wanted: Sequence[Group]) -> None:
        self.analysis, self.wanted = analysis, wanted
        self.rows: list[list[Scored]] = [[] for _ in wanted]
        self.of_class: list[dict[int, list[Scored]]] = [{} for _ in wanted]
        # All channels of a group have the same sites, so the first one identifies them.
        self.led = np.full(analysis.count, -1)
        for g, group in enumerate(wanted):
            self.led[group.components[0]] = g

    def add(self, components: npt.NDArray[np.int64], values: Scored, label: int | None = None) -> None:
        """Add the scores of one tensor's indices, or those for one class."""
        means = _by_component(components, values, self.analysis.count)
        for g in np.unique(self.led[components]).tolist():
            if g >= 0:
                rows = self.rows[g] if label is None else self.of_class[g].setdefault(label, [])
                rows.append(means[self.wanted[g].components])

    def by_class(self, how: str) -> dict[str, dict[int, Scored]]:
        """Return group name -> class -> scores, for the groups that have any."""
        found = zip(self.wanted, self.of_class, strict=True)
        return {g.name: {label: _reduced(rows, how) for label, rows in mine.items()} for g, mine in found if mine}


def _weight_rows(analysis: Analysis, rule: Criterion, wanted: Sequence[Group], progress: Progress | None) -> _Rows:
    needed = np.zeros(analysis.count, bool)
    for group in wanted:
        needed[group.components] = True
    rows = _Rows(analysis, wanted)
    sites = [s for s in _sites(analysis, rule) if needed[analysis.component[s.labels]].any()]
    done: set[tuple[str, int]] = set()
    for i, site in enumerate(sites):
        key = (site.tensor.name, site.axis if isinstance(site, FilterSite) else 0)
        if key not in done:
            done.add(key)
            rows.add(analysis.component[site.labels], _site_scores(analysis, rule, site))
        if progress is not None:
            progress(i + 1, len(sites))
    return rows


def _sites(analysis: Analysis, rule: Criterion) -> list[FilterSite | ScaleSite]:
    return list(analysis.scale_sites if rule.reads == "bn_scale" else analysis.filter_sites)


def _site_scores(analysis: Analysis, rule: Criterion, site: FilterSite | ScaleSite) -> Scored:
    values = analysis.weight(site.tensor)
    weight = filters_first(values, site.axis, site.groups) if isinstance(site, FilterSite) else values
    scores = rule.filter_scores(weight, tensor=site.tensor.name)
    protobuf_wire.release(values)
    return scores


def filters_first(weight: Array, axis: int, groups: int = 1) -> Array:
    """Return a weight as [filters, ...]; grouped ConvTranspose weights [in, out/groups, ...] group by group."""
    if groups == 1:
        return np.moveaxis(weight, axis, 0)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return np.moveaxis(split, 2, 1).reshape(groups * weight.shape[1], -1)


def _by_component(components: npt.NDArray[np.int64], values: Scored, count: int) -> Scored:
    """Return the mean over each component's indices on an axis, [count]; 0 for components without any."""
    places = np.bincount(components, minlength=count)
    return np.asarray(np.bincount(components, values, count) / np.maximum(places, 1))


def _reduced(rows: list[Scored], how: str) -> Scored:
    stack: Scored = np.stack(rows)
    if how == "first":
        return rows[0]
    return np.asarray({"mean": np.mean, "sum": np.sum, "max": np.max}[how](stack, axis=0))  # type: ignore[operator]


def _without_sites(analysis: Analysis, rule: AnyCriterion, group: Group) -> Scored:
    """Return scores of channels without producing weights (padding), from the weights that read them."""
    if not isinstance(rule, Criterion):
        return np.zeros(group.channels)
    if rule.reads == "bn_scale":
        raise OnnxPruneError(
            f"criterion {rule.name!r} needs BatchNormalization, and these channels have none (exporters fold it into "
            "the convolution before)",
            where=f"group {group.name!r}",
            fix="export with BatchNorm kept, add it with the pass insert_batchnorm, exclude the group with "
            "--exclude, or choose another criterion",
        )
    constants = {t.name: t for n in analysis.model.graph.nodes for t in n.inputs if isinstance(t, gs.Constant)}
    rows = []
    for tensor, axis in group.sites:
        weight = np.asarray(constants[tensor].values)
        if weight.ndim < 2:
            continue
        labels = analysis.table.constants[tensor][axis]
        assert labels is not None
        scores = rule.filter_scores(np.moveaxis(weight, axis, 0), tensor=tensor)
        protobuf_wire.release(weight)
        rows.append(_by_component(analysis.component[labels], scores, analysis.count)[group.components])
    return _reduced(rows, "mean") if rows else np.zeros(group.channels)
