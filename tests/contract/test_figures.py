"""Every registered figure: drawn from few or many checkpoints, with or without scores, whatever the names hold."""

import csv
import io
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from hesnr_tasks.analysis.summary import OBSERVATION
from hesnr_tasks.plotting import look
from hesnr_tasks.report.figures import FIGURES, report_figures, write_figures
from hesnr_tasks.report.tables import csv_text
from hesnr_tasks.stats import Estimate
from tests.unit.report import ladders

HOSTILE = (
    "step1-2k$x_{</svg><script>",
    "step3-8k<b>",
    "step4-8k &lt;",
    "step2-8k $a$ $\\frac$ &amp;\x1b[31m\x00",
    "step2-8k $a$ $\\frac$-sft",
)
MANY = (*(f"step{i}-{2 + 6 * (i > 7)}k" for i in range(1, 14)), "step13-8k-sft")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Number of checkpoints, and whether there are downstream scores and observations -> data of a report."""
    folder = tmp_path_factory.mktemp("figures")
    many = ladders.score_files(folder / "many", MANY, 4, 40)
    two = dict(list(many.items())[6:8])
    return {
        "one": ladders.report_data(dict(list(many.items())[:1]), downstream=False),
        "two": ladders.report_data(two, downstream=False),
        "two, with downstream scores": ladders.report_data(two),
        "many": ladders.report_data(many, downstream=False),
        "many, with downstream scores and observations": with_observations(ladders.report_data(many)),
        "none": ladders.report_data({}, downstream=False, names=["step1"]),
    }


def with_observations(data):
    """The filtered actions once more, as if they were observations."""
    summaries = [
        replace(
            summary,
            runs={**summary.runs, OBSERVATION: summary.runs[data.filtered]},
            distributions=(*summary.distributions, *(d._replace(select=OBSERVATION) for d in summary.distributions)),
        )
        for summary in data.summaries
    ]
    return replace(data, summaries=tuple(summaries))


@pytest.mark.parametrize("make", FIGURES, ids=lambda make: make.__name__)
def test_every_figure_is_drawn_where_the_data_allow_it_from_numbers_in_its_csv(reports, make):
    figures = [figure for data in reports.values() if (figure := make(data)) is not None]
    assert figures
    assert make(reports["none"]) is None
    for figure in figures:
        assert figure.title
        assert figure.subtitle
        assert figure.caption.endswith(".")
        with look():
            canvas = figure.draw()
        assert canvas.axes
        assert all(axes.has_data() for axes in canvas.axes)
        rows = [row for table in figure.tables for row in csv.DictReader(io.StringIO(csv_text(table)))]
        numbers = np.array(sorted({float(cell) for row in rows for cell in row.values() if _is_number(cell)}))
        for values in (values for axes in canvas.axes for values in _drawn_values(axes)):
            finite = values[np.isfinite(values)]
            right = np.clip(np.searchsorted(numbers, finite), 1, len(numbers) - 1)
            distance = np.abs(np.stack([numbers[right - 1], numbers[right]]) - finite).min(axis=0)
            assert (distance <= 1e-5 * np.abs(finite) + 1e-5).all()


def _is_number(cell):
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _drawn_values(axes):
    """y of every series of points that is not an annotation, and heights of histograms."""
    from matplotlib.patches import StepPatch

    for line in axes.lines:
        heights = list(line.get_ydata())
        over_the_axis = heights == [0, 1]  # a vertical line
        if line.get_transform().contains_branch(axes.transData) and len(heights) > 1 and not over_the_axis:
            yield np.asarray(heights, dtype=float)
    for patch in axes.patches:
        if isinstance(patch, StepPatch):
            yield np.asarray(patch.get_data().values, dtype=float)


def test_names_are_shown_as_they_are(tmp_path):
    data = ladders.report_data(ladders.score_files(tmp_path / "scores", HOSTILE, 4, 40))
    saved = list(write_figures(data, tmp_path / "figures"))
    assert {item.figure.name for item in saved} == {
        "fig01_ppl_accuracy", "fig02_steps", "fig07_extension", "fig08_sft", "fig06_downstream", "sweep",
        "sweep_correlations", "fig03_entropy", "fig03_density",
    }  # fmt: skip
    for figure, svg, _, csvs in saved:
        root = ElementTree.fromstring(str(svg))  # as it stands in the page
        assert not [element for element in root.iter() if element.tag.endswith("script")]
        assert (tmp_path / "figures" / f"{figure.name}.png").stat().st_size > 5000
        assert csvs
        assert all((tmp_path / "figures" / name).read_text() == text for name, text in csvs.items())


def test_figures_have_names_of_their_own(reports):
    names = [figure.name for figure in report_figures(reports["many, with downstream scores and observations"])]
    assert len(set(names)) == len(names)


def test_a_missing_number_is_no_point():
    from hesnr_tasks.plotting import bar_lengths

    assert bar_lengths([Estimate(2.0, 0.5, 1.5, 3.0), Estimate(1.0)]) == [[0.5, 0.0], [1.0, 0.0]]
