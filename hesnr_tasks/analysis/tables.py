"""Tables for people, spreadsheets and programs, and the tables of `hesnr analyze`, each of one run."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.breakdowns import (
    POPULATIONS,
    Valley,
    density,
    grouped,
    histogram,
    mass_near,
    population,
    valley,
)
from hesnr_tasks.analysis.frame import Frame, Selection, grid_sums, group_sums, token_sums
from hesnr_tasks.errors import SettingsError, printable
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.metrics import EPSILON, METRICS, Share, TrajectorySums, evaluate, measure, names_of, share_scored
from hesnr_tasks.metrics.definitions import state_order
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate, Scale, effective_number, estimates

FORMATS = ("text", "markdown", "csv", "json")
REPRODUCIBLE = 6  # significant digits that float32 scores give alike on any CPU
_HEADINGS = {"epsilon": "ε", "tokens_cut": "cut", "effective": "n_eff", "p_holm": "p holm"}


class Table(NamedTuple):
    """Rows with the same columns, the essential ones first.

    Attributes:
        name: for file names and JSON.
        title: for people.
        rows: cells by column.
        notes: for people.
        wide: columns that people see only if they ask for all.
        below: long ones, which text shows under the row.
        essential: columns that text shows however narrow the terminal is, beside the first two.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    wide: Sequence[str] = ()
    below: Sequence[str] = ()
    essential: Sequence[str] = ("verdict", "scored")

    @property
    def columns(self) -> list[str]:
        """All columns, in the order of their first row."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def show(
    tables: Sequence[Table], format: str, about: Mapping[str, Any], digits: int = 17, *, wide: bool = False
) -> str:
    """All tables in one format.

    Args:
        tables: what to show.
        format: one of `FORMATS`; CSV has one block a table. Text fits the terminal, or 100 columns where there is none.
        about: what goes into JSON beside them.
        digits: significant digits of numbers in CSV.
        wide: text and Markdown show all columns, however many.
    """
    if format == "json":
        content = {table.name: [_plain(row) for row in table.rows] for table in tables}
        return json.dumps({**about, "tables": content}, indent=1, ensure_ascii=False, allow_nan=False)
    if format == "csv":
        return "\n".join(_csv(table, digits, named=len(tables) > 1) for table in tables).rstrip("\n")
    lines = _markdown if format == "markdown" else _text
    return "\n\n".join("\n".join(lines(table, wide)) for table in tables)


def write_tables(folder: Path, name: str, tables: Sequence[Table], about: Mapping[str, Any]) -> None:
    """A CSV file a table, and all of them in `name`.json; `SettingsError` where the folder cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"-o {folder}: no folder can be made there ({error.strerror})") from None
    for table in tables:
        stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in table.name)
        write_output(folder / f"{stem}.csv", (show([table], "csv", {}) + "\n").encode())
    write_output(folder / f"{name}.json", (show(tables, "json", about) + "\n").encode())


