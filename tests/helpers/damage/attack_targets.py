"""Commands to attack, with small valid files of every format that they read."""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from command_line import CommandLine
from onnx import numpy_helper
from op_cases import CASES
from op_cases.case import model_of

import onnxprune as op
from damage.attacks import Target
from damage.mutations import ARRAYS, BYTES, CHECKPOINT, JSON, MODEL, NPY, TOML, YAML

SHIPPED = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"
SMALL = frozenset({"s.onnx", "s.onnx.data"})
NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,1,8,8] x) => (float[N,10] y) {
  a = Conv <pads = [1,1,1,1], strides = [1,1], dilations = [1,1], group = 1> (x, w0, b0)
  b = Relu (a)
  p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (b)
  c = Conv <pads = [1,1,1,1], group = 2> (p, w1)
  d = ConvTranspose <strides = [2,2], group = 1> (c, w2)
  e = AveragePool <kernel_shape = [2,2], strides = [2,2], count_include_pad = 1> (d)
  f = BatchNormalization <epsilon = 0.001> (e, s, t, u, v)
  sh = Shape (f)
  i0 = Constant <value_int = 0> ()
  n = Gather <axis = 0> (sh, i0)
  n1 = Unsqueeze (n, ax)
  to = Concat <axis = 0> (n1, rest)
  h = Reshape <allowzero = 0> (f, to)
  y = Gemm <alpha = 1.0, transB = 1> (h, w3, b3)
}
"""
SHAPES = {
    "w0": (8, 1, 3, 3), "b0": (8,), "w1": (8, 4, 3, 3), "w2": (8, 6, 2, 2), "s": (6,), "t": (6,), "u": (6,), "v": (6,),
    "w3": (10, 96), "b3": (10,),
}  # fmt: skip


RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,1,8,8] x) => (float[N,10] y) {
  a = Conv <pads = [1,1,1,1]> (x, w0)
  b = Relu (a)
  c = Conv <pads = [1,1,1,1]> (b, w1)
  d = Relu (c)
  e = Conv <pads = [1,1,1,1]> (d, w2)
  f = Add (b, e)
  h = Conv <pads = [1,1,1,1]> (f, w4)
  k = Add (h, f)
  p = GlobalAveragePool (k)
  q = Flatten (p)
  y = Gemm <transB = 1> (q, w3)
}
"""
BRANCHES = {"w0": (8, 1, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 3, 3), "w3": (10, 8), "w4": (8, 8, 3, 3)}
SEGMENTER = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,H,W] x) => (float[N,4,H,W] y) {
  a = Conv <pads = [1,1,1,1]> (x, w0)
  b = Relu (a)
  y = Conv (b, w1)
}
"""
LAYERS = {"w0": (8, 3, 3, 3), "w1": (4, 8, 1, 1)}


def network() -> bytes:
    """Return a small classifier with operators of many attributes."""
    return _model(NETWORK)


def residual() -> bytes:
    """Return a classifier with two residual blocks."""
    return _model(RESIDUAL)


def segmenter() -> bytes:
    """Return a model with a class for each pixel."""
    return _model(SEGMENTER)


@cache
def _model(text: str) -> bytes:
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {NETWORK: SHAPES, RESIDUAL: BRANCHES, SEGMENTER: LAYERS}[text].items():
        proto.graph.initializer.append(numpy_helper.from_array(np.abs(rng.standard_normal(shape)).astype("f"), name))
    for name, values in (("ax", [0]), ("rest", [96])) if text == NETWORK else ():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    for i, node in enumerate(proto.graph.node):
        node.name = f"node{i}"
    return proto.SerializeToString()


def _npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def samples() -> bytes:
    rng = np.random.default_rng(1)
    return _npz(x=rng.standard_normal((140, 1, 8, 8)).astype("f"), y=np.arange(140) % 10)


def images() -> dict[str, bytes]:
    from PIL import Image

    found = {}
    for i, kind in enumerate(("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF")):
        out = io.BytesIO()
        Image.fromarray(np.full((12, 11), 30 * i, np.uint8)).save(out, kind)
        found[f"imgs/{i}.{kind.lower()}"] = out.getvalue()
    return found


class _Made:
    """Files that commands write, as starting points: made once for each process."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="attack-made-"))
        (self.folder / "m.onnx").write_bytes(network())
        (self.folder / "res.onnx").write_bytes(residual())
        (self.folder / "x.npz").write_bytes(samples())

    def file(self, name: str, *words: str) -> bytes:
        path = self.folder / name
        if not path.exists():
            CommandLine(*(w.replace("{}", str(self.folder)) for w in words)).ok()
        return path.read_bytes()

    def printed(self, *words: str) -> bytes:
        """Return the document that a command prints."""
        return CommandLine(*words, "--json").out().encode()

    def tree(self, name: str, *words: str) -> dict[str, bytes]:
        path = self.folder / name
        if not path.exists():
            CommandLine(*(w.replace("{}", str(self.folder)) for w in words)).ok()
        return {p.relative_to(self.folder).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def targets(*, training: bool = True) -> list[Target]:
    """Return all targets.

    Args:
        training: With the ones that load PyTorch.
    """
    made = _Made()
    here = os.getcwd()
    os.chdir(made.folder)  # names of models in recorded files are relative
    try:
        found = [*_models(), *_documents(made), *_blocks(made), *_printed(made), *_data(), *_folders(made)]
        if training:
            found += _training(made)
    finally:
        os.chdir(here)
    return found


def _models() -> Iterator[Target]:
    prune = ["prune", "{}/m.onnx", "--ratio", "0.5", "-c", "l2", "-o", "{}/s.onnx"]
    yield Target("inspect", {"m.onnx": network()}, "m.onnx", ["inspect", "{}/m.onnx"], MODEL, weight=20)
    yield Target("inspect-shipped", {"m.onnx": SHIPPED.read_bytes()}, "m.onnx", ["inspect", "m.onnx"], MODEL, weight=5)
    yield Target("prune", {"m.onnx": network()}, "m.onnx", prune, MODEL, SMALL, weight=15)
    for i, case in enumerate(c for c in CASES if c.runs):
        proto = model_of(case).SerializeToString()
        yield Target(f"op-{i}-{case.op}", {"m.onnx": proto}, "m.onnx", prune, MODEL, SMALL, weight=0.12)
        yield Target(f"ins-{i}-{case.op}", {"m.onnx": proto}, "m.onnx", ["inspect", "m.onnx"], MODEL, weight=0.12)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "m.onnx"
        op.save(op.load(onnx.ModelProto.FromString(network())), path, external=True)
        files = {"m.onnx": path.read_bytes(), "m.onnx.data": (Path(name) / "m.onnx.data").read_bytes()}
    yield Target("external-data", files, "m.onnx.data", prune, BYTES, SMALL, weight=2)
    yield Target("external-model", files, "m.onnx", prune, MODEL, SMALL, weight=8)
    for words in (["run-passes", "{}/m.onnx", "fuse_batchnorm", "fold_shapes", "-o", "{}/s.onnx"],
                  ["sparsify", "{}/m.onnx", "--sparsity", "0.5", "-o", "{}/s.onnx"],
                  ["bench", "{}/m.onnx", "--runs", "1"], ["diff", "{}/m.onnx", "{}/n.onnx"]):  # fmt: skip
        files = {"m.onnx": network(), "n.onnx": network()}
        yield Target(words[0], files, "m.onnx", words, MODEL, SMALL, weight=2)


def _documents(made: _Made) -> Iterator[Target]:
    model = {"m.onnx": network()}
    plan = made.file("p.json", "plan", "m.onnx", "--ratio", "0.5", "-c", "l2", "-o", "p.json")
    small = made.file("n.onnx", "apply", "m.onnx", "p.json", "-o", "n.onnx")
    scores = made.file("sc.json", "score", "m.onnx", "-c", "l2", "-o", "sc.json")
    curves = made.file("c.json", "sensitivity", "m.onnx", "--data", "x.npz", "-c", "l2", "-o", "c.json")
    out, names = ["-o", "{}/o.json"], frozenset({"o.json"})
    apply = ["apply", "{}/m.onnx", "{}/p.json", "-o", "{}/s.onnx"]
    yield Target("plan", {**model, "p.json": plan}, "p.json", apply, JSON, SMALL, weight=8)
    yield Target("plan-model", {**model, "p.json": plan}, "m.onnx", apply, MODEL, SMALL, weight=4)
    verify = ["verify", "{}/m.onnx", "{}/n.onnx", "{}/p.json"]
    yield Target("verify", {**model, "p.json": plan, "n.onnx": small}, "n.onnx", verify, MODEL, weight=4)
    yield Target("verify-plan", {**model, "p.json": plan, "n.onnx": small}, "p.json", verify, JSON, weight=2)
    words = ["plan", "{}/m.onnx", "--target", "macs=0.5", "--scores", "{}/sc.json", *out]
    yield Target("scores", {**model, "sc.json": scores}, "sc.json", words, JSON, names, weight=8)
    words = ["plan", "{}/m.onnx", "--curves", "{}/c.json", "--min-group-accuracy", "0.01", *out]
    yield Target("curves", {**model, "c.json": curves}, "c.json", words, JSON, names, weight=8)
    words = ["sensitivity", "{}/m.onnx", "--data", "{}/x.npz", "--scores", "{}/sc.json", *out, "--json"]
    files = {**model, "sc.json": scores, "x.npz": samples()}
    kept = frozenset({"o.json.journal"})
    yield Target("sensitivity-scores", files, "sc.json", words, JSON, names, kept, weight=2)
    words = ["plan", "{}/m.onnx", "--ratio", "0.5", "-c", "l2", "--overrides", "{}/ov.json", *out]
    overrides = b'{"groups": {"w0": {"ratio": 0.25, "min_channels": 1}, "w*": 0.5}}'
    yield Target("overrides-json", {**model, "ov.json": overrides}, "ov.json", words, JSON, names, weight=4)
    words = [w.replace("ov.json", "ov.toml") for w in words]
    overrides = b'"w*" = 0.5\n[w0]\nratio = 0.25\nmin_channels = 1\n'
    yield Target("overrides", {**model, "ov.toml": overrides}, "ov.toml", words, TOML, names, weight=4)
    for name, form, kinds in (("p.json", plan, JSON), ("c.json", curves, JSON)):
        words = ["report", f"{{}}/{name}", "-o", "{}/r.html"]
        yield Target(f"report-{name}", {name: form}, name, words, kinds, frozenset({"r.html"}), weight=2)


CONFIGURATION = b"""
threads = 1
attention = "heads"

[prune]
target = "macs=0.5"
criterion = "l2"
round_to = 2
min_channels = 2
include = ["w*"]
"""


def _blocks(made: _Made) -> Iterator[Target]:
    """Yield commands that read plans and curves with residual blocks, and the defaults of a project."""
    model = {"m.onnx": residual()}
    planned = ["plan", "res.onnx", "--only", "blocks", "--target", "macs=0.5", "-c", "random"]
    plan = made.file("bp.json", *planned, "-o", "bp.json")
    assert b"blocks" in plan
    apply = ["apply", "{}/m.onnx", "{}/p.json", "-o", "{}/s.onnx"]
    yield Target("block-plan", {**model, "p.json": plan}, "p.json", apply, JSON, SMALL, weight=6)
    yield Target("block-plan-model", {**model, "p.json": plan}, "m.onnx", apply, MODEL, SMALL, weight=4)
    prune = ["prune", "{}/m.onnx", *planned[2:], "-o", "{}/s.onnx"]
    yield Target("block-prune", model, "m.onnx", prune, MODEL, SMALL, weight=8)
    config = {"m.onnx": network(), "onnxprune.toml": CONFIGURATION}
    words = ["prune", "m.onnx", "-o", "s.onnx"]
    yield Target("configuration", config, "onnxprune.toml", words, TOML, SMALL, weight=6)
    project = {"m.onnx": network(), "pyproject.toml": CONFIGURATION.replace(b"[prune]", b"[tool.onnxprune.prune]")}
    yield Target("project", project, "pyproject.toml", words, TOML, SMALL, weight=2)


def _printed(made: _Made) -> Iterator[Target]:
    """Yield reports of what commands print as JSON."""
    made.file("p.json", "plan", "m.onnx", "--ratio", "0.5", "-c", "l2", "-o", "p.json")
    made.file("n.onnx", "apply", "m.onnx", "p.json", "-o", "n.onnx")
    page = frozenset({"r.html"})
    for words in (
        ("evaluate", "m.onnx", "--data", "x.npz"), ("bench", "m.onnx", "n.onnx", "--runs", "1"),
        ("verify", "m.onnx", "n.onnx", "p.json"), ("prune", "m.onnx", "--ratio", "0.5", "-c", "l2", "-o", "pr.onnx"),
        ("recover", "m.onnx", "n.onnx", "p.json", "--data", "x.npz", "-o", "re.onnx"),
    ):  # fmt: skip
        files = {"m.onnx": network(), "n.onnx": (made.folder / "n.onnx").read_bytes(), "d.json": made.printed(*words)}
        report = ["report", "m.onnx", "n.onnx", "d.json", "-o", "r.html", "--no-verify"]
        yield Target(f"printed-{words[0]}", files, "d.json", report, JSON, page, weight=2)


def _data() -> Iterator[Target]:
    from PIL import Image

    model = {"m.onnx": network()}
    score = ["score", "{}/m.onnx", "-c", "hrank", "-o", "{}/o.json", "--data"]
    names = frozenset({"o.json"})
    yield Target("npz", {**model, "x.npz": samples()}, "x.npz", [*score, "{}/x.npz"], ARRAYS, names, weight=8)
    words = ["evaluate", "{}/m.onnx", "--data", "{}/x.npz"]
    yield Target("npz-labels", {**model, "x.npz": samples()}, "x.npz", words, ARRAYS, weight=4)
    out = io.BytesIO()
    np.save(out, np.zeros((4, 1, 8, 8), np.float32))
    yield Target("npy", {**model, "x.npy": out.getvalue()}, "x.npy", [*score, "{}/x.npy"], NPY, names, weight=3)
    pictures = images()
    for name in pictures:
        kind = name.rpartition(".")[2]
        yield Target(f"image-{kind}", {**model, **pictures}, name, [*score, "{}/imgs"], BYTES, names, weight=0.8)
    for kind in ("P", "L", "I;16"):
        out = io.BytesIO()
        Image.fromarray(np.arange(132, dtype=np.uint8).reshape(12, 11) % 4).convert(kind).save(out, "PNG")
        files = {"m.onnx": segmenter(), "d/images/a.png": pictures["imgs/0.png"], "d/masks/a.png": out.getvalue()}
        words = ["evaluate", "{}/m.onnx", "--data", "{}/d", "--task", "segment"]
        yield Target(f"mask-{kind}", files, "d/masks/a.png", words, BYTES, weight=1)
    texts = b"".join(f"{Path(n).name}\tab\n".encode() for n in pictures)
    files = {**model, **pictures, "imgs/labels.txt": texts}
    yield Target("texts", files, "imgs/labels.txt", [*score, "{}/imgs"], BYTES, names, weight=1)
    boxes = {f"labels/{Path(n).stem}.txt": b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.9 0.1 0.9 0.9\n" for n in pictures}
    yolo = {**model, **{n.replace("imgs/", "images/"): v for n, v in pictures.items()}, **boxes}
    yield Target("yolo", yolo, "labels/0.txt", [*score, "{}/images"], BYTES, names, weight=1)
    described = b"path: .\ntrain: images\nval:\n  - images\nnc: 2\nnames:\n  0: a\n  1: b\n"
    words = [*score, "{}/data.yaml"]
    yield Target("data-yaml", {**yolo, "data.yaml": described}, "data.yaml", words, YAML, names, weight=3)
    found = [{"id": i, "file_name": n, "width": 11, "height": 12} for i, n in enumerate(pictures)]
    marks = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0} for i in range(3)
    ]
    coco = json.dumps({"images": found, "annotations": marks, "categories": [{"id": 1, "name": "a"}]}).encode()
    files = {**model, **pictures, "coco.json": coco}
    yield Target("coco", files, "coco.json", [*score, "{}/coco.json"], JSON, names, weight=3)
    classes = {f"c/{k}/{Path(n).name}": v for k, (n, v) in enumerate(pictures.items())}
    words = ["evaluate", "{}/m.onnx", "--data", "{}/c", "--class-map", "{}/map.json"]
    files = {**model, **classes, "map.json": json.dumps({str(k): k for k in range(7)}).encode()}
    yield Target("class-map", files, "map.json", words, JSON, weight=2)


