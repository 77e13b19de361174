"""Measure one model for `tools/zoo.py`, in a process of its own.

    python tools/zoo_parts/zoo_measure.py MODEL.onnx [--no-proofs]      # one line of JSON

Load, analyze, prune a random half of every group and to half of the MACs by l2, verify both: the random half at batch
1 and 5, the other at batch 1. Where a statistic holds channels back, the random half comes again with those free. What
fails is in the row, with the stage it failed in.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

import onnxprune as op
from onnxprune.analysis.coupling import components
from onnxprune.verification import verify

Row = dict[str, Any]
WARM_UP = Path(__file__).resolve().parents[2] / "models" / "digits_cnn.onnx"


class Clock:
    """Wall and CPU seconds between laps."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def lap(self) -> tuple[float, float]:
        """(wall, CPU) seconds since the last lap."""
        before = self.wall, self.cpu
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self.wall - before[0], self.cpu - before[1]


def measure(path: Path, row: Row, *, proofs: bool = True) -> None:
    """Fill a row as far as possible; `stage` names the last stage.

    Raises:
        Exception: whatever goes wrong.
    """
    op.analyze(op.load(WARM_UP))  # modules that analysis imports on first use are not the model's cost
    clock = Clock()
    row["stage"] = "load"
    model = op.load(path)
    row["load_s"], _ = clock.lap()
    row["nodes"] = len(model.graph.nodes)
    row["stage"] = "analyze"
    analysis = op.analyze(model)
    row["analyze_s"], row["analyze_cpu_s"] = clock.lap()
    row["groups"] = len(analysis)
    row["channels"] = sum(g.channels for g in analysis)
    row["locked"] = locked_causes(analysis)
    if not analysis.groups:
        return
    row["stage"] = "plan"
    clock.lap()
    target = None
    try:
        target = op.plan(op.score(analysis, "l2"), op.Target(macs=0.5))
    except op.OnnxPruneError as err:
        row["target"] = {"error": str(err).splitlines()[0][:200]}
    row["plan_s"], _ = clock.lap()
    _cut(row, "random", analysis, random_half(analysis), proofs)
    if target is not None:
        _cut(row, "target", analysis, target, proofs)
    if any(lock.inexact for lock in analysis.locked):
        row["stage"] = "analyze inexact"
        wide = op.analyze(model, include_inexact=True)
        inside = [g.channels for g in wide if not g.exact]
        _cut(row, "inexact", wide, random_half(wide), proofs)
        row["inexact"] |= {
            "groups": len(wide), "inexact_groups": len(inside), "channels": sum(g.channels for g in wide),
            "inexact_channels": sum(inside),
        }  # fmt: skip


def _cut(row: Row, kind: str, analysis: op.Analysis, plan: op.Plan, proofs: bool) -> None:
    """Prune, measure and prove: a random half at batch 1 and 5, a target at batch 1."""
    clock = Clock()
    row["stage"] = f"strip {kind}"
    result = op.compile_plan(analysis.source, plan, analysis=analysis, check=False)
    row[f"{kind}_strip_s"], _ = clock.lap()
    row[kind] = {what: result.after.ratio(result.before, what) for what in ("macs", "params")}
    row["macs"], row["params"] = result.before.macs, result.before.params
    if kind != "target":
        row[kind]["params_aside"] = kept_aside(analysis, plan)
        row[kind]["params_aside_up"] = kept_aside(analysis, random_half(analysis, up=True))
    if not proofs:
        return
    row["stage"] = f"verify {kind}"
    clock.lap()
    proof = verify(analysis, plan, result.model)
    row[f"{kind}_verify_s"], _ = clock.lap()
    row[kind] |= {"max_relative": proof.max_relative, "effect": proof.effect, "sizes": list(proof.sizes)}


def random_half(analysis: op.Analysis, seed: int = 0, *, up: bool = False) -> op.Plan:
    """Return half of the channels of every group, rounded down (or up, keeping at least one), drawn at random."""
    rng = np.random.default_rng(seed)
    half = {g.name: (g.channels + (up and g.channels > 1)) // 2 for g in analysis}
    gone = {g.name: rng.choice(g.channels, half[g.name], replace=False) for g in analysis}
    removals = {g.name: op.Removal(g.channels, tuple(sorted(gone[g.name].tolist()))) for g in analysis}
    return op.Plan(analysis.source.fingerprint, removals, options=analysis.choices.options())


def locked_causes(analysis: op.Analysis) -> list[list[object]]:
    """[operator, reason, groups, channels, name of the first group] for every cause."""
    causes: dict[tuple[str, str], list[Any]] = {}
    for lock in analysis.locked:
        cause = causes.setdefault((lock.op, lock.reason), [0, 0, lock.name])
        cause[0] += 1
        cause[1] += lock.channels
    return [[*key, *cause] for key, cause in sorted(causes.items())]


# Consumers of a model's answers: its output, or a detector's selection of boxes.
ANSWERS = ("output", "Gather", "GatherND", "NonZero", "Softmax", "TopK")


def kept_aside(analysis: op.Analysis, plan: op.Plan) -> float:
    """Return the kept share of parameters, without the layers whose outputs are the model's answers."""
    table = analysis.table
    root = components(table.count, table.ties)
    last: set[int] = set()
    for lock in table.locks:
        if lock.op in ANSWERS:
            last.update(root[lock.labels].tolist())
    kept = analysis.kept(plan)
    before = after = 0
    for t in analysis.model.graph.tensors().values():
        if not isinstance(t, gs.Constant) or t.dtype.kind != "f":
            continue
        axes = table.constants.get(t.name, [])
        if any(a is not None and len(last) and int(root[a[0]]) in last for a in axes):
            continue
        size = left = 1
        for place, n in enumerate(t.shape):
            keep = analysis.keep(t.name, place, kept)
            size *= n
            left *= n if keep is None else int(keep.sum())
        before += size
        after += left
    return after / before if before else 1.0


def peak_mb() -> float:
    """Largest resident memory of this process; getrusage would count what the process that started it had."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def rounded(value: Any) -> Any:
    """Round floats to four significant digits, the accuracy of these figures."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def main() -> int:
    """Run the command line; print the row even after a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--no-proofs", action="store_true")
    args = parser.parse_args()
    row: Row = {}
    start = time.perf_counter()
    try:
        measure(args.model, row, proofs=not args.no_proofs)
        del row["stage"]
    except Exception as err:  # a failure is a row too, and a bug has a name
        known = isinstance(err, op.OnnxPruneError)
        text = " ".join(str(err).split())[:300] or "no message"
        row["error"] = f"{row.pop('stage', 'start')}: {'' if known else type(err).__name__ + ': '}{text}"
    row["total_s"] = time.perf_counter() - start
    row["peak_mb"] = peak_mb()
    print(json.dumps(rounded(row)))
    return int("error" in row)


if __name__ == "__main__":
    sys.exit(main())
