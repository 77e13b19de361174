"""Differences of two models as one HTML page without scripts, requests or dependencies; all contents are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from onnxprune._utils.output.formatting import count, counted, percent
from onnxprune.studies._layer_diff import LayerChange
from onnxprune.studies.model_diff import Differences

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
thead th { border-bottom: 1px solid; }
.bar { display: inline-block; width: 8rem; height: .7rem; border: 1px solid; vertical-align: middle; }
.bar span { display: block; height: 100%; background: #2a6fdb; }
summary { cursor: pointer; margin: .5rem 0; }
"""


def diff_page(differences: Differences, title: str) -> str:
    """Return the page.

    Args:
        differences: Differences of two models.
        title: Names of the models.
    """
    parts = [f"<h1>{escape(title)}</h1>", _sizes(differences)]
    if differences.identical:
        parts.append("<p>Nodes, shapes, weights and interface are the same.</p>")
    parts += [f"<p>Interface: {escape(line)}</p>" for line in differences.interface]
    if differences.layers:
        parts.append(_layers(differences))
    parts += [_details(heading, columns, rows) for heading, columns, rows in _lists(differences) if rows]
    # A lone surrogate in a name cannot be written as UTF-8.
    text = (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body>\n</html>\n"
    )
    return text.encode("utf-8", "replace").decode()


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """Return a table; cells are HTML."""
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _sizes(differences: Differences) -> str:
    return _table(["size", "before", "after", "after/before"], differences.size_rows(), "Sizes")


def _layers(differences: Differences) -> str:
    trained = any(c.weights is not None for c in differences.layers)
    columns = ["layer", "operator", "channels", "inputs", "MACs before", "MACs after", "share"]
    heading = f"{counted(len(differences.layers), 'layer')} changed, {differences.same_layers} the same"
    rows = [_layer(c, trained) for c in differences.layers]
    columns += ["weights (relative change)"] if trained else []
    return f"<h2>{escape(heading)}</h2>\n" + _table(columns, rows, "Layers")


def _layer(change: LayerChange, trained: bool) -> list[str]:
    before, after = change.macs
    row = [escape(change.name), escape(change.op)]
    row += [escape(_pair(pair)) for pair in (change.channels, change.inputs)]
    row += ["-" if v is None else count(v) for v in (before, after)]
    if before and after is not None:
        share = after / before
        width = min(100.0, 100 * share)
        row.append(
            f'{percent(share)} <span class="bar" aria-hidden="true"><span style="width:{width:.0f}%"></span></span>'
        )
    else:
        row.append("-")
    return [*row, *([f"{change.weights:.1e}" if change.weights is not None else ""] if trained else [])]


def _pair(sizes: tuple[int | str | None, int | str | None]) -> str:
    a, b = ("-" if v is None else str(v) for v in sizes)
    return a if a == b else f"{a} \N{RIGHTWARDS ARROW} {b}"


def _shape(dims: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, dims))}]"


def _lists(differences: Differences) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the other differences: heading, columns and rows of plain text."""
    d = differences
    return [
        ("nodes renamed", ["first", "second"], [list(pair) for pair in d.renamed]),
        ("nodes only in the first", ["node", "operator"], [list(pair) for pair in d.removed]),
        ("nodes only in the second", ["node", "operator"], [list(pair) for pair in d.added]),
        ("nodes changed", ["node", "operator", "change"], [[c.name, c.op, "; ".join(c.changes)] for c in d.changed]),
        ("activations of another shape", ["tensor", "before", "after"],
         [[s.tensor, _shape(s.before), _shape(s.after)] for s in d.shapes]),
        ("weights changed", ["weight", "before", "after", "relative change"],
         [[w.name, _shape(w.before), _shape(w.after), "-" if w.relative is None else f"{w.relative:.2e}"]
          for w in d.weights]),
        ("weights only in the first", ["weight", "shape"], [[n, _shape(s)] for n, s in d.removed_weights]),
        ("weights only in the second", ["weight", "shape"], [[n, _shape(s)] for n, s in d.added_weights]),
    ]  # fmt: skip


def _details(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[escape(cell) for cell in row] for row in rows]
    return f"<details><summary>{len(rows)} {escape(heading)}</summary>\n{_table(columns, cells, heading)}</details>"
