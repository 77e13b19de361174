"""Prune PP-OCRv4 without training, and measure the words it still reads and the time it takes.

    apt-get install fonts-dejavu-core fonts-dejavu-extra fonts-liberation
    python tools/bench_ocr.py [--model rec|det] [--macs 0.8,0.7,0.6,0.5,0.7*0.714]

A row is what this command does; the scores of one model serve all shares, and their time counts in each:

    onnxprune prune rec.onnx -o small.onnx --target macs=0.5 --data lines/ --preprocess paddleocr-rec

The models are those of the wheel rapidocr-onnxruntime, downloaded by pip to .zoo/. Lines and pages are rendered
(tools/model_makers/rendered_text.py): words, numbers, dates and codes in Debian's fonts with noise, blur and rotation.
The pruner gets calibration images without labels. No word and no line of the test occurs in them. Height is 48, widths
are mixed, and dynamic dimensions stay dynamic.

Models are read with onnxruntime and decoded here, without onnxprune. Figures go to JSON, tables to Markdown, a picture
to --pictures.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnxruntime
from model_makers.rendered_text import HEIGHT, Line, Page, fonts, lines, pages
from PIL import Image, ImageDraw, ImageFont
from wild import ROOT, download, extract

import onnxprune as op
from onnxprune.execution.data import preset
from onnxprune.pipeline.compensation_choice import with_chosen_remaining
from onnxprune.recovery.recover import recover

PACKAGE = "rapidocr-onnxruntime"
FILES = {
    "rec": "rapidocr_onnxruntime__ch_PP-OCRv4_rec_infer.onnx",
    "det": "rapidocr_onnxruntime__ch_PP-OCRv4_det_infer.onnx",
}
PRESETS = {"rec": "paddleocr-rec", "det": "paddleocr-det"}
SHAPES = {"rec": (1, 3, 48, 320), "det": (1, 3, 320, 320)}  # of the MACs that are counted
MULTIPLE = {"rec": 8, "det": 32}  # widths, and sides of pages, are multiples of these
PAGES = ((320, 320), (256, 416), (416, 288))  # sizes of pages
THRESHOLD = 0.3  # of the detector's probability map, as in PaddleOCR
TIMED = 100  # images whose latency is measured
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
Row = dict[str, Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pruned:
    """Pruned model, with the time it took, scoring included, and its share of the MACs."""

    name: str
    path: Path
    seconds: float
    cpu_seconds: float
    macs: float


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of a model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def alphabet(path: Path) -> list[str]:
    """Return the recognizer's characters by class: blank, those of the metadata, space."""
    found = session(path, 1).get_modelmeta().custom_metadata_map["character"]
    return ["", *found.split("\n"), " "]


