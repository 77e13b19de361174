"""Defaults of options from `onnxprune.toml`, or from `[tool.onnxprune]` in `pyproject.toml`, in the current folder.

    device = "cuda"            # SHARED options: for every command that has them

    [prune]                    # every option of one command, by its long name with underscores
    target = "macs=0.5"
    round_to = 16

Values are those of recipes and of the Python API; texts of the command line ("224x224", "2GB") are read as well. The
command line wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

from onnxprune._utils.fields import Reader, Refused, place
from onnxprune._utils.files.input_files import read_bytes
from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.options import (
    AnalysisOptions,
    Constraints,
    Declared,
    InputShapes,
    Preprocessing,
    Reading,
    TaskOptions,
    declared,
)

FILE, PROJECT, TABLE = "onnxprune.toml", "pyproject.toml", ("tool", "onnxprune")
FORMAT = Format("configuration", 2**20, syntax="toml")
_PER_COMMAND = ("include", "exclude", "only", "overrides")  # globs that commands match with different things
SHARED = frozenset(
    {d.name for cls in (AnalysisOptions, InputShapes, Preprocessing, Reading, TaskOptions, Constraints)
     for d in declared(cls)} | {"device", "threads"}
) - set(_PER_COMMAND)  # fmt: skip
"""Options that may be set for all commands at once."""
ALTERNATIVES = (
    frozenset({"ratio", "target", "max_drop", "min_group_accuracy", "max_loss"}),
    frozenset({"sparsity", "pattern"}),
)
"""Options that exclude each other: one on the command line replaces the others of the file."""
# Options that hold the content of a file: the module and function that read it.
FILES = {"overrides": ("onnxprune.planning.constraints", "load_overrides")}


@dataclass(frozen=True)
class Default:
    """Value of one option from a configuration file.

    Attributes:
        value: The value.
        where: File and table, for messages.
    """

    value: Any
    where: str


@dataclass(frozen=True)
class _Tables:
    file: str
    keys: tuple[str, ...]
    data: Mapping[str, Any]

    def place(self, *keys: str) -> str:
        return place(self.file, (*self.keys, *keys))


def load_defaults(
    command: str, own: Sequence[Declared], commands: Mapping[str, Iterable[str]], folder: Path | None = None
) -> tuple[str, dict[str, Default]]:
    """Return the file of the defaults, and the defaults of a command's options by name; "" without a file.

    Args:
        command: Name of the command.
        own: Its options.
        commands: Names of the options of every command.
        folder: Folder of the files; default: the current one.

    Raises:
        OnnxPruneError: A file that cannot be read, an unknown command or option, or a value of another type.
    """
    tables = _tables(folder or Path())
    if tables is None:
        return "", {}
    _check_names(tables, commands)
    found: dict[str, Default] = {}
    known = {d.name: d for d in own}
    for name, value in tables.data.items():
        if name in SHARED and name in known:
            found[name] = Default(_read(known[name], value, tables.place()), tables.place(name))
    for name, value in tables.data.get(command, {}).items():
        found[name] = Default(_read(known[name], value, tables.place(command)), tables.place(command, name))
    return tables.file, found


def without_alternatives(found: Mapping[str, Default], given: Iterable[str]) -> dict[str, Default]:
    """Return the defaults that do not exclude an option of the command line."""
    given = set(given)
    replaced = {name for group in ALTERNATIVES if group & given for name in group}
    return {name: default for name, default in found.items() if name not in replaced}


def _tables(folder: Path) -> _Tables | None:
    """Return the tables of the first file that has any."""
    own = folder / FILE
    if own.is_file():
        return _Tables(FILE, (), FORMAT.load(own))
    project = folder / PROJECT
    if not project.is_file() or b"onnxprune" not in read_bytes(project, FORMAT.max_bytes)[: 2**20]:
        return None
    data = FORMAT.load(project)
    for key in TABLE:
        data = data.get(key) if isinstance(data, dict) else None
    if data is None:
        return None
    if not isinstance(data, dict):
        raise FORMAT.error("not a table", PROJECT, TABLE, fix="[tool.onnxprune]")
    return _Tables(PROJECT, TABLE, data)


def _check_names(tables: _Tables, commands: Mapping[str, Iterable[str]]) -> None:
    for name, value in tables.data.items():
        if name in commands:
            if not isinstance(value, dict):
                raise FORMAT.error("not a table", tables.file, (*tables.keys, name), fix=f"[{name}]")
            own = sorted(commands[name])
            for key in value:
                if key not in own:
                    raise _unknown(key, own, tables.place(name))
        elif name not in SHARED:
            having = [c for c, names in commands.items() if name in names]
            if having:
                table = ".".join((*tables.keys, having[0]))
                raise OnnxPruneError(
                    f"{name!r} is not an option of all commands",
                    where=tables.place(),
                    fix=f"put it into the table of its command: [{table}]",
                )
            raise _unknown(name, [*SHARED, *commands], tables.place())


def _unknown(key: str, known: Iterable[str], where: str) -> OnnxPruneError:
    err = unknown("key", key, known)
    return OnnxPruneError(err.what, where=where, fix=err.fix)


def _read(option: Declared, value: Any, where: str) -> Any:
    """Return a value of TOML as the value of an option."""
    if isinstance(value, str) and option.name in FILES:
        module, function = FILES[option.name]
        return getattr(import_module(module), function)(Path(value))
    if isinstance(value, str) and option.spec.text is not None and not option.spec.text.multiple:
        try:
            return option.spec.text.read(value)
        except ValueError as err:
            raise OnnxPruneError(f"{option.name!r} takes {option.spec.text.takes}, not {value!r}", where=where) from err
    if isinstance(value, str) and _holds_path(option.hint):
        return Path(value)
    try:
        return Reader().value(option.hint, value, (option.name,))
    except Refused as err:
        raise OnnxPruneError(err.what, where=where, fix=err.fix) from err


def _holds_path(hint: Any) -> bool:
    return hint is Path or (get_origin(hint) is not None and any(map(_holds_path, get_args(hint))))
