"""Functions named by users: `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from onnxprune.errors import OnnxPruneError


def find_function(source: str, what: str) -> Callable[..., Any]:
    """Return the function `package.module:function`; modules in the current folder are found as with `python -m`.

    Args:
        source: Name of the function.
        what: Its purpose, for messages ("data function", "metric").

    Raises:
        OnnxPruneError: The name has another form, or cannot be imported.
    """
    module, colon, name = source.partition(":")
    if not colon or not module or not name:
        raise OnnxPruneError(f"{source!r} is not a {what}", fix="name it as package.module:function")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as err:  # a user's module may raise anything while it is imported
        raise OnnxPruneError(f"cannot import the {what} {source!r}: {type(err).__name__}: {err}") from err
    if not callable(found):
        raise OnnxPruneError(f"the {what} {source!r} is not a function")
    return found  # type: ignore[no-any-return]
