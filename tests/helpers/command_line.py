"""Calls of the command line in this process, for end-to-end tests."""

from __future__ import annotations

from click.testing import CliRunner, Result

from onnxprune.cli import main


class CommandLine:
    """Command line with fixed first words.

    Args:
        start: First words of every call.
    """

    def __init__(self, *start: object) -> None:
        self.start = start

    def run(self, *args: object) -> Result:
        """Return the result of a call; an exception other than a known error is raised."""
        words = [str(a) for a in (*self.start, *args)]
        return CliRunner(env={"ONNXPRUNE_DEBUG": "1"}).invoke(main, words, catch_exceptions=False)

    def ok(self, *args: object) -> Result:
        """Return the result of a call that must succeed."""
        result = self.run(*args)
        assert result.exit_code == 0, result.stderr
        return result

    def out(self, *args: object) -> str:
        """Return the stdout of a call that must succeed."""
        return self.ok(*args).stdout

    def fails(self, *args: object, code: int = 1) -> str:
        """Return the stderr of a call that must fail without a traceback."""
        result = self.run(*args)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.stderr
