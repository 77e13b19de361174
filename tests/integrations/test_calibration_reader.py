"""`CalibrationDataReader` in and out: onnxruntime's quantizer takes ours, and `load_data` takes it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.integrations import calibration_reader

MODEL = Path(__file__).parents[2] / "models" / "digits_cnn_folded.onnx"


def test_feeds_come_in_order_and_end_with_none() -> None:
    reader = calibration_reader(MODEL, "digits", images=10, batch=4)
    feeds = [reader.get_next() for _ in range(4)]
    assert [len(f["image"]) for f in feeds[:3] if f] == [4, 4, 2]
    assert feeds[3] is None
    reader.rewind()
    again = list(reader)
    assert len(again) == len(reader) == 3
    assert feeds[0] is not None
    assert np.array_equal(again[0]["image"], feeds[0]["image"])


def test_a_range_is_read_as_the_quantizer_asks_for_it() -> None:
    reader = calibration_reader(MODEL, "digits", images=6)
    whole = [f["image"] for f in reader]
    reader.set_range(2, 4)
    assert np.array_equal([f["image"] for f in reader], whole[2:4])


def test_it_is_a_reader_to_onnxruntime() -> None:
    assert isinstance(calibration_reader(MODEL, "digits", images=2), CalibrationDataReader)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnxruntime_quantizes_with_it(tmp_path: Path) -> None:
    import logging

    level = logging.root.level
    quantize_static(
        MODEL, tmp_path / "int8.onnx", calibration_reader(MODEL, "digits", images=40), quant_format=QuantFormat.QDQ,
        reduce_range=True,
    )  # fmt: skip
    logging.root.setLevel(level)
    assert op.evaluate(tmp_path / "int8.onnx", "digits:test", images=200).top1 > 0.9


def test_ours_is_read_as_data() -> None:
    data = op.load_data(calibration_reader(MODEL, "digits", images=8, batch=4), model=op.load(MODEL))
    assert len(data) == 8


def test_no_data_is_refused() -> None:
    with pytest.raises(OnnxPruneError, match="needs samples"):
        calibration_reader(MODEL, None)  # type: ignore[arg-type]
