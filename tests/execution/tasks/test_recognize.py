"""Recognition, from hand-made frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.metrics import MetricValue, Outcome
from onnxprune.execution.tasks.recognize import (
    Frames,
    RecognitionWatch,
    _Reader,
    alphabet_of,
    character_accuracy,
    read_alphabet,
)

ALPHABET = ("", "a", "b", "c")  # the blank first


def frames(*rows: str, blank: str = "-") -> np.ndarray:
    """Scores [n, frames, classes] of which the largest spell the rows."""
    classes = {blank: 0, "a": 1, "b": 2, "c": 3}
    return np.eye(4)[np.array([[classes[c] for c in row] for row in rows])]


def read(*rows: str) -> list[str]:
    return _Reader(Frames(0, 0, ALPHABET)).texts(Outcome([frames(*rows)], None, (), len(rows)))


def test_repeated_classes_count_once_and_blanks_separate() -> None:
    assert read("aab-b", "-----", "a-a-a", "ccc-a") == ["abb", "", "aaa", "ca"]


def test_the_blank_may_be_the_last_class_and_frames_the_first_axis() -> None:
    scores = np.roll(frames("aab-b", "c----"), -1, 2)  # classes a b c and the blank
    last = Frames(0, -1, ("a", "b", "c", ""))
    assert _Reader(last).texts(Outcome([scores], None, (), 2)) == ["abb", "c"]
    turned = Frames(1, -1, ("a", "b", "c", ""))
    assert _Reader(turned).texts(Outcome([scores.swapaxes(0, 1)], None, (), 2)) == ["abb", "c"]


def test_accuracy_of_words_and_characters() -> None:
    reader = _Reader(Frames(0, 0, ALPHABET))
    outcome = Outcome([frames("abc", "ab-", "---")], ["abc", "abc", "ab"], (), 3)
    assert reader.words(outcome) == [1, 0, 0]
    assert list(reader.edits(outcome)) == [(0, 3), (1, 3), (2, 2)]
    assert character_accuracy(reader.edits(outcome)).value == pytest.approx(1 - 3 / 8)


def test_distances_from_the_original() -> None:
    reader = _Reader(Frames(0, 0))  # without an alphabet
    same = Outcome([frames("ab-", "c--")], None, [frames("a-b", "b--")], 2)
    assert reader.agreement(same) == [1, 0]
    assert reader.divergence(Outcome([frames("ab")], None, [frames("ab")], 1)) == [0]
    assert reader.divergence(same)[1] > 0


def test_an_unknown_alphabet_is_an_error_that_names_the_option() -> None:
    with pytest.raises(OnnxPruneError, match="alphabet of the 4 classes is unknown") as err:
        _Reader(Frames(0, 0)).words(Outcome([frames("a")], ["a"], (), 1))
    assert "--alphabet" in str(err.value)


def test_alphabets_with_and_without_blank_and_space() -> None:
    assert alphabet_of(["x", "y"], 3, False, "f") == ("", "x", "y")
    assert alphabet_of(["x", "y"], 3, True, "f") == ("x", "y", "")
    assert alphabet_of(["x", "y"], 4, False, "f") == ("", "x", "y", " ")
    assert alphabet_of(["-", "x", "y"], 3, False, "f") == ("-", "x", "y")
    with pytest.raises(OnnxPruneError, match="2 characters do not fit 9 classes"):
        alphabet_of(["x", "y"], 9, False, "f")


def test_alphabet_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a\r\nß\r\n \r\n\n".encode())
    assert read_alphabet(path) == ["a", "ß", " "]
    path.write_text("\n\n")
    with pytest.raises(OnnxPruneError, match="empty"):
        read_alphabet(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(OnnxPruneError, match="not UTF-8"):
        read_alphabet(path)
    with pytest.raises(OnnxPruneError, match="cannot read the alphabet"):
        read_alphabet(tmp_path / "none.txt")


def test_an_alphabet_that_is_off_by_one_is_named() -> None:
    rows = ["ab", "ba", "aab", "b-a", "a-a", "bab", "b-b", "aba", "a--", "b--"]
    width = max(map(len, rows))
    scores = frames(*(r.ljust(width, "-") for r in rows))
    watch = RecognitionWatch(Frames(0, 0, ("", "a", "b", "c")))
    watch.add(Outcome([scores], [t.replace("b", "c").replace("a", "b") for t in read(*rows_padded(rows))], (), 10))
    [warning] = watch.warnings({"word_accuracy": MetricValue(0.0, 0.0)})
    assert "the alphabet is off by one: 100%" in warning


def rows_padded(rows: list[str]) -> list[str]:
    width = max(map(len, rows))
    return [r.ljust(width, "-") for r in rows]


def test_a_model_that_reads_nothing_is_named() -> None:
    watch = RecognitionWatch(Frames(0, 0, ALPHABET))
    watch.add(Outcome([frames(*["---"] * 12)], ["abc"] * 12, (), 12))
    [warning] = watch.warnings({"word_accuracy": MetricValue(0.0, 0.0)})
    assert "reads no character" in warning


def test_spaces_in_the_margins_do_not_count() -> None:
    spaced = Frames(0, 0, ("", "a", "b", " "))
    scores = np.eye(4)[None, [3, 1, 0, 3, 2, 3, 0]]
    reader = _Reader(spaced)
    outcome = Outcome([scores], ["a b "], [np.eye(4)[None, [1, 0, 3, 2, 0, 0, 0]]], 1)
    assert reader.texts(outcome) == ["a b"]
    assert reader.words(outcome) == [1.0]
    assert reader.agreement(outcome) == [1.0]
    assert spaced.decode(np.eye(4)[None, [3, 0, 3]]) == [()]
