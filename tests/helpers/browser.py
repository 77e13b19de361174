"""Headless Chromium for tests of pages: console messages, network requests, and checks by axe-core.

    @pytest.fixture(scope="module")
    def browser() -> Iterator[Browser]:
        with Browser() as found:
            yield found

Tests that use it are marked `browser`; `make test-browser` installs their requirements and runs them. They are not
skipped if a requirement is missing: the error names it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage", "--no-first-run",
)  # fmt: skip
AXE = Path("node_modules", "axe-core", "axe.min.js")
SERIOUS = ("serious", "critical")


def chromium() -> str:
    """Return the browser: the environment variable CHROMIUM, or one on the path."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise RuntimeError("no Chromium here: `make test-browser`, or set CHROMIUM to the program")
    return found


def axe() -> str:
    """Return the source of axe-core: from the folder AXE_FOLDER that npm installed it into, default .browser here."""
    path = Path(os.environ.get("AXE_FOLDER", ROOT / ".browser")) / AXE
    if not path.is_file():
        raise RuntimeError("no axe-core here: `make test-browser`, or `npm install --prefix .browser axe-core`")
    return path.read_text(encoding="utf-8")


@dataclass
class Page:
    """Open page.

    Attributes:
        tab: Page of playwright, for clicks and queries.
        errors: Errors and warnings on the console, and uncaught exceptions.
        requests: Requested addresses, the page itself first; without inline ones (data, blob).
    """

    tab: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def elsewhere(self, origin: str) -> list[str]:
        """Requests to other origins than this, e.g. "http://127.0.0.1:8000"."""
        own = urlsplit(origin)[:2]
        return [url for url in self.requests if urlsplit(url)[:2] != own]

    def findings(self, impacts: tuple[str, ...] = SERIOUS) -> list[str]:
        """Return the findings of axe-core, by default serious and critical ones: "rule: help: element"."""
        self.tab.evaluate(axe())  # in the page's world, past its content security policy
        found = self.tab.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        assert found["passes"], "axe-core has looked at nothing"
        return [
            f"{v['id']}: {v['help']}: {node['html'][:200]} {node['failureSummary']}"
            for v in found["violations"]
            for node in v["nodes"]
            if v["impact"] in impacts
        ]


class Browser:
    """Chromium as a context manager."""

    def __enter__(self) -> Self:
        from playwright.sync_api import sync_playwright

        self._driver = sync_playwright().start()
        try:
            self._chromium = self._driver.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        except BaseException:
            self._driver.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chromium.close()
        self._driver.stop()

    def open(
        self, where: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False, offline: bool = False,
        timeout: float = 120_000, **options: Any,
    ) -> Page:  # fmt: skip
        """Open a file or an address and wait until it is loaded.

        Args:
            where: A file's path or a URL.
            width, height: Size of the window, in CSS pixels.
            dark: Emulate a dark colour scheme.
            offline: Emulate a missing network.
            timeout: Milliseconds after which waiting fails.
            options: Further options of playwright's `new_context`.
        """
        context = self._chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=offline,
            **options,
        )  # fmt: skip
        context.set_default_timeout(timeout)
        page = Page(context.new_page())
        page.tab.on("console", lambda m: page.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.tab.on("pageerror", lambda e: page.errors.append(str(e)))
        page.tab.on("request", lambda r: page.requests.append(r.url) if _goes_out(r.url) else None)
        page.tab.on("websocket", lambda w: page.requests.append(w.url))
        page.tab.goto(where.absolute().as_uri() if isinstance(where, Path) else where)
        return page

    def close(self, page: Page) -> None:
        """Close a page and discard its storage."""
        page.tab.context.close()


def _goes_out(url: str) -> bool:
    return urlsplit(url).scheme not in ("data", "blob")
