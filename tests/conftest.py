"""Report of test workers that died, at the end of a run of pytest."""

from __future__ import annotations

import faulthandler
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

import pytest

_FOLDER = pytest.StashKey[Path]()
_FILE = pytest.StashKey[TextIO]()
_DEATHS = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    folder = config.stash[_FOLDER] = config.rootpath / ".pytest_cache" / "workers"
    if not hasattr(config, "workerinput"):
        config.stash[_DEATHS] = []
        if config.pluginmanager.hasplugin("dsession"):
            config.pluginmanager.register(_Controller(config))
        return
    folder.mkdir(parents=True, exist_ok=True)
    config.stash[_FILE] = (folder / f"{config.workerinput['workerid']}.txt").open("w")


def pytest_runtest_setup(item: pytest.Item) -> None:
    file = item.config.stash.get(_FILE, None)
    if file is not None:
        faulthandler.disable()  # Lightning puts the handlers of all signals back to Python's defaults after a training
        faulthandler.enable(file)


class _Controller:
    """Collects how workers died, where pytest-xdist says only that they did."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if not error:
            return
        process: subprocess.Popen[bytes] = node.gateway._io.popen
        try:
            status = process.wait(10)
        except subprocess.TimeoutExpired:
            how = "closed its pipe and runs on"
        else:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        if sys.platform == "linux":
            import resource

            how += f"; largest process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10} MB"
        file = self.config.stash[_FOLDER] / f"{node.gateway.id}.txt"
        trace = file.read_text(errors="replace") if file.exists() else ""
        self.config.stash[_DEATHS].append(f"{node.gateway.id} {how}\n{trace}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for text in config.stash.get(_DEATHS, []):
        terminalreporter.section("a worker died")
        terminalreporter.write_line(text)
