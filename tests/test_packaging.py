"""The version is in one place, and the code asks nothing of one system that others lack."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from command_line import CommandLine
from packaging.requirements import Requirement

import onnxprune
from onnxprune._utils.files.journal import Journal

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "onnxprune").rglob("*.py"), *(ROOT / "passes").glob("*.py")])
# Modules and functions that Windows or macOS lack.
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
POSIX_NAMES = {
    "os": {"fork", "getuid", "geteuid", "getgid", "getlogin", "getloadavg", "uname", "setsid", "killpg", "mkfifo",
           "sched_getaffinity", "sched_setaffinity", "O_DIRECTORY", "statvfs", "nice", "sysconf"},
    "signal": {"SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "alarm", "setitimer", "pause"},
    "mmap": {"MAP_SHARED", "MAP_PRIVATE", "MAP_POPULATE", "PROT_READ", "PROT_WRITE", "MADV_SEQUENTIAL"},
}  # fmt: skip
TEXT = {"open", "read_text", "write_text"}


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def guarded(tree: ast.AST) -> set[int]:
    """Nodes inside a `try` or a `suppress` that expects an ImportError."""
    found = set()
    for node in ast.walk(tree):
        expects = []
        if isinstance(node, ast.Try):
            expects = [handler.type for handler in node.handlers]
        elif isinstance(node, ast.With):
            expects = [item.context_expr for item in node.items]
        if any(e is not None and "ImportError" in ast.unparse(e) for e in expects):
            found |= {id(inner) for inner in ast.walk(node)}
    return found


def unportable(text: str) -> Iterator[str]:
    """Yield requirements of a source on one system, and text files opened without an encoding, with their lines."""
    tree = ast.parse(text)
    safe = guarded(tree)
    for node in ast.walk(tree):
        if id(node) not in safe and imported(node) & POSIX_MODULES:
            yield f"{node.lineno}: imports {imported(node) & POSIX_MODULES}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in POSIX_NAMES.get(node.value.id, ()):
                yield f"{node.lineno}: {node.value.id}.{node.attr}"
            if (node.value.id, node.attr) == ("os", "rename"):
                yield f"{node.lineno}: os.rename does not replace a file on Windows; os.replace does"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match("/(tmp|var|home)/", node.value):
            yield f"{node.lineno}: the path {node.value!r}"
        if isinstance(node, ast.Call) and not encoded(node):
            yield f"{node.lineno}: a text file without an encoding"


def encoded(call: ast.Call) -> bool:
    """Return True if a call opens no file, a binary one, or a text file with an encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name not in TEXT or owner in ("Image", "archive", "os", "webbrowser"):
        return True
    if name in ("read_text", "write_text") and not owner:
        return True  # those of onnxprune._utils.files.input_files and atomic_files, which read and write UTF-8
    words = [a.value for a in call.args if isinstance(a, ast.Constant)]
    words += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
    binary = any(isinstance(w, str) and "b" in w and len(w) <= 3 for w in words)
    return (name == "open" and binary) or any(k.arg == "encoding" for k in call.keywords)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_system_is_asked_for_what_it_lacks(path: Path) -> None:
    assert list(unportable(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import fcntl",
        "def f():\n    from resource import getrusage",
        "os.sched_getaffinity(0)",
        "os.rename(a, b)",
        "signal.SIGKILL",
        "Path('/tmp/x')",
        "open(name)",
        "path.read_text()",
        "path.open('w')",
    ],
)
def test_what_is_not_portable_is_found(text: str) -> None:
    assert len(list(unportable(text))) == 1


def test_a_guarded_import_and_bytes_are_portable() -> None:
    assert not list(unportable("try:\n    import fcntl\nexcept ImportError:\n    pass\nopen(name, 'rb')"))


def test_a_journal_works_without_file_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows: importing it fails
    journal = Journal(tmp_path / "x.journal", {"of": "test"})
    journal.add("a", 1)
    journal.close()
    again = Journal(tmp_path / "x.journal", {"of": "test"})
    assert again.entries == {"a": 1}
    again.close()


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "onnxprune.__version__"}
    version = onnxprune.__version__
    assert metadata.version("onnxprune") == version
    assert CommandLine().out("--version").strip() == f"onnxprune, version {version}"
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest[1] == version


def test_the_package_is_typed_and_complete() -> None:
    """Every folder with modules is packaged; `make wheel` looks into the built file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "onnxprune").rglob("*.py")}
    named = {p for p in project["tool"]["setuptools"]["packages"] if p not in ("onnxprune.passes", "onnxprune.models")}
    assert named == {".".join(f.parts) for f in folders}
    assert (ROOT / "onnxprune" / "py.typed").is_file()
    assert project["project"]["scripts"] == {"onnxprune": "onnxprune.cli:run_program"}


TABLE = ROOT / "docs" / "installing.md"


def test_the_table_of_extras_says_what_they_hold() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    rows = re.findall(r"^\| (?:`([\w-]+)`|\(none\)) \| (.+?) \|", TABLE.read_text(encoding="utf-8"), re.M)
    assert sorted(extra for extra, _ in rows) == sorted(extras)
    for extra, adds in rows:
        if extra == "dev":
            continue  # said in words
        wanted, allowed = set(), set()
        for one in map(Requirement, extras[extra]):
            own = one.name == project["name"]
            wanted |= {f"`{e}`" for e in one.extras} if own else {one.name}
            allowed |= set() if own else one.extras
        assert wanted <= set(adds.split(", ")) <= wanted | allowed, extra


def test_there_is_one_table_of_extras_and_the_readme_links_to_it() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert [p for p in pages if re.search(r"^\| extra ", p.read_text(encoding="utf-8"), re.M)] == [TABLE]
    assert "(docs/installing.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
