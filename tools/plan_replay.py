"""Process replay: prove that a refactoring changed no plan and no pruned file.

    python tools/plan_replay.py --python OLD/.venv/bin/python -o before.json [MODEL.onnx ...]
    python tools/plan_replay.py --python NEW/.venv/bin/python -o after.json [MODEL.onnx ...]
    python tools/plan_replay.py --compare before.json after.json

Recording runs a fixed list of commands in one process of the chosen interpreter, through the entry point
`onnxprune.cli:main` and nothing else of onnxprune, so one copy of this file replays versions whose modules differ.
Options that were renamed are passed under the name that the replayed version knows (`OPTIONS`, `COMMANDS`).

Subjects are the models of models/, the structures of models/structures/ with at most --elements missing weights
(filled with random values; the larger ones by one case), and models given as paths, with made-up data. Each case is
written as one record:

    {"digits_cnn: plan -c l1 --target macs=0.5": {"plan": SHA-256, "file": SHA-256}, ...}

`plan` covers the plan without the version that wrote it, `file` the pruned model without metadata entries, serialized
deterministically, `values` a file of scores or curves, `error` the exit status and the message of a refusal.

Training and commands that measure time are left out. Plans for latency are replayed with --latency-cache FOLDER: the
first recording measures and fills the folder, later ones read the same measurements from it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import lzma
import math
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click
    import onnx

ROOT = Path(__file__).resolve().parent.parent
ELEMENTS = 30_000_000  # missing weights of the largest structure that is replayed by default
SMALL = 4_500_000  # missing weights of the largest structure that is replayed by more than one case
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# Name used here -> spellings, newest first: an old name may have been given another meaning since.
OPTIONS = {
    "--allocator": ("--allocator", "--scope"),
    "--min-group-accuracy": ("--min-group-accuracy", "--min-accuracy"),
}
COMMANDS = {"run-passes": ("run-passes", "rewrite")}

PLAN, FILE, VALUES = "plan.json", "out.onnx", "values.json"
OVERRIDES = "overrides.json"
CURVES, SCORES = "curves.json", "scores.json"

Record = dict[str, str]
Words = tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """One model to replay.

    Attributes:
        name: stem of its file.
        path: .onnx, or .onnx.xz of a structure.
        data: value of --data, or "" for a structure, which is replayed by a short list of cases.
        large: a structure that is replayed by one case.
    """

    name: str
    path: Path
    data: str = ""
    large: bool = False

    @property
    def file(self) -> str:
        """Name of the model in the folder where the commands run."""
        return f"{self.name}.onnx"


@dataclass(frozen=True)
class Case:
    """Commands whose results make one record.

    Attributes:
        name: first command without files.
        commands: words of each; the first that fails ends the case.
        keep: name under which `values.json` remains for later cases; "" if none needs it.
    """

    name: str
    commands: tuple[Words, ...]
    keep: str = ""


def subjects(models: Sequence[Path], elements: int) -> list[Subject]:
    """Return the models that ship and those given as paths, each name once."""
    digits = sorted((ROOT / "models").glob("*.onnx"))
    found = [Subject(path.stem, path, "digits") for path in digits]
    found += [Subject(path.stem, path, "none") for path in models]
    for path in sorted((ROOT / "models" / "structures").glob("*.onnx.xz")) if elements else ():
        missing = missing_elements(unpacked(path))
        if missing <= elements:
            found.append(Subject(path.name.removesuffix(".onnx.xz"), path, large=missing > SMALL))
    names = [s.name for s in found]
    if twice := {n for n in names if names.count(n) > 1}:
        raise SystemExit(f"two models have the same name: {', '.join(sorted(twice))}")
    return found


def cases_of(subject: Subject, criteria: Sequence[str], passes: Sequence[str], latency: bool) -> Iterator[Case]:
    """Yield the cases of a model, in the order in which they run.

    Args:
        subject: the model.
        criteria: names of all criteria.
        passes: names of all passes.
        latency: include plans for latency.
    """
    if subject.data:
        texts = [*_criteria(subject, criteria), *_allocators(subject), *CONSTRAINTS, *(LATENCY if latency else ())]
        yield from (_plan(subject, text) for text in texts)
        yield from _from_files(subject)
        yield from _whole_commands(subject)
        rewrites = [*passes, CHAIN, "sparsify_weights:sparsity=0.7:method=unit", "unshare_constants:largest=8"]
    else:
        yield from (_plan(subject, text) for text in (SHORT[:1] if subject.large else SHORT))
        rewrites = [] if subject.large else [CHAIN, "take_branches drop_zero_states"]
    for text in rewrites:
        yield Case(f"{subject.name}: run-passes {text}", (("run-passes", subject.file, *text.split(), "-o", FILE),))


# Options of `plan`.
HALF = "--target macs=0.5"
SHORT = (
    f"-c l2 {HALF} --round-to 8",
    "-c l1 --target params=0.7 --allocator saving --round-to 1",
    "-c bn_scale --target macs=0.7 --round-to 4",
    "-c l2 --ratio 0.3 --attention head_dim --include-inexact",
)
LIMITED = (
    "--round-to 1", "--round-to 4", "--round-to 16", "--min-channels 12", "--max-ratio 0.6", "--protect first",
    "--protect residual", "--protect first --protect residual", "--only conv", "--include *conv*", "--exclude *a*",
)  # fmt: skip
CONSTRAINTS = (
    *(f"--target macs=0.7 {text}" for text in LIMITED),
    "--ratio 0.5",
    "--ratio 0.5 --only mlp",
    f"--ratio 0.5 --round-to 1 --overrides {OVERRIDES}",
    f"--target macs=0.8 --overrides {OVERRIDES}",
    "--target macs=0.001",  # refused: out of reach
    f"{HALF} --steps 3",
)
LATENCY = ("--target latency=0.7 --runs 1", f"--allocator latency {HALF} --runs 1")
# Names of passes.
CHAIN = "lift_constants remove_identity fold_shapes fuse_batchnorm fold_scales unshare_constants"


def _plan(subject: Subject, text: str) -> Case:
    """Return the case of a plan, applied without the proof, which only reads the result."""
    plan = ("plan", subject.file, *text.split(), "-o", PLAN)
    return Case(f"{subject.name}: plan {text}", (plan, ("apply", subject.file, PLAN, "--no-verify", "-o", FILE)))


def _data(subject: Subject) -> str:
    layout = " --layout nchw" if subject.data == "digits" else ""  # they have no axis for channels
    return f"--data {subject.data} --images 100{layout}"


def _criteria(subject: Subject, criteria: Sequence[str]) -> Iterator[str]:
    data = _data(subject)
    for name in criteria:
        yield f"-c {name} {HALF}"  # criteria that need data must refuse
        yield f"-c {name} {HALF} {data}"
        yield f"-c {name} --target params=0.6 --round-to 1 {data}"
        yield f"-c {name} --ratio 0.4 {data}"
    for text in ("fpgm -p mix_norm=0.1", "random -p seed=3", "l2 --reduce max", "l2 --reduce first", "l1 --reduce sum"):
        yield f"-c {text} {HALF}"
    yield f"-c act_mean {HALF} --data none --images 32"
    yield f"-c act_var {HALF} --steps 3 --schedule geometric {data}"


def _allocators(subject: Subject) -> Iterator[str]:
    for normalize in ("none", "mean", "max", "sum", "gaussian", "lamp"):
        yield f"--normalize {normalize} {HALF}"
    for allocator in ("global", "uniform", "saving"):
        for target in ("macs=0.5", "params=0.5", "bytes=0.7", "memory=0.9", "channels=0.6"):
            yield f"--allocator {allocator} --target {target}"
        yield f"--allocator {allocator} -c taylor {HALF} {_data(subject)}"
    yield f"--allocator sensitivity {HALF}"  # refused: no curves


def _from_files(subject: Subject) -> Iterator[Case]:
    """Yield cases of scores and curves, and of plans made from them."""
    data = _data(subject)
    for text in ("-c l2", "-c dstep", f"-c taylor {data}"):
        yield _values(subject, "score", text, SCORES)
    yield _plan(subject, f"--scores {SCORES} {HALF}")
    if subject.data == "none":  # no labels
        return
    for text in ("--min-group-accuracy 0.9 --metric top1", "--metric kl -c fpgm", "-c l2"):
        yield _values(subject, "sensitivity", f"{text} --ratios 0.25,0.5,0.75 --threads 1 {data}", CURVES)
    yield _plan(subject, f"--curves {CURVES} --min-group-accuracy 0.95")
    for allocator in ("sensitivity", "saving", "global"):
        yield _plan(subject, f"--curves {CURVES} {HALF} --allocator {allocator}")


def _values(subject: Subject, command: str, text: str, keep: str) -> Case:
    return Case(f"{subject.name}: {command} {text}", ((command, subject.file, *text.split(), "-o", VALUES),), keep)


def _whole_commands(subject: Subject) -> Iterator[Case]:
    """Yield cases of the commands that write a model themselves."""
    data = _data(subject)
    for text in (HALF, "--ratio 0.3 -c fpgm", f"{HALF} {data}", f"{HALF} -c l2 --no-recover {data}"):
        command: Words = ("prune", subject.file, *text.split(), "-o", FILE, "--plan", PLAN)
        yield Case(f"{subject.name}: prune {text}", (command,))
    pruning = ("plan", subject.file, *HALF.split(), "-o", PLAN), ("apply", subject.file, PLAN, "-o", "pruned.onnx")
    for stages in ("recalibrate_batchnorm", "reconstruct_weights", "reconstruct_weights,recalibrate_batchnorm"):
        text = f"--stages {stages} --threads 1 {data}"
        command = ("recover", subject.file, "pruned.onnx", PLAN, *text.split(), "-o", FILE)
        yield Case(f"{subject.name}: recover {text}", (*pruning, command))
    for text in ("--sparsity 0.8", "--sparsity 0.8 --scope global", "--pattern 2:4", "--sparsity 0.5 --what unit"):
        yield Case(f"{subject.name}: sparsify {text}", (("sparsify", subject.file, *text.split(), "-o", FILE),))


def unpacked(path: Path) -> onnx.ModelProto:
    """Return the model of a packed structure, its large weights without data."""
    import onnx

    proto = onnx.ModelProto()
    proto.ParseFromString(lzma.decompress(path.read_bytes()))
    return proto


def _without_data(proto: onnx.ModelProto) -> list[tuple[str, onnx.TensorProto]]:
    found = [(t.name, t) for t in proto.graph.initializer]
    found += [(n.output[0], a.t) for n in proto.graph.node for a in n.attribute if a.HasField("t")]
    fields = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
    return [(name, t) for name, t in found if math.prod(t.dims) and not any(len(getattr(t, f)) for f in fields)]


def missing_elements(proto: onnx.ModelProto) -> int:
    """Count the elements of the tensors without data."""
    return sum(math.prod(t.dims) for _, t in _without_data(proto))


def fill(proto: onnx.ModelProto) -> None:
    """Give every tensor without data random values, in place; the same for the same name and shape.

    Vectors are positive, because some are variances.
    """
    import numpy as np
    from onnx import helper

    for name, tensor in _without_data(proto):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(tensor.dims) > 1:
            values = rng.standard_normal(tensor.dims, np.float32) * math.sqrt(2 / math.prod(tensor.dims[1:]))
        else:
            values = rng.uniform(0.5, 1.5, tensor.dims)
        tensor.raw_data = values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).tobytes()


def write_model(subject: Subject) -> None:
    """Write the model of a subject to the current folder."""
    if subject.data:
        data = subject.path.read_bytes()
    else:
        proto = unpacked(subject.path)
        fill(proto)
        data = proto.SerializeToString(deterministic=True)
    Path(subject.file).write_bytes(data)


def plan_digest(path: Path) -> str:
    """Return the SHA-256 of a JSON file in canonical form, without the version that wrote it."""
    data = json.loads(path.read_text(encoding="utf-8"))
    data.pop("tool", None)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of an ONNX file without its metadata entries, serialized deterministically."""
    import onnx

    proto = onnx.load(path)
    strip_metadata(proto)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def strip_metadata(message: Any) -> None:
    """Remove `metadata_props` from a protobuf message and from all messages inside it."""
    if "metadata_props" in message.DESCRIPTOR.fields_by_name:
        message.ClearField("metadata_props")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "__len__") else (value,):
                strip_metadata(inner)


