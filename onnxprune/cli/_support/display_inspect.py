"""Tables and document of `inspect`."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any

from onnxprune._utils.output.formatting import count, seconds, size
from onnxprune.cli._support.display import WIDTH, table

if TYPE_CHECKING:
    from onnxprune.analysis.blocks import Block
    from onnxprune.analysis.cost import CostModel
    from onnxprune.analysis.coupling import Analysis
    from onnxprune.planning.targets import LatencyPredictor


def inspect_document(analysis: Analysis, name: str, latency: LatencyPredictor | None = None) -> dict[str, Any]:
    """Return the document of `inspect --json`; `latency` adds what the removal of each block saves."""
    from onnxprune.analysis.cost import CostModel

    model = CostModel(analysis)
    cost = model.baseline
    graph = analysis.source.graph
    return {
        "model": name,
        "fingerprint": analysis.source.fingerprint,
        "opset": analysis.source.opset,
        "inputs": {t.name: [n if isinstance(n, int) else str(n) for n in t.shape or ()] for t in graph.inputs},
        "outputs": [t.name for t in graph.outputs],
        "sizes": {name: list(shape) for name, shape in analysis.witness.assumed_shapes.items()},
        "macs": cost.macs,
        "params": cost.params,
        "bytes": cost.bytes,
        "memory": cost.memory,
        **({"latency": latency.baseline} if latency is not None else {}),
        "groups": [
            {
                "name": g.name,
                "channels": g.channels,
                "width": g.width,
                "op": g.op,
                "residual": g.residual,
                "kind": g.kind,
                "exact": g.exact,
                "statistics": list(g.statistics),
                "sites": [{"tensor": t, "axis": a} for t, a in g.sites],
            }
            for g in analysis.groups
        ],
        "blocks": [_block(b, model, latency) for b in analysis.blocks],
        "locked": [
            {
                "name": k.name,
                "channels": k.channels,
                "node": k.node,
                "op": k.op,
                "reason": k.reason,
                "inexact": k.inexact,
            }
            for k in analysis.locked
        ],
        "hints": _hints(analysis),
    }


def _block(block: Block, model: CostModel, latency: LatencyPredictor | None) -> dict[str, Any]:
    """Return a block with what its removal saves; nothing for a block that is not free."""
    kept = model.analysis.kept()
    kept[block.components if block.component else []] = False
    after = model.cost(kept)
    return {
        "name": block.name,
        "kind": block.kind,
        "entry": block.entry,
        "output": block.output,
        "operand": block.operand,
        "nodes": len(block.nodes),
        "macs": model.baseline.macs - after.macs,
        "params": model.baseline.params - after.params,
        **({"latency": latency.baseline - latency.seconds(kept)} if latency is not None else {}),
        "reason": block.reason,
    }


def inspect_tables(analysis: Analysis, name: str, latency: LatencyPredictor | None = None) -> None:
    """Print the tables of `inspect`."""
    doc = inspect_document(analysis, name, latency)
    inputs = ", ".join(f"{n} [{', '.join(map(str, s))}]" for n, s in doc["inputs"].items())
    sys.stdout.write(f"{name}: opset {doc['opset']}, input {inputs}\n")
    at = ", ".join(f"{n} {'x'.join(map(str, shape[1:]))}" for n, shape in doc["sizes"].items())
    sys.stdout.write(f"{count(doc['macs'])} MACs per sample{f' ({at})' if at else ''}, ")
    sys.stdout.write(f"{count(doc['params'])} parameters, {size(doc['bytes'])}, ")
    sys.stdout.write(f"{size(doc['memory'])} of activations\n")
    rows = [
        [
            g.name + ("" if g.exact else f" (inexact: {', '.join(g.statistics)})"),
            g.kind + (" (residual)" if g.residual and g.kind != "stream" else ""),
            str(g.channels), str(g.width), str(len(g.sites)), g.op,
        ]
        for g in analysis.groups
    ]  # fmt: skip
    total = sum(g.channels for g in analysis.groups)
    table(
        f"{len(rows)} groups, {total} channels can be removed",
        ["group", "kind", "channels", "width", "tensors", "made by"],
        rows,
    )
    if doc["blocks"]:
        table(
            f"{len(analysis.free_blocks)} of {len(analysis.blocks)} residual blocks can be removed (--only blocks)",
            ["block", "kind", "nodes", "MACs", "params", *(["latency"] if latency else []), "not free because"],
            [[b["name"], b["kind"], str(b["nodes"]), *_savings(b), b["reason"]] for b in doc["blocks"]],
            prose=True,
        )  # fmt: skip
    if analysis.locked:
        table(
            "locked",
            ["group", "channels", "because"],
            [
                [
                    k.name,
                    str(k.channels),
                    f"it {k.reason}: {k.op} {k.node}" + (" (--include-inexact frees it)" if k.inexact else ""),
                ]
                for k in analysis.locked
            ],
            prose=True,
        )
    for hint in doc["hints"]:
        sys.stdout.write(textwrap.fill(hint, WIDTH) + "\n")


def _savings(block: dict[str, Any]) -> list[str]:
    """Return what the removal of a block saves, empty for a block that is not free."""
    found = [count(block["macs"]), count(block["params"])]
    found += [seconds(block["latency"])] if "latency" in block else []
    return [""] * len(found) if block["reason"] else found


def _hints(analysis: Analysis) -> list[str]:
    """Return hints on registering the operators without a record, one for each operator."""
    from onnxprune.ops import find

    missing = dict.fromkeys((n.domain or "ai.onnx", n.op) for n in analysis.model.graph.nodes if find(n) is None)
    return [
        f"{domain}::{op} has no record, so its channels are locked: add a record in a package, through the entry-point "
        f"group onnxprune.ops under the name {domain!r} (docs/extending.md)"
        for domain, op in missing
    ]
