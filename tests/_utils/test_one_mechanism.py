"""One reader of JSON and TOML and one type of progress, by the source."""

from __future__ import annotations

from pathlib import Path

import onnxprune

TOP = Path(onnxprune.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for d in (TOP, ROOT / "passes") for p in d.rglob("*.py")
}


def files_with(*parts: str) -> set[str]:
    return {name for name, text in SOURCES.items() if any(part in text for part in parts)}


def test_json_and_toml_are_read_by_the_strict_reader() -> None:
    assert files_with("json.load(", "tomllib", "object_pairs_hook") == {"onnxprune/_utils/strict.py"}
    assert files_with("json.loads(") == {
        "onnxprune/_utils/strict.py",
        "onnxprune/execution/sessions.py",  # onnxruntime's profile, a file of its own
        "onnxprune/integrations/olive.py",  # the configuration that Olive installs
        # What was just written, as reading it would give it back.
        "onnxprune/cli/score.py", "onnxprune/cli/sensitivity.py",
        "onnxprune/planning/thresholds.py", "onnxprune/recipes/runner.py",
    }  # fmt: skip


def test_progress_has_one_type() -> None:
    assert files_with("Callable[[int, int], None]") == {"onnxprune/_utils/output/progress.py"}
