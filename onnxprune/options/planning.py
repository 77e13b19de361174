"""Options of planning: the budget, the allocator, constraints, sensitivity curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.options._declare import BUDGET, DATA, RUNTIME, SELECTION, OptionError, Options, option
from onnxprune.options._text import BYTES, RATIO_RANGE, WHOLE_OR_AUTO
from onnxprune.options.tasks import TaskOptions

ALLOCATORS = ("global", "uniform", "sensitivity", "latency", "saving")
NORMALIZATIONS = ("none", "mean", "max", "sum", "gaussian", "lamp")
RATIOS = tuple(round(0.05 * i, 2) for i in range(1, 20))
SCHEDULES = ("linear", "geometric")
GROUP_KINDS = ("heads", "head_dim", "stream", "mlp", "conv", "embedding", "padding", "other")
"""Kinds of channels in a group: attention heads, one position in every head, the residual stream, hidden neurons of
products with a weight, filters of convolutions, dimensions of an embedding, channels that Pad adds, others."""
ONLY = ("attention", *GROUP_KINDS, "channels", "blocks")
PROTECT = ("first", "residual", "attention", *GROUP_KINDS)


@dataclass(frozen=True, kw_only=True, repr=False)
class Normalizing(Options):
    """Normalization that makes scores of different groups comparable."""

    normalize: str | None = option(
        None, help="Normalization of scores: none, mean, max, sum, gaussian, lamp.", heading=SELECTION, advanced=True,
        choices=NORMALIZATIONS, shown="the criterion's own", title="normalization",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Planning(Normalizing):
    """Budget of a plan, and the allocator that shares it among the groups.

    Attributes:
        ratio: Share of the channels removed from every group.
        target: Share kept of one measure, such as "macs=0.5".
        min_group_accuracy: Lowest value of every group's curve.
        max_loss: Highest value of every group's curve, for metrics where lower is better.
        allocator: Rule that shares a target among the groups.
        normalize: Normalization that makes scores of different groups comparable.
        steps: Number of steps, with new scores between them.
        schedule: "linear" (the same share of the original in every step) or "geometric" (of the remaining channels).
    """

    ratio: float | None = option(
        None, help="Share of the channels removed from every group.", heading=BUDGET, ge=0, lt=1
    )
    target: str | None = option(
        None, heading=BUDGET, metavar="WHAT=SHARE",
        help="Share kept of macs, params, bytes, memory, channels or latency: macs=0.5; 50% is macs=0.5.",
    )  # fmt: skip
    min_group_accuracy: float | None = option(
        None,
        help="With --curves: lowest value of every group's curve.",
        heading=BUDGET,
        advanced=True,
        old=("--min-accuracy",),
    )
    max_loss: float | None = option(
        None, help="The same for metrics where lower is better.", heading=BUDGET, advanced=True
    )
    allocator: str | None = option(
        None, heading=BUDGET, advanced=True, choices=ALLOCATORS, old=("--scope",),
        shown="sensitivity with --curves, latency for a latency target, else the criterion's own (`criteria`)",
        help="How --target is shared: rank all channels together (global), the same share everywhere (uniform), all "
        "curves down to the same value (sensitivity), least importance per unit of the target saved (saving) or per "
        "predicted second saved (latency).",
    )  # fmt: skip
    steps: int | None = option(
        None, heading=BUDGET, advanced=True, ge=1, usage=True,
        help="Prune in this many steps, with new scores between them. Removing 10 % of the remaining filters eight "
        "times, as PLS pruning does: --target channels=0.43 --steps 8 --schedule geometric.",
    )  # fmt: skip
    schedule: str = option(
        "linear", heading=BUDGET, advanced=True, choices=SCHEDULES, usage=True,
        help="With --steps: every step removes the same share of the original, or of the remaining channels.",
    )  # fmt: skip


@dataclass(frozen=True, repr=False)
class Constraints(Options):
    """Bounds of a plan.

    Attributes:
        round_to: Kept counts are multiples of this on the producing axis; "auto": the block of the CPU's kernels.
        min_channels: Least number of channels kept in a group.
        max_ratio: Largest share removed from a group; prevents global rankings from emptying layers.
        include: Glob patterns; only matching groups are pruned (empty: all).
        exclude: Glob patterns of groups that keep all channels.
        protect: Presets of groups that keep all channels: "first" (the network's first layer), "residual" (residual
            streams; with "first" the layers that the D-Score paper does not prune in ResNets), "attention" (heads and
            channels inside heads), or a kind of group (`GROUP_KINDS`).
        overrides: Glob pattern -> ratio (share removed) or {"ratio": r, "min_channels": n, "channels": kept}.
        only: Kinds of groups that are pruned, "attention" for both of its kinds (empty: all), "blocks" for whole
            residual blocks, "channels" for all kinds of channels: ("blocks",) alone, ("blocks", "channels") together.
        max_blocks: Largest number of residual blocks removed; 0: none, but with "blocks" in `only` any number.
    """

    round_to: int | str = option(
        "auto", help="Kept counts are multiples of this; auto: the block of the runtime's kernels.", heading=SELECTION,
        advanced=True, text=WHOLE_OR_AUTO, metavar="N|auto", ge=1,
    )  # fmt: skip
    min_channels: int = option(
        1, help="Least channels kept in a group.", heading=SELECTION, advanced=True, ge=1, usage=True
    )
    max_ratio: float = option(
        0.9, help="Largest share removed from a group.", heading=SELECTION, advanced=True, ge=0, lt=1
    )
    include: Sequence[str] = option(
        (), help="Prune only these groups (repeatable).", heading=SELECTION, advanced=True, metavar="GLOB"
    )
    exclude: Sequence[str] = option((), help="Keep these groups whole (repeatable).", heading=SELECTION, metavar="GLOB")
    protect: Sequence[str] = option(
        (), heading=SELECTION, metavar="WHAT", choices=PROTECT, title="preset",
        help="Keep first, residual, attention or a kind whole (repeatable).",
    )  # fmt: skip
    overrides: Mapping[str, Any] = option(
        {}, help="TOML or JSON file: group glob = ratio or table.", heading=SELECTION, advanced=True, metavar="FILE"
    )
    only: Sequence[str] = option(
        (), heading=SELECTION, advanced=True, metavar="KIND", choices=ONLY, title="kind of group",
        help="Prune only this kind: heads, head_dim, attention (both), mlp, stream, conv, embedding; or whole residual "
        "blocks, with `--only channels` beside channels (repeatable).",
    )  # fmt: skip
    max_blocks: int = option(
        0, heading=SELECTION, advanced=True, metavar="N", ge=0, usage=True,
        help="Remove at most N residual blocks; without --only blocks beside channels, where that costs less.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.round_to, str) and self.round_to != "auto":
            raise OptionError("round_to", f"must be a number or auto; got {self.round_to!r}")

    @property
    def asks_for_blocks(self) -> bool:
        """True if a plan may remove residual blocks."""
        return "blocks" in self.only or bool(self.max_blocks)

    @property
    def blocks_alone(self) -> bool:
        """True if a plan removes residual blocks and no channels."""
        return set(self.only) == {"blocks"}


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoresInput(Options):
    """File of scores written before."""

    scores_file: Path | None = option(
        None, help="Use these scores instead (`score -o`).", heading=SELECTION, flag="--scores"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class CurvesInput(Options):
    """File of sensitivity curves measured before."""

    curves_file: Path | None = option(
        None, help="Plan by these curves (`sensitivity`).", heading=BUDGET, flag="--curves"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class SensitivitySweep(TaskOptions):
    """Measurement of sensitivity curves."""

    metric: str | None = option(
        None, heading=BUDGET, shown="the first of the task",
        help="Metric, such as top1, loss, map, miou; without labels kl, agreement (docs/tasks.md).",
    )  # fmt: skip
    ratios: tuple[float, ...] = option(
        RATIOS, heading=BUDGET, text=RATIO_RANGE, metavar="RATIOS",
        help="Shares removed: FROM:TO:STEP, or a list 0.1,0.3,0.5.",
    )  # fmt: skip
    include: tuple[str, ...] = option(
        (), help="Measure only these groups (repeatable).", heading=SELECTION, metavar="GLOB"
    )
    exclude: tuple[str, ...] = option(
        (), help="Do not measure these groups (repeatable).", heading=SELECTION, metavar="GLOB"
    )
    min_group_accuracy: float | None = option(
        None, help="Only search for the ratio at which each curve falls below this.", heading=BUDGET, advanced=True,
        old=("--min-accuracy",),
    )  # fmt: skip
    max_loss: float | None = option(
        None, help="The same for metrics where lower is better.", heading=BUDGET, advanced=True
    )
    stop_at_chance: bool = option(
        False, help="End a curve when it is no better than guessing.", heading=BUDGET, advanced=True
    )
    partial_classes: bool = option(
        False, help="Accept data without samples of some class.", heading=DATA, advanced=True
    )
    batch: int | None = option(
        None, help="Samples per run.", heading=RUNTIME, advanced=True, ge=0, usage=True,
        shown="8 to 64, activations within the cache",
    )  # fmt: skip
    threads: int | None = option(
        None, help="CPU threads of a job; 0: all cores.", heading=RUNTIME, advanced=True, ge=0, usage=True,
        shown="cores / jobs",
    )  # fmt: skip
    device: str = option(
        "cpu", help="Device that onnxruntime runs on: auto, cpu or cuda.", heading=RUNTIME, advanced=True
    )
    jobs: int = option(1, help="Workers; 0: one for every core.", heading=RUNTIME, ge=0, usage=True)


@dataclass(frozen=True, kw_only=True, repr=False)
class Distribution(Options):
    """Memory and machines of a sensitivity sweep."""

    cache_memory: int = option(
        2 * 2**30, help="Memory for activations that are computed once.", heading=RUNTIME, advanced=True, text=BYTES,
        metavar="SIZE",
    )  # fmt: skip
    backend: str = option("loky", help="loky (this machine), dask or ray (a cluster).", heading=RUNTIME, advanced=True)
    address: str | None = option(
        None, help="Address of the dask or ray cluster; its machines share this folder.", heading=RUNTIME,
        advanced=True,
    )  # fmt: skip
