"""The tables of `hesnr analyze`, each for one run; runs are put together afterwards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.density import POPULATIONS, Valley, density, histogram, mass_near, population, valley
from hesnr_tasks.analysis.frame import Frame, Selection
from hesnr_tasks.analysis.groups import grouped
from hesnr_tasks.analysis.measures import Number, column, measure, share_scored
from hesnr_tasks.analysis.output import Table
from hesnr_tasks.analysis.sums import grid_sums, group_sums, token_sums
from hesnr_tasks.metrics import EPSILON
from hesnr_tasks.stats import RESAMPLES, SEED, effective_number

__all__ = ["SWEEP", "Question", "breakdown", "histograms", "results", "sweep"]

FloatArray = npt.NDArray[np.float64]
SWEEP = tuple(float(x) for x in np.linspace(math.log(2), math.log(5), 20))
_METRICS = ("he_snr", "he_ppl", "ppl", "top1_acc", "top2_acc", "top5_acc", "top10_acc", "entropy")
_COUNTS = ("he_tokens", "tokens", "density")
_WIDE = ("top2_acc", "top5_acc", "top10_acc", "entropy", "effective_tokens", "tokens_cut")
_NOTES = (
    "± is one standard error (cluster bootstrap over trajectories), from n_eff = 2 on; interval: 95 % of HE-SNR, N/A "
    "where n_eff is below 4 or a few trajectories outweigh all others",
    "n_eff: trajectories of equal length that would tell as much about 𝓗 (Kish); scored: share of the tokens that "
    "would count, (!) below a half",
)


class Question(NamedTuple):
    """What is asked of one run: every combination of token sets, k and thresholds (in nats)."""

    chosen: Sequence[Selection]
    ks: Sequence[int] = (10,)
    epsilons: Sequence[float] = (EPSILON,)
    resamples: int = RESAMPLES
    seed: int = SEED
    min_tokens: int = 0

    def measure(self, sums: FloatArray, copies: npt.NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Number]]:
        """`measures.measure` with the bootstrap that was asked for."""
        return measure(sums, copies, names, resamples=self.resamples, seed=self.seed, min_tokens=self.min_tokens)


def results(frame: Frame, asked: Question) -> Table:
    """Every metric in every setting: the numbers a run gives, to the last bit."""
    grid = grid_sums(frame, [one.mask for one in asked.chosen], asked.ks, asked.epsilons)
    rows: list[dict[str, Any]] = []
    for one, sums in zip(asked.chosen, grid.sums, strict=True):
        copies = frame.copies(one.mask)
        cells = sums.reshape(-1, *sums.shape[2:])
        about = {"trajectories": int(copies.sum()), **_scored(frame, one, cells[0])}
        lines = asked.measure(cells, copies, (*_METRICS, *_COUNTS))
        rows += [
            {**_named(frame, one, k, epsilon), **_with_interval(line), **about, **_effective(cell, copies)}
            for (k, epsilon), line, cell in zip(itertools.product(asked.ks, asked.epsilons), lines, cells, strict=True)
        ]
    return Table("results", "Metrics", rows, _NOTES, wide=_WIDE)


def _scored(frame: Frame, one: Selection, sums: FloatArray) -> dict[str, Any]:
    """The share of the tokens that would count that was scored; what overflow=skip leaves out counts as not scored."""
    multiplicity = np.array([max(1, len(entry.sources)) for entry in frame.entries])
    cut = frame.cut(one.mask) * multiplicity
    tokens = column(sums, "tokens") * multiplicity
    wanted, scored = tokens.sum() + cut.sum(), (tokens * frame.included(one.mask)).sum()
    return {"tokens_cut": int(wanted - scored), "scored": share_scored(scored, wanted - scored)}


def _effective(sums: FloatArray, copies: npt.NDArray[np.int64]) -> dict[str, float]:
    """Kish's effective number of trajectories, of 𝓗 and of all tokens that count."""
    repeated = np.repeat(sums, copies, axis=0)
    number = {name: float(effective_number(column(repeated, name))) for name in ("he_tokens", "tokens")}
    return {"effective": round(number["he_tokens"], 1), "effective_tokens": round(number["tokens"], 1)}


def breakdown(frame: Frame, asked: Question, by: str) -> Table:
    """The metrics of each group of tokens; errors resample the trajectories that have such tokens."""
    groups = grouped(frame, by)
    rows = []
    for one, k, epsilon in itertools.product(asked.chosen, asked.ks, asked.epsilons):
        tokens = np.where(frame.counted(one.mask), groups.of_token, -1)
        copies = frame.copies(one.mask)
        parts = group_sums(frame, tokens, len(groups.names), epsilon, k)
        for group, sums in zip(groups.names, parts, strict=True):
            here = copies * (sums[:, 0] > 0)
            if here.any():
                line = asked.measure(sums[None], here, (*_METRICS, *_COUNTS))[0]
                named = {**_named(frame, one, k, epsilon), by: group}
                rows.append(
                    {**named, **_with_interval(line), "trajectories": int(here.sum()), **_effective(sums, here)}
                )
    note = "trajectories: those with such tokens; they are what is resampled"
    return Table(f"by_{by}", f"By {by}", rows, (note,), wide=_WIDE)


