"""Options of the data: its source, the number of samples, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxprune.options._declare import DATA, OptionError, Options, option
from onnxprune.options._text import NUMBERS, SIZE

LAYOUTS = ("auto", "nchw", "nhwc")
RESIZES = ("stretch", "crop", "letterbox", "height", "fit", "none")
COLORS = ("rgb", "bgr", "gray", "rgba")
PRESETS = ("imagenet", "clip", "inception", "caffe", "yolo", "paddleocr-rec", "paddleocr-det", "segmentation")
SOURCES = ".npz, folder of images, COCO .json ... (docs/data.md)"
"""Sources of samples in the help, which has room for the most frequent ones."""
ALL_SOURCES = (
    ".npz, .npy, folder of images, COCO .json, data.yaml, labels.txt, hf:NAME:SPLIT, digits, digit-scenes, "
    "package.module:function"
)
"""All sources of samples."""
NO_DATA = "none"
"""Source of synthetic samples: noise with the statistics of natural images."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Preprocessing(Options):
    """Conversion of samples into the model's input."""

    preset: str | None = option(
        None, flag="--preprocess", heading=DATA, choices=PRESETS, metavar="NAME", title="preprocess",
        help="Preset of images: imagenet, yolo ... (docs/data.md).",
    )  # fmt: skip
    resize: str | None = option(
        None, heading=DATA, advanced=True, choices=RESIZES,
        help="Resizing of image files: stretch, crop (shorter side, then the centre), letterbox, height (width kept in "
        "proportion), fit (sides rounded to multiples), none.",
    )  # fmt: skip
    color: str | None = option(
        None, heading=DATA, advanced=True, choices=COLORS, help="Channels of image files; default: the model's.",
        shown="rgb, or by the model's channels",
    )  # fmt: skip
    scale: float | None = option(
        None, heading=DATA, advanced=True, gt=0, shown="255 for bytes, 1 for floats",
        help="Number that samples are divided by first.",
    )  # fmt: skip
    mean: tuple[float, ...] = option(
        (), help="Mean of each channel, of pixels in [0, 1]: 0.485,0.456,0.406", heading=DATA, advanced=True,
        text=NUMBERS, metavar="NUMBERS",
    )  # fmt: skip
    std: tuple[float, ...] = option(
        (), help="Standard deviation of each channel: 0.229,0.224,0.225", heading=DATA, advanced=True, text=NUMBERS,
        metavar="NUMBERS",
    )  # fmt: skip
    layout: str = option(
        "auto", heading=DATA, advanced=True, choices=LAYOUTS,
        help="Layout of the data: nchw, nhwc, or auto (images of bytes nhwc, all else as in the model). Transposed "
        "if the model has another layout.",
    )  # fmt: skip
    size: tuple[int, ...] = option(
        (), help="Size of image files, HEIGHTxWIDTH.", heading=DATA, advanced=True, text=SIZE, metavar="HxW",
        shown="the model's",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) not in (0, 2) or any(side < 1 for side in self.size):
            raise OptionError("size", f"must be [height, width], at least 1 each; got {list(self.size)}")


@dataclass(frozen=True, kw_only=True, repr=False)
class Sampling(Options):
    """Number of samples."""

    images: int | None = option(
        None, help="Use this many samples, evenly from the classes.", heading=DATA, ge=1, usage=True
    )


DATA_TIMEOUT = 600.0
"""Seconds for one image, and for one step of a data function."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Patience(Options):
    """Time that reading samples may take."""

    data_timeout: float = option(
        DATA_TIMEOUT, heading=DATA, advanced=True, ge=0, le=86_400, metavar="SECONDS",
        help="Longest time to decode one image, and to get one item of a data function; 0: no limit.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Reading(Patience):
    """Files beside the source of the samples."""

    class_map: Path | None = option(
        None, heading=DATA, advanced=True, metavar="FILE",
        help="Classes of folders: JSON {folder: index}, or one name per line in the order of the model's outputs.",
    )  # fmt: skip
    images_dir: Path | None = option(
        None, heading=DATA, advanced=True, metavar="FOLDER", help="Images that COCO annotations name.",
        shown="images/ beside the file",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class SampleOptions(Preprocessing, Sampling, Reading):
    """Samples, their number and preprocessing; the subclasses add the source."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RequiredData(SampleOptions):
    """Data that a command requires."""

    data: str = option(help=f"Samples: {SOURCES}.", heading=DATA)


@dataclass(frozen=True, kw_only=True, repr=False)
class CalibrationData(SampleOptions):
    """Calibration data for criteria and recovery, if any."""

    data: str | None = option(
        None, heading=DATA,
        help=f"Calibration data: {SOURCES}; none: synthetic.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class RecoveryData(SampleOptions):
    """Calibration data that recovery fits to."""

    data: str = option(heading=DATA, help=f"Samples, labels not needed: {SOURCES}; none: synthetic.")


@dataclass(frozen=True, kw_only=True, repr=False)
class VerificationData(SampleOptions):
    """Data for whole runs of a proof, if any."""

    data: str | None = option(None, heading=DATA, help=f"Whole runs on real inputs as well: {SOURCES}.")


@dataclass(frozen=True, kw_only=True, repr=False)
class AccuracyData(SampleOptions):
    """Data that a report measures accuracy on, if any."""

    data: str | None = option(None, heading=DATA, help=f"Measure accuracy on this: {SOURCES}.")
