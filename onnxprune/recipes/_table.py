"""Table of a recipe's run: every step with the accuracy and cost of its model, and its duration."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class StepRow:
    """Row of a step, with the figures of its model; None if it made none.

    Attributes:
        step: its folder; 00-original is the recipe's model.
        turn: iteration of a loop, "2/8".
        model: the file.
        top1, top1_error, loss: on the test data; None without test data.
        macs: per sample; `params`, `bytes` of the model.
        latency: median seconds of a run; None if not measured.
        seconds: duration of the step; of a resumed step, since its resumption.
        note: remark of the step.
        metric, value, value_error: on the test data, for other metrics than those of classifiers.
    """

    step: str
    turn: str
    model: str | None
    top1: float | None
    top1_error: float | None
    loss: float | None
    macs: int | None
    params: int | None
    bytes: int | None
    latency: float | None
    seconds: float | None
    note: str = ""
    metric: str | None = None
    value: float | None = None
    value_error: float | None = None


@dataclass(frozen=True)
class RunTable:
    """Table of a recipe's run.

    Attributes:
        name: name of the recipe.
        rows: its steps.
        sources: sources of the data.
        changes: changes to the recipe's text.
        machine: processor, runtime, batch and threads of the latency; "" if there is none or an earlier version
            measured it.
    """

    name: str
    rows: Sequence[StepRow] = field(repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    changes: Sequence[str] = ()
    machine: str = ""

    @property
    def final(self) -> str:
        """Return the file of the last model."""
        return next(r.model for r in reversed(self.rows) if r.model is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "schema": 1, "recipe": self.name, "model": self.final, "sources": dict(self.sources),
            "changes": list(self.changes), "machine": self.machine or None, "steps": [asdict(r) for r in self.rows],
        }  # fmt: skip

    def to_csv(self) -> str:
        """Return CSV with one line per step."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([f.name for f in fields(StepRow)])
        writer.writerows(["" if v is None else v for v in asdict(r).values()] for r in self.rows)
        return out.getvalue()
