"""Commands that list the registries: ops, criteria, passes."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.cli._support.options import Command, json_option


@click.command(cls=Command)
@json_option
def ops(as_json: bool) -> None:
    """List operators that have a record."""
    from onnxprune.cli._support import display
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
        display.emit_json(records)
    else:
        display.table(
            f"{len(records)} operators; any other operator locks its channels",
            ["operator", "channel rule"],
            [[(r["op"] if r["domain"] == "ai.onnx" else f"{r['domain']}::{r['op']}"), r["rule"]] for r in records],
            prose=True,
        )


@click.command(cls=Command)
@json_option
def criteria(as_json: bool) -> None:
    """List criteria that score channels."""
    from onnxprune.cli._support import display
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
        display.emit_json(found)
    else:
        rows = [[c["name"], c["scope"], f"{c['title']} ({c['source']})"] for c in found]
        display.table(f"{len(found)} criteria", ["name", "allocator", "criterion"], rows, prose=True)


@click.command(cls=Command)
@json_option
def passes(as_json: bool) -> None:
    """List graph-to-graph rewrites."""
    from onnxprune.cli._support import display
    from onnxprune.passes import all_passes

    found = [{"name": n, "title": (c.__doc__ or "").strip().split("\n")[0]} for n, c in all_passes().items()]
    if as_json:
        display.emit_json(found)
    else:
        display.table(f"{len(found)} passes", ["name", "rewrite"], [[p["name"], p["title"]] for p in found], prose=True)
