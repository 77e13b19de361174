"""Prune detectors of digit scenes, without and with a short training, and measure their mean average precision.

    python tools/bench_detect.py                                    # models/digits_detector.onnx
    python tools/bench_detect.py --yolo 8                           # also YOLOv8n, trained for 8 epochs first

The scenes are those of `--data digit-scenes:train` (calibration and distillation, no labels used) and
`digit-scenes:test`. YOLOv8n starts from random weights (`yolov8n.yaml`) and is trained on the same scenes by
Ultralytics, which is no dependency of onnxprune: install it beside onnxprune in an environment of the benchmark's own,

    python -m venv --system-site-packages .zoo/venv && .zoo/venv/bin/pip install ultralytics

Every row is one command, which is printed. Figures go to JSON, the table to Markdown, a picture to --pictures.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_ocr import latencies, machine
from PIL import Image, ImageDraw
from wild import ROOT

import onnxprune as op
from onnxprune.execution.data.digit_scenes import NAMES, SIZE, digit_scene

SHIPPED = ROOT / "models" / "digits_detector.onnx"
TRAIN_SCENES, VAL_SCENES = 3200, 100  # of Ultralytics' training
TIMED = 100  # scenes whose latency is measured
Row = dict[str, Any]


def run(arguments: Sequence[str]) -> tuple[dict[str, Any], Row]:
    """Run an onnxprune command; return its JSON, and seconds, CPU seconds and MiB of memory it took."""
    click.echo("$ " + re.sub(re.escape(str(ROOT)) + "/?", "", " ".join(["onnxprune", *arguments])))
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxprune", *arguments, "--json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command ended with {os.waitstatus_to_exitcode(status)}")
    cost = {
        "seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }  # fmt: skip
    return json.loads(text), cost


def precision(model: Path, test: int) -> Row:
    """Return the mean average precision (50:95 and 50) on the test scenes, in per cent."""
    found = op.evaluate(model, op.load_data("digit-scenes:test", images=test), task="detect")
    return {"map": 100 * found.metrics["map"].value, "map50": 100 * found.metrics["map50"].value}


def write_scenes(folder: Path) -> Path:
    """Write the scenes in Ultralytics' form; return the description of the data set."""
    for part, count in (("train", TRAIN_SCENES), ("test", VAL_SCENES)):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = folder / "images" / part / f"{i:05d}.png"
            if image.exists():
                continue
            pixels, boxes, classes = digit_scene(part, i)
            h, w = pixels.shape[:2]
            rows = [
                f"{k} {(x1 + x2) / 2 / w:.6f} {(y1 + y2) / 2 / h:.6f} {(x2 - x1) / w:.6f} {(y2 - y1) / h:.6f}\n"
                for (x1, y1, x2, y2), k in zip(boxes.tolist(), classes.tolist(), strict=True)
            ]
            (folder / "labels" / part / f"{i:05d}.txt").write_text("".join(rows), encoding="utf-8")
            Image.fromarray(pixels).save(image)
    described = folder / "scenes.yaml"
    described.write_text(
        f"path: {folder}\ntrain: images/train\nval: images/test\nnames: {dict(enumerate(NAMES))}\n", encoding="utf-8"
    )
    return described