def interval(number: Estimate, digits: int = 3) -> str:
    """[low, high] for people; a dash where there is none."""
    ends = f"[{number.ci_low:.{digits}f}, {number.ci_high:.{digits}f}]"
    return "–" if math.isnan(number.ci_low) else ends


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no infinity."""
    if isinstance(value, Estimate):
        return {name: _plain(part) for name, part in zip(("value", "stderr", "low", "high"), value, strict=True)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def _csv(table: Table, digits: int, *, named: bool) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if named:
        writer.writerow([_csv_cell(f"# {table.name}", digits)])
    numbers = {name for row in table.rows for name, value in row.items() if isinstance(value, Estimate)}
    columns = table.columns
    heading: list[str] = []
    for name in columns:
        heading += [f"{name}{part}" for part in ("", "_stderr", "_low", "_high")] if name in numbers else [name]
    writer.writerow([_csv_cell(name, digits) for name in heading])
    for row in table.rows:
        cells: list[Any] = []
        for name in columns:
            value = row.get(name)
            if name in numbers:
                cells += value if isinstance(value, Estimate) else Estimate(math.nan if value is None else value)
            else:
                cells.append(value)
        writer.writerow([_csv_cell(cell, digits) for cell in cells])
    return out.getvalue()


def _csv_cell(value: Any, digits: int) -> str:
    value = _plain(value)
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    text = repr(float(f"{value:.{digits}g}")) if isinstance(value, float) else str(value)
    # a spreadsheet would run a text that begins like a formula; texts of trajectories are not to be trusted
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


_GAP, _NARROW = 2, 16  # columns between cells; a name is not shortened below the latter
_NAMED = 6  # columns that are not shown
_NUMBER = re.compile(r"[–+−-]?(\d.*)?")


class _Cells(NamedTuple):
    """A table as people see it: texts, and which columns stand on the left."""

    title: str
    names: list[str]
    lines: list[list[str]]  # the headings first
    left: list[bool]
    hidden: list[str]  # headings of columns that are not shown
    essential: Sequence[str] = ()  # of `names`

    def take(self, columns: Sequence[int]) -> _Cells:
        """Only some of the columns."""
        gone = [self.lines[0][i] for i in range(len(self.names)) if i not in columns]
        return _Cells(
            self.title,
            [self.names[i] for i in columns],
            [[line[i] for i in columns] for line in self.lines],
            [self.left[i] for i in columns],
            [*gone, *self.hidden],
            self.essential,
        )

    @property
    def widths(self) -> list[int]:
        """Of the columns."""
        return [max(display_width(line[i]) for line in self.lines) for i in range(len(self.names))]

    @property
    def width(self) -> int:
        """Of a line."""
        return sum(self.widths) + _GAP * (len(self.names) - 1)


def _cells(table: Table, *, wide: bool) -> _Cells:
    # a setting that is the same in all rows stands in the title
    first = table.rows[0] if len(table.rows) > 1 else {}
    settings = [name for name in ("select", "k", "epsilon") if name in first]
    shared = {name: first[name] for name in settings if all(row.get(name) == first[name] for row in table.rows)}
    title = ", ".join(
        [printable(table.title), *(f"{_heading(name)} = {_cell(value)}" for name, value in shared.items())]
    )
    names = [name for name in table.columns if name not in {*table.below, *shared}]
    lines = [[_heading(name) for name in names]]
    lines += [[_cell(row.get(name)) for name in names] for row in table.rows]
    left = [not all(_NUMBER.fullmatch(line[i]) for line in lines[1:]) for i in range(len(names))]
    cells = _Cells(title, names, lines, left, [], table.essential)
    if wide:
        return cells
    filled = [i for i in range(len(names)) if any(line[i] not in ("", "–") for line in lines[1:])]
    shown = cells.take([i for i in filled if names[i] not in table.wide])
    return shown._replace(hidden=[lines[0][i] for i in filled if names[i] in table.wide])


def _fitted(cells: _Cells, width: int) -> _Cells:
    """Without the last columns, and with shortened names, as far as `width` demands it."""
    while cells.width > width:
        removable = [i for i, name in enumerate(cells.names) if i > 1 and name not in cells.essential]
        if not removable:
            break
        cells = cells.take([i for i in range(len(cells.names)) if i != removable[-1]])
    room = cells.widths[0] - max(0, cells.width - width) if cells.names else 0
    if cells.names and cells.left[0] and _NARROW <= room < cells.widths[0]:
        head, tail = room // 3, room - room // 3 - 1  # names of checkpoints differ at the end
        names = [line[0] for line in cells.lines]
        short = [name if len(name) <= room else f"{name[:head]}…{name[len(name) - tail :]}" for name in names]
        if len(set(short)) == len(set(names)):  # still told apart
            lines = [[name, *line[1:]] for name, line in zip(short, cells.lines, strict=True)]
            cells = cells._replace(lines=lines)
    return cells


def _text(table: Table, wide: bool) -> Iterator[str]:
    below = [
        [line for name in table.below for line in _wrapped(f"{_heading(name)}: {_long(row[name])}", "    ")]
        for row in table.rows
    ]
    return _text_lines(_cells(table, wide=wide), table.notes, below, wide=wide)


def text_table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, notes: Sequence[str] = (), wide: bool = False
) -> str:
    """A table of texts, as `show` has them."""
    left = [not all(_NUMBER.fullmatch(row[i]) for row in rows) for i in range(len(headings))]
    lines = [[printable(cell) for cell in line] for line in (headings, *rows)]
    return "\n".join(_text_lines(_Cells(printable(title), list(headings), lines, left, []), notes, wide=wide))


def _text_lines(
    cells: _Cells, notes: Sequence[str], below: Sequence[Sequence[str]] = (), *, wide: bool
) -> Iterator[str]:
    """`below`: lines under each row."""
    shown = cells if wide else _fitted(cells, _columns())
    yield from _wrapped(shown.title)
    widths = shown.widths
    for i, line in enumerate(shown.lines):
        spaces = [" " * (size - display_width(cell)) for cell, size in zip(line, widths, strict=True)]
        aligned = zip(line, spaces, shown.left, strict=True)
        yield (" " * _GAP).join(cell + space if left else space + cell for cell, space, left in aligned).rstrip()
        if i == 0:
            yield (" " * _GAP).join("-" * size for size in widths)
        elif below:
            yield from below[i - 1]
    for note in (*notes, *_not_shown(shown)):
        yield from _wrapped(printable(note), "  ")


def _not_shown(cells: _Cells) -> Iterator[str]:
    if cells.hidden:
        listed = ", ".join(cells.hidden[:_NAMED]) + ("" if len(cells.hidden) <= _NAMED else ", …")
        yield f"{len(cells.hidden)} more column{'s' * (len(cells.hidden) > 1)} with --wide: {listed}"


def _columns() -> int:
    """Of the terminal; 100 where there is none."""
    return max(60, shutil.get_terminal_size((100, 24)).columns)


def paragraphs(lines: Iterable[str]) -> str:
    """Sentences as they are printed: on a terminal, wrapped to its width."""
    whole = list(lines)
    if not sys.stdout.isatty():
        return "\n".join(whole)
    return "\n".join(row for line in whole for row in _wrapped(line) or [""])


_DATE = re.compile(r"\(\d{4}-\d\d-\d\d \d\d:\d\d UTC: ")


def notes_on_runs(abouts: Mapping[str, str]) -> list[str]:
    """Which scores each run is of, one note for all runs of the same data."""
    groups: dict[str, list[str]] = {}
    for name, about in abouts.items():
        groups.setdefault(_DATE.sub("(", about), []).append(name)
    return [
        f"{', '.join(names)}: {abouts[names[0]]}" if len(names) == 1 else
        f"{f'all {len(names)} runs' if len(groups) == 1 else ', '.join(names)}: {about}"
        for about, names in groups.items()
    ]  # fmt: skip


def _wrapped(text: str, indent: str = "") -> list[str]:
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, _columns(), initial_indent=indent, subsequent_indent=indent, **options)


def _markdown(table: Table, wide: bool) -> Iterator[str]:
    cells = _cells(table, wide=wide)
    yield from (f"**{escape_markdown(cells.title)}**", "")
    marks = ["---" if left else "---:" for left in cells.left]
    rows = [[escape_markdown(cell) for cell in line] for line in cells.lines]
    yield from (f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:]))
    notes = [*table.notes, *_not_shown(cells)]
    yield from ["", *(f"- {escape_markdown(note)}" for note in notes)] if notes else []


def escape_markdown(text: str) -> str:
    """Names come from files: no markup, and no end of a table's cell."""
    return re.sub(r"([\\|`*<>\[\]])", r"\\\1", printable(text))


