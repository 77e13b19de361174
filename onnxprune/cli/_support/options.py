"""Click options and grouped help, generated from the option dataclasses of `onnxprune.options`.

    @click.command(cls=Command)
    @click.argument("model", type=click.Path(path_type=Path))
    @takes_options
    def inspect(model: Path, analysis: AnalysisOptions) -> None: ...

Every parameter whose annotation is an option dataclass becomes the options of that dataclass; the function gets one
checked instance of each.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from importlib import import_module
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import click
from click.shell_completion import CompletionItem

from onnxprune import __version__
from onnxprune._utils.files.atomic_files import check_outputs
from onnxprune._utils.output.events import logged
from onnxprune.cli._support.config import FILES, Default, load_defaults, without_alternatives
from onnxprune.cli._support.files import checked
from onnxprune.errors import OnnxPruneError
from onnxprune.options import HEADINGS, PAIRS, Declared, Events, OptionError, Options, declared

ADVANCED = "Advanced options"
OUTPUT = "Output"
_LAST = 10**6

model_argument = click.argument("model", type=click.Path(path_type=Path))


@dataclass(frozen=True)
class _CommandOption:
    """An option of a command.

    Attributes:
        parameter: Parameter of the command's function that receives the option's dataclass.
        declared: Declaration of the option.
        order: Position under the heading; options of the more specific class are first.
    """

    parameter: str
    declared: Declared
    order: int

    @property
    def name(self) -> str:
        """Name of the value among click's parameters."""
        return f"{self.parameter}__{self.declared.name}"

    @property
    def label(self) -> str:
        """Spelling in messages: the long flag."""
        return self.declared.flags[-1].split("/")[0]


class Option(click.Option):
    """Click option with a heading in the help."""

    heading: str = ""
    order: int = 0
    writes: bool = False  # the value is a file or folder that is written


class Command(click.Command):
    """Command with declared options (see `takes_options`), listed under headings in the help, advanced ones last.

    Args:
        advanced: Names of options that this command lists under "Advanced options", whatever they are elsewhere.
    """

    _complete: bool
    _params: list[click.Parameter]

    def __init__(self, *args: Any, advanced: Sequence[str] = (), **kwargs: Any) -> None:
        self._advanced = frozenset(advanced)
        super().__init__(*args, **kwargs)

    @property
    def params(self) -> list[click.Parameter]:
        """Arguments and options; declared options are created on first use."""
        make = getattr(self.callback, "declared_options", None)
        if make is not None and not self._complete:
            self._complete = True
            self._params += make()
        return self._params

    @params.setter
    def params(self, params: list[click.Parameter]) -> None:
        self._params = params
        self._complete = False

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command on files that do not get in each other's way."""
        with checked(self.get_params(ctx), ctx.params):
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of options for each heading."""
        sections: dict[str, list[tuple[int, tuple[str, str]]]] = {h: [] for h in (*HEADINGS, ADVANCED)}
        last = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, Option):
                moved = str(param.name).split("__")[-1] in self._advanced
                sections[ADVANCED if moved else param.heading].append((param.order, record))
            elif record is not None and isinstance(param, click.Option):
                last.append((_LAST, record))
        sections[ADVANCED if sections[ADVANCED] else HEADINGS[-1]] += last
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl([r for _, r in sorted(records, key=lambda pair: pair[0])])


class _Share(click.types.FloatParamType):
    """Number between 0 and 1, also as a percentage: 0.5 or 50%."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a text as a number."""
        if isinstance(value, str) and value.strip().endswith("%"):
            share: Any = value.strip().removesuffix("%")
            return super().convert(share, param, ctx) / 100
        return super().convert(value, param, ctx)


class _Name(click.types.StringParamType):
    """Name out of a few choices, completed by the shell; the option dataclass checks the value."""

    name = "name"

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = choices

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the choices that start with the typed text."""
        return [CompletionItem(c) for c in self.choices if c.startswith(incomplete)]


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`, passed as `as_json`."""
    decorate = click.option(
        "--json", "as_json", is_flag=True, cls=Option, help="One JSON document on stdout instead of tables."
    )
    function = decorate(function)
    made = function.__click_params__[-1]  # type: ignore[attr-defined]
    made.heading, made.order = HEADINGS[-1], _LAST - 1
    return function


