"""The strict reader: any document of a dataclass survives its text; closed holes are refused with their place."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from graphs import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

from onnxprune._utils.fields import Bounds, Count, Index, options, read_options, required
from onnxprune._utils.strict import MAX_DEPTH, MAX_DIGITS, Format
from onnxprune.errors import OnnxPruneError


@dataclass(frozen=True)
class Inner:
    count: Count
    indices: tuple[Index, ...] = ()
    error: float | None = None


@dataclass(frozen=True)
class Document:
    name: str
    kind: Literal["heads", "head_dim"]
    ratio: Annotated[float, Bounds(at_least=0, below=1)]
    groups: Mapping[str, Inner]
    pair: tuple[float, str] = (0.0, "")
    flag: bool = False
    either: int | str = 0
    free: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    inner: Inner | None = None

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise OnnxPruneError("the name is bad", fix="choose another")


FORMAT = Format("test file", 2**20, schema=1, fix="make it anew")
TOML = dataclasses.replace(FORMAT, syntax="toml", schema=None)
ANY = Format("test file", 2**24)

texts = st.text(max_size=8).filter(lambda t: t != "bad")
numbers = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(
    Inner, st.integers(1, 10**60), st.lists(st.integers(0, 99), max_size=4).map(tuple), st.none() | numbers
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**60), 10**60) | numbers | texts,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(texts, inside, max_size=3),
)
documents = st.builds(
    Document, texts, st.sampled_from(["heads", "head_dim"]), st.floats(0, 1, exclude_max=True),
    st.dictionaries(texts, inners, max_size=3), st.tuples(numbers, texts), st.booleans(), st.integers(-9, 9) | texts,
    st.dictionaries(texts, plain, max_size=3), st.lists(numbers, max_size=4).map(tuple), st.none() | inners,
)  # fmt: skip


def written(document: Document, **changes: Any) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return {"schema": 1, **json.loads(json.dumps(dataclasses.asdict(document))), **changes}


GOOD = Document("a", "heads", 0.5, {"conv1": Inner(4, (0, 2)), "layer1.0/conv": Inner(2)})


@PROPERTY(max_examples=50)
@given(documents)
def test_any_document_survives_its_text(document: Document) -> None:
    text = json.dumps({"schema": 1, **dataclasses.asdict(document)})
    data = FORMAT.parse(text, "here")
    assert FORMAT.fields(Document, data, "here") == document


@PROPERTY(max_examples=100)
@given(plain)
def test_plain_data_is_read_as_json_reads_it(data: Any) -> None:
    text = json.dumps(data)
    assert ANY.parse(text, "here") == json.loads(text)
    assert ANY.parse(text.encode(), "here") == json.loads(text)


@PROPERTY(max_examples=100)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_read_or_refused_with_one_error(text: str | bytes) -> None:
    for form in (FORMAT, TOML):
        try:
            form.parse(text, "here")
        except OnnxPruneError as err:
            assert err.what.startswith("not a valid test file: ")  # noqa: PT017
            assert str(err.where).startswith("here")  # noqa: PT017


def test_golden_document_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(written(GOOD)))
    assert FORMAT.read(Document, path) == GOOD


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


REFUSED = {
    "repeated key": ('{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' is given twice", "x: a"),
    "repeated key at the top": ('{"a": 1, "a": 1}', "the key 'a' is given twice", "x"),
    "repeated key in a list": ('{"a": [1, {"b": 1, "b": 1}]}', "the key 'b' is given twice", "x: a[1]"),
    "NaN": ('{"a": [0.5, NaN]}', "NaN is not JSON", "x: a[1]"),
    "infinity": ('{"a": -Infinity}', "-Infinity is not JSON", "x: a"),
    "too large for a float": ('{"a": {"b c": 1e400}}', "1e400 is not a finite number", 'x: a."b c"'),
    "long whole number": (f'{{"a": {10**MAX_DIGITS}}}', f"a number of more than {MAX_DIGITS} digits", "x: a"),
    "long fraction": (f'{{"a": 0.{"1" * MAX_DIGITS}}}', f"a number of more than {MAX_DIGITS} digits", "x: a"),
    "endless whole number": ("1" * 5000, "not JSON", "x"),
    "deep": (deep(MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} levels", "x: [0][0][0]"),
    "very deep": (deep(100_000), f"not JSON (nested deeper than {MAX_DEPTH} levels)", "x"),
    "trailing text": ("{} {}", "not JSON (Extra data: line 1 column 4", "x"),
    "empty": ("", "not JSON", "x"),
    "byte order mark": ("\ufeff{}", "not JSON", "x"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_closed_holes_are_refused_with_their_place(name: str) -> None:
    text, what, where = REFUSED[name]
    with pytest.raises(OnnxPruneError) as caught:
        FORMAT.parse(text, "x")
    assert what in caught.value.what
    assert (caught.value.where, caught.value.fix) == (where, "make it anew")


def test_names_of_files_that_are_not_utf8_are_read() -> None:
    name = os.fsdecode(b"caf\xe9.onnx")
    assert ANY.parse(json.dumps({"model": name}), "x") == {"model": name}


def test_limits_are_exact() -> None:
    assert ANY.parse(str(10**MAX_DIGITS - 1), "x") == 10**MAX_DIGITS - 1
    assert ANY.parse(deep(MAX_DEPTH), "x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = 1\na = 2", "not valid TOML"),
        ("[a]\nb = 1\n[a]\nc = 1", "not valid TOML"),
        ("a = inf", "inf is not a finite number"),
        ("a = nan", "nan is not a finite number"),
        ("a = 1e999", "1e999 is not a finite number"),
        (f"a = {10**MAX_DIGITS}", "more than 64 digits"),
        ("a = " + deep(100_000), "not valid TOML (nested deeper"),
        ("x = 1\n" + ".".join(["a"] * 100_000) + " = 1", "line 2: a key of more than 64 parts"),
        (" . ".join(['"a b"', "'c'"] * 50_000) + " = 1", "line 1: a key of more than 64 parts"),
        ("[" + ".".join(["a"] * 100) + "]", "a key of more than 64 parts"),
        ("x = {" + ".".join(["a"] * 100) + " = 1}", "a key of more than 64 parts"),
    ],
)
def test_toml_is_refused_as_json_is(text: str, says: str) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        TOML.parse(text, "x")
    assert says in caught.value.what


@pytest.mark.parametrize("piece", ["a", "'", '"', ".", "a.", "'a'.", "a ", " .", "[", "a=1#" + "." * 9 + "\n"])
def test_a_megabyte_of_anything_takes_no_time(piece: str) -> None:
    """Finding long keys takes time in proportion to the text: at worst seconds, where squares would take hours."""
    text = piece * (2**20 // len(piece))
    with pytest.raises(OnnxPruneError):
        TOML.parse("x = 1\n?" + text, "x")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(OnnxPruneError, match=r"not UTF-8 text \(byte 7\)"):
        FORMAT.load(path)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    os.truncate(path, FORMAT.max_bytes + 1)
    with pytest.raises(OnnxPruneError, match="too large"):
        FORMAT.load(path)
    os.truncate(path, 2)
    assert FORMAT.load(path) == {}


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, kind in (("fifo", "a named pipe"), ("link", "a device")):
        with pytest.raises(OnnxPruneError, match=f"cannot read the test file .*it is {kind}"):
            FORMAT.load(tmp_path / name)


def test_what_cannot_be_opened_names_the_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(OnnxPruneError, match=f"cannot read the test file '{path}'"):
            FORMAT.load(path)


# ------------------------------------------------------------------------------------------------------------- fields

FIELDS: list[tuple[Any, str, str, str | None]] = [
    ([], "not an object", "x", None),
    ({}, "schema None; this version reads 1", "x", None),
    (written(GOOD, schema=2, more=1), "schema 2; this version reads 1", "x", None),
    (written(GOOD, schema=True), "schema True; this version reads 1", "x", None),
    (written(GOOD, schema=1.0), "schema 1.0; this version reads 1", "x", None),
    (written(GOOD, grops={}), "unknown key 'grops'", "x", "did you mean 'groups'?"),
    ({k: v for k, v in written(GOOD).items() if k != "flag"}, "the key 'flag' is missing", "x", None),
    (written(GOOD, name=3), "'name' takes text in quotes, not 3", "x", None),
    (written(GOOD, name="bad"), "the name is bad", "x", "choose another"),
    (written(GOOD, flag=1), "'flag' takes true or false, not 1", "x", None),
    (written(GOOD, flag=None), "'flag' takes true or false, not None", "x", None),
    (written(GOOD, kind="haeds"), "unknown kind 'haeds'", "x", "did you mean 'heads'?"),
    (written(GOOD, kind=1), "'kind' takes one of 'heads', 'head_dim', not 1", "x", None),
    (written(GOOD, ratio=1), "'ratio' takes a number, at least 0 and below 1, not 1", "x", None),
    (written(GOOD, ratio=True), "'ratio' takes a number, at least 0 and below 1, not True", "x", None),
    (written(GOOD, either=1.5), "'either' takes a whole number or text in quotes, not 1.5", "x", None),
    (written(GOOD, pair=[1]), "'pair' takes a list of 2 (a number, text in quotes), not [1]", "x", None),
    (written(GOOD, pair=[1, 2]), "'pair[1]' takes text in quotes, not 2", "x", None),
    (written(GOOD, values=[0.5, "a"]), "'values[1]' takes a number, not 'a'", "x", None),
    (written(GOOD, values={}), "'values' takes a list, each a number, not {}", "x", None),
    (written(GOOD, groups=[]), "'groups' takes an object, not []", "x", None),
    (written(GOOD, groups={"a.b": []}), "not an object", 'x: groups."a.b"', None),
    (written(GOOD, groups={"a": {"count": 0}}), "the key 'indices' is missing", "x: groups.a", None),
    (written(GOOD, groups={"a": {"count": 0, "indices": [], "error": None}}),
     "'count' takes a whole number, at least 1, not 0", "x: groups.a", None),
    (written(GOOD, groups={"a": {"count": 1, "indices": [0, 1, True], "error": None}}),
     "'indices[2]' takes a whole number, at least 0, not True", "x: groups.a", None),
    (written(GOOD, groups={"a": {"count": 1, "indices": [], "error": "no"}}), "'error' takes a number, not 'no'",
     "x: groups.a", None),
    (written(GOOD, inner={"count": 1}), "the key 'indices' is missing", "x: inner", None),
    (written(GOOD, **{"k" * 10**6: 1}), f"unknown key '{'k' * 60}...'", "x", None),
]  # fmt: skip


@pytest.mark.parametrize(("data", "what", "where", "fix"), FIELDS, ids=[f[1][:50] for f in FIELDS])
def test_fields_are_refused_with_their_place(data: Any, what: str, where: str, fix: str | None) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        FORMAT.fields(Document, data, "x")
    assert caught.value.what == f"not a valid test file: {what}"
    assert caught.value.where == where
    if fix is not None:
        assert caught.value.fix == fix
    elif "unknown key" not in what:
        assert caught.value.fix == "make it anew"


def test_whole_numbers_become_floats_only_where_floats_are_due() -> None:
    made = FORMAT.fields(Document, written(GOOD, ratio=0, either=1, values=[1, 2.5], free={"n": 1}), "x")
    assert [type(v) for v in (made.ratio, made.either, *made.values, made.free["n"])] == [float, int, float, float, int]


def test_bounds_are_said_in_words() -> None:
    assert str(Bounds(above=0)) == "above 0"
    assert str(Bounds(at_least=1, at_most=8)) == "at least 1 and at most 8"
    assert [Bounds(above=0, at_most=1).hold(v) for v in (0, 0.5, 1, 2, math.nan)] == [False, True, True, False, False]


# ------------------------------------------------------------------------------------------------------- flat options


@dataclass(frozen=True)
class Group:
    size: tuple[int, ...] = ()
    rate: float = 0.5


@dataclass(frozen=True)
class Step:
    name: str
    group: Group = Group()
    seed: int = 0


def test_a_flat_table_fills_the_dataclasses_inside() -> None:
    assert set(options(Step)) == {"name", "size", "rate", "seed"}
    assert required(Step) == ["name"]
    made = read_options(Step, {"name": "a", "size": [1, 2], "rate": 1}, "step 1", {"seed": 3, "device": "cpu"})
    assert made == Step("a", Group((1, 2), 1.0), 3)


@pytest.mark.parametrize(
    ("table", "what", "where"),
    [
        ({"name": "a", "sise": [1]}, "unknown key 'sise'", "step 1"),
        ({"size": [1]}, "the key 'name' is missing", "step 1"),
        ({"name": "a", "size": ["b"]}, "'size[0]' takes a whole number, not 'b'", "step 1"),
        ({"name": "a", "seed": 1.0}, "'seed' takes a whole number, not 1.0", "step 1"),
    ],
)
def test_a_flat_table_is_refused_with_its_place(table: dict[str, Any], what: str, where: str) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        read_options(Step, table, "step 1")
    assert (caught.value.what, caught.value.where) == (what, where)


def test_documents_of_other_programs_may_hold_more() -> None:
    data = {"count": 2, "indices": [], "error": None, "area": [1], "more": {}}
    assert dataclasses.replace(ANY, extra=True).fields(Inner, data, "x") == Inner(2)
    with pytest.raises(OnnxPruneError, match="unknown key 'area'"):
        ANY.fields(Inner, data, "x")


@pytest.mark.parametrize("number", [10**400, -(10**5000)], ids=["400 digits", "5000 digits"])
def test_a_whole_number_beyond_floats_is_refused(number: int) -> None:
    with pytest.raises(OnnxPruneError, match=r"'ratio' takes .*, not a number of more than 300 digits"):
        FORMAT.fields(Document, written(GOOD, ratio=number), "x")
