"""Comparison of checkpoints, paired by trajectory; and metrics of several score folders of the same texts.

`hesnr compare`: which runs may be compared, paired differences, and what makes them doubtful. `hesnr analyze A
--against B`: context benefit, LongPPL, … What a folder is for follows from its signature: a short-context pass
(`window`) of the model that is judged gives the context benefit, and LongPPL with the model as its own evaluator; one
of another model, whose whole-context pass is named too, is an evaluator; a whole-context pass of another model is a
teacher (rBridge) and a reference for 𝓗.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, Selection, load, run_names, selections, token_sums
from hesnr_tasks.analysis.tables import Question, Table
from hesnr_tasks.errors import DataError, SettingsError, listed, number_of, printable
from hesnr_tasks.metrics import (
    METRICS,
    TokenColumns,
    TrajectorySums,
    cell_sums,
    evaluate,
    measure,
    names_of,
    share_scored,
)
from hesnr_tasks.scores import ScoreStore, differences
from hesnr_tasks.scores.runs import window_of
from hesnr_tasks.scores.schema import OPTIONAL, hidden_tokens
from hesnr_tasks.stats import (
    RESAMPLES,
    SEED,
    Difference,
    Estimate,
    effective_number,
    estimates,
    holm,
    minimum_detectable,
    paired,
    resample_counts,
    standard_error,
    trajectories_needed,
    why_withheld,
)

IntArray = npt.NDArray[np.int64]
_ACROSS = " Or compare formats with hesnr compare --across-renderings."
_WINDOWS = " What a short context costs: hesnr analyze FULL --against SHORT."
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
        for run in runs:
            if twice := [i for i, count in Counter(run.ids).items() if count > 1]:
                raise DataError(
                    f"{run.name} has other texts of one id ({listed(twice)}), so they cannot be paired across "
                    "renderings. Give each trajectory an id of its own."
                )
        runs = [replace(run, keys=run.ids) for run in runs]  # ids do not depend on how texts were rendered
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


def _unshared(a: Run, b: Run) -> Iterator[str]:
    """Which trajectories are in one run alone; the same id with another text is reported as such."""
    only = []
    for run, other in ((a, b), (b, a)):
        keys = set(other.keys)
        only.append({i for key, i in zip(run.keys, run.ids, strict=True) if key not in keys})
    changed = sorted(only[0] & only[1])
    if changed:
        yield f"the text of {listed(changed)} differs"
    for run, ids in zip((a, b), only, strict=True):
        if ids.difference(changed):
            yield f"only {run.name} has {listed(sorted(ids.difference(changed)))}"


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
    parts = [f"{listed(runs)} {word}" for word, runs in groups.items() if runs]
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


# --- against other scores of the same texts: context benefit, LongPPL, rBridge ----------------------------------------

FloatArray = npt.NDArray[np.float64]

ALPHA, BETA = 2.0, 2.0  # nats, of LongPPL: a key token's loss falls by more than α, to less than β
# what may differ between two passes of one model with its context alone different
_SAME_MODEL = {"window", "k", "max_length", "attention", "transformers", "torch", "engine", "overflow"}
_TOKENS = {"tokenizer", "bos"}  # what may not differ where tokens are compared one by one
_PAIR_COLUMNS = ("position", "char_start", "char_end")
_OF_CONTEXT = tuple(name for name, entry in METRICS.items() if entry.needs == ("short_logprob", "hidden"))
_OF_KEYS = ("long_ppl", "key_share")
_OF_REFERENCE = ("he_snr_fixed", "he_ppl_fixed", "he_snr_shared")
_GRID = 2001  # values at which a median is looked for in every resample


class _Folder:
    def __init__(self, name: str, path: Path | ScoreStore) -> None:
        self.name, self.store = name, path if isinstance(path, ScoreStore) else ScoreStore.open(path)
        self.signature = self.store.signature
        self.window = window_of(self.signature)

    def changed_from(self, other: _Folder) -> set[str]:
        return {change.name for change in differences(other.signature, self.signature)}

    def is_of_the_model(self, other: _Folder) -> bool:
        return self.changed_from(other) <= _SAME_MODEL


def pair_table(
    judged: Sequence[tuple[str, Path | ScoreStore]],
    against: Sequence[tuple[str, Path | ScoreStore]],
    question: Question,
    *,
    context: int | None = None,
    common: bool = False,
    run: str = "latest",
) -> Table:
    """The metrics of the suite "pairs" that the folders allow, a row each, with cluster-bootstrap intervals.

    Args:
        judged: whole-context passes, by name.
        against: short-context passes of them or of evaluators, teachers, references, by name.
        question: token sets, k, thresholds, bootstrap.
        context: as `frame.load`.
        common: take the trajectories that both have, where they differ.
        run: as `frame.load`.

    Raises:
        SettingsError: folders that cannot be paired, with what differs.
        DataError: folders of other trajectories or tokens.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    others = [_Folder(name, path) for name, path in against]
    for name, path in judged:
        subject = _Folder(name, path)
        if subject.window is not None:
            raise SettingsError(
                f"{name} is a short-context pass (window={subject.window}): it is no checkpoint to judge.\n"
                "Name the whole-context pass first and this one behind --against."
            )
        for other in others:
            part, remarks = _against(subject, other, others, question, context, run, common=common)
            rows += part
            notes += remarks
    about = ["interval: 95 %, by cluster bootstrap over trajectories; over: tokens that the metric is over"]
    if any(row["metric"] in _OF_KEYS for row in rows):
        about.append(f"key tokens: all context lowers their loss by more than {ALPHA:g} nats, to less than {BETA:g}")
    return Table(
        "pairs", "Against other scores of the same texts", rows, (*about, *dict.fromkeys(notes)), wide=("window",),
        essential=("metric", "value"),
    )  # fmt: skip


