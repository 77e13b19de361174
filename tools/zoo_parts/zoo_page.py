"""Coverage page and its numbers, from the rows of `tools/zoo.py`; tables of the site, from the numbers."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo_parts.zoo_catalogue import SKIPPED, catalogue

KINDS = ("random", "target", "inexact")  # of cuts
Row = dict[str, Any]
VERSIONS = ("onnxprune", "onnx", "onnxruntime", "numpy")
WEAK = 1e-3  # a masked model nearer to the original would make a weak test
LIBRARIES = {
    "torchvision": "torchvision: classification and segmentation",
    "flow": "torchvision: optical flow",
    "video": "torchvision: video",
    "detection": "torchvision: detection",
    "timm": "timm",
    "transformers": "transformers, small configurations",
    "keras": "Keras applications",
    "light": "The light models of the onnx wheel",
    "": "Trained models, and files given by name",
}

HEAD = """# Coverage

{summary}
## Models

<!-- table: models -->

Every model was read as its exporter wrote it, analysed, and pruned twice: a random half of the channels of every group
(rounded down), and to half of the MACs by `l2` with default limits. Both results ran from inputs to outputs against the
masked original: *difference* is the larger of the two, relative to the largest output.

- **Exporters.** `.ts` is PyTorch's TorchScript exporter (opset 17), `.bn` the same with BatchNormalization kept, `.dyn`
  its dynamo exporter (opset 20), `.tf2onnx` and `keras_` tf2onnx, `.keras` Keras 3's own export.
- **Weights** are random: as the library makes them, with BatchNorm statistics of a random batch and nothing left at
  zero or one (`tools/zoo_parts/zoo_build.py`), or, marked °, put into the weight-less structure by
  `tests/helpers/networks/structures.py`.
- **Sizes.** Images are 96 pixels wide where an architecture takes that. MACs, seconds and memory depend on it, free
  channels do not.
- ***Params aside*** excludes the layers that compute the model's outputs, whose outputs cannot be removed. Parameters
  are all floating-point constants, also tables that an exporter computed ahead for one image size: 200,704 of the
  1,216,223 of raft_small.dyn are sampling positions.
- ***Locked*** names the operators that hold channels back, with the number of groups.
- **Seconds** of the analysis are CPU seconds without imports.

## Inexact groups

Networks whose residual stream a statistic runs over, once more with that stream free (`--include-inexact`, see
[inexact.md](inexact.md)): a random half of every group. *Inexact*: groups that a normalization runs over; *difference*
is against the original whose statistics run over the kept channels.

<!-- table: inexact -->

## Why channels are locked

<!-- table: locks -->

## Not pruned

<!-- table: failed -->

## Repeat it

The numbers are in `tools/zoo_parts/coverage.json`.

<!-- not run: takes models and images that do not ship, and hours -->

```
python tools/zoo.py FOLDER_OR_FILE ... --page coverage.md
python tools/zoo.py --build 'resnet*' 'timm_*.ts'       # needs torch, torchvision, timm, transformers
```

"""
STREAMS = ("convnext", "maxvit", "mvit", "swin", "vit_")  # networks of torchvision that normalise a stream
COLUMNS = (
    "model", "groups", "free channels", "params kept, random half", "params aside", "MACs kept, random half",
    "MACs kept, target 50 %", "locked", "difference", "analyse (CPU s)", "plan and strip (s)",
    "whole, with proofs (s)", "peak (MB)",
)  # fmt: skip
INEXACT = (
    "model", "groups", "inexact", "channels", "in inexact", "params kept", "params aside", "MACs kept", "difference",
)  # fmt: skip
LOCKS = ("operator", "reason: it ...", "models", "groups", "channels", "example")
_LIBRARY = {entry.name: entry.library for entry in catalogue()}


def library(row: Row) -> str:
    """Return the library of a row's model."""
    name = str(row["name"])
    if name in _LIBRARY:
        return _LIBRARY[name]
    if name.endswith(".bn"):
        return "torchvision"
    return "keras" if name.startswith("keras_") and "cifar10" not in name else ""


def proved(row: Row) -> bool:
    """Return True if a random half of the channels was removed and the result proved equal."""
    return "error" not in row and "max_relative" in row.get("random", {})


