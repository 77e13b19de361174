"""loss_change against full forward passes of masked copies, and against its formula on a network done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from command_line import CommandLine
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.loss_change import LossChange, class_means, overall
from onnxprune.criteria.scoring import Scores, score
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, load_data
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import cross_entropy
from onnxprune.ir.reader import load
from onnxprune.passes import InsertMasks
from onnxprune.pipeline import analyze, plan
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, Removal

MODELS = Path(__file__).parent.parent.parent / "models"
ATOL = 1e-5  # float32 logits of size 10: the same sums in another order


def naive_losses(analysis: Analysis, x: NDArray[Any], y: NDArray[np.int64], gone: dict[str, list[int]]) -> Any:
    """Cross-entropy of every sample in a copy of the model that does not read some channels."""
    plan = Plan("", {n: Removal(analysis[n].channels, tuple(c)) for n, c in gone.items()})
    session = Session(InsertMasks(plan, analysis)(analysis.model), threads=1)
    return cross_entropy(session.run({session.inputs[0]: x})[0], y)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze(load(MODELS / "digits_cnn.onnx"))


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train", images=60)


def calibration(data: Data, **options: Any) -> Calibration:
    return Calibration(data, **{"threads": 1, **options})


@pytest.fixture(scope="module")
def found(analysis: Analysis, data: Data) -> Scores:
    return score(analysis, "loss_change", calibration=calibration(data))


def test_scores_are_those_of_full_forward_passes(analysis: Analysis, data: Data, found: Scores) -> None:
    assert data.y is not None
    whole = naive_losses(analysis, data.x, data.y, {})
    signs = set()
    for g in analysis.groups:
        assert found.groups[g.name].shape == (g.channels,)
        top = np.argsort(-np.abs(found.groups[g.name]))[:3].tolist()  # those with something to compare
        for c in {0, *top}:
            wanted = float((naive_losses(analysis, data.x, data.y, {g.name: [c]}) - whole).mean())
            assert found.groups[g.name][c] == pytest.approx(wanted, abs=ATOL)
            signs.add(np.sign(wanted))
    assert {-1.0, 1.0} <= signs
    assert max(s.max() for s in found.groups.values()) > 100 * ATOL


def test_importance_by_class_is_that_of_its_samples(analysis: Analysis, data: Data, found: Scores) -> None:
    name = analysis.groups[1].name
    assert data.y is not None
    channel = int(np.argmax(found.groups[name]))
    change = naive_losses(analysis, data.x, data.y, {name: [channel]}) - naive_losses(analysis, data.x, data.y, {})
    assert list(found.per_class) == list(found.groups)
    assert list(found.per_class[name]) == list(range(10))
    for k, values in found.per_class[name].items():
        assert values.shape == (analysis[name].channels,)
        assert values[channel] == pytest.approx(change[data.y == k].mean(), abs=ATOL)
    shares = np.bincount(data.y) / len(data)
    table = np.stack(list(found.per_class[name].values()))
    np.testing.assert_allclose(shares @ table, found.groups[name], atol=1e-12)


LINEAR = """<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,3] x) => (float[N,2] y) {
  a = Gemm (x, first) b = Relu (a) y = Gemm (b, second) }"""


def test_by_hand() -> None:
    """Two hidden neurons; the second one misleads, so that the loss falls without it."""
    weights = {
        "first": np.array([[1, 0], [0, 1], [0, 0]], np.float32),
        "second": np.array([[2, 0], [0, 3]], np.float32),
    }
    proto = onnx.parser.parse_model(LINEAR)
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    analysis = analyze(load(proto))
    x = np.array([[1, 1, 0], [2, 1, 0], [0, 2, 1]], np.float32)
    y = np.array([0, 0, 0])

    def loss(keep: list[float]) -> Any:
        z = np.maximum(x @ weights["first"], 0) * np.array(keep) @ weights["second"]
        return np.log(np.exp(z).sum(1)) - z[np.arange(3), y]

    wanted = np.array([(loss(k) - loss([1, 1])).mean() for k in ([0, 1], [1, 0])])
    assert wanted[0] > 0 > wanted[1]
    for absolute in (False, True):
        found = score(analysis, "loss_change", calibration=calibration(Data(x, y, "hand")), absolute=absolute)
        [scores] = found.groups.values()
        np.testing.assert_allclose(scores, np.abs(wanted) if absolute else wanted, rtol=1e-6)
        [by_class] = found.per_class.values()
        assert list(by_class) == [0]  # the model's second class has no samples
        np.testing.assert_allclose(by_class[0], scores, rtol=1e-12)


def test_dead_channels_change_nothing_to_the_last_bit(found: Scores) -> None:
    zeros = [int((s == 0).sum()) for s in found.groups.values()]
    assert sum(zeros) >= 5  # digits_cnn has dead channels


@pytest.mark.parametrize("options", [{"batch": 7}, {"threads": 3}])
def test_how_it_is_run_does_not_matter(analysis: Analysis, data: Data, found: Scores, options: dict[str, Any]) -> None:
    name = analysis.groups[2].name
    other = score(analysis, "loss_change", groups=[name], calibration=calibration(data, **options))
    assert list(other.groups) == list(other.per_class) == [name]
    np.testing.assert_allclose(other.groups[name], found.groups[name], atol=ATOL)


def test_bn_kept_and_folded_score_the_same(data: Data, found: Scores) -> None:
    folded = score(analyze(load(MODELS / "digits_cnn_folded.onnx")), "loss_change", calibration=calibration(data))
    assert len(found.groups) == len(folded.groups)
    for a, b in zip(found.groups.values(), folded.groups.values(), strict=True):
        np.testing.assert_allclose(a, b, atol=10 * ATOL)  # the weights themselves are rounded anew


def test_a_model_that_ends_in_softmax(data: Data) -> None:
    analysis = analyze(load(MODELS / "digits_keras.onnx"))
    pictures = replace(data, x=data.x.transpose(0, 2, 3, 1))
    found = score(analysis, "loss_change", calibration=calibration(pictures))
    assert data.y is not None
    whole = naive_losses(analysis, pictures.x, data.y, {})
    for g in analysis.groups:
        c = int(np.argmax(found.groups[g.name]))
        wanted = float((naive_losses(analysis, pictures.x, data.y, {g.name: [c]}) - whole).mean())
        assert found.groups[g.name][c] == pytest.approx(wanted, abs=ATOL)
        assert wanted > 0


def test_layers_are_compared_as_they_are(found: Scores) -> None:
    assert found.normalize == "none"
    assert plan(found, Target.parse("macs=0.7")).removed > 0


def test_progress_counts_work_up_to_all_of_it(analysis: Analysis, data: Data) -> None:
    seen: list[tuple[int, int]] = []
    names = [g.name for g in analysis.groups[:2]]
    score(
        analysis, "loss_change", groups=names, calibration=calibration(data), progress=lambda d, t: seen.append((d, t))
    )
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert len(seen) == sum(analysis[n].channels + 1 for n in names)
    assert done[-1] == seen[-1][1]


def test_means_of_classes() -> None:
    values, labels = np.array([1.0, 2.0, 4.0, 8.0]), np.array([0, 2, 0, 2])
    found = class_means(values, labels, 4)
    np.testing.assert_array_equal(found, [2.5, np.nan, 5.0, np.nan])
    assert overall(found, labels) == values.mean()
    assert overall(np.stack([found, found], 1), labels).tolist() == [3.75, 3.75]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: Data(d.x, None, "d"), "needs labels"),
        (lambda d: Data(d.x, np.append(d.y[:-1], 10), "d"), "label 10, the model 10 classes"),
        (lambda d: Data(np.full_like(d.x, np.nan), d.y, "d"), "not finite"),
        (lambda d: Data(d.x[:, :, :4], d.y, "d"), "do not fit the model's input"),
    ],
)
def test_data_that_does_not_fit_is_one_error(analysis: Analysis, data: Data, change: Any, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        score(analysis, "loss_change", calibration=calibration(change(data)))


@pytest.mark.parametrize("value", [2, "yes", None])
def test_absolute_is_yes_or_no(value: Any) -> None:
    with pytest.raises(OnnxPruneError, match="absolute"):
        LossChange(absolute=value)


def test_command_line_writes_the_table_by_class(tmp_path: Path) -> None:
    run = CommandLine("score", MODELS / "digits_cnn.onnx", "--data", "digits:train", "--images", 40)
    shown = json.loads(run.out("-c", "loss_change", "-p", "absolute=1", "--per-class", tmp_path / "t.json", "--json"))
    document = json.loads((tmp_path / "t.json").read_text())
    assert set(document) == {"schema", "model", "criterion", "groups"}
    assert document["criterion"] == {"name": "loss_change", "reduce": "mean", "absolute": 1}
    assert document["model"] == shown["model"]
    for name, scores in shown["groups"].items():
        table = document["groups"][name]
        assert list(table) == [str(k) for k in range(10)]
        assert all(len(row) == len(scores) and min(row) >= 0 for row in table.values())
        # Four samples of each class; |mean| is at most the mean of absolute values.
        assert (np.array(scores) <= np.mean(list(table.values()), axis=0) + 1e-12).all()
