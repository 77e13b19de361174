"""The comparison with other tools: removed channels found from the weights, the masked original, the page."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import onnxprune as op
from onnxprune.execution.sessions import Session

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "digits_cnn_folded.onnx"


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import bench_peers
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return bench_peers


@pytest.mark.parametrize("axis", [0, 1])
def test_kept_channels_are_found_from_the_values(peers: ModuleType, axis: int) -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 500, (12, 10, 3, 3)).astype(np.float32)  # every value about twice
    rows, columns = np.array([0, 3, 4, 11]), np.array([1, 2, 7, 8, 9])
    after = before[np.ix_(rows, columns)]
    found = peers.kept_places(before, after, axis)
    assert found.tolist() == (rows if axis == 0 else columns).tolist()


def test_changed_weights_have_no_places(peers: ModuleType) -> None:
    before = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    assert peers.kept_places(before, before[:3] * np.float32(1.01), 0) is None


@pytest.mark.parametrize("groups", [(0, 1, 2, 3), (1, 3)], ids=["all groups", "two groups"])
def test_inputs_of_grouped_layers_are_masked_group_by_group(peers: ModuleType, groups: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    full = rng.standard_normal((4, 5, 6, 3)).astype(np.float32)  # group, outputs, inputs, kernel
    kept = [sorted(rng.choice(6, 4, replace=False).tolist()) for _ in range(4)]
    small = np.concatenate([full[g][:, kept[g]] for g in groups])
    found = peers._zeroed_groups(full.reshape(20, 6, 3), small, 4, len(groups)).reshape(full.shape)
    for g in range(4):
        zero = [i for i in range(6) if g in groups and i not in kept[g]]
        assert np.flatnonzero((found[g] == 0).all((0, 2))).tolist() == zero
        assert (np.delete(found[g], zero, 1) == np.delete(full[g], zero, 1)).all()


def test_a_tool_that_takes_too_much_cpu_time_is_stopped(peers: ModuleType) -> None:
    before = signal.getsignal(signal.SIGPROF)
    # The handler is called, and no signal sent: a signal that reaches the process elsewhere ends it with its tests.
    with peers.within(60):
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 0
        stop = signal.getsignal(signal.SIGPROF)
    assert callable(stop)
    with pytest.raises(TimeoutError, match="not done after 60 s of CPU"):
        stop(signal.SIGPROF, None)
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
    assert signal.getsignal(signal.SIGPROF) == before


def test_a_pruned_model_equals_its_masked_original_and_a_wrong_one_does_not(peers: ModuleType) -> None:
    before = op.to_proto(op.load(MODEL))
    after = op.to_proto(op.prune(MODEL, target="macs=0.5").model)
    found = peers.figures(before, after, peers.macs_of(before))
    assert found["runs"]
    assert found["macs"] == pytest.approx(0.5, abs=0.05)
    assert found["difference"] < 1e-5
    feed = peers.feeds_of(before)
    assert not np.allclose(Session(peers.masked(before, after)).run(feed)[0], Session(before).run(feed)[0], atol=1e-4)
    bias = next(i for i in after.graph.initializer if i.name.endswith("bias"))
    values = np.frombuffer(bias.raw_data, np.float32) + np.float32(1)
    bias.raw_data = values.tobytes()
    assert peers.figures(before, after, peers.macs_of(before))["difference"] > 1e-3


def test_the_page_has_the_results_on_record(peers: ModuleType) -> None:
    document = json.loads((ROOT / "tools" / "peers.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert peers.page_of(document["versions"], document["results"]) == page
    for name, found in document["results"].items():
        if not name.startswith("trained:") and len(found) == len(peers.TOOLS):
            assert f"| {name} |" in page
    assert not re.search(r"\{\w+\}", page)


def test_results_that_are_wrong_are_not_counted(peers: ModuleType) -> None:
    right = {"macs": 0.5, "runs": True, "difference": 1e-6, "seconds": 1.0}
    results = {
        "one": dict.fromkeys(peers.TOOLS, right),
        "two": {**dict.fromkeys(peers.TOOLS, right), "onnxsim": {**right, "difference": 0.5}},
        "three": {**dict.fromkeys(peers.TOOLS, right), "torch-pruning": {"error": "IndexError: 3"}},
    }
    page = peers.page_of({"onnx": "1"}, results)
    assert "**onnxprune** halved 3 of 3" in page
    assert "**onnxsim** halved 2 of 3" in page
    assert "**torch-pruning** halved 2 of 3" in page
    assert "50.0 %, differs by 5e-01" in page
    assert "IndexError: 3" in page