def takes_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of all parameters annotated with an option dataclass, and pass instances of these.

    The options are created when the command runs or shows its help; the list of all commands needs none.
    """

    @cache
    def entries() -> tuple[_CommandOption, ...]:
        found = tuple(_entries(option_classes(function)))
        _refuse_duplicates(function, found)
        return found

    @wraps(function)
    def wrapped(**values: Any) -> None:
        classes = option_classes(function)
        given = {parameter: _on_the_command_line(parameter, entries(), values) for parameter in classes}
        defaults = _defaults(entries(), {name for names in given.values() for name in names})
        made = {
            parameter: _made(cls, parameter, entries(), given[parameter], defaults)
            for parameter, cls in classes.items()
        }
        _check_outputs(entries(), made)
        log = next((m.log_json for m in made.values() if isinstance(m, Events)), None)
        with logged(log, click.get_current_context().info_name or function.__name__, __version__):
            function(**made, **values)

    wrapped.declared_options = lambda: [o for e in entries() for o in _click_options(e)]  # type: ignore[attr-defined]
    wrapped.declared_names = lambda: [e.declared.name for e in entries()]  # type: ignore[attr-defined]
    return wrapped


def option_classes(function: Callable[..., Any]) -> dict[str, type[Options]]:
    """Return the parameters of a function that are annotated with an option dataclass."""
    hints = get_type_hints(function)
    return {n: h for n, h in hints.items() if n != "return" and isinstance(h, type) and issubclass(h, Options)}


def _entries(classes: Mapping[str, type[Options]]) -> Iterator[_CommandOption]:
    count = 0
    for parameter, cls in classes.items():
        own = list(declared(cls))
        depth = {d.name: next(i for i, c in enumerate(cls.__mro__) if d.name in vars(c).get("__annotations__", {}))
                 for d in own}  # fmt: skip
        for d in sorted(own, key=lambda d: depth[d.name]):
            yield _CommandOption(parameter, d, count)
            count += 1


def _refuse_duplicates(function: Callable[..., Any], entries: Sequence[_CommandOption]) -> None:
    seen: set[str] = set()
    for entry in entries:
        flags = {part for flag in (*entry.declared.flags, *entry.declared.spec.old) for part in flag.split("/")}
        if flags & seen:
            raise TypeError(f"{function.__name__} declares {', '.join(sorted(flags & seen))} twice")
        seen |= flags


# ------------------------------------------------------------------------------------------------------ click's side


def _click_options(entry: _CommandOption) -> Iterator[click.Option]:
    d, spec = entry.declared, entry.declared.spec
    # None: the default of a configuration file or of the dataclass applies. A required option may be in that file.
    kwargs: dict[str, Any] = {"show_default": False, "default": None}
    kind = _single(d.hint)
    if kind is bool:
        kwargs["is_flag"] = True
    else:
        kwargs["type"], kwargs["metavar"] = _click_type(d, kind), _metavar(d, kind)
        kwargs["multiple"] = _repeatable(d)
    made = Option([entry.name, *d.flags], help=_help(d), **kwargs)
    made.writes = kind is Path and spec.heading == OUTPUT
    made.heading = ADVANCED if spec.advanced else spec.heading
    made.order = entry.order + (1000 * HEADINGS.index(spec.heading) if spec.advanced else 0)
    yield made
    for i, flag in enumerate(spec.old):
        yield Option([f"{entry.name}__old{i}", flag], hidden=True, **kwargs)


def _single(hint: Any) -> Any:
    """Return the type of a value other than None: `int` for `int | None`; for several types the union."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [h for h in get_args(hint) if h is not type(None)]
        return inner[0] if len(inner) == 1 else hint
    return hint


def _repeatable(d: Declared) -> bool:
    if d.spec.text is not None:
        return d.spec.text.multiple
    return get_origin(_single(d.hint)) in (tuple, Sequence)


def _click_type(d: Declared, kind: Any) -> Any:
    if d.spec.choices:
        return _Name(d.spec.choices)
    if kind is Path or d.name in FILES:
        return click.Path(path_type=Path)
    if kind is float and d.spec.share and d.spec.text is None:
        return _Share()
    return {int: click.INT, float: click.FLOAT}.get(kind, click.STRING) if d.spec.text is None else click.STRING


def _metavar(d: Declared, kind: Any) -> str | None:
    if d.spec.metavar is not None:
        return d.spec.metavar
    if d.spec.choices:
        return "|".join(d.spec.choices) if len(d.spec.choices) < 4 else "NAME"
    return {int: "N", float: "NUMBER", Path: "FILE"}.get(kind)


