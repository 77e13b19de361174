"""Exception for known errors, and its exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_LONGEST = 1000  # characters of a line of a message


class OnnxPruneError(Exception):
    """Known error: what happened, where, and what to do.

    Args:
        what: Fact, as a sentence without a full stop ("'x.onnx' is not an ONNX model").
        where: Node, tensor, group or file concerned.
        fix: Action for the user.

    Attributes:
        partial: Results from before the failure, as a JSON value for the document of `--json`; None if there are none.
    """

    exit_code = 1
    partial: Any = None

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = _line(self.what)
        if self.where:
            text += f"\n  at: {_line(self.where)}"
        if self.fix:
            text += f"\n  try: {_line(self.fix)}"
        return text


def _line(text: str) -> str:
    """Return a text on one line and of bounded length: it may hold names out of a file."""
    text = " ".join(text.split()) if "\n" in text or "\r" in text else text
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class VerificationError(OnnxPruneError):
    """The pruned model does not compute the same as the masked original."""

    exit_code = 3


def unknown(kind: str, name: str, known: Iterable[str], synonyms: Iterable[str] = ()) -> OnnxPruneError:
    """Return an error for a name that is not in a registry, with the nearest known names.

    Args:
        kind: Kind of thing that the name stands for.
        name: The name.
        known: Names that are listed.
        synonyms: Other names that are accepted; suggested if no listed name is near.
    """
    names = sorted(known)
    near = _nearest(name, names) or _nearest(name, synonyms)
    if near:
        fix = "did you mean " + " or ".join(repr(n) for n in near) + "?"
    elif len(names) <= 20:
        fix = f"known: {', '.join(names) or 'none'}"
    else:
        fix = f"known: {', '.join(names[:10])} ... ({len(names)} in all)"
    return OnnxPruneError(f"unknown {kind} {name!r}", fix=fix)


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three names that resemble another one; of names that differ in case alone the first."""
    folded: dict[str, str] = {}
    for each in known:
        folded.setdefault(each.lower(), each)
    return [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=3)]
