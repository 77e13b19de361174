"""Commands that list the registries: ops, criteria, passes."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.cli._options import Command, json_option


@click.command(cls=Command)
@json_option
def ops(as_json: bool) -> None:
    """Operators that have a record, from the registry itself."""
    from onnxprune.cli import _display
    from onnxprune.ops import all_ops

    records: list[dict[str, Any]] = [
        {
            "domain": domain or "ai.onnx",
            "op": op,
            "rule": (spec.couple.__doc__ or "").strip().split("\n")[0],
            "patch": spec.patch is not None,
            "macs": spec.macs is not None,
        }
        for (domain, op), spec in all_ops().items()
    ]
    if as_json:
        _display.emit_json(records)
    else:
        _display.table(
            f"{len(records)} operators; any other locks what it touches",
            ["operator", "how channels pass"],
            [[(r["op"] if r["domain"] == "ai.onnx" else f"{r['domain']}::{r['op']}"), r["rule"]] for r in records],
            prose=True,
        )


@click.command(cls=Command)
@json_option
def criteria(as_json: bool) -> None:
    """Criteria that score channels."""
    from onnxprune.cli import _display
    from onnxprune.criteria import all_criteria

    found = [
        {
            "name": n,
            "title": c.title,
            "source": c.source,
            "reduce": c.default_reduce,
            "normalize": c.default_normalize,
            "scope": "uniform" if "global" in c.forbids else c.default_allocator,
        }
        for n, c in all_criteria().items()
    ]
    if as_json:
        _display.emit_json(found)
    else:
        rows = [[c["name"], c["scope"], f"{c['title']} ({c['source']})"] for c in found]
        _display.table(f"{len(found)} criteria", ["name", "allocator", "what it is"], rows, prose=True)


@click.command(cls=Command)
@json_option
def passes(as_json: bool) -> None:
    """Graph-to-graph rewrites."""
    from onnxprune.cli import _display
    from onnxprune.passes import all_passes

    found = [{"name": n, "title": (c.__doc__ or "").strip().split("\n")[0]} for n, c in all_passes().items()]
    if as_json:
        _display.emit_json(found)
    else:
        _display.table(
            f"{len(found)} passes", ["name", "what it does"], [[p["name"], p["title"]] for p in found], prose=True
        )
