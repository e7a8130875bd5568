"""Which runs may be compared, and on what: same texts, tokens and settings, or an error that names the difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import load
from hesnr_tasks.analysis.measures import column
from hesnr_tasks.analysis.options import selections
from hesnr_tasks.analysis.sums import token_sums
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.scores import ScoreStore, differences

__all__ = ["Run", "matched", "read_run"]

FloatArray = npt.NDArray[np.float64]
_SHOWN = 3  # trajectories named in a message
# what may differ between checkpoints that are ranked together: which model it is, and with what it was run
_FREE = {
    "k", "model", "revision", "peft", "delta", "adapter", "architecture", "parameters", "weights", "backend", "engine",
    "attention", "transformers", "torch", "quantization", "autocast", "max_length", "overrides",
    "root", "parent", "meta",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What a comparison needs of one run: sums per trajectory, in the order of the keys."""

    name: str
    signature: Mapping[str, Any]
    keys: tuple[str, ...]
    ids: tuple[str, ...]
    copies: npt.NDArray[np.int64]  # (T,): how many trajectories have this text; 0: left out
    cut: npt.NDArray[np.int64]  # (T,): tokens beyond the context limit
    sums: FloatArray  # (T, 10), metrics.SUMS
    about: str = ""  # which of the scores in the folder these are


def read_run(
    path: Path,
    name: str,
    kinds: str | None,
    filters: str | None,
    epsilon: float,
    k: int,
    context: int | None = None,
    run: str = "latest",
) -> Run:
    """Sums of one run under one setting; of the scores themselves nothing is kept. `run`: see `store.choose_runs`."""
    known = ScoreStore.open(path).signature["filters"]
    chosen = selections(known, [kinds] if kinds else None, [filters] if filters else None)
    if len(chosen) > 1:
        raise SettingsError("a comparison is of one set of tokens; name one subset of the filters")
    mask = chosen[0].mask
    frame = load(path, (k,), masks=[mask], name=name, context=context, run=run)
    return Run(
        name=frame.name,
        signature=frame.signature,
        keys=tuple(entry.key for entry in frame.entries),
        ids=tuple(",".join(s.id for s in entry.sources) or entry.key[:12] for entry in frame.entries),
        copies=frame.copies(mask),
        cut=frame.cut(mask),
        sums=token_sums(frame, frame.counted(mask), epsilon, k),
        about=frame.about,
    )


def matched(runs: Sequence[Run], *, common: bool = False) -> tuple[list[Run], list[str]]:
    """The runs on the same trajectories in the same order, and what has to be said of that.

    Raises `SettingsError` for runs with different settings and `DataError` for runs on different texts (unless
    `common`, which keeps those that all have) or tokens.
    """
    if len(runs) < 2:
        raise SettingsError("a comparison needs two runs or more, and one was found; name another folder of scores")
    for other in runs[1:]:
        _refuse_different_settings(runs[0], other)
    shared = set(runs[0].keys).intersection(*(one.keys for one in runs[1:]))
    unlike = [other for other in runs[1:] if set(other.keys) != set(runs[0].keys)]
    told = ["; ".join(_only(runs[0], other)) for other in unlike]
    if unlike and not common:
        raise DataError(
            f"{runs[0].name} and {unlike[0].name} are not of the same texts: {told[0]}. Score the same trajectories "
            "with both, name runs of the same data with --run, or compare on those that both have with --common."
        )
    if not shared:
        raise DataError("the runs have no text in common; score the same trajectories with both")
    found = _left_out_together([_restricted(one, shared) for one in runs])
    for other in found[1:]:
        _refuse_different_tokens(found[0], other)
    return found, [f"compared on the {len(shared)} texts that all runs have ({one})" for one in told]


def _refuse_different_settings(a: Run, b: Run) -> None:
    limit = {"max_length"} if a.cut.any() or b.cut.any() else set()  # a limit that cuts nothing is no choice
    changed = [d for d in differences(a.signature, b.signature) if d.name not in _FREE - limit]
    if changed:
        raise SettingsError(
            f"{a.name} and {b.name} were scored with different settings ({'; '.join(map(str, changed))}), so their "
            "numbers must not be ranked together. Score one of them again with the settings of the other."
        )


def _only(a: Run, b: Run) -> Iterator[str]:
    """Which trajectories are in one run alone; the same id with another text is said as such."""
    sides = []
    for one, other in ((a, b), (b, a)):
        known = set(other.keys)
        sides.append({i for key, i in zip(one.keys, one.ids, strict=True) if key not in known})
    changed = sorted(sides[0] & sides[1])
    if changed:
        yield f"the text of {_listed(changed)} differs"
    for one, ids in zip((a, b), sides, strict=True):
        if ids.difference(changed):
            yield f"only {one.name} has {_listed(sorted(ids.difference(changed)))}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _restricted(one: Run, keys: set[str]) -> Run:
    at = [i for i, key in enumerate(one.keys) if key in keys]
    left, ids = (tuple(values[i] for i in at) for values in (one.keys, one.ids))
    return replace(one, keys=left, ids=ids, copies=one.copies[at], cut=one.cut[at], sums=one.sums[at])


def _left_out_together(runs: Sequence[Run]) -> list[Run]:
    """What overflow=skip left out of one run is left out of all; a text counts as often as in the first run."""
    kept = np.all([one.copies > 0 for one in runs], axis=0)
    copies = np.where(kept, runs[0].copies, 0)
    return [replace(one, copies=copies) for one in runs]


def _refuse_different_tokens(a: Run, b: Run) -> None:
    counts = [column(one.sums, "tokens") for one in (a, b)]
    differ = np.flatnonzero((counts[0] != counts[1]) & (a.copies > 0))
    if len(differ):
        i = int(differ[0])
        raise DataError(
            f"{a.name} and {b.name} do not score the same tokens: of trajectory {a.ids[i]!r} {counts[0][i]:.0f} and "
            f"{counts[1][i]:.0f} tokens count ({len(differ)} in all differ). Score both with the "
            "same settings."
        )
