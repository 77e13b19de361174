"""The tests' own browser sees what it is there to see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser

pytestmark = pytest.mark.browser

BAD = """<!doctype html><title>bad</title><p style="color: #ddd; background: #fff">pale</p>
<script>console.error("said"); fetch("http://example.com/x").catch(() => 0); throw Error("thrown")</script>"""
GOOD = """<!doctype html><html lang="en"><title>good</title><main><h1>good</h1><p>black</p></main></html>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


def test_a_bad_page_is_seen_to_be_bad(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(BAD)
    page = browser.open(tmp_path / "bad.html", offline=True)
    assert page.errors[:2] == ["said", "thrown"]
    assert page.requests == [(tmp_path / "bad.html").as_uri(), "http://example.com/x"]
    assert page.elsewhere("file://") == ["http://example.com/x"]
    assert {f.split(":")[0] for f in page.findings()} == {"color-contrast", "html-has-lang"}


def test_a_good_page_is_seen_to_be_good(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text(GOOD)
    page = browser.open(tmp_path / "good.html", width=390, dark=True)
    assert page.errors == [] == page.findings() == page.elsewhere("file://")
    assert page.tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches && innerWidth === 390")
