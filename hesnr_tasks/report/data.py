"""All that a report needs of one checkpoint's score files; the tokens themselves are not kept."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.cases import case_table
from hesnr_tasks.analysis.compare import Run, matched
from hesnr_tasks.analysis.density import POPULATIONS, Peak, density, histogram, mass_near, population
from hesnr_tasks.analysis.frame import Frame, Selection, context_for, grid_sums, load, selection
from hesnr_tasks.analysis.tables import SWEEP, Table
from hesnr_tasks.errors import HesnrError
from hesnr_tasks.metrics import EPSILON, METRICS, MIN_TOKENS, Share, TrajectorySums, measure, share_scored
from hesnr_tasks.report.ladder import Checkpoint, Score, boundaries
from hesnr_tasks.report.results import Row, groups, run_of
from hesnr_tasks.scores import ScoreStore, StoredRun, StoreError
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate
from hesnr_tasks.trajectory import Kind

__all__ = [
    "OBSERVATION",
    "UNFILTERED",
    "Digest",
    "Missing",
    "Shape",
    "Study",
    "digest",
    "rows_of",
    "study",
    "token_sets",
]

FloatArray = npt.NDArray[np.float64]
BINS = 80  # of the histograms
UNFILTERED = "thought+action"
OBSERVATION = "observation"
_CASES = 2  # tokens near each of ln 2, ln 3, ln 4
_POINTS = 16  # every so many points of a density are drawn


class Shape(NamedTuple):
    """How the entropies of some tokens are spread, in nats."""

    select: str
    population: str
    tokens: int
    edges: FloatArray  # (BINS + 1,)
    counts: npt.NDArray[np.int64]  # (BINS,)
    grid: FloatArray
    height: FloatArray  # density at grid, per nat
    peaks: tuple[Peak, ...]  # the highest (the mode) first
    near: Mapping[int, float]  # share of tokens within 0.1 nats of ln 1 … ln 5


@dataclass(frozen=True, slots=True)
class Digest:
    """One checkpoint; T trajectories in the order of their keys."""

    name: str
    folder: Path
    about: str  # which of the scores in the folder these are
    signature: Mapping[str, Any]
    keys: tuple[str, ...]
    ids: tuple[str, ...]
    sets: Mapping[str, Selection]  # the sets of tokens that were scored
    sums: Mapping[str, TrajectorySums]  # each (T, statistics)
    copies: Mapping[str, npt.NDArray[np.int64]]  # each (T,)
    cut: Mapping[str, npt.NDArray[np.int64]]  # each (T,)
    epsilons: tuple[float, ...]
    sweep: TrajectorySums  # (thresholds, T, statistics) on filtered actions; empty without scores of these
    shapes: tuple[Shape, ...]
    cases: Table | None

    @property
    def filtered(self) -> str:
        """The set of actions with every filter."""
        return rows_of(self.signature["filters"])[-1]

    def scored(self, select: str) -> Share:
        """The share of the tokens that would count that was scored."""
        copies = self.copies[select]
        return share_scored(float(self.sums[select].column("tokens") @ copies), float(self.cut[select] @ copies))

    def data(self, select: str) -> str:
        """The hash of the texts that `signature.signature` has as `data`."""
        repeated = np.repeat(np.array(self.keys, dtype=object), self.copies[select]).tolist()
        return hashlib.sha256("".join(sorted(repeated)).encode()).hexdigest()


def rows_of(filters: Sequence[str]) -> list[str]:
    """The rows of the paper's ablation: thoughts, then actions with no filter, one, two … all of them."""
    return ["thought", *("-".join(["action", *filters[:n]]) for n in range(len(filters) + 1))]


def token_sets(filters: Sequence[str]) -> dict[str, Selection]:
    """Every set of tokens that a report asks for, by name."""
    chosen = [selection(filters, [Kind.THOUGHT], [])]
    chosen += [selection(filters, [Kind.ACTION], filters[:n]) for n in range(len(filters) + 1)]
    chosen.append(selection(filters, [Kind.THOUGHT, Kind.ACTION], []))
    chosen.append(selection(filters, [Kind.OBSERVATION], []))
    return {one.name: one for one in chosen}


