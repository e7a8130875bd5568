"""Downstream scores of checkpoints: a CSV file (checkpoint,score[,n]) or SWE-bench's own report files."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hesnr_tasks.bounded_io import read_json, read_text
from hesnr_tasks.errors import DataError

__all__ = ["Score", "in_one_unit", "read_downstream", "scaled"]

_WORD = "0-9a-z\u0080-\U0010ffff"  # what tells names apart; a sign outside ASCII is as good as a letter
_Z = 1.959963984540054


class Score(NamedTuple):
    """A downstream score; how many tasks it is the share of (None: not known), and what all of them would be."""

    value: float
    n: int | None = None
    whole: float = 1.0  # 100.0 for per cent

    @property
    def ends(self) -> tuple[float, float]:
        """Wilson's 95 % interval of a share of n tasks (as a share or in per cent); NaN without n."""
        if not self.n:
            return math.nan, math.nan
        p, z = self.value / self.whole, _Z**2 / self.n
        half = _Z * math.sqrt(p * (1 - p) / self.n + z / (4 * self.n))
        return self.whole * (p + z / 2 - half) / (1 + z), self.whole * (p + z / 2 + half) / (1 + z)


def scaled(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Scores of one source: shares of 1 if none is above 1, per cent if one is."""
    whole = 100.0 if any(score.value > 1 for score in scores.values()) else 1.0
    for name, score in scores.items():
        if score.n is not None and (score.n < 1 or not 0 <= score.value <= whole):
            raise DataError(
                f"downstream score of {name}: {score.value:g} is no share (0 to 1) or per cent (to 100) of {score.n} "
                "tasks; leave n out where the score is no share of tasks"
            )
    return {name: score._replace(whole=whole) for name, score in scores.items()}


def in_one_unit(scores: Mapping[str, Score]) -> dict[str, Score]:
    """The scores of all sources together; raises `DataError` where some are shares and others per cent."""
    units = {score.whole: name for name, score in scores.items()}
    if len(units) > 1:
        share, cent = units[1.0], units[100.0]
        raise DataError(
            f"some downstream scores are shares ({share}: {scores[share].value:g}) and some per cent ({cent}: "
            f"{scores[cent].value:g}). Give all as shares, from 0 to 1, as SWE-bench reports do, or all in one file."
        )
    return dict(scores)


def read_downstream(paths: Iterable[Path], names: Sequence[str]) -> tuple[dict[str, Score], list[str]]:
    """The score of each checkpoint of `names` that has one, and remarks on what could not be matched.

    Raises `DataError` for files that cannot be read, two scores of one checkpoint, or where nothing matches.
    """
    found: dict[str, Score] = {}
    strange: list[str] = []
    for path in _files(paths):
        for name, score, where in _report(path, names) if path.suffix == ".json" else _csv(path):
            match = _match(name, names)
            if match is None:
                strange.append(f"{where}: {name!r}")
            elif match in found and found[match] != score:
                raise DataError(
                    f"{where}: a second, different score of {match}: {found[match].value} and {score.value}"
                )
            else:
                found[match] = score
    if not found:
        raise DataError(
            f"no downstream score belongs to one of the checkpoints {', '.join(names)}; there are scores of "
            f"{', '.join(strange[:8]) or 'nothing'}. Name them as the checkpoints are named."
        )
    return found, [f"downstream score of no checkpoint here: {one}" for one in strange]


def _files(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        found += sorted(path.glob("*.json")) if path.is_dir() else [path]
    return found


def _csv(path: Path) -> list[tuple[str, Score, str]]:
    try:
        lines = list(csv.reader(read_text(path).splitlines()))
    except csv.Error as error:
        raise DataError(f"cannot read {path} ({error})") from None
    heading = [word.strip().lower() for word in lines[0]] if lines else []
    if "checkpoint" not in heading or "score" not in heading:
        raise DataError(f"{path}: the first line must name the columns checkpoint,score or checkpoint,score,n")
    rows = []
    for at, line in enumerate(lines[1:], 2):
        if any(word.strip() for word in line):
            where = f"{path}:{at}"
            if any(word.strip() for word in line[len(heading) :]):
                raise DataError(f"{where}: {len(line)} cells under {len(heading)} columns; write 31.2, not 31,2")
            fields = dict.fromkeys(heading, "") | dict(zip(heading, (word.strip() for word in line), strict=False))
            n = _count(fields["n"], where) if fields.get("n") else None
            rows.append((fields["checkpoint"], Score(_number(fields["score"], "score", where), n), where))
    known = scaled({where: score for _, score, where in rows})
    return [(name, known[where], where) for name, _, where in rows]


def _number(word: str, name: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {name} {word!r} is no number")
    return value


def _count(word: str, where: str) -> int:
    value = _number(word, "n", where)
    if not value.is_integer():
        raise DataError(f"{where}: n {word!r} is no number of tasks")
    return int(value)


def _report(path: Path, names: Sequence[str]) -> list[tuple[str, Score, str]]:
    """One report of SWE-bench's harness: its file name says whose it is."""
    try:
        found = read_json(path)
        resolved, total = found["resolved_instances"], found["total_instances"]
        if not (type(resolved) is int and type(total) is int and 0 <= resolved <= total > 0):
            raise ValueError(f"{resolved!r} resolved of {total!r}")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no SWE-bench report (resolved_instances of total_instances): {why}") from None
    return [(_named_in(path.stem, names) or path.stem, Score(resolved / total, total), str(path))]


def _named_in(stem: str, names: Sequence[str]) -> str | None:
    """The longest checkpoint name that stands in the file's name, not as a part of a longer number or word."""
    fits = [name for name in names if re.search(rf"(?<![{_WORD}]){re.escape(_bare(name))}(?![{_WORD}])", _bare(stem))]
    longest = max(map(len, fits), default=0)
    best = [name for name in fits if len(name) == longest]
    return best[0] if len(best) == 1 else None


def _match(name: str, names: Sequence[str]) -> str | None:
    """Exactly; or else whatever the case, the folder before it and the signs between words."""
    if name in names:
        return name
    for ends in (False, True):
        wanted = _bare(name.rstrip("/").split("/")[-1] if ends else name)
        fits = [one for one in names if _bare(one.split("/")[-1] if ends else one) == wanted]
        if len(fits) == 1:
            return fits[0]
    return None


def _bare(name: str) -> str:
    return re.sub(f"[^.{_WORD}]+", "-", name.casefold())