RECIPE = b"""
name = "small"
model = "m.onnx"
data = "x.npz"
test_data = "x.npz"
seed = 1

[bench]
runs = 0

[[step]]
do = "score"
criterion = "l2"

[[step]]
do = "plan"
ratio = 0.5
min_channels = 2

[[step]]
do = "apply"
"""


def _folders(made: _Made) -> Iterator[Target]:
    base = {"m.onnx": network(), "x.npz": samples()}
    (made.folder / "r.toml").write_bytes(RECIPE)
    words = ["run", "{}/r.toml", "-o", "{}/run"]
    run = frozenset({"run"})
    yield Target("recipe", {**base, "r.toml": RECIPE}, "r.toml", words, TOML, run, run, weight=10)
    tree = made.tree("run", "run", "r.toml", "-o", "run")
    files = {**base, "r.toml": RECIPE, **tree}
    yield Target("run-journal", files, "run/run.journal", words, JSON, run, run, weight=8)
    report = ["report", "{}/run", "-o", "{}/r.html"]
    page = frozenset({"r.html"})
    for name in sorted(tree):
        kinds = MODEL if name.endswith(".onnx") else TOML if name.endswith(".toml") else JSON
        yield Target(f"run-{name}", files, name, words, kinds, run, run, weight=0.5)
        yield Target(f"report-{name}", files, name, report, kinds, page, weight=0.5)
    # One step less in the journal: the folder is that of a killed run.
    lines = tree["run/run.journal"].rstrip(b"\n").split(b"\n")
    killed = {**files, "run/run.journal": b"\n".join(lines[:-1]) + b"\n"}
    for name in sorted(n for n in tree if n.endswith(("step.json", "plan.json", "scores.json"))):
        yield Target(f"killed-{name}", killed, name, words, JSON, run, run, weight=0.7)
    yield from _resumed(made, base)
    words = ["frontier", "{}/m.onnx", "--data", "{}/x.npz", "-o", "{}/f", "--points", "1", "--criteria", "l2"]
    folder = frozenset({"f"})
    tree = made.tree("f", *words)
    for name in sorted(tree):
        kinds = MODEL if name.endswith(".onnx") else JSON
        yield Target(f"frontier-{name}", {**base, **tree}, name, words, kinds, folder, folder, weight=0.5)
        report = ["report", "{}/f", "-o", "{}/r.html"]
        yield Target(f"report-{name}", {**base, **tree}, name, report, kinds, page, weight=0.3)


