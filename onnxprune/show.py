"""What commands print: tables of at most 80 columns on stdout, progress on stderr, JSON instead of tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.coupling import Analysis
    from onnxprune.pipeline import Compiled
    from onnxprune.verification import Verification

WIDTH = 80
Cell = str
Progress = Callable[[int, int], None]


def emit_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def note(text: str) -> None:
    """A line for people, on stderr."""
    sys.stderr.write(text + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, prose: bool = False) -> None:
    """Prints a table: the first column is text, the others are numbers or short words, to the right.

    With `prose` all columns are text that may wrap.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    out = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for i, column in enumerate(columns):
        text = prose or i == 0
        out.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        out.add_row(*row)
    console.print(out)


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Progress]:
    """A progress bar with the time left, on stderr where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def count(value: float) -> str:
    """1.81 G, 25.6 M, 64."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def size(value: float) -> str:
    """Bytes as 97.8 MB (10^6)."""
    return count(value) + "B" if value >= 1000 else f"{value:g} B"


def seconds(value: float) -> str:
    """A duration as 1.23 ms."""
    if value < 1e-3:
        return f"{value * 1e6:.3g} us"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def percent(value: float) -> str:
    """A share as 50.0 %."""
    return f"{100 * value:.1f} %"


def inspect_document(analysis: Analysis, name: str) -> dict[str, Any]:
    """What `inspect --json` prints."""
    from onnxprune.cost import CostModel

    cost = CostModel(analysis).whole
    graph = analysis.source.graph
    return {
        "model": name,
        "fingerprint": analysis.source.fingerprint,
        "opset": analysis.source.opset,
        "inputs": {t.name: [n if isinstance(n, int) else str(n) for n in t.shape or ()] for t in graph.inputs},
        "outputs": [t.name for t in graph.outputs],
        "macs": cost.macs,
        "params": cost.params,
        "bytes": cost.bytes,
        "groups": [
            {
                "name": g.name,
                "channels": g.channels,
                "width": g.width,
                "op": g.op,
                "residual": g.residual,
                "sites": [{"tensor": t, "axis": a} for t, a in g.sites],
            }
            for g in analysis.groups
        ],
        "locked": [
            {
                "name": k.name,
                "channels": k.channels,
                "node": k.node,
                "op": k.op,
                "reason": k.reason,
                "inexact": k.inexact,
            }
            for k in analysis.locked
        ],
    }


def inspect_tables(analysis: Analysis, name: str) -> None:
    """What `inspect` prints."""
    doc = inspect_document(analysis, name)
    inputs = ", ".join(f"{n} [{', '.join(map(str, s))}]" for n, s in doc["inputs"].items())
    sys.stdout.write(f"{name}: opset {doc['opset']}, input {inputs}\n")
    sys.stdout.write(f"{count(doc['macs'])} MACs per sample, {count(doc['params'])} parameters, {size(doc['bytes'])}\n")
    rows = [
        [g.name + (" (residual)" if g.residual else ""), str(g.channels), str(g.width), str(len(g.sites)), g.op]
        for g in analysis.groups
    ]
    total = sum(g.channels for g in analysis.groups)
    table(
        f"{len(rows)} groups, {total} channels can be removed",
        ["group", "channels", "width", "tensors", "made by"],
        rows,
    )
    if analysis.locked:
        table(
            "locked",
            ["group", "channels", "because"],
            [
                [
                    k.name,
                    str(k.channels),
                    f"it {k.reason}: {k.op} {k.node}" + (" (inexact)" if k.inexact else ""),
                ]
                for k in analysis.locked
            ],
            prose=True,
        )


def compiled_document(done: Compiled, output: str | None) -> dict[str, Any]:
    """What `apply --json` and `prune --json` print."""
    return {
        "output": output,
        "before": vars(done.before),
        "after": vars(done.after),
        "removed_channels": done.plan.removed,
        "plan_digest": done.plan.digest,
        "verification": done.verification.as_dict() if done.verification else None,
    }


def compiled_table(done: Compiled, title: str) -> None:
    """Before, after, kept."""
    rows = []
    for label, what, show in (("MACs", "macs", count), ("parameters", "params", count), ("weights", "bytes", size)):
        a, b = getattr(done.before, what), getattr(done.after, what)
        rows.append([label, show(a), show(b), percent(b / a if a else 1.0)])
    free = sum(g.channels for g in done.analysis.groups)
    rows.append(["channels", str(free), str(free - done.plan.removed), percent(1 - done.plan.removed / max(1, free))])
    table(title, ["", "before", "after", "kept"], rows)
    sys.stdout.write(proof_line(done.verification) + "\n")


def proof_line(proof: Verification | None) -> str:
    """The verification in one line."""
    if proof is None:
        return "not verified (--no-verify)"
    batches = " and ".join(map(str, proof.batches))
    line = (
        f"verified: pruned = masked original within {proof.max_relative:.1e} relative "
        f"(allowed {proof.tolerance:.0e}),\n  {proof.inputs} inputs, batch {batches}"
    )
    if proof.effect <= proof.tolerance:
        line += "\n  note: the masks hardly change the outputs on these inputs, so this proves little"
    return line
