"""Pictures of sensitivity curves: valid files, every line and chosen point in its place, the same bytes twice."""

from __future__ import annotations

import builtins
import dataclasses
import re
import struct
import subprocess
import sys
import zlib
from math import floor, sqrt
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from onnxprune.errors import OnnxPruneError
from onnxprune.planning.curves import Curve, CurvePoint, Curves
from onnxprune.plans import Plan, Removal
from onnxprune.studies import plots
from onnxprune.studies.plots import plot_curves

GRID = tuple(round(0.05 * i, 2) for i in range(1, 20))
MODEL = "0123456789abcdef"
SVG = "{http://www.w3.org/2000/svg}"


def curve(channels: int, ratios: tuple[float, ...], middle: float, baseline: float = 0.9, least: float = 0.1) -> Curve:
    """A smooth fall from the baseline towards `least` (or a rise), half done at `middle`."""
    points = []
    for ratio in ratios:
        removed = floor(channels * ratio + 1e-9)
        value = least + (baseline - least) / (1 + (removed / channels / middle) ** 4)
        points.append(CurvePoint(ratio, removed, value, sqrt(abs(value * (1 - value)) / 1000)))
    return Curve(channels, tuple(points))


def sweep(count: int, ratios: tuple[float, ...] = GRID, **changes: Any) -> Curves:
    """Curves of `count` groups."""
    groups = {f"layer{i}.conv1": curve(16 * (1 + i % 3), ratios, 0.3 + 0.5 * i / count) for i in range(count)}
    data = {"name": "digits", "images": 1000, "digest": "x"}
    made = Curves(MODEL, {"name": "l1", "reduce": "mean"}, "top1", True, CurvePoint(0, 0, 0.9, 0.01), groups, data)
    return dataclasses.replace(made, **changes)


def plan_for(curves: Curves, threshold: float = 0.8) -> Plan:
    return Plan(
        curves.model,
        {g: Removal(c.channels, tuple(range(curves.largest(g, threshold)))) for g, c in curves.groups.items()},
    )


def ids(path: Path) -> list[str]:
    """All ids of an SVG, which has to be well-formed."""
    return [e.attrib["id"] for e in ElementTree.parse(path).iter() if "id" in e.attrib]


def labelled(path: Path, kind: str) -> list[str]:
    return [i.removeprefix(f"{kind}:") for i in ids(path) if i.startswith(f"{kind}:")]


def element(path: Path, gid: str) -> ElementTree.Element:
    (found,) = [e for e in ElementTree.parse(path).iter() if e.attrib.get("id") == gid]
    return found


def vertices(path: Path, gid: str) -> list[tuple[float, float]]:
    """Corners of a line's path, in the units of the SVG."""
    drawn = next(e for e in element(path, gid).iter(f"{SVG}path") if "clip-path" in e.attrib)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", drawn.attrib["d"])]


def marker(path: Path, gid: str) -> tuple[float, float]:
    """Return the position of a single marker."""
    (use,) = element(path, gid).iter(f"{SVG}use")
    return float(use.attrib["x"]), float(use.attrib["y"])


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG whose chunks all have the right checksum and tell neither software nor date."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, kinds = 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(body)
        kinds.append(body[:4])
        at += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    assert not {b"tEXt", b"iTXt", b"zTXt", b"tIME"} & set(kinds)
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize("kind", ["lines", "heat", "both"])
@pytest.mark.parametrize("suffix", [".png", ".svg", ".PNG"])
def test_the_same_curves_give_the_same_bytes(tmp_path: Path, kind: str, suffix: str) -> None:
    curves = sweep(7)
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for path in (first, second):
        plot_curves(curves, path, plan=plan_for(curves), kind=kind)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.name, second.name]
    if suffix == ".svg":
        assert b"<dc:date>" not in first.read_bytes()
    else:
        width, height = png_size(first.read_bytes())
        assert 1000 < width < 3000
        assert 200 < height < 3000


def test_every_group_has_a_line_and_every_line_its_chosen_point(tmp_path: Path) -> None:
    curves = sweep(9)
    path = tmp_path / "lines.svg"
    plot_curves(curves, path, kind="lines")
    assert labelled(path, "curve") == list(curves.groups)
    assert labelled(path, "chosen") == []
    plot_curves(curves, path, plan=plan_for(curves), kind="lines")
    assert labelled(path, "chosen") == list(curves.groups)
    assert "heat" not in ids(path)


