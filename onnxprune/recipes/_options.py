"""Reading of flat TOML tables into the dataclasses of steps; see `onnxprune._utils.fields`.

A field whose type is a dataclass takes its own fields from the same table, so that a step can name its groups of
options (`Training`, `Constraints` of a plan) while a recipe is flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from onnxprune._utils.fields import options as options
from onnxprune._utils.fields import read_options
from onnxprune._utils.fields import required as required
from onnxprune.errors import OnnxPruneError
from onnxprune.options import OptionError

__all__ = ["options", "read", "required"]

T = TypeVar("T")


def read(cls: type[T], table: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> T:
    """Return a flat table as a dataclass; a refused option is named by its key.

    Raises:
        OnnxPruneError: See `read_options`.
    """
    try:
        return read_options(cls, table, where, defaults)
    except OnnxPruneError as err:
        cause = err.__cause__
        if not isinstance(cause, OptionError):
            raise
        named = cause.labelled(cause.option)
        raise OnnxPruneError(named.what, where=err.where, fix=named.fix) from cause
