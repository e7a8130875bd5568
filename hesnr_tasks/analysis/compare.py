"""`hesnr compare`: is one checkpoint better than another? Paired by trajectory, with the errors that correlation leaves."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import Frame, Selection, load
from hesnr_tasks.analysis.intervals import Paired, paired
from hesnr_tasks.analysis.measures import ALL_METRICS, Number, column, measure
from hesnr_tasks.analysis.options import add_common, check_epsilons, check_resamples, folders, selections, unique_names
from hesnr_tasks.analysis.output import FORMATS, Table, show
from hesnr_tasks.analysis.planning import diagnostics, holm, minimum_detectable, trajectories_needed
from hesnr_tasks.analysis.sums import token_sums
from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.store import differences

__all__ = ["Run", "add_arguments", "compare", "compare_runs", "read_run", "run"]

FloatArray = npt.NDArray[np.float64]
_METRICS = ("he_snr", "he_ppl", "ppl")
_COMPARABLE = tuple(name for name, metric in ALL_METRICS.items() if metric.higher_is_better is not None)
# what may differ between checkpoints that are ranked together: which model it is, and with what it was run
_FREE = {
    "k", "model", "revision", "peft", "delta", "adapter", "architecture", "parameters", "weights", "backend", "engine",
    "attention", "transformers", "torch", "quantization", "autocast", "max_length",
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
    sums: FloatArray  # (T, 10)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr compare`."""
    add = parser.add_argument
    add("scores", nargs="+", help="two or more folders of score files; the first is the reference")
    add_common(parser, several=False)
    add("--metrics", nargs="+", default=list(_METRICS), metavar="METRIC", help=f"default: {' '.join(_METRICS)}")
    add("--reference", metavar="NAME", help="the run the others are compared with (default: the first)")
    add("--common", action="store_true", help="compare on the trajectories that all runs have, if they differ")
    add("--power", type=float, default=0.8, help="for the minimum detectable effect (default: 0.8)")
    add("--format", choices=FORMATS, default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    print(compare(args))
    return 0


def compare(args: argparse.Namespace) -> str:
    """The comparison as text, CSV or JSON. Raises `HesnrError` for runs that must not be compared."""
    check_resamples(args.resamples, args.seed)
    k = args.k or 10
    epsilon = check_epsilons([args.epsilon] if args.epsilon else None, [k])[0]
    if not 0.5 <= args.power < 1:
        raise SettingsError("--power must be at least 0.5 and below 1")
    for name in args.metrics:
        if name not in _COMPARABLE:
            known = ", ".join(_COMPARABLE)
            raise SettingsError(f"--metrics {name!r} must be one of {known}.{nearest(name, _COMPARABLE)}")
    paths = folders(args.scores)
    runs = [
        read_run(path, name, args.kinds, args.filters, epsilon, k)
        for path, name in zip(paths, unique_names(paths), strict=True)
    ]
    runs, notes = _comparable(runs, common=args.common)
    reference = _reference(runs, args.reference)
    tables = compare_runs(runs, reference, args.metrics, args.resamples, args.seed, args.power)
    about = {
        "hesnr_tasks": __version__, "k": k, "epsilon": epsilon, "resamples": args.resamples, "seed": args.seed,
        "reference": reference, "notes": notes, "runs": {one.name: dict(one.signature) for one in runs},
    }  # fmt: skip
    tables[-1] = tables[-1]._replace(notes=(*tables[-1].notes, *notes))
    return show(tables, args.format, about)


def read_run(path: Path, name: str, kinds: str | None, filters: str | None, epsilon: float, k: int) -> Run:
    """Sums of one run under one setting; of the scores themselves nothing is kept."""
    frame = load(path, (k,), name=name)
    chosen = selections(frame.filters, [kinds] if kinds else None, [filters] if filters else None)
    if len(chosen) > 1:
        raise SettingsError("a comparison is of one set of tokens; name one subset of filters")
    return _run(frame, chosen[0], epsilon, k)


def _run(frame: Frame, chosen: Selection, epsilon: float, k: int) -> Run:
    return Run(
        name=frame.name,
        signature=frame.store.signature,
        keys=tuple(entry.key for entry in frame.entries),
        ids=tuple(",".join(s.id for s in entry.sources) or entry.key[:12] for entry in frame.entries),
        copies=frame.copies(chosen.mask),
        cut=frame.cut(chosen.mask),
        sums=token_sums(frame, frame.counted(chosen.mask), epsilon, k),
    )


def compare_runs(
    runs: Sequence[Run], reference: str, metrics: Sequence[str], resamples: int, seed: int, power: float
) -> list[Table]:
    """One table a metric, the best run first. The runs must have the same trajectories in the same order."""
    base = next(one for one in runs if one.name == reference)
    return [_table(runs, base, name, resamples, seed, power) for name in metrics]


# --- one table --------------------------------------------------------------------------------------------------------


def _table(runs: Sequence[Run], base: Run, name: str, resamples: int, seed: int, power: float) -> Table:
    metric = ALL_METRICS[name]
    values = {
        one.name: measure(one.sums[None], one.copies, [name], resamples=resamples, seed=seed)[0][name] for one in runs
    }
    against = {one.name: _against(base, one, name, resamples, seed) for one in runs if one is not base}
    corrected = holm({other: found.p for other, found in against.items()})
    sign = 1.0 if metric.higher_is_better else -1.0
    order = sorted(
        runs, key=lambda one: -sign * values[one.name].value if math.isfinite(values[one.name].value) else math.inf
    )
    rows = []
    for one in order:
        row: dict[str, Any] = {"run": one.name, "metric": name, name: values[one.name]}
        row |= _difference(against.get(one.name), corrected.get(one.name), sign, int(one.copies.sum()), power)
        row["diagnostics"] = "; ".join(diagnostics(one.sums, one.copies, one.cut, name))
        rows.append(row)
    arrow = "higher" if sign > 0 else "lower"
    title = f"{name}: difference to {base.name}, {int(base.copies.sum())} trajectories, paired ({arrow} is better)"
    notes = (
        "[low, high]: 95 % interval of the difference; p: two-sided; p holm: corrected for the number of runs compared",
        "p worse: share of resamples in which the run is worse than the reference",
        f"detectable: smallest true difference found with {power:.0%} probability at the 5 % level; needed: trajectories "
        "to find the difference seen; unpaired: trajectories that runs on different texts would need for the same error",
    )
    return Table(f"compare_{name}", title, rows, notes if name == "he_snr" else (), wide=("metric", "correlation"))


def _against(base: Run, other: Run, name: str, resamples: int, seed: int) -> Paired:
    metric = ALL_METRICS[name]
    sides = [np.repeat(one.sums, base.copies, axis=0) for one in (base, other)]
    a, b = ((column(side, metric.numerator), column(side, metric.denominator or "")) for side in sides)
    return paired(a, b, metric.exponentiate, resamples=resamples, seed=seed)


def _difference(found: Paired | None, corrected: float | None, sign: float, n: int, power: float) -> dict[str, Any]:
    if found is None:
        blank = (
            "difference",
            "low",
            "high",
            "p",
            "p_holm",
            "p_worse",
            "detectable",
            "needed",
            "unpaired",
            "correlation",
        )
        return dict.fromkeys(blank)
    ratio = (found.stderr_apart / found.stderr) ** 2 if found.stderr > 0 else math.nan
    return {
        "difference": Number(found.difference, found.stderr),
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "p_holm": corrected,
        "p_worse": found.below if sign > 0 else 1 - found.below,
        "detectable": minimum_detectable(found.stderr, power),
        "needed": trajectories_needed(found.difference, found.stderr, n, power),
        "unpaired": round(n * ratio) if math.isfinite(ratio) else None,
        "correlation": found.correlation,
    }


# --- what may be compared ---------------------------------------------------------------------------------------------


def _comparable(runs: Sequence[Run], *, common: bool) -> tuple[list[Run], list[str]]:
    """The runs on the same trajectories in the same order, and what has to be said; raises where they do not match."""
    if len(runs) < 2:
        raise SettingsError(
            f"a comparison needs two runs or more; {len(runs)} was found. Name another folder of scores."
        )
    for other in runs[1:]:
        _refuse_different_settings(runs[0], other)
    shared = set(runs[0].keys).intersection(*(one.keys for one in runs[1:]))
    notes = []
    for other in runs[1:]:
        if set(other.keys) != set(runs[0].keys):
            told = "; ".join(_only(runs[0], other))
            if not common:
                raise DataError(
                    f"{runs[0].name} and {other.name} are not of the same texts: {told}. Score the same trajectories "
                    "with both, or compare on those that both have with --common."
                )
            notes.append(f"compared on the {len(shared)} texts all runs have ({told})")
    if not shared:
        raise DataError("the runs have no text in common; score the same trajectories with both")
    found = _left_out_together([_restricted(one, shared) for one in runs])
    for other in found[1:]:
        _refuse_different_tokens(found[0], other)
    return found, notes


def _refuse_different_settings(a: Run, b: Run) -> None:
    changed = [d for d in differences(a.signature, b.signature) if d.name not in _FREE]
    if a.cut.any() or b.cut.any():
        changed += [d for d in differences(a.signature, b.signature) if d.name == "max_length"]
    if changed:
        listed = "; ".join(map(str, changed))
        raise SettingsError(
            f"{a.name} and {b.name} were scored with different settings ({listed}): their numbers must not be ranked "
            "together. Score one of them again with the settings of the other."
        )


def _only(a: Run, b: Run) -> Iterator[str]:
    """Which trajectories are in one run alone; the same id with another text is said as such."""
    sides = []
    for one, other in ((a, b), (b, a)):
        known = set(other.keys)
        sides.append([i for key, i in zip(one.keys, one.ids, strict=True) if key not in known])
    for name in sorted(set(sides[0]) & set(sides[1]))[:3]:
        yield f"the text of {name} differs"
    for one, ids in zip((a, b), sides, strict=True):
        rest = sorted(set(ids) - set(sides[0]).intersection(sides[1]))
        if rest:
            yield f"only {one.name} has {len(rest)}: {', '.join(rest[:3])}{' …' if len(rest) > 3 else ''}"


def _restricted(one: Run, keys: set[str]) -> Run:
    at = [i for i, key in enumerate(one.keys) if key in keys]
    keys_left, ids = (tuple(values[i] for i in at) for values in (one.keys, one.ids))
    return Run(one.name, one.signature, keys_left, ids, one.copies[at], one.cut[at], one.sums[at])


def _left_out_together(runs: Sequence[Run]) -> list[Run]:
    """With overflow=skip a trajectory that one run left out is left out of all; copies are those of the first run."""
    kept = np.all([one.copies > 0 for one in runs], axis=0)
    copies = np.where(kept, runs[0].copies, 0)
    return [Run(one.name, one.signature, one.keys, one.ids, copies, one.cut, one.sums) for one in runs]


def _refuse_different_tokens(a: Run, b: Run) -> None:
    differ = np.flatnonzero((column(a.sums, "tokens") != column(b.sums, "tokens")) & (a.copies > 0))
    if len(differ):
        i = int(differ[0])
        counts = [int(column(one.sums, "tokens")[i]) for one in (a, b)]
        raise DataError(
            f"{a.name} and {b.name} do not score the same tokens: of trajectory {a.ids[i]!r} {counts[0]} and {counts[1]} "
            f"tokens count ({len(differ)} trajectories differ). Score both again with the same settings."
        )


def _reference(runs: Sequence[Run], name: str | None) -> str:
    names = [one.name for one in runs]
    if name is None:
        return names[0]
    if name not in names:
        raise SettingsError(f"--reference {name!r} is none of {json.dumps(names)}.{nearest(name, names)}")
    return name
