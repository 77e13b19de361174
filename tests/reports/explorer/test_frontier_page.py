"""The page of a frontier in a real browser: the axis switches, a point is picked, files are downloaded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, Page
from frontiers import digits_frontier

from onnxprune.reports import frontier_page, write_report
from onnxprune.reports.explorer import Server, page_site

pytestmark = pytest.mark.browser
PLOT = "document.getElementById('frontier-plot')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_frontier(tmp_path_factory.mktemp("frontier") / "out", latency=True)


@pytest.fixture
def served(folder: Path, browser: Browser) -> Iterator[tuple[Page, threading.Thread]]:
    shown = frontier_page(folder)
    server = Server(page_site(shown.html, shown.files))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    page = browser.open(server.url)
    assert page.tab.evaluate("document.documentElement.dataset.ready") == "yes"
    yield page, thread
    browser.close(page)
    server.stop()
    thread.join(20)
    assert page.errors == []
    assert page.elsewhere(server.url) == []


def test_the_axis_switches_and_the_stars_follow(served: tuple[Page, threading.Thread]) -> None:
    tab = served[0].tab
    first = tab.evaluate(f"{PLOT}.data.map(t => t.x)")
    tab.get_by_label("bytes", exact=True).check()
    assert tab.evaluate(f"{PLOT}.layout.xaxis.title.text") == "bytes kept (%)"
    assert tab.evaluate(f"{PLOT}.data.map(t => t.x)") != first
    assert "bytes" in tab.locator("#frontier-caption").inner_text()
    shown = tab.locator("[data-pareto]").evaluate_all(
        "cells => cells.map(c => [c.dataset.pareto.split(' ').includes('bytes'), !c.firstElementChild.hidden])"
    )
    assert len(shown) == 4
    assert all(expected == visible for expected, visible in shown)
    tab.get_by_label("latency").focus()
    tab.keyboard.press("Space")
    assert tab.evaluate(f"{PLOT}.layout.xaxis.title.text") == "latency kept (%)"


def test_a_point_is_hovered_and_picked_in_the_figure(served: tuple[Page, threading.Thread]) -> None:
    tab = served[0].tab
    point = tab.locator("#frontier-plot .scatterlayer .trace .points path").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_selector("#frontier-plot .hoverlayer .hovertext")
    assert "of the MACs" in tab.locator(".hoverlayer .hovertext").first.text_content()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.locator("#picked-title").wait_for()
    text = tab.locator("#picked").inner_text()
    assert all(part in text for part in ("Certificate", "Plan", "Files", "MACs", "drop (points)"))
    assert tab.locator("button.pick[aria-pressed=true]").count() == 1
    widths = tab.evaluate(f"{PLOT}.data.flatMap(t => t.marker.line.width)")
    assert sorted(widths) == [1, 1, 1, 3]


def test_a_point_is_picked_by_keyboard_and_its_model_downloaded(
    served: tuple[Page, threading.Thread], folder: Path
) -> None:
    page = served[0]
    tab = page.tab
    tab.get_by_role("button", name="l2/0.4000/model-int8.onnx").focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "picked"
    with tab.expect_download() as started:
        tab.locator("#picked").get_by_role("link", name="model-int8.onnx").click()
    assert Path(started.value.path()).read_bytes() == (folder / "l2/0.4000/model-int8.onnx").read_bytes()
    assert page.findings(("moderate", "serious", "critical")) == []


@pytest.mark.parametrize(("name", "file"), [("Download CSV", "frontier.csv"), ("Download JSON", "frontier.json")])
def test_the_figures_are_downloaded(served: tuple[Page, threading.Thread], folder: Path, name: str, file: str) -> None:
    with served[0].tab.expect_download() as started:
        served[0].tab.get_by_role("link", name=name).click()
    text = Path(started.value.path()).read_text()
    assert started.value.suggested_filename == file
    if file.endswith("json"):
        assert json.loads(text) == json.loads((folder / file).read_text())
    else:
        assert text == (folder / file).read_text()


def test_done_ends_the_command(served: tuple[Page, threading.Thread]) -> None:
    page, thread = served
    page.tab.get_by_role("button", name="Done").click()
    page.tab.locator("#ended", has_text="has ended").wait_for()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_the_report_has_the_same_figure(browser: Browser, folder: Path, tmp_path: Path, width: int, dark: bool) -> None:
    write_report([folder], tmp_path / "page.html")
    page = browser.open(tmp_path / "page.html", width=width, dark=dark, offline=True)
    page.tab.get_by_role("button", name="l2/0.7000/model.onnx").click()
    assert "l2/0.7000/plan.json" in page.tab.locator("#picked .files").inner_text()
    assert page.tab.locator("#picked .files a").count() == 0
    assert page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.findings(("moderate", "serious", "critical")) == []
    assert page.errors == []
    browser.close(page)
