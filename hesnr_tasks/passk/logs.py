"""lm-eval's sample logs (`samples_<task>_<date>.jsonl`, of --log_samples): right answers of those that were scored."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hesnr_tasks.errors import DataError, nearest
from hesnr_tasks.passk.estimator import pass_at_k, pass_at_ks
from hesnr_tasks.passk.outcomes import Answer
from hesnr_tasks.passk.tables import PROBLEM
from hesnr_tasks.readers.fields import Where, deep
from hesnr_tasks.readers.records import Record

__all__ = ["Log", "is_log", "read_log", "refuse_copies", "task_of"]

_ONE = ("pass@1", "pass_at_1")
_PASS = re.compile(r"pass(?:@|_at_)([0-9]{1,9})")
_CLOSE = 1e-6
_MANY = 10  # problems with the same answers in two logs, from which on they are one run and no coincidence


class _Which(NamedTuple):
    metric: str | None
    filter: str | None


@dataclass
class Log:
    """One log: its answers, and what tells it from a copy."""

    path: Path
    answers: list[Answer] = field(default_factory=list)
    seeds: set[tuple[str, int]] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    model: str | None = None


def is_log(value: Any) -> bool:
    """Whether a decoded line is one of such a log."""
    return isinstance(value, Mapping) and "doc_id" in value and "resps" in value and "filtered_resps" in value


def task_of(path: Path) -> str:
    """The task a log is of, by its name."""
    name = path.name.removeprefix("samples_")
    return name.rpartition("_")[0] or name


def read_log(path: Path, rows: Iterable[Record], metric: str | None, filter: str | None) -> Log:
    """Answers of one log; `DataError`, with file and line, where right answers cannot be counted."""
    log, occurrence = Log(path, model=_model(path)), Counter[str]()
    kept = list(_of_filter(path, rows, filter))
    for record in kept:
        row = record.value
        key = str(row.get("doc_hash") or row["doc_id"])
        occurrence[key] += 1
        problem = f"{key}#{occurrence[key]}" if occurrence[key] > 1 else key
        n, c = _counted(row, record.where, metric)
        log.answers.append(Answer(problem, n, c, str(record.where), _label(row)))
        log.seeds |= {(problem, seed) for seed in _seeds(row)}
        log.texts[problem] = hashlib.sha256(json.dumps(row["resps"], ensure_ascii=True).encode()).hexdigest()
    return log


def refuse_copies(logs: Sequence[Log]) -> None:
    """`DataError` for two logs of one checkpoint that are of different models, or hold the same answers."""
    for i, one in enumerate(logs):
        for other in logs[i + 1 :]:
            if one.model and other.model and one.model != other.model:
                raise DataError(
                    f"{one.path} is of {one.model} and {other.path} of {other.model}: answers of two models are no "
                    "samples of one. Compare them with --compare."
                )
            if one.seeds & other.seeds or _same_texts(one, other):
                raise DataError(
                    f"{one.path} and {other.path} hold the same answers (a run made twice with the same seeds, or a "
                    "copy); counting both would count answers twice. Name one, or take more answers with other seeds."
                )


def _of_filter(path: Path, rows: Iterable[Record], wanted: str | None) -> Iterator[Record]:
    kept, names = [], dict[str, None]()
    for record in rows:
        if not is_log(record.value):
            raise DataError(f"{record.where}: no line of an lm-eval sample log (doc_id, resps, filtered_resps)")
        names[str(record.value.get("filter"))] = None
        kept.append(record)
    if wanted is None and len(names) > 1:
        raise DataError(f"{path} has answers of the filters {', '.join(names)}; choose one with --filter")
    if wanted is not None and wanted not in names:
        raise DataError(f"{path} has no filter {wanted!r}, only {', '.join(names)}.{nearest(wanted, names)}")
    return (record for record in kept if wanted is None or str(record.value.get("filter")) == wanted)


def _counted(row: Mapping[str, Any], where: Where, metric: str | None) -> tuple[int, int]:
    """Answers scored and right ones among them."""
    choice = _is_choice(row["resps"])
    taken, scored = (1 if choice else _leaves(row[key]) for key in ("resps", "filtered_resps"))
    name = _metric(row, where, metric)
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{where}: {name} is {value!r}, no number; name another metric with --metric")
    if not scored and not taken:
        raise DataError(f"{where}: there is no answer in it (resps is empty)")
    if scored < taken:
        raise DataError(
            f"{where}: of {taken} answers {scored} was scored (the filter {row.get('filter')!r} threw the others away, "
            "as take_first does); Pass@K cannot be had from this log. Use the filter keep_all, or our task class."
        )
    right = _right(name, float(value), scored, where)
    _check_others(row, where, scored, right)
    return scored, right


def _right(name: str, value: float, n: int, where: Where) -> int:
    """How many of `n` answers are right, from their share or from a pass@k that one number alone gives."""
    k = min(_k(name) or 1, n)
    given = pass_at_ks(np.full(n + 1, n), np.arange(n + 1), [k])[:, 0]
    fitting = np.flatnonzero(np.abs(given - value) <= _CLOSE).tolist()
    if len(fitting) > 1:
        raise DataError(
            f"{where}: {name} is {value}, and {fitting[0]} to {fitting[-1]} right answers of {n} all give that; name a "
            "metric of each answer, such as pass@1, with --metric"
        )
    if not fitting:
        raise DataError(f"{where}: {name} is {value}, which no number of right answers among {n} gives")
    return int(fitting[0])


def _check_others(row: Mapping[str, Any], where: Where, n: int, c: int) -> None:
    for name, value in row.items():
        k = _k(name)
        if 1 <= k <= n and isinstance(value, (int, float)) and abs(pass_at_k(n, c, k) - value) > _CLOSE:
            raise DataError(f"{where}: {name} is {value}, but {c} right of {n} answers give {pass_at_k(n, c, k):.6g}")


def _k(name: str) -> int:
    """The k of a metric pass@k or pass_at_k; 0 for others."""
    found = _PASS.fullmatch(name)
    return int(found[1]) if found else 0


def _metric(row: Mapping[str, Any], where: Where, wanted: str | None) -> str:
    listed = row.get("metrics")
    known = [str(name) for name in listed if not str(name).endswith("_stderr")] if isinstance(listed, list) else []
    known = [name for name in known if name in row]
    if wanted is not None:
        if wanted not in known:
            raise DataError(f"{where}: no metric {wanted!r}, only {', '.join(known)}.{nearest(wanted, known)}")
        return wanted
    usual = [name for name in (*_ONE, "exact_match") if name in known] or known
    if len(usual) != 1 and usual[:1] not in (["pass@1"], ["pass_at_1"], ["exact_match"]):
        raise DataError(f"{where}: which metric says right or wrong? Name one of {', '.join(known)} with --metric")
    return usual[0]


def _leaves(responses: Any) -> int:
    """Answers in `resps` or `filtered_resps`: per instance a list of them, or one."""
    listed = responses if isinstance(responses, list) else [responses]
    return sum(len(one) if isinstance(one, list) else 1 for one in listed)


def _is_choice(responses: Any) -> bool:
    """Whether they are likelihoods of choices, [[[log-likelihood, is greedy]], …]: one answer in all."""
    return isinstance(deep(responses, 0, 0), list)


def _seeds(row: Mapping[str, Any]) -> Iterator[int]:
    arguments = row.get("arguments")
    for one in arguments.values() if isinstance(arguments, Mapping) else ():
        seed = deep(one, "arg_1", "seed")
        if isinstance(seed, int):
            yield seed


def _same_texts(one: Log, other: Log) -> bool:
    shared = one.texts.keys() & other.texts.keys()
    return len(shared) >= _MANY and all(one.texts[key] == other.texts[key] for key in shared)


def _label(row: Mapping[str, Any]) -> str:
    document = row.get("doc")
    found = next((document[key] for key in PROBLEM if key in document), None) if isinstance(document, Mapping) else None
    return str(found if isinstance(found, (str, int)) else row["doc_id"])


def _model(path: Path) -> str | None:
    """The model's name, from the results beside the log."""
    date = path.name.removesuffix(".jsonl").rpartition("_")[2]
    try:
        name = json.loads((path.parent / f"results_{date}.json").read_bytes()).get("model_name")
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None
