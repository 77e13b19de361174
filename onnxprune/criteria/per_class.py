"""Importance by class: which channels matter for which class, as a table in CSV or JSON.

CSV has the columns group, channel, class, importance. JSON holds the criterion and, by group and class, the importance
of every channel.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from onnxprune._utils.atomic_files import write_text
from onnxprune.criteria import all_criteria
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError

KINDS = (".csv", ".json")


def check_class_table(path: Path, criterion: str) -> None:
    """Refuses a table that could not be written, before anything is scored.

    Raises:
        OnnxPruneError: the file is neither .csv nor .json, or the criterion says nothing of classes.
    """
    if path.suffix.lower() not in KINDS:
        raise OnnxPruneError(f"a table by class is {' or '.join(KINDS)}, not {path.name!r}")
    known = {name: rule.classwise for name, rule in all_criteria().items()}
    if not known.get(criterion, True):  # one that does not exist is an error of its own
        raise OnnxPruneError(
            f"criterion {criterion!r} says nothing of single classes",
            fix=f"choose from: {', '.join(name for name, classwise in known.items() if classwise)}",
        )


def class_table(scores: Scores, kind: str) -> str:
    """The table as text.

    Args:
        scores: with importance by class.
        kind: ".csv" or ".json".

    Raises:
        OnnxPruneError: there is no importance by class.
    """
    if not scores.per_class:
        raise OnnxPruneError(
            f"these scores by {scores.criterion.get('name')!r} hold nothing of single classes",
            fix="score with senpis or loss_change; a file of scores does not keep it",
        )
    if kind == ".json":
        groups = {
            name: {str(label): values.tolist() for label, values in classes.items()}
            for name, classes in scores.per_class.items()
        }
        head = {"schema": 1, "model": scores.analysis.source.fingerprint, "criterion": dict(scores.criterion)}
        return json.dumps({**head, "groups": groups}, allow_nan=False) + "\n"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["group", "channel", "class", "importance"])
    for name, classes in scores.per_class.items():
        for label, values in classes.items():
            writer.writerows([name, channel, label, repr(v)] for channel, v in enumerate(values.tolist()))
    return out.getvalue()


def save_class_table(scores: Scores, path: Path) -> None:
    """Writes the table, .csv or .json by the file's name, whole or not at all.

    Raises:
        OnnxPruneError: as `class_table`; the file cannot be written.
    """
    write_text(path, class_table(scores, path.suffix.lower()))
