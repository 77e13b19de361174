"""Models as files for runtimes that read files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxprune.ir.model import Model
from onnxprune.ir.writer import save
from onnxprune.latency.runtimes.node_names import node_name


@contextlib.contextmanager
def model_file(model: Model, *, named: bool = False) -> Iterator[Path]:
    """Write a model to a temporary file that exists within the block.

    Args:
        model: Model to write.
        named: Give nodes without a name that of their first output, so that a profile can be matched.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, path, named=named)
        yield path


def write_model(model: Model, path: Path, *, named: bool = False) -> None:
    """Write a model to a file."""
    if named and any(not n.name for n in model.graph.nodes):
        model = model.copy()
        taken = {n.name for n in model.graph.nodes}
        for node in model.graph.nodes:
            if not node.name and node_name(node) not in taken:
                node.name = node_name(node)
    save(model, path)
