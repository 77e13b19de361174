"""A page on this machine on which ratios are dragged and costs follow: `onnxprune explore`.

`flow` draws how data runs between groups, `session` is all that the page can ask for, without HTTP; `requests` checks
what a browser sends; `server` is HTTP and nothing else. `page/` holds the three files the browser gets.
"""

from __future__ import annotations

from onnxprune.explorer._flow import Flow as Flow
from onnxprune.explorer._flow import flow as flow
from onnxprune.explorer._server import Server as Server
from onnxprune.explorer._session import Explorer as Explorer
