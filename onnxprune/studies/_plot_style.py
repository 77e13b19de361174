"""Style, text and output shared by all plots.

matplotlib is imported when a plot is drawn, and only its figure objects are used: no window, no global figure. Equal
values give equal bytes.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune._utils.files.atomic_files import atomic
from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SUFFIXES = (".png", ".svg")
NAME = 30  # letters of a group's name
RATES = {"top1": "top1 accuracy", "top5": "top5 accuracy"}  # shares, shown in percent
STYLE: Any = {  # Any: newer stubs list the keys, older ones take strings
    "axes.axisbelow": True,
    "axes.edgecolor": "0.45",
    "axes.labelcolor": "0.15",
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",  # part of matplotlib: plots do not depend on the machine's fonts
    "font.size": 9,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "svg.hashsalt": "onnxprune",
    "text.parse_math": False,  # a name may contain dollar signs
    "xtick.color": "0.45",
    "xtick.labelcolor": "0.15",
    "ytick.color": "0.45",
    "ytick.labelcolor": "0.15",
}


def write(path: Path, image: bytes) -> None:
    try:
        with atomic(path) as file:
            file.write(image)
    except OSError as err:
        raise OnnxPruneError(f"cannot write {str(path)!r}: {err.strerror or err}") from err


def drawn(form: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """Return the bytes of a file: a figure of a size in inches, drawn in the common style."""
    matplotlib = import_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    out = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignore any matplotlibrc
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08, hspace=0.03))
        draw(figure)
        metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
        # A Figure without a canvas uses Agg for PNG and the SVG writer for SVG.
        figure.savefig(out, format=form, dpi=150, metadata=metadata)
    return out.getvalue()


def import_matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as err:
        raise OnnxPruneError("pictures need matplotlib", fix="pip install 'onnxprune[report]'") from err
    return matplotlib


Text = Callable[[str], str]


def writable() -> Text:
    """Return a function that replaces characters missing in the font, for which matplotlib warns and draws boxes."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))

    def text(value: str) -> str:
        return "".join(c if _printable(c) and font.get_char_index(ord(c)) else "?" for c in value)

    return text


def _printable(char: str) -> bool:
    # XML allows neither control characters nor lone surrogates.
    return unicodedata.category(char) not in ("Cc", "Cs", "Cn")


def gid(kind: str, group: str) -> str:
    return f"{kind}:{''.join(c if _printable(c) else '?' for c in group)}"


def short(name: str, limit: int = NAME) -> str:
    """Return a name without its middle: the start names the part of the model, the end the layer."""
    if len(name) <= limit:
        return name
    head = limit // 3
    return f"{name[:head]}…{name[len(name) - (limit - head - 1) :]}"