def digest(
    folder: Path, name: str, k: int, epsilon: float, context: int | None = None, run: str | StoredRun = "latest"
) -> Digest:
    """Read one run of a folder of score files; raises as `analysis.frame.load`."""
    filters = ScoreStore.open(folder).signature["filters"]
    wanted = token_sets(filters)
    frame = load(folder, (k,), masks=[one.mask for one in wanted.values()], name=name, context=context, run=run)
    sets = {key: one for key, one in wanted.items() if _scored(frame, one)}
    masks = [one.mask for one in sets.values()]
    sums: Any = grid_sums(frame, masks, [k], [epsilon])[:, 0, 0] if masks else []
    filtered = rows_of(filters)[-1]
    epsilons = tuple(value for value in SWEEP if value < math.log(k))
    swept = TrajectorySums(np.empty((0, 0, 0)), ())
    if filtered in sets:
        swept = grid_sums(frame, [sets[filtered].mask], [k], epsilons)[0, 0]
    return Digest(
        name=name,
        folder=folder,
        about=frame.about,
        signature=frame.signature,
        keys=tuple(entry.key for entry in frame.entries),
        ids=tuple(",".join(s.id for s in entry.sources) or entry.key[:12] for entry in frame.entries),
        sets=sets,
        sums=dict(zip(sets, sums, strict=True)),
        copies={key: frame.multiplicity(one.mask) for key, one in sets.items()},
        cut={key: frame.n_truncated(one.mask) for key, one in sets.items()},
        epsilons=epsilons,
        sweep=swept,
        shapes=tuple(_shapes(frame, sets, (filtered, OBSERVATION), k)),
        cases=case_table(frame, sets[filtered], k, _CASES) if filtered in sets else None,
    )


def _scored(frame: Frame, one: Selection) -> bool:
    return all(int(one.mask) & ~entry.mask == 0 for entry in frame.entries)


def _shapes(frame: Frame, sets: Mapping[str, Selection], names: Sequence[str], k: int) -> Iterator[Shape]:
    for name in names:
        if name not in sets:
            continue
        counted = frame.counted(sets[name].mask)
        for which in POPULATIONS:
            entropy = frame.entropy[k][counted & population(frame.rank, which)]
            bins, curve = histogram(entropy, k, BINS), density(entropy, k)
            yield Shape(
                select=name,
                population=which,
                tokens=len(entropy),
                edges=bins.edges,
                counts=bins.counts,
                grid=curve.grid[::_POINTS],
                height=curve.height[::_POINTS],
                peaks=curve.peaks,
                near={ways: mass_near(entropy, ways) for ways in range(1, 6)},
            )


# --- the whole ladder ---

_METRICS = (
    "he_snr", "he_ppl", "ppl", "top1_acc", "top2_acc", "top5_acc", "top10_acc", "he_tokens", "tokens", "density",
)  # fmt: skip
_FEWEST = 4  # trajectories for an interval, as in analysis.intervals
_Z = 1.96
_EVERYTHING = re.compile(r"^run 1 of 1 .*: (\d+) of \1 trajectories$")  # nothing that a reader must be told
_RUN = "lm_eval --model hf --model_args pretrained=CHECKPOINT --tasks hesnr_swe,hesnr_swe_unfiltered --output_path DIR"


class Missing(NamedTuple):
    """What a page does not have, why, and the command that gives it."""

    what: str
    why: str
    command: str


@dataclass(frozen=True, slots=True)
class Study:
    """Everything figures and tables are made of. Checkpoints are in the order of training."""

    ladder: tuple[Checkpoint, ...]
    rows: tuple[Row, ...]
    used: tuple[Row, ...]  # those of the rows whose numbers may be in a figure
    values: Mapping[str, Mapping[str, Mapping[str, Estimate]]]  # set of tokens -> checkpoint -> metric
    digests: tuple[Digest, ...]
    downstream: Mapping[str, Score]
    filtered: str
    ablation: tuple[str, ...]
    k: int = 10
    epsilon: float = EPSILON
    resamples: int = RESAMPLES
    seed: int = SEED
    context: int | None = None  # that score files were restricted to
    notes: list[str] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def named(self, names: Sequence[str] | Mapping[str, object]) -> list[Checkpoint]:
        """Those checkpoints of the ladder that are in `names`."""
        return [one for one in self.ladder if one.name in names]

    def aligned(self, select: str) -> list[Run]:
        """The runs with score files on one set of tokens, trajectory by trajectory the same; fewer than two: none."""
        runs = [as_run(one, select) for one in self.digests if select in one.sets]
        return matched(runs)[0] if len(runs) > 1 else []

    def about(self, select: str) -> str:
        """What a number in a caption stands on."""
        counts = {int(one.copies[select].sum()) for one in self.digests if select in one.sets}
        counts |= {int((row.signature or {}).get("trajectories", 0)) for row in self.used if row.select == select}
        if not counts:
            return ""
        spans = [f"{'–'.join(str(n) for n in sorted({min(counts), max(counts)}))} trajectories"]
        shares = [one.scored(select) for one in self.digests if select in one.sets]
        if shares and min(shares) < 1:
            ends = dict.fromkeys(f"{share:.1%}" for share in (min(shares), max(shares)))
            spans.append(f"{' to '.join(ends)}{' (!)' * (min(shares) < 0.5)} of their tokens scored")
        if self.context is not None:
            spans.append(f"context {self.context:,}")
        return ", ".join(spans)

    @property
    def bars(self) -> str:
        """What error bars are."""
        axes = " Axes are set by the values; a bar may end beyond them."
        if not self.digests:
            return "Bars: ± 1.96 standard errors (cluster bootstrap over trajectories)." + axes
        other = (
            "" if len(self.digests) == len(self.ladder) else "; ± 1.96 standard errors where there are no score files"
        )
        return f"Bars: 95 % interval over trajectories, where they are enough{other}.{axes}"


