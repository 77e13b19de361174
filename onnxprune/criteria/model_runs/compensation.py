"""Share of an output error that remains once the layers behind its cause are solved again."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.execution.gram import consumers


class Compensation:
    """Recovery solves every layer behind a removal for the original's outputs, and each takes back a part of the error.

    The errors that criteria measure do not contain this: there at most the next layers are solved. The same error
    therefore costs less at the inputs of a model than at its outputs.

    Args:
        analysis: Coupling analysis of the model.
        remaining: Share of an error at the inputs that remains at the outputs; 1: all of it.
    """

    def __init__(self, analysis: Analysis, remaining: float) -> None:
        self.index = {o.name: i for i, n in enumerate(analysis.model.graph.nodes) for o in n.outputs}
        self.layers = sorted(self.index[c.output] for c in analysis.contractions if c.output in self.index)
        self.remaining = remaining
        self.consumers = consumers(analysis, analysis.groups)

    def of_group(self, group: Group) -> float:
        """Return the share that remains of an error at the first layer that reads a group's channels."""
        return self.at(c.node.node.outputs[0].name for c in self.consumers if c.reads(group))

    def at(self, outputs: Iterable[str]) -> float:
        """Return the share that remains of an error at the first of some nodes, each named by an output.

        It is `remaining` to the power of the number of layers behind that node, as a share of all layers.
        """
        found = [self.index[name] for name in outputs if name in self.index]
        if not found or not self.layers:
            return 1.0
        behind = len(self.layers) - bisect_right(self.layers, min(found))
        return float(self.remaining ** (behind / len(self.layers)))
