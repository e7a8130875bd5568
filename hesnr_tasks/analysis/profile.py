"""Trajectories ranked by how much they decide, and weights for choosing training data by it.

Profiling a body of training data costs one forward pass over it, 2 FLOP a parameter and token, a third of what one
epoch of training on it costs; it gives every trajectory its decision density |𝓗| / |M| (how often the model, as it is
now, hesitates between real continuations and the text takes one of them) and HE-SNR (how sure it is there). The
weights sum to the number of trajectories, so they can be used as sampling weights as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, Selection
from hesnr_tasks.analysis.measures import ALL_METRICS, column
from hesnr_tasks.analysis.output import Table
from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.metrics import evaluate

__all__ = ["WEIGHTS", "profile_rows", "profile_table", "write_weights"]

WEIGHTS = ("density", "he_snr", "he_tokens")
_COLUMNS = ("density", "he_snr", "he_ppl", "ppl", "he_tokens", "tokens")
FloatArray = npt.NDArray[np.float64]


def profile_rows(frame: Frame, chosen: Selection, sums: FloatArray) -> list[dict[str, Any]]:
    """One row a trajectory, the densest in decisions first; `sums`: (T, 10). A text that two have is two rows."""
    values = {name: _each(name, sums).tolist() for name in _COLUMNS}
    cut = frame.cut(chosen.mask).tolist()
    kept = frame.included(chosen.mask).tolist()
    rows = [
        {
            "trajectory": source.id if source else entry.key[:12],
            "instance": source.instance_id if source else None,
            "resolved": source.resolved if source else None,
            **{name: values[name][i] for name in _COLUMNS},
            "tokens_cut": cut[i],
            "key": entry.key,
        }
        for i, entry in enumerate(frame.entries)
        if kept[i]
        for source in (entry.sources or (None,))
    ]
    return sorted(rows, key=lambda row: (-_or(row["density"], -1.0), row["trajectory"]))


def profile_table(frame: Frame, chosen: Selection, k: int, epsilon: float, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table."""
    named = {"run": frame.name, "select": chosen.name, "k": k, "epsilon": epsilon}
    note = "density: share of tokens that are decisions; a forward pass over the data (a third of an epoch) gives it"
    title = "Trajectories, the densest in decisions first"
    return Table("by_trajectory", title, [{**named, **row} for row in rows], (note,), wide=("key", "instance"))


def write_weights(path: Path, rows: Sequence[Mapping[str, Any]], by: str) -> None:
    """One JSON line a trajectory: id, instance, weight, what it comes from; weight 0 where `by` is undefined."""
    raw = np.array([_or(row[by], 0.0) for row in rows])
    if not raw.sum() > 0:
        raise SettingsError(f"no weights can be made: {by} is 0 or undefined for every trajectory")
    weights = raw * len(raw) / math.fsum(raw)
    lines = [
        {
            "id": row["trajectory"],
            "instance_id": row["instance"],
            "weight": weight,
            **{name: None if math.isnan(row[name]) else row[name] for name in _COLUMNS},
        }
        for row, weight in zip(rows, weights.tolist(), strict=True)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_output(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise SettingsError(f"cannot write {path} ({error.strerror}); name another file with --weights") from None


def _each(name: str, sums: FloatArray) -> FloatArray:
    metric = ALL_METRICS[name]
    numerator = column(sums, metric.numerator)
    return evaluate(metric, numerator, column(sums, metric.denominator)) if metric.denominator else numerator


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value
