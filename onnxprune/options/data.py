"""Options of the data: its source, the number of samples, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.options._declare import DATA, OptionError, Options, option
from onnxprune.options._text import NUMBERS, SIZE

LAYOUTS = ("auto", "nchw", "nhwc")
SOURCES = ".npz with x and y, folder of class folders, digits, or module:function."
NO_DATA = "none"
"""Source of made-up samples: noise with the statistics of natural images."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Preprocessing(Options):
    """How samples become the model's input."""

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
        "if the model has another.",
    )  # fmt: skip
    size: tuple[int, ...] = option(
        (), help="Resize image files to HEIGHTxWIDTH.", heading=DATA, advanced=True, text=SIZE, metavar="HxW"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) not in (0, 2) or any(side < 1 for side in self.size):
            raise OptionError("size", f"must be [height, width], at least 1 each; got {list(self.size)}")


@dataclass(frozen=True, kw_only=True, repr=False)
class Sampling(Options):
    """How many samples are used."""

    images: int | None = option(
        None, help="Use only this many samples, evenly from the classes.", heading=DATA, ge=1, usage=True, shown="all"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class SampleOptions(Preprocessing, Sampling):
    """Samples, their number and preprocessing; the subclasses add the source."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RequiredData(SampleOptions):
    """Data that a command cannot do without."""

    data: str = option(help=f"Samples: {SOURCES}", heading=DATA)


@dataclass(frozen=True, kw_only=True, repr=False)
class CalibrationData(SampleOptions):
    """Data for criteria and recovery, if any."""

    data: str | None = option(
        None, heading=DATA,
        help=f"Calibration data: {SOURCES} none: made up (noise like natural images).",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class RecoveryData(SampleOptions):
    """Data that recovery fits to."""

    data: str = option(
        heading=DATA, help=f"Samples, labels not needed: {SOURCES} none: made up (noise like natural images)."
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class VerificationData(SampleOptions):
    """Data for whole runs of a proof, if any."""

    data: str | None = option(None, heading=DATA, help=f"Whole runs on real inputs, beside random ones: {SOURCES}")


@dataclass(frozen=True, kw_only=True, repr=False)
class AccuracyData(SampleOptions):
    """Data that a report measures accuracy on, if any."""

    data: str | None = option(None, heading=DATA, help=f"Measure the accuracy of the models given on this: {SOURCES}")
