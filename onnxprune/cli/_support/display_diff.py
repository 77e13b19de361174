"""Tables of `diff`: sizes, one row for each layer, a line for the rest; with --all every difference."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxprune._utils.output.formatting import count, counted, percent
from onnxprune.cli._support.display import WIDTH, Cell, table

if TYPE_CHECKING:
    from onnxprune.studies.model_diff import Differences, LayerChange

LAYERS = 60  # rows without --all


def differences_tables(differences: Differences, title: str, *, every: bool = False) -> None:
    """Print sizes, interface and layers, then a summary of all other differences, or with `every` their tables."""
    _sizes(differences, title)
    if differences.identical:
        sys.stdout.write("nodes, shapes, weights and interface are the same\n")
        return
    for line in differences.interface:
        sys.stdout.write(f"interface: {line}\n")
    _layers(differences, None if every else LAYERS)
    if every:
        _everything(differences)
    else:
        text = f"also: {summary(differences)} (--all lists them)"
        sys.stdout.write(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False) + "\n")


def _sizes(differences: Differences, title: str) -> None:
    table(title, ["", "before", "after", "after/before"], differences.size_rows())


def _layers(differences: Differences, most: int | None) -> None:
    """Print one row for each layer that differs."""
    if not differences.layers:
        return
    trained = any(c.weights is not None for c in differences.layers)
    rows = [layer_row(c, trained) for c in differences.layers]
    title = f"{counted(len(rows), 'layer')} changed, {differences.same_layers} the same"
    columns = ["layer", "channels", "inputs", "MACs", "change", *(["weights"] if trained else [])]
    table(title, columns, rows[:most])
    if most is not None and len(rows) > most:
        sys.stdout.write(f"... and {counted(len(rows) - most, 'more layer')} (--all)\n")


def layer_row(change: LayerChange, trained: bool) -> list[Cell]:
    """Return a layer as a row: name, channels, inputs, MACs before, their change, and how far its weight moved."""
    share = change.share
    row = [
        change.name,
        _pair(change.channels),
        _pair(change.inputs),
        "-" if change.macs[0] is None else count(change.macs[0]),
        "new" if change.macs[0] is None else "" if share is None else f"{100 * share:+.1f} %" if share else "0 %",
    ]
    return [*row, *([f"{change.weights:.1e}" if change.weights is not None else ""] if trained else [])]


def _pair(sizes: tuple[int | str | None, int | str | None]) -> str:
    a, b = ("-" if v is None else str(v) for v in sizes)
    return a if a == b else f"{a} -> {b}"


def summary(differences: Differences) -> str:
    """Return all other differences in one line: renames and nodes in one model only are counted by operator."""

    def by_operator(nodes: Sequence[tuple[str, str]]) -> str:
        return ", ".join(f"{n} {op}" for op, n in Counter(op for _, op in nodes).most_common(4))

    parts = [
        (len(differences.renamed), f"{counted(len(differences.renamed), 'node')} renamed"),
        (len(differences.removed), f"{counted(len(differences.removed), 'node')} only in the first "
         f"({by_operator(differences.removed)})"),
        (len(differences.added), f"{counted(len(differences.added), 'node')} only in the second "
         f"({by_operator(differences.added)})"),
        (len(differences.changed), f"{counted(len(differences.changed), 'node')} with other attributes or inputs"),
        (len(differences.shapes), f"{counted(len(differences.shapes), 'activation')} of another shape"),
        (len(differences.weights), f"{counted(len(differences.weights), 'weight')} changed"),
        (len(differences.removed_weights), f"{counted(len(differences.removed_weights), 'weight')} only in the first"),
        (len(differences.added_weights), f"{counted(len(differences.added_weights), 'weight')} only in the second"),
    ]  # fmt: skip
    return "; ".join(text for number, text in parts if number) or "nothing"


def _everything(differences: Differences) -> None:
    """Print the tables of all differences."""

    def rows_of(what: str, columns: Sequence[str], rows: list[list[Cell]], *, prose: bool = False) -> None:
        if rows:
            table(f"{len(rows)} {what}", columns, rows, prose=prose)

    def shape(dims: Sequence[int | str]) -> str:
        return f"[{', '.join(map(str, dims))}]"

    rows_of("nodes renamed", ["first", "second"], [list(names) for names in differences.renamed], prose=True)
    rows_of("nodes only in the second", ["node", "operator"], [[n, op] for n, op in differences.added])
    rows_of("nodes only in the first", ["node", "operator"], [[n, op] for n, op in differences.removed])
    changed = [[c.name, c.op, "; ".join(c.changes)] for c in differences.changed]
    rows_of("nodes changed", ["node", "operator", "change"], changed, prose=True)
    shapes = [[s.tensor, shape(s.before), shape(s.after)] for s in differences.shapes]
    rows_of("activations of another shape", ["tensor", "before", "after"], shapes)
    resized = [[w.name, shape(w.before), shape(w.after)] for w in differences.weights if w.before != w.after]
    rows_of("weights of another shape", ["weight", "before", "after"], resized)
    values = [
        [w.name, shape(w.before), "-" if w.elements is None else percent(w.elements),
         "-" if w.relative is None else f"{w.relative:.2e}", "-" if w.largest is None else f"{w.largest:.2e}"]
        for w in differences.weights if w.before == w.after
    ]  # fmt: skip
    rows_of("weights of other values", ["weight", "shape", "elements", "relative", "largest"], values)
    for what, weights in (("second", differences.added_weights), ("first", differences.removed_weights)):
        rows_of(f"weights only in the {what}", ["weight", "shape"], [[n, shape(s)] for n, s in weights])
    sys.stdout.write(
        f"the same: {differences.same_nodes} nodes, {differences.same_shapes} activation shapes, "
        f"{differences.same_weights} weights\n"
    )
