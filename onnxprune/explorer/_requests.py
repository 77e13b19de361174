"""What a browser may send, checked to the last key, and what it gets for it. No HTTP here."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from onnxprune.errors import OnnxPruneError
from onnxprune.explorer._session import Explorer

Document = dict[str, Any]
_LARGEST = 1e12


class BadRequest(ValueError):
    """What was sent is not what the page sends."""


def answer(explorer: Explorer, action: str, body: bytes) -> Document:
    """Does what a request asks for.

    What cannot be done for a reason (a target out of reach, a full disk) is an answer, too: `problem`.

    Args:
        explorer: of the model.
        action: one of `ACTIONS`.
        body: JSON.

    Raises:
        BadRequest: not JSON, unknown or missing keys, wrong types, counts that the limits forbid.
    """
    document = _parsed(body)
    try:
        return ACTIONS[action](explorer, document)
    except OnnxPruneError as err:
        return {"problem": {"what": err.what, "where": err.where, "fix": err.fix}}


def _parsed(body: bytes) -> Document:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> Document:
        if len(dict(pairs)) != len(pairs):
            raise BadRequest("a key is given twice")
        return dict(pairs)

    def no_constant(name: str) -> Any:
        raise BadRequest(f"{name} is not JSON")

    try:
        data = json.loads(body.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except BadRequest:
        raise
    except (ValueError, RecursionError) as err:
        raise BadRequest("the body is not JSON") from err
    if not isinstance(data, dict):
        raise BadRequest("the body is not an object")
    return data


def _keys(document: Document, *wanted: str) -> list[Any]:
    for key in sorted(document.keys() ^ set(wanted)):
        raise BadRequest(f"unknown key {key[:40]!r}" if key in document else f"the key {key!r} is missing")
    return [document[key] for key in wanted]


def _count(explorer: Explorer, i: int, value: Any) -> int:
    least, most = explorer.least[i], explorer.analysis.groups[i].channels
    if type(value) is not int or not least <= value <= most:
        raise BadRequest(f"group {i} keeps {least} to {most} channels")
    return value


def _counts(explorer: Explorer, value: Any) -> list[int]:
    if not isinstance(value, list) or len(value) != len(explorer.least):
        raise BadRequest(f"'kept' is not a list of {len(explorer.least)} counts")
    return [_count(explorer, i, v) for i, v in enumerate(value)]


def _figures(explorer: Explorer, document: Document) -> Document:
    (kept,) = _keys(document, "kept")
    counts = _counts(explorer, kept)
    return {"kept": counts, "figures": explorer.figures(counts), "aimed": False}


def _aim(explorer: Explorer, document: Document) -> Document:
    what, value, allocator, held = _keys(document, "what", "value", "scope", "held")
    known = {aim["what"] for aim in explorer.aims}
    if not isinstance(what, str) or what not in known:
        raise BadRequest(f"'what' is one of {', '.join(sorted(known))}")
    if type(value) not in (int, float) or not -_LARGEST < value < _LARGEST:  # which NaN is not, either
        raise BadRequest("'value' is not a number")
    if allocator is not None and (not isinstance(allocator, str) or allocator not in explorer.allocators):
        raise BadRequest(f"'scope' is null or one of {', '.join(explorer.allocators)}")
    if not isinstance(held, dict):
        raise BadRequest("'held' is not an object")
    pinned = {}
    for key, count in held.items():
        if not (key.isascii() and key.isdigit() and len(key) < 8 and int(key) < len(explorer.least)):
            raise BadRequest("'held' maps places of groups to counts")
        pinned[int(key)] = _count(explorer, int(key), count)
    counts = explorer.aim(what, float(value), allocator, pinned)
    return {"kept": counts, "figures": explorer.figures(counts), "aimed": True}


def _save(explorer: Explorer, document: Document) -> Document:
    (kept,) = _keys(document, "kept")
    made = explorer.save(_counts(explorer, kept))
    return {"saved": str(explorer.output), "digest": made.digest, "removed_channels": made.removed}


def _done(explorer: Explorer, document: Document) -> Document:
    _keys(document)
    return {"done": True, "saved": str(explorer.output) if explorer.saved is not None else None}


ACTIONS: dict[str, Callable[[Explorer, Document], Document]] = {
    "figures": _figures, "aim": _aim, "save": _save, "done": _done,
}  # fmt: skip
