"""Sliding windows over the spatial axes: their positions, their number, and the padding they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from onnx2torch.onnx_node import OnnxNode

from onnxprune.torch_bridge.converters._operands import attribute


@dataclass(frozen=True)
class Window:
    """Window attributes of convolutions and poolings, one number per spatial axis.

    Attributes:
        kernel: Size of the window in elements.
        stride: Distance between windows.
        dilation: Distance between the elements of a window.
        begin: Padding before the data; unused with `same`.
        end: Padding after the data; unused with `same`.
        same: "SAME_UPPER" or "SAME_LOWER" if the padding follows from the size of the data, else "".
        ceil: Count a window that reaches beyond the padding.
        crops: `same` drops data at the ends that windows smaller than their stride do not cover (as in pooling).
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    same: str = ""
    ceil: bool = False
    crops: bool = False

    @classmethod
    def of(cls, node: OnnxNode, kernel: Sequence[int], *, crops: bool = False) -> Window:
        """Read a node's attributes."""
        n = len(kernel)
        auto = attribute(node, "auto_pad", "NOTSET") or "NOTSET"
        pads = list(attribute(node, "pads") or [0] * 2 * n) if auto == "NOTSET" else [0] * 2 * n
        return cls(
            kernel=tuple(kernel),
            stride=tuple(attribute(node, "strides") or [1] * n),
            dilation=tuple(attribute(node, "dilations") or [1] * n),
            begin=tuple(pads[:n]),
            end=tuple(pads[n:]),
            same=auto if auto.startswith("SAME") else "",
            ceil=bool(attribute(node, "ceil_mode", 0)) and auto == "NOTSET",
            crops=crops,
        )

    @property
    def reach(self) -> tuple[int, ...]:
        """Return the number of elements from a window's first to its last, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def fixed_pads(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return the padding (before, after) if it does not depend on the size of the data, else None."""
        if not self.same:
            return self.begin, self.end
        if set(self.stride) == {1}:
            begin, end, _ = self.pads_and_counts(self.reach)
            return begin, end
        return None

    def pads_and_counts(self, sizes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return padding before, padding after, and number of windows for data of a size.

        As in the ONNX standard, no window starts in the padding after the data.
        """
        begins, ends, counts = [], [], []
        for i, (size, reach, stride) in enumerate(zip(sizes, self.reach, self.stride, strict=True)):
            if self.same:
                count = -(-size // stride)
                total = (count - 1) * stride + reach - size
                total = total if self.crops else max(total, 0)
                # Truncated, not floored, if negative.
                begin = int((total if self.same == "SAME_UPPER" else total + 1) / 2)
                end = total - begin
            else:
                begin, end = self.begin[i], self.end[i]
                room = size + begin + end - reach
                count = (-(-room // stride) if self.ceil else room // stride) + 1
                if self.ceil and (count - 1) * stride >= size + begin:
                    count -= 1
            begins.append(begin)
            ends.append(end)
            counts.append(count)
        return tuple(begins), tuple(ends), tuple(counts)

    def tail(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the padding after the data that exactly fits the windows of `places`; negative to drop data."""
        begins, _, counts = self.pads_and_counts(sizes)
        return tuple(
            (count - 1) * stride + reach - size - begin
            for size, begin, count, reach, stride in zip(sizes, begins, counts, self.reach, self.stride, strict=True)
        )


def pad(x: torch.Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> torch.Tensor:
    """Pad the last axes with a number; negative padding crops.

    Args:
        x: Data [..., *spatial].
        begin: Elements before the data, one number per spatial axis.
        end: Elements after the data, one number per spatial axis.
        value: Value of the padding.
    """
    if not any(begin) and not any(end):
        return x
    return F.pad(x, flat(begin, end), value=value)


def flat(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Return padding in PyTorch's order: last axis first, before and after in turn."""
    return [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
