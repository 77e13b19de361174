"""The study of weight and unit pruning, on a small network that is trained like that of `make_models.py --mlp`."""

from __future__ import annotations

import csv
import io
import json
import re
import runpy
from collections.abc import Callable
from functools import cache
from math import floor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from command_line import CommandLine
from onnx import numpy_helper

import onnxprune as op
from onnxprune.analysis.layer_weights import layer_weights
from onnxprune.cli import main
from onnxprune.errors import OnnxPruneError
from onnxprune.passes.sparsify_weights import exact
from onnxprune.studies import plots
from onnxprune.studies.sparsity_study import POINTS, SparsityPoint, SparsityStudy, study

ROOT = Path(__file__).parent.parent.parent
WIDTHS = (64, 100, 50, 10)
ONE = 1 / 450 + 1e-12  # a sample whose two best scores are equal but for rounding
Array = npt.NDArray[Any]
line = CommandLine()


@cache
def maker() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "model_makers" / "make_models.py"))


@cache
def proto() -> onnx.ModelProto:
    return maker()["mlp_proto"](maker()["train_mlp"](WIDTHS, epochs=15))  # type: ignore[no-any-return]


@cache
def digits() -> op.Data:
    return op.load_data("digits:test")


@cache
def measured(end: str) -> SparsityStudy:
    return study(op.load(proto()), digits(), end=end, threads=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    onnx.save(proto(), path)
    return path


def layers() -> list[tuple[Array, Array]]:
    """(W [in, out], b [out]) of every layer, float64."""
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto().graph.initializer}
    return [(values[f"fc{i}.weight"], values[f"fc{i}.bias"]) for i in range(1, len(WIDTHS))]


def in_numpy(prune: Callable[[Array, Array], tuple[Array, Array]]) -> tuple[float, float]:
    """Top-1 and loss of the network with all layers but the last pruned, without onnx."""
    data = digits()
    h = data.x.reshape(len(data), -1).astype(np.float64)
    *hidden, (w, b) = layers()
    for weights in hidden:
        v, c = prune(*weights)
        h = np.maximum(h @ v + c, 0)
    logits = h @ w + b
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert data.y is not None
    return float((logits.argmax(1) == data.y).mean()), float(-logs[np.arange(len(data)), data.y].mean())


def by_weight(sparsity: float) -> Callable[[Array, Array], tuple[Array, Array]]:
    def prune(w: Array, b: Array) -> tuple[Array, Array]:
        gone = np.argsort(np.abs(w), axis=None, kind="stable")[: floor(w.size * exact(sparsity))]
        flat = w.reshape(-1).copy()
        flat[gone] = 0
        return flat.reshape(w.shape), b

    return prune


def by_unit(sparsity: float) -> Callable[[Array, Array], tuple[Array, Array]]:
    def prune(w: Array, b: Array) -> tuple[Array, Array]:
        keep = kept(w, sparsity)
        return w * keep, b * keep

    return prune


