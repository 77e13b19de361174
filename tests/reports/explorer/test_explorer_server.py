"""The explorer over HTTP, on loopback: what it serves, and everything it refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from command_line import CommandLine
from planning import kept_counts, wide_model

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.planning.constraints import Constraints
from onnxprune.plans import NOTHING
from onnxprune.reports.explorer import Explorer, Server, _server, plan_site

JSON = {"Content-Type": "application/json"}


@dataclass
class Site:
    """A server that runs, and a client of it."""

    url: str
    output: Path
    thread: threading.Thread

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.host = parts.netloc
        self.path = parts.path
        self.port = int(parts.port or 0)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
        """Status, headers and body of an answer. Underscores in header names stand for hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            named = {k.replace("_", "-"): v for k, v in headers.items()}
            connection.request(method, path, body, named)
            found = connection.getresponse()
            return found.status, dict(found.getheaders()), found.read()
        finally:
            connection.close()

    def post(self, action: str, document: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and document of what the page asks for."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        given = {"Origin": self.origin, "Content_Type": "application/json", **headers}
        given = {k: v for k, v in given.items() if v}
        status, _, answer = self.ask("POST", self.path + action, body, **given)
        return status, json.loads(answer)


def explorer(output: Path) -> Explorer:
    model = wide_model()
    return Explorer(op.score(op.analyze(model), "l2"), output, name="<i>wide</i>", constraints=Constraints(round_to=16))


@contextlib.contextmanager
def serving(output: Path, **bounds: Any) -> Iterator[Site]:
    running = Server(plan_site(explorer(output)), **bounds)
    thread = threading.Thread(target=running.serve, daemon=True)
    thread.start()
    try:
        yield Site(running.url, output, thread)
    finally:
        running.stop()
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(tmp_path / "plan.json") as running:
        yield running


def test_the_page_is_served_and_nothing_else(site: Site) -> None:
    for path, kind in {"": "text/html", "explore.css": "text/css", "explore.js": "text/javascript"}.items():
        status, headers, body = site.ask("GET", site.path + path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert b"<script>" not in body
        assert "http://" not in body.decode().replace("http://www.w3.org/2000/svg", "")
    status, headers, body = site.ask("GET", f"{site.path}model")
    assert json.loads(body)["name"] == "<i>wide</i>"
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]
    for path in ("session.py", "../server.py", "%2e%2e/server.py", "/etc/passwd", "model/", "?x", "explore.html"):
        assert site.ask("GET", site.path + path)[0] == 404


def test_what_the_page_asks_for(site: Site) -> None:
    status, answer = site.post("figures", {"kept": [48, 96]})
    assert status == 200
    assert answer["figures"]["cost"]["channels"] == 144
    status, answer = site.post("aim", {"what": "macs", "value": 0.5, "scope": None, "held": {}})
    assert (status, answer["aimed"]) == (200, True)
    status, answer = site.post("save", {"kept": [48, 80]})
    assert (status, answer["saved"]) == (200, str(site.output))
    assert kept_counts(op.load_plan(site.output), op.analyze(wide_model())) == {"w0": 48, "w1": 80}


def test_done_ends_the_server(site: Site) -> None:
    assert site.post("done", {}) == (200, {"done": True, "saved": None})
    site.thread.join(20)
    assert not site.thread.is_alive()
    with pytest.raises(OSError):
        site.ask("GET", site.path)


def test_requests_without_the_token_are_refused(site: Site) -> None:
    token = site.path.strip("/")
    assert len(token) >= 32
    for path in ("/", "/model", "/wrong/", f"/{token[:-1]}/", f"/{token}x/model", "/favicon.ico", f"/?{token}", "*"):
        status, headers, body = site.ask("GET", path)
        assert status == 403, path
        assert "token" in json.loads(body)["error"]
        assert token not in str(headers) + body.decode()
    assert site.ask("POST", "/done", b"{}", Origin=site.origin, Content_Type="application/json")[0] == 403
    assert site.ask("GET", f"/{token}")[0] == 404
    other = Server(plan_site(explorer(site.output)))
    other.close()
    assert other.url.strip("/").split("/")[-1] != token


@pytest.mark.parametrize(
    "host", ["example.com", "localhost", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}", "a@{host}", ""]
)
def test_other_hosts_are_refused(site: Site, host: str) -> None:
    named = host.format(port=site.port, host=site.host)
    assert site.ask("GET", site.path, Host=named)[0] == 403
    assert site.post("done", {}, Host=named or " ")[0] == 403


@pytest.mark.parametrize(
    "origin", ["http://example.com", "null", "https://{host}", "http://127.0.0.1", "{origin}/", ""]
)
def test_other_origins_are_refused(site: Site, origin: str) -> None:
    status, answer = site.post("save", {"kept": [48, 96]}, Origin=origin.format(host=site.host, origin=site.origin))
    assert status == 403
    assert "origin" in answer["error"]
    assert not site.output.exists()


def test_other_sites_are_refused(site: Site) -> None:
    assert site.ask("GET", site.path, Sec_Fetch_Site="cross-site")[0] == 403
    assert site.ask("GET", site.path, Sec_Fetch_Site="same-site")[0] == 403
    assert site.ask("GET", site.path, Sec_Fetch_Site="none")[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"])
def test_other_methods_are_refused(site: Site, method: str) -> None:
    status, headers, _ = site.ask(method, site.path)
    assert status == 405
    assert headers["Allow"] == "GET, POST"


def test_each_path_has_its_method(site: Site) -> None:
    for action in ("figures", "aim", "save", "done"):
        assert site.ask("GET", site.path + action)[0] == 405
    for path in ("", "model", "explore.js"):
        assert site.post(path, {})[0] == 405
    assert site.post("shutdown", {})[0] == 404


def test_bodies_that_are_not_the_pages_are_refused(site: Site) -> None:
    assert site.post("figures", b"{")[0] == 400
    assert site.post("figures", {"kept": [48, 96], "output": "/tmp/x"}) == (
        400, {"error": "not a valid request: unknown key 'output' (body)"},
    )  # fmt: skip
    assert site.post("figures", {"kept": [48, 96]}, Content_Type="text/plain")[0] == 415
    assert site.post("figures", b'{"kept": "' + b"x" * _server.MAX_BODY + b'"}')[0] == 413
    assert site.post("figures", b"", Content_Length="-1")[0] == 411
    assert site.post("figures", b"", Content_Length="9" * 5000)[0] == 413
    assert site.post("figures", b"2\r\n{}\r\n0\r\n\r\n", Transfer_Encoding="chunked")[0] == 411


def test_what_is_no_http_gets_a_short_answer_and_hurts_nobody(site: Site) -> None:
    for raw in (
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET " + b"x" * 70_000 + b"\r\n\r\n",
        b"POST /\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", site.port), timeout=20) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert b"<html" not in answer.lower()
        assert b"Traceback" not in answer
    assert site.ask("GET", site.path)[0] == 200


def test_it_listens_on_loopback_only_and_says_when_a_port_is_taken(site: Site) -> None:
    assert site.host == f"127.0.0.1:{site.port}"
    with pytest.raises(OnnxPruneError, match=f"cannot listen on port {site.port}"):
        Server(plan_site(explorer(site.output)), site.port)


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    op.save(wide_model(), tmp_path / "wide.onnx")
    return tmp_path / "wide.onnx"


def visited(monkeypatch: pytest.MonkeyPatch, *actions: tuple[str, Any]) -> None:
    """Whoever opens the page's address does this."""

    def browse(self: Server) -> None:
        thread = threading.Thread(target=serve, args=(self,), daemon=True)
        thread.start()
        site = Site(self.url, Path(), thread)
        for action, document in actions:
            assert site.post(action, document)[0] == 200
        if not actions:
            self.stop()
            thread.join(20)
            raise KeyboardInterrupt
        thread.join(20)
        assert not thread.is_alive()

    serve = Server.serve
    monkeypatch.setattr(Server, "serve", browse)


SAVE_AND_END = (("save", {"kept": [48, 80]}), ("done", {}))


def test_command_saves_a_plan_that_apply_takes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visited(monkeypatch, *SAVE_AND_END)
    call = CommandLine("explore", model, "--no-browser", "--json", "--round-to", 16)
    result = call.ok()
    plan = model.with_name("wide-plan.json")
    document = json.loads(result.stdout)
    assert document["output"] == str(plan)
    assert document["removed_channels"] == 32
    assert "http://127.0.0.1:" in result.stderr
    assert CommandLine("apply", model, plan, "-o", model.with_name("small.onnx")).ok()
    assert "exists already" in call.fails()
    assert json.loads(call.out("-o", plan))["output"] == str(plan)


def test_command_without_json_shows_the_plan(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visited(monkeypatch, *SAVE_AND_END)
    out = CommandLine("explore", model, "--no-browser", "-o", model.with_name("p.json")).out()
    assert "w1" in out
    assert "83.3 %" in out


def test_ctrl_c_ends_it_with_what_was_saved(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visited(monkeypatch)
    result = CommandLine("explore", model, "--no-browser", "--json").ok()
    assert json.loads(result.stdout) == {"output": None, "digest": None, **NOTHING.removed_counts()}
    assert "no plan was saved" in CommandLine("explore", model, "--no-browser").ok().stderr


def test_the_browser_is_opened_at_the_address(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    there = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda url: (opened.append(url), there.set()))
    visited(monkeypatch, ("done", {}))
    result = CommandLine("explore", model).ok()
    assert there.wait(20)
    assert opened[0] in result.stderr


def test_wrong_use_is_told(model: Path) -> None:
    assert "is the input file" in CommandLine("explore", model, "--no-browser", "-o", model).fails()
    assert "unknown criterion" in CommandLine("explore", model, "--no-browser", "-c", "nothing").fails()
    assert "--port" in CommandLine("explore", model, "--port", 99999).fails(code=2)


# ---------------------------------------------------------------------------------------------------------- under load


def answered(site: Site, wanted: int) -> int:
    """Return the number of several requests at once that are answered."""
    request = f"GET {site.path}model HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode()
    connections = []
    for _ in range(wanted):
        connection = socket.create_connection(("127.0.0.1", site.port), timeout=60)
        connection.sendall(request)
        connections.append(connection)
    found = 0
    for connection in connections:
        with connection:
            answer = b""
            while part := connection.recv(65536):
                answer += part
            found += answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"}")
    return found


def test_half_open_connections_hold_no_threads_and_all_requests_are_answered(site: Site) -> None:
    before = threading.active_count()
    held = []
    for i in range(300):
        connection = socket.create_connection(("127.0.0.1", site.port), timeout=60)
        if i % 2:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        held.append(connection)
    try:
        assert answered(site, 500) == 500
        assert threading.active_count() <= before
        assert before <= 64
        assert site.ask("GET", site.path)[0] == 200
    finally:
        for connection in held:
            connection.close()


def test_a_request_that_arrives_in_parts_is_answered(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=60) as connection:
        for part in (b"GET ", site.path.encode(), b" HTTP/1.1\r\nHo", f"st: {site.host}\r\n".encode(), b"\r\n"):
            connection.sendall(part)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_oldest_waiting_connection_makes_room(tmp_path: Path) -> None:
    with serving(tmp_path / "plan.json", most=3) as site:
        held = [socket.create_connection(("127.0.0.1", site.port), timeout=60) for _ in range(4)]
        try:
            assert held[0].recv(1) == b""  # closed
            assert site.ask("GET", site.path)[0] == 200
        finally:
            for connection in held:
                connection.close()


def test_a_head_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "plan.json", patience=0.0) as site,
        socket.create_connection(("127.0.0.1", site.port), timeout=60) as connection,
    ):
        connection.sendall(b"GET ")
        with contextlib.suppress(ConnectionResetError):  # an end with bytes unread is a reset
            assert connection.recv(1) == b""
