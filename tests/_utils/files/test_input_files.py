"""The one opener: names that no file can have are errors of the system as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune._utils.files.input_files import mapped, opened, read_bytes
from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.reader import load


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    for read in (opened, mapped, lambda path: read_bytes(path, 1)):
        with pytest.raises(OSError, match="no file has such a name"):
            read(tmp_path / name)
    with pytest.raises(OnnxPruneError, match="no file has such a name"):
        load(tmp_path / name)
    with pytest.raises(OnnxPruneError, match="no file has such a name"):
        Format("plan", 1).load(tmp_path / name)
