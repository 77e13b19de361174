"""Control characters are spelled out; streams that fail are found out."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from onnxprune._utils.output.terminal import CleanStream, clean, raw


def test_what_a_terminal_obeys_is_spelled_out() -> None:
    assert clean("a\tb\nc µ 名") == "a\tb\nc µ 名"
    assert clean("\x1b[31mred\x07") == "\\x1b[31mred\\x07"
    assert clean("\x9b2J\u202e\udcff\r") == "\\x9b2J\\u202e\\udcff\\x0d"


@given(st.text())
def test_no_control_character_passes(text: str) -> None:
    kept = clean(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in kept)
    kept.encode()


def test_a_stream_takes_what_its_encoding_has_not() -> None:
    bottom = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    stream = CleanStream(bottom)
    stream.write("µ\x1b")
    assert bottom.buffer.getvalue() == b"\\xb5\\x1b"  # type: ignore[attr-defined]
    raw(stream).write("\x1b[0m")
    assert bottom.buffer.getvalue().endswith(b"\x1b[0m")  # type: ignore[attr-defined]


def test_a_closed_stream_takes_everything() -> None:
    stream = CleanStream(None)
    stream.write("x")
    stream.flush()
    assert stream.failed is None
