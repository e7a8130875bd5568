"""The report's tables: agreement with the downstream score, the ablation ladder, neighbouring checkpoints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.metrics import METRICS, TrajectorySums, evaluate
from hesnr_tasks.report.data import UNFILTERED, Study
from hesnr_tasks.stats import FEWEST_CHECKPOINTS, Agreement, Estimate, agreement, bootstrap_sums, paired

__all__ = [
    "AGREED",
    "PAPER",
    "ablation",
    "agreements",
    "entropy_peaks",
    "neighbours",
    "orient_higher_is_better",
    "sweep_agreements",
]

FloatArray = npt.NDArray[np.float64]
AGREED = ("ppl", "he_ppl", "he_snr")
# Pearson r and Kendall tau of HE-SNR with post-SFT SWE-bench Verified (arXiv 2601.20255, "token type x filter")
PAPER = {
    "thought": (0.558, 0.519),
    "action": (0.967, 0.944),
    "action-xml": (0.953, 0.956),
    "action-xml-format": (0.952, 0.968),
    "action-xml-format-comments": (0.965, 0.979),
}
_SIGN = "signs of PPL and HE-PPL are turned (lower is better), so +1 always means: orders as the downstream score does"
_BOTH = "95 % intervals: over checkpoints, and over trajectories; neither knows the downstream scores' own error"


def orient_higher_is_better(metric: str, values: FloatArray) -> FloatArray:
    """`values` of a metric with the sign turned where lower is better."""
    return values if METRICS[metric].higher_is_better else -values


def agreements(study: Study) -> Table:
    """PPL, HE-PPL and HE-SNR against the downstream score, on every set of tokens that has numbers."""
    order = list(dict.fromkeys([UNFILTERED, study.filtered, *study.ablation]))
    rows = [
        {"select": select, "metric": metric, **line}
        for select in order
        for metric in AGREED
        for line in [_agreement(study, select, metric)]
        if line
    ]
    few = f"fewer than {FEWEST_CHECKPOINTS} checkpoints with a downstream score: no intervals"
    notes = [_SIGN, _BOTH, *([few] if rows and rows[0]["checkpoints"] < FEWEST_CHECKPOINTS else [])]
    return Table("correlations", "Agreement with the downstream score", rows, notes)


def ablation(study: Study) -> Table:
    """The paper's table "token type × filter": HE-SNR of each checkpoint, and its agreement where there is one."""
    rows = []
    for select in study.ablation:
        kind, *filters = select.split("-")
        line: dict[str, Any] = {"tokens": kind, "filter": " + ".join(filters) or "none"}
        known = study.values.get(select, {})
        line |= {one.name: known[one.name]["he_snr"] for one in study.ladder if one.name in known}
        line |= _agreement(study, select, "he_snr") or {}
        r, tau = PAPER.get(select, (None, None))
        rows.append({**line, "paper_pearson": r, "paper_kendall": tau} if known else {})
    return Table("ablation", "HE-SNR by token type and filter", [row for row in rows if row], (_BOTH,))


def _agreement(study: Study, select: str, metric: str) -> dict[str, Any]:
    """Flat: value and both intervals of every statistic; empty where fewer than two checkpoints have both numbers."""
    values = study.values.get(select, {})
    names = [one.name for one in study.named(study.downstream) if one.name in values]
    if len(names) < 2:
        return {}
    x = orient_higher_is_better(metric, np.array([values[name][metric].value for name in names]))
    y = np.array([study.downstream[name].value for name in names])
    found = agreement(x, y, _drawn(study, select, metric, names), resamples=study.resamples, seed=study.seed)
    return {"checkpoints": len(names), **flat(found)}


def flat(found: Mapping[str, Agreement]) -> dict[str, float]:
    """One column a number."""
    line: dict[str, float] = {}
    for name, (value, *intervals) in found.items():
        line[name] = value
        for over, ends in zip(("checkpoints", "trajectories"), intervals, strict=True):
            line |= {f"{name}_{over}_low": ends[0], f"{name}_{over}_high": ends[1]}
    return line


