"""Validation and answers of the browser's requests, without HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError
from onnxprune.reports.explorer._session import Explorer

Document = dict[str, Any]
_LARGEST = 1e12
FORMAT = Format("request", 2**20)


class BadRequest(ValueError):
    """Request that the page does not send."""


@dataclass(frozen=True)
class _Nothing:
    """Empty body of a request."""


@dataclass(frozen=True)
class _Kept:
    """Body with the channels that each group keeps, and the removed blocks."""

    kept: tuple[int, ...]
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Aim:
    """Body of a request for counts that meet a target."""

    what: str
    value: float
    scope: str | None
    held: Mapping[str, int]
    blocks: tuple[int, ...] = ()


def answer(explorer: Explorer, action: str, body: bytes) -> Document:
    """Answer a request.

    A failure with a reason (a target out of reach, a full disk) is an answer as well: `problem`.

    Args:
        explorer: Explorer of the model.
        action: One of `ACTIONS`.
        body: JSON.

    Raises:
        BadRequest: Not JSON, unknown or missing keys, wrong types, counts that the constraints forbid.
    """
    kind, act = ACTIONS[action]
    try:
        request = FORMAT.fields(kind, FORMAT.parse(body, "body"), "body", complete=False)
    except OnnxPruneError as err:
        raise BadRequest(f"{err.what} ({err.where})") from err
    try:
        return act(explorer, request)
    except OnnxPruneError as err:
        return {"problem": {"what": err.what, "where": err.where, "fix": err.fix}}


def _count(explorer: Explorer, i: int, value: int) -> int:
    least, most = explorer.least[i], explorer.analysis.groups[i].channels
    if not least <= value <= most:
        raise BadRequest(f"group {i} keeps {least} to {most} channels")
    return value


def _counts(explorer: Explorer, kept: tuple[int, ...]) -> list[int]:
    if len(kept) != len(explorer.least):
        raise BadRequest(f"'kept' is not a list of {len(explorer.least)} counts")
    return [_count(explorer, i, count) for i, count in enumerate(kept)]


def _blocks(explorer: Explorer, blocks: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(blocks)) != len(blocks) or not all(0 <= i < len(explorer.blocks) for i in blocks):
        raise BadRequest(f"'blocks' is a list of different places below {len(explorer.blocks)}")
    return blocks


def _figures(explorer: Explorer, request: _Kept) -> Document:
    counts, blocks = _counts(explorer, request.kept), _blocks(explorer, request.blocks)
    places = explorer.places([explorer.blocks[i] for i in blocks])
    return {"kept": counts, "blocks": places, "figures": explorer.figures(counts, blocks), "aimed": False}


def _aim(explorer: Explorer, request: _Aim) -> Document:
    known = {aim["what"] for aim in explorer.aims}
    if request.what not in known:
        raise BadRequest(f"'what' is one of {', '.join(sorted(known))}")
    if not -_LARGEST < request.value < _LARGEST:
        raise BadRequest("'value' is too large a number")
    if request.scope is not None and request.scope not in explorer.allocators:
        raise BadRequest(f"'scope' is null or one of {', '.join(explorer.allocators)}")
    pinned = {}
    for key, count in request.held.items():
        if not (key.isascii() and key.isdigit() and len(key) < 8 and int(key) < len(explorer.least)):
            raise BadRequest("'held' maps places of groups to counts")
        pinned[int(key)] = _count(explorer, int(key), count)
    fixed = _blocks(explorer, request.blocks)
    counts, blocks = explorer.aim(request.what, request.value, request.scope, pinned, fixed)
    return {"kept": counts, "blocks": blocks, "figures": explorer.figures(counts, blocks), "aimed": True}


def _save(explorer: Explorer, request: _Kept) -> Document:
    made = explorer.save(_counts(explorer, request.kept), _blocks(explorer, request.blocks))
    return {
        "saved": str(explorer.output),
        "digest": made.digest,
        **made.removed_counts(),
    }


def _done(explorer: Explorer, request: _Nothing) -> Document:
    return {"done": True, "saved": str(explorer.output) if explorer.saved is not None else None}


ACTIONS: dict[str, tuple[type[Any], Callable[[Explorer, Any], Document]]] = {
    "figures": (_Kept, _figures), "aim": (_Aim, _aim), "save": (_Kept, _save), "done": (_Nothing, _done),
}  # fmt: skip
"""By the name of an action: what its body holds, and what it does."""