def test_a_chosen_point_lies_on_its_line_between_measured_points(tmp_path: Path) -> None:
    # 8 channels, measured at 2 and 6 removed: 4 removed is halfway between, whatever the axes are.
    points = (CurvePoint(0.25, 2, 0.8, None), CurvePoint(0.75, 6, 0.2, None))
    curves = sweep(1, groups={"a": Curve(8, points)})
    path = tmp_path / "lines.svg"
    plot_curves(curves, path, plan=Plan(MODEL, {"a": Removal(8, (0, 3, 4, 5))}))
    start, second, third = vertices(path, "curve:a")
    assert start[0] < second[0] < third[0]
    assert start[1] < second[1] < third[1]  # SVG counts downwards
    assert marker(path, "chosen:a") == pytest.approx(np.mean([second, third], axis=0), abs=1e-3)
    # What the plan leaves whole is at the baseline, what it takes beyond the measured points at the last value.
    plot_curves(curves, path, plan=Plan("", {}))
    assert marker(path, "chosen:a") == pytest.approx(start, abs=1e-3)
    plot_curves(curves, path, plan=Plan("", {"a": Removal(8, tuple(range(7)))}))
    x, y = marker(path, "chosen:a")
    assert x > third[0]
    assert y == pytest.approx(third[1], abs=1e-3)


def test_shares_are_those_really_removed(tmp_path: Path) -> None:
    # 20 % of 4 channels is none: the line has no second point there, and 30 % stands at 25 %.
    points = (CurvePoint(0.2, 0, 0.9, None), CurvePoint(0.3, 1, 0.5, None), CurvePoint(0.5, 2, 0.4, None))
    path = tmp_path / "lines.svg"
    plot_curves(sweep(1, groups={"a": Curve(4, points)}), path, kind="lines")
    xs = [x for x, _ in vertices(path, "curve:a")]
    assert len(xs) == 3
    assert xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], abs=1e-3)


@pytest.mark.parametrize(("count", "heat"), [(1, False), (20, False), (21, True), (60, True)])
def test_auto_draws_lines_for_few_groups_and_a_heat_map_for_many(tmp_path: Path, count: int, heat: bool) -> None:
    path = tmp_path / "auto.svg"
    curves = sweep(count)
    plot_curves(curves, path, plan=plan_for(curves))
    assert ("heat" in ids(path)) == heat
    assert len(labelled(path, "curve")) == (0 if heat else count)
    assert ("plan" in ids(path)) == heat


def test_60_groups(tmp_path: Path) -> None:
    curves = sweep(60)
    path = tmp_path / "both.svg"
    plot_curves(curves, path, plan=plan_for(curves), kind="both")
    assert len(labelled(path, "curve")) == len(labelled(path, "chosen")) == 60
    cells = list(element(path, "heat").iter(f"{SVG}path"))
    assert len(cells) == 60 * (1 + len(GRID))
    assert len(vertices(path, "plan")) >= 60
    assert "measured" not in ids(path)  # all columns are
    plot_curves(curves, tmp_path / "heat.png", kind="heat")
    assert png_size((tmp_path / "heat.png").read_bytes())[1] > 1200


def test_a_heat_map_of_a_thousand_groups_stays_a_picture(tmp_path: Path) -> None:
    plot_curves(sweep(1000, (0.1, 0.2)), tmp_path / "heat.png")
    assert png_size((tmp_path / "heat.png").read_bytes())[1] < 6000


def grey(path: Path) -> int:
    """Cells of the heat map in the colour of what was not measured."""
    return sum("#e0e0e0" in e.attrib.get("style", "") for e in element(path, "heat").iter(f"{SVG}path"))


def test_ratios_some_groups_miss_are_grey(tmp_path: Path) -> None:
    groups = {"all": curve(20, GRID, 0.5), "half": curve(20, GRID[1::2], 0.5), "none": Curve(20, ())}
    path = tmp_path / "heat.svg"
    plot_curves(sweep(1, groups=groups), path, kind="heat")
    assert grey(path) == 10 + 19