DIGESTS: dict[str, tuple[str, Callable[[Path], str]]] = {
    PLAN: ("plan", plan_digest),
    FILE: ("file", file_digest),
    VALUES: ("values", plan_digest),
}


class CommandLine:
    """Command line of the installed onnxprune, in this process."""

    def __init__(self) -> None:
        from onnxprune.cli import main

        self.main: click.Group = main

    def run(self, words: Sequence[str]) -> tuple[str, str]:
        """Run a command.

        Returns:
            Its stdout, and its exit status and message where it failed, else "".
        """
        from click.testing import CliRunner

        result = CliRunner().invoke(self.main, self.spelled(words))
        if result.exit_code == 0:
            return result.stdout, ""
        if result.output.rstrip().endswith("Aborted!"):  # click's answer to Ctrl-C
            raise KeyboardInterrupt
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            return result.stdout, f"{type(result.exception).__name__}: {result.exception}"
        found = re.search(r"^error: .*", result.output, re.M | re.S | re.I)
        return result.stdout, f"exit {result.exit_code}: {found[0].strip() if found else result.output.strip()}"

    def spelled(self, words: Sequence[str]) -> list[str]:
        """Return a command with the names that this version knows."""
        import click

        context = click.Context(self.main)
        names = COMMANDS.get(words[0], (words[0],))
        name = next((n for n in names if self.main.get_command(context, n)), names[0])
        command = self.main.get_command(context, name)
        known = {o for p in command.params for o in p.opts} if command is not None else set()
        options = {w: next((s for s in OPTIONS[w] if s in known), w) for w in words if w in OPTIONS}
        return [name, *(options.get(w, w) for w in words[1:])]

    def names(self, command: str) -> list[str]:
        """Return the names that a listing command lists."""
        output, error = self.run([command, "--json"])
        if error:
            raise SystemExit(f"onnxprune {command} --json failed: {error}")
        return [entry["name"] for entry in json.loads(output)]


