"""Files are opened by `_utils.files.input_files` and written by `_utils.files.atomic_files`, and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OPENERS = {"input_files.py", "atomic_files.py", "events.py", "locks.py", "journal.py", "terminal.py"}
"""Modules of `_utils` that may open files."""
SCRATCH = {"onnxprune/execution/data/_spool.py", "onnxprune/execution/data/_readers/arrays.py"}
"""Modules that make nameless or private temporary files."""
METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "touch"}
FUNCTIONS = {
    ("os", "open"), ("os", "fdopen"), ("io", "open"), ("json", "load"), ("tomllib", "load"), ("tempfile", "mkstemp"),
    ("tempfile", "NamedTemporaryFile"), ("onnx", "load"), ("onnx", "save"), ("np", "fromfile"), ("np", "loadtxt"),
    ("np", "genfromtxt"), ("os", "rename"), ("os", "replace"), ("shutil", "copy"), ("shutil", "copyfile"),
    ("shutil", "move"),
}  # fmt: skip
TAKE_FILES = {
    ("np", "load"), ("np", "save"), ("np", "savez"), ("np", "savez_compressed"), ("np", "memmap"), ("torch", "load"),
    ("torch", "save"), ("Image", "open"), ("zipfile", "ZipFile"), ("tarfile", "open"),
}  # fmt: skip
"""Functions that take an open file as well: the only way in which they are called."""
OPEN_FILES = {"file", "buffer", "out", "member"}


def sources() -> Iterator[Path]:
    for folder in ("onnxprune", "passes"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def offences(path: Path, text: str) -> list[str]:
    """Return the calls that open a file."""
    found = []
    tree = ast.parse(text)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("onnxprune._utils") for alias in node.names
    }  # fmt: skip
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call = node.func
        if isinstance(call, ast.Name) and call.id == "open":
            found.append(f"line {node.lineno}: open(")
        if not isinstance(call, ast.Attribute):
            continue
        owner = call.value.id if isinstance(call.value, ast.Name) else None
        if (owner, call.attr) in FUNCTIONS or (call.attr in METHODS and owner not in imported):
            found.append(f"line {node.lineno}: {owner}.{call.attr}(")
        elif call.attr == "open" and owner not in ("Image", "archive", "webbrowser"):
            found.append(f"line {node.lineno}: .open(")
        elif (owner, call.attr) in TAKE_FILES:
            place = int((owner, call.attr) == ("torch", "save"))
            first = node.args[place] if len(node.args) > place else None
            is_bytes = isinstance(first, ast.Call) and isinstance(first.func, ast.Name | ast.Attribute)
            name = first.func if is_bytes and isinstance(first, ast.Call) else first
            word = name.id if isinstance(name, ast.Name) else name.attr if isinstance(name, ast.Attribute) else ""
            if word not in OPEN_FILES | {"BytesIO"}:
                found.append(f"line {node.lineno}: {owner}.{call.attr}({word}")
    return found


def test_no_module_opens_files_itself() -> None:
    wrong = {}
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        if "_utils" in path.parts and path.name in OPENERS:
            continue
        found = offences(path, path.read_text(encoding="utf-8"))
        if name in SCRATCH:
            found = [line for line in found if "mkstemp" not in line and "fdopen" not in line]
        if found:
            wrong[name] = found
    assert not wrong, "use onnxprune._utils.files.input_files or atomic_files"


@pytest.mark.parametrize("text", [
    "open('x')", "Path('x').open()", "path.read_text()", "path.write_bytes(b'')", "np.load(path)", "Image.open(path)",
    "os.open('x', 0)", "torch.load(path)", "json.load(f)", "zipfile.ZipFile(path)",
    "onnx.load('x')", "os.replace('a', 'b')", "np.memmap(path)",
])  # fmt: skip
def test_what_the_rule_finds(text: str) -> None:
    assert offences(Path("x.py"), text)


def test_what_the_rule_allows() -> None:
    for text in ("with opened(p) as file: np.load(file)", "Image.open(BytesIO(b))", "archive.open(x)", "opened(path)"):
        assert not offences(Path("x.py"), text)
