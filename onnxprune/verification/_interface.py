"""Checks before the proof: the files belong together, and inputs and outputs are the original's."""

from __future__ import annotations

from onnxprune.errors import VerificationError
from onnxprune.ir.model import PROVENANCE, Model
from onnxprune.ir.proto_graph import Graph
from onnxprune.plans import Plan
from onnxprune.verification._claims import Claims


def check_belongs(original: Model, plan: Plan, pruned: Model) -> None:
    """Raise if files do not belong together.

    Raises:
        VerificationError: The pruned model's metadata names another plan or another original.
    """
    made_by, source = (pruned.metadata.get(f"{PROVENANCE}.{k}") for k in ("plan", "source"))
    if source and plan.model and source != plan.model:
        raise VerificationError(
            "the pruned model was made from another original (its metadata says which)",
            fix="pass the original and the plan that it was made with",
        )
    if made_by and made_by != plan.digest:
        raise VerificationError(
            "the pruned model was made by another plan (its metadata says which)",
            fix="pass the plan that prune or apply wrote for it",
        )


def check_interface(one: Graph, other: Graph, claims: Claims) -> None:
    """Raise if a pruned model has other inputs or outputs than the original.

    Raises:
        VerificationError: Names, element types, ranks or fixed sizes differ, or one of them loses channels.
    """
    for kind, before, after in (("input", one.inputs, other.inputs), ("output", one.outputs, other.outputs)):
        if list(before) != list(after):
            raise VerificationError(
                f"the pruned model's {kind}s are {list(after)} where the original has {list(before)}"
            )
        for name, info in before.items():
            if claims.removes(name):
                raise VerificationError(f"the {kind} loses channels", where=f"{kind} {name!r}")
            kinds = [v.type.tensor_type.elem_type for v in (info, after[name])]
            ranks = [v.type.tensor_type.shape.dim for v in (info, after[name])]
            fixed = [[d.dim_value for d in dims] for dims in ranks]
            stated = all(v.type.tensor_type.HasField("shape") for v in (info, after[name]))
            agree = not stated or (
                len(fixed[0]) == len(fixed[1]) and all(not a or not b or a == b for a, b in zip(*fixed, strict=True))
            )
            if (kinds[0] and kinds[1] and kinds[0] != kinds[1]) or not agree:
                raise VerificationError(f"the {kind} has another element type or shape", where=f"{kind} {name!r}")
            if kind == "input" and [bool(n) for n in fixed[0]] != [bool(n) for n in fixed[1]]:
                raise VerificationError(f"the {kind} is dynamic in one of the models only", where=f"{kind} {name!r}")
