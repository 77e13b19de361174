"""What other distributions add: operators, passes and criteria, found through entry points.

A plug-in that fails to load is a fault of its distribution, not of the model or of the command. It is logged once, what
it had registered until then is taken back, and only a command that asks for it fails, with the distribution's name.
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
    """A plug-in that could not be loaded.

    Attributes:
        name: of the entry point.
        value: what the entry point names, `package.module:attribute`.
        distribution: that declares it.
        reason: what it raised.
    """

    name: str
    value: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"the plug-in {self.name!r} ({self.value}) of {self.distribution} could not be loaded: {self.reason}"

    def error(self, what: str, where: str | None = None) -> OnnxPruneError:
        """The error of a command that needs it; `what` it needed it for."""
        return OnnxPruneError(f"{what}: {self}", where=where, fix=f"update or uninstall {self.distribution}")


class PluginRegistry:
    """The entry points of one group, loaded once, when first needed.

    Args:
        group: of the entry points.
        accept: takes a loaded object and its distribution's name, and registers it; whatever it raises is the
            plug-in's fault. It must take back what it did before it raises.
    """

    def __init__(self, group: str, accept: Callable[[Any, str], object]) -> None:
        self.group = group
        self.accept = accept
        self.loaded = False
        self.broken: dict[str, BrokenPlugin] = {}

    def load(self) -> None:
        """Loads what is installed. Fails never: see `broken`."""
        if self.loaded:
            return
        self.loaded = True
        from importlib.metadata import entry_points  # slow to import, and seldom needed

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
