"""Mutate correctly pruned models and count which mutants the proof accepts: every one that computes something else
must be rejected.

    python tools/mutate.py -n 5000 --store .zoo/mutants

Subjects are small structures, the digits models and hand-made ones (tests/helpers/proofs/proof_cases.py), some with
dead channels or with an output column near zero. Whether a mutant computes another function is decided by running it,
see tests/helpers/proofs/mutation.py; those that do not, or that onnxruntime rejects, are counted apart. The smallest
accepted mutant of each kind is stored: original, mutant, plan, and what was changed. Exit status 1 if a mutant was
accepted.
"""

from __future__ import annotations

import collections
import fnmatch
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from proofs.mutants import KINDS, Mutant, mutate  # noqa: E402
from proofs.mutation import NotASubject, Subject, sources, subject  # noqa: E402

from onnxprune.errors import OnnxPruneError  # noqa: E402
from onnxprune.plans import save_plan  # noqa: E402

COLUMNS = ("made", "equivalent", "unclear", "invalid", "rejected", "accepted", "crashed")


@dataclass
class Tally:
    """Outcomes of the mutants of one kind.

    Attributes:
        counts: `made` of them; `equivalent` (same bits), `unclear` (differences no larger than rounding, whatever the
            verdict) and `invalid` (onnxruntime rejects them) ones; of all others `rejected`, `accepted` and `crashed`
            (the proof raised anything but OnnxPruneError, whatever the mutant).
        accepted: (subject, change) of accepted mutants.
        loose: verdicts on mutants that need not be rejected, by column.
    """

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    accepted: list[tuple[str, str]] = field(default_factory=list)
    loose: collections.Counter[str] = field(default_factory=collections.Counter)
    smallest: int = 2**62


