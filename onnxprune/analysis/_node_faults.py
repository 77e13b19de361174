"""Faults of single nodes: attributes and shapes that an operator does not allow, found while its rule runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError

_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextmanager
def at_node(node: gs.Node) -> Iterator[None]:
    """Raise what a rule raises for a node as an error that names the node.

    The ONNX checker lets impossible attributes pass (a convolution of 0 groups), and rules may rely on possible ones.
    """
    try:
        yield
    except OnnxPruneError:
        raise
    except _FAULTS as err:
        name = node.name or (node.outputs[0].name if node.outputs else "")
        raise OnnxPruneError(
            f"the node's attributes or the shapes of its inputs do not fit its operator ({type(err).__name__}: {err})",
            where=f"{node.op} {name!r}",
            fix="export the model again; if it runs as it is, report this",
        ) from err
