"""One look for every figure: readable in print, in grey, and by colour-blind people.

Colours are Okabe and Ito's; every series also differs by marker and line, so that colour is never the only sign.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hesnr_tasks.errors import HesnrError, printable
from hesnr_tasks.files.atomic import write_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hesnr_tasks.stats import Estimate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
_LONGEST = 22  # characters of a label
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
        canvas = Figure(figsize=(width * columns, height * rows), layout="constrained")
        return canvas, canvas.subplots(rows, columns, squeeze=False)


def label(text: str) -> str:
    """A name for a figure, whatever is in it: no formula, no line break, at most 22 characters.

    Longer ones keep both ends: names of one ladder often begin alike.
    """
    shown = printable(text)
    half = _LONGEST // 2
    shown = shown if len(shown) <= _LONGEST else f"{shown[: half - 1]}…{shown[-half:]}"
    return shown.replace("$", r"\$")


def legend(canvas: Figure, handles: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """A legend below all axes, in as many columns as there is room for."""
    columns = int(canvas.get_figwidth() / (0.6 + 0.08 * max(map(len, names), default=0)))
    canvas.legend(handles, names, loc="outside lower center", ncols=min(4, max(1, columns)), **options)


def hover(line: Any, texts: Iterable[str]) -> None:
    """What each point of a drawn line tells, for pages that show it; points without a place have no text either."""
    points = zip(line.get_xydata().tolist(), texts, strict=True)
    kept = [text for (x, y), text in points if math.isfinite(x) and math.isfinite(y)]
    titles = line.figure.__dict__.setdefault("hesnr_titles", [])
    line.set_gid(f"points-{len(titles)}")
    titles.append(kept)


def inline_svg(svg: str, titles: Sequence[Sequence[str]], name: str) -> str:
    """A saved figure as markup that a strict policy admits and a page can recolour: attributes in place of styles.

    Args:
        svg: as matplotlib wrote it, which escapes every text.
        titles: of the points of each line that `hover` was called for.
        name: unique on the page; ids begin with it.
    """
    from markupsafe import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r' style="([^"]*)"', lambda match: _attributes(match[1]), body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for i, texts in enumerate(titles):
        start = body.find(f'id="{name}-points-{i}"')
        end = body.find("</g>\n   </g>", start)  # the line's markers are a group in its group
        head, block, tail = body[:start], body[start:end], body[end:]
        if start < 0 or block.count("<use ") != len(texts):
            continue  # never a value at another point
        for text in texts:  # each replaces the first marker that has none yet
            block = re.sub(r"(<use [^>]*[^/>])/>", rf"\1><title>{{{len(head)}}}</title></use>", block, count=1)
            block = block.replace(f"{{{len(head)}}}", str(escape(printable(text))), 1)
        body = head + block + tail
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', body)
    return body.replace(size[0], f'width="{float(size[1]) * 1.25:.0f}"', 1) if size else body


def _attributes(style: str) -> str:
    pairs = (part.partition(":") for part in style.split(";") if ":" in part)
    return "".join(
        f' {key.strip()}="{value.strip()}"' for key, _, value in pairs if key.strip() not in ("font-family", "font")
    )


def series(index: int) -> dict[str, Any]:
    """Colour, marker and line of a series."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
    }


def bar_lengths(numbers: Iterable[Estimate]) -> list[list[float]]:
    """Distances to both ends of the intervals, as `errorbar` takes them; 0 where there is no interval."""
    pairs = [(number.value - number.ci_low, number.ci_high - number.value) for number in numbers]
    return [[max(0.0, pair[side]) if math.isfinite(pair[side]) else 0.0 for pair in pairs] for side in (0, 1)]


def error_bars(
    axis: Any,
    index: int,
    name: str | None,
    positions: Sequence[float],
    numbers: Sequence[Estimate],
    *,
    across: bool = False,
    line: bool = True,
    texts: Sequence[str] | None = None,
) -> None:
    """A series of values with their intervals along y, joined by a line if `line`; along x, unjoined, if `across`."""
    look = series(index) | ({} if line and not across else {"linestyle": "none"})
    values = [number.value for number in numbers]
    x, y = (values, positions) if across else (positions, values)
    bars = {"xerr" if across else "yerr": bar_lengths(numbers)}
    container = axis.errorbar(x, y, **bars, label=name, elinewidth=1, **look)
    if texts is not None:
        hover(container.lines[0], texts)


def limit_axis(axes: Any, numbers: Iterable[Estimate], axis: str = "y") -> None:
    """Limits from the values: intervals widen them by at most the span of the values on each side."""
    log = getattr(axes, f"get_{axis}scale")() == "log"
    shown = [x for x in numbers if math.isfinite(x.value) and (x.value > 0 or not log)]
    if not shown:
        return

    def position(value: float) -> float:
        return math.log(max(value, 1e-300)) if log else value

    values = [position(number.value) for number in shown]
    ends = [position(end) for number in shown for end in (number.ci_low, number.ci_high) if math.isfinite(end)]
    smallest, largest = min(values), max(values)
    span = max(largest - smallest, 0.1 * max(map(abs, values)), 1e-9)
    low, high = max(smallest - span, min([*ends, smallest])), min(largest + span, max([*ends, largest]))
    pad = 0.06 * max(high - low, span / 2)
    start = max(low - pad, 0.0) if low > 0 and not log else low - pad  # no room for impossible values, but for a 0
    getattr(axes, f"set_{axis}lim")(*(math.exp(x) if log else x for x in (start, high + pad)))


@contextlib.contextmanager
def look() -> Iterator[None]:
    """Draw within it: line widths, markers and caps are set when they are drawn."""
    import matplotlib

    with matplotlib.rc_context(_LOOK):
        yield


def save(canvas: Figure, stem: Path) -> list[Path]:
    """Write `stem`.svg (vector) and `stem`.png (200 dpi); returns both paths."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(_LOOK):
        if (engine := canvas.get_layout_engine()) is not None:
            engine.execute(canvas)
            canvas.set_layout_engine("none")  # it is laid out: saving would do it again, and draw twice
        canvas.savefig(svg, format="svg", metadata={"Date": None})
        canvas.set_dpi(200)
        agg: Any = FigureCanvasAgg(canvas)
        agg.draw()
        _save_png(agg.buffer_rgba(), png)
    paths = [stem.with_name(stem.name + ending) for ending in (".svg", ".png")]
    for path, content in zip(paths, (svg, png), strict=True):
        write_output(path, content.getvalue())
    return paths


def _save_png(pixels: Any, out: IO[bytes]) -> None:
    """A palette of 256 colours: a third of the size, and figures have fewer colours than that to lose.

    Octrees: nearly as small as median cuts, in a tenth of the time.
    """
    from PIL import Image  # matplotlib needs it, so it is there

    rows, columns = pixels.shape[:2]
    picture = Image.frombuffer("RGBA", (columns, rows), pixels, "raw", "RGBA", 0, 1).convert("RGB")
    picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "png", compress_level=6)