def _drawn(study: Study, select: str, metric: str, names: Sequence[str]) -> FloatArray | None:
    """The worth of each checkpoint in each resample of the trajectories, (resamples, c); None: not all have scores."""
    runs = {run.name: run for run in study.aligned(select)}
    if any(name not in runs for name in names):
        return None
    return _resampled(study, [runs[name].sums.repeat(runs[name].multiplicity) for name in names], metric)


def _resampled(study: Study, sums: Sequence[TrajectorySums], metric: str) -> FloatArray | None:
    found = METRICS[metric]
    if len(sums[0]) < FEWEST_CHECKPOINTS:
        return None
    parts = [part for one in sums for part in one.parts(metric)]
    drawn = bootstrap_sums(np.column_stack(parts), study.resamples, study.seed)
    return orient_higher_is_better(metric, evaluate(found, drawn[:, 0::2], drawn[:, 1::2]))


def sweep_agreements(study: Study) -> Table:
    """HE-SNR's agreement with the downstream score, on filtered actions, as ε goes from ln 2 to ln 5."""
    rows = []
    runs = {run.name: run for run in study.aligned(study.filtered)}
    chosen = [one for one in study.digests if one.name in study.downstream and one.name in runs]
    if len(chosen) >= 2:
        y = np.array([study.downstream[one.name].value for one in chosen])
        for at, epsilon in enumerate(chosen[0].epsilons):
            sums = [one.sweep[at].repeat(runs[one.name].multiplicity) for one in chosen]
            totals = np.array([[math.fsum(part) for part in s.parts("he_snr")] for s in sums])
            x = evaluate(METRICS["he_snr"], totals[:, 0], totals[:, 1])
            drawn = _resampled(study, sums, "he_snr")
            found = agreement(x, y, drawn, resamples=study.resamples, seed=study.seed)
            rows.append({"epsilon": epsilon, "ways": math.exp(epsilon), "checkpoints": len(chosen), **flat(found)})
    return Table("sweep_correlations", "Agreement of HE-SNR with the downstream score over ε", rows, (_BOTH,))


def neighbours(study: Study) -> Table:
    """Is the step from one checkpoint to the next larger than its noise? Differences are paired by trajectory."""
    rows: list[dict[str, Any]] = []
    for select in (UNFILTERED, study.filtered):
        runs = study.aligned(select)
        for metric in AGREED:
            rows += _steps(study, runs, select, metric)
    note = "steps: difference / standard error of the paired difference, + for the better; within ± 2 it may be noise"
    return Table("neighbours", "Differences of neighbouring checkpoints over their noise", rows, (note,))


def _steps(study: Study, runs: Sequence[Any], select: str, metric: str) -> Iterator[dict[str, Any]]:
    found = METRICS[metric]
    for a, b in itertools.pairwise(runs):
        pair = [one.sums.repeat(one.multiplicity).parts(metric) for one in (a, b)]
        d = paired(pair[0], pair[1], found.exponentiate, resamples=study.resamples, seed=study.seed)
        sign = 1 if found.higher_is_better else -1
        yield {
            "select": select,
            "metric": metric,
            "from": a.name,
            "to": b.name,
            "difference": Estimate(d.value, d.stderr, d.ci_low, d.ci_high),
            "p": d.p,
            "steps": sign * d.value / d.stderr if d.stderr > 0 else math.nan,
        }


def entropy_peaks(study: Study) -> Table:
    """Where entropies gather: the mode, the peaks, and the share of tokens near ln 1 … ln 5."""
    rows = [
        {
            "checkpoint": one.name,
            "select": shape.select,
            "population": shape.population,
            "tokens": shape.tokens,
            "mode": shape.peaks[0].entropy if shape.peaks else math.nan,
            "peaks": " ".join(f"{peak.entropy:.3f}" for peak in sorted(shape.peaks)),
            **{f"ln{ways}": share for ways, share in shape.near.items()},
        }
        for one in study.digests
        for shape in one.shapes
    ]
    note = "mode and peaks of the kernel density of H_top10, in nats; ln1 … ln5: share of tokens within 0.1 nats"
    return Table("entropy_peaks", "Peaks of the entropies", rows, (note,))
