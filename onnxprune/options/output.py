"""Options of files that are written, of their proof and of interrupted runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxprune.options._declare import OUTPUT, OptionError, Options, option

_OTHERS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".torchscript"), "PyTorch"), **dict.fromkeys((".h5", ".keras"), "Keras"),
    **dict.fromkeys((".pb", ".tflite"), "TensorFlow"), **dict.fromkeys((".engine", ".trt"), "TensorRT"),
    ".ort": "onnxruntime", ".xml": "OpenVINO", ".mlmodel": "Core ML", ".pdmodel": "PaddlePaddle",
    **dict.fromkeys((".json", ".npz", ".html", ".csv", ".toml"), "other"),
}  # fmt: skip
"""Formats that an ending promises and a written model does not have."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Output(Options):
    """File to write."""

    output: Path = option(help="File to write.", heading=OUTPUT, flag=("-o", "--output"))


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelOutput(Output):
    """Model file to write."""

    external: bool | None = option(
        None, help="Weights beside the model, or inside it.", heading=OUTPUT, advanced=True,
        flag="--external-data/--single-file", shown="by size",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        known = _OTHERS.get(self.output.suffix.lower())
        if known is not None:
            raise OptionError(
                "output", f"is an ONNX model; {self.output.name!r} has the ending of {known} files",
                fix=f"{self.output.stem}.onnx",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Tolerance(Options):
    """Tolerance of the proof against the masked original."""

    tolerance: float | None = option(
        None, help="Largest relative difference allowed.", heading=OUTPUT, advanced=True, shown="by element type"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Verifying(Tolerance):
    """Proof of a pruned model."""

    verify: bool = option(
        True, help="Prove the result (default) or not.", heading=OUTPUT, advanced=True, flag="--verify/--no-verify"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Events(Options):
    """Log of a long command for other programs."""

    log_json: Path | None = option(
        None, help="Append events to this file, one JSON object a line.", heading=OUTPUT, advanced=True
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Restarting(Options):
    """Treatment of the files of an interrupted run."""

    restart: bool = option(False, help="Discard the files of an interrupted run.", heading=OUTPUT)


@dataclass(frozen=True, kw_only=True, repr=False)
class Resuming(Restarting):
    """Treatment of the files of an interrupted run, with the option that earlier versions needed to resume one."""

    resume: bool = option(
        False, help="Accepted for older scripts: an interrupted run is resumed anyway.", heading=OUTPUT, advanced=True
    )
