"""What is left of transformers and their kin when half of every group goes, the residual stream included.

    python tools/inexact_structures.py [NAME ...]

Reads models/structures (all whose stream is held back by a statistic, or those named), fills them with the random
weights of the tests, removes a random half of every group with inexact groups on, verifies at batch 1 and 5, and prints
the rows of docs/coverage.md. One model at a time, in a process of its own: vit_b_32 takes 2.4 GB.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("convnext_tiny", "maxvit_t", "swin_t", "vit_b_32")


def row(name: str) -> str:
    """One line of the table."""
    sys.path.insert(0, str(ROOT / "tests"))
    import structures

    import onnxprune as op

    model = structures.filled(structures.FOLDER / f"{name}.onnx.xz")
    analysis = op.analyze(model, include_inexact=True)
    rng = np.random.default_rng(0)
    groups = {}
    for g in analysis:
        gone = rng.choice(g.channels, g.channels // 2, replace=False)
        groups[g.name] = op.Removal(g.channels, tuple(sorted(gone.tolist())))
    done = op.compile_plan(model, op.Plan(model.fingerprint, groups, options={"inexact": True}), analysis=analysis)
    proof = done.verification
    assert proof is not None
    inexact = [g for g in analysis if not g.exact]
    locked = ", ".join(sorted({lock.op for lock in analysis.locked}))
    shares = [f"{done.after.ratio(done.before, what):.1%}" for what in ("params", "macs")]
    return (
        f"| {name} | {len(analysis)} | {len(inexact)} | {sum(g.channels for g in analysis):,} | "
        f"{sum(g.channels for g in inexact):,} | {' | '.join(shares)} | {locked} | {proof.max_relative:.1e} |"
    )


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--one"]:
        print(row(sys.argv[2]))
        return
    found = [f"{name}.{exporter}" for name in NAMES for exporter in ("dyn", "ts")]
    print("| model | groups | inexact | channels | in inexact | params kept | MACs kept | locked | difference |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in sys.argv[1:] or found:
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    main()
