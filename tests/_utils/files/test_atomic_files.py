"""Files are old or new; pipes and devices are written to; temporary files of killed processes are removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onnxprune._utils.files.atomic_files import atomic, check_output, check_outputs, remove_dead, write_text
from onnxprune._utils.files.input_files import opened, read_bytes, read_text
from onnxprune.errors import OnnxPruneError

WRITER = """
import sys, time
from pathlib import Path
from onnxprune._utils.files.atomic_files import atomic
with atomic(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


def writer(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing a file."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_next_write_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    process = writer(path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names(tmp_path) == [".x.bin.0.tmp"]
    (tmp_path / ".x.bin.k3_u9a.tmp").write_bytes(b"of an earlier version")
    (tmp_path / ".x.bin.y.0.tmp").write_bytes(b"of x.bin.y")
    write_text(path, "new")
    assert names(tmp_path) == [".x.bin.y.0.tmp", "x.bin"]


def test_what_a_live_process_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    process = writer(path)
    try:
        write_text(path, "new")
        remove_dead(path)
        assert names(tmp_path) == [".x.bin.0.tmp", "x.bin"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    remove_dead(path)
    assert names(tmp_path) == ["x.bin"]


def test_many_writers_of_one_file_leave_one_of_their_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    texts = [str(i) * 1000 for i in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert names(tmp_path) == ["x"]


def test_an_interrupted_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def _interrupted(path: Path) -> None:
    with atomic(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt


def test_long_names_and_permissions(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_text(path, "x")
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".x.0.tmp").symlink_to(victim)
    write_text(tmp_path / "x", "new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "x").read_text() == "new"


def test_a_pipe_gets_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read: list[bytes] = []

    def reader() -> None:
        with open(path, "rb") as file:
            read.append(file.read())

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    write_text(path, "text")
    thread.join(20)
    assert read == [b"text"]
    assert names(tmp_path) == ["fifo"]


def test_a_device_is_written_to_and_stays() -> None:
    write_text(Path("/dev/null"), "x")
    with pytest.raises(OnnxPruneError, match="No space left"):
        write_text(Path("/dev/full"), "x")
    assert Path("/dev/null").is_char_device()
    assert Path("/dev/full").is_char_device()


def test_what_takes_no_stream_is_refused(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        with pytest.raises(OnnxPruneError, match="is a socket"):
            write_text(path, "x")
    with pytest.raises(OnnxPruneError, match="is a folder"):
        write_text(tmp_path, "x")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OnnxPruneError, match="is a named pipe"):
        check_output(tmp_path / "fifo", regular=True)


def test_outputs_are_compared_through_links(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.write_text("x")
    (tmp_path / "soft").symlink_to(one)
    os.link(one, tmp_path / "hard")
    (tmp_path / "new").symlink_to(tmp_path / "later")
    for other in ("one", "soft", "hard"):
        with pytest.raises(OnnxPruneError, match="--output and --plan write the same file"):
            check_outputs([("--output", one), ("--plan", tmp_path / other)], [])
        with pytest.raises(OnnxPruneError, match="the output is the input file"):
            check_outputs([("--output", tmp_path / other)], [one])
    with pytest.raises(OnnxPruneError, match="write the same file"):
        check_outputs([("--output", tmp_path / "new"), ("--plan", tmp_path / "later")], [])
    check_outputs([("--output", one), ("--plan", tmp_path / "two")], [tmp_path / "three"])
    check_outputs([("--output", Path("/dev/null")), ("--plan", Path("/dev/null"))], [])


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\r\nb")
    (tmp_path / "latin").write_bytes(b"\xe9")
    begin = time.monotonic()
    for name, says in (("fifo", "a named pipe"), ("zero", "a device"), (".", "directory"), ("nothing", "No such")):
        with pytest.raises(OSError, match=says):
            opened(tmp_path / name)
    assert time.monotonic() - begin < 60  # none of them blocks
    assert read_text(tmp_path / "text") == "a\nb"
    with pytest.raises(OSError, match="not UTF-8"):
        read_text(tmp_path / "latin")
    with pytest.raises(OSError, match="too large"):
        read_bytes(tmp_path / "text", 3)
    assert b"processor" in read_bytes("/proc/cpuinfo", 2**24)  # has a size of 0
    with pytest.raises(OSError, match="too large"):
        read_bytes("/proc/cpuinfo", 10)
