"""The report in a headless Chromium: it renders, hides lines, keeps to itself and keeps nobody out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, Page
from test_report import DIGITS, RECIPE, hostile  # noqa: F401  (a fixture)

from onnxprune.recipes import load_recipe, run_recipe
from onnxprune.reports import MeasurementSettings, write_report

pytestmark = pytest.mark.browser
DATA = "document.querySelector('[data-figure=curves-0]').data"
HIDDEN = f"{DATA}.map(t => t.visible !== false)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "short.toml").write_text(RECIPE)
    run_recipe(load_recipe(folder / "short.toml"), folder / "run")
    (folder / "run" / "log.txt").unlink()  # so that there is something to say
    write_report([folder / "run"], folder / "report.html")
    return folder / "report.html"


def quiet(page: Page, path: Path) -> None:
    """Nothing was said, nothing was asked for."""
    assert page.tab.evaluate("document.documentElement.dataset.ready") == "yes"
    assert page.errors == []
    assert page.requests == [path.as_uri()]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_renders_and_keeps_to_itself(browser: Browser, report: Path, width: int, dark: bool) -> None:
    page = browser.open(report, width=width, dark=dark, offline=True)
    quiet(page, report)
    lines = page.tab.locator("[data-figure=curves-0] .scatterlayer .trace")
    groups = page.tab.locator("fieldset.lines input[data-group]").count()
    assert lines.count() == 2 * groups == 14
    assert page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.findings(("moderate", "serious", "critical")) == []
    paper = page.tab.evaluate("document.querySelector('[data-figure=curves-0]').layout.paper_bgcolor")
    assert (paper == "#1c2027") == dark
    browser.close(page)


def test_lines_hide_by_mouse_and_by_keyboard(browser: Browser, report: Path) -> None:
    page = browser.open(report, offline=True)
    tab = page.tab
    assert all(tab.evaluate(HIDDEN))
    tab.get_by_label("dense.a.conv", exact=True).uncheck()
    place = tab.evaluate(
        "document.querySelector('[data-figure=curves-0]').data.findIndex(t => t.name == 'dense.a.conv')"
    )
    shown = tab.evaluate(HIDDEN)
    assert [i for i, v in enumerate(shown) if not v] == [place, place + 7]
    tab.get_by_label("stem.conv", exact=True).focus()
    tab.keyboard.press("Space")
    assert tab.evaluate(HIDDEN).count(False) == 4
    tab.get_by_role("button", name="Hide all").click()
    assert not any(tab.evaluate(HIDDEN))
    tab.get_by_role("button", name="Show all").click()
    assert all(tab.evaluate(HIDDEN))
    quiet(page, report)
    browser.close(page)


def test_hovering_tells_the_point(browser: Browser, report: Path) -> None:
    page = browser.open(report, offline=True)
    point = page.tab.locator("[data-figure=curves-0] .scatterlayer .trace .points path").nth(1)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.tab.wait_for_selector("[data-figure=curves-0] .hoverlayer .hovertext")
    assert "channels" in page.tab.locator(".hoverlayer .hovertext").first.text_content()
    browser.close(page)


def test_the_theme_follows_and_paper_is_white(browser: Browser, report: Path) -> None:
    page = browser.open(report, dark=True, offline=True)
    paper = "document.querySelector('[data-figure=curves-0]').layout.paper_bgcolor"
    for scheme, color in (("light", "#ffffff"), ("dark", "#1c2027")):
        page.tab.emulate_media(color_scheme=scheme)
        # The page hears of it a little later; its policy forbids wait_for_function.
        assert any(page.tab.evaluate(paper) == color or page.tab.wait_for_timeout(50) for _ in range(200))
    page.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.tab.evaluate(paper) == "#fff"
    assert page.tab.pdf()[:5] == b"%PDF-"
    browser.close(page)


def test_without_scripts_the_tables_tell(browser: Browser, report: Path) -> None:
    page = browser.open(report, offline=True, java_script_enabled=False)
    assert page.tab.locator("section[aria-labelledby=channels] tbody tr").count() == 7
    assert page.tab.locator("noscript p").first.is_visible()
    browser.close(page)


def test_markup_in_names_does_nothing(browser: Browser, hostile: list[Path], tmp_path: Path) -> None:  # noqa: F811
    write_report(hostile, tmp_path / "r.html", measuring=MeasurementSettings(latency=False))
    page = browser.open(tmp_path / "r.html", offline=True)
    dialogs: list[str] = []
    page.tab.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
    page.tab.reload()
    assert page.errors == [] == dialogs
    assert page.tab.locator("script").count() == 3
    assert "<script>" in page.tab.locator("section[aria-labelledby=channels] tbody th").first.text_content()
    assert page.findings() == []
    browser.close(page)


def test_a_script_that_got_in_would_not_run(browser: Browser, report: Path, tmp_path: Path) -> None:
    path = tmp_path / "forged.html"
    path.write_text(report.read_text().replace("</body>", "<script>document.title = 'forged'</script></body>"))
    page = browser.open(path, offline=True)
    assert page.tab.title() != "forged"
    assert any("Content Security Policy" in e for e in page.errors)
    browser.close(page)


def test_files_make_a_page(browser: Browser, tmp_path: Path) -> None:
    shutil.copy(DIGITS, tmp_path / "model.onnx")
    write_report([tmp_path / "model.onnx"], tmp_path / "r.html", measuring=MeasurementSettings(latency=False))
    page = browser.open(tmp_path / "r.html", offline=True)
    assert page.errors == [] == page.findings()
    assert page.tab.locator("h1").text_content() == "model.onnx"
    browser.close(page)
