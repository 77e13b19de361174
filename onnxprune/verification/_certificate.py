"""Certificate of a proof, and the tolerances by element type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune._utils.formatting import shortened
from onnxprune._utils.html import html_table

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest relative difference by element type: about 1,000 units in the last place, for sums in another order."""
QUANTIZED = 5e-2
"""The same at the outputs of models that round activations to integers: one step of 255, times a weight."""


@dataclass(frozen=True, repr=False)
class Verification:
    """A certificate: what was checked and how far apart it was.

    Attributes:
        nodes: nodes of the pruned model, all of which were checked.
        tensors: tensors that both models have, at which the claim was checked.
        by_text: those of them that are computed by the same text from tensors that lose nothing.
        sizes: the assignments of input sizes, in words.
        max_relative: largest difference of any tensor, relative to the scale of its channel.
        worst: (name of the node, tensor, axis, index) of it.
        tolerance: what is allowed, by the model's element type.
        outputs: differences of whole runs, by output (or what an output is decided by).
        inputs: inputs of whole runs: "random", or "random and data".
        effect: how far the masked reference is from the original in a whole run: 0 would prove nothing.
        weights: "identical" if every constant is the original's, compressed, bit for bit; "not compared" for a
            recovered or retrained model, whose structure was checked with the original's weights.
        inexact: groups whose removal is not masking alone; statistics of the reference run over their kept channels.
        computed_in: "float32" where float32 copies of bfloat16 models were compared, for lack of kernels; else "".
        seconds: wall time of the check.
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
    seconds: float = 0.0

    def __repr__(self) -> str:
        return f"<Verification: {'; '.join(self._facts)}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: what was checked, and the differences of whole runs."""
        rows = [["nodes", f"{self.nodes:,}"], ["tensors", f"{self.tensors:,}"], ["largest difference", self._worst],
                ["weights", self.weights], ["whole runs on", f"{self.inputs} inputs"]]  # fmt: skip
        rows += [["sizes", size] for size in self.sizes]
        rows += [[f"output {name}", f"{value:.1e}"] for name, value in self.outputs.items()]
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
    def summary(self) -> str:
        """The certificate in one line."""
        sizes = f"{len(self.sizes)} size assignment{'s' if len(self.sizes) != 1 else ''}"
        return f"{self.nodes} of {self.nodes} nodes, {sizes}, worst {self._worst}"

    def as_dict(self) -> dict[str, Any]:
        """Return the certificate for JSON."""
        return {**asdict(self), "worst": list(self.worst), "reference": self.reference, "summary": self.summary}
