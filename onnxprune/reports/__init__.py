"""One HTML file that tells a pruning: what was cut, why, what it cost, how it was proved. See docs/report.md.

write_report([Path("run")], Path("report.html"))
write_report([Path("model.onnx"), Path("small.onnx"), Path("plan.json")], Path("report.html"))
"""

from onnxprune.reports.files import Measuring as Measuring
from onnxprune.reports.report import tell as tell
from onnxprune.reports.report import write_report as write_report
from onnxprune.reports.story import Story as Story

__all__ = ["Measuring", "Story", "tell", "write_report"]
