"""The limit of memory: set before the machine swaps, left out where a GPU's driver maps more than it uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
from pathlib import Path
from onnxprune._utils.memory import limit_memory
limit_memory(Path(sys.argv[1]))
print(resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("driver", [True, False])
def test_a_limit_is_set_unless_a_driver_is_loaded(tmp_path: Path, driver: bool) -> None:
    folder = tmp_path if driver else tmp_path / "none"
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(driver)
