"""The unbiased estimator of Pass@K from n answers to a problem, c of them right (Chen et al. 2021, arXiv 2107.03374).

1 - C(n - c, k) / C(n, k), as a sum of positive terms: the j-th answer drawn without replacement is the first right one
with probability c / (n - j) · Π_{i<j} (1 - c / (n - i)). No cancellation, so small values keep their digits, and
Pass@1 is c / n to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SettingsError

__all__ = ["pass_at_k", "pass_at_ks", "powers"]

FloatArray = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Pass@k of one problem; `SettingsError` unless 0 <= c <= n and 1 <= k <= n."""
    return float(pass_at_ks(np.array([n]), np.array([c]), [k])[0, 0])


def pass_at_ks(n: npt.ArrayLike, c: npt.ArrayLike, ks: Sequence[int]) -> FloatArray:
    """Pass@k of P problems, with n and c of shape (P,), for every k of `ks`; shape (P, len(ks)).

    `SettingsError` where c is not within 0 … n, or k not within 1 … n.
    """
    answers, right = np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64)
    _check(answers, right, ks)
    j = np.arange(max(ks, default=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.clip(right[:, None] / (answers[:, None] - j), 0, 1)  # beyond n - c the next answer must be right
    missed = np.cumprod(1 - chance, axis=1)
    first = chance * np.hstack([np.ones((len(answers), 1)), missed[:, :-1]])
    wanted = np.asarray(ks, dtype=np.int64)
    certain = (answers - right)[:, None] < wanted  # too few wrong answers for k of them: 1, without rounding
    return np.where(certain, 1.0, np.minimum(np.cumsum(first, axis=1), 1)[:, wanted - 1])


def powers(n: int) -> list[int]:
    """1, 2, 4, … up to n, and n itself."""
    return sorted({1 << i for i in range(n.bit_length())} | {n}) if n else []


def _check(n: Counts, c: Counts, ks: Sequence[int]) -> None:
    if n.shape != c.shape or n.ndim != 1:
        raise SettingsError(f"n and c must be lists of equal length, one number a problem, not {n.shape} and {c.shape}")
    if ((c < 0) | (c > n)).any():
        i = int(np.flatnonzero((c < 0) | (c > n))[0])
        raise SettingsError(f"{c[i]} right answers of {n[i]} cannot be (problem {i})")
    for k in ks:
        if k < 1:
            raise SettingsError(f"k must be at least 1, not {k}")
        if len(n) and k > n.min():
            raise SettingsError(
                f"pass@{k} needs at least {k} answers a problem, and problem {int(n.argmin())} has {n.min()}"
            )
