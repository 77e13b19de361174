"""Sizes given for dynamic input dimensions: `--shape x=1x3x48x320`, or `shapes={"x": (1, 3, 48, 320)}`.

They are the sizes that a model is analysed and measured at. Dimensions that are dynamic in the model stay dynamic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.ir.model import Model
from onnxprune.options import Shape, shape_of

Shapes = Mapping[str, Shape]
"""Input name -> sizes, (1, 3, 48, 320) or "1x3x48x320"; None or "?" leaves a dimension open."""


def with_shapes(model: Model, shapes: Shapes | None) -> Model:
    """Return the model with sizes assumed for dynamic dimensions of its inputs.

    Args:
        model: Model; its graph is shared.
        shapes: Sizes of some inputs; those of dimensions that the model fixes must be the model's.

    Raises:
        OnnxPruneError: An unknown input, another number of dimensions than the input has, a size that the model
            contradicts, or two sizes for one dimension.
    """
    if not shapes:
        return model
    inputs = {t.name: t for t in model.graph.inputs}
    sizes: dict[tuple[str, int], int] = {}
    named: dict[str, tuple[str, int, int]] = {}
    for name, given in shapes.items():
        shape = _read(name, given)
        if name not in inputs:
            err = unknown("input", name, inputs)
            raise OnnxPruneError(err.what, where="--shape", fix=err.fix)
        own = inputs[name].shape
        _check(inputs[name], shape)
        for axis, (n, dim) in enumerate(zip(shape, own, strict=True)):
            if n is None or (isinstance(dim, int) and dim > 0):
                continue
            sizes[name, axis] = n
            if dimension_name(dim):
                other, place, before = named.setdefault(dim, (name, axis, n))
                if before != n:
                    raise OnnxPruneError(
                        f"two sizes for the dimension {dim!r}: {before} (axis {place} of {other!r}) and {n} (axis "
                        f"{axis} of {name!r})",
                        where=f"--shape {name}={text_of(shape)}",
                        fix="give it one size, or ? in all but one place",
                    )
    return replace(model, sizes={**model.sizes, **sizes})


def with_shapes_of_each(models: Sequence[Model], shapes: Shapes) -> list[Model]:
    """Return models that may have different inputs, each with the sizes of the inputs that it has.

    Raises:
        OnnxPruneError: An input that no model has, or see `with_shapes`.
    """
    inputs = [{t.name for t in m.graph.inputs} for m in models]
    for name in shapes:
        if models and not any(name in own for own in inputs):
            raise unknown("input", name, set().union(*inputs))
    return [
        with_shapes(model, {name: shape for name, shape in shapes.items() if name in own})
        for model, own in zip(models, inputs, strict=True)
    ]


def given_shapes(model: Model) -> dict[str, list[int | None]]:
    """Return the sizes given for a model's inputs, as plans record them; empty without any."""
    given = {name for name, _ in model.sizes}
    return {
        t.name: [n if isinstance(n, int) and n > 0 else model.sizes.get((t.name, i)) for i, n in enumerate(t.shape)]
        for t in model.graph.inputs
        if t.name in given
    }


def _read(name: str, given: Shape) -> tuple[int | None, ...]:
    try:
        return shape_of(given)
    except ValueError as err:
        raise OnnxPruneError(
            f"a shape is of whole numbers from 1 on, ? (or None) for any; got {given!r}",
            where=f"--shape {name}={given if isinstance(given, str) else '...'}",
            fix=f"--shape {name}=1x3x48x320",
        ) from err


def dimension_name(dim: object) -> str:
    """Return the name of a declared dimension; "" for a number and for "?", which exporters write for any number."""
    return dim if isinstance(dim, str) and dim != "?" else ""


def _check(t: gs.Tensor, shape: Sequence[int | None]) -> None:
    where, own = f"--shape {t.name}={text_of(shape)}", t.shape
    if len(shape) != len(own):
        raise OnnxPruneError(
            f"the input {t.name!r} has {len(own)} dimensions, not {len(shape)}: {described(own)}",
            where=where,
            fix=f"--shape {t.name}={template(own)}",
        )
    for axis, (n, dim) in enumerate(zip(shape, own, strict=True)):
        if n is not None and isinstance(dim, int) and dim > 0 and n != dim:
            fits = [d if isinstance(d, int) and d > 0 else m for m, d in zip(shape, own, strict=True)]
            raise OnnxPruneError(
                f"axis {axis} of the input {t.name!r} is fixed to {dim} in the model: {described(own)}",
                where=where,
                fix=f"--shape {t.name}={text_of(fits)}",
            )


def text_of(shape: Sequence[int | None]) -> str:
    """Return a shape as on the command line."""
    return "x".join("?" if n is None else str(n) for n in shape)


def described(shape: Sequence[object]) -> str:
    """Return a declared shape for a message."""
    return f"[{', '.join('?' if d is None or d == '' else str(d) for d in shape)}]"


def template(shape: Sequence[object]) -> str:
    """Return a declared shape as an example for `--shape`, with letters where sizes are to be given."""
    letters = {4: "NCHW", 3: "NTC", 2: "NT"}.get(len(shape), "N" + "D" * max(0, len(shape) - 1))
    return "x".join(str(d) if isinstance(d, int) and d > 0 else letters[i] for i, d in enumerate(shape))
