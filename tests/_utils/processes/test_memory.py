"""Memory at hand: of the machine, of a container without its cached files, and of the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxprune._utils.processes.memory import memory_at_hand


@pytest.fixture
def container(tmp_path: Path) -> Path:
    (tmp_path / "used").write_text("900\n")
    (tmp_path / "statistics").write_text("anon 100\ninactive_file 600\nactive_file 200\n")
    return tmp_path


def files_of(container: Path) -> list[tuple[str, str, str]]:
    return [(str(container / "limit"), str(container / "used"), str(container / "statistics"))]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cached_files_of_a_container_are_free_memory(container: Path) -> None:
    (container / "limit").write_text("1000\n")
    assert memory_at_hand(files_of(container)) == 1000 - 900 + 600


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_container_without_a_limit_has_what_the_machine_has(container: Path) -> None:
    (container / "limit").write_text("max\n")
    found = memory_at_hand(files_of(container))
    assert found is not None
    assert found > 1000
