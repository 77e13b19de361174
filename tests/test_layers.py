"""Who may import whom, read from the source; and what `import onnxprune` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(onnxprune.__file__).parents[1]

# A module imports strictly lower ranks, or siblings of its own package. A package stands for all of its modules.
RANKS = {
    0: ("errors",),
    1: ("files", "functions", "local_functions", "notebooks", "plugins", "symbolic", "wire", "workers"),
    2: ("curves", "journal", "layouts", "model", "plans"),
    3: ("ops", "proto_graph", "runtime", "data", "linear_nodes", "metrics", "pictures", "compression"),
    4: ("node_types", "size_rules"),
    5: (
        "shapes",
        "evaluation",
        "latency",
        "calibration",
        "output_distance",
        "layer_weights",
        "group_names",
        "random_values",
    ),
    6: ("wellformed", "coupling", "channel_statistics", "segments"),
    7: ("features", "gram", "cost", "limits", "synthetic"),
    8: ("paired_walk",),
    9: ("passes",),
    10: ("pieces", "random_inputs", "targets", "torch_bridge"),
    11: ("search", "trials", "verification"),
    12: ("criteria", "latency_prediction", "speedup"),
    13: ("scoring",),
    14: ("allocators", "class_tables", "sweep", "thresholds"),
    15: ("planner",),
    16: ("comparison", "criteria_comparison", "explorer", "iterative", "pipeline"),
    17: ("bench", "differences", "recovery", "show", "training", "weight_unit"),
    18: ("demo", "recipes"),
    19: ("reports",),
    20: ("cli",),
    21: ("__main__",),
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}
# `onnxprune/__init__.py` has no rank: it holds the version, and loads the public names on first use.
PATHS = [*(ROOT / "onnxprune").rglob("*.py"), *(ROOT / "passes").glob("*.py")]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("onnxprune.").removesuffix(".__init__"): path
    for path in PATHS
    if path != ROOT / "onnxprune" / "__init__.py"
}


def imports(path: Path) -> Iterator[str]:
    """Modules a file imports, wherever in it; not those under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            module = node.module or ""
            yield module
            if module == "onnxprune":
                yield from (f"onnxprune.{a.name}" for a in node.names if a.name in RANK)


each_file = pytest.mark.parametrize("name", sorted(FILES))


def test_every_module_has_a_rank_and_every_rank_a_module() -> None:
    assert {name.split(".")[0] for name in FILES} == set(RANK)


@each_file
def test_imports_go_down(name: str) -> None:
    package = name.split(".")[0]
    for target in imports(FILES[name]):
        if target.startswith("onnxprune."):
            other = target.split(".")[1]
            if other != package:
                assert RANK[other] < RANK[package], f"{name} (rank {RANK[package]}) imports {target} ({RANK[other]})"


@each_file
def test_only_runtime_imports_onnxruntime(name: str) -> None:
    assert name == "runtime" or "onnxruntime" not in {t.split(".")[0] for t in imports(FILES[name])}


@each_file
def test_only_the_bridge_imports_onnx2torch(name: str) -> None:
    assert name.startswith("torch_bridge") or "onnx2torch" not in {t.split(".")[0] for t in imports(FILES[name])}


@each_file
def test_print_is_the_terminals_owner_only(name: str) -> None:
    calls = [n for n in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    printed = any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls)
    assert not printed or name.split(".")[0] in ("cli", "demo", "show")


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
    assert onnxprune.__all__ == sorted(set(onnxprune.__all__) - {"__version__"}) + ["__version__"]
    for name in onnxprune.__all__:
        value = getattr(onnxprune, name)
        if name != "__version__":
            assert value.__module__.startswith("onnxprune.")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        onnxprune.nothing  # noqa: B018


def test_no_submodule_bears_the_name_of_a_public_function() -> None:
    # Importing it would hide the function.
    assert not {name.split(".")[0] for name in FILES} & set(onnxprune.__all__)


def test_a_class_name_stands_for_one_class() -> None:
    owners: dict[str, list[str]] = {}
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in owners.items() if len(modules) > 1} == {}
