"""The leaderboard: checkpoints side by side, every number with its standard error, grouped by signature.

Rows whose numbers were made differently (other data, other filters, another context limit …) are never ranked
together: they stand in tables of their own.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.errors import DataError

__all__ = ["Row", "add_arguments", "markdown", "read_results", "run"]

_COLUMNS = {
    "he_snr": "HE-SNR ↑",
    "he_ppl": "HE-PPL ↓",
    "ppl": "PPL ↓",
    "top1_acc": "Top-1 ↑",
    "entropy": "H_top10",
    "he_tokens": "𝓗 tokens",
    "tokens": "tokens",
}


class Row(NamedTuple):
    """One task of one result file."""

    model: str
    task: str
    alias: str
    values: Mapping[str, tuple[float, float | None]]  # metric -> value, standard error
    comparable: str  # rows with the same text may be ranked together
    date: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr report`."""
    parser.add_argument("results", nargs="+", help="lm-eval result files, or folders of them")
    parser.add_argument("-o", "--output", type=Path, help="also write leaderboard.md and leaderboard.csv here")


def run(args: argparse.Namespace) -> int:
    """Print the leaderboard of the results named."""
    rows = read_results(args.results)
    text = markdown(rows)
    print(text)
    if args.output:
        write(rows, text, args.output)
    return 0


def write(rows: Sequence[Row], text: str, folder: Path) -> None:
    """Save the leaderboard as Markdown and CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "leaderboard.md").write_text(text + "\n")
    (folder / "leaderboard.csv").write_text(_csv(rows))


def read_results(sources: Iterable[str]) -> list[Row]:
    """Rows of all our tasks in the newest result file of each model; raises `DataError` when there is none."""
    newest: dict[tuple[str, str], Row] = {}
    paths = [path for source in sources for path in _files(Path(source))]
    for path in paths:
        for row in _rows(path):
            key = (row.model, row.task)
            if key not in newest or newest[key].date < row.date:
                newest[key] = row
    if not newest:
        raise DataError(
            f"no results of ours in {', '.join(map(str, sources))}: {len(paths)} result files, none with a hesnr task. "
            "Make some with: lm_eval --tasks hesnr_swe … --output_path DIR"
        )
    return sorted(newest.values(), key=lambda row: (_natural(row.model), row.task))


def markdown(rows: Sequence[Row]) -> str:
    """One table for each set of rows that may be compared."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.comparable].append(row)
    return "\n\n".join(_table(group) for group in sorted(groups.values(), key=lambda g: g[0].task))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.rglob("results_*.json"))
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    return [path]


def _rows(path: Path) -> list[Row]:
    try:
        found = json.loads(path.read_text())
        results, configs = found["results"], found["configs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not an lm-eval result file ({type(error).__name__}: {error})") from None
    model = _model_name(found)
    rows = []
    for task, values in results.items():
        made = (configs.get(task, {}).get("metadata") or {}).get("signature")
        if made:
            numbers = {name: _number(values, name) for name in _COLUMNS}
            alias = str(values.get("alias", task)).strip()
            rows.append(Row(model, task, alias, numbers, _comparable(task, made), float(found.get("date") or 0)))
    return rows


def _model_name(found: Mapping[str, Any]) -> str:
    """The checkpoint's folder or hub name, as short as it is still unambiguous within a ladder."""
    given = (found.get("config") or {}).get("model_args") or {}
    name = given.get("pretrained") or given.get("model") if isinstance(given, dict) else str(given)
    return str(name or found.get("model_name") or "unknown").rstrip("/").split("/")[-1]


def _number(values: Mapping[str, Any], name: str) -> tuple[float, float | None]:
    value, error = values.get(f"{name},none"), values.get(f"{name}_stderr,none")
    return (
        float(value) if isinstance(value, (int, float)) else math.nan,
        float(error) if isinstance(error, (int, float)) else None,
    )


def _comparable(task: str, made: Mapping[str, Any]) -> str:
    """The signature without what differs between checkpoints of one ladder: the model itself."""
    kept = {name: value for name, value in made.items() if name != "run"}
    kept |= {name: (made.get("run") or {}).get(name) for name in ("tokenizer", "dtype", "bos")}
    if not made.get("tokens_cut"):
        kept.pop("max_length", None)  # a limit that cuts nothing is no choice
    return json.dumps([task, kept], sort_keys=True)


def _table(rows: Sequence[Row]) -> str:
    task, kept = json.loads(rows[0].comparable)
    lines = [
        f"**{task}** – {_summary(kept)}",
        "",
        "| checkpoint | " + " | ".join(_COLUMNS.values()) + " |",
        "| --- |" + " ---: |" * len(_COLUMNS),
    ]
    for row in rows:
        cells = [_cell(name, *row.values[name]) for name in _COLUMNS]
        lines.append(f"| {row.model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _summary(kept: Mapping[str, Any]) -> str:
    filters = " − ".join(["", *kept["filters"]]) if kept["filters"] else ", no filter"
    cut = f", {kept['tokens_cut']} tokens beyond the context of {kept['max_length']}" if kept["tokens_cut"] else ""
    return (
        f"{' + '.join(kept['kinds'])}{filters}; {kept['trajectories']} trajectories ({kept['data'][:10]}), "
        f"{kept['render']}, k = {kept['k']}, ε = {kept['epsilon']:.4f}{cut}; ± is one standard error"
    )


def _cell(name: str, value: float, error: float | None) -> str:
    if math.isnan(value):
        return "–"
    if name in ("he_tokens", "tokens"):
        return f"{value:.0f}"
    if error is None or not error > 0:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))  # two significant digits of the error
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["checkpoint", "task", *(c for name in _COLUMNS for c in (name, f"{name}_stderr")), "signature"])
    for row in rows:
        numbers = [x for name in _COLUMNS for x in row.values[name]]
        writer.writerow([row.model, row.task, *("" if x is None else f"{x:.6g}" for x in numbers), row.comparable])
    return out.getvalue()


def _natural(name: str) -> list[tuple[int, str]]:
    """`step800` before `step1600`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
