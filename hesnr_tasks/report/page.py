"""Writes a report: leaderboard, tables, figures, and one self-contained HTML page of them all.

The page makes no request: a Content-Security-Policy admits its own style and script, by hash, and nothing else. jinja2
escapes every value and matplotlib every text of a figure; none of a name, file or trajectory is markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from hesnr_tasks import __version__
from hesnr_tasks.analysis.summary import UNFILTERED
from hesnr_tasks.analysis.tables import Table, escape_markdown
from hesnr_tasks.errors import HesnrError, printable
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.ladder.evidence import Verdict
from hesnr_tasks.report import tables
from hesnr_tasks.report.data import ReportData
from hesnr_tasks.report.figures import SavedFigure
from hesnr_tasks.stats import CORRELATIONS, Estimate

_LARGEST = 96_000  # bytes of a CSV or PNG file that the page embeds; larger ones are beside it
_DIGIT, _WORD = re.compile(r"\d").search, re.compile(r"[^\W\d_e]").search  # e: of an exponent
_HEROES = ("fig02_steps", "fig06_downstream")  # the first there is stands under the verdict; with coefficients the last


def write_report(data: ReportData, folder: Path, figures: Iterable[SavedFigure], sort: str = "step") -> int:
    """Write verdict.json, leaderboard.md and .csv, tables/*.csv, captions and report.html; returns how many figures.

    Args:
        data: of the report.
        folder: to write into.
        figures: as `write_figures` gives them.
        sort: order of the leaderboard, "step" or "he_snr".

    Raises:
        HesnrError: the folder cannot be written.
    """
    try:
        tables.write_leaderboard(data.results, data.ladder, folder, sort, tables.context_boards(data))
        cases = [summary.cases for summary in data.summaries if summary.cases is not None]
        by_name = {
            table.name: table
            for table in (
                *(make(data) for make in (tables.agreements, tables.ablation, tables.neighbours, tables.entropy_peaks)),
                cases[-1] if cases else Table("cases", "", []),
            )
        }
        for table in by_name.values():
            if table.rows:
                write_output(folder / "tables" / f"{table.name}.csv", tables.csv_text(table))
        saved = list(figures)
        captions = [f"**{f.name}** – {f.title} (paper: {f.paper}). {escape_markdown(f.caption)}\n" for f, *_ in saved]
        write_output(folder / "figures" / "captions.md", "\n".join(captions))
        if data.verdict is not None:
            write_output(folder / "verdict.json", data.verdict.to_json() + "\n")
        write_output(folder / "report.html", render(data, by_name, saved, sort))
    except OSError as error:
        raise HesnrError(
            f"cannot write {error.filename or folder} ({error.strerror}); name another folder with -o"
        ) from None
    return len(saved)


def render(data: ReportData, by_name: Mapping[str, Table], figures: Sequence[SavedFigure], sort: str = "step") -> str:
    """The page as HTML.

    Args:
        data: of the report.
        by_name: the tables correlations, ablation, neighbours, entropy_peaks, cases.
        figures: to be embedded.
        sort: order of the leaderboard, "step" or "he_snr".
    """
    files = resources.files("hesnr_tasks.report") / "templates"
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    of_style, of_script = (base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (style, script))
    signature: dict[str, Any] = {
        "report": {"hesnr_tasks": __version__, "k": data.k, "epsilon": data.epsilon}
        | {"resamples": data.resamples, "seed": data.seed},
        "score files": {summary.name: summary.signature for summary in data.summaries},
        "results": [
            {"checkpoint": r.model, "task": r.task, "settings": r.signature or json.loads(r.comparable)}
            for r in data.results
        ],
    }
    heroes = reversed(_HEROES) if by_name["correlations"].rows else _HEROES
    return _environment().get_template("page.html.j2").render(
        data=data,
        boards=[*tables.boards(data.results, data.ladder, sort), *tables.context_boards(data)],
        verdict=_verdict_table(data.verdict) if data.verdict else [],
        agreement=list(_agreements(data, by_name["correlations"])),
        ablation=_ablation_grid(data, by_name["ablation"]),
        neighbours=[_neighbour_cells(row) for row in by_name["neighbours"].rows],
        peaks=[
            [tables.token_set_title(value) if name == "select" else _cell(value) for name, value in row.items()]
            for row in by_name["entropy_peaks"].rows
        ],
        main=_main_group(data),
        tables=by_name,
        judged={name for scores in data.downstream.values() for name in scores},
        figures=figures,
        hero=next((f for name in heroes for f in figures if f.figure.name == name), None),
        signature=json.dumps(signature, indent=1),
        version=__version__,
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src 'sha256-{of_style}'; script-src 'sha256-{of_script}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    def printable_only(value: Any) -> Any:
        """Applied to every value before it is escaped."""
        return value if isinstance(value, Markup) else printable(str(value))

    def data_url(content: str | bytes, mime: str) -> str:
        data = content if isinstance(content, bytes) else content.encode()
        return f"data:{mime};base64,{base64.b64encode(data).decode()}"

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hesnr_tasks.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=printable_only,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "raw": Markup,  # our own style and script
        "data_url": data_url,
        "embeddable": lambda content: len(content) <= _LARGEST,
        "number_columns": _number_columns,
        "lines": lambda text: Markup(escape(printable(text, keep="\n\t"))),
        # a token with its line ends, tabs and spaces visible
        "token": lambda text: text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅",
    }
    return environment


def _number_columns(rows: Sequence[Sequence[Any]]) -> list[int]:
    """Which columns, beside the first, have numbers and no words; they are aligned and sorted as numbers."""
    cells = [
        ["".join(cell[:1] if isinstance(cell, tuple) else cell) for cell in column]
        for column in zip(*rows, strict=True)
    ]
    return [
        i for i, column in enumerate(cells)
        if i and any(map(_DIGIT, column)) and not any(map(_WORD, column))
    ]  # fmt: skip


def _verdict_table(verdict: Verdict) -> list[list[str]]:
    """Headings, then a row a checkpoint: what it is, its metrics, its downstream scores."""
    table = verdict.table
    columns = [name for name in table.columns if name not in table.wide]
    return [
        [tables.metric_title(name.replace("_measured", " measured")) for name in columns],
        *([_cell(row[name]) for name in columns] for row in table.rows),
    ]


def _main_group(data: ReportData) -> str:
    """The task and the checkpoints that coefficients of the ablation are of."""
    task, _, checkpoints = data.main_group(data.values.get(data.filtered, {}))
    return f"{task} of {checkpoints[0].name} to {checkpoints[-1].name}" if checkpoints else ""


def _agreements(data: ReportData, table: Table) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Of each downstream task and group of checkpoints: a title, the headline rows, and the ablation's."""
    heads = (UNFILTERED, data.filtered)
    for task, group in dict.fromkeys((row["task"], row["group"]) for row in table.rows):
        rows = [row for row in table.rows if (row["task"], row["group"]) == (task, group)]
        head, more = (
            [_agreement_cells(row) for row in rows if (row["select"] in heads) == first] for first in (True, False)
        )
        yield f"{task}, {group} checkpoints" if "," not in group else f"{task}, {group}", head, more


def _agreement_cells(row: Mapping[str, Any]) -> list[str | tuple[str, ...]]:
    """A tuple: a value, and lines below it."""
    cells: list[str | tuple[str, ...]] = [tables.token_set_title(row["select"]), tables.metric_title(row["metric"])]
    cells.append(_cell(row["checkpoints"]))
    for name in CORRELATIONS:
        intervals = [
            f"{over} [{row[f'{name}_{over}_low']:.2f}, {row[f'{name}_{over}_high']:.2f}]"
            for over in ("checkpoints", "trajectories")
            if not math.isnan(row[f"{name}_{over}_low"])
        ]
        cells.append(("–" if math.isnan(row[name]) else f"{row[name]:.3f}", *intervals))
    return cells


def _ablation_grid(data: ReportData, table: Table) -> list[list[str]]:
    """Headings, then rows; empty without rows."""
    names = [checkpoint.name for checkpoint in data.ladder if any(checkpoint.name in row for row in table.rows)]
    keys = ["pearson", "kendall", "paper_pearson", "paper_kendall", *names]
    cells = []
    for row in table.rows:
        filters = row["filter"].split(" + ") if row["filter"] != "none" else []
        title = tables.token_set_title("-".join([row["tokens"], *filters]))
        cells.append([title, *(_cell(row.get(key)) for key in keys)])
    return [["tokens", "r", "τ", "paper r", "paper τ", *names], *cells] if cells else []


def _neighbour_cells(row: Mapping[str, Any]) -> list[str]:
    gain = "–" if math.isnan(row["steps"]) else f"{row['steps']:+.1f}"
    names = [tables.token_set_title(row["select"]), tables.metric_title(row["metric"]), row["from"], row["to"]]
    return [*names, tables.with_interval(row["difference"]), _p_value(row["p"]), gain]


def _p_value(p: float) -> str:
    """Resamples cannot tell a p below 1e-4 from 0, nor one of 0.0004 from 0.000 by three decimals."""
    return "≤ 1e-4" if p <= 1e-4 else f"{p:.4f}" if p < 1e-3 else _cell(p)


def _cell(value: Any) -> str:
    """A number or word in a table."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, Estimate):
        return value.text
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.3f}"
    return str(value)