def trained_yolo(epochs: int, folder: Path, threads: int) -> tuple[Path, Row]:
    """Train YOLOv8n from random weights on the scenes and export it with dynamic sizes; return file and costs."""
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(folder)}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import torch
        import ultralytics
    except ImportError as err:
        raise SystemExit(f"--yolo needs Ultralytics ({err}); see the head of this file") from err
    torch.set_num_threads(threads)
    data, start, cpu = write_scenes(folder / "scenes"), time.perf_counter(), time.process_time()
    model = ultralytics.YOLO("yolov8n.yaml")
    # Digits must not be mirrored; four scenes in one would be smaller than any of the test.
    model.train(
        data=str(data), imgsz=SIZE, epochs=epochs, batch=32, workers=0, device="cpu", optimizer="AdamW", lr0=0.002,
        lrf=0.05, warmup_epochs=0.5, mosaic=0.0, fliplr=0.0, scale=0.2, amp=False, plots=False, val=False, seed=0,
        project=str(folder), name="run", exist_ok=True, verbose=False,
    )  # fmt: skip
    cost = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    exported = Path(model.export(format="onnx", dynamic=True, opset=17, simplify=False, imgsz=SIZE))
    target = folder / "yolov8n.onnx"
    exported.replace(target)
    return target, {"epochs": epochs, "ultralytics": ultralytics.__version__, **cost}


