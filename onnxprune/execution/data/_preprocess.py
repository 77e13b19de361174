"""Preprocessing: the conversion of samples into a model's input, as a value, and the presets of common families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from onnxprune._utils.output.formatting import short_repr
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.options.data import COLORS, LAYOUTS, PRESETS, RESIZES, Preprocessing


@dataclass(frozen=True, repr=False)
class Preprocess:
    """Conversion of samples to the model's input: x' = (x / scale - mean) / std, in the model's layout.

    The fields from `resize` on are for image files, which are decoded and resized when a batch is read.

    Attributes:
        mean: Mean per channel, in units of the scaled pixels.
        std: Standard deviation per channel, in the same units.
        layout: Layout of the data: "nchw", "nhwc", or "auto" (uint8 [n, h, w, 1 or 3 or 4] is nhwc, all other data has
            the layout of the model's input).
        scale: Number that samples are divided by first; None: 255 for bytes, 1 for bytes if mean or std are plainly in
            units of bytes, nothing for floats.
        resize: "stretch" to the size; "crop": resize the shorter side, crop the centre; "letterbox": keep the aspect,
            pad around; "height": resize to the height, pad the width; "fit": shrink to `limit`, sides rounded to
            `multiple`; "none"; "": stretch if the size is known, else none.
        size: Height and width; empty: those of the model's input.
        crop: Share of the shorter side that the centre crop keeps.
        color: "rgb", "bgr", "gray", "rgba"; "": by the channels of the model's input.
        interpolation: "bilinear", "bicubic" or "nearest"; "": bicubic.
        pad: Value of padded pixels.
        multiple: Number that padded or rounded sides are multiples of.
        limit: Largest width ("height") or side ("fit"); 0: none.
        preset: Name of the preset, or where the values were read from.
    """

    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    layout: str = "auto"
    scale: float | None = None
    resize: str = ""
    size: Sequence[int] = ()
    crop: float = 1.0
    color: str = ""
    interpolation: str = ""
    pad: int = 0
    multiple: int = 1
    limit: int = 0
    preset: str = ""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("layout", self.layout, LAYOUTS), ("resize", self.resize or "none", RESIZES),
            ("color", self.color or "rgb", COLORS),
            ("interpolation", self.interpolation or "bicubic", ("bilinear", "bicubic", "nearest")),
        ):  # fmt: skip
            if value not in known:
                raise unknown(name, value, known)
        if len(self.size) not in (0, 2) or any(side < 0 for side in self.size):
            raise OnnxPruneError(f"size is (height, width), not {list(self.size)}")
        if not 0 < self.crop <= 1:
            raise OnnxPruneError(f"crop is a share in (0, 1], not {self.crop:g}")
        if self.scale is not None and not self.scale > 0:
            raise OnnxPruneError(f"scale is a number above 0, not {self.scale:g}")

    def __repr__(self) -> str:
        return short_repr(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the values that differ from the defaults, as JSON."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v for name, v in own.items()}

    def over(self, base: Preprocess) -> Preprocess:
        """Return `base` with the values of this preprocessing that differ from the defaults."""
        return replace(base, **{f.name: getattr(self, f.name) for f in fields(self) if f.name in self.as_dict()})


_IMAGENET = Preprocess(
    (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize="crop", crop=0.875, interpolation="bilinear"
)
_NAMED: Mapping[str, Preprocess] = {
    "imagenet": _IMAGENET,
    "clip": Preprocess(
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), resize="crop",
        interpolation="bicubic",
    ),
    "inception": replace(_IMAGENET, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "caffe": Preprocess(
        (103.939, 116.779, 123.68), scale=1.0, resize="crop", crop=0.875, color="bgr", interpolation="bilinear"
    ),
    "yolo": Preprocess(scale=255.0, resize="letterbox", pad=114, interpolation="bilinear"),
    "paddleocr-rec": Preprocess(
        (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize="height", color="bgr", interpolation="bilinear", pad=127, multiple=8,
        limit=2304,
    ),
    "paddleocr-det": replace(
        _IMAGENET, resize="fit", crop=1.0, color="bgr", multiple=32, limit=960
    ),
    "segmentation": replace(_IMAGENET, resize="stretch", crop=1.0),
}  # fmt: skip
DEFAULT_SIZES: Mapping[str, tuple[int, int]] = {"crop": (224, 224), "letterbox": (640, 640), "height": (48, 0)}
"""Size of a resize mode if neither the model nor the user fixes it; a width of 0 is free."""


def preset(name: str) -> Preprocess:
    """Return the preprocessing of a family of models.

    Raises:
        OnnxPruneError: The name is unknown.
    """
    if name not in _NAMED:
        raise unknown("preprocessing", name, PRESETS)
    return replace(_NAMED[name], preset=name)


def preprocess_of(options: Preprocessing) -> Preprocess:
    """Return the preprocessing that options state: a preset, and the values that override it."""
    own = Preprocess(
        tuple(options.mean), tuple(options.std), options.layout, options.scale, options.resize or "",
        tuple(options.size), color=options.color or "",
    )  # fmt: skip
    return own.over(preset(options.preset)) if options.preset else own


def as_preprocess(given: Preprocess | str | None) -> Preprocess:
    """Return the preprocessing, by name or as it is given; the default for None."""
    if given is None:
        return Preprocess()
    return preset(given) if isinstance(given, str) else given