def run_case(line: CommandLine, case: Case) -> Record:
    """Run the commands of a case in the current folder and digest the files that they write."""
    for name in DIGESTS:
        Path(name).unlink(missing_ok=True)
    record: Record = {}
    for words in case.commands:
        _, error = line.run(words)
        if error:
            record["error"] = error
            break
    for name, (key, digest) in DIGESTS.items():
        if Path(name).exists():
            record[key] = digest(Path(name))
    if case.keep and Path(VALUES).exists():
        Path(VALUES).replace(case.keep)
    return record


def record_cases(
    chosen: Iterable[Subject], only: Callable[[str], bool] = lambda _: True, latency: bool = False
) -> dict[str, Record]:
    """Run the cases of all models, each model in a temporary folder.

    Args:
        chosen: the models.
        only: whether a case of this name is recorded.
        latency: include plans for latency.
    """
    line = CommandLine()
    criteria, passes = line.names("criteria"), line.names("passes")
    records: dict[str, Record] = {}
    for subject in chosen:
        # Relative names: messages that name files are the same in every run.
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            write_model(subject)
            Path(OVERRIDES).write_text('{"*1*": 0.25, "*e*": {"min_channels": 12}}\n', encoding="utf-8")
            for case in cases_of(subject, criteria, passes, latency):
                if only(case.name):
                    records[case.name] = run_case(line, case)
    return records


