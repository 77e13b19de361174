"""Sensitivity of residual blocks: alone and together, as figures, table and picture."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.cli import main
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.studies.block_sensitivity import BlockSensitivity, block_sensitivity, plot_block_sensitivity

MODEL = Path(__file__).parents[2] / "models" / "digits_cnn_folded.onnx"


@cache
def analysis() -> Analysis:
    return op.analyze(op.load(MODEL))


@cache
def measured(labels: bool = True) -> BlockSensitivity:
    data = op.load_data("digits:test", images=48)
    return block_sensitivity(analysis(), Calibration(data if labels else op.Data(data.x, None, "plain"), threads=1))


def test_every_block_alone_and_the_best_together() -> None:
    found = measured()
    names = [b.name for b in analysis().free_blocks]
    assert [row.blocks for row in found.single] == [(n,) for n in names]
    assert found.metric == "top1"
    assert all(row.value <= found.baseline for row in found.single)
    ranked = [row.blocks[0] for row in sorted(found.single, key=lambda row: -row.value)]
    assert [row.blocks for row in found.together] == [tuple(ranked[:n]) for n in range(1, len(names) + 1)]
    shares = [row.macs for row in found.together]
    assert shares == sorted(shares, reverse=True)
    assert found.together[0] == next(row for row in found.single if row.blocks[0] == ranked[0])


def test_without_labels_outputs_are_compared_with_the_original() -> None:
    found = measured(labels=False)
    better = (lambda a, b: a <= b) if found.higher_is_better else (lambda a, b: a >= b)
    assert all(better(row.value, found.baseline) for row in found.single)


def test_picture_has_a_bar_for_every_block(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_block_sensitivity(measured(), tmp_path / "blocks.svg", name="digits")
    text = (tmp_path / "blocks.svg").read_text()
    assert text.count('id="single:') == len(measured().single)
    assert 'id="together"' in text


def test_command_line_writes_figures_and_table(tmp_path: Path) -> None:
    out, table = tmp_path / "blocks.json", tmp_path / "blocks.csv"
    common = ["sensitivity", str(MODEL), "--data", "digits:test", "--images", "48", "--threads", "1", "--blocks"]
    done = CliRunner().invoke(main, [*common, "--exclude", "dense*", "-o", str(out), "--csv", str(table)])
    assert done.exit_code == 0, done.output
    read = json.loads(out.read_text())
    assert [row["blocks"] for row in read["single"]] == [["residual1"], ["separable"], ["residual2"]]
    assert len(table.read_text().splitlines()) == 1 + 3 + 2
    refused = CliRunner().invoke(main, [*common, "-c", "l2", "-o", str(out)])
    assert refused.exit_code == 2
    assert "--blocks removes whole blocks" in refused.output


@pytest.mark.parametrize(
    ("chosen", "message"),
    [({"include": ["nothing*"]}, "unknown group"), ({"exclude": ["*"]}, "no block can be removed")],
)
def test_no_blocks_is_an_error(chosen: dict[str, list[str]], message: str) -> None:
    data = Calibration(op.load_data("digits:test", images=8), threads=1)
    with pytest.raises(OnnxPruneError, match=message):
        block_sensitivity(analysis(), data, **chosen)
