"""Errors of models that a runtime refuses: its own message, the node, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model

OTHER = "measure in another runtime (--runtime), or check that the runtime loads the model by itself"
_SHORT_NAME = 4
_LONGEST = 400  # characters of a runtime's message
_ADVICE = (
    (
        r"(invalid|unknown|unrecognized|wrong)\b.{0,40}\b(option|config|property)",
        "check the names and values of --runtime-option",
    ),
    (
        r"dynamic (shape|dim|batch)|optimization profile|explicit.?batch|shape tensor|static shape|unknown rank",
        "give the sizes of the inputs, for example --shape input=1,3,224,224, or export the model with fixed ones",
    ),
    (
        r"out of memory|bad_alloc|failed to allocate|cudaErrorMemoryAllocation",
        "use a smaller --batch, or a device with more memory",
    ),
    (
        r"ir.?version|opset (version )?\d+|unsupported model (ir|version)",
        "use a newer version of the runtime, or export the model with an older opset",
    ),
    (
        r"cuda (driver|error)|libcud|libcublas|libnvinfer|cannot open shared object|driver version",
        "check the driver and the libraries that the runtime needs on this machine",
    ),
    (
        r"not (yet )?(supported|implemented)|unsupported|could not find an implementation|no (kernel|importer)"
        r"|conversion (is )?failed|cannot be converted|OpConversionFailure",
        "the runtime does not implement this operator: measure in another one (--runtime), or replace the operator",
    ),
)  # fmt: skip


def refusal(runtime: str, message: str, model: Model, fix: str | None = None) -> OnnxPruneError:
    """Return the error for a model that a runtime refuses.

    Args:
        runtime: Name of the runtime.
        message: Message of the runtime.
        model: Refused model.
        fix: Advice that is known already.
    """
    fix = fix or next((fix for pattern, fix in _ADVICE if re.search(pattern, message, re.I)), None)
    return OnnxPruneError(
        f"{runtime} cannot load the model: {shortened_message(message)}", where=_where(message, model),
        fix=fix or OTHER,
    )  # fmt: skip


def shortened_message(message: str) -> str:
    """Return the first informative lines of a message on one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = re.sub(
        r"\s+", " ", " ".join(line for line in lines if not re.match(r"(Exception from|Check ').*:\d+", line))
    )
    text = re.sub(r"\S+\.(cc|cpp|h):\d+ .*?\) (?=[A-Z])", "", text)  # place in the runtime's own source
    text = re.sub(r"\S*onnxprune-\w+/model\.onnx", "model.onnx", text or " ".join(lines)) or "no message"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _where(message: str, model: Model) -> str | None:
    """Return the node that a message names, else the model's file."""
    file = str(model.path) if model.path is not None else None
    node = _named([(n.name, n.op) for n in model.graph.nodes if n.name], message)
    if node is None:
        by_output = [(t.name, n.op) for n in model.graph.nodes for t in n.outputs if t.name]
        node = _named(by_output, message)
    if node is None:
        for op in dict.fromkeys(n.op for n in model.graph.nodes):
            if len(op) > 3 and re.search(rf"\b{re.escape(op)}\b", message):
                same = [n for n in model.graph.nodes if n.op == op]
                name = same[0].name or (same[0].outputs[0].name if same[0].outputs else "")
                node = f"operator {op}, first at node {name!r}"
                break
    return ", ".join(p for p in (file, node) if p) or None


def _named(names: Iterable[tuple[str, str]], message: str) -> str | None:
    """Return the node with the longest name that occurs in a message as a word of its own."""
    found = [(n, op) for n, op in names if n in message and _is_word(n, message)]
    if not found:
        return None
    name, op = max(found, key=lambda pair: len(pair[0]))
    return f"node {name!r} ({op})"


def _is_word(name: str, message: str) -> bool:
    """Return True if a name stands alone in a message; short ones could be words of it, and need quotes."""
    if len(name) < _SHORT_NAME:
        return re.search(rf"['\"]{re.escape(name)}['\"]", message) is not None
    return re.search(rf"(?<![\w/.]){re.escape(name)}(?![\w/])", message) is not None
