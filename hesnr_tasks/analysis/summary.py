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

from hesnr_tasks.analysis.breakdowns import POPULATIONS, Peak, density, histogram, mass_near, population
from hesnr_tasks.analysis.compare import Run, unresolved
from hesnr_tasks.analysis.frame import Frame, Selection, grid_sums, joined, scan, selection, token_sums
from hesnr_tasks.analysis.tables import SWEEP, Table, case_table
from hesnr_tasks.errors import DataError
from hesnr_tasks.metrics import METRICS, Share, TrajectorySums, names_of, share_scored
from hesnr_tasks.scores import ScoreStore, StoredRun
from hesnr_tasks.trajectory import Kind

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
BINS = 80  # of the histograms
UNFILTERED = "thought+action"
OBSERVATION = "observation"
_SWEPT = ("he_snr", "he_tokens")  # metrics over the threshold
_CASES = 2  # tokens near each of ln 2, ln 3, ln 4
_GRID_STEP = 16  # of the points of a density, every so many are kept
_NEAR = range(1, 6)  # n of the shares of tokens near ln n
_CURVES = ("edges", "counts", "grid", "height")  # arrays of a distribution


class EntropyDistribution(NamedTuple):
    """The distribution of H_topk, in nats, over some tokens."""

    select: str
    population: str  # one of analysis.breakdowns.POPULATIONS
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
    k: int  # candidates
    epsilon: float  # nats
    context: int | None  # that it was restricted to, tokens
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

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """What JSON holds and what arrays hold, float64 and int64; `from_parts` makes the same summary of them.

        Neither has a text, an id of a trajectory or the folder: of a trajectory there is the SHA-256 of its text.
        """
        runs, shapes = list(self.runs.values()), self.distributions
        keys = runs[0].keys if runs else ()
        document: dict[str, Any] = {
            "name": self.name, "about": self.about, "signature": self.signature, "k": self.k, "epsilon": self.epsilon,
            "context": self.context, "keys": keys, "sets": list(self.runs), "epsilons": self.epsilons,
            "unresolved": [i for i, failed in enumerate(runs[0].unresolved if runs else ()) if failed],
            "statistics": runs[0].sums.names if runs else (), "swept": self.sweep.names,
            "distributions": [
                {
                    "select": d.select, "population": d.population, "tokens": d.tokens, "peaks": d.peaks,
                    "near": [None if math.isnan(d.near[n]) else d.near[n] for n in _NEAR],
                }
                for d in shapes
            ],
        }  # fmt: skip
        size = (len(runs), len(keys))
        statistics = len(document["statistics"])
        arrays: dict[str, Array] = {
            "sums": np.array([run.sums.values for run in runs], dtype=np.float64).reshape(*size, statistics),
            "multiplicity": np.array([run.multiplicity for run in runs], dtype=np.int64).reshape(size),
            "n_truncated": np.array([run.n_truncated for run in runs], dtype=np.int64).reshape(size),
            "sweep": self.sweep.values,
        }
        for name in _CURVES:
            dtype = np.int64 if name == "counts" else np.float64
            columns = [getattr(d, name) for d in shapes]
            arrays[name] = np.array(columns, dtype=dtype).reshape(len(shapes), len(columns[0]) if columns else 0)
        return document, arrays

    @classmethod
    def from_parts(cls, document: Mapping[str, Any], arrays: Mapping[str, Array], folder: Path) -> CheckpointSummary:
        """The summary that `to_parts` took apart.

        Args:
            document, arrays: its parts.
            folder: where they were, for messages.

        Raises:
            DataError: something is missing, or has another type or shape than `to_parts` gives.
        """
        try:
            keys, sets = tuple(map(str, document["keys"])), tuple(map(str, document["sets"]))
            names, swept = tuple(map(str, document["statistics"])), tuple(map(str, document["swept"]))
            epsilons = tuple(map(float, document["epsilons"]))
            shapes = document["distributions"]
            wanted = {
                "sums": (len(sets), len(keys), len(names)), "multiplicity": (len(sets), len(keys)),
                "n_truncated": (len(sets), len(keys)), "sweep": (len(epsilons), len(keys), len(swept)),
            }  # fmt: skip
            if not swept:
                wanted["sweep"] = (0, 0, 0)
            for name, shape in wanted.items():
                if arrays[name].shape != shape:
                    raise ValueError(f"{name} has the shape {arrays[name].shape}, not {shape}")
            if arrays["multiplicity"].min(initial=0) < 0 or arrays["n_truncated"].min(initial=0) < 0:
                raise ValueError("a count is negative")
            if len(set(keys)) < len(keys) or len(set(sets)) < len(sets):
                raise ValueError("a trajectory or a set of tokens is there twice")
            signature, ids = dict(document["signature"]), tuple(key[:12] for key in keys)
            filters = signature["filters"]
            if not isinstance(signature["run"], dict) or not all(isinstance(name, str) for name in [*filters]):
                raise ValueError("the signature has no run or no filters")
            needed = {column for name in names_of() for column in METRICS[name].columns}
            if sets and not needed <= {*names}:
                raise ValueError(f"there are no sums of {', '.join(sorted(needed - {*names}))}")
            failures = {int(i) for i in document["unresolved"]}
            failed = tuple(i in failures for i in range(len(keys)))
            columns = arrays["multiplicity"], arrays["n_truncated"], arrays["sums"]
            runs = {
                select: Run(
                    str(document["name"]),
                    signature,
                    keys,
                    ids,
                    counts,
                    cut,
                    TrajectorySums(sums, names),
                    unresolved=failed,
                )
                for select, counts, cut, sums in zip(sets, *columns, strict=True)
            }
            curves = zip(shapes, *(arrays[name] for name in _CURVES), strict=True)
            distributions = tuple(_distribution(*parts) for parts in curves)
            return cls(
                str(document["name"]), folder, str(document["about"]), signature, int(document["k"]),
                float(document["epsilon"]), None if document["context"] is None else int(document["context"]), runs,
                epsilons, TrajectorySums(arrays["sweep"], swept), distributions, None,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(f"{folder} is no summary of a checkpoint ({type(error).__name__}: {error})") from None


def _distribution(
    document: Mapping[str, Any], edges: FloatArray, counts: Array, grid: FloatArray, height: FloatArray
) -> EntropyDistribution:
    near = {n: math.nan if x is None else float(x) for n, x in zip(_NEAR, document["near"], strict=True)}
    peaks = tuple(Peak(*map(float, peak)) for peak in document["peaks"])
    words = str(document["select"]), str(document["population"]), int(document["tokens"])
    return EntropyDistribution(*words, edges, counts, grid, height, peaks, near)


def token_sets(filters: Sequence[str]) -> dict[str, Selection]:
    """Every set of tokens that a report uses, by name."""
    sets = [selection(filters, [Kind.THOUGHT], [])]
    sets += [selection(filters, [Kind.ACTION], filters[:n]) for n in range(len(filters) + 1)]
    sets += [selection(filters, [Kind.THOUGHT, Kind.ACTION], []), selection(filters, [Kind.OBSERVATION], [])]
    return {tokens.name: tokens for tokens in sets}


def ablation_sets(filters: Sequence[str]) -> list[str]:
    """The rows of the paper's ablation: thoughts, then actions with no filter, one, two … all of them."""
    return ["thought", *("-".join(["action", *filters[:n]]) for n in range(len(filters) + 1))]


class SummaryRequest(NamedTuple):
    """What is kept of which score files.

    Attributes:
        folder: of score files.
        name: of the checkpoint.
        k: candidates.
        epsilon: threshold, nats.
        context: as `frame.load`.
        run: as `frame.load`.
        cases: with single tokens and the texts around them.
        metrics: those whose sums are kept (None: the core ones).
    """

    folder: Path
    name: str
    k: int
    epsilon: float
    context: int | None
    run: str | StoredRun = "latest"
    cases: bool = False
    metrics: Sequence[str] | None = None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of the metrics whose sums are kept."""
        return names_of() if self.metrics is None else tuple(self.metrics)


def summarize(request: SummaryRequest, threads: int | None = None) -> CheckpointSummary:
    """Read the score files of one checkpoint, with so many threads (None: as `frame.scan`)."""
    folder, name, k, epsilon, context, run, cases, _ = request
    names = request.metric_names
    filters = ScoreStore.open(folder).signature["filters"]
    wanted = {select: tokens.mask for select, tokens in token_sets(filters).items()}
    filtered = ablation_sets(filters)[-1]
    epsilons = tuple(value for value in SWEEP if value < math.log(k))
    ordered = [metric for metric in names if "trajectory" in METRICS[metric].needs]
    reading: dict[str, Any] = {"name": name, "context": context, "run": run}

    def work(frame: Frame) -> _Batch:
        covered = int(np.bitwise_and.reduce(np.array([entry.mask for entry in frame.entries], dtype=np.uint64)))
        masks = {select: mask for select, mask in wanted.items() if not int(mask) & ~covered}
        chosen: Any = grid_sums(frame, list(masks.values()), [k], [epsilon], names)[:, 0, 0] if masks else []
        if ordered:  # they need all tokens that count in their order, one set at a time
            for of_set, mask in zip(chosen, masks.values(), strict=True):
                own = token_sums(frame, frame.counted(mask), epsilon, k, ordered)
                for column in own.names:
                    of_set.column(column)[:] = own.column(column)
        distributed = [mask for select, mask in masks.items() if select in (filtered, OBSERVATION)]
        rest = frame.counting(np.bitwise_or.reduce(np.array([0, *distributed], dtype=np.uint64)))
        sweep = grid_sums(rest, [masks[filtered]], [k], epsilons, _SWEPT)[0, 0] if filtered in masks else None
        return _Batch(rest, dict(zip(masks, chosen, strict=True)), sweep)

    parts = scan(folder, work, (k,), threads, masks=list(wanted.values()), metrics=names, **reading)
    frame = joined([part.frame for part in parts])
    scored = [select for select in wanted if all(select in part.sums for part in parts)]
    keys = tuple(entry.key for entry in frame.entries)
    ids = tuple(",".join(s.id for s in entry.sources) or entry.key[:12] for entry in frame.entries)
    runs = {}
    for select in scored:
        sums = _stacked([part.sums[select] for part in parts])
        mask = wanted[select]
        counts = frame.multiplicity(mask), frame.n_truncated(mask)
        runs[select] = Run(name, frame.signature, keys, ids, *counts, sums, unresolved=unresolved(frame))
    sweep, table = TrajectorySums(np.empty((0, 0, 0)), ()), None
    if filtered in scored:
        sweep = _stacked([part.sweep for part in parts if part.sweep is not None])
        table = case_table(frame, token_sets(filters)[filtered], k, _CASES) if cases else None
    distributions = _distributions(frame, {s: wanted[s] for s in (filtered, OBSERVATION) if s in scored}, k)
    return CheckpointSummary(
        name, folder, frame.about, frame.signature, k, epsilon, context, runs, epsilons, sweep, tuple(distributions),
        table,
    )  # fmt: skip


class _Batch(NamedTuple):
    """A few trajectories."""

    frame: Frame  # the tokens that distributions and cases are of
    sums: Mapping[str, TrajectorySums]  # by set of tokens
    sweep: TrajectorySums | None


def _stacked(parts: Sequence[TrajectorySums]) -> TrajectorySums:
    """Sums (…, T, statistics) of batches of trajectories as those of all."""
    return TrajectorySums(np.concatenate([part.values for part in parts], axis=-2), parts[0].names)


def _distributions(frame: Frame, masks: Mapping[str, np.uint64], k: int) -> Iterator[EntropyDistribution]:
    for select, mask in masks.items():
        counted = frame.counted(mask)
        for name in POPULATIONS:
            entropy = frame.entropy[k][counted & population(frame.rank, name)]
            bins, curve = histogram(entropy, k, BINS), density(entropy, k)
            grid, height = curve.grid[::_GRID_STEP], curve.height[::_GRID_STEP]
            near = {n: mass_near(entropy, n) for n in _NEAR}
            yield EntropyDistribution(
                select, name, len(entropy), bins.edges, bins.counts, grid, height, curve.peaks, near
            )
