"""Local page with a slider for each group's ratio: `onnxprune explore`.

`_flow` lays out the data flow between groups, `_session` answers the page's questions without HTTP, `_requests`
validates the browser's requests, and `_server` speaks HTTP. `page/` holds the three files that are served.
"""

from __future__ import annotations

from onnxprune.explorer._flow import Flow as Flow
from onnxprune.explorer._flow import flow as flow
from onnxprune.explorer._server import Server as Server
from onnxprune.explorer._session import Explorer as Explorer
