"""What a report tells, before it becomes a page: values only, each part there or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxprune.planning.curves import Curves


@dataclass
class ModelSnapshot:
    """The model at one point: as it was given, after a step, at the end. What is not known is None.

    Attributes:
        name: of the step or file.
        note: what it says of itself.
        top1, top1_error, loss: accuracy with its standard error, mean cross-entropy.
        macs: per sample; `params`, `bytes` of the constants.
        latency: median seconds of a run; `low`, `high` its quartiles.
        seconds: that the step took.
        model: whether there is a model, so that figures belong to it.
    """

    name: str
    note: str = ""
    top1: float | None = None
    top1_error: float | None = None
    loss: float | None = None
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
        kept: after each cut, the last one last.
        about: operator, whether it is a residual stream.
        lost: share of the group's score that went with the channels; None where scores are not known.
    """

    name: str
    channels: int
    kept: tuple[int, ...]
    about: str = ""
    lost: float | None = None


@dataclass(frozen=True)
class LockedChannels:
    """Channels that cannot go, and why."""

    name: str
    channels: int
    node: str
    op: str
    reason: str
    inexact: bool


@dataclass(frozen=True)
class SensitivitySection:
    """Curves, and how many channels of each group the plan took; None where no plan belongs to them."""

    title: str
    curves: Curves
    chosen: Mapping[str, int] | None


@dataclass(frozen=True)
class Proof:
    """A comparison with the masked original. `figure` and `allowed` are relative differences; None: none was made."""

    title: str
    figure: float | None
    allowed: float | None
    effect: float | None
    how: str
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is a proof."""
        return self.figure is not None and self.allowed is not None and self.figure <= self.allowed


@dataclass(frozen=True)
class ReportTable:
    """A table of its own: a training's epochs, a recovery's stages."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass
class ReportData:
    """All of it.

    Attributes:
        why: sentences: how the channels were chosen.
        cuts: names of the cuts that `GroupChannels.kept` counts.
        facts: headings with their (name, value) lines: where everything comes from.
        commands: to repeat it.
        recipe: text of the recipe.
        problems: what is missing or damaged.
    """

    title: str
    subtitle: str = ""
    stages: list[ModelSnapshot] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    groups: list[GroupChannels] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)
    curves: list[SensitivitySection] = field(default_factory=list)
    locked: list[LockedChannels] = field(default_factory=list)
    locked_known: bool = False
    proofs: list[Proof] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    facts: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    recipe: str = ""
    problems: list[str] = field(default_factory=list)