def benchmark(model: Path, shares: Sequence[str], work: Path, options: dict[str, int]) -> list[Row]:
    """Prune a detector at every share, without recovery, with it, and with training after it."""
    rows: list[Row] = []

    def row(name: str, macs: float, file: Path, cost: Row) -> None:
        rows.append({"name": name, "macs": macs, "file": file, **precision(file, options["test"]), **cost})
        click.echo(json.dumps({k: v for k, v in rows[-1].items() if k != "file"}))

    row(model.stem, 1.0, model, {})
    work.mkdir(parents=True, exist_ok=True)
    threads = ["--threads", str(options["threads"])]
    data = ["--data", "digit-scenes:train", "--images", str(options["calibration"])]
    scenes = ["--data", "digit-scenes:train", "--images", str(options["scenes"])]
    # A recovered model is near its original: a low rate, and the last epoch whatever it is.
    training = [
        "--epochs", str(options["epochs"]), "--optimizer", "adamw", "--lr", "0.0003", "--batch", "32", "--unlabelled",
        "--keep", "last", "--restart",
    ]  # fmt: skip
    for share in shares:
        small, plan, bare, tuned = (
            work / f"{model.stem}-{share}{end}" for end in (".onnx", ".json", "-cut.onnx", "-retrained.onnx")
        )
        target = ["--target", f"macs={share}"]
        found, cost = run(["prune", str(model), "-o", str(small), "--plan", str(plan), *target, *data, *threads])
        macs = found["after"]["macs"] / found["before"]["macs"]
        run(["apply", str(model), str(plan), "-o", str(bare)])
        row(f"{share} as cut", macs, bare, {})
        row(f"{share} recovered", macs, small, cost)
        if options["epochs"]:
            _, cost = run(
                ["retrain", str(small), "-o", str(tuned), "--teacher", str(model), *scenes, *training, *threads]
            )
            row(f"{share} retrained", macs, tuned, cost)
    inputs = [digit_scene("test", i)[0].transpose(2, 0, 1).astype(np.float32) / 255 for i in range(TIMED)]
    timed = [r for r in rows if r is rows[0] or "recovered" in r["name"]]
    for r, ms in zip(timed, latencies([r["file"] for r in timed], inputs, options["threads"]), strict=True):
        r["ms"] = ms
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the figures as Markdown."""
    head = ["model", "MACs", "mAP 50:95", "mAP 50", "ms per scene", "seconds"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        ms = f"{row['ms']:.2f}" if "ms" in row else "-"
        spent = f"{row['seconds']:.0f}" if "seconds" in row else "-"
        lines.append([row["name"], f"{row['macs']:.3f}", f"{row['map']:.2f}", f"{row['map50']:.2f}", ms, spent])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def picture(models: Sequence[tuple[str, Path]], path: Path, scenes: int = 5, zoom: int = 2) -> None:
    """Draw the detections of several models on the same test scenes, one model in each row."""
    side = SIZE * zoom
    canvas = Image.new("RGB", (scenes * (side + 4), len(models) * (side + 22)), "white")
    draw = ImageDraw.Draw(canvas)
    for row, (name, file) in enumerate(models):
        top = row * (side + 22)
        draw.text((4, top + 4), name, "black")
        session = op.load(file)
        for column in range(scenes):
            pixels, _, _ = digit_scene("test", column + 3)
            left = column * (side + 4)
            canvas.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top + 20))
            for (x1, y1, x2, y2), label, score in detections(session, pixels):
                corner = (left + x1 * zoom, top + 20 + y1 * zoom)
                draw.rectangle((*corner, left + x2 * zoom, top + 20 + y2 * zoom), outline="red", width=2)
                draw.text((corner[0] + 3, corner[1] + 1), f"{label} {score:.2f}", "red")
    canvas.quantize(64).save(path, optimize=True)


def detections(model: op.Model, pixels: np.ndarray[Any, Any]) -> list[tuple[list[float], int, float]]:
    """Return boxes, classes and scores of at least 0.4 of one scene, overlaps suppressed."""
    from onnxprune.execution.sessions import Session

    session = Session(model, threads=1)
    out = session.run({session.inputs[0]: pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255})[0][0].T
    scores, labels = out[:, 4:].max(1), out[:, 4:].argmax(1)
    low, high = out[:, :2] - out[:, 2:4] / 2, out[:, :2] + out[:, 2:4] / 2
    boxes, kept = np.concatenate([low, high], 1), list[int]()
    for i in np.argsort(-scores):
        if scores[i] < 0.4:
            break
        shared = (
            (np.minimum(high[i], high[kept]) - np.maximum(low[i], low[kept])).clip(0).prod(1) if kept else np.zeros(0)
        )
        areas = (high[kept] - low[kept]).prod(1) + (high[i] - low[i]).prod() if kept else np.zeros(0)
        if not (shared > 0.5 * (areas - shared)).any():
            kept.append(int(i))
    return [(boxes[i].tolist(), int(labels[i]), float(scores[i])) for i in kept]


@click.command(help=__doc__)
@click.option("--macs", "shares", default="0.8,0.7,0.6,0.5", show_default=True)
@click.option("--folder", default=ROOT / ".zoo", show_default=".zoo", type=click.Path(path_type=Path))
@click.option("--yolo", default=0, help="Train YOLOv8n for this many epochs and prune it as well.")
@click.option("--yolo-model", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Or take this export.")
@click.option("--calibration", default=500, show_default=True, help="Scenes without labels.")
@click.option("--test", default=500, show_default=True, help="Scenes of the test.")
@click.option("--epochs", default=3, show_default=True, help="Of the training by distillation; 0: none.")
@click.option("--scenes", default=4000, show_default=True, help="Scenes of that training, without labels.")
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures.")
@click.option("--page", "page_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables.")
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Folder of the picture.")
def main(
    shares: str, folder: Path, yolo: int, yolo_model: Path | None, json_file: Path | None, page_file: Path | None,
    pictures: Path | None, **options: int,
) -> None:  # fmt: skip
    """Run the benchmark."""
    work = folder / "detect"
    models, training = [SHIPPED], {}
    if yolo:
        yolo_model, training = trained_yolo(yolo, work, options["threads"])
    if yolo_model is not None:
        models.append(yolo_model)
    report: Row = {"machine": machine(), **options, "training": training, "rows": {}}
    pages = []
    for model in models:
        rows = benchmark(model, shares.split(","), work, options)
        pages.append(table(rows))
        click.echo(pages[-1])
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            shown = [
                (f"{r['name']}: {r['map']:.1f} % mAP", r["file"]) for r in rows if "0.6" in r["name"] or r is rows[0]
            ]
            picture(shown[:3], pictures / f"detect_{model.stem}.png")
        report["rows"][model.stem] = [{k: v for k, v in r.items() if k != "file"} for r in rows]
        if json_file is not None:
            json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if page_file is not None:
            page_file.write_text("\n".join(pages), encoding="utf-8")


if __name__ == "__main__":
    main()
