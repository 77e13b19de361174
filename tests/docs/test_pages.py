"""Every code block of README and docs runs, or says why not and is held against what there is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from documented import ROOT, Block, blocks_of, commands_of, parse, parse_block, run_block
from networks.small_digits import small_digits
from onnx import numpy_helper
from PIL import Image

import onnxprune as op
from onnxprune.criteria._registry import CRITERIA
from onnxprune.ops.op_spec import OPERATORS

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md"))]
# Pages that speak of photographs get networks and data with three colours; all others get digits as they are.
COLOUR = ("README.md", "docs/commands.md", "docs/recover.md")
SHIPPED = {"digits_keras.onnx": ("docs/howto/keras.md",), "digits_cnn_folded.onnx": ("docs/retraining.md",)}
# Pages that prune and recover dozens of times get a network with few layers.
SMALL = ("docs/frontier.md",)
# Names that pages give to a model that is there before the page begins.
MODELS = ("model.onnx", "mobilenet_v2.onnx", "resnet50.onnx", "small.onnx", "m.onnx")


def coloured(source: Path, target: Path) -> None:
    """A network for grey images as one for coloured ones: its first weights see the mean of three channels."""
    proto = onnx.load(source)
    (channels,) = (proto.graph.input[0].type.tensor_type.shape.dim[1],)
    channels.dim_value = 3
    first = next(n for n in proto.graph.node if n.op_type == "Conv")
    (weight,) = (i for i in proto.graph.initializer if i.name == first.input[1])
    values = np.repeat(numpy_helper.to_array(weight) / 3, 3, axis=1)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, target)


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Folders with the data that pages name: digits, as grey or as coloured images."""

    def make(colour: bool) -> Path:
        folder = tmp_path_factory.mktemp("colour" if colour else "grey")
        channels = 3 if colour else 1
        for name, part, images in (("train", "train", 200), ("val", "test", 60), ("test", "test", 100)):
            data = op.load_data(f"digits:{part}", images=images)
            # Noise, so that accuracy has something to lose and to win back.
            x = np.clip(data.x + 0.12 * np.random.default_rng(0).standard_normal(data.x.shape), 0, 1)
            np.savez(folder / f"{name}.npz", x=np.repeat(x, channels, axis=1).astype(np.float32), y=data.y)
        for i, (image, y) in enumerate(zip(x, data.y, strict=True)):
            place = folder / "images" / str(y)
            place.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((image[0] * 255).astype("uint8"))
            grey.convert("RGB" if colour else "L").save(place / f"{i}.png")
        return folder

    made: dict[bool, Path] = {}
    return lambda colour: made.get(colour) or made.setdefault(colour, make(colour))


def workplace(page: str, places: Callable[[bool], Path], folder: Path) -> None:
    """Fills a folder with what the page takes as given."""
    colour = page in COLOUR
    shutil.copytree(places(colour), folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "examples", folder / "examples")
    shipped = next((name for name, pages in SHIPPED.items() if page in pages), "digits_cnn.onnx")
    model = small_digits(folder) if page in SMALL else ROOT / "models" / shipped
    for name in MODELS:
        (coloured if colour else shutil.copy)(model, folder / name)


def runnable(page: str) -> list[Block]:
    return [b for b in blocks_of(page) if b.not_run is None and (b.language == "python" or commands_of(b))]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_exists(page: str) -> None:
    for block in blocks_of(page):
        parse_block(block)


# What PyTorch's older exporter says of itself, and what it calls.
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_page_runs(page: str, places: Callable[[bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workplace(page, places, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    # What pages register is theirs alone.
    names: dict[str, object] = {"__name__": "my_package.page"}
    with CRITERIA.isolated(), OPERATORS.isolated():
        for block in runnable(page):
            run_block(block, names)


@pytest.mark.parametrize(
    "words",
    [
        "onnxprune prune model.onnx -o small.onnx --targt macs=0.5",
        "onnxprune prune model.onnx -o small.onnx --ratio half",
        "pip install 'onnxprune[cpus]'",
        "make nothing",
        "python tools/zoo.py FOLDER --pages x",
    ],
)
def test_what_does_not_exist_is_found(words: str) -> None:
    (command,) = commands_of(Block("here", "", words, None))
    with pytest.raises(AssertionError):
        parse(command, "here")


def test_a_shell_block_holds_commands_only() -> None:
    with pytest.raises(AssertionError, match="onxprune"):
        commands_of(Block("here", "sh", "onxprune inspect model.onnx", None))