def _resumed(made: _Made, base: dict[str, bytes]) -> Iterator[Target]:
    """Yield commands that continue from a journal."""
    words = ["sensitivity", "{}/m.onnx", "--data", "{}/x.npz", "-c", "l2", "-o", "{}/o.json"]
    head = _journal_of("sensitivity", base, words[1:], "o.json.journal")
    kept = frozenset({"o.json", "o.json.journal"})
    yield Target("sensitivity-journal", {**base, **head}, "o.json.journal", words, JSON, kept, kept, weight=6)
    small = {**base, "p.json": (made.folder / "p.json").read_bytes(), "n.onnx": (made.folder / "n.onnx").read_bytes()}
    words = ["recover", "{}/m.onnx", "{}/n.onnx", "{}/p.json", "--data", "{}/x.npz", "-o", "{}/o.onnx"]
    tree = _journal_of("recover", small, words[1:], "o.onnx.recovery")
    kept = frozenset({"o.onnx", "o.onnx.recovery"})
    for name in sorted(tree):
        kinds = ARRAYS if name.endswith(".npz") else JSON
        yield Target(f"recover-{name}", {**small, **tree}, name, words, kinds, kept, kept, weight=2)


def _journal_of(command: str, files: dict[str, bytes], words: list[str], name: str) -> dict[str, bytes]:
    """Return what a command leaves if it is stopped after a few parts."""
    from onnxprune._utils.files import journal

    plain, done = journal.Journal.add, []

    def add(self: journal.Journal, key: str, value: object) -> None:
        plain(self, key, value)
        done.append(key)
        if len(done) == 3:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        for path, content in files.items():
            (Path(folder) / path).write_bytes(content)
        journal.Journal.add = add  # type: ignore[method-assign]
        try:
            CommandLine(command, *(w.replace("{}", folder) for w in words)).run()
        finally:
            journal.Journal.add = plain  # type: ignore[method-assign]
        top = Path(folder) / name
        found = [top] if top.is_file() else [p for p in top.rglob("*") if p.is_file()]
        assert found, f"{command} has left no {name}"
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def _training(made: _Made) -> Iterator[Target]:
    base = {"m.onnx": network(), "x.npz": samples()}
    words = [
        "retrain",
        "{}/m.onnx",
        "--data",
        "{}/x.npz",
        "-o",
        "{}/t.onnx",
        "--epochs",
        "2",
        "--batch",
        "8",
        "--keep",
        "last",
    ]
    tree = _stopped_training(base, words)
    kept = frozenset({"t.onnx", "t.onnx.training"})
    for name in sorted(n for n in tree if n.endswith((".ckpt", ".pt"))):
        yield Target(f"retrain-{name}", {**base, **tree}, name, words, CHECKPOINT, kept, kept, weight=2)


def _stopped_training(files: dict[str, bytes], words: list[str]) -> dict[str, bytes]:
    from onnxprune.training import checkpoints

    plain: Callable[..., None] = checkpoints.Checkpoints.on_train_epoch_end

    def once(self: checkpoints.Checkpoints, *args: object) -> None:
        plain(self, *args)
        raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        for path, content in files.items():
            (Path(folder) / path).write_bytes(content)
        checkpoints.Checkpoints.on_train_epoch_end = once  # type: ignore[method-assign, assignment]
        try:
            CommandLine(*(w.replace("{}", folder) for w in words)).run()
        finally:
            checkpoints.Checkpoints.on_train_epoch_end = plain  # type: ignore[method-assign, assignment]
        top = Path(folder) / "t.onnx.training"
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def some(found: list[Target], seed: int, count: int) -> list[Target]:
    """Return targets in a random order, each once before any again."""
    rng = random.Random(seed)
    order = rng.sample(found, len(found))
    return [order[i % len(order)] for i in range(count)]
