"""One registry for everything that is found by name: operators, criteria, passes, converters, methods, metrics.

A registry is a mapping from keys to items, in the order of registration. Plug-ins of other distributions are loaded
when it is iterated, or when a key is asked for that is not built in. `registry[key]` of an unknown key raises an error
that suggests the nearest known ones; a second item under a key is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, TypeVar, cast

from onnxprune._utils.entry_points import PluginRegistry
from onnxprune.errors import OnnxPruneError, unknown

K = TypeVar("K")
T = TypeVar("T")
I = TypeVar("I")  # noqa: E741  # an item: what a decorator is given, and returns


class Registry(Mapping[K, T]):
    """Items by key.

    Args:
        kind: Name of an item in messages: "criterion".
        key: Returns the key of an item that is registered without one; default: its attribute `name`.
        problem: Returns the reason for which an object is no such item, or None.
        label: Returns a key as messages show it.
        modules: Modules that register built-in items when they are imported, and are imported when they are needed.
        plugins: Group of the entry points through which other distributions add items; None: there are no plug-ins.
        accept: Registers what an entry point names; default: `register`. If it raises, what it registered is removed.
        plugin: Returns the name of the entry point that would add a key, for keys that are not plain names.
        synonym: Returns the key that a common other name stands for. It is asked only for keys without an item, so that
            a plug-in may use such a name.
        synonyms: Such names that errors may suggest.

    Attributes:
        plugins: Entry points, and those that could not be loaded; None where there are no plug-ins.
    """

    def __init__(
        self,
        kind: str,
        *,
        key: Callable[[Any], K] | None = None,
        problem: Callable[[Any], str | None] | None = None,
        label: Callable[[K], str] = str,
        modules: Sequence[str] = (),
        plugins: str | None = None,
        accept: Callable[[Any], object] | None = None,
        plugin: Callable[[K], str] = str,
        synonym: Callable[[K], K] | None = None,
        synonyms: Collection[str] = (),
    ) -> None:
        self.kind = kind
        self._key: Callable[[Any], K] = key or (lambda item: item.name)
        self._problem = problem
        self._label = label
        self._accept = accept or self.register
        self._plugin = plugin
        self._synonym, self._synonyms = synonym, synonyms
        self._modules = modules
        self._items: dict[K, T] = {}
        self._aliases: dict[K, K] = {}
        self._origins: dict[K, str] = {}
        self._built_in: dict[K, T] = {}
        self.plugins = PluginRegistry(plugins, self._add_plugin) if plugins is not None else None

    # ----------------------------------------------------------------------------------------------- registration

    def register(self, item: I) -> I:
        """Add an item under its own key. Also a decorator.

        Raises:
            OnnxPruneError: It is no such item, or its key is taken. To register the same item twice is harmless.
        """
        problem = self._problem(item) if self._problem is not None else None
        if problem:
            name = getattr(item, "__qualname__", None) or repr(item)
            raise OnnxPruneError(f"{name} is not a {self.kind}: {problem}", where=getattr(item, "__module__", None))
        self.add(self._key(item), cast(T, item))
        return item

    def add(self, key: K, item: T, *aliases: K) -> None:
        """Add an item under a key, and under other keys that are not listed.

        Raises:
            OnnxPruneError: A key is taken.
        """
        for name in (key, *aliases):
            taken = self._items.get(self._aliases.get(name, name))
            if taken is not None and taken is not item:
                raise self._taken(name, taken, item)
        self._items.setdefault(key, item)
        self._aliases.update(dict.fromkeys(aliases, key))

    def named(self, key: K, *aliases: K) -> Callable[[I], I]:
        """Return a decorator that adds an item under a key: for functions, which have no key of their own."""

        def decorator(item: I) -> I:
            self.add(key, cast(T, item), *aliases)
            return item

        return decorator

    def _taken(self, key: K, taken: T, item: Any) -> OnnxPruneError:
        module = getattr(taken, "__module__", None)
        return OnnxPruneError(
            f"the {self.kind} {self._label(key)!r} is already registered{f' by {module}' if module else ''}",
            where=getattr(item, "__module__", None),
            fix="choose another name",
        )

    def _load(self) -> None:
        """Register what is imported on demand, and the plug-ins."""
        self._load_modules()
        if self.plugins is not None and not self.plugins.loaded:
            self._built_in = dict(self._items)
            self.plugins.load()

    def _load_modules(self) -> None:
        for module in self._modules:
            import_module(module)
        self._modules = ()

    def _add_plugin(self, loaded: Any, distribution: str) -> None:
        before = dict(self._items)
        for key, item in self._built_in.items():
            if item is loaded:  # such a plug-in would add nothing
                raise self._taken(key, item, None)
        try:
            self._accept(loaded)
        except BaseException:
            self._items = before
            raise
        self._origins.update(dict.fromkeys(self._items.keys() - before.keys(), distribution))

    # ------------------------------------------------------------------------------------------------------- lookup

    def find(self, key: K) -> T | None:
        """Return the item of a key, or None. Plug-ins are loaded only for keys that are not built in."""
        key = self._aliases.get(key, key)
        if key not in self._items:
            self._load()
        if key not in self._items and self._synonym is not None:
            key = self._synonym(key)
        return self._items.get(key)

    def __getitem__(self, key: K) -> T:
        """Return the item of a key.

        Raises:
            OnnxPruneError: There is none (with the nearest keys), or its plug-in could not be loaded.
        """
        item = self.find(key)
        if item is None:
            known = map(self._label, self._items)
            raise self.broken(key) or unknown(self.kind, self._label(key), known, self._synonyms)
        return item

    def broken(self, key: K, where: str | None = None) -> OnnxPruneError | None:
        """Return the error of a plug-in that is named for a key and could not be loaded, or None."""
        broken = self.plugins.broken.get(self._plugin(key)) if self.plugins is not None else None
        return broken.error(f"no {self.kind} {self._label(key)!r}", where) if broken is not None else None

    def origin(self, key: K) -> str | None:
        """Return the distribution that a plug-in's item is from; None for built-in items."""
        return self._origins.get(self._aliases.get(key, key))

    def get(self, key: K, default: Any = None) -> Any:
        """Return the item of a key, or a default."""
        item = self.find(key)
        return default if item is None else item

    def __contains__(self, key: object) -> bool:
        return self.find(cast(K, key)) is not None

    def __iter__(self) -> Iterator[K]:
        self._load()
        return iter(list(self._items))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"<registry of {len(self._items)} items: {self.kind}>"

    @contextlib.contextmanager
    def isolated(self, *, reload: bool = False) -> Iterator[None]:
        """Undo at the end of a block everything that is registered inside: for tests and documentation.

        Args:
            reload: Load the plug-ins again inside the block, if they are needed there.
        """
        self._load_modules()  # what they register is to stay
        items, aliases, origins, plugins = self._items, self._aliases, self._origins, self.plugins
        self._items, self._aliases, self._origins = dict(items), dict(aliases), dict(origins)
        if reload and plugins is not None:
            self.plugins = PluginRegistry(plugins.group, self._add_plugin)
        try:
            yield
        finally:
            self._items, self._aliases, self._origins, self.plugins = items, aliases, origins, plugins


def make(kind: str, name: str, cls: type[T], params: Mapping[str, Any]) -> T:
    """Return an instance of a registered dataclass with a user's parameters.

    Raises:
        OnnxPruneError: It has no such parameter (with those it has), or it refuses a value.
    """
    valid = [f.name for f in fields(cls) if f.init]  # type: ignore[arg-type]  # registries of classes check it
    wrong = [p for p in params if p not in valid]
    if wrong:
        raise OnnxPruneError(
            f"the {kind} {name!r} has no parameter {', '.join(map(repr, wrong))}",
            fix=f"its parameters are: {', '.join(valid)}" if valid else "it has none",
        )
    return cls(**params)
