"""The registry: lookup, order, aliases, plug-ins, and the refusals with their suggestions."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onnxprune._utils.registry import Registry, make
from onnxprune.errors import OnnxPruneError

Rule = Callable[[float], float]


@dataclass(frozen=True)
class Item:
    name: str
    size: int = 1


def filled() -> Registry[str, Item]:
    registry: Registry[str, Item] = Registry("thing")
    for name in ("second", "first"):
        registry.register(Item(name))
    return registry


def test_items_are_found_and_listed_in_order() -> None:
    registry = filled()
    assert list(registry) == ["second", "first"]
    assert registry["first"] == Item("first") == registry.find("first") == dict(registry)["first"]
    assert (len(registry), "first" in registry, "third" in registry) == (2, True, False)
    assert registry.find("third") is None
    assert registry.get("third", 3) == 3
    assert isinstance(registry, Mapping)


def test_unknown_names_come_with_suggestions() -> None:
    with pytest.raises(OnnxPruneError) as caught:
        filled()["frist"]
    assert (caught.value.what, caught.value.fix) == ("unknown thing 'frist'", "did you mean 'first'?")


def test_a_second_item_of_a_name_is_refused_and_the_same_one_is_not() -> None:
    registry = filled()
    with pytest.raises(OnnxPruneError, match="the thing 'first' is already registered by") as caught:
        registry.register(Item("first", 2))
    assert caught.value.fix == "choose another name"
    registry.register(registry["first"])
    assert registry["first"] == Item("first")


def test_aliases_are_found_and_not_listed() -> None:
    registry = filled()
    registry.add("third", Item("third"), "3rd")
    assert registry["3rd"] is registry["third"]
    assert "3rd" in registry
    assert list(registry) == ["second", "first", "third"]
    for names in (("3rd",), ("fourth", "first"), ("fourth", "3rd")):
        with pytest.raises(OnnxPruneError, match="already registered"):
            registry.add(names[0], Item("x"), *names[1:])
    assert "fourth" not in registry


def test_decorators_return_what_they_register() -> None:
    rules: Registry[str, Rule] = Registry("rule")

    @rules.named("double", "twice")
    def double(x: float) -> float:
        return 2 * x

    assert rules["double"] is rules["twice"] is double
    classes: Registry[str, type] = Registry("class")

    @classes.register
    class Named:
        name = "named"

    assert classes["named"] is Named


def test_malformed_items_are_refused() -> None:
    registry: Registry[str, Item] = Registry("thing", problem=lambda item: "too small" if item.size < 1 else None)
    with pytest.raises(OnnxPruneError, match=r"Item\(name='a', size=0\) is not a thing: too small"):
        registry.register(Item("a", 0))
    assert not len(registry)


def test_keys_that_are_no_names_have_labels() -> None:
    registry: Registry[tuple[str, str], Item] = Registry(
        "operator", key=lambda item: ("", item.name), label=lambda key: "::".join(filter(None, key))
    )
    registry.register(Item("Conv"))
    assert registry["", "Conv"] == Item("Conv")
    with pytest.raises(OnnxPruneError, match="unknown operator 'com::Cnov'"):
        registry["com", "Cnov"]


def test_parameters_are_checked() -> None:
    assert make("thing", "a", Item, {"name": "a", "size": 2}) == Item("a", 2)
    with pytest.raises(OnnxPruneError) as caught:
        make("thing", "a", Item, {"sice": 2})
    assert (caught.value.what, caught.value.fix) == (
        "the thing 'a' has no parameter 'sice'", "its parameters are: name, size",
    )  # fmt: skip


def test_what_is_registered_in_isolation_is_forgotten() -> None:
    registry = filled()
    with registry.isolated():
        registry.add("third", Item("third"), "3rd")
        assert "3rd" in registry
    assert "3rd" not in registry
    assert list(registry) == ["second", "first"]


def test_modules_are_imported_when_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "onnxprune_test_registered"
    (tmp_path / f"{name}.py").write_text(f"from {__name__} import LATE, Item\nLATE.register(Item('late'))\n")
    monkeypatch.syspath_prepend(tmp_path)
    LATE.register(Item("early"))
    assert LATE["early"] == Item("early")
    assert name not in sys.modules
    with LATE.isolated():
        pass
    assert list(LATE) == ["early", "late"]


LATE: Registry[str, Item] = Registry("thing", modules=("onnxprune_test_registered",))

# ----------------------------------------------------------------------------------------------------------- plug-ins

GOOD = Item("good")


def refuse() -> None:
    raise RuntimeError("no\nthanks")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plug-ins of this module; returns the groups that were asked for."""
    groups: list[str] = []

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        groups.append(group)
        return [
            importlib.metadata.EntryPoint("missing", "onnxprune_no_such_module:X", group),
            importlib.metadata.EntryPoint("good", f"{__name__}:GOOD", group),
        ]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return groups


def with_plugins(**options: Any) -> Registry[str, Item]:
    registry: Registry[str, Item] = Registry("thing", plugins="test.things", **options)
    registry.register(Item("own"))
    return registry


def test_plugins_are_loaded_once_and_when_needed(asked: list[str]) -> None:
    registry = with_plugins()
    assert registry["own"] == Item("own")
    assert "own" in registry
    assert asked == []
    assert registry["good"] is GOOD
    assert list(registry) == ["own", "good"]
    assert registry.find("better") is None
    assert asked == ["test.things"]
    assert (registry.origin("own"), registry.origin("good")) == (None, f"the module {__name__!r}")


def test_iteration_loads_plugins(asked: list[str]) -> None:
    assert list(with_plugins().values()) == [Item("own"), GOOD]
    assert asked == ["test.things"]


def test_a_plugin_that_cannot_be_loaded_is_named_where_it_is_asked_for(
    asked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    registry = with_plugins()
    with pytest.raises(OnnxPruneError, match="no thing 'missing': the plug-in 'missing'") as err:
        registry["missing"]
    assert err.value.fix == "update or uninstall the module 'onnxprune_no_such_module'"
    assert "ModuleNotFoundError" in err.value.what
    assert "missing" in caplog.text
    assert "missing" not in registry


def test_a_plugin_that_fails_leaves_nothing(asked: list[str]) -> None:
    def accept(item: Item) -> None:
        registry.add("half", item)
        raise RuntimeError("no")

    registry = with_plugins(accept=accept)
    assert list(registry) == ["own"]
    assert registry.plugins is not None
    assert set(registry.plugins.broken) == {"missing", "good"}


def test_a_plugin_that_names_a_built_in_item_is_refused(asked: list[str]) -> None:
    registry = with_plugins()
    registry.register(GOOD)
    assert list(registry) == ["own", "good"]
    assert registry.plugins is not None
    assert "'good' is already registered" in registry.plugins.broken["good"].reason


def test_plugins_are_loaded_again_in_isolation(asked: list[str]) -> None:
    registry = with_plugins()
    for _ in range(2):
        with registry.isolated(reload=True):
            assert "good" in registry
    assert asked == 2 * ["test.things"]
