"""HTML tables for notebooks, without dependencies; all contents are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

MOST = 60  # rows; notebooks store their outputs
_CELL = "padding:.15em .8em .15em 0;vertical-align:top;"
_NUMBER = _CELL + "text-align:right;font-variant-numeric:tabular-nums;"
_TEXT = _CELL + "text-align:left;"


def html_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[int] = (0,), note: str = ""
) -> str:
    """Return a table for `_repr_html_`.

    Args:
        title: Title above the table.
        columns: Column headers.
        rows: Cells, plain text; rows after the first 60 are counted, not shown.
        text: Indices of the text columns, aligned left; the others are numbers, aligned right.
        note: Note below the table.
    """

    def style(i: int) -> str:
        return _TEXT if i in text else _NUMBER

    head = "".join(f'<th scope="col" style="{style(i)}">{escape(c)}</th>' for i, c in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f'<td style="{style(i)}">{escape(cell)}</td>' for i, cell in enumerate(row)) + "</tr>"
        for row in rows[:MOST]
    )
    if len(rows) > MOST:
        note = f"... and {len(rows) - MOST} more rows. {note}".strip()
    below = f"<div>{escape(note)}</div>" if note else ""
    caption = f'<caption style="text-align:left;caption-side:top"><b>{escape(title)}</b></caption>'
    return f"<div><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}</div>"


def share(part: float, total: float) -> str:
    """Return a part of a total in percent."""
    return f"{100 * part / total:.1f} %" if total else "-"