def _heading(name: str) -> str:
    if name in METRICS:
        return METRICS[name].title
    return _HEADINGS.get(name, printable(name.replace("_", " ")))


def _long(value: Any) -> str:
    """Text with its line ends made visible; candidates as a list."""
    if isinstance(value, str):
        return printable(json.dumps(value, ensure_ascii=False))
    return "  ".join(f"{_long(word)} {weight:.3f}" for word, weight in value)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Estimate):
        return value.text
    if isinstance(value, Share):
        return f"{value:.1%}{' (!)' * (value < 0.5)}"
    if isinstance(value, float):
        if 0 < abs(value) < 5e-5:
            return f"{value:.0e}"
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.4f}"
    return printable(str(value))


def display_width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    seen = [c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf")]
    return len(seen) + sum(unicodedata.east_asian_width(c) in "WF" for c in seen)


# --- metrics in every setting -----------------------------------------------------------------------------------------

SWEEP = tuple(float(x) for x in np.linspace(math.log(2), math.log(5), 20))
_COUNTS = ("he_tokens", "tokens", "density")
_WIDE = ("effective_tokens", "tokens_cut")
_SHOWN = ("he_snr", "he_ppl", "ppl", "top1_acc")  # of the ratios, in text; CSV and JSON have all
_NOTES = (
    "± is one standard error (cluster bootstrap over trajectories), from n_eff = 2 on; interval: 95 % of HE-SNR, N/A "
    "where n_eff is below 4 or a few trajectories outweigh all others",
    "n_eff: trajectories of equal length that would tell as much about 𝓗 (Kish); scored: share of the tokens that "
    "would count, (!) below a half",
)


class Question(NamedTuple):
    """The settings that one run is analyzed in: every combination of token sets, k and thresholds (in nats)."""

    chosen: Sequence[Selection]
    ks: Sequence[int] = (10,)
    epsilons: Sequence[float] = (EPSILON,)
    resamples: int = RESAMPLES
    seed: int = SEED
    min_tokens: int = 0

    def measure(
        self, sums: TrajectorySums, multiplicity: npt.NDArray[np.int64], names: Sequence[str]
    ) -> list[dict[str, Estimate]]:
        """`metrics.measure` with these bootstrap settings."""
        options: dict[str, Any] = {"resamples": self.resamples, "seed": self.seed, "min_tokens": self.min_tokens}
        return measure(sums, multiplicity, names, **options)

    def settings(self, frame: Frame) -> Iterator[tuple[Selection, int, float, dict[str, Any]]]:
        """Every setting, with the columns that name it."""
        for chosen, k, epsilon in itertools.product(self.chosen, self.ks, self.epsilons):
            yield chosen, k, epsilon, {"run": frame.name, "select": chosen.name, "k": k, "epsilon": epsilon}


def _names() -> tuple[str, ...]:
    """All metrics, counts last."""
    return (*(name for name in names_of() if name not in _COUNTS), *_COUNTS)


def _settings_table(name: str, title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> Table:
    """A table of all metrics, of which people see a few."""
    hidden = (metric for metric in _names() if metric not in (*_SHOWN, *_COUNTS))
    return Table(name, title, rows, notes, wide=(*hidden, *_WIDE))


def results(frame: Frame, question: Question) -> Table:
    """Every metric in every setting: the numbers that lm-eval reports."""
    masks = [chosen.mask for chosen in question.chosen]
    grid = grid_sums(frame, masks, question.ks, question.epsilons)
    sources = np.array([max(1, len(entry.sources)) for entry in frame.entries])
    rows: list[dict[str, Any]] = []
    named = question.settings(frame)
    for mask, sums in zip(masks, grid, strict=True):
        multiplicity = frame.multiplicity(mask)
        settings = TrajectorySums(sums.values.reshape(-1, *sums.values.shape[2:]), sums.names)
        # what overflow=skip leaves out counts as not scored
        tokens = settings[0].column("tokens") * sources
        wanted = tokens.sum() + (frame.n_truncated(mask) * sources).sum()
        scored = (tokens * frame.included(mask)).sum()
        about: dict[str, Any] = {"trajectories": int(multiplicity.sum()), "tokens_cut": int(wanted - scored)}
        about["scored"] = share_scored(scored, wanted - scored)
        for setting, line in zip(settings, question.measure(settings, multiplicity, _names()), strict=True):
            rows.append({**next(named)[3], **_line(line), **about, **_effective(setting, multiplicity)})
    unmet = {
        name: METRICS[name].needs
        for name in names_of()
        if METRICS[name].needs and all(math.isnan(row[name].value) and row["tokens"] for row in rows)
    }
    missing = [f"{name}: not available, it needs {', '.join(needs)}" for name, needs in unmet.items()]
    return _settings_table("results", "Metrics", rows, (*_NOTES, *missing))


def _effective(sums: TrajectorySums, multiplicity: npt.NDArray[np.int64]) -> dict[str, float]:
    """Kish's effective number of trajectories, of 𝓗 and of all tokens that count."""
    repeated = sums.repeat(multiplicity)
    number = {name: round(float(effective_number(repeated.column(name))), 1) for name in ("he_tokens", "tokens")}
    return {"effective": number["he_tokens"], "effective_tokens": number["tokens"]}


def _line(line: Mapping[str, Estimate]) -> dict[str, Any]:
    """Metrics, with HE-SNR's interval as text beside it for people; counts as plain numbers."""
    snr = line["he_snr"]
    ends = "N/A" if math.isnan(snr.ci_low) else snr.interval
    counts: dict[str, Any] = {name: round(line[name].value) for name in ("he_tokens", "tokens") if name in line}
    return {"he_snr": snr, "interval": ends, **{n: x for n, x in line.items() if n != "he_snr"}, **counts}


def breakdown(frame: Frame, question: Question, by: str) -> Table:
    """The metrics of each group of tokens; errors resample the trajectories that have such tokens."""
    groups = grouped(frame, by)
    rows = []
    for chosen, k, epsilon, named in question.settings(frame):
        tokens = np.where(frame.counted(chosen.mask), groups.of_token, -1)
        multiplicity = frame.multiplicity(chosen.mask)
        for group, sums in zip(groups.names, group_sums(frame, tokens, len(groups.names), epsilon, k), strict=True):
            present = multiplicity * (sums.column("tokens") > 0)
            if present.any():
                line = _line(question.measure(sums[None], present, _names())[0])
                about = {"trajectories": int(present.sum()), **_effective(sums, present)}
                rows.append({**named, by: group, **line, **about})
    note = "trajectories: those with such tokens; they are what is resampled"
    return _settings_table(f"by_{by}", f"By {by}", rows, (note,))


def sweep(frame: Frame, question: Question) -> Table:
    """HE-SNR, HE-PPL and |𝓗| at 20 thresholds from ln 2 to ln 5, as far as k allows."""
    rows: list[dict[str, Any]] = []
    for k in question.ks:
        epsilons = [value for value in SWEEP if value < math.log(k)]
        grid = grid_sums(frame, [chosen.mask for chosen in question.chosen], [k], epsilons)
        for chosen, sums in zip(question.chosen, grid[:, 0], strict=True):
            lines = question.measure(sums, frame.multiplicity(chosen.mask), ("he_snr", "he_ppl", *_COUNTS))
            for epsilon, line in zip(epsilons, lines, strict=True):
                named = {"run": frame.name, "select": chosen.name, "k": k, "epsilon": epsilon}
                rows.append({**named, "ways": math.exp(epsilon), **_line(line)})
    bound = ", ".join(f"ln {k} = {math.log(k):.4f} for k = {k}" for k in question.ks)
    notes = (
        f"no entropy exceeds {bound}; the usual ε is {EPSILON:.4f}",
        "ways: e^ε, the number of equally likely continuations with that entropy",
    )
    return Table("sweep", "Threshold sweep, ln 2 to ln 5", rows, notes)


# --- the shape of entropies -------------------------------------------------------------------------------------------


def histograms(frame: Frame, question: Question, bins: int = 100) -> Iterator[Table]:
    """Peaks of the entropies' density, the histogram, and the threshold that the data suggest, beside the fixed one."""
    peaks: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    thresholds: list[dict[str, Any]] = []
    for chosen, k in itertools.product(question.chosen, question.ks):
        counted = frame.counted(chosen.mask)
        valleys = {"fixed": Valley(EPSILON)}
        for name in POPULATIONS:
            entropy = frame.entropy[k][counted & population(frame.rank, name)]
            named = {"run": frame.name, "select": chosen.name, "k": k, "population": name}
            shape = density(entropy, k)
            valleys[f"data ({name})"] = valley(shape)
            near = {f"ln{n}": mass_near(entropy, n) for n in range(1, 6) if n <= k}
            heights = [round(peak.entropy, 4) for peak in sorted(shape.peaks)]
            about = {"tokens": len(entropy), "mode": shape.mode, "peaks": heights, **near, "bandwidth": shape.bandwidth}
            peaks.append({**named, **about})
            bars = histogram(entropy, k, bins)
            edges = itertools.pairwise(bars.edges.tolist())
            for (low, high), count in zip(edges, bars.counts.tolist(), strict=True):
                counts.append({**named, "low": low, "high": high, "tokens": count})
        thresholds += _thresholds(frame, question, chosen, k, valleys)
    note = "mode and peaks of the kernel density, in nats; ln1 … ln5: share of tokens within 0.1 nats"
    yield Table("peaks", "Entropy peaks", peaks, (note,), wide=("bandwidth",))
    yield states(frame, question)
    yield Table("histogram", "Entropy histograms", counts)
    note = "ε of the data: the valley between the density peaks nearest ln 3 and ln 4; beside the fixed one, not for it"
    yield Table("epsilon", "Thresholds", thresholds, (note,))


_NEAR = 0.1  # nats


def states(frame: Frame, question: Question) -> Table:
    """Tokens whose entropy is near ln n beside those that hesitate between n equally likely continuations."""
    rows = []
    trajectory = frame.trajectory()
    for chosen, k in itertools.product(question.chosen, question.ks):
        index = np.flatnonzero(frame.counted(chosen.mask))
        order = state_order(frame.extra["topk_logprobs"][index], k)
        multiplicity = frame.multiplicity(chosen.mask)
        sizes = [n for n in range(1, 6) if n <= k]
        marks = [np.abs(frame.entropy[k][index] - math.log(n)) <= _NEAR for n in sizes] + [order == n for n in sizes]
        per_text = [np.bincount(trajectory[index], mark, len(frame.entries)) for mark in (*marks, np.ones(len(index)))]
        *counts, tokens = (np.repeat(column, multiplicity) for column in per_text)
        shares = estimates(
            np.stack(counts, axis=1), np.repeat(tokens[:, None], len(counts), axis=1), Scale.SHARE,
            resamples=question.resamples, seed=question.seed,
        )  # fmt: skip
        for i, n in enumerate(sizes):
            near, inside = i, i + len(sizes)
            rows.append({
                "run": frame.name, "select": chosen.name, "k": k, "n": n,
                "near": int(counts[near].sum()), "share_near": shares[near],
                "states": int(counts[inside].sum()), "share_states": shares[inside],
            })  # fmt: skip
    note = (
        f"near: entropy within {_NEAR} nats of ln n; states: the candidates, renormalised, within total variation 0.2 "
        "of n equally likely ones"
    )
    return Table("states", "Hesitation between n continuations", rows, (note,))


def _thresholds(
    frame: Frame, question: Question, chosen: Selection, k: int, valleys: Mapping[str, Valley]
) -> Iterator[dict[str, Any]]:
    """The metrics at each threshold; where there is none, why."""
    names = ("he_snr", "he_ppl", "he_tokens", "density")
    for source, (epsilon, reason) in valleys.items():
        row = {"run": frame.name, "select": chosen.name, "k": k, "source": source, "epsilon": epsilon}
        if epsilon < math.log(k):
            sums = token_sums(frame, frame.counted(chosen.mask), epsilon, k)
            line = question.measure(sums[None], frame.multiplicity(chosen.mask), names)[0]
            yield {**row, **line, "he_tokens": round(line["he_tokens"].value), "note": reason}
        else:
            note = reason or f"no entropy of {k} candidates exceeds ln {k}"
            yield {**row, **dict.fromkeys(names, Estimate(math.nan)), "he_tokens": None, "note": note}


# --- trajectories -----------------------------------------------------------------------------------------------------

_PROFILE = ("density", "he_snr", "he_ppl", "ppl", "he_tokens", "tokens")


def profiles(frame: Frame, question: Question) -> Iterator[Table]:
    """Trajectories ranked by decision density |𝓗| / |M|, in every setting; a text that two have is two rows.

    One forward pass over training data, 2 FLOP a parameter and token and a third of an epoch's, gives how often the
    model hesitates between real continuations and the text takes one of them (density), and how sure it is (HE-SNR).
    """
    for chosen, k, epsilon, named in question.settings(frame):
        sums = token_sums(frame, frame.counted(chosen.mask), epsilon, k)
        values = {name: evaluate(METRICS[name], *sums.parts(name)).tolist() for name in _PROFILE}
        n_truncated, included = frame.n_truncated(chosen.mask).tolist(), frame.included(chosen.mask)
        rows = [
            {
                "trajectory": source.id if source else frame.entries[i].key[:12],
                "instance": source.instance_id if source else None,
                "resolved": source.resolved if source else None,
                **{name: values[name][i] for name in _PROFILE},
                "tokens_cut": n_truncated[i],
                "key": frame.entries[i].key,
            }
            for i in np.flatnonzero(included)
            for source in (frame.entries[i].sources or (None,))
        ]
        rows.sort(key=lambda row: (-np.nan_to_num(row["density"], nan=-1.0), row["trajectory"]))
        note = (
            "density: share of tokens that are decisions; a forward pass over the data (a third of an epoch) gives it"
        )
        title = "Trajectories, the densest in decisions first"
        yield Table("by_trajectory", title, [{**named, **row} for row in rows], (note,), wide=("key", "instance"))


# --- single decision tokens near ln 2, ln 3, ln 4, the text before them, and the candidates with their probabilities --

_BEFORE = 240  # characters of text before the token
_CANDIDATES_SHOWN = 10  # candidates


class TokenTexts:
    """The text of each token id of a run: from the stored vocabulary, else from a text in which the token occurs."""

    def __init__(self, frame: Frame) -> None:
        self._frame, self._vocabulary = frame, frame.store.token_bytes()
        self._occurrences: dict[int, str] = {}
        self._unread = [entry.key for entry in frame.entries]

    def __call__(self, token: int) -> str:
        """The text of a token id; `#` and the id where it is unknown."""
        if self._vocabulary is not None:
            data = self._vocabulary[token] if token < len(self._vocabulary) else None
            return data.decode(errors="replace") if data is not None else f"#{token}"
        while token not in self._occurrences and self._unread:
            key, store = self._unread.pop(), self._frame.store
            _, columns = store.columns(key, ("token_id", "char_start", "char_end"))
            text = store.text(key).rendered.text
            tokens, first = np.unique(columns["token_id"], return_index=True)
            spans = zip(columns["char_start"][first].tolist(), columns["char_end"][first].tolist(), strict=True)
            own = {i: text[a:b] for i, (a, b) in zip(tokens.tolist(), spans, strict=True)}
            self._occurrences = own | self._occurrences
        return self._occurrences.get(token, f"#{token}")


def case_table(frame: Frame, chosen: Selection, k: int, each: int = 5, near: Sequence[int] = (2, 3, 4)) -> Table:
    """The `each` tokens nearest ln 2, ln 3 and ln 4 with the target among the k candidates, one of a trajectory."""
    counted = np.flatnonzero(frame.counted(chosen.mask) & (frame.rank >= 1) & (frame.rank <= k))
    token_texts = TokenTexts(frame)
    rows = []
    for n in near:
        nearest = counted[np.argsort(np.abs(frame.entropy[k][counted] - math.log(n)), kind="stable")]
        owner = np.searchsorted(frame.bounds, nearest, side="right") - 1
        _, first = np.unique(owner, return_index=True)
        for index in nearest[np.sort(first)[:each]].tolist():
            named = {"run": frame.name, "select": chosen.name, "k": k, "near": f"ln {n}"}
            rows.append({**named, **decision(frame, index, k, token_texts)})
    title = "Decision tokens nearest " + ", ".join(f"ln {n}" for n in near)
    note = "candidates: token and probability over the full vocabulary; the text before ends where the token begins"
    return Table(
        "cases", title, rows, (note,), wide=("key", "token_id", "candidate_ids"), below=("before", "candidates")
    )


def decision(frame: Frame, index: int, k: int, token_texts: TokenTexts) -> dict[str, Any]:
    """One token of a frame: where it stands, its entropy (nats), its candidates with full-vocabulary probabilities."""
    entry = frame.entries[int(np.searchsorted(frame.bounds, index, side="right")) - 1]
    names = ("position", "turn", "token_id", "char_start", "char_end", "topk_logprobs", "topk_ids")
    _, columns = frame.store.columns(entry.key, names)
    row = {name: column[int(frame.row[index])] for name, column in columns.items()}
    text = frame.store.text(entry.key).rendered.text
    start, end, shown = int(row["char_start"]), int(row["char_end"]), min(k, _CANDIDATES_SHOWN)
    ids = row["topk_ids"][:shown].tolist()
    probabilities = np.exp(row["topk_logprobs"][:shown].astype(np.float64)).tolist()
    return {
        "trajectory": ",".join(source.id for source in entry.sources),
        "key": entry.key,
        "turn": int(row["turn"]),
        "position": int(row["position"]),
        "entropy": float(frame.entropy[k][index]),
        "p": float(np.exp(np.float64(frame.logprob[index]))),
        "rank": int(frame.rank[index]),
        "token_id": int(row["token_id"]),
        "token": text[start:end],
        "before": text[max(0, start - _BEFORE) : start],
        "candidates": [[token_texts(i), round(p, 6)] for i, p in zip(ids, probabilities, strict=True)],
        "candidate_ids": ids,
    }
