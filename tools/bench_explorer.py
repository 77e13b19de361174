"""Measure the explorer's time from an input event to the new numbers on the page, in a headless Chromium.

    python tools/bench_explorer.py resnet50.onnx vit_b_32.onnx [--latency]
    python tools/bench_explorer.py model.onnx --load [--requests 500] [--half-open 300]

The first needs what `make test-browser` installs. Curves are made up: only their number matters here. `--load` needs no
browser: it sends requests at once beside half-open connections to a server in a process of its own, half of them for
the description of the model and half for the cost of new counts, and prints the slowest answer and the most threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import numpy as np

import onnxprune as op
from onnxprune.reports.explorer import Explorer, Server, plan_site

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
from planning import made_curves

if TYPE_CHECKING:
    from browser import Page

EVENTS, PAUSE = 60, 16  # of a drag, and milliseconds between two
READY = "() => document.querySelector('#tiles .now')?.textContent && !document.querySelector('#save').disabled"


def drag(page: Page, selector: str) -> str:
    """Drag a slider over four fifths of its length and return its events."""
    tab = page.tab
    tab.evaluate("performance.clearMeasures()")
    tab.locator(selector).scroll_into_view_if_needed()
    box = tab.locator(selector).bounding_box()
    y = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 8, y)
    tab.mouse.down()
    for i in range(EVENTS):
        tab.mouse.move(box["x"] + 8 + (box["width"] - 16) * 0.8 * i / EVENTS, y)
        tab.wait_for_timeout(PAUSE)
    tab.mouse.up()
    tab.wait_for_timeout(1000)
    times = tab.evaluate("performance.getEntriesByName('interaction').map(e => e.duration)")
    return f"{len(times)} answers, median {np.median(times):.1f} ms, worst {max(times):.1f} ms"


@dataclass
class _Request:
    """Request in flight."""

    socket: socket.socket
    rest: bytes
    sent: float
    answer: bytearray = field(default_factory=bytearray)
    seconds: float | None = None

    @property
    def valid(self) -> bool:
        """True for a complete answer with status 200."""
        head, _, body = bytes(self.answer).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        return head.startswith(b"HTTP/1.1 200") and length is not None and len(body) == int(length[1])


def _serve(name: str, pipe: Connection) -> None:
    scores = op.score(op.analyze(op.load(name)), "l2")
    with tempfile.TemporaryDirectory() as folder:
        explorer = Explorer(scores, Path(folder) / "plan.json", name=name)
        server = Server(plan_site(explorer))
        pipe.send(server.url)
        server.serve()


@contextlib.contextmanager
def _served(name: str) -> Iterator[tuple[str, int]]:
    """Yield the address of a server in a process of its own, and the number of the process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(name, theirs), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        yield ours.recv(), process.pid
    finally:
        process.kill()
        process.join()


def _ask(parts: SplitResult, method: str, action: str, body: bytes = b"") -> bytes:
    head = f"{method} {parts.path}{action} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    if body:
        origin = f"Origin: {parts.scheme}://{parts.netloc}\r\n"
        head += f"{origin}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def _answered(address: tuple[str, int], asked: list[bytes], pid: int) -> tuple[list[_Request], int]:
    """Send requests at once; return them with their answers, and the most threads of the server meanwhile."""
    waiting = selectors.DefaultSelector()
    requests = []
    for data in asked:
        client = socket.socket()
        client.setblocking(False)
        sent = time.perf_counter()
        with contextlib.suppress(BlockingIOError):
            client.connect(address)
        requests.append(_Request(client, data, sent))
        waiting.register(client, selectors.EVENT_WRITE, requests[-1])
    threads, left = 0, len(requests)
    while left:
        ready = waiting.select(timeout=60)
        if not ready:
            break
        for key, _ in ready:
            request: _Request = key.data
            if request.rest:
                request.rest = request.rest[request.socket.send(request.rest) :]
                if not request.rest:
                    waiting.modify(request.socket, selectors.EVENT_READ, request)
            elif part := request.socket.recv(2**20):
                request.answer += part
            else:
                request.seconds = time.perf_counter() - request.sent
                waiting.unregister(request.socket)
                request.socket.close()
                left -= 1
        threads = max(threads, int(re.findall(r"Threads:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[0]))
    return requests, threads


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(name: str, count: int, half_open: int) -> None:
    """Print how long requests at once take beside half-open connections."""
    with _served(name) as (url, pid), contextlib.ExitStack() as held:
        parts = urlsplit(url)
        address = (str(parts.hostname), int(parts.port or 0))
        for i in range(half_open):
            client = held.enter_context(socket.create_connection(address, timeout=60))
            if i % 2:
                client.sendall(b"GET / HTTP/1.1\r\nHost: ")
        described = _answered(address, [_ask(parts, "GET", "model")], pid)[0][0]
        document = json.loads(bytes(described.answer).partition(b"\r\n\r\n")[2])
        whole = [group["channels"] for group in document["groups"]]
        counts = _ask(parts, "POST", "figures", json.dumps({"kept": whole}).encode())
        asked = [_ask(parts, "GET", "model") if i % 2 else counts for i in range(count)]
        before = _cpu(pid)
        found, threads = _answered(address, asked, pid)
        used = _cpu(pid) - before
        seconds = [r.seconds for r in found if r.valid and r.seconds is not None]
        print(
            f"{name}, load {os.getloadavg()[0]:.1f}: {len(seconds)} of {count} requests answered beside {half_open} "
            f"half-open connections; median {np.median(seconds):.2f} s, slowest {max(seconds):.2f} s; "
            f"{used:.2f} s of CPU time of the server, at most {threads} threads",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--latency", action="store_true", help="with a latency model of this machine")
    parser.add_argument("--load", action="store_true", help="requests at once instead of a browser")
    parser.add_argument("--requests", type=int, default=500, help="at once, with --load")
    parser.add_argument("--half-open", type=int, default=300, help="connections beside them")
    args = parser.parse_args()
    if args.load:
        for name in args.models:
            load(name, args.requests, args.half_open)
        return
    from browser import Browser

    for name in args.models:
        analysis = op.analyze(op.load(name))
        scores = op.score(analysis, "l2")
        curves = made_curves(scores, {g.name: [0.9 - 0.001 * i * i for i in range(1, 10)] for g in analysis})
        latency = op.latency_model(analysis) if args.latency else None
        with tempfile.TemporaryDirectory() as folder, Browser() as browser:
            explorer = Explorer(scores, Path(folder) / "plan.json", name=name, curves=curves, latency=latency)
            server = Server(plan_site(explorer))
            threading.Thread(target=server.serve, daemon=True).start()
            page = browser.open(server.url)
            page.tab.wait_for_function(READY)
            place = [i for i, row in enumerate(explorer.describe()["rows"]) if row["group"] is not None][3]
            print(f"{name}, load {os.getloadavg()[0]:.1f}: a group: {drag(page, f'#slider-{place}')}", flush=True)
            for allocator in explorer.allocators:
                page.tab.click("#reset")
                page.tab.select_option("#scope", allocator)
                print(f"{name}: an aim at MACs, {allocator}: {drag(page, '#goal')}", flush=True)
            server.stop()


if __name__ == "__main__":
    main()
