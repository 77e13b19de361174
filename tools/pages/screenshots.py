"""Make the pictures of the documentation from the program itself, in the browser of the tests.

    make pictures                     # all of them, into docs/pictures/
    python tools/pages/screenshots.py NAME ...

Most are 1280 by 800 pixels of a page that onnxprune serves or writes, all from models and data that ship. Run it after
a change of the explorer, the report or the frontier, and look at the result before committing it. Figures of numbers on
the pages: tools/pages/figures.py.
"""

from __future__ import annotations

import io
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageDraw

import onnxprune as op
from onnxprune.execution.data.digit_scenes import digit_scene
from onnxprune.plans import save_plan
from onnxprune.recipes import load_recipe, run_recipe
from onnxprune.reports import MeasurementSettings, write_report
from onnxprune.reports.explorer import Explorer, Server, plan_site
from onnxprune.studies.plots import plot_curves

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "tools")]

from browser import Browser  # noqa: E402
from networks.structures import FOLDER, filled  # noqa: E402

OUT = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 1280, 800
MODEL = ROOT / "models" / "digits_cnn.onnx"
COLOURS = 128  # of a palette: pictures of pages need no more, and are a third of the size


def save(png: bytes, name: str) -> None:
    """Write a picture with a palette."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    path = OUT / f"{name}.png"
    image.save(path, optimize=True)
    click.echo(f"{path.relative_to(ROOT)}: {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB")


def explorer(browser: Browser, folder: Path, name: str) -> None:
    """Show the explorer on ResNet-50 at half of its MACs, a group chosen."""
    analysis = op.analyze(filled(FOLDER / "resnet50.ts.onnx.xz"))
    server = Server(plan_site(Explorer(op.score(analysis, "l2"), folder / "plan.json", name="resnet50.onnx")))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        shown = browser.open(server.url, width=WIDTH, height=HEIGHT)
        shown.tab.locator("#rows li").first.wait_for()
        shown.tab.locator("#what").select_option(label="MACs")
        shown.tab.locator("#goal").evaluate("e => { e.value = 50; e.dispatchEvent(new Event('input')); }")
        shown.tab.locator("#goal").evaluate("e => e.dispatchEvent(new Event('change'))")
        shown.tab.wait_for_timeout(4000)
        shown.tab.locator("#rows li button").first.click()
        shown.tab.wait_for_timeout(500)
        save(shown.tab.screenshot(), name)
        browser.close(shown)
    finally:
        server.stop()
        thread.join(20)


def _report(folder: Path) -> Path:
    done = op.prune(MODEL, target="macs=0.5")
    done.save(folder / "small.onnx")
    save_plan(done.plan, folder / "plan.json")
    (folder / "model.onnx").write_bytes(MODEL.read_bytes())
    sources = [folder / n for n in ("model.onnx", "small.onnx", "plan.json")]
    measuring = MeasurementSettings(data=op.load_data("digits:test"), runs=30)
    write_report(sources, folder / "report.html", measuring=measuring, title="digits_cnn.onnx at half of its MACs")
    return folder / "report.html"


def _part(browser: Browser, page: Path, name: str, heading: str | None) -> None:
    shown = browser.open(page, width=WIDTH, height=HEIGHT)
    shown.tab.wait_for_timeout(500)
    if heading is not None:
        shown.tab.locator(f"#{heading}").evaluate("e => scrollTo(0, e.getBoundingClientRect().top + scrollY - 24)")
        shown.tab.wait_for_timeout(300)
    save(shown.tab.screenshot(), name)
    browser.close(shown)


def report_headline(browser: Browser, folder: Path, name: str) -> None:
    """Show the first screen of a report."""
    _part(browser, _report(folder), name, None)


def report_layers(browser: Browser, folder: Path, name: str) -> None:
    """Show the layers of a report."""
    _part(browser, _report(folder), name, "layers")


def report_graph(browser: Browser, folder: Path, name: str) -> None:
    """Show the graph and the proof of a report."""
    _part(browser, _report(folder), name, "graph")


def frontier(browser: Browser, folder: Path, name: str) -> None:
    """Show the page of a frontier."""
    data = op.load_data("digits:train", images=400)
    noise = np.random.default_rng(0).standard_normal(data.x.shape)
    x = np.clip(data.x + 0.3 * noise, 0, 1).astype(np.float32)  # so that there is something to lose
    op.frontier(
        MODEL, data=(x, data.y), folder=folder / "frontier", points=5, least=0.08, criteria=("obs", "l2"),
        constraints=op.Constraints(round_to=1),
    )  # fmt: skip
    write_report([folder / "frontier"], folder / "frontier.html")
    _part(browser, folder / "frontier.html", name, "frontier")


def report_run(browser: Browser, folder: Path, name: str) -> None:
    """Show the first screen of the report of a recipe's run."""
    run_recipe(load_recipe("recover"), folder / "run")
    write_report([folder / "run"], folder / "run.html")
    _part(browser, folder / "run.html", name, None)


def samples(browser: Browser, folder: Path, name: str) -> None:
    """Show samples of the data that ships, with labels and boxes."""
    sheet = Image.new("RGB", (1000, 320), "white")
    pen = ImageDraw.Draw(sheet)
    digits = op.load_data("digits:test")
    for i, (x, y) in enumerate(zip(digits.x[:8], digits.y[:8], strict=True)):
        left, top = 10 + 90 * (i % 4), 30 + 140 * (i // 4)
        tile = Image.fromarray((255 * x[0] / digits.x.max()).astype("uint8"))
        sheet.paste(tile.resize((80, 80), Image.Resampling.NEAREST), (left, top))
        pen.text((left + 36, top + 86), str(y), fill="black", font_size=16)
    for i in range(2):
        (image, boxes, classes), scale, left = digit_scene("test", i), 3, 400 + 300 * i
        tile = Image.fromarray(image)
        sheet.paste(tile.resize((96 * scale, 96 * scale), Image.Resampling.NEAREST), (left, 16))
        for box, label in zip(boxes * scale, classes, strict=True):
            x1, y1, x2, y2 = (int(v) + o for v, o in zip(box, (left, 16, left, 16), strict=True))
            pen.rectangle((x1, y1, x2, y2), outline="#0b63c5", width=2)
            pen.text((x1 + 3, y1 + 1), str(label), fill="#0b63c5", font_size=13)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    save(out.getvalue(), name)


def tutorial_curves(browser: Browser, folder: Path, name: str) -> None:
    """Draw the curves of the tutorial as its command does."""
    scores = op.score(op.analyze(op.load(MODEL)), "l2")
    curves = op.sensitivity(scores, "digits:test", ratios=(0.2, 0.4, 0.6, 0.8))
    plot_curves(curves, OUT / f"{name}.svg", name="digits_cnn.onnx")
    click.echo(f"docs/pictures/{name}.svg: {(OUT / f'{name}.svg').stat().st_size / 1000:.0f} kB")


PICTURES: dict[str, Callable[[Browser, Path, str], Any]] = {
    "explorer": explorer, "report-headline": report_headline, "report-layers": report_layers,
    "report-graph": report_graph, "report-run": report_run, "frontier": frontier, "samples": samples,
    "tutorial-curves": tutorial_curves,
}  # fmt: skip


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(PICTURES)))
def main(names: tuple[str, ...]) -> None:
    """Make the pictures that are named; without names all."""
    with Browser() as browser:
        for name in names or PICTURES:
            with tempfile.TemporaryDirectory() as folder:
                PICTURES[name](browser, Path(folder), name)


if __name__ == "__main__":
    main()
