"""Check the built site in a browser: lengths, tables, images, layout shifts, accessibility, links.

    make docs && python tools/pages/check_site.py [SITE] [--only PART_OF_A_PATH] [--links]

Every page must fit in 20 screens of 1280 x 900, no table may be wider than its column, images have an alternative text
and a size, nothing moves while the page loads, axe-core finds nothing serious, and links lead to files and anchors that
exist. `make docs` has checked that nothing is fetched from the network. Exit status 1 if anything is found.
"""

from __future__ import annotations

import functools
import http.server
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from browser import Browser  # noqa: E402

HEIGHT, SCREENS = 900, 20
PHONE = 390
SHIFT = 0.02  # of a page's layout; Lighthouse calls less than 0.1 good
_WATCH = """
window.__shift = 0;
new PerformanceObserver((list) => {
  for (const e of list.getEntries()) if (!e.hadRecentInput) window.__shift += e.value;
}).observe({ type: "layout-shift", buffered: true });
"""
_MEASURE = """() => {
  const wide = [...document.querySelectorAll("article table")].filter((t) => {
    const box = t.closest(".box, .md-typeset__scrollwrap, article");
    return t.scrollWidth > box.clientWidth + 1;
  }).map((t) => (t.querySelector("th") || t).textContent.slice(0, 60));
  const images = [...document.images].filter((i) => !i.hasAttribute("alt") || !i.hasAttribute("width")
    || !i.hasAttribute("height")).map((i) => i.src);
  return { height: document.documentElement.scrollHeight, wide, images, shift: window.__shift,
           overflow: document.documentElement.scrollWidth - innerWidth };
}"""


class _Links(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect a link or an anchor."""
        found = dict(attrs)
        if found.get("id"):
            self.anchors.add(str(found["id"]))
        for key in ("href", "src"):
            if found.get(key):
                self.links.append(str(found[key]))


@functools.cache
def read(path: Path) -> _Links:
    """Return links and anchors of a file."""
    parser = _Links()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def broken_links(site: Path, page: Path) -> Iterator[str]:
    """Yield the links of a page that lead nowhere in the site; addresses elsewhere are not followed."""
    here = f"/{page.relative_to(site).as_posix()}"
    for link in read(page).links:
        parts = urlsplit(urljoin(here, link))
        if urlsplit(link).scheme or link.startswith("//"):
            continue
        target = site / unquote(parts.path).lstrip("/")
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            yield f"link to {link}: no such file"
        elif not _has_anchor(target, unquote(parts.fragment)):
            yield f"link to {link}: no such anchor"


def _has_anchor(target: Path, anchor: str) -> bool:
    """Return True if a page has an anchor; those of the theme begin with two underscores and are its own business."""
    return not anchor or target.suffix != ".html" or anchor.startswith("__") or anchor in read(target).anchors


def problems(found: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of the figures of a page at one width."""
    if found["height"] > SCREENS * HEIGHT:
        yield f"{found['height'] / HEIGHT:.1f} screens, more than {SCREENS}"
    yield from (f"table wider than its column: {t!r}" for t in found["wide"])
    yield from (f"image without alternative text, size or content: {i}" for i in found["images"])
    if found["shift"] > SHIFT:
        yield f"the layout shifts by {found['shift']:.3f} while the page loads"
    if found["overflow"] > 1:
        yield f"the page is {found['overflow']} pixels wider than the window"


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def check(site: Path, only: str = "", *, links: bool = False) -> list[str]:
    """Return all problems of a built site, each with its page.

    Args:
        site: Folder of the site.
        only: Only pages with this in their path.
        links: Check links only, which needs no browser.
    """
    out = []
    pages = [p for p in sorted(site.rglob("*.html")) if only in p.as_posix() and p.name != "404.html"]
    for page in pages:
        out += [f"{page.relative_to(site)}: {text}" for text in broken_links(site, page)]
    if links:
        return out
    with served(site) as origin, Browser() as browser:
        for page in pages:
            name = page.relative_to(site).as_posix()
            shown = browser.open("about:blank", height=HEIGHT)
            shown.tab.add_init_script(_WATCH)
            shown.tab.goto(origin + name.removesuffix("index.html"))
            shown.tab.wait_for_timeout(100)
            out += [f"{name}: {text}" for text in problems(shown.tab.evaluate(_MEASURE))]
            out += [f"{name}: {f}" for f in shown.findings()]
            shown.tab.set_viewport_size({"width": PHONE, "height": HEIGHT})
            narrow = shown.tab.evaluate(_MEASURE)
            if narrow["overflow"] > 1:
                out.append(f"{name}: {narrow['overflow']} pixels wider than a phone")
            browser.close(shown)
    return out


@click.command(help=__doc__)
@click.argument("site", type=click.Path(exists=True, file_okay=False, path_type=Path), default=ROOT / "site")
@click.option("--only", default="", help="Only pages with this in their path.")
@click.option("--links", is_flag=True, help="Only links; needs no browser.")
def main(site: Path, only: str, links: bool) -> None:
    """Print all problems."""
    found = check(site, only, links=links)
    for text in found:
        click.echo(text)
    click.echo(f"{len(found)} problems")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
