"""A page on this machine on which ratios are dragged and costs follow: `onnxprune explore`.

`_flow` draws how data runs between groups, `_session` is all that the page can ask for, without HTTP; `_requests`
checks what a browser sends; `_server` is HTTP and nothing else. `page/` holds the three files the browser gets.
"""

from __future__ import annotations

from onnxprune.explorer._flow import Flow as Flow
from onnxprune.explorer._flow import flow as flow
from onnxprune.explorer._server import Server as Server
from onnxprune.explorer._session import Explorer as Explorer
