"""Plan: the removed channels of each group and the removed blocks; the interface between deciding and rewriting.

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
from typing import Annotated, Any, Literal

from onnxprune._utils.fields import Bounds, Count
from onnxprune._utils.files.atomic_files import write_text
from onnxprune._utils.output.formatting import counted
from onnxprune._utils.output.html import html_table, share
from onnxprune._utils.strict import Format

SCHEMA = 2
CHANNELS_ONLY = 1
"""Schema of plans without blocks, written for them as well."""
FORMAT = Format("plan", 64 * 2**20, SCHEMA)


@dataclass(frozen=True)
class _Options:
    """Known options of a plan."""

    attention: Literal["heads", "head_dim"] = "heads"
    inexact: bool = False
    shapes: Mapping[str, tuple[Count | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Removal:
    """Channels removed from one group: indices `removed`, ascending, of `channels`."""

    channels: Count
    removed: tuple[int, ...]

    def __repr__(self) -> str:
        indices = ", ".join(map(str, self.removed[:6])) + (", ..." if len(self.removed) > 6 else "")
        return f"<Removal: {len(self.removed)} of {counted(self.channels, 'channel')}: {indices}>"


@dataclass(frozen=True)
class BlockRemoval:
    """Removed residual block: one operand of an addition counts as zero, or one operand of a Concat is left out.

    Attributes:
        output: Result of the addition or Concat.
        operand: Index of the operand, the result of the block's branch.
    """

    output: str
    operand: Annotated[int, Bounds(at_least=0)]


@dataclass(frozen=True, repr=False)
class Plan:
    """Removed channels and blocks of a model, independent of the criterion and allocator.

    Attributes:
        model: Fingerprint of the model; "" matches any model.
        groups: Group name -> removal; other groups keep all channels.
        criterion: Name and parameters of the criterion, for the record.
        options: Options of the analysis (attention, inexact, shapes), needed to find the same groups again.
        tool: Version that wrote the plan.
        blocks: Block name -> removed operand of its addition; other blocks are kept.
    """

    model: str
    groups: Mapping[str, Removal]
    criterion: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tool: str = ""
    blocks: Mapping[str, BlockRemoval] = field(default_factory=dict)

    def __repr__(self) -> str:
        pruned = [r for r in self.groups.values() if r.removed]
        total = counted(sum(r.channels for r in pruned), "channel")
        name = self.criterion.get("name", "no criterion")
        blocks = f" and {counted(len(self.blocks), 'block')}" if self.blocks else ""
        return f"<Plan by {name}: removes {self.removed} of {total} in {counted(len(pruned), 'group')}{blocks}>"

    def to_json(self) -> str:
        """Return the file's text: sorted, one line per group, byte-stable."""
        head = {
            "schema": SCHEMA if self.blocks else CHANNELS_ONLY,
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
        blocks = [
            f"    {json.dumps(name)}: {json.dumps({'output': b.output, 'operand': b.operand})}"
            for name, b in self.blocks.items()
        ]
        tables = _table("groups", groups) + (",\n" + _table("blocks", blocks) if blocks else "")
        return "{\n" + "\n".join(lines) + f"\n{tables}\n}}\n"

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
        blocks = f"; removed blocks: {', '.join(self.blocks)}" if self.blocks else ""
        return html_table(
            title, ["group", "channels", "kept", ""], rows,
            note=f"other groups unchanged{blocks}; digest {self.digest[:12]}",
        )  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 of the removed channels and blocks, independent of criterion and tool."""
        text = json.dumps({n: [r.channels, list(r.removed)] for n, r in sorted(self.groups.items()) if r.removed})
        if self.blocks:
            text += json.dumps({n: [b.output, b.operand] for n, b in sorted(self.blocks.items())})
        return hashlib.sha256((self.model + text).encode()).hexdigest()

    @property
    def removed(self) -> int:
        """Total number of removed channels."""
        return sum(len(r.removed) for r in self.groups.values())

    def removed_counts(self) -> dict[str, Any]:
        """Return the entries of a command's JSON for what the plan removes."""
        return {"removed_channels": self.removed, "removed_blocks": list(self.blocks)}


def _table(name: str, lines: list[str]) -> str:
    """Return a JSON object of one line per entry."""
    body = ",\n".join(lines)
    return f'  "{name}": {{' + (f"\n{body}\n  " if lines else "") + "}"


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
    return _checked(FORMAT.load(path), str(path))


def parse_plan(text: str, where: str = "plan") -> Plan:
    """Parse the text of a plan; see `load_plan`."""
    return _checked(FORMAT.parse(text, where), where)


def _checked(data: Any, where: str) -> Plan:
    if type(data) is dict and type(data.get("schema")) is int and data["schema"] == CHANNELS_ONLY:
        if "blocks" in data:
            raise FORMAT.error(f"blocks need schema {SCHEMA}", where, ("blocks",))
        data = {**data, "schema": SCHEMA, "blocks": {}}
    plan = FORMAT.fields(Plan, data, where)
    FORMAT.fields(_Options, plan.options, where, ("options",), complete=False)
    for name, removal in plan.groups.items():
        _check_indices(removal, name, where)
    places = list(plan.blocks.values())
    for name, block in plan.blocks.items():
        if places.count(block) > 1:
            raise FORMAT.error("another block has the same addition and operand", where, ("blocks", name))
    return plan


def _check_indices(removal: Removal, name: str, where: str) -> None:
    channels, removed = removal.channels, removal.removed
    if any(i < 0 or i >= channels for i in removed):
        raise FORMAT.error(f"an index is outside 0..{channels - 1}", where, ("groups", name))
    if any(a >= b for a, b in pairwise(removed)):
        raise FORMAT.error("indices are not sorted and distinct", where, ("groups", name))
    if len(removed) >= channels:
        raise FORMAT.error("no channel of the group remains", where, ("groups", name))
