"""Sensitivity curves: what a metric becomes as channels leave one group at a time. What `sensitivity` writes.

A curve belongs to a group. Its points are measured; between two of them it is taken as a straight line, and at ratio 0
it starts at the baseline, which all curves share.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from onnxprune._utils.atomic_files import write_text
from onnxprune.errors import OnnxPruneError

SCHEMA = 1
MAX_BYTES = 256 * 2**20
_KEYS = {
    "schema", "tool", "model", "criterion", "options", "metric", "higher_is_better", "data", "settings", "baseline",
    "bisected", "groups",
}  # fmt: skip


@dataclass(frozen=True)
class CurvePoint:
    """One measurement.

    Attributes:
        ratio: share of the group's channels that was asked to go; 0 for the baseline.
        removed: how many that are: floor(channels x ratio).
        value: the metric.
        error: its standard error; None where the metric gives none.
    """

    ratio: float
    removed: int
    value: float
    error: float | None


@dataclass(frozen=True)
class Curve:
    """Points of one group, by ascending ratio, without ratio 0."""

    channels: int
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Curves:
    """A sweep.

    Attributes:
        model: fingerprint of the model.
        criterion: name and parameters of the score that chose the channels.
        metric: its name.
        higher_is_better: whether accuracy-like (top1) or loss-like.
        baseline: the metric of the whole model.
        groups: group name -> curve, in the order of the graph.
        data: name, images and digest of the data.
        settings: batch size and provider: what the last digits of a value may depend on.
        options: how the model was analysed (attention, inexact).
        bisected: the threshold whose crossings alone were searched for; None for whole curves.
        tool: version that wrote it.
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

    def reaches(self, value: float, threshold: float) -> bool:
        """Whether a value is at least as good as a threshold."""
        return value >= threshold if self.higher_is_better else value <= threshold

    def largest(self, group: str, threshold: float) -> int:
        """Most channels that can go so that this and every smaller measured point reach the threshold."""
        removed = 0
        for p in self.groups[group].points:
            if not self.reaches(p.value, threshold):
                break
            removed = p.removed
        return removed

    def crossing(self, group: str, threshold: float) -> float:
        """Where the curve first falls below a threshold, in channels removed, on straight lines between points."""
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
        """The file's text: one point a line, stable to the byte."""
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
        """A table: group, channels, ratio, removed, metric, standard error; ratio 0 is the baseline."""
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
    """Writes curves as JSON, whole or not at all.

    Raises:
        OnnxPruneError: it cannot be written.
    """
    write_text(path, curves.to_json())


def load_curves(path: Path) -> Curves:
    """Reads curves strictly.

    Raises:
        OnnxPruneError: not JSON, a duplicate, missing or unknown key, a wrong type, points that do not ascend.
    """

    def fail(what: str) -> OnnxPruneError:
        return OnnxPruneError(
            f"not valid curves: {what}", where=str(path), fix="make them again with `onnxprune sensitivity`"
        )

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise fail("a key is given twice")
        return dict(pairs)

    def no_constant(name: str) -> Any:
        raise fail(f"{name} is not JSON")

    def number(value: Any, what: str) -> float:
        if type(value) not in (int, float) or not isfinite(value):
            raise fail(f"{what} is not a number")
        return float(value)

    def point(entry: Any, where: str) -> CurvePoint:
        if not isinstance(entry, dict) or set(entry) != {"ratio", "removed", "value", "error"}:
            raise fail(f"{where}: unexpected keys")
        if type(entry["removed"]) is not int or entry["removed"] < 0:
            raise fail(f"{where}: 'removed' is not a count")
        error = None if entry["error"] is None else number(entry["error"], f"{where}: 'error'")
        return CurvePoint(
            number(entry["ratio"], f"{where}: 'ratio'"),
            entry["removed"],
            number(entry["value"], f"{where}: 'value'"),
            error,
        )

    try:
        if path.stat().st_size > MAX_BYTES:
            raise fail("too large")
        text = path.read_text(encoding="utf-8")
        data = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except OSError as err:
        raise OnnxPruneError(f"cannot read {str(path)!r}: {err.strerror}") from err
    except (ValueError, RecursionError) as err:
        raise fail(f"not JSON ({err})") from err
    if not isinstance(data, dict):
        raise fail("not an object")
    if data.get("schema") != SCHEMA or isinstance(data.get("schema"), bool):
        raise fail(f"schema {data.get('schema')!r}; this version reads {SCHEMA}")
    for key in sorted(data.keys() ^ _KEYS):
        raise fail(f"unknown key {key!r}" if key in data else f"the key {key!r} is missing")
    kinds = {"tool": str, "model": str, "metric": str, "higher_is_better": bool, "criterion": dict, "options": dict,
             "data": dict, "settings": dict, "groups": dict}  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(data[key], kind):
            raise fail(f"{key!r} has the wrong type")
    groups = {}
    for name, entry in data["groups"].items():
        where = f"group {name!r}"
        if not isinstance(entry, dict) or set(entry) != {"channels", "points"} or not isinstance(entry["points"], list):
            raise fail(f"{where}: unexpected keys")
        channels = entry["channels"]
        if type(channels) is not int or channels < 1:
            raise fail(f"{where}: 'channels' is not a positive integer")
        points = tuple(point(p, where) for p in entry["points"])
        last = 0.0
        for p in points:
            if not last < p.ratio < 1 or p.removed >= channels:
                raise fail(f"{where}: ratios do not ascend inside (0, 1)")
            last = p.ratio
        groups[name] = Curve(channels, points)
    bisected = None if data["bisected"] is None else number(data["bisected"], "'bisected'")
    return Curves(
        data["model"], data["criterion"], data["metric"], data["higher_is_better"],
        point(data["baseline"], "baseline"), groups, data["data"], data["settings"], data["options"], bisected,
        data["tool"],
    )  # fmt: skip
