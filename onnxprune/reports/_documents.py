"""Strict reading of JSON that commands wrote, recognised by content instead of file name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError

FORMAT = Format("document", 256 * 2**20)

# A document has the first kind whose keys are all present.
_KINDS = {
    "plan": {"schema", "tool", "model", "criterion", "options", "groups"},
    "scores": {"schema", "model", "criterion", "normalize", "groups"},
    "run": {"schema", "recipe", "model", "steps"},
    "compiled": {"output", "before", "after", "plan_digest", "verification"},
    "verification": {"max_relative", "tolerance", "outputs", "inputs", "effect"},
    "recovery": {"stages", "samples", "held_out", "original_top1"},
    "training": {"metric", "before", "after", "history", "epoch"},
    "accuracy": {"top1", "top1_error", "loss", "images"},
    "evaluation": {"task", "metric", "samples", "provider"},
    "profile": {"models", "layers"},
    "inspection": {"fingerprint", "groups", "locked", "macs"},
}
_CURVES = {"baseline", "higher_is_better", "metric", "groups"}


@dataclass(frozen=True)
class Document:
    """Parsed file with its kind: one of those above, "curves" or "bench"."""

    kind: str
    path: Path
    value: Any


def recognise(path: Path) -> Document:
    """Return the document in a file.

    Raises:
        OnnxPruneError: Unreadable, not strict JSON, or JSON of a kind that no report shows.
    """
    value = FORMAT.load(path)
    if isinstance(value, dict):
        if value.keys() >= _CURVES:
            return Document("curves", path, value)
        for kind, keys in _KINDS.items():
            if value.keys() >= keys:
                return Document(kind, path, value)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, dict) and {"latency", "cost"} <= v.keys() for v in value)
    ):
        return Document("bench", path, value)
    raise OnnxPruneError("not a document that a report shows", where=str(path))


class Fields:
    """Typed access to an untrusted table.

    A report shows what there is: keys may be missing or unknown, so such a table is not read into a dataclass.

    Args:
        value: the table.
        where: place in the document, for errors.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise OnnxPruneError("not an object", where=where)
        self.value: Mapping[str, Any] = value
        self.where = where

    def _wrong(self, key: str, kind: str) -> OnnxPruneError:
        return OnnxPruneError(f"{key!r} is not {kind}", where=self.where)

    def number(self, key: str) -> float | None:
        """Return a finite number, or None if the key is absent.

        Raises:
            OnnxPruneError: the value is something else.
        """
        value = self.value.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or abs(value) > 1e300 or not isfinite(value):
            raise self._wrong(key, "a number")
        return float(value)

    def count(self, key: str) -> int | None:
        """Return a count, or None if the key is absent."""
        value = self.number(key)
        if value is None:
            return None
        if value < 0 or value != int(value):
            raise self._wrong(key, "a count")
        return int(value)

    def text(self, key: str) -> str:
        """Return a text, "" if the key is absent."""
        value = self.value.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def flag(self, key: str) -> bool:
        """Return a boolean, false if the key is absent."""
        value = self.value.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def table(self, key: str) -> Fields:
        """Return a nested table."""
        return Fields(self.value.get(key), f"{self.where}, {key}")

    def tables(self, key: str) -> list[Fields]:
        """Return a nested list of tables."""
        value = self.value.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return [Fields(v, f"{self.where}, {key} {i + 1}") for i, v in enumerate(value)]
