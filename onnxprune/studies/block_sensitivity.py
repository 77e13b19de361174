"""Sensitivity of residual blocks: a metric without each block, then without the best two, three and so on.

Nothing is recovered: the values show what a block is worth to the network as it is.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.tasks.task import higher_is_better
from onnxprune.options.planning import Constraints
from onnxprune.options.tasks import TaskOptions
from onnxprune.passes import Pipeline
from onnxprune.passes.remove_blocks import removal_passes
from onnxprune.pipeline import evaluate
from onnxprune.planning.depth import chosen_blocks, removals
from onnxprune.plans import Plan
from onnxprune.studies._plot_style import drawn, gid, short, writable, write
from onnxprune.studies.plots import check_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class WithoutBlocks:
    """Metric without some blocks.

    Attributes:
        blocks: Names of the removed blocks.
        macs: Share of the MACs that remain.
        value: Metric.
        error: Standard error; None if it is not known.
    """

    blocks: tuple[str, ...]
    macs: float
    value: float
    error: float | None


@dataclass(frozen=True)
class BlockSensitivity:
    """Metric of a model without its blocks.

    Attributes:
        model: Fingerprint of the model.
        metric: Name of the metric.
        higher_is_better: Whether larger values are better.
        samples: Number of samples.
        baseline: Metric of the original.
        single: Without each block alone, in graph order.
        together: Without the best one, two, three ... of them.
    """

    model: str
    metric: str
    higher_is_better: bool
    samples: int
    baseline: float
    single: tuple[WithoutBlocks, ...]
    together: tuple[WithoutBlocks, ...]

    def to_json(self) -> str:
        """Return the text of the file that `sensitivity --blocks -o` writes."""
        return json.dumps({"schema": 1, **asdict(self)}, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Return a table: a line for each measurement."""
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        out.writerow(["removed", "count", "macs", self.metric, "error"])
        for row in (*self.single, *self.together[1:]):
            error = "" if row.error is None else row.error
            out.writerow([" ".join(row.blocks), len(row.blocks), row.macs, row.value, error])
        return text.getvalue()


def block_sensitivity(
    analysis: Analysis,
    samples: Calibration,
    *,
    task: TaskOptions | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> BlockSensitivity:
    """Measure a metric without each residual block, and without the best ones together.

    Args:
        analysis: Coupling analysis of the model.
        samples: Samples; without labels outputs are compared with those of the original.
        task: Task and metric.
        include: Glob patterns of blocks; empty: all.
        exclude: Glob patterns of blocks that are left out.
        progress: Called with (done, total) measurements.

    Raises:
        OnnxPruneError: No block can be removed, or see `evaluate`.
    """
    blocks = chosen_blocks(analysis, Constraints(only=("blocks",), include=tuple(include), exclude=tuple(exclude)))
    cost, total, done = CostModel(analysis), 2 * len(blocks), 0
    original = analysis.source
    reference = None if samples.data.targets is not None else original
    better = higher_is_better(task) if task is not None else True

    def measured(names: Sequence[str]) -> WithoutBlocks:
        nonlocal done
        plan = Plan("", {}, blocks=removals([analysis.block(name) for name in names]))
        model = Pipeline(removal_passes(plan, analysis))(analysis.model) if names else original
        found = evaluate(
            model, samples, task=task, reference=reference, batch=samples.batch, threads=samples.threads,
            device=samples.device,
        )  # fmt: skip
        name, value = next(iter(found.metrics.items()))
        done += 1
        if progress is not None:
            progress(done, total)
        titles.append(name)
        return WithoutBlocks(tuple(names), cost.share(analysis.kept(plan), "macs"), value.value, value.error)

    titles: list[str] = []
    baseline = measured([])
    single = [measured([b.name]) for b in blocks]
    if titles[0] in ("loss", "kl", "mse", "divergence"):
        better = False
    ranked = sorted(single, key=lambda row: -row.value if better else row.value)
    together = [ranked[0]]
    gone = [analysis.block(ranked[0].blocks[0])]
    for row in ranked[1:]:
        plan = Plan("", {}, blocks=removals([*gone, analysis.block(row.blocks[0])]))
        if cost.share(analysis.kept(plan), "params") == cost.share(
            analysis.kept(Plan("", {}, blocks=removals(gone))), "params"
        ):
            continue  # inside one that was removed before
        gone.append(analysis.block(row.blocks[0]))
        together.append(measured([b.name for b in gone]))
    return BlockSensitivity(
        original.fingerprint, titles[0], better, len(samples), baseline.value, tuple(single), tuple(together)
    )


def plot_block_sensitivity(found: BlockSensitivity, path: Path, *, name: str = "") -> None:
    """Draw the metric without each block as bars, and without the best ones together as a line.

    In SVG, bars have the ids `single:BLOCK`, the line `together`.

    Args:
        found: Measurements.
        path: Path that ends in .png or .svg.
        name: Name of the model for the title.

    Raises:
        OnnxPruneError: Another suffix, matplotlib is missing, or the file cannot be written.
    """
    check_plot(path)
    if not found.single:
        raise OnnxPruneError("there are no blocks to draw")

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharex=True, width_ratios=(3.0, 2.0))
        text = writable()
        look: dict[str, Any] = {"color": "C0"}
        for i, row in enumerate(found.single):
            left.barh(i, row.value, gid=gid("single", row.blocks[0]), **look)
        left.set_yticks(range(len(found.single)), [text(short(row.blocks[0], 40)) for row in found.single], fontsize=8)
        left.invert_yaxis()
        left.axvline(found.baseline, color="0.35", linewidth=1)
        left.set_xlabel(f"{found.metric} without this block")
        right.plot([row.value for row in found.together], range(1, len(found.together) + 1), marker="o", markersize=4,
                   gid="together", **look)  # fmt: skip
        right.axvline(found.baseline, color="0.35", linewidth=1)
        right.invert_yaxis()
        right.set_ylabel("blocks removed, best first")
        right.set_xlabel(f"{found.metric} without them")
        for axes in (left, right):
            axes.grid(True, axis="x")
        left.set_title(f"Residual blocks of {short(text(name), 60) or f'model {found.model[:12]}'}", loc="left",
                       fontsize=12, fontweight="bold")  # fmt: skip

    write(path, drawn(path.suffix.lower()[1:], (9.6, 1.6 + 0.28 * len(found.single)), draw))
