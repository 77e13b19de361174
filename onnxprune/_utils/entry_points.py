"""Entry points of other distributions: operators, passes and criteria.

A plug-in that fails to load is a fault of its distribution, not of the model or the command. It is logged once, its
partial registration is undone, and only a command that needs it fails, naming the distribution.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from onnxprune.errors import OnnxPruneError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrokenPlugin:
    """Plug-in that could not be loaded.

    Attributes:
        name: Name of the entry point.
        value: Object reference of the entry point, `package.module:attribute`.
        distribution: Distribution that declares it.
        reason: Text of the exception.
    """

    name: str
    value: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"the plug-in {self.name!r} ({self.value}) of {self.distribution} could not be loaded: {self.reason}"

    def error(self, what: str, where: str | None = None) -> OnnxPruneError:
        """Return the error of a command that needs the plug-in; `what` names its purpose."""
        return OnnxPruneError(f"{what}: {self}", where=where, fix=f"update or uninstall {self.distribution}")


class PluginRegistry:
    """Entry points of one group, loaded once on first use.

    Args:
        group: Group of the entry points.
        accept: Called with a loaded object and the name of its distribution to register it; exceptions are attributed
            to the plug-in. It must undo its changes before it raises.
    """

    def __init__(self, group: str, accept: Callable[[Any, str], object]) -> None:
        self.group = group
        self.accept = accept
        self.loaded = False
        self.broken: dict[str, BrokenPlugin] = {}

    def load(self) -> None:
        """Load the installed entry points. Never raises: see `broken`."""
        if self.loaded:
            return
        self.loaded = True
        from importlib.metadata import entry_points  # slow import, rarely needed

        for point in entry_points(group=self.group):
            distribution = _distribution(point)
            try:
                self.accept(point.load(), distribution)
            except Exception as err:  # another package's code may raise anything
                reason = str(err) if isinstance(err, OnnxPruneError) else f"{type(err).__name__}: {err}"
                reason = " ".join(reason.split())
                self.broken[point.name] = BrokenPlugin(point.name, point.value, distribution, reason)
                _log.warning("%s", self.broken[point.name])


def _distribution(point: EntryPoint) -> str:
    return f"the distribution {point.dist.name!r}" if point.dist else f"the module {point.value.partition(':')[0]!r}"
