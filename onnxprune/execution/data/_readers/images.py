"""Images that are decoded when a batch is read, with their targets."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onnxprune._utils.files.input_files import MAX_IMAGE, opened, read_bytes
from onnxprune._utils.processes.deadlines import Deadline, Late
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._geometry import (
    Placement,
    constant_size,
    placed_boxes,
    placed_image,
    placed_mask,
    placement,
)
from onnxprune.execution.data._preprocess import Preprocess
from onnxprune.execution.data._sources import Arrays, Indices, Source
from onnxprune.execution.data._spool import Spool
from onnxprune.execution.data._targets import Boxes, Target, kind_of
from onnxprune.ir.model import Array
from onnxprune.options.data import DATA_TIMEOUT

T = TypeVar("T")

_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # tag of EXIF, and its values that exchange height and width
_MOST_PIXELS = 89_478_485  # the default of Pillow, which a user may have switched off
_CHECKED = 2000  # images whose headers are read first
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".tif", ".tiff", ".pgm", ".gif")


class Images(ABC):
    """Images by number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Any:
        """Return a Pillow image; its pixels may not be decoded yet."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Return the place of an image for messages."""

    @abstractmethod
    def update(self, digest: Any) -> None:
        """Add what identifies the images to a digest."""

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width, from the header where there is one."""
        with readable(self.where(index)), self.image(index) as image:
            return int(image.height), int(image.width)


class ImageFiles(Images):
    """Image files, turned as their EXIF data say.

    Args:
        paths: The files.
        annotated: Height and width in which their targets are annotated, None where unknown: images annotated as they
            are stored are not turned.
    """

    def __init__(self, paths: Sequence[Path], annotated: Sequence[tuple[int, int] | None] | None = None) -> None:
        self.paths, self.annotated = list(paths), annotated

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Any:
        from PIL import Image, ImageOps

        image = Image.open(BytesIO(read_bytes(self.paths[index], MAX_IMAGE)))
        if self._orientation(image, index) == 1:
            return image
        with image:
            return ImageOps.exif_transpose(image)

    def size(self, index: int) -> tuple[int, int]:
        from PIL import Image

        path = self.paths[index]
        with readable(str(path)), opened(path, MAX_IMAGE) as file, Image.open(file) as image:
            turned = self._orientation(image, index) in _SIDEWAYS
            return (image.width, image.height) if turned else (image.height, image.width)

    def _orientation(self, image: Any, index: int) -> int:
        """Return the orientation of EXIF, 1 for an image that is not turned."""
        if "exif" not in image.info:
            return 1
        found = image.getexif().get(_ORIENTATION, 1)
        stored = (image.height, image.width)
        sideways = found in _SIDEWAYS and stored[0] != stored[1]
        if sideways and self.annotated is not None and self.annotated[index] == stored:
            return 1
        return found if found in range(2, 9) else 1

    def where(self, index: int) -> str:
        return str(self.paths[index])

    def update(self, digest: Any) -> None:
        for path in self.paths:
            try:
                size = path.stat().st_size
            except OSError:
                size = -1
            digest.update(f"{path.name} {size}\n".encode(errors="replace"))


class SpooledImages(Images):
    """Images that were written to a temporary file as pixels [height, width, channels]."""

    def __init__(self, spool: Spool, name: str) -> None:
        self.spool, self.name = spool, name

    def __len__(self) -> int:
        return len(self.spool)

    def image(self, index: int) -> Any:
        return pillow().fromarray(self.spool[index])

    def where(self, index: int) -> str:
        return f"{self.name}, sample {index}"

    def size(self, index: int) -> tuple[int, int]:
        shape = self.spool.shape(index)
        return shape[0], shape[1]

    def update(self, digest: Any) -> None:
        for i in np.linspace(0, len(self) - 1, min(len(self), 64)).astype(int).tolist():
            digest.update(self.spool[i].tobytes())


class ImageSource(Source):
    """Images, resized by the preprocessing when they are read.

    Args:
        images: Images by number.
        targets: One for each image: boxes in its own pixels, masks of its size (or paths of mask files), texts.
    """

    def __init__(self, images: Images, targets: Sequence[Target | Path] | None = None) -> None:
        self.of, self.own = images, targets
        self.images = True
        if targets is not None and len(targets):
            self.targets = "masks" if isinstance(targets[0], Path) else kind_of(targets[0])
        self._sizes: list[tuple[int, int]] | None = None
        self._seconds = DATA_TIMEOUT

    def __len__(self) -> int:
        return len(self.of)

    @property
    def names(self) -> tuple[str, ...]:
        return ("",)

    def read(self, indices: Sequence[int] | Indices, how: Preprocess) -> tuple[Arrays, list[Target] | None]:
        with Deadline(self._seconds) as deadline:
            found = [self._timely(deadline, self._read, int(i), how) for i in indices]
        pixels = np.stack([image for image, _ in found])
        return {"": pixels}, [target for _, target in found if target is not None] if self.own is not None else None

    def _read(self, index: int, how: Preprocess) -> tuple[Array, Target | None]:
        """Return an image in its frame, and its target."""
        where = self.of.where(index)
        with readable(where), self.of.image(index) as image:
            at = placement(how, image.height, image.width)
            _check_frame(at, where)
            pixels = placed_image(image, how, at)
        target = self.own[index] if self.own is not None else None
        if isinstance(target, Path):
            return pixels, placed_mask(_mask(target), at, str(target))
        if isinstance(target, Boxes):
            return pixels, placed_boxes(target, at)
        if isinstance(target, np.ndarray) and self.targets == "masks":
            return pixels, placed_mask(target, at, where)
        return pixels, target

    def _timely(self, deadline: Deadline, function: Callable[..., T], index: int, *args: Any) -> T:
        try:
            return deadline(function, index, *args)
        except Late as err:
            raise OnnxPruneError(
                f"the image was not decoded within {self._seconds:g} s", where=self.of.where(index),
                fix="repair or remove the file, or wait longer with --data-timeout SECONDS (0: no limit)",
            ) from err  # fmt: skip

    def sizes(self, how: Preprocess) -> Sequence[Hashable] | None:
        if constant_size(how) is not None:
            return None
        if self._sizes is None:  # read once: headers of files do not change
            with Deadline(self._seconds) as deadline:
                self._sizes = [self._timely(deadline, self.of.size, i) for i in range(len(self))]
        keys = [placement(how, *size).frame for size in self._sizes]
        return None if len(set(keys)) == 1 else keys

    def update(self, digest: Any) -> None:
        self.of.update(digest)
        for target in self.own or ():
            if isinstance(target, Boxes):
                digest.update(target.boxes.tobytes() + target.classes.tobytes())
            elif isinstance(target, str | Path):
                digest.update(str(target).encode(errors="replace"))

    def shown(self) -> str:
        return "images"

    def check(self) -> None:
        """Read the headers of images, evenly spread."""
        if self._sizes is None:
            with Deadline(self._seconds) as deadline:
                for i in np.linspace(0, len(self) - 1, min(len(self), _CHECKED)).astype(int).tolist():
                    self._timely(deadline, self.of.size, i)

    def within(self, seconds: float) -> ImageSource:
        out = copy(self)
        out._seconds = seconds
        return out


def _check_frame(at: Placement, where: str) -> None:
    """Raise if an image would become too large: one that is long and narrow, enlarged to the model's height."""
    height, width = at.inner
    most = 2 * (pillow().MAX_IMAGE_PIXELS or _MOST_PIXELS)  # Pillow refuses files beyond this
    if height * width > most and at.inner != at.source:
        raise OnnxPruneError(
            f"the image of {at.source[0]} x {at.source[1]} pixels would be resized to {height} x {width}", where=where,
            fix="remove the file, or use another --resize",
        )  # fmt: skip


