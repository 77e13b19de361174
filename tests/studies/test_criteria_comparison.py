"""Criteria compared: rank correlations by hand and by counting, overlaps, weights by sign, command and picture."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import DataCriterion, get
from onnxprune.criteria.base import ScoringContext, SiteScores
from onnxprune.criteria.scoring import score
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, Probe, Statistic
from onnxprune.execution.data import load_data
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze
from onnxprune.studies.criteria_comparison import agreement, compare_criteria, parsed, signs
from onnxprune.studies.plots import plot_criteria

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
SVG = "{http://www.w3.org/2000/svg}"

line = CommandLine("score", DIGITS)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze(load(DIGITS))


def network() -> Analysis:
    """A residual stream of four channels, made by w0 and w2."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,1,2,2] x) => (float[N,2,2,2] y) {
        a = Conv (x, w0) b = Relu (a) c = Conv (b, w1) d = Relu (c)
        e = Conv (d, w2) f = Add (e, b) y = Conv (f, w3) }"""
    )
    weights: dict[str, Any] = {
        "w0": [[1], [-2], [3], [0]],
        "w1": [[1, 0, 0, 0], [0, -1, 0, 0]],
        "w2": [[1, -1], [2, 2], [-3, -4], [0, 0]],
        "w3": [[1, 1, 1, 1], [1, 2, 3, 4]],
    }
    for name, rows in weights.items():
        values = np.asarray(rows, np.float32)[:, :, None, None]
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return analyze(load(proto))


def kendall_tau_b(a: NDArray[Any], b: NDArray[Any]) -> float:
    """By its definition: pairs that agree less pairs that do not, over the pairs that are not tied in either."""
    signs_ = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    tied = [sum(s[side] != 0 for s in signs_) for side in (0, 1)]
    return float(sum(x * y for x, y in signs_) / np.sqrt(tied[0] * tied[1]))


def mean_ranks(values: NDArray[Any]) -> NDArray[Any]:
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


def test_figures_of_a_case_by_hand() -> None:
    one, other = np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 3, 4])
    found = agreement(one, other, 0.5)
    assert found.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d^2 / n (n^2 - 1)
    assert found.kendall == pytest.approx(4 / 6)  # five pairs agree, one does not
    assert found.overlap == 1.0  # channels 0 and 1 both times
    assert agreement(one, other, 0.25).overlap == 0.0
    assert agreement(one, -one, 0.5) == agreement(-one, one, 0.5)
    assert agreement(one, -one, 0.5).spearman == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(5))
def test_ties_have_their_mean_rank(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, 5, 20).astype(float), rng.integers(0, 4, 20).astype(float)
    found = agreement(one, other, 0.4)
    assert found.spearman == pytest.approx(np.corrcoef(mean_ranks(one), mean_ranks(other))[0, 1], abs=1e-12)
    assert found.kendall == pytest.approx(kendall_tau_b(one, other), abs=1e-12)
    gone = [set(sorted(range(20), key=lambda i, v=v: (v[i], i))[:8]) for v in (one, other)]
    assert found.overlap == len(gone[0] & gone[1]) / 8


def test_what_is_not_defined_is_none_and_left_out_of_the_mean(analysis: Analysis) -> None:
    even, one = np.zeros(6), np.arange(6.0)
    assert agreement(even, one, 0.5).spearman is agreement(one, even, 0.5).kendall is None
    assert agreement(even, one, 0.5).overlap == 1.0  # of equal scores the lower index goes first
    assert agreement(one, one, 0.1).overlap is None  # a tenth of six channels is none
    # Two channels tie or have a rank correlation of one; fpgm cannot tell two filters apart, ever.
    found = compare_criteria(network(), ["l1", "fpgm"], ratio=0.4)
    assert [a[("l1", "fpgm")].spearman is None for a in found.groups.values()] == [False, True]
    first = next(iter(found.groups.values()))[("l1", "fpgm")]
    assert found.mean(("l1", "fpgm")).spearman == first.spearman
    assert found.mean(("l1", "fpgm")).overlap == first.overlap


def test_scores_are_those_of_score(analysis: Analysis) -> None:
    found = compare_criteria(analysis, ["dscore", "fpgm:mix_norm=0.25"], ratio=0.3)
    for name, scores in (
        ("dscore", score(analysis, "dscore")),
        ("fpgm:mix_norm=0.25", score(analysis, "fpgm", mix_norm=0.25)),
    ):
        assert found.scores[name].criterion == scores.criterion
        for group, values in scores.groups.items():
            np.testing.assert_array_equal(found.scores[name].groups[group], values)
    assert found.pairs == [("dscore", "fpgm:mix_norm=0.25")]
    only = compare_criteria(analysis, {"a": get("l1"), "b": get("l2")}, groups=["stem.conv"])
    assert list(only.groups) == ["stem.conv"]


def test_weights_by_sign_are_summed_over_all_that_make_a_channel() -> None:
    a = network()
    positive, negative = signs(a, a["w0"])
    assert positive.tolist() == [1 + 1, 2 + 2, 3, 0]
    assert negative.tolist() == [1, 2, 3 + 4, 0]
    layer = compare_criteria(a, ["l1", "random"]).layer("w0")
    assert layer.orders["l1"].tolist() == [3, 0, 1, 2]  # norms 0; 1 and 2; 2 and 4; 3 and 7
    assert layer.kept("l1") == (4 + 3, 2 + 7)


def test_the_layer_is_the_widest_that_matches(analysis: Analysis) -> None:
    found = compare_criteria(analysis, ["l1", "l2"])
    assert found.layer().name == "down.pointwise.conv"  # the first of two with 64 channels
    assert found.layer("transition*").name == "transition.conv"
    assert found.layer("residual?.a.conv").name == "residual1.a.conv"
    with pytest.raises(
        OnnxPruneError, match=r"(?s)unknown group 'residul1\.a\.conv'.*did you mean 'residual1\.a\.conv'"
    ):
        found.layer("residul1.a.conv")


@dataclass(frozen=True)
class Counting(DataCriterion):
    """Counts the samples of its run."""

    name: ClassVar[str] = "counting"
    title: ClassVar[str] = "counts"
    source: ClassVar[str] = "-"
    needs: ClassVar[str] = "data"
    default_normalize: ClassVar[str] = "none"

    def probes(self, case: ScoringContext) -> list[Probe]:
        return [Probe(case.analysis.model.graph.outputs[0].name, Count())]

    def score_sites(self, case: ScoringContext, probes: Any) -> list[SiteScores]:
        seen = probes[0].statistic.seen
        return [SiteScores(g.components, seen + np.arange(g.channels, dtype=float)) for g in case.groups]


class Count(Statistic):
    def __init__(self) -> None:
        self.seen = 0

    def add(self, values: Any, samples: range) -> None:
        self.seen += len(samples)


def test_criteria_that_look_at_data_share_a_run(analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    collect = Calibration.collect
    monkeypatch.setattr(Calibration, "collect", lambda self, *a, **k: (runs.append(1), collect(self, *a, **k))[1])
    data = Calibration(load_data("digits:test", images=50))
    found = compare_criteria(analysis, {"one": Counting(), "two": Counting()}, calibration=data)
    assert len(runs) == 1
    assert all(values[0] == 50 for s in found.scores.values() for values in s.groups.values())


@pytest.mark.parametrize(
    ("criteria", "ratio", "says"),
    [
        (["l1"], 0.5, "at least two criteria"),
        (["l1", "l2", "l1"], 0.5, "'l1' is given twice"),
        (["l1", "fpgn"], 0.5, "did you mean 'fpgm'"),
        (["l1", "fpgm:mix=1"], 0.5, "no parameter 'mix'"),
        (["l1", "fpgm:0.1"], 0.5, "cannot read the criterion 'fpgm:0.1'"),
        (["l1", "l2"], 1.0, "in [0, 1)"),
    ],
)
def test_refusals(analysis: Analysis, criteria: list[str], ratio: float, says: str) -> None:
    with pytest.raises(OnnxPruneError, match=re.escape(says)):
        compare_criteria(analysis, criteria, ratio=ratio)


def test_parameters_are_numbers_where_they_look_like_it() -> None:
    assert parsed("fpgm:mix_norm=0.1") == get("fpgm", mix_norm=0.1)
    assert parsed("random:seed=7") == get("random", seed=7)


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_means_and_writes_every_group(tmp_path: Path, analysis: Analysis) -> None:
    expected = compare_criteria(analysis, ["l1", "fpgm", "dscore"], ratio=0.3)
    args = ("--compare", "l1, fpgm,dscore", "--ratio", 0.3)
    out = line.out(*args, "-o", tmp_path / "c.json")
    for one, other in expected.pairs:
        mean = expected.mean((one, other))
        assert re.search(rf"{one}, {other} +{mean.spearman:.3f} +{mean.kendall:.3f} +{100 * mean.overlap:.1f} %", out)
    assert max(map(len, out.splitlines())) <= 80
    document = json.loads((tmp_path / "c.json").read_text())
    assert document == expected.as_dict() == json.loads(line.out(*args, "--json"))
    assert list(document["groups"]) == [g.name for g in analysis]
    stem = document["groups"]["stem.conv"]
    assert (stem["channels"], stem["removed"], len(stem["pairs"])) == (32, 9, 3)
    assert 0 < stem["kept"]["dscore"]["positive"] < stem["weights"]["positive"]
    line.out(*args, "-o", tmp_path / "c.csv")
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert len(rows) == 3 * len(analysis)
    assert float(rows[0]["spearman"]) == stem["pairs"][0]["spearman"]
    assert (rows[0]["group"], rows[0]["one"], rows[0]["other"], rows[0]["removed"]) == ("stem.conv", "l1", "fpgm", "9")


@pytest.mark.parametrize(
    ("args", "says", "code"),
    [
        (["--compare", "l1,l2", "-c", "l1"], "without -c and -p", 2),
        (["--compare", "l1,l2", "-p", "seed=1"], "without -c and -p", 2),
        (["--ratio", 0.5], "go with --compare", 2),
        (["--layer", "stem.conv"], "go with --compare", 2),
        (["--compare", "l1,l2", "--layer", "stem.conv"], "give --plot", 2),
        (["--compare", "l1"], "at least two", 1),
        (["--compare", ""], "at least two", 1),
        (["--compare", "l1,l2", "--ratio", "nan"], "in [0, 1)", 1),
        (["--compare", "l1,l2", "--plot", "FOLDER/a.pdf"], "suffix", 1),
        (["--compare", "l1,l2", "--plot", "FOLDER/a.svg", "--layer", "x"], "unknown group", 1),
        (["--compare", "l1,l2", "-o", "FOLDER/no/a.json"], "does not exist", 1),
    ],
)
def test_bad_options_give_one_error_and_no_file(args: list[object], says: str, code: int, tmp_path: Path) -> None:
    assert says in line.fails(*(str(a).replace("FOLDER", str(tmp_path)) for a in args), code=code)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- the picture


def areas(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Corners of everything with an id of ours, in the units of the SVG."""
    out = {}
    for e in ElementTree.parse(path).iter(f"{SVG}g"):
        if ":" in e.attrib.get("id", ""):
            drawn = next(e.iter(f"{SVG}path")).attrib["d"]
            out[e.attrib["id"]] = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", drawn)]
    return out


