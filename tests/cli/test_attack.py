"""A sample of `make attack`: damaged files of every format, and the failures that were found and mended."""

from __future__ import annotations

import base64
import json
import random
import zlib
from functools import cache
from pathlib import Path

import pytest
from damage import mutations
from damage.attack_targets import some, targets
from damage.attacks import Case, Target, judged

STORED = Path(__file__).parents[1] / "regressions" / "attacks"
SAMPLE = 60


@cache
def found() -> list[Target]:
    return targets(training=False)


@pytest.mark.parametrize("part", range(6))
def test_a_sample_of_attacks_is_answered(part: int) -> None:
    for i, target in enumerate(some(found(), 23, SAMPLE)[part::6]):
        case = Case(target, 1000 * part + i, 1 + i % 3)
        verdict = judged(target, case.data())
        assert not verdict.wrong, f"{target.name} {case.seed} {case.changes}: {verdict.wrong}\n{verdict.output}"


@pytest.mark.parametrize("name", sorted(p.name for p in STORED.glob("*.json")))
def test_a_stored_attack_is_answered(name: str) -> None:
    notes = json.loads((STORED / name).read_text(encoding="utf-8"))
    files = {path: zlib.decompress(base64.b64decode(text)) for path, text in notes["files"].items()}
    target = Target(
        name, files, notes["attacked"], notes["words"], (), frozenset(notes["outputs"]), frozenset(notes["kept"])
    )
    verdict = judged(target, files[notes["attacked"]])
    assert not verdict.wrong, f"{verdict.wrong}\n{verdict.output}"


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (b'{"a": [1, {"b": null}], "c": "x"}\n{"d": 2}\n', mutations.JSON),
        (b'a = 1\n[t]\nb = "x"\n', mutations.TOML),
        (b"\x08\x07\x3a\x02\x12\x00", mutations.MODEL),
        (b"not an archive", mutations.ARRAYS),
    ],
)
def test_damage_is_the_same_every_time(data: bytes, kinds: tuple[mutations.Mutation, ...]) -> None:
    changed = 0
    for kind in kinds:
        for seed in range(20):
            one, other = (kind(data, random.Random(seed)) for _ in range(2))
            assert one == other
            changed += one != data
    assert changed > 10


def test_wrong_answers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(text: str, code: int = 1) -> str:
        monkeypatch.setattr("damage.attacks._called", lambda words: (code, "", text, ""))
        target = Target("t", {"x": b"1"}, "x", ["inspect", "x"], ())
        return judged(target, b"1").wrong

    assert not answers("error: a\n  at: b\n  try: c\n")
    assert answers("error: a\nb\nc\nd\n")
    assert answers("error: a\nerror: b\n")
    assert answers("error: \x1b[2J\n")
    assert answers("Traceback (most recent call last)\n")
    assert answers("error: internal error: KeyError: 1\n  at: onnxprune/x.py, line 1\n", 4)
    assert answers("", 1)
    assert answers("", -2)
    assert answers("x.py:3: RuntimeWarning: overflow\n", 0)
