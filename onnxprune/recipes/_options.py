"""Flat tables of TOML read into the dataclasses of steps; see `onnxprune._utils.fields`.

A field whose type is a dataclass takes its own fields from the same table, so that a step can say which groups of
options it has (`Settings` of a training, `Constraints` of a plan) and a recipe stays flat.
"""

from onnxprune._utils.fields import options as options
from onnxprune._utils.fields import read_options as read
from onnxprune._utils.fields import required as required

__all__ = ["options", "read", "required"]
