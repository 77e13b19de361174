"""Generated pages of the site: the coverage from its numbers, the reference by task, sizes of pictures, links."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import onnxprune
from onnxprune.cli import main

ROOT = Path(__file__).parents[2]


def tool(name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        (ROOT / "tools" / "zoo_parts" / "coverage.json").read_text(encoding="utf-8")
    )
    return found


def test_every_model_of_the_numbers_is_in_a_table_once(rows: list[dict[str, Any]]) -> None:
    tables = tool("zoo_parts.zoo_page").tables(rows)
    names = re.findall(r'<tr data-kind="\w*"><td>([^<°]+)', tables["models"])
    failed = re.findall(r'<tr data-kind="\w*"><td>([^<°]+)', tables["failed"])
    assert sorted([*names, *failed]) == sorted(str(r["name"]) for r in rows)
    assert len(names) > 600


def test_the_page_has_a_place_for_every_table(rows: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- table: (\w+) -->", page)) == set(tool("zoo_parts.zoo_page").tables(rows))
    assert not (ROOT / "docs" / "coverage.json").exists()
    good = sum(tool("zoo_parts.zoo_page").proved(r) for r in rows)
    assert f"**{good} of " in page


def test_a_table_escapes_its_cells_and_says_what_it_searches() -> None:
    table = tool("zoo_parts.zoo_page").long_table(
        "models", ("a", "b"), [("k", ["<b>", "1.5"]), ("", ["x", "2"])], {"k": "K & L"}
    )
    assert "&lt;b&gt;" in table
    assert '<option value="k">K &amp; L</option>' in table
    assert '<th scope="col" class="n">b</th>' in table
    assert "Search models" in table
    assert "2 of 2" in table


@pytest.fixture
def pages() -> ModuleType:
    pytest.importorskip("mkdocs")
    return tool("pages.site_pages")


def test_every_public_name_is_on_the_page_of_one_task(pages: ModuleType) -> None:
    made = pages.python_pages()
    shown = re.findall(r"^::: onnxprune\.(\w+)$", "\n".join(made.values()), re.M)
    assert sorted(shown) == sorted(n for n in onnxprune.__all__ if n != "__version__")
    for name in shown:
        assert f"#onnxprune.{name})" in made["reference/python.md"]


def test_a_name_without_a_task_is_an_error(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxprune, "__all__", [*onnxprune.__all__, "novelty"])
    with pytest.raises(ValueError, match="novelty"):
        pages.python_pages()


def test_every_command_has_a_page(pages: ModuleType) -> None:
    made = pages.cli_pages()
    assert {f"reference/cli/{name}.md" for name in main.commands} == set(made) - {"reference/cli.md"}


def test_the_navigation_has_the_generated_pages(pages: ModuleType) -> None:
    class Config:
        nav: list[Any] = [{"Reference": ["reference/cli.md", "reference/python.md", "plan-format.md"]}]

    entries = pages.on_config(Config()).nav[0]["Reference"]
    assert entries[0]["Command line"][0] == "reference/cli.md"
    assert len(entries[0]["Command line"]) == len(main.commands) + 1
    assert entries[2] == "plan-format.md"


def test_pictures_get_their_size(pages: ModuleType, tmp_path: Path) -> None:
    assert pages.picture_size(ROOT / "docs" / "pictures" / "explorer.png") == (1280, 800)
    assert pages.picture_size(ROOT / "docs" / "pictures" / "logo.svg") == (64, 64)
    assert pages.picture_size(tmp_path / "x.png") is None
    assert all(pages.picture_size(p) for p in (ROOT / "docs").rglob("*.png"))


def test_ci_workflows_are_a_page(pages: ModuleType) -> None:
    assert "onnxprune verify" in pages.ci_page()


# ------------------------------------------------------------------------------------------------------------- links


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="a/#there">x</a><img src="p.png"><a href="https://example.org">', "utf-8"
    )
    (tmp_path / "a" / "index.html").write_text('<h2 id="there">x</h2><a href="..">x</a>', "utf-8")
    (tmp_path / "p.png").write_bytes(b"")
    return tmp_path


def test_links_that_lead_somewhere_are_fine(site: Path) -> None:
    assert tool("pages.check_site").check(site, links=True) == []


@pytest.mark.parametrize(
    ("link", "said"),
    [("b/", "no such file"), ("a/#nowhere", "no such anchor"), ("q.png", "no such file"), ("#x", "no such anchor")],
)
def test_a_link_that_leads_nowhere_is_found(site: Path, link: str, said: str) -> None:
    (site / "c.html").write_text(f'<a href="{link}">x</a>', "utf-8")
    tool("pages.check_site").read.cache_clear()
    assert tool("pages.check_site").check(site, links=True) == [f"c.html: link to {link}: {said}"]


def test_what_a_browser_measures_is_judged() -> None:
    fine = {"height": 900, "wide": [], "images": [], "shift": 0.0, "overflow": 0}
    judge = tool("pages.check_site").problems
    assert list(judge(fine)) == []
    for key, value in (("height", 18_001), ("wide", ["t"]), ("images", ["i"]), ("shift", 0.1), ("overflow", 9)):
        assert len(list(judge({**fine, key: value}))) == 1