def study(
    rows: Sequence[Row],
    ladder: Sequence[Checkpoint],
    folders: Mapping[str, Path],
    downstream: Mapping[str, Score],
    *,
    remarks: Sequence[str] = (),
    run: str = "latest",
    resamples: int = RESAMPLES,
    seed: int = SEED,
    context: int | str | None = None,
) -> Study:
    """Read the score files and put everything together. Runs that must not be compared are left out, with a note.

    `context`: as `analysis.frame.context_for`; figures and tables made of score files are then of these tokens.
    """
    settings = Counter((row.signature["k"], row.signature["epsilon"]) for row in rows if row.signature)
    k, epsilon = settings.most_common(1)[0][0] if settings else (10, EPSILON)
    notes = list(remarks)
    limit, said = _context([folders[one.name] for one in ladder if one.name in folders], context)
    notes += [said] if said else []
    of_model = {one.name: [row for row in rows if row.model == one.name and row.signature] for one in ladder}
    found = list(
        _digests(ladder, folders, k, epsilon, limit, notes, lambda name: run_of(folders[name], run, of_model[name]))
    )
    notes += [f"{one.name}: {one.about}" for one in found if not _EVERYTHING.search(one.about)]
    kept = _compatible(found, notes)
    filters = list(kept[0].signature["filters"]) if kept else _filters(rows)
    ablation = rows_of(filters)
    # results without score files are of other tokens than score files restricted to a context
    used = [row for group in _chosen(rows, kept) for row in group] if limit is None else []
    notes += _other_data(rows, kept)
    made = Study(
        ladder=tuple(ladder),
        rows=tuple(rows),
        used=tuple(used),
        values=_values(used, kept, resamples, seed),
        digests=tuple(kept),
        downstream=downstream,
        filtered=ablation[-1],
        ablation=tuple(ablation),
        k=k,
        epsilon=epsilon,
        resamples=resamples,
        seed=seed,
        context=limit,
        notes=notes,
    )
    made.missing.extend(_missing(made))
    return made


def _context(folders: Sequence[Path], asked: int | str | None) -> tuple[int | None, str]:
    """As `context_for`, of the folders that can be read; what is wrong with the others is said when they are read."""
    readable = []
    for folder in folders:
        try:
            context_for([folder], None)
            readable.append(folder)
        except StoreError:
            continue
    return context_for(readable, asked)


def _digests(
    ladder: Sequence[Checkpoint],
    folders: Mapping[str, Path],
    k: int,
    epsilon: float,
    context: int | None,
    notes: list[str],
    run: Callable[[str], StoredRun],
) -> Iterator[Digest]:
    """One at a time; a folder that cannot be read costs its checkpoint the figures, not the others the page."""
    for one in ladder:
        if one.name in folders:
            try:
                yield digest(folders[one.name], one.name, k, epsilon, context, run(one.name))
            except StoreError as error:
                notes.append(f"{one.name}: its score files are not used: {error}")


def as_run(one: Digest, select: str) -> Run:
    """A digest on one set of tokens, as comparisons take it."""
    sums, copies, cut = one.sums[select], one.copies[select], one.cut[select]
    return Run(one.name, one.signature, one.keys, one.ids, copies, cut, sums)


def _filters(rows: Sequence[Row]) -> list[str]:
    known: list[list[str]] = [row.signature["filters"] for row in rows if row.signature]
    return list(max(known, key=len, default=[]) or ("xml", "format", "comments"))


def _compatible(found: Sequence[Digest], notes: list[str]) -> list[Digest]:
    """The largest set of runs that may be compared; the others are left out of figures and correlations."""
    sets: list[list[Digest]] = []
    reasons: dict[str, str] = {}
    for one in found:
        for group in sets:
            reason = _apart(group[0], one)
            if reason is None:
                group.append(one)
                break
            reasons.setdefault(one.name, reason)
        else:
            sets.append([one])
    largest = max(sets, key=len, default=[])
    for one in found:
        if one not in largest:
            why = reasons.get(one.name) or _apart(largest[0], one)
            notes.append(f"{one.name} is in no figure: {why}")
    return largest


