"""Results show themselves in notebooks: light, escaped, without the report extra."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, hostile_model

import onnxprune as op
from onnxprune._utils.output.html import MOST, html_table
from onnxprune.studies.criteria_comparison import compare_criteria
from onnxprune.studies.model_diff import differences

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
TAGS = {"div", "table", "caption", "b", "thead", "tbody", "tr", "th", "td"}


class Reader(HTMLParser):
    """Tags, whether they close, and the text of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "|"


def read(value: Any) -> Reader:
    reader = Reader()
    reader.feed(value if isinstance(value, str) else value._repr_html_())
    assert not reader.open
    assert reader.tags <= TAGS
    return reader


def results(model: op.Model) -> dict[str, Any]:
    analysis = op.analyze(model)
    scores = op.score(analysis, "l2")
    plan = op.plan(scores, ratio=0.5, constraints=op.Constraints(round_to=1))
    done = op.compile_plan(model, plan, analysis=analysis)
    return {
        "analysis": analysis, "scores": scores, "plan": plan, "compiled": done,
        "criteria": compare_criteria(analysis, ["l1", "l2"]), "differences": differences(model, done.model),
    }  # fmt: skip


def test_every_result_shows_what_it_holds() -> None:
    found = results(op.load(DIGITS))
    shown = {name: read(value).text for name, value in found.items()}
    for group in found["analysis"]:
        assert all(f"|{group.name}|{group.channels}|" in shown[name] for name in ("analysis", "scores", "plan"))
    assert "is an output of the model" in shown["analysis"]
    assert found["plan"].digest[:12] in shown["plan"]
    assert f"|{found['compiled'].before.macs:,}|{found['compiled'].after.macs:,}|" in shown["compiled"]
    assert "proved equal to the masked original" in shown["compiled"]
    assert "|l1, l2|" in shown["criteria"]
    assert f"|macs|{found['compiled'].before.macs:,}|" in shown["differences"]


def test_text_is_one_line_where_there_is_a_graph_inside() -> None:
    found = results(op.load(DIGITS))
    assert repr(found["analysis"]) == "<Analysis: 7 groups, 288 channels can be removed; 1 locked>"
    assert repr(found["compiled"]).startswith("<Compiled: 144 of 288 channels and ")


def test_names_that_are_markup_stay_text() -> None:
    found = results(hostile_model())
    for name in ("analysis", "scores", "plan"):
        assert HOSTILE in read(found[name]).text


@pytest.mark.parametrize(("rows", "more"), [(MOST, False), (MOST + 3, True)])
def test_long_tables_are_cut(rows: int, more: bool) -> None:
    text = read(html_table("t", ["a", "b"], [[f"r{i}", "1"] for i in range(rows)])).text
    assert ("and 3 more rows" in text) == more
    assert f"r{MOST - 1}|" in text
    assert (f"r{MOST}|" in text) is False


def test_no_extra_is_needed() -> None:
    code = f"""
import sys
for name in ("jinja2", "plotly", "matplotlib", "IPython"):
    sys.modules[name] = None
import onnxprune as op
print(op.analyze(op.load({str(DIGITS)!r}))._repr_html_()[:5])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "<div>"
