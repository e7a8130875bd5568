"""Comparison of checkpoints: which runs may be compared, paired differences, and what makes them doubtful."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, Selection, load, selections, token_sums
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.errors import DataError, SettingsError, number_of, printable
from hesnr_tasks.metrics import METRICS, TrajectorySums, evaluate, measure, names_of, share_scored
from hesnr_tasks.scores import ScoreStore, differences
from hesnr_tasks.scores.schema import OPTIONAL
from hesnr_tasks.stats import (
    RESAMPLES,
    SEED,
    Difference,
    Estimate,
    effective_number,
    holm,
    minimum_detectable,
    paired,
    trajectories_needed,
    why_withheld,
)

IntArray = npt.NDArray[np.int64]
_ACROSS = " Or compare formats with hesnr compare --across-renderings."
_WINDOWS = " What a short context costs: hesnr analyze FULL --against SHORT."
_SHOWN = 3  # trajectories named in a message
# what may differ between checkpoints that are ranked together: which model it is, and with what it was run
_FREE = {
    "k", "model", "revision", "peft", "delta", "adapter", "architecture", "parameters", "weights", "backend", "engine",
    "attention", "transformers", "torch", "quantization", "autocast", "max_length", "overrides",
    "root", "parent", "meta",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What a comparison needs of one run of T trajectories, in the order of their keys."""

    name: str
    signature: Mapping[str, Any]
    keys: tuple[str, ...]
    ids: tuple[str, ...]
    multiplicity: IntArray  # (T,): how many trajectories have this text; 0: left out
    n_truncated: IntArray  # (T,): tokens beyond the context limit
    sums: TrajectorySums  # (T, statistics)
    about: str = ""  # which of the scores in the folder these are
    unresolved: tuple[bool, ...] = ()  # whether each trajectory is known to have failed; (): nothing is known

    def take(self, index: Sequence[int]) -> Run:
        """Only some of the trajectories."""
        keys, ids = (tuple(values[i] for i in index) for values in (self.keys, self.ids))
        rows = np.array(index, dtype=np.int64)
        return replace(
            self, keys=keys, ids=ids, multiplicity=self.multiplicity[rows], n_truncated=self.n_truncated[rows],
            sums=self.sums[rows], unresolved=tuple(self.unresolved[i] for i in index) if self.unresolved else (),
        )  # fmt: skip


def read_run(
    path: Path,
    name: str,
    kinds: str | None,
    filters: str | None,
    epsilon: float,
    k: int,
    context: int | None = None,
    run: str = "latest",
    metrics: Sequence[str] | None = None,
) -> Run:
    """The sums of one run in one setting; `run` as `scores.choose_runs` takes it; `metrics`: None for all."""
    frame_filters = ScoreStore.open(path).signature["filters"]
    chosen = only_selection(frame_filters, kinds, filters)
    names = names_of("all") if metrics is None else tuple(dict.fromkeys([*names_of(), *metrics]))
    frame = load(path, (k,), masks=[chosen.mask], name=name, context=context, run=run, metrics=names)
    return run_of(frame, chosen, epsilon, k, names)


def missing(runs: Sequence[Run], metrics: Sequence[str]) -> list[str]:
    """Which of some metrics are N/A because the scores of some runs lack what they need, and how to get it."""
    notes = []
    for name in metrics:
        lacking = [run.name for run in runs if np.isnan(run.sums.parts(name)[0]).any()]
        needs = METRICS[name].needs
        if lacking:
            note = f"{name} is missing of {', '.join(lacking)}: these scores lack {', '.join(needs) or 'exact ranks'}"
            if not {*OPTIONAL}.isdisjoint(needs):
                note += '. --tasks hesnr_proxies (or "metrics": "proxies" in --metadata) with --model hf adds it'
            notes.append(note)
    return notes


def only_selection(frame_filters: Sequence[str], kinds: str | None, filters: str | None) -> Selection:
    """The one set of tokens that these words select."""
    chosen = selections(frame_filters, [kinds] if kinds else None, [filters] if filters else None)
    if len(chosen) > 1:
        raise SettingsError("this needs one set of tokens; name one subset of the filters")
    return chosen[0]


