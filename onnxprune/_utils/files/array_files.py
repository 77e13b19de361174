"""Arrays in files of one's own: intermediate results, and what workers are handed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from onnxprune._utils.files.atomic_files import atomic
from onnxprune._utils.files.input_files import opened


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array.

    Raises:
        OSError: It cannot be written.
    """
    with atomic(path) as file:
        npy.write_array(file, array, allow_pickle=False)


def load_array(path: Path, *, mapped: bool = False) -> npt.NDArray[Any]:
    """Read an array of `save_array`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    with opened(path) as file:
        if not mapped:
            return npy.read_array(file, allow_pickle=False)
        npy.read_magic(file)
        shape, fortran, dtype = npy.read_array_header_1_0(file)
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
