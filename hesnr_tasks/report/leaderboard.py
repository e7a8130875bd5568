"""The leaderboard: checkpoints side by side, every number with its standard error, grouped by signature.

Rows whose numbers were made differently (other data, other filters, another context limit …) are never ranked
together: they stand in tables, or columns, of their own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hesnr_tasks.analysis.tables import REPRODUCIBLE, Table, show
from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.errors import printable
from hesnr_tasks.report.data import UNFILTERED
from hesnr_tasks.report.ladder import Checkpoint
from hesnr_tasks.report.results import Row, Value, groups
from hesnr_tasks.stats import Estimate

if TYPE_CHECKING:
    from hesnr_tasks.report.data import Study

__all__ = [
    "Board",
    "boards",
    "context_boards",
    "csv_text",
    "markdown",
    "number",
    "of_number",
    "plain",
    "side_by_side",
    "write",
]

_COLUMNS = {
    "he_snr": "HE-SNR ↑",
    "he_ppl": "HE-PPL ↓",
    "ppl": "PPL ↓",
    "top1_acc": "Top-1 ↑",
    "entropy": "H_top10",
    "he_tokens": "𝓗 tokens",
    "tokens": "tokens",
    "scored": "scored",
}
_HEADLINES = ("he_snr", "he_ppl", "ppl")
_SHOWN = 3  # metrics of one benchmark that the page has room for; the CSV has all
_DIGITS, _LARGE = 8, 1e8  # beyond that, numbers have an exponent
_UNKNOWN = Value(math.nan)


class Board(NamedTuple):
    """A table of texts: the first column is the checkpoint."""

    title: str
    about: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def boards(rows: Sequence[Row], ladder: Sequence[Checkpoint], by: str = "step") -> list[Board]:
    """All tables: first ours and the benchmarks side by side (where there are any), then each of ours in full."""
    ours = [_detail(group) for group in groups(_ordered(rows, ladder, by)) if group[0].signature]
    if any(row.signature is None for row in rows):
        return [side_by_side(rows, ladder, by), *ours]
    return ours


def context_boards(study: Study) -> list[Board]:
    """Checkpoints whose own contexts differ, side by side at the context of the study: numbers of their score files."""
    found = []
    for select in (study.filtered, UNFILTERED) if study.context is not None else ():
        digests = [one for one in study.digests if select in one.sets]
        lines = []
        for one in digests:
            values = study.values[select][one.name]
            values = {name: values.get(name, Estimate(math.nan)) for name in _COLUMNS}
            values["scored"] = Estimate(one.scored(select))
            lines.append((one.name, *(_cell(name, values[name].value, values[name].stderr) for name in _COLUMNS)))
        about = f"{study.about(select)}, from score files: the tokens that all these checkpoints could see"
        if lines:
            title = f"{select} at a context of {study.context:,}"
            found.append(Board(title, about, ("checkpoint", *_COLUMNS.values()), tuple(lines)))
    return found


def write(
    rows: Sequence[Row], ladder: Sequence[Checkpoint], folder: Path, by: str = "step", more: Sequence[Board] = ()
) -> None:
    """Save the leaderboard as Markdown and CSV; `more`: further boards, for the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([markdown(rows, ladder, by), *map(_markdown, more)])
    write_output(folder / "leaderboard.md", text + "\n")
    write_output(folder / "leaderboard.csv", csv_text(rows, ladder))


def markdown(rows: Sequence[Row], ladder: Sequence[Checkpoint], by: str = "step") -> str:
    """The boards as Markdown."""
    return "\n\n".join(_markdown(board) for board in boards(rows, ladder, by))


def csv_text(rows: Sequence[Row], ladder: Sequence[Checkpoint]) -> str:
    """One line a checkpoint and task: every metric with its error, and what it was made with."""
    names = dict.fromkeys([*_COLUMNS, *(name for row in rows for name in row.values)])
    known = {one.name: one for one in ladder}
    lines: list[dict[str, Any]] = []
    for row in _ordered(rows, ladder, "step"):
        line: dict[str, Any] = {"checkpoint": row.model, "task": row.task}
        for name in names:
            value, error = row.values.get(name, _UNKNOWN)
            line |= {name: value, f"{name}_stderr": error}
        one = known[row.model]
        lines.append(
            {**line, "step": one.step, "context": one.context, "stage": one.stage, "signature": row.comparable}
        )
    return show([Table("leaderboard", "", lines)], "csv", {}, REPRODUCIBLE) + "\n"