def kept(w: Array, sparsity: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the kept columns."""
    keep = np.ones(w.shape[1], np.bool_)
    keep[np.argsort(np.linalg.norm(w, axis=0), kind="stable")[: floor(w.shape[1] * exact(sparsity))]] = False
    return keep


# ---------------------------------------------------------------------------------------------------- the network


def test_network_is_trained_and_exported_as_said() -> None:
    model = op.load(proto())
    found = layer_weights(model.graph)
    assert [w.values.shape for w in found] == [(64, 100), (100, 50), (50, 10)]
    assert [w.last for w in found] == [False, False, True]
    assert op.evaluate(model, digits()).top1 >= 0.93


def test_training_is_the_same_every_time_and_leaves_torch_alone() -> None:
    import torch

    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other, third = (
        maker()["mlp_proto"](maker()["train_mlp"]((64, 8, 10), epochs=1, seed=seed)).SerializeToString()
        for seed in (1, 1, 2)
    )
    assert one == other != third
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_large_network_is_that_of_the_study() -> None:
    assert maker()["MLP"] == (64, 1000, 1000, 500, 200, 10)


# ------------------------------------------------------------------------------------------------------ the figures


def test_every_point_is_what_numpy_computes() -> None:
    found = measured("zeros")
    assert [(p.what, p.sparsity) for p in found.points] == [(w, s) for w in ("weight", "unit") for s in POINTS]
    assert found.weights == ("fc1.weight", "fc2.weight")
    assert found.images == 450
    for p in found.points:
        top1, loss = in_numpy((by_weight if p.what == "weight" else by_unit)(p.sparsity))
        assert p.top1 == pytest.approx(top1, abs=ONE)
        assert p.loss == pytest.approx(loss, rel=1e-5)
        assert p.top1_error == pytest.approx((p.top1 * (1 - p.top1) / 450) ** 0.5)


def test_counts_of_zeros_and_of_what_is_left() -> None:
    assert all((w != 0).all() for w, _ in layers())  # biases of units that never fired are zero
    *hidden, last = layers()
    for p in measured("zeros").points:
        pruned = [(by_weight if p.what == "weight" else by_unit)(p.sparsity)(w, b) for w, b in hidden]
        left = [np.count_nonzero(w) for w, _ in pruned]
        assert p.reached == pytest.approx(1 - sum(left) / 11_400, abs=1e-12)
        assert p.parameters == sum(np.count_nonzero(v) for layer in [*pruned, last] for v in layer)
        assert p.verified is None
    for p in measured("strip").points:
        if p.what == "unit":
            one, two = (kept(w, p.sparsity) for w, _ in hidden)
            a, b = int(one.sum()), int(two.sum())
            assert p.reached == pytest.approx(1 - (64 * a + a * b) / 11_400, abs=1e-12)
            biases = np.count_nonzero(hidden[0][1][one]) + np.count_nonzero(hidden[1][1][two])
            assert p.parameters == 64 * a + a * b + biases + b * 10 + 10


def test_removed_units_compute_what_zeros_do_in_smaller_files() -> None:
    assert {p.what for p in measured("zeros").points} == {"weight", "unit"}
    for p, q in zip(measured("zeros").points, measured("strip").points, strict=True):
        assert q.end == ("strip" if q.what == "unit" else "zeros")
        assert q.top1 == pytest.approx(p.top1, abs=ONE)
        assert q.loss == pytest.approx(p.loss, rel=1e-5)
        if q.what == "weight" or q.sparsity == 0:
            assert q == (p if q.what == "weight" else SparsityPoint(**{**vars(p), "end": "strip"}))
        else:
            assert q.verified is not None
            assert q.verified <= 1e-5
            assert q.compressed_bytes < p.compressed_bytes


def test_single_weights_last_longer_than_units() -> None:
    """Main result of the study; the margin is wide, so that rounding in training does not decide."""
    at = {(p.what, p.sparsity): p for p in measured("zeros").points}
    assert at["weight", 0.7].top1 > at["unit", 0.7].top1 + 0.1
    assert at["weight", 0.5].top1 > at["weight", 0.0].top1 - 0.1
    for what in ("weight", "unit"):
        sizes = [at[what, s].compressed_bytes for s in POINTS]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[POINTS.index(0.9)] < 0.25 * sizes[0]


def test_options_reach_the_pass_and_the_plan() -> None:
    model = op.load(proto())
    only = study(model, digits(), what=["unit"], points=[0.5, 0.5, 0.25], end="strip", exclude=["fc2*"])
    assert [(p.what, p.sparsity) for p in only.points] == [("unit", 0.25), ("unit", 0.5)]
    assert only.weights == ("fc1.weight",)
    assert only.points[1].reached == pytest.approx(0.5)
    everything = study(model, digits(), what=["weight"], points=[0.5], scope="global", include_last=True)
    assert everything.weights == ("fc1.weight", "fc2.weight", "fc3.weight")
    assert everything.points[0].reached == pytest.approx(0.5)


def test_convolutions_and_residual_streams_are_stripped_too() -> None:
    """Zeros are then something else, but the plan's result is verified all the same."""
    model = op.load(ROOT / "models" / "digits_cnn_folded.onnx")
    found = study(model, op.load_data("digits:test", images=50), what=["unit"], points=[0.3], end="strip")
    (p,) = found.points
    assert p.verified is not None
    assert 0.45 < p.reached < 0.55  # about 1 - 0.7 * 0.7


def test_models_are_handed_over_with_their_points() -> None:
    seen: list[tuple[SparsityPoint, float]] = []
    ticks: list[tuple[int, int]] = []
    found = study(
        op.load(proto()), digits(), what=["unit"], points=[0.25, 0.9], end="strip", threads=1,
        keep=lambda p, m: seen.append((p, op.evaluate(m, digits()).top1)), progress=lambda a, b: ticks.append((a, b)),
    )  # fmt: skip
    assert [p for p, _ in seen] == list(found.points)
    assert [top1 for _, top1 in seen] == [p.top1 for p in found.points]
    assert ticks == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"what": ["weigth"]}, "did you mean 'weight'"),
        ({"what": []}, "no kind of pruning or no sparsity is given"),
        ({"points": []}, "no kind of pruning or no sparsity is given"),
        ({"points": [0.5, 1.0]}, "in [0, 1)"),
        ({"points": [float("nan")]}, "in [0, 1)"),
        ({"end": "gone"}, "unknown end"),
        ({"scope": "locally"}, "unknown scope"),
        ({"end": "strip", "scope": "global"}, "layer by layer"),
        ({"exclude": ["conv*"]}, "unknown weight"),
        ({"end": "strip", "exclude": ["fc[12]*"], "include_last": True}, "can be removed"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(options: dict[str, Any], says: str) -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError

    with pytest.raises(OnnxPruneError) as caught:
        study(op.load(proto()), digits(), progress=never, **options)
    assert says in str(caught.value)


def test_data_without_labels_is_refused() -> None:
    with pytest.raises(OnnxPruneError, match="no labels"):
        study(op.load(proto()), op.Data(digits().x, None, "unlabelled"))


# ------------------------------------------------------------------------------------------------- files and pictures


def test_table_holds_every_number_in_full() -> None:
    found = measured("strip")
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(rows) == len(found.points)
    for row, p in zip(rows, found.points, strict=True):
        for name, value in vars(p).items():
            read = {str: str, int: int, float: float, type(None): lambda text: None if text == "" else text}
            assert read[type(value)](row[name]) == value
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["points"] == [vars(p) for p in found.points]


def test_picture_has_every_point_where_it_belongs(tmp_path: Path) -> None:
    found = measured("strip")
    path, again = tmp_path / "a.svg", tmp_path / "b.svg"
    for p in (path, again):
        plots.plot_study(found, p, name="mlp.onnx")
    assert path.read_bytes() == again.read_bytes()
    tree = ElementTree.parse(path)
    for what in ("weight", "unit"):
        points = [p for p in found.points if p.what == what]
        for kind, values in (("top1", [p.top1 for p in points]), ("bytes", [p.compressed_bytes for p in points])):
            (group,) = [e for e in tree.iter() if e.attrib.get("id") == f"{kind}:{what}"]
            marks = [(float(e.attrib["x"]), float(e.attrib["y"])) for e in group.iter() if e.tag.endswith("}use")]
            assert len(marks) == len(points)
            for place, wanted in ((0, [p.sparsity for p in points]), (1, values)):
                drawn = np.array([m[place] for m in marks])
                slope, start = np.polyfit(wanted, drawn, 1)  # the axis is linear
                assert np.abs(slope * np.array(wanted) + start - drawn).max() < 0.01
                assert (slope > 0) == (place == 0)  # up on the page is less


def test_picture_refuses(tmp_path: Path) -> None:
    empty = SparsityStudy("", "digits", 1, "layer", (), ())
    with pytest.raises(OnnxPruneError, match="no points"):
        plots.plot_study(empty, tmp_path / "a.png")
    with pytest.raises(OnnxPruneError, match="no picture format"):
        plots.plot_study(measured("zeros"), tmp_path / "a.bmp")
    assert list(tmp_path.iterdir()) == []


def test_sweep_writes_table_and_picture(file: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "s.csv", tmp_path / "s.png"
    args = ["--data", "digits", "--points", "0,0.5,0.97", "--threads", 1, "-o", out, "--plot", plot]
    text = line.out("sweep", file, *args)
    assert all(len(row) <= 80 for row in text.splitlines() if str(tmp_path) not in row)
    expected = [p for p in measured("zeros").points if p.sparsity in (0, 0.5, 0.97)]
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [(r["what"], float(r["sparsity"]), float(r["top1"]), int(r["compressed_bytes"])) for r in rows] == [
        (p.what, p.sparsity, p.top1, p.compressed_bytes) for p in expected
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")
    told = json.loads(line.out("sweep", file, *args, "--json"))
    assert [p["loss"] for p in told["points"]] == pytest.approx([p.loss for p in expected], rel=1e-6)
    assert told["data"] == "digits:test"


def test_sweep_keeps_the_models_in_a_folder(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for _ in range(2):  # into a new folder, and into one that is there
        line.ok("sweep", file, "--data", "digits", "--points", "0.25,0.9", "--end", "strip", "-o", folder)
    names = ["sweep.csv", "unit-0.25.onnx", "unit-0.9.onnx", "weight-0.25.onnx", "weight-0.9.onnx"]
    assert sorted(p.name for p in folder.iterdir()) == names
    told = json.loads(line.out("evaluate", folder / "unit-0.9.onnx", "--data", "digits", "--json"))
    assert told["top1"] == next(p.top1 for p in measured("strip").points if (p.what, p.sparsity) == ("unit", 0.9))


def test_sweep_refuses(file: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    before = sorted(tmp_path.iterdir())
    for words, code, says in (
        (["--points", "0.5,x"], 2, "--points takes numbers"),
        (["--points", "2"], 1, "in [0, 1)"),
        (["--what", "weights"], 1, "did you mean 'weight'"),
        (["--plot", tmp_path / "p.bmp"], 1, "no picture format"),
    ):
        said = line.fails("sweep", file, "--data", "digits", "-o", tmp_path / "s.csv", *words, code=code)
        assert says in said
    assert "neither a .csv" in line.fails("sweep", file, "--data", "digits", "-o", notes)
    assert "is the input file" in line.fails("sweep", file, "--data", "digits", "-o", file)
    assert sorted(tmp_path.iterdir()) == before


# ------------------------------------------------------------------------------------------------------- the page


def test_commands_of_the_page_exist_with_their_options() -> None:
    page = (ROOT / "docs" / "unstructured.md").read_text()
    lines = re.findall(r"^onnxprune (\S+)(.*)$", page, re.M)
    assert {command for command, _ in lines} == {"sparsify", "sweep"}
    for command, words in lines:
        known = {o for p in main.commands[command].params for o in p.opts}
        assert {w for w in words.split("#")[0].split() if w.startswith("-")} <= known
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / picture).stat().st_size < 100_000
