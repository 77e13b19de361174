"""Write the coverage page and its numbers from the rows of `tools/zoo.py`."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo_catalogue import SKIPPED, catalogue

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

Every model below was read as its exporter wrote it, analysed, and pruned twice: a random half of the channels of
every group (rounded down), and to half of the MACs by `l2` with default limits. Both were proved (see
[what is proved](proof.md)); *difference* is the larger of the two largest differences.

`.ts` is PyTorch's TorchScript exporter (opset 17), `.bn` the same with BatchNormalization kept, `.dyn` its dynamo
exporter (opset 20), `.tf2onnx` and `keras_` tf2onnx, `.keras` Keras 3's own export. Weights are random: as the library
makes them, with BatchNorm statistics of a random batch and nothing left at zero or one (`tools/zoo_build.py`), or,
marked °, put into the weight-less structure by `tests/helpers/structures.py`.
Images are 96 pixels wide where an architecture
takes that (the sizes are in [coverage.json](coverage.json)), and what hangs on the size with them: MACs, seconds,
memory, not which channels are free.

*Params aside* leaves out the layers that compute the model's outputs (of a detector: what boxes are selected by), whose
outputs no pruning may take. Parameters are all floating-point constants, also tables that an exporter computed ahead
for one image size, of which nothing can go: 200,704 of the 1,216,223 of raft_small.dyn are positions it samples at. Of
the rest it keeps 26 %, as its structure in `models/structures` does, which has no such tables.
Of a model that returns its residual stream nearly all layers compute the output, so little is left to compare there.
*Locked* names the operators that hold channels back, with the number of groups; the reasons are in a table of their own
at the end.
Seconds of analysis are CPU seconds, imports aside; the other times are wall-clock on a machine that did other work.

To repeat this, or to try your own models:

<!-- not run: takes models and images that do not ship, and hours -->

```
python tools/zoo.py FOLDER_OR_FILE ... --page coverage.md
python tools/zoo.py --build 'resnet*' 'timm_*.ts'       # needs torch, torchvision, timm, transformers
```

"""
STREAMS = ("convnext", "maxvit", "mvit", "swin", "vit_")  # networks of torchvision that normalise a stream
INEXACT = """## Inexact groups

Networks whose residual stream a statistic runs over, once more with that stream free (`--include-inexact`, see
[inexact.md](inexact.md)): a random half of every group. *Inexact*: groups that a normalisation runs over; *difference*
is against the original whose statistics run over what is kept.

"""
COLUMNS = (
    "model", "groups", "free channels", "params kept, random half", "params aside", "MACs kept, random half",
    "MACs kept, target 50 %", "locked", "difference", "analyse (CPU s)", "plan and strip (s)",
    "whole, with proofs (s)", "peak (MB)",
)  # fmt: skip
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
    """Return the coverage page."""
    parts = [HEAD, _summary(rows)]
    for key, title in LIBRARIES.items():
        own = sorted((r for r in rows if library(r) == key), key=lambda r: str(r["name"]))
        good = [r for r in own if "groups" in r and "error" not in r]
        bad = [r for r in own if r not in good]
        if not own:
            continue
        parts.append(f"## {title}\n\n" + _table(COLUMNS, (_cells(r) for r in good)))
        if bad:
            causes = [(r["name"], "`" + str(r["error"]).replace("|", "/").replace("`", "'") + "`") for r in bad]
            parts.append("Not pruned:\n\n" + _table(("model", "where it failed, and why"), causes))
    parts.append(_inexact(rows))
    if SKIPPED:
        parts.append("## Not built\n\n" + _table(("model", "why"), sorted(SKIPPED.items())))
    parts += [_unrun(rows), _causes(rows)]
    return "\n".join(p for p in parts if p)


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


def _inexact(rows: Sequence[Row]) -> str:
    """Return the table of random halves with inexact groups."""
    own = sorted((r for r in rows if "max_relative" in r.get("inexact", {})), key=lambda r: str(r["name"]))
    head = (
        "model",
        "groups",
        "inexact",
        "channels",
        "in inexact",
        "params kept",
        "params aside",
        "MACs kept",
        "difference",
    )
    cells = []
    for r in own:
        x = r["inexact"]
        cells.append([
            r["name"], str(x["groups"]), str(x["inexact_groups"]), f"{x['channels']:,}", f"{x['inexact_channels']:,}",
            f"{x['params']:.1%}", f"{x['params_aside']:.1%}", f"{x['macs']:.1%}", f"{x['max_relative']:.1e}",
        ])  # fmt: skip
    return (INEXACT + _table(head, cells)) if own else ""


def _unrun(rows: Sequence[Row]) -> str:
    """Return the models of the catalogue without a row."""
    missing = [name for name in _LIBRARY if name not in {str(r["name"]) for r in rows}]
    if not missing or len(missing) == len(_LIBRARY):
        return ""
    return f"## Not run\n\nOf the catalogue in `tools/zoo_catalogue.py`: {', '.join(missing)}.\n"


def _causes(rows: Sequence[Row]) -> str:
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        for operator, reason, groups, channels, name in row.get("locked", ()):
            cause = found.setdefault((operator, reason), [0, 0, 0, f"{name} of {row['name']}"])
            for i, n in enumerate((1, groups, channels)):
                cause[i] += n
    ordered = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
    cells = [(op, why, str(n), f"{groups:,}", f"{c:,}", eg) for (op, why), (n, groups, c, eg) in ordered]
    return "## Why channels are locked\n\n" + _table(
        ("operator", "it ...", "models", "groups", "channels", "for example"), cells
    )


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