def line_input(line: Line) -> Floats:
    """Return a line as PaddleOCR feeds it, [3, 48, width]."""
    width = -(-line.pixels.shape[1] // MULTIPLE["rec"]) * MULTIPLE["rec"]
    out = np.full((HEIGHT, width, 3), 127, np.uint8)
    out[:, : line.pixels.shape[1]] = line.pixels
    return out.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1


def page_input(page: Page) -> Floats:
    """Return a page as PaddleOCR feeds it, [3, h, w]."""
    return np.ascontiguousarray(((page.pixels / np.float32(255) - MEAN) / STD).transpose(2, 0, 1), np.float32)


def outputs(model: onnxruntime.InferenceSession, inputs: Sequence[Floats]) -> list[Floats]:
    """Return the first output of every input; inputs of one size are run together."""
    found: list[Floats | None] = [None] * len(inputs)
    name = model.get_inputs()[0].name
    order = sorted(range(len(inputs)), key=lambda i: inputs[i].shape)
    for _, same in groupby(order, key=lambda i: inputs[i].shape):
        members = list(same)
        for start in range(0, len(members), 16):
            part = members[start : start + 16]
            for i, value in zip(part, model.run(None, {name: np.stack([inputs[i] for i in part])})[0], strict=True):
                found[i] = value
    return [f for f in found if f is not None]


def read(probabilities: Floats, characters: Sequence[str]) -> str:
    """Return the text of the best class at every position: repetitions and blanks are dropped."""
    best = probabilities.argmax(1)
    kept = best[(best != 0) & np.concatenate([[True], best[1:] != best[:-1]])]
    return "".join(characters[i] for i in kept).strip()


def recognition(path: Path, test: Sequence[Line], characters: Sequence[str], threads: int) -> Row:
    """Return the share of lines that a recognizer reads exactly, and that of the characters, in per cent."""
    model = session(path, threads)
    inputs = [line_input(line) for line in test]
    texts = [read(p, characters) for p in outputs(model, inputs)]
    wrong = sum(distance(a, line.text) for a, line in zip(texts, test, strict=True))
    return {
        "words": 100 * sum(a == line.text for a, line in zip(texts, test, strict=True)) / len(test),
        "characters": 100 * (1 - wrong / sum(len(line.text) for line in test)),
        "texts": texts,
    }


def distance(a: str, b: str) -> int:
    """Return the number of insertions, deletions and replacements between two texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def detection(path: Path, test: Sequence[Page], reference: Sequence[Floats] | None, threads: int) -> Row:
    """Return the overlap (IoU, in per cent) of the text regions with the rendered ones and with the original's."""
    maps = [m[0] for m in outputs(session(path, threads), [page_input(p) for p in test])]
    regions = [m > THRESHOLD for m in maps]

    def overlap(others: Sequence[npt.NDArray[np.bool_]]) -> float:
        both = sum(int((a & b).sum()) for a, b in zip(regions, others, strict=True))
        return 100 * both / max(1, sum(int((a | b).sum()) for a, b in zip(regions, others, strict=True)))

    row: Row = {"truth": overlap([p.mask for p in test]), "maps": maps}
    own = [boxes_of(r) for r in regions]
    drawn = [boxes_of(p.mask) for p in test]
    row["f1"] = 100 * box_f1(own, drawn)
    if reference is not None:
        row["agreement"] = overlap([m > THRESHOLD for m in reference])
        row["boxes"] = 100 * box_f1(own, [boxes_of(m > THRESHOLD) for m in reference])
    return row


def boxes_of(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the bounding boxes (x1, y1, x2, y2) of connected regions of at least 30 pixels."""
    from scipy import ndimage

    labels, _ = ndimage.label(region)
    found = [s for i, s in enumerate(ndimage.find_objects(labels), 1) if (labels[s] == i).sum() >= 30]
    return np.array([[s[1].start, s[0].start, s[1].stop, s[0].stop] for s in found], np.int64).reshape(-1, 4)


def box_f1(ours: Sequence[npt.NDArray[np.int64]], theirs: Sequence[npt.NDArray[np.int64]]) -> float:
    """Return the F1 score of boxes; two match if their IoU is at least 0.5, each at most once."""
    matched = 0
    for a, b in zip(ours, theirs, strict=True):
        if not len(a) or not len(b):
            continue
        low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
        shared = (high - low).clip(0).prod(-1)
        areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)]
        iou = shared / (areas[0][:, None] + areas[1] - shared)
        while iou.size and iou.max() >= 0.5:
            i, j = np.unravel_index(iou.argmax(), iou.shape)
            matched, iou[i], iou[:, j] = matched + 1, 0, 0
    return 2 * matched / max(1, sum(map(len, ours)) + sum(map(len, theirs)))


def latencies(paths: Sequence[Path], inputs: Sequence[Floats], threads: int) -> list[float]:
    """Return milliseconds per image of every model: images one by one, models in turn, the best of three rounds."""
    models = [session(p, threads) for p in paths]
    times = np.zeros((3, len(models), len(inputs)))
    for turn in range(len(times)):
        for i, x in enumerate(inputs):
            for k, model in enumerate(models):
                start = time.perf_counter()
                model.run(None, {model.get_inputs()[0].name: x[None]})
                times[turn, k, i] = time.perf_counter() - start
    return [float(t) for t in times.min(0).mean(1) * 1000]


class Pruner:
    """Prunes one model to several shares of its MACs. Equal work is done once, and its time counts in each result."""

    def __init__(self, folder: Path, samples: op.Calibration, shape: tuple[int, ...]) -> None:
        self.folder, self.samples, self.shape = folder, samples, shape
        self._scores: dict[Path, tuple[op.Analysis, op.Scores, float, float]] = {}
        self._made: dict[str, Pruned] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, model: Path, name: str, steps: Sequence[str]) -> Pruned:
        """Prune, recover and save in one or several steps, each on the result of the last."""
        done = Pruned(name, model, 0.0, 0.0, 1.0)
        for i, share in enumerate(steps):
            part = f"{name}-{'*'.join(steps[: i + 1])}"
            if part not in self._made:
                self._made[part] = self._step(done, part, float(share))
            done = self._made[part]
        return done

    def _step(self, before: Pruned, name: str, share: float) -> Pruned:
        analysis, scores, *spent = self._scored(before.path)
        start, began = time.perf_counter(), time.process_time()
        scores = with_chosen_remaining(scores, lambda found: op.plan(found, op.Target(macs=share)), self.samples)
        plan = op.plan(scores, op.Target(macs=share))
        cut = op.compile_plan(analysis.source, plan, analysis=analysis)
        better = recover(analysis.source, cut.model, plan, self.samples, analysis=analysis)
        out = better.save(self.folder / f"{name}.onnx")
        seconds, cpu = time.perf_counter() - start, time.process_time() - began
        click.echo(f"{name}: remaining={plan.criterion['remaining']}, {better.summary}; "
                   f"scored in {spent[0]:.0f} s ({spent[1]:.0f} s CPU), "
                   f"the rest in {seconds:.0f} s ({cpu:.0f} s CPU)", err=True)  # fmt: skip
        return Pruned(
            name, out, before.seconds + spent[0] + seconds, before.cpu_seconds + spent[1] + cpu,
            before.macs * cut.after.macs / cut.before.macs,
        )  # fmt: skip

    def _scored(self, path: Path) -> tuple[op.Analysis, op.Scores, float, float]:
        if path not in self._scores:
            start, began = time.perf_counter(), time.process_time()
            analysis = op.analyze(path, shapes={"x": self.shape})
            scores = op.score(analysis, "obs", data=self.samples)
            self._scores[path] = analysis, scores, time.perf_counter() - start, time.process_time() - began
        return self._scores[path]


def written(images: Sequence[Line | Page], folder: Path) -> Path:
    """Write images (RGB) to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for i, image in enumerate(images):
        Image.fromarray(np.ascontiguousarray(image.pixels[..., ::-1])).save(folder / f"{i:04d}.png")
    return folder


def machine() -> Row:
    """Return versions and the processor."""
    cpu = next((s.split(":")[1].strip() for s in _cpuinfo() if s.startswith("model name")), platform.processor())
    found = {p: version(p) for p in ("onnxprune", "onnxruntime", "numpy", "pillow")}
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **found}


def _cpuinfo() -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    return iter(path.read_text(encoding="utf-8").splitlines() if path.exists() else [])


def line_picture(test: Sequence[Line], read_by: Sequence[tuple[str, Sequence[str]]], path: Path, rows: int = 8) -> None:
    """Draw lines of the test with the texts that each model read, wrong ones in red."""
    font = ImageFont.truetype(str(next(p for p in fonts() if p.name == "DejaVuSans.ttf")), 15)
    chosen = [i for i, line in enumerate(test) if line.pixels.shape[1] <= 300]
    wrong = [i for i in chosen if any(t[i] != test[i].text for _, t in read_by[1:])][:2]
    chosen = sorted({*wrong, *[i for i in chosen if i not in wrong][: rows - len(wrong)]})
    canvas = Image.new("RGB", (320 + 190 * len(read_by), 28 + rows * (HEIGHT + 6)), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (name, _) in enumerate(read_by):
        draw.text((320 + 190 * k, 6), name, "black", font)
    for row, i in enumerate(chosen):
        y = 28 + row * (HEIGHT + 6)
        canvas.paste(Image.fromarray(np.ascontiguousarray(test[i].pixels[..., ::-1])), (6, y))
        for k, (_, texts) in enumerate(read_by):
            draw.text((320 + 190 * k, y + 14), texts[i], "black" if texts[i] == test[i].text else "crimson", font)
    canvas.quantize(128).save(path, optimize=True)


def page_picture(test: Sequence[Page], maps: Sequence[tuple[str, Sequence[Floats]]], path: Path) -> None:
    """Draw one page with the text boxes of each model."""
    font = ImageFont.truetype(str(next(p for p in fonts() if p.name == "DejaVuSans.ttf")), 15)
    page = Image.fromarray(np.ascontiguousarray(test[0].pixels[..., ::-1]))
    canvas = Image.new("RGB", ((page.width + 8) * len(maps), page.height + 26), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (name, own) in enumerate(maps):
        left = k * (page.width + 8)
        canvas.paste(page, (left, 26))
        draw.text((left + 4, 4), name, "black", font)
        for x1, y1, x2, y2 in boxes_of(own[0] > THRESHOLD).tolist():
            draw.rectangle((left + x1, 26 + y1, left + x2, 26 + y2), outline="red", width=2)
    canvas.quantize(64).save(path, optimize=True)


def table(kind: str, rows: Sequence[Row]) -> str:
    """Return the figures as Markdown."""
    columns = {
        "rec": (("words read", "words", "{:.2f} %"), ("characters", "characters", "{:.2f} %")),
        "det": (
            ("IoU with the truth", "truth", "{:.2f} %"), ("F1 of boxes", "f1", "{:.2f} %"),
            ("IoU with the original", "agreement", "{:.2f} %"), ("boxes as the original", "boxes", "{:.2f} %"),
        ),
    }[kind]  # fmt: skip
    head = ["model", "MACs", *(c[0] for c in columns), "ms per image", "pruned in"]
    lines_ = [head, ["---"] * len(head)]
    for row in rows:
        cells = [form.format(row[key]) if key in row else "-" for _, key, form in columns]
        cost = f"{row['seconds']:.0f} s ({row['cpu_seconds']:.0f} s CPU)" if "seconds" in row else "-"
        lines_.append([row["name"], f"{row['macs']:.3f}", *cells, f"{row['ms']:.2f}", cost])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines_) + "\n"


@click.command(help=__doc__)
@click.option("--model", "kind", type=click.Choice(["rec", "det"]), default="rec", show_default=True)
@click.option("--macs", "shares", default="0.8,0.7,0.6,0.5,0.7*0.714", show_default=True, help="0.7*0.714: two steps.")
@click.option("--folder", default=ROOT / ".zoo", show_default=".zoo", type=click.Path(path_type=Path))
@click.option("--calibration", default=300, show_default=True, help="Images without labels.")
@click.option("--test", "count", default=800, show_default=True, help="Lines, or ten times the pages, of the test.")
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures.")
@click.option("--page", "page_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the table.")
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Folder of the picture.")
@click.option("--reuse", is_flag=True, help="Do not prune again where a pruned model is there; its time is not known.")
def main(
    kind: str, shares: str, folder: Path, calibration: int, count: int, threads: int,
    json_file: Path | None, page_file: Path | None, pictures: Path | None, reuse: bool,
) -> None:  # fmt: skip
    """Run one benchmark."""
    original = folder / "wild" / FILES[kind]
    if not original.exists():
        download([PACKAGE], folder / "wheels")
        extract(folder / "wheels", folder / "wild")
    work = folder / "ocr"
    test: Sequence[Any]
    if kind == "rec":
        data, test = written(lines("calibration", calibration), work / "lines"), lines("test", count)
        inputs = [line_input(line) for line in test]
    else:
        data, test = (
            written(pages("calibration", calibration, PAGES), work / "pages"),
            pages("test", count // 10, PAGES),
        )
        inputs = [page_input(page) for page in test]
    samples = op.Calibration(op.load_data(data), preset(PRESETS[kind]), threads=threads)
    prune, made = Pruner(work, samples, SHAPES[kind]), list[Pruned]()
    for share in shares.split(","):
        there = work / f"{kind}-{share}.onnx"
        if reuse and there.exists():
            made.append(Pruned(there.stem, there, 0.0, 0.0, float(np.prod([float(p) for p in share.split("*")]))))
        else:
            made.append(prune(original, kind, share.split("*")))
    rows: list[Row] = [{"name": "original", "macs": 1.0}]
    for m in made:
        cost = {"seconds": m.seconds, "cpu_seconds": m.cpu_seconds} if m.seconds else {}
        rows.append({"name": m.name, "macs": m.macs, **cost})
    paths = [original, *(m.path for m in made)]
    details = []
    for row, path in zip(rows, paths, strict=True):
        if kind == "rec":
            found = recognition(path, test, alphabet(original), threads)
        else:
            found = detection(path, test, details[0] if details else None, threads)
        details.append(found.pop("texts" if kind == "rec" else "maps"))
        row |= found
        click.echo(json.dumps(row))
    for row, ms in zip(rows, latencies(paths, inputs[:TIMED], threads), strict=True):
        row["ms"] = ms
    click.echo(table(kind, rows))
    if json_file is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report = {
            "machine": machine(),
            "peak_mib": peak,
            "calibration": calibration,
            "test": len(test),
            "threads": threads,
            "rows": rows,
        }
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if page_file is not None:
        page_file.write_text(table(kind, rows), encoding="utf-8")
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        named = [(row["name"], detail) for row, detail in zip(rows, details, strict=True)]
        if kind == "rec":
            line_picture(test, named, pictures / "ocr_lines.png")
        else:
            page_picture(test, [named[0], named[-1]], pictures / "ocr_page.png")


if __name__ == "__main__":
    main()
