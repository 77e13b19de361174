"""The page of `diff` in a browser: accessible, without requests, and no wider than a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser
from command_line import CommandLine

pytestmark = pytest.mark.browser

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_accessible_and_fits_a_phone(dark: bool, tmp_path: Path) -> None:
    line = CommandLine()
    line.ok("prune", DIGITS, "-o", tmp_path / "s.onnx", "--target", "0.5")
    line.ok("diff", DIGITS, tmp_path / "s.onnx", "--html", tmp_path / "d.html")
    with Browser() as browser:
        page = browser.open(tmp_path / "d.html", width=390, dark=dark, offline=True)
        page.tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert page.errors == [] == page.findings() == page.elsewhere("file://")
        assert page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