def differences(a: dict[str, Record], b: dict[str, Record], any_wording: bool = False) -> Iterator[str]:
    """Yield one line for each case that differs.

    Args:
        a: records before.
        b: records after.
        any_wording: accept messages that differ where the exit statuses are equal.
    """
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            yield f"only {'before' if name in a else 'after'}: {name}"
            continue
        before, after = a[name], b[name]
        keys = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
        if any_wording and _status(before) == _status(after):
            keys = [k for k in keys if k != "error"]
        if keys:
            yield f"differs in {', '.join(keys)}: {name}"
            if "error" in keys:
                for when, record in (("before", before), ("after", after)):
                    yield f"  {when}: {record.get('error', 'no error')}"


def _status(record: Record) -> str:
    return record.get("error", "").partition(":")[0]


def summary(a: dict[str, Record], b: dict[str, Record]) -> str:
    """Count the equal cases, plans, files, values and errors of two recordings."""
    both = a.keys() & b.keys()
    parts = [f"{sum(a[n] == b[n] for n in both)} of {len(a.keys() | b.keys())} cases equal"]
    for key in ("plan", "file", "values", "error"):
        total = sum(key in a.get(n, {}) or key in b.get(n, {}) for n in a.keys() | b.keys())
        equal = sum(key in a[n] and a[n][key] == b[n].get(key) for n in both)
        parts.append(f"{equal} of {total} {key if key == 'values' else key + 's'}")
    return ", ".join(parts)