def _help(d: Declared) -> str:
    """Return the help text, with the default, and bounds that a reader would not expect."""
    bounds = "" if d.spec.bounds in ("at least 0", "at least 1", "in [0, 1)") else d.spec.bounds
    notes = [f"default: {d.shown}" if d.shown else "", bounds, "required" if d.required else ""]
    notes = [note for note in notes if note]
    return f"{d.spec.help}  [{'; '.join(notes)}]" if notes else d.spec.help


# ------------------------------------------------------------------------------------------------ values and errors


def _on_the_command_line(parameter: str, entries: Sequence[_CommandOption], values: dict[str, Any]) -> dict[str, Any]:
    """Return the given values of a parameter's options by their names; remove them from click's."""
    given = {}
    for entry in entries:
        if entry.parameter == parameter:
            value = _given(entry, values)
            if value is not None and value != ():
                given[entry.declared.name] = _read(entry, value)
    return given


def _defaults(entries: Sequence[_CommandOption], given: Collection[str]) -> dict[str, Default]:
    """Return the values that a configuration file has for options that the command line leaves out.

    The file and the names of the options are noted on stderr.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.parent is None or not isinstance(context.parent.command, click.Group):
        return {}
    commands: dict[str, list[str]] = {}
    for name, command in context.parent.command.commands.items():
        names = getattr(command.callback, "declared_names", list)
        commands[name] = names()
    file, found = load_defaults(str(context.command.name), [e.declared for e in entries], commands)
    found = {name: d for name, d in without_alternatives(found, given).items() if name not in given}
    if found:
        click.echo(f"defaults of {file}: {', '.join(found)}", err=True)
    return found


def _made(
    cls: type[Options], parameter: str, entries: Sequence[_CommandOption], given: Mapping[str, Any],
    defaults: Mapping[str, Default],
) -> Options:  # fmt: skip
    """Create an instance from the values on the command line and from the defaults."""
    own = {entry.declared.name: entry for entry in entries if entry.parameter == parameter}
    values = {name: default.value for name, default in defaults.items() if name in own} | dict(given)
    for name, entry in own.items():
        if entry.declared.required and name not in values:
            context = click.get_current_context()
            raise click.MissingParameter(ctx=context, param=_click_parameter(context, entry))
    try:
        return cls(**values)
    except OptionError as err:
        entry = own[err.option]
        if err.option in defaults and err.option not in given:
            shown = err.labelled(err.option)
            raise OnnxPruneError(shown.what, where=defaults[err.option].where, fix=shown.fix) from err
        shown = err.labelled(entry.label)
        if entry.declared.spec.usage:
            raise click.UsageError(str(shown)) from err
        raise shown from err


def _check_outputs(entries: Sequence[_CommandOption], made: Mapping[str, Options]) -> None:
    """Raise if two options of the heading "Output" name the same file, those of a configuration file included.

    Raises:
        OnnxPruneError: Names both options.
    """
    own = [(e, getattr(made[e.parameter], e.declared.name)) for e in entries if e.declared.spec.heading == HEADINGS[-1]]
    check_outputs([(entry.label, path) for entry, path in own if isinstance(path, Path)], ())


def _click_parameter(context: click.Context, entry: _CommandOption) -> click.Parameter | None:
    return next((p for p in context.command.params if p.name == entry.name), None)


def _given(entry: _CommandOption, values: dict[str, Any]) -> Any:
    value = values.pop(entry.name)
    for i, flag in enumerate(entry.declared.spec.old):
        old = values.pop(f"{entry.name}__old{i}")
        if old is None or old == ():
            continue
        if value is not None and value != ():
            raise click.UsageError(f"{flag} is the old name of {entry.label}: use one of them")
        click.echo(f"{flag} is now {entry.label}", err=True)
        value = old
    return value


def _read(entry: _CommandOption, value: Any) -> Any:
    """Return the value of a text or the content of a file.

    Raises:
        click.UsageError: the text is not valid for the option.
    """
    d = entry.declared
    if d.name in FILES:
        module, function = FILES[d.name]
        return getattr(import_module(module), function)(value)
    if d.spec.text is None:
        return value
    try:
        return d.spec.text.read(value)
    except ValueError as err:
        bad = err.args[0] if d.spec.text.multiple else value
        raise click.UsageError(f"{entry.label} takes {d.spec.text.takes}, not {bad!r}") from err


def read_pairs(texts: Sequence[str]) -> dict[str, Any]:
    """Parse parameters of the form NAME=VALUE.

    Raises:
        click.UsageError: a text has another form.
    """
    try:
        return dict(PAIRS.read(texts))
    except ValueError as err:
        raise click.UsageError(f"a parameter is NAME=VALUE, not {err.args[0]!r}") from err