def _apart(a: Digest, b: Digest) -> str | None:
    """Why two runs must not be compared; None: they may be."""
    shared = [name for name in a.sets if name in b.sets]
    if not shared:
        return f"{a.name} and {b.name} have no set of tokens in common"
    try:
        matched([as_run(a, shared[-1]), as_run(b, shared[-1])])
    except HesnrError as error:
        return str(error)
    return None


def _values(
    rows: Sequence[Row], digests: Sequence[Digest], resamples: int, seed: int
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Numbers from score files; where there are none, from result files made the same way."""
    found: dict[str, dict[str, dict[str, Estimate]]] = {}
    for one in digests:
        for name, sums in one.sums.items():
            line = measure(
                sums[None], one.copies[name], _METRICS, resamples=resamples, seed=seed, min_tokens=MIN_TOKENS
            )[0]
            found.setdefault(name, {})[one.name] = line
    for row in rows:
        numbers = {name: _saved(row, name) for name in _METRICS if name in row.values}
        found.setdefault(row.select, {}).setdefault(row.model, numbers)
    return found


def _chosen(rows: Sequence[Row], digests: Sequence[Digest]) -> list[list[Row]]:
    """For each set of tokens the results that may stand beside the score files', or the largest group of results."""
    known = {one.name: one for one in digests}
    best: dict[str, tuple[int, int, list[Row]]] = {}
    for group in groups([row for row in rows if row.signature]):
        select = group[0].select
        same = sum(_same_data(row, known) for row in group)
        if digests and not same and any(select in one.sets for one in digests):
            continue
        if select not in best or (same, len(group)) > best[select][:2]:
            best[select] = (same, len(group), group)
    return [group for _, _, group in best.values()]


def _same_data(row: Row, known: Mapping[str, Digest]) -> bool:
    one = known.get(row.model)
    return one is not None and row.select in one.sets and one.data(row.select) == (row.signature or {}).get("data")


def _other_data(rows: Sequence[Row], digests: Sequence[Digest]) -> list[str]:
    known = {one.name: one for one in digests}
    return [
        f"{row.model}: the leaderboard's {row.task} is of {row.signature['trajectories']} trajectories, the figures "
        f"are of the {int(known[row.model].copies[row.select].sum())} in {known[row.model].folder}"
        for row in rows
        if row.signature and row.model in known and row.select in known[row.model].sets and not _same_data(row, known)
    ]


def _saved(row: Row, name: str) -> Estimate:
    value, error = row.values[name]
    number = Estimate(value, math.nan if error is None else error)
    few = (row.signature or {}).get("trajectories", 0) < _FEWEST
    return number if few or METRICS[name].denominator is None else _with_ends(number)


def _with_ends(number: Estimate) -> Estimate:
    """Ends from the standard error, for results without score files."""
    half = _Z * number.stderr
    return number._replace(ci_low=number.value - half, ci_high=number.value + half)


def _missing(made: Study) -> list[Missing]:
    found = []
    without = [one.name for one in made.ladder if one.name not in {digest.name for digest in made.digests}]
    if without:
        why = f"no (comparable) score files of {', '.join(without)}"
        what = "histograms, threshold sweep, ablation ladder, case table and paired differences of these checkpoints"
        found.append(Missing(what, why, _RUN))
    if made.digests and not any(OBSERVATION in one.sets for one in made.digests):
        command = _RUN + """ --metadata '{"keep": "observation+thought+action"}'"""
        found.append(Missing("Figure 5 (observation tokens)", "observations were not scored", command))
    for select, task in ((UNFILTERED, "hesnr_swe_unfiltered"), (made.filtered, "hesnr_swe")):
        if select not in made.values:
            command = f"lm_eval --model hf --model_args pretrained=CHECKPOINT --tasks {task} --output_path DIR"
            found.append(Missing(f"everything on {select} tokens", f"no numbers on {select}", command))
    if not made.downstream:
        what = "correlations, decision accuracy and Figure 6"
        found.append(Missing(what, "no downstream scores", "hesnr report RESULTS --downstream scores.csv -o OUT"))
    kinds = {one.kind for one in boundaries(made.ladder)}
    if "context" not in kinds:
        why = "no name tells of a context extension (…-32k, …-128k)"
        found.append(Missing("Figure 7", why, "hesnr report RESULTS --ladder ladder.yaml -o OUT"))
    if "stage" not in kinds:
        why = "no checkpoint is called …-sft"
        found.append(
            Missing("Figure 8 (before and after SFT)", why, "hesnr report RESULTS --ladder ladder.yaml -o OUT")
        )
    return found