def sweep(frame: Frame, asked: Question) -> Table:
    """HE-SNR, HE-PPL and |𝓗| at 20 thresholds from ln 2 to ln 5, as far as k allows."""
    rows: list[dict[str, Any]] = []
    for k in asked.ks:
        values = [value for value in SWEEP if value < math.log(k)]
        grid = grid_sums(frame, [one.mask for one in asked.chosen], [k], values)
        for one, sums in zip(asked.chosen, grid.sums[:, 0], strict=True):
            lines = asked.measure(sums, frame.copies(one.mask), ("he_snr", "he_ppl", *_COUNTS))
            rows += [
                {**_named(frame, one, k, value), "ways": math.exp(value), **_with_interval(line)}
                for value, line in zip(values, lines, strict=True)
            ]
    bound = ", ".join(f"ln {k} = {math.log(k):.4f} for k = {k}" for k in asked.ks)
    notes = (
        f"no entropy exceeds {bound}; the usual ε is {EPSILON:.4f}",
        "ways: e^ε, the number of equally likely continuations with that entropy",
    )
    return Table("sweep", "Threshold sweep, ln 2 to ln 5", rows, notes)


def histograms(frame: Frame, asked: Question, bins: int = 100) -> Iterator[Table]:
    """Peaks of the entropies' density, the histogram, and the threshold that the data suggest, beside the fixed one."""
    peaks: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    thresholds: list[dict[str, Any]] = []
    for one, k in itertools.product(asked.chosen, asked.ks):
        counted = frame.counted(one.mask)
        found = {"fixed": Valley(EPSILON)}
        for name in POPULATIONS:
            entropy = frame.entropy[k][counted & population(frame.rank, name)]
            where = {"run": frame.name, "select": one.name, "k": k, "population": name}
            shape = density(entropy, k)
            found[f"data ({name})"] = valley(shape)
            near = {f"ln{ways}": mass_near(entropy, ways) for ways in range(1, 6) if ways <= k}
            at = [round(peak.entropy, 4) for peak in sorted(shape.peaks)]
            told = {"tokens": len(entropy), "mode": shape.mode, "peaks": at, **near, "bandwidth": shape.bandwidth}
            peaks.append({**where, **told})
            counts += _bins(where, entropy, k, bins)
        thresholds += _thresholds(frame, asked, one, k, found)
    note = "mode and peaks of the kernel density, in nats; ln1 … ln5: share of tokens within 0.1 nats"
    yield Table("peaks", "Entropy peaks", peaks, (note,), wide=("bandwidth",))
    yield Table("histogram", "Entropy histograms", counts)
    note = "ε of the data: the valley between the density peaks nearest ln 3 and ln 4; beside the fixed one, not for it"
    yield Table("epsilon", "Thresholds", thresholds, (note,))


def _bins(where: dict[str, Any], entropy: FloatArray, k: int, bins: int) -> Iterator[dict[str, Any]]:
    counted = histogram(entropy, k, bins)
    for (low, high), count in zip(itertools.pairwise(counted.edges.tolist()), counted.counts.tolist(), strict=True):
        yield {**where, "low": low, "high": high, "tokens": count}


def _thresholds(
    frame: Frame, asked: Question, one: Selection, k: int, found: dict[str, Valley]
) -> Iterable[dict[str, Any]]:
    """The metrics at each threshold; where there is none, why."""
    names = ("he_snr", "he_ppl", "he_tokens", "density")
    for source, (epsilon, reason) in found.items():
        row = {"run": frame.name, "select": one.name, "k": k, "source": source, "epsilon": epsilon}
        if epsilon < math.log(k):
            sums = token_sums(frame, frame.counted(one.mask), epsilon, k)
            line = asked.measure(sums[None], frame.copies(one.mask), names)[0]
            yield {**row, **line, "he_tokens": round(line["he_tokens"].value), "note": reason}
        else:
            why = reason or f"no entropy of {k} candidates exceeds ln {k}"
            yield {**row, **{name: Number(math.nan) for name in names}, "he_tokens": None, "note": why}


def _named(frame: Frame, one: Selection, k: int, epsilon: float) -> dict[str, Any]:
    return {"run": frame.name, "select": one.name, "k": k, "epsilon": epsilon}


def _with_interval(line: dict[str, Number]) -> dict[str, Any]:
    """Metrics, with HE-SNR's interval as text beside it for people; counts as plain numbers."""
    snr = line["he_snr"]
    ends = "N/A" if math.isnan(snr.low) else f"[{snr.low:.4f}, {snr.high:.4f}]"
    counts: dict[str, Any] = {name: round(line[name].value) for name in ("he_tokens", "tokens") if name in line}
    return {"he_snr": snr, "interval": ends, **{n: x for n, x in line.items() if n != "he_snr"}, **counts}
