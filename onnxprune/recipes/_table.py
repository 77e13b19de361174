"""What a run of a recipe ends with: every step with what its model is worth, what it costs, and how long it took."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class StepRow:
    """A step. Figures are those of the model it made; None where it made none.

    Attributes:
        step: its folder; 00-original is the recipe's model.
        turn: which turn of a loop, "2/8".
        model: the file.
        top1, top1_error, loss: on the test data; None where there is none.
        macs: per sample; `params`, `bytes` of the model.
        latency: median seconds of a run; None where it was not asked for.
        seconds: that the step took; of a step that was resumed, since then.
        note: what it says of itself.
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


@dataclass(frozen=True)
class RunTable:
    """A run of a recipe.

    Attributes:
        name: of the recipe.
        rows: its steps.
        sources: what the data was loaded from.
        changes: what was set besides the recipe's text.
    """

    name: str
    rows: Sequence[StepRow] = field(repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    changes: Sequence[str] = ()

    @property
    def final(self) -> str:
        """The file of the model that the last step left."""
        return next(r.model for r in reversed(self.rows) if r.model is not None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1, "recipe": self.name, "model": self.final, "sources": dict(self.sources),
            "changes": list(self.changes), "steps": [asdict(r) for r in self.rows],
        }  # fmt: skip

    def to_csv(self) -> str:
        """One line per step."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([f.name for f in fields(StepRow)])
        writer.writerows(["" if v is None else v for v in asdict(r).values()] for r in self.rows)
        return out.getvalue()
