"""A command runtime over ssh to this machine, with a server and keys of the test's own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_runtimes import PROFILER, file_law

from onnxprune.ir.reader import load
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import MeasurementStopped, make_runtime
from onnxprune.pipeline import analyze

DIGITS = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(
    SSHD is None or not shutil.which("ssh") or not shutil.which("ssh-keygen"), reason="needs ssh and sshd"
)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[list[str]]:
    """Words of an ssh command that reaches this machine."""
    assert SSHD is not None
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path / 'host'}\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path / 'authorized'}\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n",
        encoding="utf-8",
    )
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=subprocess.DEVNULL)
    words = [
        "ssh", "-F", "none", "-p", str(port), "-i", str(tmp_path / "user"), "-o", "StrictHostKeyChecking=no",
        "-o", f"UserKnownHostsFile={tmp_path / 'known'}", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
        f"{getpass.getuser()}@127.0.0.1",
    ]  # fmt: skip
    try:
        for _ in range(50):
            if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
                break
            if server.poll() is not None:
                pytest.skip("this sshd does not start without its own set-up")
            time.sleep(0.1)
        else:
            pytest.skip("this sshd accepts no keys of the test")
        yield words
    finally:
        server.terminate()
        server.wait(10)


def test_a_profiler_behind_ssh(connection: list[str], tmp_path: Path) -> None:
    script = tmp_path / "profiler.py"
    script.write_text(PROFILER, encoding="utf-8")
    model = load(DIGITS)
    feeds = random_feeds(analyze(model), 1)
    remote = f"{sys.executable} -S -E {script} text {tmp_path / 'calls'}"
    runtime = make_runtime(f"command:{' '.join(connection)} {remote} {{model}}", {"rounds": 2})
    found = runtime.measure([model], [feeds], threads=1, batch=1)
    assert found.latencies[0].median == pytest.approx(file_law(DIGITS), rel=0.05)
    assert (tmp_path / "calls").read_text() == "2"


def test_a_server_that_is_gone_is_a_lost_connection(connection: list[str], tmp_path: Path) -> None:
    gone = [w if w != connection[4] else "1" for w in connection]
    model = load(DIGITS)
    runtime = make_runtime(f"command:{' '.join(gone)} true {{model}}", {"retries": 0, "timeout": 20})
    with pytest.raises(MeasurementStopped, match="ssh has no connection") as err:
        runtime.measure([model], [random_feeds(analyze(model), 1)], threads=1, batch=1)
    assert "refused" in err.value.what
