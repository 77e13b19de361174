"""Data for evaluation and calibration: samples, labels, and their conversion into the model's input."""

from onnxprune.execution.data._data import (
    IMAGES,
    MAX_ARRAY_BYTES,
    Data,
    Feeds,
    InputSpec,
    Preprocess,
    arrangement,
    as_data,
    input_of,
    load_data,
    model_batches,
    split_digits,
    subset,
    to_input,
)

__all__ = [
    "IMAGES", "MAX_ARRAY_BYTES", "Data", "Feeds", "InputSpec", "Preprocess", "arrangement", "as_data", "input_of",
    "load_data", "model_batches", "split_digits", "subset", "to_input",
]  # fmt: skip
