"""Data for evaluation and calibration: samples with random access, targets, and their conversion into model inputs.

A sample is an array for each input; images are decoded when a batch is read. `load_data` reads the sources that
`--data` accepts, `Preprocess` is the conversion, `Feeds` makes batches for a model.
"""

from onnxprune.execution.data._classes import class_count, fitted_labels, known_classes, read_class_map
from onnxprune.execution.data._data import Data, subset
from onnxprune.execution.data._feeds import Feeds, model_batches
from onnxprune.execution.data._fit import Fitted, fit
from onnxprune.execution.data._inputs import InputSpec, arrangement, input_of, inputs_of, to_input
from onnxprune.execution.data._load import SampleSource, as_data, load_data
from onnxprune.execution.data._preprocess import Preprocess, as_preprocess, preprocess_of, preset
from onnxprune.execution.data._readers.arrays import MAX_ARRAY_BYTES
from onnxprune.execution.data._readers.images import IMAGES
from onnxprune.execution.data._resolve import resolved
from onnxprune.execution.data._sources import Source
from onnxprune.execution.data._targets import Boxes, Target, Targets
from onnxprune.execution.data.digit_scenes import split_digits

__all__ = [
    "IMAGES", "MAX_ARRAY_BYTES", "Boxes", "Data", "Feeds", "Fitted", "InputSpec", "Preprocess", "SampleSource",
    "Source", "Target", "Targets", "arrangement", "as_data", "as_preprocess", "class_count", "fit", "fitted_labels",
    "input_of", "inputs_of", "known_classes", "load_data", "model_batches", "preprocess_of", "preset", "read_class_map",
    "resolved", "split_digits", "subset", "to_input",
]  # fmt: skip
