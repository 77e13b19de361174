"""Data of a report before rendering: plain values; every part is optional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxprune.pipeline import Frontier
from onnxprune.planning.curves import Curves
from onnxprune.reports._flow_picture import FlowPicture


@dataclass
class ModelSnapshot:
    """Model at one point: original, after a step, or final. Unknown figures are None.

    Attributes:
        name: name of the step or file.
        note: remark of the step.
        top1, top1_error, loss: accuracy with its standard error, mean cross-entropy.
        value, error, metric: main metric of another task than classification.
        macs: per sample; `params`, `bytes` of the constants.
        latency: median seconds of a run; `low`, `high` its quartiles.
        seconds: duration of the step.
        model: whether there is a model, so that figures belong to it.
    """

    name: str
    note: str = ""
    top1: float | None = None
    top1_error: float | None = None
    loss: float | None = None
    value: float | None = None
    error: float | None = None
    metric: str = ""
    macs: int | None = None
    params: int | None = None
    bytes: int | None = None
    latency: float | None = None
    low: float | None = None
    high: float | None = None
    seconds: float | None = None
    model: bool = True


@dataclass(frozen=True)
class GroupChannels:
    """Channels of a group.

    Attributes:
        channels: before.
        kept: after each pruning, in order.
        about: operator, whether it is a residual stream.
        lost: share of the group's score on the removed channels; None if scores are unknown.
    """

    name: str
    channels: int
    kept: tuple[int, ...]
    about: str = ""
    lost: float | None = None


@dataclass(frozen=True)
class LayerBars:
    """Layer before and after: name, operator, channels that it produces, MACs, and seconds if they were measured."""

    name: str
    op: str
    channels: tuple[int, int]
    macs: tuple[int, int]
    seconds: tuple[float, float] | tuple[()] = ()


@dataclass(frozen=True)
class LayerSection:
    """Layers of the chart.

    Attributes:
        rows: Layers shown, in graph order.
        hidden: Number of smaller layers that only the file has.
        most_macs, most_seconds: Lengths of a full bar.
        other: Seconds of all other kernels, before and after.
        how: Machine and runtime of the seconds; "" if they were not measured.
        csv: All layers, as the address of a file.
    """

    rows: list[LayerBars]
    hidden: int
    most_macs: int
    most_seconds: float
    other: tuple[float, float]
    how: str
    csv: str


@dataclass(frozen=True)
class LockedChannels:
    """Channels that cannot be removed, with the reason."""

    name: str
    channels: int
    node: str
    op: str
    reason: str
    inexact: bool


@dataclass(frozen=True)
class SensitivitySection:
    """Curves, and the number of channels that the plan removes per group; None without a matching plan."""

    title: str
    curves: Curves
    chosen: Mapping[str, int] | None


@dataclass(frozen=True)
class FrontierRow:
    """One model of a frontier as the table shows it: shares kept, metric, drop, file.

    Attributes:
        pareto: Costs for which it is Pareto-optimal.
    """

    curve: str
    macs: str
    bytes: str
    latency: str
    value: str
    drop: str
    pareto: list[str]
    path: str


@dataclass(frozen=True)
class PointFile:
    """File of a point: its path relative to the folder, and its size as a text."""

    path: str
    size: str


@dataclass(frozen=True)
class PointDetails:
    """Details of a point that was picked.

    Attributes:
        title: Curve and share.
        facts: Names and values: costs, metric, drop.
        certificate: Names and values of the proof.
        channels: Group, kept and original channels, for every group of the plan.
        files: Its files.
    """

    title: str
    facts: list[tuple[str, str]]
    certificate: list[tuple[str, str]]
    channels: list[tuple[str, int, int]]
    files: list[PointFile]


@dataclass(frozen=True)
class FrontierSection:
    """Frontier with the costs that the chart can show, the rows of its table, and its files as links.

    Attributes:
        frontier: The frontier.
        costs: Costs that were measured; the chart begins with the first.
        rows: Rows of the table, one for each point.
        details: Details of the points, in the same order.
        csv, json: Contents of its files, as data links.
    """

    frontier: Frontier
    costs: list[str]
    rows: list[FrontierRow]
    details: list[PointDetails]
    csv: str
    json: str


@dataclass(frozen=True)
class Proof:
    """Comparison with the masked original. `figure` and `allowed` are relative differences; None: not compared.

    `certificate` holds names and values of what was checked.
    """

    title: str
    figure: float | None
    allowed: float | None
    effect: float | None
    how: str
    note: str = ""
    certificate: Sequence[tuple[str, str]] = ()

    @property
    def passed(self) -> bool:
        """True if the comparison is a proof."""
        return self.figure is not None and self.allowed is not None and self.figure <= self.allowed


@dataclass(frozen=True)
class ReportTable:
    """Separate table: the epochs of a training, the stages of a recovery."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass
class ReportData:
    """All data of a report.

    Attributes:
        why: sentences on the selection of channels.
        cuts: names of the prunings in `GroupChannels.kept`.
        facts: headings with their (name, value) lines: the provenance.
        commands: commands that repeat the run.
        recipe: text of the recipe.
        problems: missing or damaged parts.
        measured_on: machine and runtime of the latency; "" if there is none.
        layers: layers before and after; None without model and plan.
        picture: flow between the groups; None without a model.
    """

    title: str
    subtitle: str = ""
    stages: list[ModelSnapshot] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    groups: list[GroupChannels] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)
    curves: list[SensitivitySection] = field(default_factory=list)
    frontier: FrontierSection | None = None
    locked: list[LockedChannels] = field(default_factory=list)
    locked_known: bool = False
    proofs: list[Proof] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    facts: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    recipe: str = ""
    problems: list[str] = field(default_factory=list)
    measured_on: str = ""
    layers: LayerSection | None = None
    picture: FlowPicture | None = None
