"""What is kept of one checkpoint's score files once its tokens have been read: sums per trajectory, and histograms.

A `CheckpointSummary` is all that reports, verdicts and packs of a ladder need, some kilobytes in place of gigabytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.cases import case_table
from hesnr_tasks.analysis.compare import Run
from hesnr_tasks.analysis.density import POPULATIONS, Peak, density, histogram, mass_near, population
from hesnr_tasks.analysis.frame import Frame, Selection, grid_sums, load, selection
from hesnr_tasks.analysis.tables import SWEEP, Table
from hesnr_tasks.metrics import Share, TrajectorySums, names_of, share_scored
from hesnr_tasks.scores import ScoreStore, StoredRun
from hesnr_tasks.trajectory import Kind

__all__ = [
    "BINS",
    "OBSERVATION",
    "UNFILTERED",
    "CheckpointSummary",
    "EntropyDistribution",
    "ablation_sets",
    "summarize",
    "token_sets",
]

FloatArray = npt.NDArray[np.float64]
BINS = 80  # of the histograms
UNFILTERED = "thought+action"
OBSERVATION = "observation"
_SWEPT = ("he_snr", "he_tokens")  # metrics over the threshold
_CASES = 2  # tokens near each of ln 2, ln 3, ln 4
_GRID_STEP = 16  # of the points of a density, every so many are kept


class EntropyDistribution(NamedTuple):
    """The distribution of H_topk, in nats, over some tokens."""

    select: str
    population: str  # one of analysis.density.POPULATIONS
    tokens: int
    edges: FloatArray  # (BINS + 1,)
    counts: npt.NDArray[np.int64]  # (BINS,)
    grid: FloatArray
    height: FloatArray  # density at grid, per nat
    peaks: tuple[Peak, ...]  # in descending height
    near: Mapping[int, float]  # n -> share of tokens within 0.1 nats of ln n


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """The score files of one checkpoint, without the tokens; T trajectories in the order of their keys."""

    name: str
    folder: Path
    about: str  # which run in the folder
    signature: Mapping[str, Any]
    runs: Mapping[str, Run]  # by set of tokens that was scored: sums per trajectory
    epsilons: tuple[float, ...]  # thresholds of the sweep, nats
    sweep: TrajectorySums  # (thresholds, T, statistics) on filtered actions; empty: these were not scored
    distributions: tuple[EntropyDistribution, ...]
    cases: Table | None

    def share_scored(self, select: str) -> Share:
        """The share of the tokens that would count that was scored."""
        run = self.runs[select]
        tokens, truncated = run.sums.column("tokens") @ run.multiplicity, run.n_truncated @ run.multiplicity
        return share_scored(float(tokens), float(truncated))

    def n_trajectories(self, select: str) -> int:
        """Trajectories that count."""
        return int(self.runs[select].multiplicity.sum())

    def has_data(self, select: str, data: str | None) -> bool:
        """Whether a set of tokens is of the texts with the hash `data`, which signatures of results have."""
        run = self.runs.get(select)
        if run is None:
            return False
        keys = np.repeat(np.array(run.keys, dtype=object), run.multiplicity).tolist()
        return hashlib.sha256("".join(sorted(keys)).encode()).hexdigest() == data


def token_sets(filters: Sequence[str]) -> dict[str, Selection]:
    """Every set of tokens that a report uses, by name."""
    sets = [selection(filters, [Kind.THOUGHT], [])]
    sets += [selection(filters, [Kind.ACTION], filters[:n]) for n in range(len(filters) + 1)]
    sets += [selection(filters, [Kind.THOUGHT, Kind.ACTION], []), selection(filters, [Kind.OBSERVATION], [])]
    return {tokens.name: tokens for tokens in sets}


def ablation_sets(filters: Sequence[str]) -> list[str]:
    """The rows of the paper's ablation: thoughts, then actions with no filter, one, two … all of them."""
    return ["thought", *("-".join(["action", *filters[:n]]) for n in range(len(filters) + 1))]


def summarize(
    folder: Path,
    name: str,
    k: int,
    epsilon: float,
    context: int | None,
    run: str | StoredRun = "latest",
    *,
    cases: bool = False,
    metrics: Sequence[str] | None = None,
) -> CheckpointSummary:
    """Read the score files of one checkpoint.

    Args:
        folder: of score files.
        name: of the checkpoint.
        k: candidates.
        epsilon: threshold, nats.
        context: as `frame.load`.
        run: as `frame.load`.
        cases: with single tokens and the texts around them.
        metrics: those whose sums are kept (None: the core ones).
    """
    names = names_of() if metrics is None else tuple(metrics)
    filters = ScoreStore.open(folder).signature["filters"]
    wanted = token_sets(filters)
    frame = load(
        folder, (k,), masks=[tokens.mask for tokens in wanted.values()], name=name, context=context, run=run,
        metrics=names,
    )  # fmt: skip
    scored = {s: tokens for s, tokens in wanted.items() if all(int(tokens.mask) & ~e.mask == 0 for e in frame.entries)}
    masks = {select: tokens.mask for select, tokens in scored.items()}
    sums: Any = grid_sums(frame, list(masks.values()), [k], [epsilon], names)[:, 0, 0] if masks else []
    keys = tuple(entry.key for entry in frame.entries)
    ids = tuple(",".join(s.id for s in entry.sources) or entry.key[:12] for entry in frame.entries)
    runs = {
        select: Run(name, frame.signature, keys, ids, frame.multiplicity(mask), frame.n_truncated(mask), of_set)
        for (select, mask), of_set in zip(masks.items(), sums, strict=True)
    }
    filtered = ablation_sets(filters)[-1]
    epsilons = tuple(value for value in SWEEP if value < math.log(k))
    sweep, table = TrajectorySums(np.empty((0, 0, 0)), ()), None
    if filtered in scored:
        sweep = grid_sums(frame, [masks[filtered]], [k], epsilons, _SWEPT)[0, 0]
        table = case_table(frame, scored[filtered], k, _CASES) if cases else None
    distributions = _distributions(frame, {s: masks[s] for s in (filtered, OBSERVATION) if s in masks}, k)
    return CheckpointSummary(
        name, folder, frame.about, frame.signature, runs, epsilons, sweep, tuple(distributions), table
    )


def _distributions(frame: Frame, masks: Mapping[str, np.uint64], k: int) -> Iterator[EntropyDistribution]:
    for select, mask in masks.items():
        counted = frame.counted(mask)
        for name in POPULATIONS:
            entropy = frame.entropy[k][counted & population(frame.rank, name)]
            bins, curve = histogram(entropy, k, BINS), density(entropy, k)
            grid, height = curve.grid[::_GRID_STEP], curve.height[::_GRID_STEP]
            near = {n: mass_near(entropy, n) for n in range(1, 6)}
            yield EntropyDistribution(
                select, name, len(entropy), bins.edges, bins.counts, grid, height, curve.peaks, near
            )
