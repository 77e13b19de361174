"""Prune random graphs over all operator records, element types and opsets; prove every result and run it at more sizes.

    python tools/fuzz.py -n 10000

Hypothesis draws and shrinks. The smallest graph of every failure is stored in tests/regressions/ (the model, what was
removed, what went wrong), where `make test` replays it from then on; the examples themselves stay in .hypothesis/ and
are tried first next time. Exit status 1 if anything failed. More than 1,000 graphs are shared among processes, one
after the other, because the memory of thousands of sessions does not come back.
"""

from __future__ import annotations

import ast
import collections
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path

import click
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase

ROOT = Path(__file__).parent.parent
AT_ONCE = 1000  # graphs of one process
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from random_graphs.fuzzing import Fuzz, NotTaken, build, fuzzes, proved, random_plan, runs  # noqa: E402
from random_graphs.regression_files import FOLDER, store  # noqa: E402

from onnxprune.analysis.coupling import Analysis  # noqa: E402
from onnxprune.plans import Plan  # noqa: E402


@click.command(help=__doc__)
@click.option("-n", "--examples", default=1000, show_default=True, help="How many graphs.")
@click.option("--seed", "number", type=int, help="Draw the same again; default: other graphs every time.")
@click.option("--parts", default=4, show_default=True, help="Parts of a graph, at most.")
@click.option("--store/--no-store", "keep", default=True, help="Write failures to a folder.")
@click.option(
    "--folder", default=FOLDER, type=click.Path(path_type=Path), help="Of failures; default: tests/regressions/."
)
def main(examples: int, number: int | None, parts: int, keep: bool, folder: Path) -> None:
    """Run, and print the number of proved graphs of each kind."""
    if examples > AT_ONCE:
        raise SystemExit(in_turn(examples, number, parts, keep, folder))
    raise SystemExit(in_this_process(examples, number, parts, keep, folder))


def in_turn(examples: int, number: int | None, parts: int, keep: bool, folder: Path) -> int:
    """Run a process for every thousand graphs; return 1 if one of them failed."""
    found: collections.Counter[str] = collections.Counter()
    began, failed = time.monotonic(), 0
    for i, start in enumerate(range(0, examples, AT_ONCE)):
        command = [sys.executable, str(Path(__file__).resolve()), "-n", str(min(AT_ONCE, examples - start))]
        command += ["--parts", str(parts), "--store" if keep else "--no-store", "--folder", str(folder)]
        command += [] if number is None else ["--seed", str(number + i)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        failed |= done.returncode != 0
        counts = re.search(r"{.*}", done.stdout)
        found.update(ast.literal_eval(counts[0]) if counts else {"processes that ended early": 1})
        click.echo(f"{time.monotonic() - began:.0f} s: {dict(sorted(found.items()))}", err=True)
    click.echo(f"{time.monotonic() - began:.0f} s: {dict(sorted(found.items()))}")
    return int(failed)


def in_this_process(examples: int, number: int | None, parts: int, keep: bool, folder: Path) -> int:
    """Run all graphs here; return 1 if one failed."""
    found: collections.Counter[str] = collections.Counter()
    removed: list[int] = []
    blocks = 0
    began = time.monotonic()

    @settings(
        max_examples=examples, deadline=None, database=DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "fuzz"),
        suppress_health_check=list(HealthCheck), print_blob=False,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(fuzzes(parts))
    def one(fuzz: Fuzz) -> None:
        nonlocal blocks
        plans: list[Plan] = []

        def plan_of(analysis: Analysis) -> Plan:
            plans.append(random_plan(analysis, fuzz.seed))
            return plans[0]

        proto = build(fuzz)
        if not runs(proto):
            found["not taken by onnxruntime"] += 1
            reject()
        try:
            result = proved(proto, plan_of)
        except NotTaken:
            found["not taken by onnxruntime"] += 1
            reject()
        except Exception as err:
            found["failed, shrinking included"] += 1
            if keep:  # the last one of a kind is the smallest: hypothesis runs it again at the end
                place = traceback.extract_tb(err.__traceback__)[-1]
                name = f"{type(err).__name__}-{Path(place.filename).stem}-{place.name}".lower()
                notes = {"error": f"{type(err).__name__}: {err}", "fuzz": repr(fuzz)}
                store(re.sub(r"[^a-z0-9_-]", "", name), proto, plans[0] if plans else None, notes, folder)
            raise
        found[f"{fuzz.dtype}, proved"] += 1
        removed.append(result.plan.removed)
        blocks += len(result.plan.blocks)
        if len(removed) % 500 == 0:
            click.echo(f"{time.monotonic() - began:.0f} s: {dict(found)}", err=True)

    failure = None
    try:
        (seed(number)(one) if number is not None else one)()
    except BaseException as err:  # hypothesis raises groups of failures
        failure = err
        traceback.print_exception(err, limit=4)
    done = f"{sum(removed)} channels and {blocks} blocks removed"
    click.echo(f"{time.monotonic() - began:.0f} s: {dict(sorted(found.items()))}, {done}")
    return int(failure is not None)


if __name__ == "__main__":
    main()
