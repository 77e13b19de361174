"""Checks an installed onnxprune as its user meets it: from another folder, without the checkout on the path.

cd / && PYTHON -P CHECKOUT/tools/check_install.py       # `make wheel`, `make package`
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path

import onnxprune
from onnxprune.passes import all_passes

CHECKOUT = Path(__file__).resolve().parent.parent


def check(holds: bool, what: str) -> None:
    """Exit with a message if a condition is false."""
    if not holds:
        sys.exit(f"broken package: {what}")


def said(*command: str) -> str:
    """Return the output of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    check(done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Check files, versions, both ways to call onnxprune, the demo, a recipe and a report."""
    package = Path(onnxprune.__file__).resolve().parent
    check(package != CHECKOUT / "onnxprune", f"this is the checkout, not an installed copy: {package}")
    files = {file.as_posix() for file in metadata.files("onnxprune") or []}
    check("onnxprune/py.typed" in files, "py.typed is missing")
    shipped = {f"onnxprune/models/{p.name}" for p in (CHECKOUT / "models").iterdir() if p.suffix in (".onnx", ".npz")}
    sources = {f"onnxprune/passes/{path.name}" for path in (CHECKOUT / "passes").glob("*.py")}
    inside = [
        path for path in (CHECKOUT / "onnxprune").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    sources |= {path.relative_to(CHECKOUT).as_posix() for path in inside}
    check(shipped | sources <= files, f"missing: {sorted((shipped | sources) - files)}")
    strange = {name for name in files if name.startswith(("tests/", "tools/")) or name.endswith(".xz")}
    check(not strange, f"does not belong into it: {sorted(strange)}")
    check((resources.files("onnxprune.models") / "digits_cnn.onnx").is_file(), "models cannot be found")
    check(len(all_passes()) > 0, "no passes")
    version = metadata.version("onnxprune")
    check(version == onnxprune.__version__, f"metadata says {version}, the package {onnxprune.__version__}")
    (script,) = (
        f for f in metadata.files("onnxprune") or [] if f.stem == "onnxprune" and f.parent.name in ("bin", "Scripts")
    )
    calls = [[sys.executable, "-P", "-m", "onnxprune"]]
    if (place := Path(str(script.locate())).resolve()).is_file():  # not where pip put it under --target
        calls.append([str(place)])
    for call in calls:
        check(said(*call, "--version").strip() == f"onnxprune, version {version}", f"{call} --version")
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.onnx"
        said(*calls[-1], "demo", "-o", str(small))
        check(small.is_file(), "the demo wrote nothing")
        run, page = Path(folder) / "run", Path(folder) / "report.html"
        said(*calls[-1], "run", "recover", "-o", str(run))
        check((run / "table.csv").is_file(), "the recipe wrote no table")
        said(*calls[-1], "report", str(run), "-o", str(page))
        check(page.is_file(), "the report wrote nothing")
    sys.stdout.write(f"onnxprune {version} works as installed: {package}\n")


if __name__ == "__main__":
    main()
