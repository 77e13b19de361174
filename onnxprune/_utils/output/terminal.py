"""Text for terminals: foreign names may hold control characters, which a terminal would obey."""

from __future__ import annotations

import io
import os
import re
from typing import IO, Any

# C0 but tab and newline, DEL, C1, and the marks that reverse the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """Return a text whose control characters are spelled out."""
    if text.isascii() and text.isprintable():
        return text
    return _CONTROL.sub(_spelled, text.replace("\r\n", "\n"))


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class CleanStream(io.TextIOBase):
    """Stream that spells out control characters, and what its encoding does not have.

    Args:
        stream: Stream of the terminal, the pipe or the file; None, if it is closed: the text is discarded.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self.raw: Any = stream if stream is not None else _Nowhere()
        self.failed: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write a text.

        Raises:
            OSError: The stream does not take it; it is then the reason in `failed`.
        """
        return self._write(text, clean(text))

    def _write(self, text: str, cleaned: str) -> int:
        try:
            try:
                self.raw.write(cleaned)
            except UnicodeEncodeError as err:
                self.raw.write(cleaned.encode(err.encoding, "backslashreplace").decode(err.encoding))
        except OSError as err:
            self.failed = err
            raise
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self.raw.flush()
        except OSError as err:
            self.failed = err
            raise

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return bool(self.raw.isatty())

    def fileno(self) -> int:
        """Return the file's number."""
        return int(self.raw.fileno())

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return getattr(self.raw, "encoding", None) or "utf-8"

    def discard(self) -> None:
        """Discard what is left: a stream that failed once would fail again when the interpreter ends."""
        try:
            number = self.raw.fileno()
        except (OSError, ValueError):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


class _Drawing(CleanStream):
    """Stream for text that draws with control characters itself; failures count as those of the stream it is of."""

    def __init__(self, of: CleanStream) -> None:
        super().__init__(of.raw)
        self.of = of

    def write(self, text: str, /) -> int:
        return self.of._write(text, text)

    def flush(self) -> None:
        self.of.flush()


class _Nowhere(io.TextIOBase):
    """Stream that discards its text."""

    def write(self, text: str, /) -> int:
        return len(text)


def raw(stream: IO[str]) -> IO[str]:
    """Return a stream for output that draws with control characters itself, and has cleaned its text."""
    return _Drawing(stream) if isinstance(stream, CleanStream) else stream  # type: ignore[return-value]
