"""HTML report of a pruning: removed channels, reasons, costs and proof. See docs/report.md.

write_report([Path("run")], Path("report.html"))
write_report([Path("model.onnx"), Path("small.onnx"), Path("plan.json")], Path("report.html"))
"""

from onnxprune.reports._from_files import MeasurementSettings as MeasurementSettings
from onnxprune.reports._report import FrontierPage as FrontierPage
from onnxprune.reports._report import collect as collect
from onnxprune.reports._report import frontier_page as frontier_page
from onnxprune.reports._report import write_report as write_report
from onnxprune.reports._report_data import ReportData as ReportData

__all__ = ["FrontierPage", "MeasurementSettings", "ReportData", "collect", "frontier_page", "write_report"]
