"""The registry of figures. A figure is a function from `ReportData` to a `ReportFigure`: caption, tables, `draw`.

To add one, write such a function in a module of this package and give it a line in `FIGURES`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from pickle import PicklingError
from typing import NamedTuple

from markupsafe import Markup

from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.plotting import inline_svg, look, save
from hesnr_tasks.report.data import ReportData, ReportFigure
from hesnr_tasks.report.figures import entropy, metrics
from hesnr_tasks.report.tables import csv_text

__all__ = ["FIGURES", "SavedFigure", "report_figures", "write_figures"]

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


_LONG = 8  # checkpoints, from which on starting processes pays
_WORKERS = 4
# no semaphores, no memory for another process, a figure that cannot be sent to it: all are drawn here
_NO_PROCESSES = (OSError, ImportError, BrokenProcessPool, PicklingError, AttributeError, TypeError)


class SavedFigure(NamedTuple):
    """A figure as written: its SVG as markup for a page, its PNG, and its CSV files by name."""

    figure: ReportFigure
    svg: Markup
    png: bytes
    csvs: Mapping[str, str]


def report_figures(data: ReportData) -> Iterator[ReportFigure]:
    """The registered figures that the data allow."""
    for make in FIGURES:
        if (figure := make(data)) is not None:
            yield figure


def write_figures(data: ReportData, folder: Path) -> list[SavedFigure]:
    """Write each figure as .svg, .png and .csv into `folder`; those of a long ladder in several processes."""
    workers = min(_WORKERS, os.cpu_count() or 1)
    if workers > 1 and len(data.ladder) >= _LONG:
        spawn = multiprocessing.get_context("spawn")
        with contextlib.suppress(*_NO_PROCESSES), ProcessPoolExecutor(workers, spawn) as pool:
            jobs = [(figure, pool.submit(_write_figure, figure, folder)) for figure in report_figures(data)]
            return [SavedFigure(figure, *job.result()) for figure, job in jobs]
    return [SavedFigure(figure, *_write_figure(figure, folder)) for figure in report_figures(data)]


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
