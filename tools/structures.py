"""Pack weight-less structures of public architectures, small enough to ship: models/structures/NAME.onnx.xz.

    python tools/structures.py pack FILE.onnx OUT.onnx.xz
    python tools/structures.py pack-zoo FOLDER          # every NAME.onnx and NAME/model.onnx of a folder
    python tools/structures.py golden                   # writes tests/goldens/structures.json anew
    python tools/structures.py blocks [GLOB] [--lines F]  # removes each residual block, and half of them, with proof

A structure is the ONNX file without the data of its large float tensors. It keeps names, shapes, types, integers,
tensors of at most 64 elements, and large constants that are no weights and compress to next to nothing
(attention masks, coordinate grids). `tests/helpers/networks/structures.py` reads it back and fills it with random
weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import lzma
import math
import sys
import time
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import onnx
from onnx import TensorProto, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "models" / "structures"
GOLDEN = ROOT / "tests" / "goldens" / "structures.json"
SMALL = 64  # elements: kept as they are
TINY = 1024  # compressed bytes: a constant that compresses to less is an array of a few values, not weights
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization", "PRelu")
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def strip_weights(path: Path) -> bytes:
    """Return the packed structure of an ONNX file."""
    proto = onnx.load(path)
    graph = proto.graph
    weights = {name for n in graph.node if n.op_type in WEIGHTED for name in n.input[1:]}
    for tensor in graph.initializer:
        _strip(tensor, tensor.name in weights)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _strip(attribute.t, node.output[0] in weights)
            attribute.ClearField("doc_string")
        node.ClearField("doc_string")
        del node.metadata_props[:]
    del graph.value_info[:]
    del graph.metadata_props[:]
    del proto.metadata_props[:]
    for message in (graph, proto):
        message.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    data = proto.SerializeToString(deterministic=True)
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=FILTERS)


def _strip(tensor: TensorProto, weight: bool) -> None:
    tensor.ClearField("doc_string")
    del tensor.metadata_props[:]
    if tensor.data_type not in FLOATS or math.prod(tensor.dims) <= SMALL:
        return
    if not weight and len(zlib.compress(numpy_helper.to_array(tensor).tobytes())) <= TINY:
        return
    for field in ("raw_data", "float_data", "double_data", "int32_data"):
        tensor.ClearField(field)


def pack(source: Path, target: Path) -> int:
    """Pack one file and return its size in bytes."""
    data = strip_weights(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return len(data)


def models_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of the models of a folder: NAME.onnx, or NAME/model.onnx with external data."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".onnx":
            yield path.stem, path
        elif (path / "model.onnx").is_file():
            yield path.name, path / "model.onnx"


def golden() -> dict[str, object]:
    """Record the free and locked channels of every structure, with the random weights of the tests."""
    tests = tests_module()
    rows = {}
    for path in tests.all_structures():
        analysis = tests.analysed(path)
        rows[path.name.removesuffix(".onnx.xz")] = {**tests.coverage(analysis), "size": tests.size(analysis)}
    return rows


def blocks(pattern: str, lines: Path | None) -> int:
    """Remove each residual block of the structures that match, and half of them; return the number of failures.

    The structures with the fewest MACs come first. Each adds a line to the file `lines`, and is skipped if it has one:
    the same command continues an interrupted run.
    """
    tests = tests_module()
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from networks.residual import block_plans

    from onnxprune.errors import OnnxPruneError
    from onnxprune.pipeline import compile_plan

    failed = 0
    known = (
        [json.loads(line) for line in lines.read_text().splitlines()] if lines is not None and lines.exists() else []
    )
    done = {row["name"] for row in known}
    sizes = json.loads(GOLDEN.read_text(encoding="utf-8"))
    paths = {path.name.removesuffix(".onnx.xz"): path for path in tests.all_structures()}
    for name in sorted(paths, key=lambda n: sizes[n]["size"]["mmacs"]):
        if name in done or not fnmatchcase(name, pattern):
            continue
        analysis = tests.analysed(paths[name])
        proved, problems, began = 0, [], time.monotonic()
        for plan in block_plans(analysis):
            try:
                compile_plan(analysis.source, plan, analysis=analysis, threads=1)
                proved += 1
            except OnnxPruneError as err:
                problems.append(f"{name}: without {', '.join(plan.blocks)}: {err.what}")
                print(problems[-1], flush=True)
        failed += len(problems)
        free = len(analysis.free_blocks)
        row = {"name": name, "free": free, "others": len(analysis.blocks) - free, "proved": proved,
               "failed": problems, "seconds": round(time.monotonic() - began)}  # fmt: skip
        if lines is not None:
            with lines.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{name}: {free} free blocks, {row['others']} others, {proved} plans proved in {row['seconds']} s",
              flush=True)  # fmt: skip
    return failed


def tests_module() -> ModuleType:
    """tests/helpers/networks/structures.py, whose filler knows what weights a tensor's use asks for."""
    spec = importlib.util.spec_from_file_location(
        "tests_structures", ROOT / "tests" / "helpers" / "networks" / "structures.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pack", help="pack one file")
    one.add_argument("file", type=Path)
    one.add_argument("out", type=Path)
    many = commands.add_parser("pack-zoo", help="pack the models of a folder")
    many.add_argument("folder", type=Path)
    many.add_argument("--out", type=Path, default=OUT)
    commands.add_parser("golden", help="write tests/goldens/structures.json")
    swept = commands.add_parser("blocks", help="remove residual blocks with proof")
    swept.add_argument("pattern", nargs="?", default="*")
    swept.add_argument("--lines", type=Path, help="file of finished structures, which are skipped")
    args = parser.parse_args()
    if args.command == "blocks":
        raise SystemExit(bool(blocks(args.pattern, args.lines)))
    if args.command == "pack":
        print(f"{args.out}: {pack(args.file, args.out)} bytes")
    elif args.command == "pack-zoo":
        total = 0
        for name, path in models_in(args.folder):
            size = pack(path, args.out / f"{name}.onnx.xz")
            total += size
            print(f"{name}: {size} bytes", flush=True)
        print(f"together: {total} bytes")
    else:
        GOLDEN.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in golden().items()]
        GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
        print(f"{len(rows)} structures in {GOLDEN.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