def run_of(frame: Frame, chosen: Selection, epsilon: float, k: int, metrics: Sequence[str] | None = None) -> Run:
    """The sums of a run in one setting, of some metrics (None: all)."""
    mask = chosen.mask
    return Run(
        name=frame.name,
        signature=frame.signature,
        keys=tuple(entry.key for entry in frame.entries),
        ids=tuple(",".join(s.id for s in entry.sources) or entry.key[:12] for entry in frame.entries),
        multiplicity=frame.multiplicity(mask),
        n_truncated=frame.n_truncated(mask),
        sums=token_sums(frame, frame.counted(mask), epsilon, k, names_of("all") if metrics is None else metrics),
        about=frame.about,
        unresolved=unresolved(frame),
    )


def unresolved(frame: Frame) -> tuple[bool, ...]:
    """Of each trajectory whether every run that has its text is known to have failed."""
    return tuple(bool(entry.sources) and {s.resolved for s in entry.sources} == {False} for entry in frame.entries)


# --- which runs may be compared ---------------------------------------------------------------------------------------


def matched(
    runs: Sequence[Run], *, common: bool = False, across_renderings: bool = False
) -> tuple[list[Run], list[str]]:
    """The runs on the same trajectories in the same order, and notes on what was left out.

    What overflow=skip leaves out of one run is left out of all; a text counts as often as in the first run.

    Args:
        runs: two or more.
        common: take the trajectories that all have.
        across_renderings: pair trajectories by their ids, whatever their texts are: a difference is of format as well.

    Raises:
        SettingsError: for runs with different settings.
        DataError: for runs of different texts (unless `common`, which takes those that all have) or tokens.
    """
    if len(runs) < 2:
        raise SettingsError("a comparison needs two runs or more, and one was found; name another folder of scores")
    first = runs[0]
    for other in runs[1:]:
        limit = {"max_length"} if first.n_truncated.any() or other.n_truncated.any() else set()
        free = (_FREE | {"render"} if across_renderings else _FREE) - limit
        changed = [d for d in differences(first.signature, other.signature) if d.name not in free]
        if changed:
            raise SettingsError(
                f"{first.name} and {other.name} were scored with different settings ({'; '.join(map(str, changed))}), "
                "so their numbers must not be ranked together. Score one of them again with the settings of the other."
                + {"render": _ACROSS, "window": _WINDOWS}.get("+".join(d.name for d in changed), "")
            )
    if across_renderings:
        runs = [_by_ids(run) for run in runs]
        first = runs[0]
    shared = set(first.keys).intersection(*(run.keys for run in runs[1:]))
    unlike = [other for other in runs[1:] if set(other.keys) != set(first.keys)]
    reports = ["; ".join(_unshared(first, other)) for other in unlike]
    if unlike and not common:
        raise DataError(
            f"{first.name} and {unlike[0].name} are not of the same texts: {reports[0]}. Score the same trajectories "
            "with both, name runs of the same data with --run, or compare on those that both have with --common."
        )
    if not shared:
        raise DataError("the runs have no text in common; score the same trajectories with both")
    aligned = [run.take([i for i, key in enumerate(run.keys) if key in shared]) for run in runs]
    multiplicity = np.where(np.all([run.multiplicity > 0 for run in aligned], axis=0), aligned[0].multiplicity, 0)
    aligned = [replace(run, multiplicity=multiplicity) for run in aligned]
    for other in [] if across_renderings else aligned[1:]:
        counts = [run.sums.column("tokens") for run in (aligned[0], other)]
        differ = np.flatnonzero((counts[0] != counts[1]) & (multiplicity > 0))
        if len(differ):
            i = int(differ[0])
            raise DataError(
                f"{first.name} and {other.name} do not score the same tokens: of trajectory {aligned[0].ids[i]!r} "
                f"{counts[0][i]:.0f} and {counts[1][i]:.0f} tokens count ({len(differ)} in all differ). Score both "
                "with the same settings."
            )
    notes = [f"compared on the {number_of(len(shared), 'text')} that all runs have ({report})" for report in reports]
    if across_renderings:
        renderings = ", ".join(f"{run.name}: {run.signature.get('render')}" for run in runs)
        notes.append(f"renderings ({renderings}): other texts and tokens, so a difference is of format as well")
    return aligned, notes


