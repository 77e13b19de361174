"""Models that once failed, as small files in tests/regressions/: NAME.onnx (or .onnx.xz) and NAME.json."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import onnx

from onnxprune.analysis.coupling import Analysis
from onnxprune.plans import Plan, Removal

FOLDER = Path(__file__).parents[2] / "regressions"
LARGE = 10_000  # bytes: compressed above


def store(name: str, proto: onnx.ModelProto, plan: Plan | None, notes: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write a model and the channels removed from it; replace one of the same name."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{name}.onnx*"):
        old.unlink()
    data = proto.SerializeToString()
    path = folder / (f"{name}.onnx.xz" if len(data) > LARGE else f"{name}.onnx")
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    groups = None if plan is None else {n: list(r.removed) for n, r in plan.groups.items() if r.removed}
    (folder / f"{name}.json").write_text(json.dumps({**notes, "removed": groups}, indent=1) + "\n", encoding="utf-8")
    return path


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the stored models."""
    return sorted(p.stem for p in folder.glob("*.json"))


def stored(name: str, folder: Path = FOLDER) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a model and its notes."""
    notes = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    packed = folder / f"{name}.onnx.xz"
    data = lzma.decompress(packed.read_bytes()) if packed.exists() else (folder / f"{name}.onnx").read_bytes()
    return onnx.load_from_string(data), notes


def plan_of(analysis: Analysis, removed: dict[str, list[int]] | None) -> Plan:
    """Return the stored removal for groups that are still free; without one the first channel of every group."""
    groups = {}
    for g in analysis.groups:
        gone = [i for i in (removed.get(g.name, []) if removed is not None else [0]) if i < g.channels]
        if gone and len(gone) < g.channels:
            groups[g.name] = Removal(g.channels, tuple(gone))
    return Plan(analysis.source.fingerprint, groups)
