"""Draw the figures of the documentation from the numbers on its pages.

    make pictures                     # with the pictures of tools/pages/screenshots.py
    python tools/pages/figures.py NAME ...  # into docs/pictures/

A figure reads the table that its page shows, tools/zoo_parts/coverage.json, or models and data that ship, so it cannot
differ from the text. Each file carries a digest of its numbers: tests/tools/test_figures.py fails if a table changed
and its figure was not drawn again.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import matplotlib
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "tools")]

DOCS = ROOT / "docs"
OUT = DOCS / "pictures"
BLUE, ORANGE, GREEN, GREY, DARK = "#0b63c5", "#b35a00", "#2b7a3d", "#8a8f98", "#24292f"
STYLE: Any = {
    "axes.axisbelow": True, "axes.edgecolor": GREY, "axes.labelcolor": DARK, "axes.spines.right": False,
    "axes.spines.top": False, "axes.titlesize": 13, "axes.titleweight": "bold", "axes.grid": True,
    "grid.color": "#e4e7eb",
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"], "font.size": 12,
    "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "onnxprune", "text.parse_math": False,
    "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": DARK, "ytick.labelcolor": DARK,
}  # fmt: skip
Row = dict[str, str]
INCH = 72  # points of an SVG, which the site shows as pixels


# -------------------------------------------------------------------------------------------------------- the numbers


def tables(page: str) -> list[list[Row]]:
    """Return the tables of a page, rows by the names of their columns."""
    found: list[list[Row]] = []
    head: list[str] | None = None
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if head is None:
            head = cells
            found.append([])
        elif not set("".join(cells)) <= set("-: "):
            found[-1].append(dict(zip(head, cells, strict=True)))
    return found


def table(page: str, *columns: str, nth: int = 0) -> list[Row]:
    """Return the nth table of a page that has these columns.

    Raises:
        LookupError: The page has no such table.
    """
    fitting = [t for t in tables(page) if t and set(columns) <= set(t[0])]
    if len(fitting) <= nth:
        raise LookupError(f"docs/{page} has no table {nth} with the columns {', '.join(columns)}")
    return fitting[nth]


def number(text: str) -> float | None:
    """Return the first number of a cell; None if it has none."""
    found = re.search(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[0].replace(",", "")) if found else None


def plain(text: str) -> str:
    """Return a cell without marks of Markdown."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace("*", "")


def _recover() -> Any:
    rows = table("recover.md", "recalibrated", "points lost")
    return [
        (f"{plain(r['model'])}; {r['data, trained on'].split(',')[0]}; {number(r['MACs kept']):.0%}",
         *(number(r[k]) for k in ("original", "pruned", "recalibrated", "recovered")))
        for r in rows
    ]  # fmt: skip


def _frontier() -> Any:
    return [(r["criterion"].strip("`"), number(r["MACs kept"]), number(r["top1"]), number(r["top1"].split("+-")[1]))
            for r in table("frontier.md", "criterion", "MACs kept", "top1")]  # fmt: skip


def _depth() -> Any:
    alone = [(r["without"], number(r["top1"])) for r in table("depth.md", "without", "top1")]
    plans = [(r["removed"], number(r["MACs kept"]), number(r["top1"]), number(r["top1"].split("+-")[1]))
             for r in table("depth.md", "target", "removed", "top1")]  # fmt: skip
    return alone, plans


def _runtimes() -> Any:
    return [(r["model"].removesuffix(".onnx"), r["runtime"].split()[0], number(r["original"]), number(r["chosen"]),
             number(r["MACs"])) for r in table("runtimes.md", "runtime", "chosen") if r["threads"] == "1"]  # fmt: skip


FAMILIES = (("timm_", "timm"), ("hf_", "transformers"), ("keras_", "Keras"), (".tf2onnx", "Keras"), (".keras", "Keras"))


