"""Plan: the removed channels of each group; the interface between deciding and rewriting.

`plan.json` is read strictly: see docs/plan-format.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from onnxprune._utils.atomic_files import write_text
from onnxprune._utils.formatting import counted
from onnxprune._utils.html import html_table, share
from onnxprune.errors import OnnxPruneError

SCHEMA = 1
MAX_PLAN_BYTES = 64 * 2**20
_KEYS = {"schema", "tool", "model", "criterion", "options", "groups"}
_OPTIONS = {"attention", "inexact"}


@dataclass(frozen=True, repr=False)
class Removal:
    """Channels removed from one group: indices `removed`, ascending, of `channels`."""

    channels: int
    removed: tuple[int, ...]

    def __repr__(self) -> str:
        indices = ", ".join(map(str, self.removed[:6])) + (", ..." if len(self.removed) > 6 else "")
        return f"<Removal: {len(self.removed)} of {counted(self.channels, 'channel')}: {indices}>"


@dataclass(frozen=True, repr=False)
class Plan:
    """Removed channels of a model, independent of the criterion and allocator.

    Attributes:
        model: Fingerprint of the model; "" matches any model.
        groups: Group name -> removal; other groups keep all channels.
        criterion: Name and parameters of the criterion, for the record.
        options: Options of the analysis (attention, inexact), needed to find the same groups again.
        tool: Version that wrote the plan.
    """

    model: str
    groups: Mapping[str, Removal]
    criterion: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tool: str = ""

    def __repr__(self) -> str:
        pruned = [r for r in self.groups.values() if r.removed]
        total = counted(sum(r.channels for r in pruned), "channel")
        name = self.criterion.get("name", "no criterion")
        return f"<Plan by {name}: removes {self.removed} of {total} in {counted(len(pruned), 'group')}>"

    def to_json(self) -> str:
        """Return the file's text: sorted, one line per group, byte-stable."""
        head = {
            "schema": SCHEMA,
            "tool": self.tool,
            "model": self.model,
            "criterion": dict(self.criterion),
            "options": dict(self.options),
        }
        lines = [f"  {json.dumps(k)}: {json.dumps(v, sort_keys=True)}," for k, v in head.items()]
        groups = [
            f"    {json.dumps(name)}: {json.dumps({'channels': r.channels, 'removed': list(r.removed)})}"
            for name, r in self.groups.items()
            if r.removed
        ]
        body = ",\n".join(groups)
        return "{\n" + "\n".join(lines) + '\n  "groups": {' + (f"\n{body}\n  " if groups else "") + "}\n}\n"

    def _repr_html_(self) -> str:
        """Return the removed channels of each group as an HTML table."""
        rows = [
            [name, str(r.channels), str(r.channels - len(r.removed)), share(r.channels - len(r.removed), r.channels)]
            for name, r in self.groups.items()
            if r.removed
        ]
        title = (
            f"removed: {self.removed} channels of {len(rows)} groups, by {self.criterion.get('name', 'no criterion')}"
        )
        return html_table(
            title, ["group", "channels", "kept", ""], rows, note=f"other groups unchanged; digest {self.digest[:12]}"
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the removed channels, independent of criterion and tool."""
        text = json.dumps({n: [r.channels, list(r.removed)] for n, r in sorted(self.groups.items()) if r.removed})
        return hashlib.sha256((self.model + text).encode()).hexdigest()

    @property
    def removed(self) -> int:
        """Total number of removed channels."""
        return sum(len(r.removed) for r in self.groups.values())


NOTHING = Plan("", {})
"""Plan that removes nothing and matches every model."""


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write `plan.json` atomically.

    Raises:
        OnnxPruneError: The file cannot be written.
    """
    write_text(Path(path), plan.to_json())


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan strictly.

    Raises:
        OnnxPruneError: Not JSON, a duplicate or unknown key, a wrong type, indices that are not sorted, distinct and
            inside the group, or a group without remaining channels.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise OnnxPruneError(f"{str(path)!r} is too large for a plan")
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise OnnxPruneError(f"cannot read the plan {str(path)!r}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise OnnxPruneError(f"the plan {str(path)!r} is not UTF-8 text") from err
    return parse_plan(text, str(path))


def parse_plan(text: str, where: str = "plan") -> Plan:
    """Parse the text of a plan; see `load_plan`."""

    def fail(what: str, place: str = "") -> OnnxPruneError:
        return OnnxPruneError(f"not a valid plan: {what}", where=f"{where}{': ' + place if place else ''}")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                raise fail(f"the key {key!r} is given twice")
            out[key] = value
        return out

    def no_constant(name: str) -> Any:
        raise fail(f"{name} is not JSON")

    try:
        data = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except (json.JSONDecodeError, RecursionError) as err:
        raise fail(f"not JSON ({err})") from err
    if not isinstance(data, dict):
        raise fail("not an object")
    if data.get("schema") != SCHEMA or isinstance(data.get("schema"), bool):
        raise fail(f"schema {data.get('schema')!r}; this version reads {SCHEMA}")
    for key in data.keys() ^ _KEYS:
        raise fail(f"unknown key {key!r}" if key in data else f"the key {key!r} is missing")
    for key, kind in (("tool", str), ("model", str), ("criterion", dict), ("options", dict), ("groups", dict)):
        if not isinstance(data[key], kind):
            raise fail(f"{key!r} has the wrong type")
    for key in data["options"].keys() - _OPTIONS:
        raise fail(f"unknown key {key!r}", "options")
    if data["options"].get("attention", "heads") not in ("heads", "head_dim"):
        raise fail(f"attention {data['options']['attention']!r}; known: heads, head_dim", "options")
    if not isinstance(data["options"].get("inexact", False), bool):
        raise fail("'inexact' is not true or false", "options")
    groups: dict[str, Removal] = {}
    for name, entry in data["groups"].items():
        groups[name] = _removal(name, entry, fail)
    return Plan(data["model"], groups, data["criterion"], data["options"], data["tool"])


def _removal(name: str, entry: Any, fail: Any) -> Removal:
    place = f"group {name!r}"
    if not isinstance(entry, dict):
        raise fail("not an object", place)
    for key in entry.keys() ^ {"channels", "removed"}:
        raise fail(f"unknown key {key!r}" if key in entry else f"the key {key!r} is missing", place)
    channels, removed = entry["channels"], entry["removed"]
    if type(channels) is not int or channels < 1:
        raise fail("'channels' is not a positive integer", place)
    if not isinstance(removed, list) or any(type(i) is not int for i in removed):
        raise fail("'removed' is not a list of integers", place)
    if any(i < 0 or i >= channels for i in removed):
        raise fail(f"an index is outside 0..{channels - 1}", place)
    if any(a >= b for a, b in pairwise(removed)):
        raise fail("indices are not sorted and distinct", place)
    if len(removed) >= channels:
        raise fail("no channel of the group remains", place)
    return Removal(channels, tuple(removed))
