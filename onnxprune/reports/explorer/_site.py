"""Contents of a local site, without HTTP: the files that it serves, and the actions that it answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from onnxprune._utils.files.input_files import read_resource
from onnxprune.reports.explorer._requests import ACTIONS, answer
from onnxprune.reports.explorer._session import Explorer

HTML, JSON, BINARY = "text/html; charset=utf-8", "application/json; charset=utf-8", "application/octet-stream"
_PAGE = {
    "": ("explore.html", HTML),
    "explore.css": ("explore.css", "text/css; charset=utf-8"),
    "explore.js": ("explore.js", "text/javascript; charset=utf-8"),
}
_OWN_FILES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Site:
    """Contents of a site.

    Attributes:
        documents: Path -> content and its type. A file is read when it is asked for, and sent as a download.
        actions: Name -> function from the body of a request to the answer.
        policy: Content security policy; None: the page has its own.
    """

    documents: Mapping[str, tuple[bytes | Path, str]]
    actions: Mapping[str, Callable[[bytes], Mapping[str, Any]]] = field(default_factory=dict)
    policy: str | None = None


def plan_site(explorer: Explorer) -> Site:
    """Return the site that makes a plan: the page, the description of the model, and its actions."""
    folder = files("onnxprune.reports.explorer") / "page"
    documents: dict[str, tuple[bytes | Path, str]] = {
        path: (read_resource(folder / name), kind) for path, (name, kind) in _PAGE.items()
    }
    documents["model"] = (json.dumps(explorer.describe(), allow_nan=False).encode(), JSON)
    return Site(documents, {name: partial(answer, explorer, name) for name in ACTIONS}, _OWN_FILES)


def page_site(html: str, downloads: Mapping[str, Path]) -> Site:
    """Return a site of one page that brings its own policy, with files to download below `files/`.

    Args:
        html: The page.
        downloads: Path below `files/` -> file.
    """
    found: dict[str, tuple[bytes | Path, str]] = {f"files/{name}": (path, BINARY) for name, path in downloads.items()}
    return Site({"": (html.encode(), HTML), **found}, {"done": lambda _: {"done": True}})
