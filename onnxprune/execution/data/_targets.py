"""Targets of samples, as a batch holds them beside its feeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.ir.model import Array

IGNORED = 255
"""Value of mask pixels that no metric counts."""


@dataclass(frozen=True)
class Boxes:
    """Objects of one image.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels of the model's input, float32 [k, 4].
        classes: Class of each object, int64 [k].
        crowd: Whether a box is a crowd, which metrics ignore, bool [k].
    """

    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.classes)


Target = Boxes | Array | str
"""Target of one sample other than a label: boxes, a mask [height, width], a text, or numbers."""
Targets = npt.NDArray[np.int64] | Sequence[Target] | None
"""Targets of a batch: labels [n], one target per sample, or none."""


class PickedTargets(Sequence[Target]):
    """Some of a sequence of targets, by index; they are read when they are needed."""

    def __init__(self, targets: Sequence[Target], indices: npt.NDArray[np.int64]) -> None:
        self.targets, self.indices = targets, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.targets[i] for i in self.indices[index].tolist()]
        return self.targets[int(self.indices[index])]


KINDS = ("labels", "boxes", "masks", "texts", "values")


def kind_of(target: Any) -> str:
    """Return the kind of one target that is not a label, one of `KINDS`."""
    if isinstance(target, Boxes):
        return "boxes"
    if isinstance(target, str):
        return "texts"
    array = np.asarray(target)
    return "masks" if array.ndim >= 2 and array.dtype.kind in "iub" else "values"