class Run:
    """Mutates subjects and keeps the tallies.

    Args:
        seed: of all random choices.
        kinds: names of mutators.
        store: folder for accepted mutants.
    """

    def __init__(self, seed: int, kinds: list[str], store: Path | None) -> None:
        self.seed = seed
        self.kinds = kinds
        self.store = store
        self.tallies = {k: Tally() for k in kinds}
        self.crashes: list[str] = []

    def subject(self, name: str, item: Subject, count: int) -> int:
        """Make up to `count` mutants of one subject, of the kinds that have the fewest so far; return how many."""
        rng = np.random.default_rng([self.seed, *name.encode()])
        usable, made = list(self.kinds), 0
        while usable and made < count:
            kind = min(usable, key=lambda k: (self.tallies[k].counts["made"], self.kinds.index(k)))
            mutant = mutate(item, kind, rng)
            if mutant is None:
                usable.remove(kind)
                continue
            self.judge(name, item, mutant)
            made += 1
            # Of a kind of which a subject has few places, repeats would be all the same.
            if self.tallies[kind].counts["made"] > 2 * min(self.tallies[k].counts["made"] for k in usable) + 50:
                usable.remove(kind)
        return made

    def judge(self, name: str, item: Subject, mutant: Mutant) -> None:
        """Count one mutant under what it changes and what the proof says."""
        tally = self.tallies[mutant.kind]
        tally.counts["made"] += 1
        change = item.change(mutant.proto if mutant.probe is None else mutant.probe)
        if mutant.probe is not None and change == "invalid":
            change = item.change(mutant.proto)
        try:
            verdict = "rejected" if item.accepts(mutant.proto) else "accepted"
        except Exception as err:  # a defect of the proof, on whatever mutant
            verdict = "crashed"
            self.crashes.append(f"{mutant.kind}, {name}: {mutant.what}: {type(err).__name__}: {str(err)[:120]}")
        column = {"same": "equivalent", "unclear": "unclear", "invalid": "invalid"}.get(change, verdict)
        if change == "invalid" and verdict == "accepted":
            column = "accepted"  # nothing that onnxruntime does not load may pass
        tally.counts[column] += 1
        if column == "accepted":
            tally.accepted.append((name, mutant.what))
            self.keep(name, item, mutant)
        elif change != "other":
            tally.loose[f"{column} {verdict}"] += 1

    def keep(self, name: str, item: Subject, mutant: Mutant) -> None:
        """Store an accepted mutant if it is the smallest of its kind."""
        tally = self.tallies[mutant.kind]
        size = mutant.proto.ByteSize()
        if self.store is None or size >= tally.smallest:
            return
        tally.smallest = size
        folder = self.store / mutant.kind.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(item.original, folder / "original.onnx")
        onnx.save(mutant.proto, folder / "mutant.onnx")
        save_plan(item.plan, folder / "plan.json")
        notes = {"kind": mutant.kind, "subject": name, "change": mutant.what, "seed": self.seed}
        (folder / "notes.json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")

    def table(self) -> str:
        """Return counts by kind, as Markdown."""
        lines = ["| kind | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
        total: collections.Counter[str] = collections.Counter()
        for kind, tally in self.tallies.items():
            total.update(tally.counts)
            lines.append(f"| {kind} | " + " | ".join(str(tally.counts[c]) for c in COLUMNS) + " |")
        lines.append("| **all** | " + " | ".join(str(total[c]) for c in COLUMNS) + " |")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        kinds = {
            k: {**{c: t.counts[c] for c in COLUMNS}, "loose": dict(t.loose), "accepted_ones": t.accepted}
            for k, t in self.tallies.items()
        }
        return {"seed": self.seed, "kinds": kinds, "crashes": self.crashes}


@click.command(help=__doc__)
@click.option("-n", "--number", default=1000, show_default=True, help="How many mutants.")
@click.option("--seed", default=0, show_default=True, help="Draw other mutants.")
@click.option("--only", multiple=True, help="Only subjects that match this glob.")
@click.option("--kind", "kinds", multiple=True, help="Only kinds that match this glob.")
@click.option("--store", type=click.Path(file_okay=False, path_type=Path), help="Folder for accepted mutants.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all counts.")
@click.option("--show", default=40, show_default=True, help="List at most so many accepted mutants.")
def main(
    number: int, seed: int, only: tuple[str, ...], kinds: tuple[str, ...], store: Path | None, json_file: Path | None,
    show: int,
) -> None:  # fmt: skip
    """Mutate every subject in turn and print the table."""
    names = [n for n in sources() if not only or any(fnmatch.fnmatch(n, pattern) for pattern in only)]
    chosen = [k for k in KINDS if not kinds or any(fnmatch.fnmatch(k, pattern) for pattern in kinds)]
    run = Run(seed, chosen, store)
    refused: list[str] = []
    began, made, used = time.monotonic(), 0, 0
    for i, name in enumerate(names):
        # What earlier subjects had no place for is left to the later ones.
        count = -(-(number - made) // (len(names) - i))
        try:
            original, tiny = sources()[name]()
            if original is None:
                continue
            item = subject(name, original, tiny=tiny)
            error = item.accepts(item.copy())
        except NotASubject:
            continue
        except OnnxPruneError as err:
            error = f"{type(err).__name__}: {err.what}"
        except Exception as err:  # a defect; the other subjects must not wait for it
            error = f"{type(err).__name__}: {str(err)[:120]}"
        if error:
            refused.append(f"{name}: {error}")
            continue
        used += 1
        made += run.subject(name, item, count)
        click.echo(f"{time.monotonic() - began:6.0f} s, {made} mutants, {name}", err=True)
        if json_file is not None:
            json_file.write_text(json.dumps(run.as_dict(), indent=1) + "\n", encoding="utf-8")
    click.echo(run.table())
    accepted = [(k, *pair) for k, t in run.tallies.items() for pair in t.accepted]
    click.echo(f"\n{made} mutants of {used} subjects in {time.monotonic() - began:.0f} s, {len(accepted)} accepted")
    for title, entries in (
        ("accepted", [f"{k}, {name}: {what}" for k, name, what in accepted]),
        ("right models that were refused", refused),
        ("crashed", run.crashes),
    ):
        if entries:
            click.echo(f"\n{title}:")
            click.echo("\n".join(f"  {e}" for e in entries[:show]))
            if len(entries) > show:
                click.echo(f"  ... and {len(entries) - show} more")
    raise SystemExit(bool(accepted))


if __name__ == "__main__":
    main()