def _coverage() -> Any:
    found = []
    for row in json.loads((ROOT / "tools" / "zoo_parts" / "coverage.json").read_text(encoding="utf-8")):
        share = row.get("inexact", row.get("random", {})).get("params_aside")
        if share is not None:
            found.append((next((f for key, f in FAMILIES if key in row["name"]), "torchvision and others"), share))
    return sorted(found)


def _comparison() -> Any:
    rows = table("comparison.md", "onnxprune", "torch-pruning", "onnxsim")
    return [(r["model"], *((number(r[t]) if re.match(r"[\d.]+ %$", r[t]) else None) for t in TOOLS)) for r in rows]


TOOLS = ("onnxprune", "torch-pruning", "onnxsim")


def _criteria() -> Any:
    at = "0.5 after"
    small, large = (
        {plain(r["criterion"]): number(r[at]) for r in table("criteria.md", "criterion", at, nth=n)} for n in (0, 2)
    )
    return [(name, value, large[name]) for name, value in small.items()]


def _benchmarks() -> Any:
    analysis = {r["model"]: number(r["x all"]) for r in table("benchmarks.md", "x all")}
    whole = {r["model"]: number(r["x CPU"]) for r in table("benchmarks.md", "x CPU")}
    return [(m, value, whole[m]) for m, value in analysis.items() if value is not None]


def _methods() -> Any:
    rows = table("methods.md", "method", "pruned", "retrained")
    return [(plain(r["method"]), number(r["pruned"].strip("*")), number(r["retrained"].strip("*"))) for r in rows]


def _retraining() -> Any:
    rows = table("benchmarks.md", "before training", "after 3 epochs")
    first = next(iter(rows[0]))
    return [(plain(r[first]), number(r["before training"]), number(r["after 3 epochs"])) for r in rows]


def _quantized() -> Any:
    return [(plain(r["order"]), number(plain(r["top1"])), number(r["latency"]))
            for r in table("frontier.md", "order", "top1", "latency")]  # fmt: skip


def _installing() -> Any:
    rows = table("installing.md", "extra", "MB")
    return [(r["extra"].strip("`"), value) for r in rows if (value := number(r["MB"])) is not None]


def _design() -> Any:
    rows = table("design.md", "package", "imports")
    return [(r["package"].strip("`"), re.findall(r"`(\w+)`", r["imports"])) for r in rows]


KINDS = ("heads", "mlp", "stream")
TRANSFORMERS = ("vit_b_32", "hf_bert", "hf_gpt2", "hf_llama", "swin_t", "timm_deit_tiny_patch16_224")


def _kinds() -> Any:
    from networks.structures import FOLDER, filled

    import onnxprune as op
    from onnxprune.analysis.cost import CostModel

    found = []
    for name in TRANSFORMERS:
        analysis = op.analyze(filled(FOLDER / f"{name}.ts.onnx.xz"), include_inexact=True)
        scores, cost, shares = op.score(analysis, "l2"), CostModel(analysis), []
        for kind in KINDS:
            if not any(g.kind == kind for g in analysis.groups):
                shares.append(None)
                continue
            plan = op.plan(scores, ratio=0.5, constraints=op.Constraints(round_to=1, only=(kind,)))
            shares.append(round(cost.share(analysis.kept(plan), "macs"), 4))
        found.append((re.sub("^hf_|^timm_|_patch16_224$", "", name), shares))
    return found


# ------------------------------------------------------------------------------------------------------- the drawings


def _dumbbells(axes: Any, rows: Any, marks: Any, label: str) -> None:
    """Draw a line for each row between its least and its largest value, and a mark for each value."""
    for i, (_, *values) in enumerate(rows):
        known = [v for v in values if v is not None]
        axes.plot([min(known), max(known)], [i, i], color="#cfd4da", linewidth=2, zorder=1)
    for k, (name, style) in enumerate(marks, 1):
        points = [(row[k], i) for i, row in enumerate(rows) if row[k] is not None]
        axes.scatter(*zip(*points, strict=True), label=name, zorder=2, **style)
    _rows(axes, [row[0] for row in rows])
    axes.set_xlabel(label)


