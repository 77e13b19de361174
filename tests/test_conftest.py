"""The summary of a run in which a worker process died."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("import os; os._exit(3)", ("gw0 exited with status 3",)),
        ("import os; os.kill(os.getpid(), 9)", ("gw0 was ended by SIGKILL",)),
        ("import ctypes; ctypes.string_at(0)", ("gw0 was ended by SIGSEGV", "Segmentation fault", "in test_it")),
    ],
)
def test_a_worker_s_death_is_explained(tmp_path: Path, body: str, wanted: tuple[str, ...]) -> None:
    (tmp_path / "conftest.py").write_bytes(Path(__file__).with_name("conftest.py").read_bytes())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_death.py").write_text(f"def test_it():\n    {body}\n")
    words = [sys.executable, "-m", "pytest", "-n", "1", "--max-worker-restart", "0"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode, done.stdout
    shown = done.stdout.partition("a worker died")[2]
    assert all(text in shown for text in wanted), done.stdout + done.stderr