def test_bisected_curves(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    groups = {}
    for i in range(30):
        counts = np.sort(rng.choice(np.arange(1, 48), 4, replace=False))
        groups[f"g{i}"] = curve(48, tuple(float(c / 48) for c in counts), 0.5)
    curves = sweep(1, groups=groups, bisected=0.7)
    path = tmp_path / "both.svg"
    plot_curves(curves, path, plan=plan_for(curves, 0.7), kind="both")
    assert len(labelled(path, "curve")) == 30
    assert len(list(element(path, "measured").iter(f"{SVG}use"))) == 30 * 4
    assert 0 < grey(path) < 30 * 40 / 2  # beyond the last point only


@pytest.mark.parametrize("kind", ["lines", "heat", "both"])
@pytest.mark.parametrize("points", [(), (0.5,)])
def test_curves_of_one_point_and_of_none(tmp_path: Path, kind: str, points: tuple[float, ...]) -> None:
    for count in (1, 3):
        curves = sweep(count, points)
        plot_curves(curves, tmp_path / "one.svg", plan=plan_for(curves), kind=kind)
        assert len(labelled(tmp_path / "one.svg", "curve")) == (0 if kind == "heat" else count)


def test_of_a_loss_less_is_brighter(tmp_path: Path) -> None:
    accuracy = sweep(1, groups={"a": curve(10, (0.1, 0.2), 0.15)})
    groups = {"a": curve(10, (0.1, 0.2), 0.15, baseline=0.5, least=4.0)}
    loss = sweep(1, groups=groups, metric="loss", higher_is_better=False, baseline=CurvePoint(0, 0, 0.5, None))
    colours = []
    for curves in (accuracy, loss):
        plot_curves(curves, tmp_path / "a.svg", plan=plan_for(curves, 0.7), kind="both")
        cells = element(tmp_path / "a.svg", "heat").iter(f"{SVG}path")
        colours.append([re.findall(r"fill: (#\w+)", e.attrib["style"])[0] for e in cells])
        line = [y for _, y in vertices(tmp_path / "a.svg", "curve:a")]
        assert line == sorted(line, reverse=curves is loss)
    for found in colours:
        assert (found[0], found[-1]) == ("#fde725", "#440154")  # both ends of viridis: best and worst


def test_standard_errors_are_bands_while_there_is_room(tmp_path: Path) -> None:
    def bands(curves: Curves) -> int:
        plot_curves(curves, tmp_path / "a.svg", kind="lines")
        return sum("FillBetween" in i or "PolyCollection" in i for i in ids(tmp_path / "a.svg"))

    assert bands(sweep(12)) == 12
    assert bands(sweep(13)) == 0


NAMES = [
    "_starts_with_underscore", "a $b$ $\\frac", "层/卷积", 'quoted "&<name>', "tab\tnew\nline", "\x01\ud800", "",
    "a/very/long/name/" + 20 * "of/a/block/" + "conv",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["lines", "heat"])
@pytest.mark.parametrize("many", [0, 30])
def test_names_of_every_kind(tmp_path: Path, kind: str, many: int) -> None:
    named = {name: curve(16, GRID, 0.5) for name in NAMES}
    curves = sweep(1, groups={**named, **sweep(many).groups}, criterion={"name": "层 $x$", **dict.fromkeys(NAMES, 1)})
    for suffix in (".png", ".svg"):
        plot_curves(curves, tmp_path / f"a{suffix}", kind=kind, name="模型 $1$.onnx")
    if kind == "lines":
        found = labelled(tmp_path / "a.svg", "curve")
        assert len(found) == len(curves.groups)
        assert {NAMES[0], NAMES[1], NAMES[2], NAMES[3], "tab?new?line", "??", "", NAMES[7]} <= set(found)


def test_the_users_settings_are_neither_used_nor_changed(tmp_path: Path) -> None:
    import matplotlib as mpl

    curves = sweep(3)
    plot_curves(curves, tmp_path / "a.svg")
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "none", "savefig.dpi": 10}):
        # dict.items: asking RcParams itself for the backend would choose one, and import pyplot.
        before = dict(dict.items(mpl.rcParams))
        plot_curves(curves, tmp_path / "b.svg")
        assert dict(dict.items(mpl.rcParams)) == before
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.svgz", ".png"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OnnxPruneError, match=r"(?s)suffix.*\.png or \.svg"):
        plot_curves(sweep(2), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path: Path) -> None:
    curves, path = sweep(2), tmp_path / "a.png"
    with pytest.raises(OnnxPruneError, match=r"(?s)unknown kind of picture 'line'.*'lines'"):
        plot_curves(curves, path, kind="line")
    with pytest.raises(OnnxPruneError, match="no curves to draw"):
        plot_curves(sweep(1, groups={}), path)
    with pytest.raises(OnnxPruneError, match="another model"):
        plot_curves(curves, path, plan=Plan("fedcba", {}))
    with pytest.raises(OnnxPruneError, match=r"(?s)3 channels in a group where the curve has 16.*layer0.conv1"):
        plot_curves(curves, path, plan=Plan("", {"layer0.conv1": Removal(3, (0,))}))
    with pytest.raises(OnnxPruneError, match="does not exist"):
        plot_curves(curves, tmp_path / "missing" / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(OnnxPruneError, match=r"(?s)need matplotlib.*pip install 'onnxprune\[report\]'"):
        plot_curves(sweep(2), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.svg"
    path.write_text("before", encoding="utf-8")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxprune._utils.files.atomic_files.os.replace", full)
    with pytest.raises(OnnxPruneError, match=r"cannot write .*No space left"):
        plot_curves(sweep(2), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.svg"]
    assert path.read_text(encoding="utf-8") == "before"


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere.
    monkeypatch.setattr("onnxprune._utils.files.atomic_files.os.access", lambda *args: False)
    monkeypatch.setattr(plots, "render_curves", lambda *args: pytest.fail("drawn for nothing"))
    with pytest.raises(OnnxPruneError, match="not writable"):
        plot_curves(sweep(2), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_matplotlib_comes_with_the_first_picture_and_pyplot_never(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from onnxprune.planning.curves import Curve, CurvePoint, Curves
from onnxprune.studies.plots import plot_curves
assert "matplotlib" not in sys.modules
curves = Curves("m", {}, "top1", True, CurvePoint(0, 0, 0.9, None), {"a": Curve(4, (CurvePoint(0.5, 2, 0.4, None),))})
plot_curves(curves, Path(sys.argv[1]), kind="both")
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path / "a.png")], check=True)