def _rows(axes: Any, names: Any) -> None:
    """Name the rows of horizontal marks, the first one at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _mark(color: str, size: int = 60, **more: Any) -> dict[str, Any]:
    return {"color": color, "s": size, **more}


def draw_recover(canvas: Canvas, data: Any) -> None:
    """Draw accuracy as pruned, recalibrated and recovered beside the original."""
    marks = [
        ("original", _mark(DARK, 130, marker="|")), ("pruned", _mark(GREY)),
        ("BatchNorm recalibrated", _mark(ORANGE, 40, marker="D")), ("recovered", _mark(BLUE)),
    ]  # fmt: skip
    _dumbbells(canvas.subplots(), data, marks, "top-1, per cent")
    canvas.legend(loc="outside upper center", ncols=4)


def draw_frontier(canvas: Canvas, data: Any) -> None:
    """Draw accuracy over MACs, and mark the points that no other point beats."""
    axes = canvas.subplots()
    for name, color in zip(dict.fromkeys(d[0] for d in data), (BLUE, ORANGE), strict=False):
        _, macs, top, error = zip(*sorted(d for d in data if d[0] == name), strict=True)
        axes.errorbar(macs, top, error, color=color, marker="o", capsize=3, label=name)
    best = [d for d in data if not any(o[1] <= d[1] and o[2] >= d[2] and o != d for o in data)]
    axes.scatter(
        [d[1] for d in best], [d[2] for d in best], s=170, marker="*", color=GREEN, zorder=3, label="Pareto-optimal"
    )
    axes.set_xlabel("MACs kept")
    axes.set_ylabel("top-1, per cent")
    axes.legend()


def draw_depth(canvas: Canvas, data: Any) -> None:
    """Draw accuracy without each block, and of plans for channels with and without a block."""
    alone, plans = data
    left, right = canvas.subplots(1, 2)
    _rows(left, [name for name, _ in alone])
    original = dict(alone)["nothing"]
    left.barh(range(len(alone)), [v for _, v in alone], color=[DARK if v == original else BLUE for _, v in alone])
    left.set(xlabel="top-1, per cent", title="without one block")
    for both, color, name in ((False, GREY, "channels"), (True, BLUE, "blocks and channels")):
        rows = [p for p in plans if ("block" in p[0]) == both]
        _, macs, top, error = zip(*rows, strict=True)
        right.errorbar(macs, top, error, color=color, marker="o", capsize=3, linestyle="-", label=name)
    right.axhline(original, color=DARK, linestyle=":", label="original")
    right.set(xlabel="MACs kept", ylabel="top-1, per cent", title="recovered")
    right.legend()


def draw_runtimes(canvas: Canvas, data: Any) -> None:
    """Draw measured latency of original and plan in two runtimes, and the MACs that each plan kept."""
    left, right = canvas.subplots(1, 2, sharey=True)
    names = [f"{model}, {runtime}" for model, runtime, *_ in data]
    colors = [BLUE if runtime == "onnxruntime" else ORANGE for _, runtime, *_ in data]
    _rows(left, names)
    left.barh(range(len(data)), [d[2] for d in data], color="#dfe3e8", label="original")
    left.barh(range(len(data)), [d[2] * d[3] for d in data], color=colors, height=0.5, label="latency=0.5")
    left.set(xlabel="milliseconds, one thread", xscale="log", xlim=(2, 100), title="measured")
    left.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    left.minorticks_off()
    right.barh(range(len(data)), [d[4] for d in data], color=colors, height=0.5)
    right.grid(axis="y", visible=False)
    right.axvline(0.5, color=DARK, linestyle=":")
    right.set(xlabel="share of MACs kept", xlim=(0, 0.6), title="MACs that half of the latency keeps")


def draw_coverage(canvas: Canvas, data: Any) -> None:
    """Draw how many models keep which share of their parameters, channels halved in every group."""
    axes = canvas.subplots()
    names = list(dict.fromkeys(family for _, family in FAMILIES)) + ["torchvision and others"]
    values = [[v for f, v in data if f == name] for name in names]
    axes.hist(values, bins=[i / 40 for i in range(41)], stacked=True, label=names, color=[BLUE, ORANGE, GREEN, GREY])
    axes.axvline(0.25, color=DARK, linestyle=":")
    axes.set(
        xlabel="share of parameters kept, half of the channels of every group removed", ylabel="models", xlim=(0, 1)
    )
    axes.legend()


def draw_comparison(canvas: Canvas, data: Any) -> None:
    """Draw the share of MACs that each tool keeps when asked for half; results that are not right stand apart."""
    axes = canvas.subplots()
    wrong = 112.0
    for tool, color, marker in zip(TOOLS, (BLUE, ORANGE, GREY), "os^", strict=True):
        k = TOOLS.index(tool) + 1
        y = [i + 0.22 * (k - 2) for i in range(len(data))]
        shares = [row[k] if row[k] is not None else wrong for row in data]
        axes.scatter(shares, y, color=color, marker=marker, s=34, label=tool, zorder=2)
    _rows(axes, [row[0] for row in data])
    axes.axvline(50, color=DARK, linestyle=":")
    axes.axvspan(105, 120, color="#f6e5e5")
    axes.set_xticks([25, 50, 75, 100, wrong], ["25 %", "50 %", "75 %", "100 %", "no right result"])
    axes.set(xlabel="MACs kept", xlim=(25, 120))
    canvas.legend(loc="outside upper center", ncols=3)


def draw_criteria(canvas: Canvas, data: Any) -> None:
    """Draw accuracy after recalibration for every criterion, on two networks."""
    rows = sorted(data, key=lambda d: -(d[1] + d[2]))
    marks = [("ResNet-20", _mark(ORANGE)), ("ResNet-56", _mark(BLUE))]
    _dumbbells(canvas.subplots(), rows, marks, "top-1 at half of the MACs, recalibrated, without training, per cent")
    canvas.legend(loc="outside upper center", ncols=2)


def draw_benchmarks(canvas: Canvas, data: Any) -> None:
    """Draw speed-ups over Torch-Pruning: of the analysis, and from a model to a smaller one."""
    axes = canvas.subplots()
    rows = sorted(data, key=lambda d: -d[1])
    marks = [("analysis", _mark(BLUE)), ("from file to smaller file", _mark(ORANGE, 46, marker="s"))]
    _dumbbells(axes, rows, marks, "times as fast as Torch-Pruning (CPU time)")
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"], minor=False)
    axes.minorticks_off()
    axes.axvline(1, color=DARK, linestyle=":")
    canvas.legend(loc="outside upper center", ncols=2)


def draw_methods(canvas: Canvas, data: Any) -> None:
    """Draw accuracy as pruned and after three epochs for every method."""
    _dumbbells(canvas.subplots(), data, [("pruned", _mark(GREY)), ("retrained", _mark(BLUE))], "top-1, per cent")
    canvas.legend(loc="outside upper center", ncols=2)


def draw_retraining(canvas: Canvas, data: Any) -> None:
    """Draw accuracy before training and after three epochs, beside the original."""
    axes = canvas.subplots()
    original, *rows = data
    marks = [("before training", _mark(GREY)), ("after three epochs", _mark(BLUE))]
    _dumbbells(axes, [(r[0].replace(", ", ",\n", 1), *r[1:]) for r in rows], marks, "top-1, per cent")
    axes.axvline(original[1], color=DARK, linestyle=":", label="original")
    canvas.legend(loc="outside upper center", ncols=3)


def draw_quantized(canvas: Canvas, data: Any) -> None:
    """Draw accuracy over latency for every order of pruning and quantizing."""
    axes = canvas.subplots()
    at: dict[tuple[float, float], list[str]] = {}
    for i, (name, top, latency) in enumerate(data, 1):
        axes.scatter(latency, top, s=90, color=BLUE if top > 50 else GREY, zorder=2)
        axes.plot([], [], " ", label=f"{i}  {name}")
        at.setdefault((latency, top), []).append(str(i))
    for place, numbers in at.items():
        axes.annotate(", ".join(numbers), place, (8, 6), textcoords="offset points")
    axes.set(xlabel="milliseconds", ylabel="top-1, per cent", ylim=(0, 100), xlim=(0, 1))
    canvas.legend(loc="outside right upper", handlelength=0)


def draw_installing(canvas: Canvas, data: Any) -> None:
    """Draw the sizes of the extras."""
    axes = canvas.subplots()
    rows = sorted(data, key=lambda d: d[1])
    _rows(axes, [name for name, _ in rows])
    shown = [GREEN if name in ("(none)", "cpu", "data", "report") else GREY for name, _ in rows]
    axes.barh(range(len(rows)), [size for _, size in rows], color=shown)
    axes.set(xscale="log", xlabel="MB added (green: the recommended install)")
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axes.minorticks_off()


def draw_design(canvas: Canvas, data: Any) -> None:
    """Draw the packages by level: each imports from packages at its left only."""
    needs = dict(data)
    level: dict[str, int] = {}
    while len(level) < len(needs):
        level |= {n: 1 + max([level[m] for m in needs[n]], default=-1)
                  for n in needs if n not in level and all(m in level for m in needs[n])}  # fmt: skip
    axes = canvas.subplots()
    columns = [[n for n in needs if level[n] == i] for i in range(1 + max(level.values()))]
    place = {}
    for i, names in enumerate(columns):
        lowest = i % 3 - len(names)  # neighbours at three heights, for their names are long
        place |= {name: (i, lowest + 2 * k) for k, name in enumerate(names)}
    for name, targets in needs.items():
        for target in targets:
            axes.plot(*zip(place[target], place[name], strict=True), color="#c3c9d1", zorder=1)
    for name, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#eaf2fb", "edgecolor": BLUE}
        axes.text(x, y, name, ha="center", va="center", fontsize=9, bbox=box, zorder=2)
    heights = [y for _, y in place.values()]
    axes.set(xlim=(-0.7, len(columns) - 0.3), ylim=(min(heights) - 0.6, max(heights) + 0.6))
    axes.axis("off")


def draw_kinds(canvas: Canvas, data: Any) -> None:
    """Draw the MACs that transformers keep when half of the channels of one kind are removed."""
    axes = canvas.subplots()
    for k, (kind, color) in enumerate(zip(KINDS, (BLUE, ORANGE, GREEN), strict=True)):
        known = [(i + 0.26 * (k - 1), shares[k]) for i, (_, shares) in enumerate(data) if shares[k] is not None]
        axes.barh(*zip(*known, strict=True), height=0.24, color=color, label=f"--only {kind}")
    _rows(axes, [name for name, _ in data])
    axes.set(xlabel="share of MACs kept with --ratio 0.5 --include-inexact", xlim=(0, 1))
    canvas.legend(loc="outside upper center", ncols=3)


def _box(axes: Any, at: tuple[float, float], size: tuple[float, float], text: str, color: str = DARK) -> None:
    axes.add_patch(
        FancyBboxPatch(at, *size, boxstyle="round,pad=0.02", facecolor="white", edgecolor=color, linewidth=1.5)
    )
    axes.text(at[0] + size[0] / 2, at[1] + size[1] / 2, text, ha="center", va="center", color=color)


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], color: str = DARK, style: str = "-|>"
) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, color=color, mutation_scale=13, shrinkA=2, shrinkB=2))


def draw_proof(canvas: Canvas, data: Any) -> None:
    """Draw one region of the masked original beside the same region of the pruned model."""
    axes = canvas.subplots()
    for i, name in enumerate(data):
        x = 1.4 + 3.8 * i
        for y, color in ((3.3, DARK), (0.4, BLUE)):
            _box(axes, (x, y), (1.4, 0.9), name, color)
            _arrow(axes, (x - 0.7, y + 0.45), (x, y + 0.45), color)
            _arrow(axes, (x + 1.4, y + 0.45), (x + 2.0, y + 0.45), color)
        axes.text(x - 0.5, 4.35, "fresh values,\nall channels", ha="center", va="bottom", fontsize=10)
        axes.text(x - 0.5, 0.2, "the same values,\nkept channels", ha="center", va="top", fontsize=10, color=BLUE)
        _arrow(axes, (x - 0.65, 3.6), (x - 0.65, 1.0), GREY, "-|>")
        _arrow(axes, (x + 1.75, 3.6), (x + 1.75, 1.0), GREEN, "<|-|>")
        axes.text(x + 1.65, 2.3, "equal at\nkept channels?", ha="right", va="center", color=GREEN, fontsize=10)
        if i:
            axes.plot([x - 1.35] * 2, [-0.4, 4.9], color=GREY, linestyle=(0, (4, 3)))
            axes.text(x - 1.35, 5.0, "cut", ha="center", color=GREY)
    axes.text(0.0, 3.75, "masked\noriginal", ha="center", va="center", weight="bold")
    axes.text(0.0, 0.85, "pruned", ha="center", va="center", weight="bold", color=BLUE)
    axes.set(xlim=(-0.6, 11.2), ylim=(-0.7, 5.4))
    axes.axis("off")


# --------------------------------------------------------------------------------------------------------- the figures


@dataclass(frozen=True)
class Figure:
    """A figure: its numbers, its drawing, its size in pixels, and whether the numbers are cheap to read again."""

    numbers: Callable[[], Any]
    draw: Callable[[Canvas, Any], None]
    size: tuple[int, int] = (760, 380)
    cheap: bool = True

    def digest(self) -> str:
        """Return a digest of the numbers."""
        return hashlib.sha256(json.dumps(self.numbers()).encode()).hexdigest()[:16]

    def render(self) -> str:
        """Return the file: an SVG with a digest of its numbers."""
        out = io.StringIO()
        with matplotlib.rc_context(STYLE):
            canvas = Canvas(figsize=(self.size[0] / INCH, self.size[1] / INCH), layout="constrained")
            self.draw(canvas, self.numbers())
            canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        text = re.sub(r"(\d\.\d{2})\d+", r"\1", out.getvalue())
        return f"{text.rstrip()}\n<!-- numbers: {self.digest()} -->\n"


FIGURES = {
    "benchmarks": Figure(_benchmarks, draw_benchmarks, (760, 440)),
    "comparison": Figure(_comparison, draw_comparison, (760, 900)),
    "coverage": Figure(_coverage, draw_coverage, (760, 320)),
    "criteria": Figure(_criteria, draw_criteria, (760, 500)),
    "depth": Figure(_depth, draw_depth, (760, 340)),
    "design": Figure(_design, draw_design, (900, 260)),
    "frontier-resnet20": Figure(_frontier, draw_frontier, (760, 380)),
    "installing": Figure(_installing, draw_installing, (760, 360)),
    "kinds": Figure(_kinds, draw_kinds, (760, 380), cheap=False),
    "methods": Figure(_methods, draw_methods, (760, 300)),
    "proof": Figure(lambda: ["Conv", "Add", "Relu"], draw_proof, (820, 400)),
    "quantized": Figure(_quantized, draw_quantized, (760, 300)),
    "recover": Figure(_recover, draw_recover, (760, 360)),
    "retraining": Figure(_retraining, draw_retraining, (760, 260)),
    "runtimes": Figure(_runtimes, draw_runtimes, (820, 380)),
}
"""Figures by the name of their file in docs/pictures/."""


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(FIGURES)))
def main(names: tuple[str, ...]) -> None:
    """Draw the figures that are named; without names all."""
    for name in names or FIGURES:
        path = OUT / f"{name}.svg"
        path.write_text(FIGURES[name].render(), encoding="utf-8")
        click.echo(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
