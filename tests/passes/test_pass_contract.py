"""Contract of every pass, run over the whole registry."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import onnx
import pytest
from random_graphs.graphs import SIDE, Spec, build

import onnxprune.passes
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.passes import NORMALIZE, InsertMasks, Pass, Pipeline, StripChannels, all_passes, get
from onnxprune.passes.base import register
from onnxprune.pipeline import analyze
from onnxprune.plans import Plan, Removal

SPECS = {
    "residual": Spec(("residual", "squeeze_excite", "dense"), seed=1, disguise=True),
    "shapes": Spec(("shuffle", "runtime_flatten", "attention"), seed=2, opset=13, head="flatten"),
    "static": Spec(("shuffle_depthwise", "option_a", "grouped_blocks"), seed=3, opset=20, dynamic=False, disguise=True),
}
every = pytest.mark.parametrize("name", sorted(all_passes()))
on_every_model = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def case(name: str, spec: Spec) -> tuple[Pass, Model]:
    """A pass that has something to do, and the model it is applied to.

    Those that take a plan get one that removes a channel of every group: stripping works on a normalized model, passes
    that take samples as well on what stripping leaves.
    """
    cls, model = all_passes()[name], load(build(spec))
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if "plan" not in fields:
        return cls(), model
    if name == "strip_channels":
        model = Pipeline(NORMALIZE)(model)
    analysis = analyze(model)
    plan = Plan("", {g.name: Removal(g.channels, (0,)) for g in analysis.groups if g.channels > 1})
    if "calibration" not in fields:
        return cls(plan=plan, analysis=analysis), model  # type: ignore[call-arg]
    x = np.random.default_rng(1).standard_normal((21, 3, SIDE, SIDE)).astype(np.float32)
    calibration = Calibration(Data(x, None, "noise"), threads=1)
    pruned = Pipeline([StripChannels(plan, analysis)])(analysis.model)
    return cls(plan=plan, analysis=analysis, calibration=calibration), pruned  # type: ignore[call-arg]


@every
@on_every_model
def test_argument_is_not_changed(name: str, spec: Spec) -> None:
    step, model = case(name, spec)
    before = to_proto(model).SerializeToString()
    weights = {n: np.asarray(t.values).copy() for n, t in model.graph.tensors().items() if hasattr(t, "values")}
    step(model)
    assert to_proto(model).SerializeToString() == before
    for n, values in weights.items():
        assert np.array_equal(model.graph.tensors()[n].values, values)


@every
@on_every_model
def test_result_is_valid_and_keeps_names_of_inputs_and_outputs(name: str, spec: Spec) -> None:
    step, model = case(name, spec)
    result = to_proto(step(model))
    onnx.checker.check_model(result)
    assert [i.name for i in result.graph.input] == ["x"]
    assert [o.name for o in result.graph.output] == ["y"]
    shape = (2, 3, SIDE, SIDE)
    (y,) = Session(result, threads=1).run({"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)})
    assert np.isfinite(y).all()


@every
@on_every_model
def test_result_is_the_same_every_time(name: str, spec: Spec) -> None:
    step, model = case(name, spec)
    assert to_proto(step(model)).SerializeToString() == to_proto(step(model)).SerializeToString()


@every
def test_name_is_the_file_name_and_what_get_finds(name: str) -> None:
    cls = all_passes()[name]
    assert cls.name == name == Path(inspect.getfile(cls)).stem
    assert get(name) is cls
    words = [w.capitalize() for w in name.split("_")]
    assert cls.__name__ == "".join(words)


@every
def test_pass_is_a_frozen_dataclass_that_can_be_made_without_arguments(name: str) -> None:
    cls = all_passes()[name]
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    made = cls()
    assert made == cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.anything = 1  # type: ignore[attr-defined]


@every
def test_file_states_before_and_after(name: str) -> None:
    text = inspect.getmodule(all_passes()[name]).__doc__ or ""  # type: ignore[union-attr]
    assert "Before:" in text
    assert "After:" in text
    assert "Conditions:" in text


def test_every_file_of_the_folder_is_a_registered_pass() -> None:
    folder = Path(onnxprune.passes.__file__).parent
    files = {p.stem for p in folder.glob("*.py")} - {"__init__", "base", "edit"}
    assert files | {"recalibrate_batchnorm", "reconstruct_weights"} == set(all_passes())  # these are in `recovery`


def test_unknown_pass_names_the_nearest() -> None:
    with pytest.raises(OnnxPruneError, match="did you mean 'fold_shapes'"):
        get("fold_shape")


def test_second_pass_of_a_name_is_refused() -> None:
    second = dataclasses.dataclass(frozen=True)(type("Second", (all_passes()["fold_shapes"],), {}))
    with pytest.raises(OnnxPruneError, match=r"the pass 'fold_shapes' is already registered by onnxprune\.passes"):
        register(second)


class _Breaks(Pass):
    def __init__(self, how: str) -> None:
        self.how = how

    name = "breaks"  # type: ignore[misc]

    def rewrite(self, model: Model) -> Model:
        graph = model.graph
        if self.how == "renames an input":
            graph.inputs[0].name = "z"
        elif self.how == "drops an output":
            graph.outputs.clear()
        elif self.how == "reverses the nodes":
            graph.nodes.reverse()
        else:
            graph.nodes[-2].outputs[0].name = graph.nodes[0].outputs[0].name
        return model


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("renames an input", "changed the model's inputs or outputs"),
        ("drops an output", "changed the model's inputs or outputs"),
        ("reverses the nodes", "before it is computed"),
        ("computes a name twice", "exists already"),
    ],
)
def test_framework_refuses_a_pass_that(how: str, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        _Breaks(how)(load(build(SPECS["residual"])))


class _Stumbles(Pass):
    name = "stumbles"  # type: ignore[misc]

    def rewrite(self, model: Model) -> Model:
        raise ZeroDivisionError("its own mistake")


class _Follows(_Breaks):
    name = "follows"  # type: ignore[misc]


@pytest.mark.parametrize("last", [_Follows("computes a name twice"), _Stumbles()], ids=["goes on", "stumbles"])
def test_of_several_passes_the_one_that_broke_the_graph_is_named(last: Pass) -> None:
    with pytest.raises(OnnxPruneError, match="after breaks: reads"):
        Pipeline([all_passes()["fold_shapes"](), _Breaks("reverses the nodes"), last])(load(build(SPECS["residual"])))


def test_what_a_pass_raises_over_a_sound_graph_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError, match="its own mistake"):
        Pipeline([all_passes()["fold_shapes"](), _Stumbles()])(load(build(SPECS["residual"])))


def test_masks_as_one_input_keep_the_output_while_all_are_one() -> None:
    model = load(build(SPECS["residual"]))
    analysis = analyze(model)
    masked = InsertMasks(analysis=analysis, as_input=True)(model)
    assert [t.name for t in masked.graph.inputs] == ["x", "onnxprune_mask"]
    x = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    mask = np.ones(analysis.count, np.float32)
    session = Session(masked, threads=1)
    plain = Session(model, threads=1).run({"x": x})[0]
    assert np.allclose(session.run({"x": x, "onnxprune_mask": mask})[0], plain, rtol=1e-5, atol=1e-6)
    # One channel off: what masks as constants compute.
    group = analysis.groups[0]
    mask[group.components[1]] = 0
    constant = InsertMasks(Plan("", {group.name: Removal(group.channels, (1,))}), analysis)(model)
    off = session.run({"x": x, "onnxprune_mask": mask})[0]
    assert np.allclose(off, Session(constant, threads=1).run({"x": x})[0], rtol=1e-5, atol=1e-6)
    assert np.abs(off - plain).max() > 1e-4


def test_strip_makes_its_own_analysis_when_it_is_given_none() -> None:
    model = Pipeline(NORMALIZE)(load(build(SPECS["residual"])))
    analysis = analyze(model)
    plan = Plan("", {g.name: Removal(g.channels, (0,)) for g in analysis.groups if g.channels > 1})
    alone, given = StripChannels(plan)(model), StripChannels(plan, analysis)(model)
    assert to_proto(alone).SerializeToString() == to_proto(given).SerializeToString()
