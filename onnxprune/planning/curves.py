"""Sensitivity curves: metric as a function of the removed channels of one group; file format of `sensitivity`.

Points are measured and interpolated linearly. At ratio 0 all curves start at the common baseline.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from onnxprune._utils.fields import Count, Index
from onnxprune._utils.files.atomic_files import write_text
from onnxprune._utils.output.formatting import counted
from onnxprune._utils.output.html import html_table
from onnxprune._utils.strict import Format

SCHEMA = 1
FORMAT = Format("curves", 256 * 2**20, SCHEMA, fix="create them again with `onnxprune sensitivity`")


@dataclass(frozen=True)
class CurvePoint:
    """One measurement.

    Attributes:
        ratio: Requested share of the group's channels; 0 for the baseline.
        removed: Number of removed channels: floor(channels x ratio).
        value: Value of the metric.
        error: Standard error of the metric; None if it has none.
    """

    ratio: float
    removed: Index
    value: float
    error: float | None


@dataclass(frozen=True, repr=False)
class Curve:
    """Points of one group by ascending ratio, without ratio 0."""

    channels: Count
    points: tuple[CurvePoint, ...]

    def __repr__(self) -> str:
        return f"<Curve: {counted(len(self.points), 'point')}, {counted(self.channels, 'channel')}>"


@dataclass(frozen=True, repr=False)
class Curves:
    """Result of a sensitivity sweep.

    Attributes:
        model: Fingerprint of the model.
        criterion: Name and parameters of the criterion that ordered the channels.
        metric: Name of the metric.
        higher_is_better: Whether larger values of the metric are better.
        baseline: Metric of the original.
        groups: Group name -> curve, in graph order.
        data: Name, number of images and digest of the data.
        settings: Batch size and provider, which may affect the last digits of a value.
        options: Options of the analysis (attention, inexact).
        bisected: Threshold whose crossings were searched for; None for complete curves.
        tool: Version that wrote the file.
    """

    model: str
    criterion: Mapping[str, Any]
    metric: str
    higher_is_better: bool
    baseline: CurvePoint
    groups: Mapping[str, Curve]
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    bisected: float | None = None
    tool: str = ""

    def __repr__(self) -> str:
        points = sum(len(c.points) for c in self.groups.values())
        size = f"{counted(len(self.groups), 'group')}, {counted(points, 'point')}"
        return f"<Curves of {self.metric} by {self.criterion.get('name')}: {size}, baseline {self.baseline.value:.4g}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: the metric of every group at half of its channels, and the worst measured."""
        worst = min if self.higher_is_better else max
        rows = []
        for name, curve in self.groups.items():
            middle = [p.value for p in curve.points if p.ratio <= 0.5]
            last = worst((p.value for p in curve.points), default=self.baseline.value)
            rows.append([name, str(curve.channels), f"{middle[-1]:.4g}" if middle else "-", f"{last:.4g}"])
        title = f"curves of {self.metric}, baseline {self.baseline.value:.4g}"
        return html_table(title, ["group", "channels", "at 50 %", "worst"], rows)

    def reaches(self, value: float, threshold: float) -> bool:
        """Return whether a value is at least as good as a threshold."""
        return value >= threshold if self.higher_is_better else value <= threshold

    def largest(self, group: str, threshold: float) -> int:
        """Return the largest number of removed channels up to which all measured points reach the threshold."""
        removed = 0
        for p in self.groups[group].points:
            if not self.reaches(p.value, threshold):
                break
            removed = p.removed
        return removed

    def crossing(self, group: str, threshold: float) -> float:
        """Return the number of removed channels (interpolated) at which the curve first falls below a threshold."""
        if not self.reaches(self.baseline.value, threshold):
            return 0.0
        before = self.baseline
        for p in self.groups[group].points:
            if not self.reaches(p.value, threshold):
                fall = before.value - p.value
                return before.removed + (p.removed - before.removed) * (before.value - threshold) / fall
            before = p
        return float(before.removed)

    def to_json(self) -> str:
        """Return the file's text: one point per line, byte-stable."""
        head: dict[str, Any] = {
            "schema": SCHEMA,
            "tool": self.tool,
            "model": self.model,
            "criterion": dict(self.criterion),
            "options": dict(self.options),
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "data": dict(self.data),
            "settings": dict(self.settings),
            "baseline": _entry(self.baseline),
            "bisected": self.bisected,
        }
        lines = [f"  {json.dumps(k)}: {json.dumps(v, sort_keys=True, allow_nan=False)}," for k, v in head.items()]
        groups = []
        for name, curve in self.groups.items():
            points = ",\n".join(f"      {json.dumps(_entry(p), allow_nan=False)}" for p in curve.points)
            body = f"[\n{points}\n    ]" if points else "[]"
            groups.append(f'    {json.dumps(name)}: {{"channels": {curve.channels}, "points": {body}}}')
        return "{\n" + "\n".join(lines) + '\n  "groups": {\n' + ",\n".join(groups) + "\n  }\n}\n"

    def to_csv(self) -> str:
        """Return a CSV table: group, channels, ratio, removed, metric, standard error; ratio 0 is the baseline."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["group", "channels", "ratio", "removed", self.metric, "standard_error"])
        for name, curve in self.groups.items():
            for p in (self.baseline, *curve.points):
                error = "" if p.error is None else p.error
                writer.writerow([name, curve.channels, p.ratio, p.removed, p.value, error])
        return out.getvalue()


def _entry(p: CurvePoint) -> dict[str, Any]:
    return {"ratio": p.ratio, "removed": p.removed, "value": p.value, "error": p.error}


def save_curves(curves: Curves, path: Path) -> None:
    """Write curves as JSON, atomically.

    Raises:
        OnnxPruneError: The file cannot be written.
    """
    write_text(path, curves.to_json())


def load_curves(path: Path) -> Curves:
    """Read curves strictly.

    Raises:
        OnnxPruneError: Not JSON, a duplicate, missing or unknown key, a wrong type, or points that are not ascending.
    """
    curves = FORMAT.read(Curves, path)
    for name, curve in curves.groups.items():
        ratios = [0.0, *(p.ratio for p in curve.points), 1.0]
        if any(a >= b for a, b in pairwise(ratios)) or any(p.removed >= curve.channels for p in curve.points):
            raise FORMAT.error("ratios do not ascend inside (0, 1)", str(path), ("groups", name))
    return curves
