"""Calls of the command line in this process, for the tests that go end to end."""

from __future__ import annotations

from click.testing import CliRunner, Result

from onnxprune.cli import main


class CommandLine:
    """Calls that begin alike.

    Args:
        start: the words every call begins with.
    """

    def __init__(self, *start: object) -> None:
        self.start = start

    def run(self, *args: object) -> Result:
        """What came of a call; an exception that is no known error passes through."""
        return CliRunner().invoke(main, [str(a) for a in (*self.start, *args)], catch_exceptions=False)

    def ok(self, *args: object) -> Result:
        """A call that must succeed."""
        result = self.run(*args)
        assert result.exit_code == 0, result.stderr
        return result

    def out(self, *args: object) -> str:
        """The stdout of a call that must succeed."""
        return self.ok(*args).stdout

    def fails(self, *args: object, code: int = 1) -> str:
        """The stderr of a call that must fail, without a traceback."""
        result = self.run(*args)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.stderr
