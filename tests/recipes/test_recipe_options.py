"""Steps of recipes take the declared options, under the same names and bounds as the command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from onnxprune.errors import OnnxPruneError
from onnxprune.options import Declared, declared
from onnxprune.recipes import STEPS
from onnxprune.recipes._options import read

# The least that a step says, and what some options go with.
LEAST: dict[str, dict[str, Any]] = {
    "score": {"criterion": "l1"},
    "sensitivity": {"criterion": "l1"},
    "plan": {"criterion": "l1", "ratio": 0.5},
    "prune": {"criterion": "l1", "ratio": 0.5},
    "sparsify": {"sparsity": 0.5},
}
COMPANIONS: dict[tuple[str, str], dict[str, Any]] = {
    **{(do, name): {"ratio": None, "target": "macs=0.5"} for do in ("plan", "prune")
       for name in ("min_group_accuracy", "max_loss", "target")},
    ("sensitivity", "max_loss"): {"metric": "loss"},
    ("sparsify", "pattern"): {"sparsity": None},
    ("sparsify", "sparsity"): {"pattern": None},
    ("prune", "recover_images"): {"recover": True},
    ("apply", "recover_images"): {"recover": True},
    **{(do, "reconstruct_blocks"): {"recover": True} for do in ("prune", "apply")},
    **{("retrain", name): {"method": "slimming"} for name in (
        "params", "ratio", "target", "round_to", "min_channels", "max_ratio", "include", "exclude", "protect",
        "overrides", "only", "max_blocks")},
}  # fmt: skip
VALUES: dict[str, Any] = {
    "target": "macs=0.5", "criterion": "l2", "metric": "loss", "params": {}, "pattern": "2:4", "size": [8, 8],
    "layout": "nhwc", "augment": ["flip"], "method": "slimming", "devices": 1, "num_nodes": 1, "lr": 0.1,
    "overrides": {"conv*": 0.5}, "round_to": 8,
}  # fmt: skip


def declared_in(cls: Any) -> Iterator[Declared]:
    """The options of a step, and of the dataclasses inside it."""
    yield from declared(cls)
    hints = get_type_hints(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            yield from declared_in(hints[f.name])


def a_value(d: Declared) -> Any:
    """A value that an option takes, as TOML has it."""
    if d.name in VALUES:
        return VALUES[d.name]
    hint = str(d.hint)
    if d.spec.choices:
        return [d.spec.choices[0]] if "tuple" in hint or "Sequence" in hint else d.spec.choices[-1]
    if "bool" in hint:
        return True
    if "tuple[float" in hint:
        return [0.5]
    if "tuple" in hint or "Sequence" in hint:
        return ["x*"]
    if "int" in hint or "float" in hint:
        return 0.5 if "float" in hint else int(d.spec.ge or 0) + 1
    return d.default if d.default not in (MISSING, None) else "x"


ALL = [pytest.param(do, d, id=f"{do}.{d.name}") for do, cls in STEPS.items() for d in declared_in(cls)]


@pytest.mark.parametrize(("do", "d"), ALL)
def test_a_step_takes_every_declared_option(do: str, d: Declared) -> None:
    table = {**LEAST.get(do, {}), **COMPANIONS.get((do, d.name), {}), d.name: a_value(d)}
    step = read(STEPS[do], {k: v for k, v in table.items() if v is not None}, "step")
    found = [owner for owner in _owners(step) if any(f.name == d.name for f in fields(owner))]
    wanted = a_value(d)
    assert getattr(found[0], d.name) == (tuple(wanted) if isinstance(wanted, list) else wanted)


def _owners(step: Any) -> Iterator[Any]:
    """The dataclasses in a step, inner ones first."""
    for f in fields(step):
        value = getattr(step, f.name)
        if is_dataclass(value):
            yield from _owners(value)
    yield step


@pytest.mark.parametrize(("do", "d"), [p for p in ALL if p.values[1].spec.bounds])
def test_a_value_out_of_bounds_is_one_error_with_the_key(do: str, d: Declared) -> None:
    low = d.spec.ge if d.spec.ge is not None else d.spec.gt
    value: Any = -1 if low is None else int(low) - 1
    value = [float(value)] if "tuple" in str(d.hint) else value
    with pytest.raises(OnnxPruneError) as caught:
        read(STEPS[do], {**LEAST.get(do, {}), **COMPANIONS.get((do, d.name), {}), d.name: value}, "step")
    assert d.name in caught.value.what
    assert caught.value.where == "step"