def named_folders(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """The folders with names for tables: the model's, and the window of a short-context pass."""
    windows = [window_of(ScoreStore.open(path).signature) for path in paths]
    names: dict[Path, str] = {}
    for window in dict.fromkeys(windows):
        of_window = [path for path, own in zip(paths, windows, strict=True) if own == window]
        suffix = "" if window is None else f" (window {window})"
        names |= {path: name + suffix for path, name in zip(of_window, run_names(of_window), strict=True)}
    return [(names[path], path) for path in paths]


def _against(
    subject: _Folder,
    other: _Folder,
    others: Sequence[_Folder],
    question: Question,
    context: int | None,
    run: str,
    *,
    common: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one checkpoint against one folder."""
    own = other.is_of_the_model(subject)
    if own and other.window is None:
        raise SettingsError(
            f"{subject.name} and {other.name} are scores of the same model with the same context: nothing differs.\n"
            'Name a short-context pass (scored with "window": N in --metadata), or another model.'
        )
    whole = subject
    if other.window is not None and not own:
        whole = next((f for f in others if f.window is None and other.is_of_the_model(f)), subject)
        if whole is subject:
            changed = "; ".join(map(str, differences(subject.signature, other.signature)[:3]))
            raise SettingsError(
                f"{other.name} is a short-context pass, but not of {subject.name} ({changed}).\n"
                "Name the whole-context pass of its model behind --against too: the two together find key tokens."
            )
    if subject.signature.get("render") != other.signature.get("render"):
        raise SettingsError(
            f"{subject.name} and {other.name} have other renderings ({subject.signature.get('render')}, "
            f"{other.signature.get('render')}), so no token of one stands beside a token of the other.\n"
            "Score the trajectories in one rendering with both."
        )
    notes: list[str] = []
    if own or other.window is not None:
        names = (*(_OF_CONTEXT if own else ()), *_OF_KEYS)
        role = "short context" if own else "evaluator"
    else:
        alike = _TOKENS.isdisjoint(other.changed_from(subject))
        names, role = ("rbridge", *(_OF_REFERENCE if alike else ())), "teacher"
        if not alike:
            notes.append(f"{other.name} has other tokens than {subject.name}: no metric over its 𝓗")
    base, beside, evaluator = (
        load(f.store, question.ks, name=f.name, extra=_PAIR_COLUMNS, context=context, run=run, metrics=())
        for f in (subject, other, whole)
    )
    rows = []
    for chosen, k, epsilon, about in question.settings(base):
        for frame in (base,) if names == ("rbridge",) or role == "evaluator" else (base, beside):
            frame.counted(chosen.mask)  # refuses tokens that were not scored
        pairs = _shared(base, beside, common=common)
        if len(pairs) < len(base.entries):
            notes.append(f"{subject.name} against {other.name}: on the {len(pairs)} texts that both have")
        sides = [(_Side(base, i, chosen.mask), j) for i, j in pairs]
        cell = np.repeat(np.arange(len(sides)), [len(text.index) for text, _ in sides])
        index = np.concatenate([text.index for text, _ in sides])
        columns: dict[str, Any] = {"trajectory": cell}
        if role == "teacher":
            teachers = [(text, _Side(beside, j)) for text, j in sides]
            means = [
                mean_over_characters(text.start, text.end, teacher.start, teacher.end, np.exp(teacher.logprob))
                for text, teacher in teachers
            ]
            columns["teacher"] = np.concatenate(means)
            if lacking := int(np.isnan(columns["teacher"]).sum()):
                notes.append(f"rbridge is without {lacking} of {len(index)} tokens that {other.name} did not score")
            if len(names) > 1:
                of_reference = np.concatenate([_Side(beside, j, chosen.mask).like(text).index for text, j in sides])
                rank = beside.rank[of_reference]
                columns["reference_decision"] = (beside.entropy[k][of_reference] > epsilon) & (rank >= 1) & (rank <= k)
        elif role == "short context":
            shorts = [(text, _Side(beside, j, chosen.mask)) for text, j in sides]
            columns["short_logprob"] = np.concatenate([short.like(text).logprob for text, short in shorts])
            hidden = np.concatenate([short.hidden(text.position) for text, short in shorts])
            columns["hidden"] = hidden / int(other.window or 0)
            logprob = np.concatenate([text.logprob for text, _ in sides])
            columns["key"] = key_tokens(logprob, columns["short_logprob"], columns["hidden"])
        else:
            keys = [_keys(text, evaluator, _Side(beside, j)) for text, j in sides]
            columns["key"] = np.concatenate(keys)
        tokens = replace(base.tokens(k, index), **columns)
        multiplicity = base.multiplicity(chosen.mask)[[i for i, _ in pairs]]
        multiplicity = multiplicity * beside.included(chosen.mask)[[j for _, j in pairs]]
        for name, estimate, count in _estimates(tokens, cell, multiplicity, names, k, epsilon, question):
            row = {**about, "against": other.name, "as": role, "window": other.window, "metric": name}
            rows.append({**row, "value": estimate, "interval": estimate.interval, "over": count})
    return rows, notes


def _shared(a: Frame, b: Frame, *, common: bool) -> list[tuple[int, int]]:
    """The places of the texts that both have, in the order of the first."""
    places = {entry.key: j for j, entry in enumerate(b.entries)}
    pairs = [(i, places[entry.key]) for i, entry in enumerate(a.entries) if entry.key in places]
    own = {entry.key for entry in a.entries}
    lacking = [entry for entry in a.entries if entry.key not in places]
    lacking += [entry for entry in b.entries if entry.key not in own]
    if lacking and not (common and pairs):
        ids = [entry.sources[0].id if entry.sources else entry.key[:12] for entry in lacking[:3]]
        remedy = "Score the same trajectories with both"
        remedy += ", or take those that both have with --common." if pairs else "."
        raise DataError(
            f"{a.name} and {b.name} share {number_of(len(pairs), 'text')}, and {len(lacking)} are in one alone "
            f"({', '.join(ids)}"
            f"{', …' if len(lacking) > 3 else ''}).\n{remedy}"
        )
    return pairs


# --- one text in one folder -------------------------------------------------------------------------------------------


class _Side:
    """The tokens of one text of a frame: those that count, or (without a mask) all that were scored."""

    def __init__(self, frame: Frame, place: int, mask: np.uint64 | None = None) -> None:
        self.frame, self.place = frame, place
        index = np.arange(frame.bounds[place], frame.bounds[place + 1])
        self.index: IntArray = index if mask is None else index[(frame.label[index] & mask) != 0]
        self.position: IntArray = frame.extra["position"][self.index].astype(np.int64)
        self.logprob: FloatArray = frame.logprob[self.index].astype(np.float64)
        self.start, self.end = (frame.extra[name][self.index].astype(np.int64) for name in ("char_start", "char_end"))

    def hidden(self, position: IntArray) -> FloatArray:
        """How many tokens before each position this short-context pass hides from the model, (n,)."""
        prefix = len((self.frame.signature.get("run") or {}).get("bos") or ())
        return hidden_tokens(position, int(window_of(self.frame.signature) or 0), prefix).astype(np.float64)

    def like(self, other: _Side) -> _Side:
        """Itself, if these are the tokens of `other`; `DataError` if not."""
        if np.array_equal(self.position, other.position):
            return self
        entry = self.frame.entries[self.place]
        name = entry.sources[0].id if entry.sources else entry.key[:12]
        raise DataError(
            f"{other.frame.name} and {self.frame.name} do not score the same tokens: of trajectory {name!r} "
            f"{len(other.position)} and {len(self.position)} count.\n"
            "Score both with the same tokenizer and max_length, or leave out --context own."
        )


def key_tokens(whole: FloatArray, short: FloatArray, hidden: FloatArray) -> npt.NDArray[np.int8]:
    """Which tokens are key tokens of LongPPL: 1, else 0; -1 where the short context hides nothing.

    Args:
        whole, short: ln p of the evaluator with all context and with its window.
        hidden: tokens that the window hides.
    """
    key = (whole - short > ALPHA) & (-whole < BETA)
    return np.where(hidden > 0, key, -1).astype(np.int8)


def _keys(text: _Side, evaluator: Frame, short: _Side) -> npt.NDArray[np.int8]:
    """Key tokens of another model's: a token is key where all its characters are those of key tokens."""
    key = short.frame.entries[short.place].key
    place = next((i for i, entry in enumerate(evaluator.entries) if entry.key == key), None)
    if place is None:
        raise DataError(
            f"{evaluator.name} and {short.frame.name} are not of the same trajectories (first: {key[:12]}).\n"
            "Score the same trajectories with the evaluator's two passes."
        )
    whole = _Side(evaluator, place)
    both, i, j = np.intersect1d(whole.position, short.position, return_indices=True)
    state = key_tokens(whole.logprob[i], short.logprob[j], short.hidden(both))
    size = max(int(text.end.max(initial=0)), int(whole.end.max(initial=0)))
    least = np.full(size, 2, dtype=np.int64)  # 2: no token
    owner, characters = _characters(whole.start[i], whole.end[i])
    np.minimum.at(least, characters, state[owner].astype(np.int64))
    least[least == 2] = -1
    owner, characters = _characters(text.start, text.end)
    result = np.full(len(text.index), 2, dtype=np.int64)
    np.minimum.at(result, owner, least[characters])
    return np.where(result == 2, -1, result).astype(np.int8)


def _characters(start: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
    """Every (token, character) of tokens that cover the characters start to end."""
    length = end - start
    owner = np.repeat(np.arange(len(start)), length)
    first = np.cumsum(length) - length
    return owner, start[owner] + np.arange(len(owner)) - first[owner]


def mean_over_characters(
    start: IntArray, end: IntArray, other_start: IntArray, other_end: IntArray, value: FloatArray
) -> FloatArray:
    """Values of one tokenisation as those of another: the mean over a token's characters.

    Args:
        start, end: characters of n tokens.
        other_start, other_end: characters of m tokens of another tokenisation of the same text.
        value: of each of those, shape (m,); a character that several cover has their mean.

    Returns:
        Shape (n,); over the characters that have a value, NaN where none has.
    """
    size = max(int(end.max(initial=0)), int(other_end.max(initial=0)))
    owner, characters = _characters(other_start, other_end)
    count = np.bincount(characters, minlength=size)
    with np.errstate(invalid="ignore"):
        of_character = np.bincount(characters, value[owner], size) / count
    owner, characters = _characters(start, end)
    has = count[characters] > 0
    owner, characters = owner[has], characters[has]
    with np.errstate(invalid="ignore"):
        return np.asarray(
            np.bincount(owner, of_character[characters], len(start)) / np.bincount(owner, minlength=len(start))
        )


# --- numbers ----------------------------------------------------------------------------------------------------------


def _estimates(
    tokens: TokenColumns,
    cell: IntArray,
    multiplicity: IntArray,
    names: Sequence[str],
    k: int,
    epsilon: float,
    question: Question,
) -> list[tuple[str, Estimate, int]]:
    """Name, value with interval, and number of tokens; a value over fewer than `min_tokens` is NaN."""
    sums = cell_sums(tokens, cell, len(multiplicity), [epsilon], k, names)[0].repeat(multiplicity)
    options: dict[str, Any] = {"resamples": question.resamples, "seed": question.seed}
    results = []
    for name in names:
        numerator, denominator = (side[:, None] for side in sums.parts(name))
        if name == "rbridge" and tokens.teacher is not None:  # its denominator is a sum of weights
            count = int((~np.isnan(tokens.teacher) * multiplicity[cell]).sum())
        else:
            count = int(denominator.sum())
        estimate = Estimate(math.nan)
        if count >= max(1, question.min_tokens):
            estimate = estimates(numerator, denominator, METRICS[name].scale, **options)[0]
        results.append((name, estimate, count))
        if name == "context_benefit":
            results.append(("context_benefit_median", _median(tokens, cell, multiplicity, count, question), count))
    return results


def _median(tokens: TokenColumns, cell: IntArray, multiplicity: IntArray, count: int, question: Question) -> Estimate:
    """Median context benefit, with the percentile interval of the cluster bootstrap.

    In resamples the median is looked for among 2 001 quantiles of all values: to a two-thousandth of their ranks.
    """
    if count < max(1, question.min_tokens) or tokens.hidden is None or tokens.short_logprob is None:
        return Estimate(math.nan)
    chosen = tokens.hidden > 0
    benefit = np.repeat((tokens.logprob - tokens.short_logprob)[chosen], multiplicity[cell[chosen]])
    value = float(np.median(benefit))
    grid = np.unique(np.quantile(benefit, np.linspace(0, 1, _GRID)))
    place = np.searchsorted(grid, (tokens.logprob - tokens.short_logprob)[chosen], side="left")
    below = np.zeros((len(multiplicity), len(grid)))
    np.add.at(below, (cell[chosen], np.minimum(place, len(grid) - 1)), 1.0)
    below = np.repeat(below.cumsum(axis=1), multiplicity, axis=0)  # tokens of a trajectory at most as large
    if len(below) < 4:
        return Estimate(value)
    counts = resample_counts(len(below), question.resamples, question.seed)
    medians = np.full(len(counts), math.nan)
    for start in range(0, len(counts), 1000):
        totals = counts[start : start + 1000].astype(np.float64) @ below
        half = totals[:, -1:] / 2
        middle = (totals >= half).argmax(axis=1)
        medians[start : start + 1000] = np.where(totals[:, -1] > 0, grid[middle], math.nan)
    low, high = np.nanpercentile(medians, [2.5, 97.5]).tolist()
    return Estimate(value, standard_error(medians), low, high)
