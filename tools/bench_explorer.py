"""Measure the explorer's time from an input event to the new numbers on the page, in a headless Chromium.

    python tools/bench_explorer.py resnet50.onnx vit_b_32.onnx [--latency]

Needs what `make test-browser` installs. Curves are made up: only their number matters here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

import onnxprune as op
from onnxprune.reports.explorer import Explorer, Server, plan_site

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
from browser import Browser, Page
from planning import made_curves

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--latency", action="store_true", help="with a latency model of this machine")
    args = parser.parse_args()
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
