"""onnxprune as a step of other tools; a module for each. See docs/integrations.md.

    olive            pass of Olive workflows
    onnx_ir          pass over onnx-ir models
    model_explorer   node data for Model Explorer

`calibration_reader` makes onnxruntime's `CalibrationDataReader` from any data, `EventLog` writes JSON-lines events.
"""

from __future__ import annotations

from onnxprune._utils.output.events import EventLog as EventLog
from onnxprune.integrations._calibration import calibration_reader as calibration_reader

__all__ = ["EventLog", "calibration_reader"]
