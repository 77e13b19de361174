"""Local page with a slider for each group's ratio: `onnxprune explore`.

`_flow` lays out the data flow between groups, `_session` answers the page's questions without HTTP, `_requests`
validates the browser's requests, `_site` lists what is served, and `_server` speaks HTTP. `page/` holds the three files
of the page. A frontier is served as the page of its report.
"""

from __future__ import annotations

from onnxprune.reports.explorer._flow import Flow as Flow
from onnxprune.reports.explorer._flow import flow as flow
from onnxprune.reports.explorer._server import Server as Server
from onnxprune.reports.explorer._session import Explorer as Explorer
from onnxprune.reports.explorer._site import Site as Site
from onnxprune.reports.explorer._site import page_site as page_site
from onnxprune.reports.explorer._site import plan_site as plan_site
