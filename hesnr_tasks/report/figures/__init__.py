"""The registry of figures. A figure is a function from `ReportData` to a `ReportFigure`: caption, tables, `draw`.

To add one, write such a function in a module of this package and give it a line in `FIGURES`.
"""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.plotting import inline_svg, look, save
from hesnr_tasks.report.data import Missing, ReportData, ReportFigure, Workers
from hesnr_tasks.report.figures import entropy, metrics
from hesnr_tasks.report.tables import csv_text

# in the order of the page; each returns None where the data do not allow the figure
FIGURES: list[Callable[[ReportData], ReportFigure | None]] = [
    metrics.accuracy,
    metrics.steps,
    metrics.extension,
    metrics.sft,
    metrics.downstream,
    metrics.sweep,
    metrics.sweep_agreement,
    entropy.action_histograms,
    entropy.action_densities,
    entropy.observation_histograms,
    entropy.observation_densities,
]


class SavedFigure(NamedTuple):
    """A figure as written: its SVG as markup for a page, its PNG, and its CSV files by name."""

    figure: ReportFigure
    svg: Markup
    png: bytes
    csvs: Mapping[str, str]


def report_figures(data: ReportData) -> Iterator[ReportFigure]:
    """The registered figures that the data allow, from the last on the page to the first."""
    for make in reversed(FIGURES):
        if (figure := make(data)) is not None:
            yield figure


def write_figures(data: ReportData, folder: Path, workers: Workers | None = None) -> Iterator[SavedFigure]:
    """Write each figure as .svg, .png and .csv into `folder`.

    Drawing begins with this call, if there are processes to draw: with the histograms, which take longest.

    Args:
        data: of the report.
        folder: is made where it is missing.
        workers: that draw (None: this process).

    Returns:
        The figures in the order of the page, each as soon as it is drawn.
    """
    if importlib.util.find_spec("matplotlib") is None:
        data.missing.append(Missing("figures", "matplotlib is not installed", "pip install 'hesnr-tasks[report]'"))
        return iter(())
    workers = workers or Workers()
    jobs = [(figure, workers.submit(_write_figure, figure, folder)) for figure in report_figures(data)]
    return (SavedFigure(figure, *job()) for figure, job in reversed(jobs))


def _write_figure(figure: ReportFigure, folder: Path) -> tuple[Markup, bytes, dict[str, str]]:
    """What a `SavedFigure` has beside the figure."""
    with look():
        canvas = figure.draw()
        subtitle = textwrap.fill(figure.subtitle, int(13 * canvas.get_figwidth()))  # a line would be clipped
        canvas.suptitle(f"{figure.title}\n{subtitle}", fontsize=9)
    svg, png = save(canvas, folder / figure.name)
    csvs = {f"{table.name}.csv": csv_text(table) for table in figure.tables}
    for name, text in csvs.items():
        write_output(folder / name, text)
    titles = canvas.__dict__.get("hesnr_titles", [])
    # matplotlib escapes its texts, and inline_svg the titles
    return Markup(inline_svg(svg.read_text(encoding="utf-8"), titles, figure.name)), png.read_bytes(), csvs