def pillow() -> Any:
    """Return Pillow's module Image.

    Raises:
        OnnxPruneError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as err:
        raise OnnxPruneError(f"reading images needs pillow ({err})", fix="pip install 'onnxprune[data]'") from err
    return Image


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Raise errors of Pillow as ones that name the image, and drop its warnings.

    They concern damaged metadata, which is not used, or come before an error.
    """
    pillow()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            yield
    except OnnxPruneError:
        raise
    except Exception as err:  # Pillow's decoders raise exceptions of many kinds
        what = getattr(err, "strerror", None) or str(err) or type(err).__name__
        raise OnnxPruneError(
            f"cannot read the image: {what}", where=where, fix="repair or remove the file, and the line that names it"
        ) from err


def is_image(value: Any) -> bool:
    """Return whether a value is a Pillow image."""
    return type(value).__module__.startswith("PIL.") and hasattr(value, "convert")


def _mask(path: Path) -> Array:
    """Return the classes of a mask file, [height, width]: palette indices or gray values."""
    from PIL import Image

    with readable(str(path)), opened(path, MAX_IMAGE) as file, Image.open(file) as image:
        if image.mode not in ("P", "L", "I", "I;16", "1"):
            bands = np.asarray(image.convert("RGB"))
            if not (bands == bands[..., :1]).all():
                raise OnnxPruneError(
                    "the mask is a colour image, and a mask holds the number of the class in every pixel",
                    where=str(path), fix="save it as a gray or palette PNG",
                )  # fmt: skip
            return np.asarray(bands[..., 0])
        return np.asarray(image).astype(np.int64 if image.mode.startswith("I") else np.uint8)
