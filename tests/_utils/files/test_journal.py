"""The journal keeps whole lines, whatever happens to the run that writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from onnxprune._utils.files.journal import Journal
from onnxprune.errors import OnnxPruneError

HEAD = {"model": "abc", "metric": "top1"}


def written(path: Path, **entries: object) -> None:
    book = Journal(path, HEAD)
    for key, value in entries.items():
        book.add(key, value)
    book.close()


def read(path: Path, settings: Mapping[str, object] = HEAD, *, restart: bool = False) -> dict[str, object]:
    book = Journal(path, settings, restart=restart)
    book.close()
    return book.entries


def test_entries_are_there_again(tmp_path: Path) -> None:
    written(tmp_path / "j", a=[1, 2.5], b=None)
    assert read(tmp_path / "j") == {"a": [1, 2.5], "b": None}


def test_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    written(tmp_path / "j", a=0.1 + 0.2)
    assert read(tmp_path / "j")["a"] == 0.1 + 0.2


@pytest.mark.parametrize("cut", range(1, 22))
def test_a_torn_line_is_dropped_and_the_rest_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    written(path, a=1, b=2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    book = Journal(path, HEAD)
    assert book.entries == {"a": 1}
    book.add("b", 2)
    book.close()
    assert path.read_bytes() == whole


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    (tmp_path / "j").touch()
    written(tmp_path / "j", a=1)
    assert read(tmp_path / "j") == {"a": 1}


def test_other_settings_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    written(tmp_path / "j", a=1)
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(OnnxPruneError, match=r"other settings \(metric, more\)") as err:
        Journal(tmp_path / "j", {"model": "abc", "metric": "loss", "more": 1})
    assert "--restart" in str(err.value)
    assert (tmp_path / "j").read_bytes() == before


def test_restart_throws_it_away(tmp_path: Path) -> None:
    written(tmp_path / "j", a=1)
    assert read(tmp_path / "j", {"model": "other"}, restart=True) == {}


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[1]",
        b'{"key": 1, "value": 2}',
        b'{"key": "a"}',
        b'{"key": "a", "value": NaN}',
        b'{"key": "a", "key": "a", "value": 1}',
        b"\xff\xfe",
        b"",
    ],
)
def test_a_damaged_line_is_one_error(tmp_path: Path, line: bytes) -> None:
    written(tmp_path / "j", a=1)
    with (tmp_path / "j").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(OnnxPruneError, match="not a valid journal") as err:
        Journal(tmp_path / "j", HEAD)
    assert str(err.value.where).startswith(f"{tmp_path / 'j'}, line 3")
    assert "--restart" in str(err.value.fix)


def test_another_file_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"schema": 1}\n')
    with pytest.raises(OnnxPruneError, match="line 1 is not a header"):
        Journal(tmp_path / "j", HEAD)


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first = Journal(tmp_path / "j", HEAD)
    use = f"Journal(Path({str(tmp_path / 'j')!r}), {HEAD})"
    code = f"from pathlib import Path; from onnxprune._utils.files.journal import Journal; {use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another run is writing this journal" in done.stderr
    first.close()


def test_a_full_disk_is_one_error_and_keeps_what_was_written(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    book = Journal(tmp_path / "j", HEAD)
    book.add("a", 1)

    class Full:
        """A file on a full disk."""

        def seek(self, *where: int) -> int:
            return 0

        def write(self, data: bytes) -> int:
            with open("/dev/full", "wb", buffering=0) as full:
                return full.write(data)

    file, book._file = book._file, Full()
    with pytest.raises(OnnxPruneError, match="No space left") as err:
        book.add("b", 2)
    file.close()
    assert "run the same command again" in str(err.value)
    assert read(tmp_path / "j") == {"a": 1}


def test_no_file_keeps_entries_in_memory() -> None:
    book = Journal(None, HEAD)
    book.add("a", 1)
    assert book.entries == {"a": 1}
    book.finish()


def test_finish_removes_the_file(tmp_path: Path) -> None:
    book = Journal(tmp_path / "j", HEAD)
    book.finish()
    assert not (tmp_path / "j").exists()


def test_lines_are_json(tmp_path: Path) -> None:
    written(tmp_path / "j", a=1)
    head, entry = map(json.loads, (tmp_path / "j").read_text().splitlines())
    assert head == {"journal": 1, **HEAD}
    assert entry == {"key": "a", "value": 1}
