"""Figures of the documentation: drawn from the numbers of the pages as they are now, used, described."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("pages.figures")
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_a_figure_shows_the_numbers_of_its_page(figures: ModuleType) -> None:
    for name, figure in figures.FIGURES.items():
        if figure.cheap:
            text = (figures.OUT / f"{name}.svg").read_text(encoding="utf-8")
            assert f"<!-- numbers: {figure.digest()} -->" in text, f"python tools/pages/figures.py {name}"


def test_a_figure_is_drawn_again_with_the_same_bytes(figures: ModuleType) -> None:
    figure = figures.FIGURES["methods"]
    assert figure.render() == figure.render()
    assert f'viewBox="0 0 {figure.size[0]} {figure.size[1]}"' in figure.render()


def test_a_table_that_is_not_there_is_an_error(figures: ModuleType) -> None:
    with pytest.raises(LookupError, match="has no table 0 with the columns nothing"):
        figures.table("methods.md", "nothing")


@pytest.mark.parametrize(
    ("text", "value"), [("**83.35**", 83.35), ("1,348.1 s", 1348.1), ("+22", 22.0), ("none", None)]
)
def test_numbers_of_cells(figures: ModuleType, text: str, value: float | None) -> None:
    assert figures.number(text) == value


def test_every_picture_is_on_a_page_and_is_described() -> None:
    used = set()
    for page in PAGES:
        for alt, target in IMAGE.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            assert path.is_file(), f"{page.name}: {target}"
            assert len(alt.split()) > 4, f"{page.name}: {target} has no description"
            used.add(path)
    kept = {p.resolve() for p in (DOCS / "pictures").iterdir()} - {DOCS / "pictures" / "logo.svg"}
    assert kept <= used, sorted(p.name for p in kept - used)


def test_most_pages_have_a_figure() -> None:
    pages = list(DOCS.rglob("*.md"))
    assert sum(bool(IMAGE.search(p.read_text(encoding="utf-8"))) for p in pages) > len(pages) / 2


def test_pictures_are_small() -> None:
    assert all(p.stat().st_size < 100_000 for p in (DOCS / "pictures").iterdir())
