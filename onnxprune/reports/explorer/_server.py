"""HTTP server of the page, for one browser on this machine.

It binds to 127.0.0.1. Every path begins with a random token; a request without it, for another host or from another
origin is refused before anything else is read. The server sends the documents of a site and the answers of its actions.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from onnxprune._utils.files.input_files import opened
from onnxprune.errors import OnnxPruneError
from onnxprune.reports.explorer._connections import MOST, PATIENCE, Connections
from onnxprune.reports.explorer._requests import BadRequest
from onnxprune.reports.explorer._site import JSON, Site

ADDRESS = "127.0.0.1"
MAX_BODY = 2**18  # bytes; the counts of ten thousand groups need a quarter of it
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: browsers would send `Origin: null` even from the page itself.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server:
    """Server of one site, until the page's Done.

    Args:
        site: contents of the site.
        port: 0 for a free one.
        most: number of connections that wait for a complete request; beyond that the oldest is closed.
        patience: seconds for a request head to arrive.

    Attributes:
        url: address of the page, token included.

    Raises:
        OnnxPruneError: the port is not available.
    """

    def __init__(self, site: Site, port: int = 0, *, most: int = MOST, patience: float = PATIENCE) -> None:
        try:
            self._http = _Http(site, port, most, patience)
        except (OSError, OverflowError) as err:
            fix = "leave out --port: any free one is taken"
            raise OnnxPruneError(f"cannot listen on port {port} of {ADDRESS}: {err}", fix=fix) from err
        self.url = f"{self._http.origin}/{self._http.token}/"

    def serve(self) -> None:
        """Answer requests until the page's Done or an interrupt."""
        try:
            self._http.serve_forever(poll_interval=0.1)
        finally:
            self.close()

    def close(self) -> None:
        """Release the port of a server that is not serving."""
        self._http.server_close()

    def stop(self) -> None:
        """End `serve`, which runs in another thread."""
        self._http.shutdown()


class _Http(HTTPServer):
    request_queue_size = 1024  # connections that the system accepts before this process does

    def __init__(self, site: Site, port: int, most: int, patience: float) -> None:
        self._connections: Connections | None = None
        super().__init__((ADDRESS, port), _Handler)
        self._connections = Connections(self._answer, most=most, patience=patience)
        self.site = site
        self.headers = {**_HEADERS, **({} if site.policy is None else {"Content-Security-Policy": site.policy})}
        self.token = secrets.token_urlsafe(24)
        self.host = f"{ADDRESS}:{self.server_address[1]}"
        self.origin = f"http://{self.host}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let a connection wait for its request."""
        assert self._connections is not None
        self._connections.add(request, client_address)

    def _answer(self, request: Any, client_address: Any) -> None:
        """Answer one request, in a thread, and close the connection."""
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def server_close(self) -> None:
        """Close the server's socket and all waiting connections."""
        super().server_close()
        if self._connections is not None:  # else the port is taken
            self._connections.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close their connection early; show other errors on stderr."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, what: str, **headers: str) -> None:
        super().__init__(what)
        self.status, self.headers = status, headers


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "onnxprune", ""
    timeout = 10  # seconds without a byte, of a body or of an answer
    wbufsize = 2**16  # head and body in one packet: two would wait for an acknowledgement between them
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send the page or the description of the model."""
        self._respond(self._get)

    def do_POST(self) -> None:
        """Answer a question of the page."""
        self._respond(self._post)

    def _respond(self, ask: Callable[[str], tuple[bytes | Path, str]]) -> None:
        try:
            path = self._checked_path()
            self._send(HTTPStatus.OK, *ask(path))
        except _Refused as err:
            self._refuse(err.status, str(err), err.headers)
        except BadRequest as err:
            self._refuse(HTTPStatus.BAD_REQUEST, str(err))
        else:
            if path == "done":
                self.wfile.flush()  # send the answer before the command ends
                threading.Thread(target=self.server.shutdown, daemon=True).start()

    def _checked_path(self) -> str:
        """Check the request's origin and return its path after the token.

        Raises:
            _Refused: another host, another origin, no token.
        """
        if self.headers.get_all("Host") != [self.server.host]:
            raise _Refused(HTTPStatus.FORBIDDEN, "requests for other hosts are refused")
        if self.headers.get_all("Origin") not in (None, [self.server.origin]):
            raise _Refused(HTTPStatus.FORBIDDEN, "requests from other origins are refused")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _Refused(HTTPStatus.FORBIDDEN, "requests from other sites are refused")
        token, slash, path = self.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "the token is missing or wrong: use the address that was printed")
        if not slash:
            raise _Refused(HTTPStatus.NOT_FOUND, "the page's address ends with a slash")
        return path

    def _get(self, path: str) -> tuple[bytes | Path, str]:
        if path in self.server.site.actions:
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "this is asked for with POST", Allow="POST")
        found = self.server.site.documents.get(unquote(path))
        if found is None or (isinstance(found[0], Path) and not found[0].is_file()):
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        return found

    def _post(self, path: str) -> tuple[bytes, str]:
        if path in self.server.site.documents:
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "this is asked for with GET", Allow="GET")
        if path not in self.server.site.actions:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        if self.headers.get("Origin") is None:
            raise _Refused(HTTPStatus.FORBIDDEN, "requests without an origin are refused")
        document = self.server.site.actions[path](self._body())
        return json.dumps(document, allow_nan=False).encode(), JSON

    def _body(self) -> bytes:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is not application/json")
        lengths = self.headers.get_all("Content-Length") or []
        if (
            len(lengths) != 1
            or not (lengths[0].isascii() and lengths[0].isdigit())
            or "Transfer-Encoding" in self.headers
        ):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the body has no length")
        if len(lengths[0]) > 9 or int(lengths[0]) > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {MAX_BODY} bytes")
        return self.rfile.read(int(lengths[0]))

    def _send(
        self, status: HTTPStatus, body: bytes | Path, kind: str, headers: Mapping[str, str] | None = None
    ) -> None:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(opened(body)) if isinstance(body, Path) else None
            length = len(body) if isinstance(body, bytes) else body.stat().st_size
            self.send_response(status)
            for name, value in {**self.server.headers, **(headers or {}), "Content-Type": kind}.items():
                self.send_header(name, value)
            if file is not None:
                self.send_header("Content-Disposition", "attachment")
            self.send_header("Content-Length", str(length))
            self.close_connection = True  # an idle connection must not hold a thread
            if "Connection" not in (headers or {}):
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "HEAD":
                return
            if file is not None:
                shutil.copyfileobj(file, self.wfile)
            else:
                assert isinstance(body, bytes)
                self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, what: str, headers: Mapping[str, str] | None = None) -> None:
        """Send a short reason as JSON and read nothing more from this connection."""
        self.close_connection = True
        self._send(status, json.dumps({"error": what}).encode(), JSON, {**(headers or {}), "Connection": "close"})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse in our form the requests that http.server refuses: invalid HTTP, unknown methods."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and POST are answered", {"Allow": "GET, POST"})
        else:
            self._refuse(status, status.phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the terminal belongs to the command."""
