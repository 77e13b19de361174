"""Faults of single nodes: attributes and shapes that an operator does not allow, found while its rule runs."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError

_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class NodeFaults:
    """Context that raises what a rule raises for a node as an error that names the node.

    The ONNX checker lets impossible attributes pass (a convolution of 0 groups), and rules may rely on possible ones.
    It is entered several times for each node, which a generator takes three times as long for.
    """

    __slots__ = ("_node",)

    def __init__(self, node: gs.Node) -> None:
        self._node = node

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if not isinstance(err, _FAULTS) or isinstance(err, OnnxPruneError):
            return
        node = self._node
        name = node.name or (node.outputs[0].name if node.outputs else "")
        raise OnnxPruneError(
            f"the node's attributes or the shapes of its inputs do not fit its operator ({type(err).__name__}: {err})",
            where=f"{node.op} {name!r}",
            fix="export the model again; if it runs as it is, report this",
        ) from err
