"""Importance of channels for single classes, as a table in CSV or JSON.

CSV has the columns group, channel, class, importance. JSON holds the criterion and, by group and class, the importance
of every channel.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from onnxprune._utils.files.atomic_files import write_text
from onnxprune.criteria import all_criteria
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError

KINDS = (".csv", ".json")


def check_class_table(path: Path, criterion: str) -> None:
    """Raise if a table could not be written, before anything is scored.

    Raises:
        OnnxPruneError: The file is neither .csv nor .json, or the criterion has no importance by class.
    """
    if path.suffix.lower() not in KINDS:
        raise OnnxPruneError(f"a table by class must be {' or '.join(KINDS)}, not {path.name!r}")
    known = {name: rule.classwise for name, rule in all_criteria().items()}
    if not known.get(criterion, True):  # an unknown criterion is reported elsewhere
        raise OnnxPruneError(
            f"criterion {criterion!r} has no importance by class",
            fix=f"choose from: {', '.join(name for name, classwise in known.items() if classwise)}",
        )


def class_table(scores: Scores, kind: str) -> str:
    """Return the table as text.

    Args:
        scores: Scores with importance by class.
        kind: ".csv" or ".json".

    Raises:
        OnnxPruneError: The scores have no importance by class.
    """
    if not scores.per_class:
        raise OnnxPruneError(
            f"these scores by {scores.criterion.get('name')!r} have no importance by class",
            fix="score with senpis or loss_change; files of scores do not store it",
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
    """Write the table atomically, .csv or .json by the file name.

    Raises:
        OnnxPruneError: See `class_table`; or the file cannot be written.
    """
    write_text(path, class_table(scores, path.suffix.lower()))
