"""Dependencies between packages, read from the source and compared with the table in docs/design.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(__file__).resolve().parents[1]
TOP = ROOT / "onnxprune"
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
MOST_ENTRIES = 24  # files and folders directly in onnxprune/
MOST_IN_A_FOLDER = 15  # files and folders, without `__init__.py`: about twelve
REGISTRIES = {  # folders in which an item is found by its name, one file for each
    "passes": "pass",
    "onnxprune/cli": "command",
    "onnxprune/criteria": "criterion",
    "onnxprune/ops": "operator family",
    "onnxprune/torch_bridge/converters": "operator family",
}


def rows(heading: str, columns: int) -> list[list[str]]:
    """Cells of the table under a heading of docs/design.md, without its header."""
    section = DESIGN.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    assert all(len(row) == columns for row in cells)
    return cells[2:]


# Package or module at the top -> those that its row names.
NEEDS = {name.strip("`"): set(re.findall(r"`(\w+)`", needs)) for name, _, needs in rows("Code map", 3)}
ORDER = tuple(TopologicalSorter(NEEDS).static_order())  # raises CycleError
ALLOWED: dict[str, set[str]] = {}
for _name in ORDER:
    ALLOWED[_name] = NEEDS[_name].union(*(ALLOWED[n] for n in NEEDS[_name]))

SOURCES = [*((p, p.relative_to(ROOT)) for p in TOP.rglob("*.py")),
           *((p, "onnxprune" / p.relative_to(ROOT)) for p in (ROOT / "passes").rglob("*.py"))]  # fmt: skip
MODULES = {".".join(rel.with_suffix("").parts).removesuffix(".__init__"): path for path, rel in SOURCES}


def package_of(module: str) -> str:
    return module.split(".")[1]


def imports(module: str) -> Iterator[str]:
    """Modules that a file imports, anywhere in it; not those under `if TYPE_CHECKING`."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    ignored = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide dependencies"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module or ""


# `onnxprune/__init__.py` is not in it: it holds the version, and loads the public names on first use.
IMPORTS = {module: set(imports(module)) for module in MODULES if module != "onnxprune"}


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_what_its_row_of_the_table_allows(package: str) -> None:
    for module, targets in IMPORTS.items():
        if package_of(module) == package:
            used = {package_of(t) for t in targets if t in MODULES and t != "onnxprune"} - {package}
            assert used <= ALLOWED[package], f"{module} imports {sorted(used - ALLOWED[package])}"


def test_the_table_has_a_row_for_everything_at_the_top() -> None:
    entries = {p.name for p in TOP.iterdir() if p.name not in ("__pycache__", "__init__.py", "py.typed")}
    assert {name.removesuffix(".py") for name in entries} | {"passes"} == set(NEEDS)
    assert len(entries) + 2 <= MOST_ENTRIES


def entries_of(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name not in ("__init__.py", "__pycache__")]


FOLDERS = {path.relative_to(ROOT).as_posix(): path for path in {p.parent for p, _ in SOURCES} - {TOP}}


def test_a_folder_holds_about_twelve_entries_unless_each_is_found_by_its_name() -> None:
    large = {name for name, folder in FOLDERS.items() if len(entries_of(folder)) > MOST_IN_A_FOLDER}
    assert large == set(REGISTRIES)


def test_the_readme_links_to_the_map() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(docs/design.md#code-map)" in text
    assert len(text.splitlines()) <= 80


def test_modules_do_not_import_in_circles() -> None:
    # A package's `__init__` that re-exports its modules is no part of a circle: it is loaded before them anyway.
    graph = {
        module: {t for t in targets if t in MODULES and MODULES[t].name != "__init__.py"}
        for module, targets in IMPORTS.items()
        if MODULES[module].name != "__init__.py"
    }
    TopologicalSorter(graph).prepare()


def test_private_modules_are_imported_in_their_package_only() -> None:
    for module, targets in IMPORTS.items():
        for target in targets & set(MODULES):
            parts = target.split(".")
            for i in range(2, len(parts)):
                if parts[i].startswith("_") and parts[i] != "__main__":
                    owner = ".".join(parts[:i])
                    assert f"{module}.".startswith(f"{owner}."), f"{module} imports {target}"


def test_every_package_says_what_is_in_it() -> None:
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module


def test_only_sessions_import_onnxruntime_and_only_the_bridge_onnx2torch() -> None:
    users = {
        library: {m for m, targets in IMPORTS.items() if library in {t.split(".")[0] for t in targets}}
        for library in ("onnxruntime", "onnx2torch")
    }
    # The quantizer of onnxruntime is a package of its own, and runs no session of ours.
    assert users["onnxruntime"] == {"onnxprune.execution.sessions", "onnxprune.pipeline.budget.quantize"}
    assert {package_of(m) for m in users["onnx2torch"]} == {"torch_bridge"}


@pytest.mark.parametrize(("task", "path"), rows("Where to look", 2))
def test_a_path_that_a_task_leads_to_exists(task: str, path: str) -> None:
    assert (ROOT / path.strip("`")).exists()


def loaded_by(code: str) -> set[str]:
    """Top-level modules a fresh interpreter holds after running code."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_import_loads_nothing_heavy() -> None:
    heavy = {"torch", "lightning", "onnxruntime", "sklearn", "scipy", "onnx", "numpy", "click", "rich"}
    assert not loaded_by("import onnxprune") & heavy


@pytest.mark.parametrize("module", ["pipeline", "cli"])
def test_no_command_loads_a_runtime_or_torch_before_it_needs_them(module: str) -> None:
    assert not loaded_by(f"import onnxprune.{module}") & {"torch", "onnxruntime", "sklearn", "scipy", "PIL"}


def test_public_names_exist_and_are_where_they_say() -> None:
    assert len(onnxprune.__all__) == len(set(onnxprune.__all__))
    assert onnxprune.__dir__() is onnxprune.__all__
    for name in onnxprune.__all__:
        value = getattr(onnxprune, name)
        if name != "__version__":
            assert value.__module__.startswith("onnxprune.")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        onnxprune.nothing  # noqa: B018


def test_no_submodule_bears_the_name_of_a_public_function() -> None:
    # Importing it would hide the function.
    assert not set(NEEDS) & set(onnxprune.__all__)


def test_a_class_name_stands_for_one_class() -> None:
    owners: dict[str, list[str]] = {}
    for path, module in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, []).append(str(module))
    assert {name: modules for name, modules in owners.items() if len(modules) > 1} == {}
