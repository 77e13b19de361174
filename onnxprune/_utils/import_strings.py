"""Functions that users name: `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from onnxprune.errors import OnnxPruneError


def find_function(source: str, what: str) -> Callable[..., Any]:
    """Imports `package.module:function`; modules of the current folder are found as with `python -m`.

    Args:
        source: the name.
        what: what it is for, in messages ("data function", "metric").

    Raises:
        OnnxPruneError: not such a name, or it cannot be imported.
    """
    module, colon, name = source.partition(":")
    if not colon or not module or not name:
        raise OnnxPruneError(f"{source!r} is no {what}", fix="name it as package.module:function")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as err:  # a user's module may raise anything while it is imported
        raise OnnxPruneError(f"cannot import the {what} {source!r}: {type(err).__name__}: {err}") from err
    if not callable(found):
        raise OnnxPruneError(f"the {what} {source!r} is not a function")
    return found  # type: ignore[no-any-return]
