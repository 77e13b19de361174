"""Rendered lines and pages of text with ground truth, from Debian's fonts and the licence texts of every Debian.

Lines (words, numbers, dates, codes) are for recognizers, pages with several lines for detectors. Everything follows
from a seed. The words of the calibration part and those of the test part are disjoint, and so are all whole lines.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONTS = Path("/usr/share/fonts/truetype")
PACKAGES = ("fonts-dejavu-core", "fonts-dejavu-extra", "fonts-liberation")
LICENCES = Path("/usr/share/common-licenses")
PARTS = ("calibration", "test")
HEIGHT = 48  # of a line, in pixels
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
UNUSABLE = ("MathTeXGyre",)  # glyphs of formulas
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Line:
    """Image of one line, uint8 [48, width, 3] (BGR, as OpenCV reads files), and its text."""

    pixels: Pixels
    text: str


@dataclass(frozen=True)
class Page:
    """Image of a page, uint8 [h, w, 3] (BGR), and a mask of the lines' bounding polygons."""

    pixels: Pixels
    mask: npt.NDArray[np.bool_]


@cache
def fonts() -> tuple[Path, ...]:
    """Return the font files, in the order of their names.

    Raises:
        SystemExit: A Debian package is missing.
    """
    found = sorted(p for p in FONTS.glob("*/*.ttf") if p.parent.name in ("dejavu", "liberation"))
    found = [p for p in found if not any(part in p.name for part in UNUSABLE)]
    if len(found) < 20:
        raise SystemExit(f"only {len(found)} fonts in {FONTS}; run: apt-get install {' '.join(PACKAGES)}")
    return tuple(found)


@cache
def words(part: str) -> tuple[str, ...]:
    """Return the words of one part: every English word of Debian's licence texts is in exactly one of them."""
    if not LICENCES.is_dir():
        raise SystemExit(f"no licence texts in {LICENCES}; run: apt-get install base-files")
    text = " ".join(p.read_text("utf-8", "ignore") for p in sorted(LICENCES.iterdir()) if p.is_file())
    every = sorted({w.lower() for w in re.findall(r"\b[A-Za-z]{3,12}\b", text)})
    return tuple(w for w in every if PARTS[zlib.crc32(w.encode()) % 2] == part)


def _word(rng: np.random.Generator, part: str) -> str:
    word = str(rng.choice(words(part)))
    return (word, word.capitalize(), word.upper())[rng.choice(3, p=[0.5, 0.35, 0.15])]


def _phrase(rng: np.random.Generator, part: str) -> str:
    return " ".join(_word(rng, part) for _ in range(rng.integers(2, 4)))


def _number(rng: np.random.Generator, part: str) -> str:
    value = float(rng.uniform(1, 10 ** rng.uniform(1, 6)))
    forms = (
        f"{value:.0f}",
        f"{value:,.2f}",
        f"{value:.2f}",
        f"${value:,.2f}",
        f"{value % 100:.1f}%",
        f"{value:.0f} kg",
    )
    return str(forms[rng.integers(len(forms))])


def _date(rng: np.random.Generator, part: str) -> str:
    y, m, d = int(rng.integers(1970, 2040)), int(rng.integers(1, 13)), int(rng.integers(1, 29))
    name = MONTHS[m - 1]
    forms = (f"{y}-{m:02d}-{d:02d}", f"{d:02d}/{m:02d}/{y}", f"{d}.{m}.{y}", f"{d} {name} {y}", f"{name[:3]} {d}, {y}")
    return str(forms[rng.integers(len(forms))])


