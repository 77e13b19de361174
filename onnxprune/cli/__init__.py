"""Command line: every command reads its inputs, calls one stage and shows the result.

stdout holds the result (a table, or one JSON document with --json), stderr everything else. Exit statuses: see
`_support.boundary`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from onnxprune import __version__
from onnxprune.cli import (
    apply,
    bench,
    demo,
    diff,
    evaluate,
    explore,
    frontier,
    inspect,
    list_registries,
    plan,
    prune,
    recover,
    report,
    retrain,
    run,
    run_passes,
    score,
    sensitivity,
    sparsify,
    sweep,
    verify,
)
from onnxprune.cli._support.boundary import guarded, program

# Modules that compute are imported inside the commands, so that `--help` is fast.

# Old name -> new name. Old names work, with a note on stderr, and are not in the help. Options declare their own.
RENAMED_COMMANDS = {"rewrite": "run-passes"}


class _CommandGroup(click.Group):
    """Group of commands that accepts old names and turns known errors into one message and an exit status."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, *rest = args
        if name in RENAMED_COMMANDS:
            click.echo(f"{name} is now {RENAMED_COMMANDS[name]}", err=True)
        return super().resolve_command(ctx, [RENAMED_COMMANDS.get(name, name), *rest])

    def main(self, args: Sequence[str] | None = None, *more: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command and exit; see `_support.boundary` for the exit statuses."""
        words = list(sys.argv[1:] if args is None else args)
        run = partial(super().main, words, *more, standalone_mode=False, **extra)
        return sys.exit(guarded(run, as_json="--json" in words)) if standalone_mode else run()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not alphabetical


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="onnxprune")
def main() -> None:
    """Make an ONNX model smaller and faster by removing channels, and prove it.

    \b
    onnxprune demo
    onnxprune inspect model.onnx
    onnxprune prune model.onnx -o small.onnx --target macs=0.5
    onnxprune bench model.onnx small.onnx

    Exit status: 0 success, 1 known error, 2 wrong usage, 3 verification failed, 4 internal error; 129, 130 and 143
    stopped by a signal.
    """


# In the order of the work, which is the order of the help.
for command in (
    inspect.inspect, score.score, sensitivity.sensitivity, plan.plan, explore.explore, apply.apply,
    prune.prune, frontier.frontier, sparsify.sparsify, sweep.sweep, verify.verify, diff.diff, recover.recover,
    retrain.retrain, evaluate.evaluate, bench.bench, report.report, run.run_recipe,
    run_passes.run_passes, list_registries.ops, list_registries.criteria, list_registries.passes, demo.demo,
):  # fmt: skip
    main.add_command(command)


def run_program() -> None:
    """Entry point of the script `onnxprune` and of `python -m onnxprune`."""
    program(partial(main, prog_name="onnxprune"))
