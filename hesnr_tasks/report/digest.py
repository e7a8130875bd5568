"""All that a report needs of one checkpoint's score files; the tokens themselves are not kept."""

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
from hesnr_tasks.analysis.density import POPULATIONS, Peak, density, histogram, mass_near, population
from hesnr_tasks.analysis.frame import Frame, Selection, load, selection
from hesnr_tasks.analysis.measures import Share, column, share_scored
from hesnr_tasks.analysis.output import Table
from hesnr_tasks.analysis.sums import grid_sums
from hesnr_tasks.analysis.tables import SWEEP
from hesnr_tasks.scores import ScoreStore, StoredRun
from hesnr_tasks.trajectory import Kind

__all__ = ["BINS", "OBSERVATION", "UNFILTERED", "Digest", "Shape", "digest", "rows_of", "token_sets"]

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
    sums: Mapping[str, FloatArray]  # each (T, 10), metrics.SUMS
    copies: Mapping[str, npt.NDArray[np.int64]]  # each (T,)
    cut: Mapping[str, npt.NDArray[np.int64]]  # each (T,)
    epsilons: tuple[float, ...]
    sweep: FloatArray  # (thresholds, T, 10) on filtered actions
    shapes: tuple[Shape, ...]
    cases: Table | None

    @property
    def filtered(self) -> str:
        """The set of actions with every filter."""
        return rows_of(self.signature["filters"])[-1]

    def scored(self, select: str) -> Share:
        """The share of the tokens that would count that was scored."""
        copies = self.copies[select]
        return share_scored(float(column(self.sums[select], "tokens") @ copies), float(self.cut[select] @ copies))

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
    sums: Any = grid_sums(frame, masks, [k], [epsilon]).sums[:, 0, 0] if masks else []
    filtered = rows_of(filters)[-1]
    epsilons = tuple(value for value in SWEEP if value < math.log(k))
    swept = grid_sums(frame, [sets[filtered].mask], [k], epsilons).sums[0, 0] if filtered in sets else np.empty(0)
    return Digest(
        name=name,
        folder=folder,
        about=frame.about,
        signature=frame.signature,
        keys=tuple(entry.key for entry in frame.entries),
        ids=tuple(",".join(s.id for s in entry.sources) or entry.key[:12] for entry in frame.entries),
        sets=sets,
        sums=dict(zip(sets, sums, strict=True)),
        copies={key: frame.copies(one.mask) for key, one in sets.items()},
        cut={key: frame.cut(one.mask) for key, one in sets.items()},
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
