"""Data as onnxruntime's `CalibrationDataReader`, for its quantizer and for every tool that takes one."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import FeedReader
from onnxprune.ir.input_sizes import Shapes
from onnxprune.pipeline import DataSource, ModelSource, PreprocessSource, as_calibration, as_model


def calibration_reader(
    model: ModelSource,
    data: DataSource,
    *,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    shapes: Shapes | None = None,
    batch: int = 1,
) -> FeedReader:
    """Return a `CalibrationDataReader` over data in the form of a model's inputs.

    Args:
        model: Model whose inputs the samples are for.
        data: Samples: `Data`, a source that `load_data` reads, "none" for synthetic samples, or a `Calibration`.
        images: Number of samples to read from a source.
        size: Height and width that image files are resized to.
        preprocess: Conversion of the samples into the model's input, or the name of a preset.
        shapes: Sizes of dynamic inputs.
        batch: Samples of one feed; ignored by a model with a fixed batch.

    Raises:
        OnnxPruneError: the data cannot be read, is empty, or does not fit the model.
    """
    read = as_model(model, shapes)
    samples = as_calibration(data, read, images=images, size=size, preprocess=preprocess)
    if samples is None:
        raise OnnxPruneError("a calibration reader needs samples", fix='pass data; "none" makes synthetic samples')
    return FeedReader(samples.feeds(read, batch))
