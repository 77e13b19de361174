"""Stable, readable names of groups from the weights that produce them."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import LabelTable

_AUTOMATIC = re.compile(r"^(onnx::|\d+$|val_\d+|const_fold_opt|Constant|_v_\d|node_|/|new_|arith_|p_)|__\d+$")
_BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
_SUFFIX = re.compile(
    r"(/convolution)?(/merged_input|_weights_fused_bn)?([./](weight|weights|kernel|gamma|scale|w|W)|/ReadVariableOp)?"
    r"(:\d+)?$"
)


@lru_cache(maxsize=4096)  # groups and blocks name the same weights
def human_name(tensor: str, node: str) -> str:
    """Return a name for a weight's output: the weight's name without `.weight`, or its node's path if generated.

    >>> human_name("layer1.0.conv1.weight", "/layer1/layer1.0/conv1/Conv")
    'layer1.0.conv1'
    >>> human_name("onnx::Conv_538", "/layer1/layer1.0/conv1/Conv")
    'layer1.0.conv1'
    """
    if not _AUTOMATIC.search(tensor):
        name = _SUFFIX.sub("", tensor)
        return name or tensor
    parts = [p for p in node.split("/") if p]
    if len(parts) > 1:
        parts = parts[:-1]  # without the operator itself
    path: list[str] = []
    for part in parts:  # TorchScript repeats the parent: layer1/layer1.0/conv1
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path) or _SUFFIX.sub("", tensor) or tensor


class Namer:
    """Names and widths of groups from the weights that produce them."""

    def __init__(self, table: LabelTable, root: npt.NDArray[np.int64]) -> None:
        self.sites = table.filter_sites
        self.table = table
        self.root = root
        self.used: dict[str, int] = {}
        # For each root label: index of the first filter site that holds it, else len(sites).
        self.first = np.full(table.count, len(self.sites), np.int64)
        for i in range(len(self.sites) - 1, -1, -1):
            self.first[root[self.sites[i].labels]] = i

    def produced(self, members: npt.NDArray[np.int64]) -> bool:
        """Return whether filters of a layer produce these channels."""
        return int(self.first[members[0]]) < len(self.sites)

    def shape(self, members: npt.NDArray[np.int64]) -> tuple[int, str]:
        """Return (indices per channel on the producing axis, producing operator)."""
        site = int(self.first[members[0]])
        if site == len(self.sites):
            return 1, "Pad"
        return int((self.root[self.sites[site].labels] == members[0]).sum()), self.sites[site].op

    def name(self, members: npt.NDArray[np.int64]) -> str:
        """Return a unique name; a second group of the same weight gets `#2`."""
        site = int(self.first[members[0]])
        if site < len(self.sites):
            base = human_name(self._tensor(self.sites[site].tensor), self.sites[site].node)
        else:
            base = self._by_consumer(int(members[0]))
        self.used[base] = self.used.get(base, 0) + 1
        return base if self.used[base] == 1 else f"{base}#{self.used[base]}"

    def _tensor(self, t: gs.Tensor) -> str:
        """Return the name of a weight; for a quantized one, that of the original weight."""
        root, _ = self.table.views.get(t.name, (t, ()))
        return str(root.name).removesuffix("_quantized") if root.dtype in _BYTES else str(t.name)

    def _by_consumer(self, label: int) -> str:
        for tensor, axes in self.table.constants.items():
            for labels in axes:
                if labels is not None and (self.root[labels] == label).any():
                    return f"{human_name(tensor, tensor)}.in"
        return f"channels_{label}"
