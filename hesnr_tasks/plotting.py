"""One look for every figure: readable in print, in grey, and by colour-blind people.

Colours are Okabe and Ito's; every series also differs by marker and line, so that colour is never the only sign.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.errors import HesnrError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hesnr_tasks.stats import Estimate

__all__ = ["COLOURS", "LINES", "MARKERS", "error_bars", "figure", "label", "look", "save"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
_LONGEST = 18  # characters of a label
_LOOK: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "errorbar.capsize": 2,
    "svg.fonttype": "none",
    "svg.hashsalt": "hesnr",  # the same data give the same bytes
}


def figure(rows: int = 1, columns: int = 1, *, width: float = 3.6, height: float = 2.7) -> tuple[Figure, Any]:
    """A figure of `rows` × `columns` axes (an array of them, always two-dimensional); inches for each of them."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise HesnrError("figures need matplotlib: pip install 'hesnr-tasks[report]'") from None
    with matplotlib.rc_context(_LOOK):
        drawn = Figure(figsize=(width * columns, height * rows), layout="constrained")
        return drawn, drawn.subplots(rows, columns, squeeze=False)


def label(text: str) -> str:
    """A name that is shown as it is, whatever is in it: no formula, no line break, no endless line."""
    shown = printable(text)
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    return shown.replace("$", r"\$")


def error_bars(
    axis: Any,
    i: int,
    name: str,
    places: Sequence[float],
    numbers: Sequence[Estimate],
    *,
    across: bool = False,
    line: bool = True,
) -> None:
    """Series `i`: values with their intervals, where they have one, along y, or along x if `across`."""
    reach = [(n.value - n.low, n.high - n.value) if math.isfinite(n.low + n.high) else (0.0, 0.0) for n in numbers]
    errors = [[max(0.0, end) for end in side] for side in zip(*reach, strict=True)]
    values = [number.value for number in numbers]
    style = LINES[i % len(LINES)] if line and not across else "none"
    shape: dict[str, Any] = {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": style,
    }
    x, y = (values, places) if across else (places, values)
    axis.errorbar(x, y, **{"xerr" if across else "yerr": errors}, label=name, elinewidth=1, **shape)


@contextlib.contextmanager
def look() -> Iterator[None]:
    """Whatever is drawn within has the look: line widths, markers and caps are settled when they are drawn."""
    import matplotlib

    with matplotlib.rc_context(_LOOK):
        yield


def save(drawn: Figure, stem: Path) -> list[Path]:
    """Write `stem`.svg (vector) and `stem`.png (200 dpi); returns both paths."""
    import matplotlib

    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(_LOOK):
        drawn.savefig(svg, format="svg", metadata={"Date": None})
        drawn.savefig(png, format="png", dpi=200)
    paths = [stem.with_name(stem.name + ending) for ending in (".svg", ".png")]
    for path, content in zip(paths, (svg.getvalue(), _shrunk(png)), strict=True):
        write_output(path, content)
    return paths


def _shrunk(png: IO[bytes]) -> bytes:
    """A palette of 256 colours: a third of the size, and figures have fewer colours than that to lose."""
    from PIL import Image  # matplotlib needs it, so it is there

    with Image.open(png) as picture:
        small = picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    made = io.BytesIO()
    small.save(made, format="png", optimize=True)
    return made.getvalue()