def compare(paths: Sequence[Path], any_wording: bool) -> int:
    """Print the differences of two recordings and return the exit status."""
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    lines = list(differences(a, b, any_wording))
    print(*lines, summary(a, b), sep="\n")
    return 1 if lines or not a else 0


def record_here(args: argparse.Namespace) -> int:
    """Record with the onnxprune of this interpreter."""
    chosen = subjects(args.models, args.elements)
    records = record_cases(chosen, lambda name: re.search(args.only, name) is not None, args.latency_cache is not None)
    text = json.dumps(records, indent=1, sort_keys=True) + "\n"
    args.output.write_text(text, encoding="utf-8")
    files, errors = (sum(key in r for r in records.values()) for key in ("file", "error"))
    found = importlib.util.find_spec("onnxprune")
    print(f"{args.output}: {len(records)} cases of {len(chosen)} models, {files} files, {errors} errors")
    print(f"replayed {found.origin if found else 'nothing'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Record, or compare two recordings."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", type=lambda t: Path(t).resolve(), help="Further models, each of one file.")
    parser.add_argument("-o", "--output", type=lambda t: Path(t).resolve(), help="File of the records.")
    parser.add_argument("--python", default=sys.executable, help="Interpreter whose onnxprune is replayed.")
    parser.add_argument("--only", default="", metavar="REGEX", help="Record only the cases whose name matches.")
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="Replay structures of at most so many weights.")
    parser.add_argument("--latency-cache", type=Path, help="Folder of measurements: replay plans for latency too.")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="Compare two recordings.")
    parser.add_argument(
        "--any-wording", action="store_true", help="With --compare: accept other messages of the same exit status."
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)

    args = parser.parse_args(argv)
    if args.compare:
        return compare(args.compare, args.any_wording)
    if args.output is None:
        parser.error("-o FILE is needed to record")
    if args.here:
        return record_here(args)
    with tempfile.TemporaryDirectory() as scratch:
        cache = args.latency_cache.resolve() if args.latency_cache else Path(scratch)
        before = set(cache.glob("*"))
        environment = {**os.environ, **ONE_THREAD, "ONNXPRUNE_CACHE": str(cache)}
        command = [args.python, str(Path(__file__).resolve()), "--here", *argv]
        status = subprocess.run(command, env=environment, check=False).returncode
        if args.latency_cache and (new := set(cache.glob("*")) - before):
            print(f"{len(new)} models were measured anew: record again to compare plans for latency")
    return status


if __name__ == "__main__":
    sys.exit(main())
