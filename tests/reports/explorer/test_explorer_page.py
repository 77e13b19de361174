"""The explorer's page in a real browser: drags change numbers, what is saved is a plan, nobody is kept out."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page
from command_line import CommandLine
from planning import FakeLatency, kept_counts, made_curves, wide_model

import onnxprune as op
from onnxprune.planning.constraints import Constraints
from onnxprune.reports.explorer import Explorer, Server, plan_site

pytestmark = pytest.mark.browser

NAME = "<img src=x onerror=alert(1)>"
READY = "() => document.querySelector('#tiles .now')?.textContent && !document.querySelector('#save').disabled"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@dataclass
class Open:
    """A page on a running explorer."""

    page: Page
    url: str
    model: Path
    plan: Path
    thread: threading.Thread

    def __post_init__(self) -> None:
        self.tab: Any = self.page.tab

    def tile(self, label: str) -> str:
        """Return the text of a tile."""
        return str(self.tab.locator("#tiles div", has=self.tab.get_by_text(label, exact=True)).inner_text())

    def until(self, label: str, text: str) -> None:
        """Waits until the number of a tile is this."""
        found = self.tab.locator("#tiles div", has=self.tab.get_by_text(label, exact=True))
        found.locator(".now", has_text=re.compile(f"^{re.escape(text)}$")).wait_for()

    def status(self, text: str) -> None:
        """Waits until the page says so."""
        self.tab.locator("#status").filter(has_text=text).wait_for()

    def press(self, selector: str, key: str, times: int = 1) -> None:
        """Keys on a control."""
        self.tab.focus(selector)
        for _ in range(times):
            self.tab.keyboard.press(key)


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """The parameter holds options of the window, and "bare" for no curves and no latency."""
    options = dict(getattr(request, "param", {}))
    bare = options.pop("bare", False)
    op.save(wide_model(), tmp_path / "wide.onnx")
    model = op.load(tmp_path / "wide.onnx")
    analysis = op.analyze(model)
    scores = op.score(analysis, "l2")
    values = {"w0": [0.88, 0.85, 0.8, 0.7, 0.6], "w1": [0.9, 0.89, 0.88, 0.86, 0.8]}
    more = {} if bare else {"curves": made_curves(scores, values), "latency": FakeLatency(analysis)}
    explorer = Explorer(scores, tmp_path / "plan.json", name=NAME, constraints=Constraints(round_to=16), **more)
    server = Server(plan_site(explorer))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    page = browser.open(server.url, **options)
    page.tab.wait_for_function(READY)
    yield Open(page, server.url, tmp_path / "wide.onnx", tmp_path / "plan.json", thread)
    browser.close(page)
    server.stop()
    thread.join(20)
    assert page.errors == []
    assert page.elsewhere(server.url) == []


def test_a_dragged_slider_changes_the_numbers(opened: Open) -> None:
    assert "100.0 %" in opened.tile("MACs")
    assert "90.0 %" in opened.tile("top1, predicted")
    before = opened.tile("MACs")
    slider = opened.tab.locator("#slider-1")
    box = slider.bounding_box()
    opened.tab.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    opened.tab.mouse.down()
    opened.tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=12)
    opened.tab.mouse.up()
    opened.until("channels", "112")
    assert slider.get_attribute("aria-valuetext") == "48 of 96 channels kept, 50.0 % removed"
    assert opened.tile("MACs") != before
    assert "80.0 %" in opened.tile("top1, predicted")
    assert "\u221210.0 points" in opened.tile("top1, predicted")
    assert "112 µs" in opened.tile("latency, predicted")
    assert opened.tab.evaluate("performance.getEntriesByName('interaction').length") > 1


def test_keys_alone_do_everything(opened: Open) -> None:
    tab = opened.tab
    tab.keyboard.press("Tab")
    reached = set()
    for _ in range(30):
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
        tab.keyboard.press("Tab")
    assert {
        "reset",
        "save",
        "done",
        "what",
        "goal",
        "scope",
        "slider-0",
        "slider-1",
        "hold w0",
        "Details of w0",
    } <= reached
    opened.press("#slider-0", "ArrowRight")
    opened.until("channels", "144")
    opened.press("#slider-0", "ArrowRight")
    opened.until("channels", "128")
    opened.press("#slider-0", "End")
    opened.until("channels", "112")
    assert "unknown" in opened.tile("top1, predicted")  # the curve ends at 50 %
    opened.press("#slider-0", "Home")
    opened.until("channels", "160")
    assert not opened.tab.locator("#undo").is_disabled()


def test_an_aim_moves_all_groups_but_the_held_ones(opened: Open) -> None:
    tab = opened.tab
    tab.check("[aria-label='hold w0']")
    tab.select_option("#what", "ratio")
    opened.press("#goal", "PageUp", 5)
    opened.until("channels", "112")
    assert tab.locator("#slider-0").get_attribute("aria-valuetext").startswith("64 of 64")
    assert tab.locator("#slider-1").get_attribute("aria-valuetext").startswith("48 of 96")
    assert tab.locator("#goal-value").inner_text().endswith("% removed")
    while tab.locator("#undo").is_enabled():  # a step for each key
        tab.click("#undo")
    opened.until("channels", "160")
    assert tab.locator("#slider-1").get_attribute("aria-valuetext").startswith("96 of 96")
    tab.select_option("#what", "macs")
    tab.select_option("#scope", "global")
    opened.press("#goal", "End")
    opened.status("cannot be reached")  # because one group is held
    opened.until("channels", "160")


def test_an_edit_while_an_aim_is_computed_stays(opened: Open) -> None:
    opened.tab.select_option("#what", "ratio")
    opened.tab.evaluate("""() => {
      const set = (id, value) => {
        document.getElementById(id).value = value;
        document.getElementById(id).dispatchEvent(new Event("input", { bubbles: true }));
      };
      set("goal", 50);
      set("slider-0", 0);
      set("slider-1", 1);
    }""")
    opened.until("channels", "144")
    assert opened.tab.locator("#slider-0").get_attribute("aria-valuetext").startswith("64 of 64")
    assert opened.tab.locator("#slider-1").get_attribute("aria-valuetext").startswith("80 of 96")


def test_a_saved_plan_is_taken_by_apply(opened: Open) -> None:
    opened.press("#slider-1", "ArrowRight", 2)
    opened.until("channels", "128")
    opened.tab.click("#save")
    opened.status("Saved: 32 channels go.")
    plan = op.load_plan(opened.plan)
    assert kept_counts(plan, op.analyze(op.load(opened.model))) == {"w0": 64, "w1": 64}
    CommandLine("apply", opened.model, opened.plan, "-o", opened.model.with_name("small.onnx")).ok()
    opened.tab.click("#done")  # what is saved needs no question
    opened.status("The plan is in")
    opened.thread.join(20)
    assert not opened.thread.is_alive()


def test_a_block_is_switched_off_with_its_channels(opened: Open) -> None:
    tab = opened.tab
    switch = tab.get_by_role("switch", name="keep block")
    before = opened.tile("MACs")
    switch.uncheck()
    opened.until("channels", "64")
    assert opened.tile("MACs") != before
    assert "curves know no blocks" in opened.tile("top1, predicted")
    assert tab.locator("#slider-1").is_disabled()
    assert "removed with the block" in tab.locator("#slider-1").get_attribute("aria-valuetext")
    assert tab.locator("#flow path.gone").count()
    assert opened.page.findings() == []
    opened.press("#slider-0", "ArrowRight")
    opened.until("channels", "48")
    tab.click("#save")
    opened.status("Saved: 16 channels and 1 block go.")
    plan = op.load_plan(opened.plan)
    assert (len(plan.blocks), list(plan.groups)) == (1, ["w0"])
    CommandLine("apply", opened.model, opened.plan, "-o", opened.model.with_name("small.onnx")).ok()
    tab.click("#undo")
    tab.click("#undo")
    opened.until("channels", "160")
    assert switch.is_checked()


def test_done_asks_before_it_drops_what_is_not_saved(opened: Open) -> None:
    opened.press("#slider-1", "ArrowRight")
    opened.until("channels", "144")
    opened.tab.click("#done")
    opened.tab.click("#go-on")
    assert opened.thread.is_alive()
    opened.tab.click("#done")
    assert opened.page.findings() == []
    opened.tab.click("#save-done")
    opened.status("The plan is in")
    opened.thread.join(20)
    assert not opened.thread.is_alive()
    assert op.load_plan(opened.plan).removed == 16


def test_names_are_text_and_details_say_who_reads_whom(opened: Open) -> None:
    assert opened.tab.locator("h1").inner_text() == NAME
    assert opened.tab.locator("img").count() == 0
    opened.tab.click("[aria-label='Details of w1']")
    details = opened.tab.locator("#details")
    assert "made from\nw0\nread by\nw0" in details.inner_text()
    assert details.locator("svg").get_attribute("aria-label") == "top1 90.0 % if only this group is cut"
    assert opened.tab.locator("#flow path.on").count() >= 2


WINDOWS = [
    {}, {"dark": True}, {"width": 390, "height": 844}, {"width": 390, "height": 844, "dark": True}, {"bare": True},
]  # fmt: skip


@pytest.mark.parametrize("opened", WINDOWS, indirect=True)
def test_nobody_is_kept_out(opened: Open) -> None:
    opened.tab.click("[aria-label='Details of w0']")
    opened.press("#slider-0", "ArrowRight")
    opened.until("channels", "144")
    assert opened.page.findings() == []
    wide = opened.tab.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    assert opened.tab.locator("#details").is_visible()