def test_picture_has_every_part_in_its_place(tmp_path: Path) -> None:
    found = compare_criteria(network(), ["l1", "l2"], ratio=0.5)
    line_ = tmp_path / "a.svg"
    plot_criteria(found.layer("w0"), line_, name="net $x$")
    drawn = areas(line_)
    bars = {f"share:{s}:{c}" for s in ("positive", "negative") for c in ("", "l1", "l2")}
    parts = {f"{p}:{s}:{c}" for p in ("removed", "kept") for s in ("positive", "negative") for c in ("l1", "l2")}
    assert set(drawn) == bars | parts
    for c in ("l1", "l2"):
        gone, kept = drawn[f"removed:positive:{c}"], drawn[f"kept:positive:{c}"]
        assert max(x for x, _ in gone) == pytest.approx(min(x for x, _ in kept), abs=1e-2)  # the cut
    # Positive sums in the order of l1 are 0 2 | 4 3, negative ones 0 1 | 2 7: heights on one scale.
    heights = {
        key: sorted({round(y, 2) for _, y in drawn[f"{key}:l1"]})
        for key in ("removed:positive", "kept:positive", "removed:negative", "kept:negative")
    }
    zero = heights["removed:positive"][-1]
    unit = (zero - heights["removed:positive"][0]) / 2
    assert zero - np.array(heights["kept:positive"]) == pytest.approx([4 * unit, 3 * unit, 0], abs=0.05)
    assert np.array(heights["removed:negative"]) - zero == pytest.approx([0, unit], abs=0.05)
    assert np.array(heights["kept:negative"]) - zero == pytest.approx([0, 2 * unit, 7 * unit], abs=0.05)

    def width(key: str) -> float:
        xs = [x for x, _ in drawn[key]]
        return max(xs) - min(xs)

    whole = width("share:positive:") + width("share:negative:")
    assert width("share:positive:") / whole == pytest.approx(9 / 19, abs=1e-3)
    assert width("share:positive:l1") / whole == pytest.approx(7 / 19, abs=1e-3)
    assert width("share:negative:l1") / whole == pytest.approx(9 / 19, abs=1e-3)


def test_the_same_comparison_gives_the_same_bytes(tmp_path: Path) -> None:
    for suffix in (".png", ".svg"):
        for name in ("a", "b"):
            line.out("--compare", "l1,dscore", "--plot", tmp_path / f"{name}{suffix}", "--layer", "stem*")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 4


def test_nothing_removed_and_weights_of_one_sign_are_drawn(tmp_path: Path) -> None:
    a = network()
    for ratio in (0.0, 0.9):
        plot_criteria(compare_criteria(a, ["l1", "l2"], ratio=ratio).layer("w0"), tmp_path / "a.svg")
    layer = compare_criteria(a, ["l1", "l2"]).layer("w0")
    plot_criteria(type(layer)(layer.name, layer.positive, 0 * layer.negative, layer.orders, 2), tmp_path / "b.svg")
    with pytest.raises(OnnxPruneError, match=r"(?s)no weights to draw.*w0"):
        plot_criteria(
            type(layer)(layer.name, 0 * layer.positive, 0 * layer.negative, layer.orders, 2), tmp_path / "c.svg"
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg", "b.svg"]