def _by_ids(run: Run) -> Run:
    """The run with trajectories known by their ids, which do not depend on how they were rendered."""
    twice = [i for i, count in Counter(run.ids).items() if count > 1]
    if twice:
        raise DataError(
            f"{run.name} has other texts of one id ({_listed(twice)}), so they cannot be paired across renderings. "
            "Give each trajectory an id of its own."
        )
    return replace(run, keys=run.ids)


def _unshared(a: Run, b: Run) -> Iterator[str]:
    """Which trajectories are in one run alone; the same id with another text is reported as such."""
    only = []
    for run, other in ((a, b), (b, a)):
        keys = set(other.keys)
        only.append({i for key, i in zip(run.keys, run.ids, strict=True) if key not in keys})
    changed = sorted(only[0] & only[1])
    if changed:
        yield f"the text of {_listed(changed)} differs"
    for run, ids in zip((a, b), only, strict=True):
        if ids.difference(changed):
            yield f"only {run.name} has {_listed(sorted(ids.difference(changed)))}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


# --- differences ------------------------------------------------------------------------------------------------------

_LEVEL = 0.05
_COLUMNS = (
    "difference", "interval", "verdict", "low", "high", "p", "p_holm", "p_worse", "detectable", "needed", "unpaired",
    "correlation",
)  # fmt: skip
_WIDE = ("metric", *_COLUMNS[3:], "diagnostics")


class CompareConfig(NamedTuple):
    """How runs are compared: the bootstrap, and the power of the power analysis."""

    resamples: int = RESAMPLES
    seed: int = SEED
    power: float = 0.8
    min_tokens: int = 0


_DEFAULTS = CompareConfig()


def difference(base: Run, other: Run, name: str, config: CompareConfig = _DEFAULTS) -> Difference:
    """The paired difference other - base of a metric; NaN where it averages over too few tokens."""
    sides = [run.sums.repeat(base.multiplicity) for run in (base, other)]
    if min(side.counted(name).sum() for side in sides) < config.min_tokens:
        return Difference(math.nan)
    a, b = (side.parts(name) for side in sides)
    return paired(a, b, METRICS[name].exponentiate, resamples=config.resamples, seed=config.seed)


def comparisons(
    runs: Sequence[Run], reference: str, names: Sequence[str], config: CompareConfig = _DEFAULTS
) -> list[Table]:
    """A table a metric: all runs, the best first, with the differences to `reference`; `runs` from `matched`."""
    resamples, seed, power, min_tokens = config
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "min_tokens": min_tokens}
    values = {run.name: measure(run.sums[None], run.multiplicity, names, **options)[0] for run in runs}
    base = next(run for run in runs if run.name == reference)
    n, tables = int(base.multiplicity.sum()), []
    for name in names:
        better = METRICS[name].better
        up = better != "down"  # without a better direction: the highest first
        against = {run.name: difference(base, run, name, config) for run in runs if run is not base}
        corrected = holm({other: change.p for other, change in against.items()})
        rows: list[dict[str, Any]] = []
        for run in sorted(runs, key=lambda run: _ascending(values[run.name][name].value * (-1 if up else 1))):
            row = {"run": run.name, "metric": name, name: values[run.name][name], **dict.fromkeys(_COLUMNS)}
            row["verdict"] = "reference"
            if run is not base:
                change = against[run.name]
                ratio = (change.stderr_unpaired / change.stderr) ** 2 if change.stderr > 0 else math.nan
                moved = Estimate(change.value, change.stderr, change.ci_low, change.ci_high)
                row |= {
                    "difference": moved,
                    "interval": moved.interval,
                    "verdict": _verdict(change.value, corrected[run.name], better),
                    "low": change.ci_low,
                    "high": change.ci_high,
                    "p": change.p,
                    "p_holm": corrected[run.name],
                    "p_worse": None if better is None else change.p_below if up else 1 - change.p_below,
                    "detectable": minimum_detectable(change.stderr, power),
                    "needed": trajectories_needed(change.value, change.stderr, n, power),
                    "unpaired": round(n * ratio) if math.isfinite(ratio) else None,
                    "correlation": change.correlation,
                }
            tokens, truncated = (part @ run.multiplicity for part in (run.sums.column("tokens"), run.n_truncated))
            row["scored"] = share_scored(float(tokens), float(truncated))
            rows.append({**row, "diagnostics": "; ".join(diagnostics(run, name))})
        direction = {"up": "higher is better", "down": "lower is better", None: "neither direction is better"}[better]
        title = f"{name}: difference to {base.name}, {number_of(n, 'trajectory')}, paired ({direction})"
        doubts = [f"{row['run']}: {row['diagnostics']}" for row in rows if row["diagnostics"]]
        tables.append(Table(f"compare_{name}", title, rows, doubts, wide=_WIDE))
    return tables


