"""Tables for people, spreadsheets and programs."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.analysis.measures import Number, Share
from hesnr_tasks.errors import SettingsError, printable
from hesnr_tasks.scores.files import write_whole

__all__ = ["FORMATS", "REPRODUCIBLE", "Table", "interval", "show", "write_tables"]

FORMATS = ("text", "csv", "json")
REPRODUCIBLE = 6  # significant digits that float32 scores give alike on any CPU
_HEADINGS = {
    "he_snr": "HE-SNR ↑",
    "he_ppl": "HE-PPL ↓",
    "ppl": "PPL ↓",
    "top1_acc": "Top-1 ↑",
    "entropy": "entropy",
    "he_tokens": "|𝓗|",
    "tokens": "|M|",
    "density": "|𝓗|/|M|",
    "epsilon": "ε",
    "tokens_cut": "cut",
    "effective": "n_eff",
}


class Table(NamedTuple):
    """Rows with the same columns. `wide`: columns that only CSV and JSON show; `below`: those that text shows under
    the row, as they are long.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    wide: Sequence[str] = ()
    below: Sequence[str] = ()


def show(tables: Sequence[Table], format: str, about: Mapping[str, Any], digits: int = 17) -> str:
    """All tables as text, CSV (one block a table, numbers of `digits` digits) or JSON, which `about` goes into."""
    if format == "json":
        found = {table.name: [_plain(row) for row in table.rows] for table in tables}
        return json.dumps({**about, "tables": found}, indent=1, ensure_ascii=False, allow_nan=False)
    if format == "csv":
        return "\n".join(_csv(table, digits, named=len(tables) > 1) for table in tables).rstrip("\n")
    return "\n\n".join("\n".join(_text(table)) for table in tables)


def write_tables(folder: Path, name: str, tables: Sequence[Table], about: Mapping[str, Any]) -> None:
    """A CSV file a table, and all of them in `name`.json; `SettingsError` where no folder can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"-o {folder}: no folder can be made there ({error.strerror})") from None
    for table in tables:
        stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in table.name)
        write_whole(folder / f"{stem}.csv", (show([table], "csv", {}) + "\n").encode())
    write_whole(folder / f"{name}.json", (show(tables, "json", about) + "\n").encode())


def interval(number: Number, digits: int = 3) -> str:
    """[low, high] for people; a dash where there is none."""
    return "–" if math.isnan(number.low) else f"[{number.low:.{digits}f}, {number.high:.{digits}f}]"


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no infinity."""
    if isinstance(value, Number):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def _columns(table: Table) -> list[str]:
    return list(dict.fromkeys(name for row in table.rows for name in row))


def _csv(table: Table, digits: int, *, named: bool) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if named:
        writer.writerow([_csv_cell(f"# {table.name}", digits)])
    numbers = {name for row in table.rows for name, value in row.items() if isinstance(value, Number)}
    columns = _columns(table)
    parts = {name: ["", "_stderr", "_low", "_high"] if name in numbers else [""] for name in columns}
    writer.writerow([_csv_cell(name + part, digits) for name in columns for part in parts[name]])
    for row in table.rows:
        cells = (row.get(name) if name not in numbers else row.get(name, Number(math.nan)) for name in columns)
        writer.writerow(
            [_csv_cell(x, digits) for cell in cells for x in (cell if isinstance(cell, Number) else [cell])]
        )
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


def _text(table: Table) -> Iterator[str]:
    shared = _shared(table)
    yield ", ".join([printable(table.title), *(f"{_heading(name)} = {_cell(value)}" for name, value in shared.items())])
    columns = [name for name in _columns(table) if name not in {*table.wide, *table.below, *shared}]
    cells = [[_heading(name) for name in columns]]
    cells += [[_cell(row.get(name)) for name in columns] for row in table.rows]
    widths = [max(_width(line[i]) for line in cells) for i in range(len(columns))]
    left = [not any(isinstance(row.get(name), (int, float, Number)) for row in table.rows) for name in columns]
    for line, row in zip(cells, [None, *table.rows], strict=True):
        padded = (_pad(cell, width, to_left) for cell, width, to_left in zip(line, widths, left, strict=True))
        yield "  ".join(padded).rstrip()
        if row is None:
            yield "  ".join("-" * width for width in widths)
        else:
            yield from (f"    {_heading(name)}: {_long(row[name])}" for name in table.below)
    yield from (f"  {printable(note)}" for note in table.notes)


def _shared(table: Table) -> dict[str, Any]:
    """What is the same in all rows is said once, in the title."""
    first = table.rows[0] if len(table.rows) > 1 else {}
    names = [name for name in ("select", "k", "epsilon") if name in first]
    return {name: first[name] for name in names if all(row.get(name) == first[name] for row in table.rows)}


def _heading(name: str) -> str:
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
    if isinstance(value, Number):
        return _cell(value.value) if math.isnan(value.stderr) else f"{_cell(value.value)} ± {_cell(value.stderr)}"
    if isinstance(value, Share):
        return f"{value:.1%}{' (!)' * (value < 0.5)}"
    if isinstance(value, float):
        if 0 < abs(value) < 5e-5:
            return f"{value:.0e}"
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.4f}"
    return printable(str(value))


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def _pad(text: str, width: int, to_left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if to_left else space + text
