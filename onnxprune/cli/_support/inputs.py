"""Models and plan of a command: checks that they belong together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxprune.cli._support.stages import load_model
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.ir.model import Model
from onnxprune.options import InputShapes
from onnxprune.plans import Plan, load_plan

ORDER = "the order is: ORIGINAL, the model before; PRUNED, the model that was made from it; PLAN, the file of the plan"


def read_plan(path: Path) -> Plan:
    """Read a plan; a model in its place is named as one.

    Raises:
        OnnxPruneError: It is no plan.
    """
    if path.suffix.lower() == ".onnx":
        raise OnnxPruneError(f"{str(path)!r} is a model, and a plan is expected (plan.json)", fix=ORDER)
    return load_plan(path)


def read_models(original: Path, pruned: Path, plan: Plan, shapes: InputShapes) -> tuple[Model, Model]:
    """Read an original and its pruned model.

    Raises:
        OnnxPruneError: One cannot be read, or the plan was made for the second or for neither.
    """
    whole = load_model(original, shapes)
    if plan.model and plan.model != whole.fingerprint:
        small = load_model(pruned)
        if plan.model == small.fingerprint:
            raise OnnxPruneError(f"the plan was made for {str(pruned)!r}, which is given as PRUNED", fix=ORDER)
        raise OnnxPruneError(
            f"the plan was made for another model than {str(original)!r} (its fingerprint differs)", fix=ORDER
        )
    return whole, load_model(pruned, shapes)


@contextmanager
def named_origin(whole: Model, small: Model, plan: Plan, pruned: Path) -> Iterator[None]:
    """Add to a failed verification where the pruned model is from, if it says so and that is another model or plan."""
    try:
        yield
    except VerificationError as err:
        origin = small.metadata.get("onnxprune.source")
        if origin is None and err.fix is None:
            raise VerificationError(
                err.what, where=err.where, fix=f"is {pruned.name} made from this original by this plan? {ORDER}"
            ) from err
        if origin is not None and origin != whole.fingerprint:
            raise VerificationError(
                err.what, where=err.where, fix=f"{pruned.name} was made from another original: name that one"
            ) from err
        if origin is not None and small.metadata.get("onnxprune.plan") not in (None, plan.digest):
            raise VerificationError(
                err.what, where=err.where, fix=f"{pruned.name} was made by another plan: name that one"
            ) from err
        raise