def side_by_side(rows: Sequence[Row], ladder: Sequence[Checkpoint], by: str = "step") -> Board:
    """One line a checkpoint, a column for each headline; [a], [b] … mark columns made with different settings."""
    columns = _side(rows)
    names = [one.name for one in ladder]
    if by != "step":
        ranked = [heading for heading in columns if heading.endswith("HE-SNR ↑")]
        if len(ranked) == 1:  # with several, the numbers must not be ranked together
            names = _best_first(names, columns[ranked[0]])
    lines = tuple(
        (name, *(_cell(heading.split()[-1], *cells.get(name, _UNKNOWN)) for heading, cells in columns.items()))
        for name in names
        if any(name in cells for cells in columns.values())
    )
    return Board("Side by side", "± is one standard error; [a], [b]: made differently", ("checkpoint", *columns), lines)


def _side(rows: Sequence[Row]) -> dict[str, dict[str, Value]]:
    """For each column heading the value of each checkpoint; ours first. A group of tasks stands for its members."""
    variants: dict[str, list[str]] = {}
    for row in rows:
        known = variants.setdefault(row.task, [])
        if row.comparable not in known:
            known.append(row.comparable)
    cut = {row.task for row in rows if row.signature and row.values["scored"].value < 1}
    found: dict[str, dict[str, Value]] = {}
    for row in sorted(rows, key=lambda row: (row.signature is None, row.task, row.comparable)):
        mark = f" [{_letter(variants[row.task].index(row.comparable))}]" if len(variants[row.task]) > 1 else ""
        ours = (*_HEADLINES, "scored") if row.task in cut else _HEADLINES
        for name in () if row.member else ours if row.signature else list(row.values)[:_SHOWN]:
            found.setdefault(f"{row.task}{mark} {_heading(row, name)}", {})[row.model] = row.values[name]
    return found


def _heading(row: Row, name: str) -> str:
    if row.signature:
        return _COLUMNS[name]
    higher = row.higher.get(name.partition(" ")[0])
    return name if higher is None else f"{name} {'↑' if higher else '↓'}"


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else str(index)


def _ordered(rows: Sequence[Row], ladder: Sequence[Checkpoint], by: str) -> list[Row]:
    place = {one.name: at for at, one in enumerate(ladder)}
    found = sorted(rows, key=lambda row: (place[row.model], row.task))
    if by == "step":
        return found
    return sorted(found, key=lambda row: -_or_least(row.values.get("he_snr", _UNKNOWN).value))


def _best_first(names: Sequence[str], cells: Mapping[str, Value]) -> list[str]:
    return sorted(names, key=lambda name: -_or_least(cells.get(name, _UNKNOWN).value))


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _detail(rows: Sequence[Row]) -> Board:
    task, kept = json.loads(rows[0].comparable)
    lines = tuple((row.model, *(_cell(name, *row.values[name]) for name in _COLUMNS)) for row in rows)
    return Board(task, _summary(kept), ("checkpoint", *_COLUMNS.values()), lines)


def _summary(kept: Mapping[str, Any]) -> str:
    filters = " − ".join(["", *kept["filters"]]) if kept["filters"] else ", no filter"
    cut = f", {kept['tokens_cut']} tokens beyond the context of {kept['max_length']}" if kept["tokens_cut"] else ""
    return (
        f"{' + '.join(kept['kinds'])}{filters}; {kept['trajectories']} trajectories ({kept['data'][:10]}), "
        f"{kept['render']}, k = {kept['k']}, ε = {kept['epsilon']:.4f}{cut}; ± is one standard error; "
        "scored: share of the tokens that would count, (!) below a half"
    )


def _cell(name: str, value: float, error: float | None) -> str:
    if name in ("he_tokens", "tokens") and not math.isnan(value):
        return f"{value:.0f}"
    if name == "scored" and not math.isnan(value):
        return f"{value:.1%}{' (!)' * (value < 0.5)}"
    return number(value, error)


def number(value: float, error: float | None = None) -> str:
    """A value with two significant digits of its error."""
    if math.isnan(value):
        return "–"
    if error is None or not 0 < error < math.inf:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    if digits > _DIGITS or abs(value) > _LARGE:
        return f"{value:.4g} ± {error:.1e}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def of_number(value: Estimate) -> str:
    """`number` of a metric with its error."""
    return number(value.value, None if math.isnan(value.stderr) else value.stderr)


def _markdown(board: Board) -> str:
    lines = [
        f"**{plain(board.title)}** – {plain(board.about)}",
        "",
        "| " + " | ".join(map(plain, board.headings)) + " |",
        "| --- |" + " ---: |" * (len(board.headings) - 1),
    ]
    return "\n".join([*lines, *("| " + " | ".join(map(plain, row)) + " |" for row in board.rows)])


def plain(text: str) -> str:
    """Names come from files: none of them is markup, and none ends a cell."""
    return re.sub(r"([\\|`*<>\[\]])", r"\\\1", printable(text))
