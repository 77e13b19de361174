"""Certificate of a proof, and tolerances by element type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune._utils.output.formatting import listed, shortened
from onnxprune._utils.output.html import html_table

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest relative difference by element type: about 1,000 units in the last place, for sums in another order."""
QUANTIZED = 5e-2
"""The same at the outputs of models that round activations to integers: one step of 255, times a weight."""


@dataclass(frozen=True, repr=False)
class Verification:
    """Certificate: what was checked, and the differences found.

    Attributes:
        nodes: Number of nodes of the pruned model, all of which were checked.
        tensors: Number of tensors of both models at which the claim was checked.
        by_text: Number of those computed by identical nodes from tensors without removed channels.
        sizes: Descriptions of the assignments of input sizes.
        max_relative: Largest difference of any tensor, relative to the scale of its channel.
        worst: (name of the node, tensor, axis, index) of the largest difference.
        tolerance: Largest allowed difference, by the model's element type.
        outputs: Largest differences of whole runs, by output (or the tensor that decides an output).
        inputs: Inputs of whole runs: "random", or "random and data".
        effect: Difference between the masked reference and the original in a whole run; 0 would prove nothing.
        weights: "identical" if every constant is the original's, compressed, bit for bit; "not compared" for a
            recovered or retrained model, whose structure was checked with the original's weights.
        inexact: Groups whose removal is not masking alone; statistics of the reference run over their kept channels.
        computed_in: "float32" if float32 copies of bfloat16 models were compared, for lack of kernels; else "".
        branches: Branches of Ifs that no run of the original executed: their nodes were checked at the sizes of the
            analysis only.
        seconds: Wall time of the check.
    """

    nodes: int
    tensors: int
    by_text: int
    sizes: Sequence[str]
    max_relative: float
    worst: tuple[str, str, int, int]
    tolerance: float
    outputs: Mapping[str, float]
    inputs: str
    effect: float
    weights: str = "identical"
    inexact: Sequence[str] = ()
    computed_in: str = ""
    branches: Sequence[str] = ()
    seconds: float = 0.0

    def __repr__(self) -> str:
        return f"<Verification: {'; '.join(self._facts)}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: what was checked, and the differences of whole runs."""
        rows = [["nodes", f"{self.nodes:,}"], ["tensors", f"{self.tensors:,}"], ["largest difference", self._worst],
                ["weights", self.weights], ["whole runs on", f"{self.inputs} inputs"]]  # fmt: skip
        rows += [["sizes", size] for size in self.sizes]
        rows += [[f"output {name}", f"{value:.1e}"] for name, value in self.outputs.items()]
        rows += [["checked at the analysis' sizes only", name] for name in self.branches]
        return html_table("proved", ["", ""], rows, text=(0, 1), note=f"reference: {self.reference}")

    @property
    def _worst(self) -> str:
        where = f" at {self.worst[0]}" if self.worst[0] and self.max_relative else ""
        return f"{self.max_relative:.0e}{where} (allowed {self.tolerance:.0e})"

    @property
    def _facts(self) -> list[str]:
        facts = [f"proved equal to the {self.reference}", shortened(self.summary, 200), f"weights {self.weights}"]
        return [*facts, f"whole runs on {self.inputs} inputs"]

    @property
    def reference(self) -> str:
        """Description of the reference."""
        return "original, sliced in statistics and masked elsewhere" if self.inexact else "masked original"

    @property
    def unexecuted(self) -> str:
        """The branches that were checked at the sizes of the analysis only, in one line; "" for none."""
        if not self.branches:
            return ""
        return f"never executed, so checked at the sizes of the analysis only: {listed(self.branches, 4)}"

    @property
    def summary(self) -> str:
        """Certificate in one line."""
        sizes = f"{len(self.sizes)} size assignment{'s' if len(self.sizes) != 1 else ''}"
        return f"{self.nodes} of {self.nodes} nodes, {sizes}, worst {self._worst}"

    def as_dict(self) -> dict[str, Any]:
        """Return the certificate for JSON."""
        return {**asdict(self), "worst": list(self.worst), "reference": self.reference, "summary": self.summary}
