"""Next commands after a model was written: accuracy, recovery, latency."""

from __future__ import annotations

import shlex
from pathlib import Path

DATA = "DATA"
"""Stands for the user's data in commands that are suggested."""


def next_steps(original: Path, pruned: Path, plan: Path | None, *, measured: bool, recovered: bool) -> str:
    """Return lines for the end of a command that writes a pruned model.

    Args:
        original: File of the original.
        pruned: File that was written.
        plan: File of its plan; None if there is none.
        measured: Whether real data was given, so that the output shows a metric.
        recovered: Whether the remaining weights were re-solved, or cannot be.
    """
    whole, small = (shlex.quote(str(p)) for p in (original, pruned))
    lines = [] if measured else ["accuracy: not measured (no real samples were given)"]
    commands = [f"onnxprune evaluate {small} --data {DATA}"]
    if not recovered and plan is not None:
        better = shlex.quote(str(pruned.with_name(f"{pruned.stem}-recovered{pruned.suffix}")))
        commands.append(f"onnxprune recover {whole} {small} {shlex.quote(str(plan))} --data {DATA} -o {better}")
    elif not recovered:
        lines.append("the same command with --data recovers accuracy")
    commands.append(f"onnxprune bench {whole} {small}")
    return "\n".join([*lines, "next:", *(f"  {command}" for command in commands)])