def _code(rng: np.random.Generator, part: str) -> str:
    letters = "".join(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ"), rng.integers(2, 4)))
    return f"{letters}-{rng.integers(1000, 10**6)}"


KINDS: tuple[tuple[Callable[[np.random.Generator, str], str], float], ...] = (
    (_word, 0.5), (_phrase, 0.1), (_number, 0.18), (_date, 0.15), (_code, 0.07),
)  # fmt: skip


def texts(part: str, count: int, seed: int = 0) -> list[str]:
    """Return different lines of one part; none of them is a line of the other part."""
    rng = np.random.default_rng([seed, PARTS.index(part)])
    found: dict[str, None] = {}
    while len(found) < count:
        make = KINDS[rng.choice(len(KINDS), p=[share for _, share in KINDS])][0]
        text = make(rng, part)
        # Numbers, dates and codes are shared out by the same hash as words.
        if make in (_word, _phrase) or PARTS[zlib.crc32(text.encode()) % 2] == part:
            found[text] = None
    return list(found)


def _colours(rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return (background, ink), at least 90 levels apart; one line in five is light on dark."""
    paper = rng.uniform(150, 255, 3) if rng.random() < 0.5 else np.repeat(rng.uniform(190, 255), 3)
    ink = np.clip(paper - rng.uniform(90, 230), 0, 255) if rng.random() < 0.5 else rng.uniform(0, 60, 3)
    if rng.random() < 0.2:
        paper, ink = ink, paper
    return paper.astype(np.float32), ink.astype(np.float32)


def _font(rng: np.random.Generator, low: int, high: int) -> ImageFont.FreeTypeFont:
    """Return a font and size at random. The basic layout is the same on every machine, without ligatures."""
    path = fonts()[rng.integers(len(fonts()))]
    return ImageFont.truetype(str(path), int(rng.integers(low, high)), layout_engine=ImageFont.Layout.BASIC)


def _coverage(text: str, font: ImageFont.FreeTypeFont, margin: tuple[int, int]) -> Image.Image:
    """Return the ink's coverage of each pixel, 0 to 255."""
    left, top, right, bottom = font.getbbox(text)
    size = int(right - left) + 2 * margin[0], int(bottom - top) + 2 * margin[1]
    image = Image.new("L", size)
    ImageDraw.Draw(image).text((margin[0] - left, margin[1] - top), text, 255, font)
    return image


def _photographed(coverage: Image.Image, rng: np.random.Generator) -> Pixels:
    """Return ink on paper with blur, uneven light and sensor noise."""
    paper, ink = _colours(rng)
    alpha = (
        np.asarray(coverage.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.3)))), np.float32)[..., None] / 255
    )
    h, w = alpha.shape[:2]
    light = 1 + rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, w)[None, :, None] * np.ones((h, 1, 1))
    image = (paper * (1 - alpha) + ink * alpha) * light + rng.normal(0, rng.uniform(0, 14), (h, w, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def line(text: str, rng: np.random.Generator) -> Line:
    """Render one line: a font at random, rotated by up to 3 degrees, blurred, with noise, scaled to 48 rows."""
    font = _font(rng, 22, 44)
    coverage = _coverage(text, font, (int(rng.integers(3, 12)), int(rng.integers(3, 9))))
    coverage = coverage.rotate(float(rng.uniform(-3, 3)), Image.Resampling.BICUBIC, expand=True)
    scale = HEIGHT / coverage.height
    coverage = coverage.resize((max(8, round(coverage.width * scale)), HEIGHT), Image.Resampling.BILINEAR)
    return Line(_photographed(coverage, rng), text)


def lines(part: str, count: int, seed: int = 0) -> list[Line]:
    """Render lines of one part."""
    rng = np.random.default_rng([seed, 10 + PARTS.index(part)])
    return [line(text, rng) for text in texts(part, count, seed)]


def page(part: str, rng: np.random.Generator, size: tuple[int, int]) -> Page:
    """Render a page with lines of text that do not overlap."""
    h, w = size
    coverage, mask = Image.new("L", (w, h)), Image.new("L", (w, h))
    y = int(rng.integers(8, 40))
    while y < h - 40:
        font = _font(rng, 16, 40)
        text = KINDS[rng.choice(len(KINDS), p=[share for _, share in KINDS])][0](rng, part)
        ink = _coverage(text, font, (3, 3))
        box = Image.new("L", ink.size, 255)
        angle = float(rng.uniform(-4, 4))
        ink, box = (i.rotate(angle, Image.Resampling.BICUBIC, expand=True) for i in (ink, box))
        if ink.width < w - 16 and y + ink.height < h - 4:
            x = int(rng.integers(8, w - ink.width - 7))
            coverage.paste(ink, (x, y))
            mask.paste(box, (x, y))
        y += ink.height + int(rng.integers(6, 60))
    return Page(_photographed(coverage, rng), np.asarray(mask) > 127)


def pages(part: str, count: int, sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[Page]:
    """Render pages of one part, with the sizes in turn."""
    rng = np.random.default_rng([seed, 20 + PARTS.index(part)])
    return [page(part, rng, sizes[i % len(sizes)]) for i in range(count)]


def widened(pixels: Pixels, width: int) -> npt.NDArray[np.float32]:
    """Return a line as PaddleOCR feeds it: float32 [3, 48, width], (x / 255 - 0.5) / 0.5, zeros at the right."""
    out = np.zeros((3, *pixels.shape[:1], width), np.float32)
    out[:, :, : pixels.shape[1]] = pixels.transpose(2, 0, 1) / np.float32(127.5) - 1
    return out


def width_of(pixels: Pixels, step: int = 32) -> int:
    """Return the width of a line, rounded up so that lines of similar width share a batch."""
    return -(-pixels.shape[1] // step) * step
