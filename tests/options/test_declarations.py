"""The declaration of options: types, bounds, choices, texts, defaults; rules for every option dataclass."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

import numpy as np
import pytest

import onnxprune.options as declarations
from onnxprune.errors import OnnxPruneError
from onnxprune.options import (
    HEADINGS,
    Declared,
    OptionError,
    Options,
    SensitivitySweep,
    TaskOptions,
    declared,
    option,
)
from onnxprune.options._text import BYTES, NAMES, NUMBERS, PAIRS, RATIO_RANGE, SIZE, Text

CLASSES = sorted(
    (c for c in vars(declarations).values() if isinstance(c, type) and issubclass(c, Options) and c is not Options),
    key=lambda c: c.__name__,
)
ALL = [pytest.param(c, d, id=f"{c.__name__}.{d.name}") for c in CLASSES for d in declared(c)]


def filled(cls: type[Any], **values: Any) -> Any:
    """An instance with some value for every required option."""
    required = {d.name: "digits" if d.hint is str else d.hint("x.onnx") for d in declared(cls) if d.required}
    return cls(**{**required, **values})


@dataclass(frozen=True, kw_only=True)
class Example(Options):
    """One option of every kind."""

    count: int = option(3, help="A count.", heading="Model", ge=1)
    share: float | None = option(None, help="A share.", heading="Model", ge=0, lt=1)
    rate: float | str = option("auto", help="A rate.", heading="Model", gt=0)
    name: str = option("one", help="A name.", heading="Model", choices=("one", "other"))
    names: Sequence[str] = option((), help="Names.", heading="Model")
    points: tuple[float, ...] = option((0.5,), help="Points.", heading="Model", gt=0, lt=1)
    table: Mapping[str, Any] = option({}, help="A table.", heading="Model")
    on: bool = option(False, help="A switch.", heading="Model")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 0}, "count must be a whole number, at least 1; got 0"),
        ({"count": True}, "count must be a whole number, at least 1; got True"),
        ({"count": 1.0}, "count must be a whole number, at least 1; got 1.0"),
        ({"count": None}, "count must be a whole number, at least 1; got None"),
        ({"share": 1.0}, "share must be in [0, 1); got 1.0"),
        ({"share": float("nan")}, "share must be in [0, 1); got nan"),
        ({"share": "x"}, "share must be in [0, 1); got 'x'"),
        ({"rate": 0}, "rate must be a number or text, above 0; got 0"),
        ({"rate": float("inf")}, "rate must be a number or text, above 0; got inf"),
        ({"name": "othr"}, "unknown name 'othr'\n  try: did you mean 'other'?"),
        ({"name": 3}, "unknown name '3'"),
        ({"names": "one"}, "names must be a tuple; got 'one'"),
        ({"names": [1]}, "names must be a tuple; got [1]"),
        ({"points": (0.5, 1.0)}, "points must be a tuple, in (0, 1); got (0.5, 1.0)"),
        ({"table": ()}, "table must be a table; got ()"),
        ({"on": 1}, "on must be true or false; got 1"),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_the_option(change: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        Example(**change)
    assert says in str(caught.value)
    assert caught.value.option == next(iter(change))


def test_an_error_can_be_told_under_another_name() -> None:
    with pytest.raises(OptionError) as caught:
        Example(share=2)
    assert str(caught.value.labelled("--share")) == "--share must be in [0, 1); got 2"
    with pytest.raises(OptionError) as caught:
        Example(name="x")
    assert str(caught.value.labelled("--name")) == "unknown name 'x'\n  at: --name\n  try: known: one, other"


def test_numbers_of_numpy_become_plain_ones() -> None:
    values: dict[str, Any] = {"count": np.int64(2), "share": np.float32(0.5)}
    made = Example(**values)
    assert (type(made.count), type(made.share)) == (int, float)
    assert made == Example(count=2, share=0.5)


def test_defaults_are_not_shared() -> None:
    assert Example().table is not Example().table


@pytest.mark.parametrize(
    ("reader", "text", "value"),
    [
        (NUMBERS, "0.5,1", (0.5, 1.0)),
        (NUMBERS, "", ()),
        (NAMES, " a, b,", ("a", "b")),
        (SIZE, "3x4", (3, 4)),
        (SIZE, "5", (5, 5)),
        (RATIO_RANGE, "0.1:0.7:0.3", (0.1, 0.4, 0.7)),
        (RATIO_RANGE, "0.5,0.25", (0.5, 0.25)),
        (RATIO_RANGE, ",", ()),
        (BYTES, "500MB", 500 * 2**20),
        (BYTES, "1.5kb", 1536),
        (BYTES, "7", 7),
        (PAIRS, ("a=1", "b=0.5", "c=x=y", "d="), {"a": 1, "b": 0.5, "c": "x=y", "d": ""}),
    ],
)
def test_texts_are_read(reader: Text, text: Any, value: Any) -> None:
    assert reader.read(text) == value


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (NUMBERS, "a"), (SIZE, "x"), (SIZE, "3xx"), (RATIO_RANGE, "a"), (RATIO_RANGE, "0.1:0.9:0"),
        (RATIO_RANGE, "0.9:0.1:0.1"), (RATIO_RANGE, "0:1:1e-9"), (RATIO_RANGE, "0:inf:1"), (BYTES, "lots"),
        (BYTES, "-1"), (BYTES, "infGB"), (BYTES, "1XB"),
        (PAIRS, ("a",)),
    ],
)  # fmt: skip
def test_other_texts_are_refused(reader: Text, text: Any) -> None:
    with pytest.raises(ValueError):
        reader.read(text)


# ------------------------------------------------------------------------------------------------ every declaration


@pytest.mark.parametrize(("cls", "d"), ALL)
def test_every_option_says_what_it_is(cls: type[Options], d: Declared) -> None:
    assert d.spec.help.strip() == d.spec.help != ""
    assert d.spec.heading in HEADINGS
    assert all(flag.startswith("-") for flag in d.flags)


@pytest.mark.parametrize(("cls", "d"), ALL)
def test_every_default_is_valid_and_shown_as_text_that_reads_back(cls: type[Options], d: Declared) -> None:
    value = getattr(filled(cls), d.name)
    if d.default is not MISSING:
        assert value == d.default
    if d.spec.text is not None and d.shown and d.spec.shown is None:
        assert d.spec.text.read(d.shown) == d.default


@pytest.mark.parametrize(("cls", "d"), ALL)
def test_every_bound_and_choice_is_enforced(cls: type[Options], d: Declared) -> None:
    spec = d.spec
    wrong: list[Any] = [object()]
    if spec.bounds:
        low = spec.ge if spec.ge is not None else spec.gt
        high = spec.le if spec.le is not None else spec.lt
        outside = [v for v in (None if low is None else low - 1, None if high is None else high + 1) if v is not None]
        wrong += [(v,) if "tuple" in str(d.hint) else v for v in outside]
    if spec.choices:
        wrong += ["nothing", ("nothing",)]
    for value in wrong:
        with pytest.raises(OnnxPruneError):
            filled(cls, **{d.name: value})
    for choice in spec.choices:
        value = (choice,) if "tuple" in str(d.hint) or "Sequence" in str(d.hint) else choice
        assert getattr(filled(cls, **{d.name: value}), d.name) == value


def test_an_option_of_the_same_name_is_the_same_everywhere() -> None:
    """The type and bounds of a name may differ between stages, its spelling may not."""
    spellings: dict[str, set[str]] = {}
    for cls in CLASSES:
        for d in declared(cls):
            spellings.setdefault(d.name, set()).add(d.flags[-1].split("/")[0])
    assert {n: s for n, s in spellings.items() if len(s) > 1} == {}


def test_options_load_nothing_heavy() -> None:
    code = "import sys, onnxprune.options; print(sorted({m.split('.')[0] for m in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"numpy", "onnx", "onnxruntime", "torch", "click", "rich"} & set(eval(found))


@pytest.mark.parametrize(
    ("given", "name"),
    [("top-1", "top1"), ("Top-5", "top5"), ("accuracy", "top1"), ("acc@1", "top1"), ("mAP", "map"), ("mIoU", "miou"),
     ("loss", "loss"), ("my.module:Top-1", "my.module:Top-1")],
)  # fmt: skip
def test_metrics_have_one_name(given: str, name: str) -> None:
    assert TaskOptions(metric=given).metric == name
    assert SensitivitySweep(metric=given).metric == name