def page(rows: Sequence[Row]) -> str:
    """Return the coverage page; the site fills in its tables from the numbers, see `tables`."""
    return "\n".join(p for p in (HEAD.format(summary=_summary(rows)), _not_built(), _unrun(rows)) if p)


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Return the tables of the page by name, as HTML that can be searched and sorted."""
    ordered = sorted(rows, key=lambda r: (list(LIBRARIES).index(library(r)), str(r["name"])))
    good = [r for r in ordered if "groups" in r and "error" not in r]
    bad = [r for r in ordered if r not in good]
    kinds = {key: title for key, title in LIBRARIES.items() if any(library(r) == key for r in good)}
    models = [(library(r), _cells(r)) for r in good]
    failed = [(library(r), [str(r["name"]), str(r["error"])]) for r in bad]
    return {
        "models": long_table("models", COLUMNS, models, kinds),
        "inexact": long_table("models with inexact groups", INEXACT, [("", c) for c in _inexact(rows)]),
        "locks": long_table("reasons", LOCKS, [("", c) for c in _causes(rows)]),
        "failed": long_table("models that are not pruned", ("model", "error"), failed),
    }


def long_table(
    what: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], kinds: Mapping[str, str] | None = None
) -> str:
    """Return a table with a field that searches it, and a choice of kinds if there are several."""
    numeric = [all(not c[i] or c[i][0].isdigit() for _, c in rows) for i in range(len(head))]
    label = escape(f"Search {what}")
    out = [f'<div class="long-table" markdown="0"><label>{label} <input type="search"></label>']
    if kinds:
        choices = "".join(f'<option value="{escape(k)}">{escape(t)}</option>' for k, t in kinds.items())
        out.append(f'<label>Library <select><option value="">all</option>{choices}</select></label>')
    out.append(f'<output aria-live="polite">{len(rows)} of {len(rows)}</output>')
    out.append(f'<div class="box" tabindex="0" role="region" aria-label="{escape(what)}">')
    out.append('<table class="rows"><thead><tr>')
    classes = [' class="n"' if n else "" for n in numeric]
    out += [f'<th scope="col"{c}>{escape(h)}</th>' for h, c in zip(head, classes, strict=True)]
    out.append("</tr></thead><tbody>")
    for kind, cells in rows:
        tds = "".join(f"<td{c}>{escape(v)}</td>" for v, c in zip(cells, classes, strict=True))
        out.append(f'<tr data-kind="{escape(kind)}">{tds}</tr>')
    return "".join([*out, "</tbody></table></div></div>"])


def _not_built() -> str:
    return "## Not built\n\n" + _table(("model", "reason"), sorted(SKIPPED.items())) if SKIPPED else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)]) + "\n"


def _cells(row: Row) -> list[str]:
    name = row["name"] + ("°" if row.get("weights") == "structure" else "")
    if "random" not in row:
        return [name, "0", *[""] * 5, _locked(row), "", f"{row['analyze_cpu_s']:.3f}", *[""] * 3]
    half, target = row["random"], row.get("target", {})
    aside = half.get("params_aside")
    worst = max(half.get("max_relative", 0.0), target.get("max_relative", 0.0))
    weak = min(half.get("effect", 1.0), target.get("effect", 1.0)) < WEAK
    return [
        name,
        str(row["groups"]),
        f"{row['channels']:,}",
        f"{half['params']:.1%}",
        "" if aside is None else f"{aside:.1%}",
        f"{half['macs']:.1%}",
        f"{target['macs']:.1%}" if "macs" in target else "out of reach",
        _locked(row),
        (f"{worst:.1e}" + (" (weak)" if weak else "")) if proved(row) else "not run",
        f"{row['analyze_cpu_s']:.3f}",
        f"{row['plan_s'] + row.get('target_strip_s', 0.0):.2f}",
        f"{row['total_s']:.1f}",
        f"{row['peak_mb']:,.0f}",
    ]


def _locked(row: Row) -> str:
    counts: Counter[str] = Counter()
    for operator, _, groups, *_ in row["locked"]:
        counts[operator] += groups
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


def _summary(rows: Sequence[Row]) -> str:
    refused = [r for r in rows if str(r.get("error", "")).startswith("exporter")]
    invalid = [r for r in rows if str(r.get("error", "")).startswith("load: the ONNX checker rejects the model")]
    exported = [r for r in rows if r not in refused and r not in invalid]
    good = [r for r in rows if proved(r)]
    broken = [r for r in exported if "error" in r]
    worst = max((r[k].get("max_relative", 0.0) for r in good for k in KINDS if k in r), default=0.0)
    seconds = sorted(float(r["analyze_cpu_s"]) for r in exported if "analyze_cpu_s" in r)
    names = {str(r["name"]) for r in good}
    timm = {n.rsplit(".", 1)[0] for n in names if n.startswith("timm_")}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"**{len(good)} of {len(exported)} models that exported are pruned and proved**, {len(broken)} failed; "
        f"{len(refused)} were refused by their exporter, {len(invalid)} written as no valid ONNX. "
        f"Among the proved are {len(timm)} architectures of timm.",
        f"Largest relative difference: {worst:.1e} (allowed: 1e-04).",
    ]
    if seconds:
        lines.append(
            f"Analysis, CPU seconds: median {statistics.median(seconds):.3f}, 95 of 100 below "
            f"{seconds[int(0.95 * (len(seconds) - 1))]:.2f}, longest {seconds[-1]:.2f}."
        )
    lines += _most_kept(good)
    lines.append(f"Measured on {cores} core(s), {platform.machine()}, Python {platform.python_version()}, {versions}.")
    return "\n".join(lines) + "\n"


def _most_kept(rows: Sequence[Row]) -> list[str]:
    """Describe the network that keeps most, among convolutional ones and those with a normalised stream."""
    ours = [r for r in rows if library(r) in ("torchvision", "flow", "video", "detection")]
    plain = [r for r in ours if not str(r["name"]).startswith(STREAMS)]
    streams = [r for r in ours if "max_relative" in r.get("inexact", {}) and str(r["name"]).startswith(STREAMS)]
    lines = []
    for what, kind, found in (
        ("convolutional networks of torchvision", "random", plain),
        ("networks of torchvision with normalised streams, inexact groups on,", "inexact", streams),
    ):
        if found:
            most = max(found, key=lambda r: float(r[kind]["params_aside"]))
            up = most[kind].get("params_aside_up", most[kind]["params_aside"])
            lines.append(
                f"Of the {len(found)} {what} halved in every group, {most['name']} keeps most of its parameters: "
                f"{most[kind]['params_aside']:.1%} ({up:.1%} where groups of odd size lose the larger half), without "
                "the layers that compute the outputs."
            )
    return lines


def _inexact(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of random halves with inexact groups."""
    own = sorted((r for r in rows if "max_relative" in r.get("inexact", {})), key=lambda r: str(r["name"]))
    cells = []
    for r in own:
        x = r["inexact"]
        cells.append([
            r["name"], str(x["groups"]), str(x["inexact_groups"]), f"{x['channels']:,}", f"{x['inexact_channels']:,}",
            f"{x['params']:.1%}", f"{x['params_aside']:.1%}", f"{x['macs']:.1%}", f"{x['max_relative']:.1e}",
        ])  # fmt: skip
    return cells


def _unrun(rows: Sequence[Row]) -> str:
    """Return the models of the catalogue without a row."""
    missing = [name for name in _LIBRARY if name not in {str(r["name"]) for r in rows}]
    if not missing or len(missing) == len(_LIBRARY):
        return ""
    return f"## Not run\n\nOf the catalogue in `tools/zoo_parts/zoo_catalogue.py`: {', '.join(missing)}.\n"


def _causes(rows: Sequence[Row]) -> list[list[str]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        for operator, reason, groups, channels, name in row.get("locked", ()):
            cause = found.setdefault((operator, reason), [0, 0, 0, f"{name} of {row['name']}"])
            for i, n in enumerate((1, groups, channels)):
                cause[i] += n
    ordered = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
    return [[op, why, str(n), f"{groups:,}", f"{c:,}", eg] for (op, why), (n, groups, c, eg) in ordered]


def compact(rows: Sequence[Row]) -> str:
    """One line of JSON for each model."""
    hidden = ("stamp", "library")
    ordered = sorted(rows, key=lambda r: (list(LIBRARIES).index(library(r)), str(r["name"])))
    lines = [json.dumps({k: v for k, v in row.items() if k not in hidden}, separators=(",", ":")) for row in ordered]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