def best_run(runs: Sequence[Run], name: str) -> str:
    """The name of the run with the best value of a metric; of the first where none has one."""

    def badness(run: Run) -> float:
        parts = (float(part.sum()) for part in run.sums.repeat(run.multiplicity).parts(name))
        return _ascending(float(evaluate(METRICS[name], *parts)) * (1 if METRICS[name].better == "down" else -1))

    return min(runs, key=badness).name


def sentence(table: Table, name: str, reference: str) -> str:
    """What a table of `comparisons` says, in words: who is better than the reference, who worse, who undecided."""
    groups: dict[str, list[str]] = {word: [] for word in ("better", "worse", "higher", "lower", "undecided")}
    for row in table.rows:
        if row["run"] != reference:
            groups[row["verdict"]].append(str(row["run"]))
    parts = [f"{_listed(runs)} {word}" for word, runs in groups.items() if runs]
    title = METRICS[name].title.rstrip(" ↑↓")
    first = table.rows[0]["run"] == reference and METRICS[name].better
    best = f", which is best of {len(table.rows)}" if first else ""
    return printable(f"{title}, against {reference}{best}: {'; '.join(parts)} (paired, Holm, 5 %).")


def _verdict(change: float, p_holm: float | None, better: str | None) -> str:
    if p_holm is None or not p_holm <= _LEVEL:
        return "undecided"
    if better is None:
        return "higher" if change > 0 else "lower"
    return "better" if (change > 0) == (better == "up") else "worse"


def _ascending(value: float) -> float:
    return value if math.isfinite(value) else math.inf


# --- diagnostics ------------------------------------------------------------------------------------------------------

_FEW = 30  # trajectories
_TRUNCATED = 0.01  # share of tokens beyond the context
_UNEVEN = 0.3  # effective share of trajectories
_RARE = 100  # tokens


def diagnostics(run: Run, name: str) -> Iterator[str]:
    """What makes a metric's errors less trustworthy than they look."""
    repeated = run.sums.repeat(run.multiplicity)
    weights, counts = repeated.parts(name)[1], repeated.counted(name)
    n, truncated = int(run.multiplicity.sum()), int(run.n_truncated @ run.multiplicity)
    total = float(repeated.column("tokens").sum())
    if n < _FEW:
        yield f"few trajectories ({n})"
    if counts.sum() < _RARE:
        decision = "decision " if METRICS[name].over[1] == "decisions" else ""
        yield f"few {decision}tokens ({int(counts.sum())})"
    equal = float(effective_number(weights))
    withheld = why_withheld(weights) if weights.any() else ""
    if withheld:
        yield f"no interval: {withheld}"
    elif n and 0 < equal < _UNEVEN * n:
        yield f"uneven: {n} trajectories tell as much as {equal:.0f} of equal length"
    if truncated > _TRUNCATED * (truncated + total):
        yield f"{truncated / (truncated + total):.0%} of tokens beyond the context"
    empty = int((counts == 0).sum())
    if empty:
        yield f"no such token in {number_of(empty, 'trajectory')}"
