"""Rankers learned from a ladder: proxies of each checkpoint as features, a downstream score as target, cross-validated.

After arXiv 2605.18607, where a sparse combination of three proxies and RankSVMs predicted better than any proxy alone:
there from tens of models and 80 proxies, here often from ten checkpoints, of which little can be learned. So every
ranker is fitted without what it predicts, everything that is chosen (the best proxy, a penalty) is chosen there too,
and its error stands beside that of the mean.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.tables import Table

FEWEST = 5  # checkpoints to learn from at all
FEWEST_BELIEVED = 8  # below, nothing learned can be believed
_FEWEST_OF_FAMILY = 3  # to leave a family out
_MOST_PAIRS = 100  # that are left out together; of longer ladders, as many at equal distances
_PENALTIES = np.logspace(-2, 3, 11)

FloatArray = npt.NDArray[np.float64]
Predict = Callable[[FloatArray], FloatArray]


class LearnedRanker(NamedTuple):
    """How well one ranker predicts the downstream score of checkpoints that it was not fitted on."""

    ranker: str
    left_out: str  # "checkpoint" (its family's level is known), or "family" (it is not)
    checkpoints: int  # that were left out, each once
    error: float  # root mean squared, in units of the score
    error_of_mean: float  # of guessing the mean of what was not left out (of the family, where it is known)
    nearer: int  # checkpoints whose prediction is nearer than that mean
    ordered: float  # share of pairs, both left out, that are ordered as the score does; 0.5 is chance
    believable: bool  # false below `FEWEST_BELIEVED` checkpoints
    uses: tuple[str, ...]  # proxies that the ranker uses when fitted to all: one, three, or all of them


def learned_rankers(x: FloatArray, names: Sequence[str], y: FloatArray, families: Sequence[str]) -> list[LearnedRanker]:
    """Every ranker, cross-validated; the least error first, leaving out checkpoints before leaving out families.

    Args:
        x: proxies of C checkpoints, shape (C, P), in any orientation; proxies that are not finite are left out.
        names: of the P proxies.
        y: downstream scores, shape (C,).
        families: of the C checkpoints; those of a family of one are left out.

    Returns:
        Empty for fewer than `FEWEST` checkpoints, without two different scores, or without a proxy.
    """
    family = np.array(families)
    alone = np.array([int((family == label).sum()) < 2 for label in families], dtype=bool)
    usable = np.isfinite(x).all(axis=0) & (np.ptp(x, axis=0) > 0) if len(x) else np.zeros(x.shape[1], dtype=bool)
    x, y, family = x[~alone][:, usable], y[~alone], family[~alone]
    kept = [name for name, use in zip(names, usable, strict=True) if use]
    if len(y) < FEWEST or not kept or np.ptp(y) == 0:
        return []
    rows = [_without_checkpoints(ranker, x, y, family, kept) for ranker in RANKERS]
    rows.sort(key=lambda row: row.error)
    sizes = {label: int((family == label).sum()) for label in dict.fromkeys(family.tolist())}
    if len(sizes) > 1 and min(sizes.values()) >= _FEWEST_OF_FAMILY:
        rows += sorted((_without_families(ranker, x, y, family, kept) for ranker in RANKERS), key=lambda row: row.error)
    return rows


def _without_checkpoints(ranker: str, x: FloatArray, y: FloatArray, family: Any, names: Sequence[str]) -> LearnedRanker:
    """Pairs of a family are left out together.

    A fit knows the score of a checkpoint that it has seen, and even the mean, beside such a score, orders three pairs
    of four.
    """
    predicted, plain = np.zeros(len(y)), np.zeros(len(y))
    for i in range(len(y)):
        plain[i] = y[(family == family[i]) & (np.arange(len(y)) != i)].mean()
        predicted[i] = plain[i] + _blind(ranker, x, y, family, [i])[0]
    pairs = np.stack(np.triu_indices(len(y), 1), axis=1)
    pairs = pairs[(family[pairs[:, 0]] == family[pairs[:, 1]]) & (y[pairs[:, 0]] != y[pairs[:, 1]])]
    chosen = np.unique(np.linspace(0, max(len(pairs) - 1, 0), min(len(pairs), _MOST_PAIRS)).astype(int))
    right = 0.0
    for first, second in pairs[chosen]:
        ahead = _blind(ranker, x, y, family, [first, second])
        right += _ordered(ahead[:1] - ahead[1:], np.array([y[first] - y[second]]))[0]
    rest = np.ones(len(y), dtype=bool)
    used = _used(ranker, _centered(x, family, rest), _centered(y, family, rest), names)
    return _row(ranker, "checkpoint", y, predicted, plain, right, len(chosen), used)


def _blind(ranker: str, x: FloatArray, y: FloatArray, family: Any, out: Sequence[int]) -> FloatArray:
    """Predictions for the checkpoints `out`, above the level of their family, fitted without them."""
    rest = ~np.isin(np.arange(len(y)), out)
    centred = _centered(x, family, rest)
    return _fit(ranker, centred[rest], _centered(y, family, rest)[rest])(centred[out])


def _centered(side: FloatArray, family: Any, rest: npt.NDArray[np.bool_]) -> FloatArray:
    """Less the mean of each family's members in `rest`; of a family without any, less that of all its members."""
    centred = side.copy()
    for label in set(family):
        own = family == label
        centred[own] -= side[own & rest if (own & rest).any() else own].mean(axis=0)
    return centred


def _without_families(ranker: str, x: FloatArray, y: FloatArray, family: Any, names: Sequence[str]) -> LearnedRanker:
    predicted, plain, right, pairs = np.zeros(len(y)), np.zeros(len(y)), 0.0, 0
    for label in dict.fromkeys(family.tolist()):
        out = family == label
        predicted[out] = _fit(ranker, x[~out], y[~out])(x[out])
        plain[out] = y[~out].mean()
        i, j = np.triu_indices(int(out.sum()), 1)
        part = _ordered(predicted[out][i] - predicted[out][j], y[out][i] - y[out][j])
        right, pairs = right + part[0], pairs + part[1]
    return _row(ranker, "family", y, predicted, plain, right, pairs, _used(ranker, x, y, names))


def _row(
    ranker: str, left_out: str, y: FloatArray, predicted: FloatArray, plain: FloatArray, right: float, pairs: int,
    uses: tuple[str, ...],
) -> LearnedRanker:  # fmt: skip
    error, of_mean = (float(np.sqrt(np.mean((side - y) ** 2))) for side in (predicted, plain))
    nearer = int((np.abs(predicted - y) < np.abs(plain - y)).sum())
    ordered = right / pairs if pairs else math.nan
    return LearnedRanker(ranker, left_out, len(y), error, of_mean, nearer, ordered, len(y) >= FEWEST_BELIEVED, uses)


def _ordered(predicted: FloatArray, true: FloatArray) -> tuple[float, int]:
    """Of pairs with different scores: how many differences have the right sign (a tie counts half), and all."""
    differ = true != 0
    agreement = 0.5 + 0.5 * np.sign(predicted[differ]) * np.sign(true[differ])
    return float(agreement.sum()), int(differ.sum())


def learned_table(learned: Mapping[str, Sequence[LearnedRanker]]) -> Table:
    """The rankers of every downstream task, with what makes them doubtful."""
    rows = []
    for task, rankers in learned.items():
        for row in rankers:
            about = {"task": task, "ranker": row.ranker, "left out": row.left_out, "checkpoints": row.checkpoints}
            about |= {"error": row.error, "of the mean": row.error_of_mean}
            about |= {"nearer": f"{row.nearer} of {row.checkpoints}", "ordered": row.ordered}
            rows.append(about | {"uses": ", ".join(row.uses) if len(row.uses) <= 3 else f"{len(row.uses)} proxies"})
    few = [task for task, rankers in learned.items() if not all(row.believable for row in rankers)]
    notes = [
        "error: root mean squared, of checkpoints (or families) that the ranker was not fitted on; of the mean: of "
        "guessing the mean in its place; nearer: checkpoints predicted nearer than so; ordered: pairs (chance: 0.5)",
        "the best of several rankers is picked after looking, so its error is optimistic",
    ]
    if few:
        less = f"fewer than {FEWEST_BELIEVED} checkpoints: nothing learned from so few can be believed"
        notes.insert(0, f"{', '.join(few)}: {less}")
    return Table("learned", "Learned rankers, cross-validated", rows, notes)


# --- the rankers ------------------------------------------------------------------------------------------------------


def _fit(ranker: str, x: FloatArray, y: FloatArray) -> Predict:
    """A prediction of scores from proxies, fitted to checkpoints; proxies are standardised by these."""
    center, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-12 * np.maximum(np.abs(center), 1e-300), scale, np.inf)  # constant here: of no use
    inner = RANKERS[ranker]((x - center) / scale, y)
    return lambda new: inner((new - center) / scale)


def _used(ranker: str, x: FloatArray, y: FloatArray, names: Sequence[str]) -> tuple[str, ...]:
    z = (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), np.inf)
    if ranker == "best single proxy":
        return (names[int(_best_single(z, y))],)
    if ranker == "sparse combination of three":
        return tuple(names[int(i)] for i in np.flatnonzero(_sparse(z, y).coef_))
    return tuple(names)


def _best_single(z: FloatArray, y: FloatArray) -> int:
    """The proxy whose straight line has the least leave-one-out error."""
    dy, n = y - y.mean(), len(y)
    square = (z**2).sum(axis=0)
    slope = np.divide(dy @ z, square, out=np.zeros(z.shape[1]), where=square > 0)
    leverage = 1 / n + np.divide(z**2, square, out=np.zeros_like(z), where=square > 0)
    residual = (dy[:, None] - z * slope) / np.maximum(1 - leverage, 1e-9)
    return int((residual**2).sum(axis=0).argmin())


def _single(z: FloatArray, y: FloatArray) -> Predict:
    best = _best_single(z, y)
    return _line(z[:, best], y, lambda new: new[:, best])


def _line(score: FloatArray, y: FloatArray, of: Predict) -> Predict:
    """A straight line from a ranker's score to the downstream score."""
    center, square = score.mean(), float(((score - score.mean()) ** 2).sum())
    slope = float((score - center) @ (y - y.mean())) / square if square > 1e-18 else 0.0
    return lambda new: np.asarray(y.mean() + slope * (of(new) - center))


def _ridge(z: FloatArray, y: FloatArray) -> Predict:
    from sklearn.linear_model import RidgeCV  # here: every sub-command imports this module, and it is slow to load

    return RidgeCV(alphas=_PENALTIES).fit(z, y).predict


def _sparse(z: FloatArray, y: FloatArray) -> Any:
    from sklearn.linear_model import OrthogonalMatchingPursuit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of proxies that say the same: it ends with fewer than three
        return OrthogonalMatchingPursuit(n_nonzero_coefs=min(3, z.shape[1], len(y) - 2)).fit(z, y)


def _pairs(z: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Signed incidence of the pairs with different scores, both ways round, (2 pairs, C), and which way is up."""
    i, j = np.triu_indices(len(y), 1)
    i, j = i[y[i] != y[j]], j[y[i] != y[j]]
    incidence = np.zeros((len(i), len(y)))
    incidence[np.arange(len(i)), i], incidence[np.arange(len(i)), j] = 1.0, -1.0
    up = np.sign(y[i] - y[j])
    return np.concatenate([incidence, -incidence]), np.concatenate([up, -up])


def _pairwise(machine: str) -> Callable[[FloatArray, FloatArray], Predict]:
    """A linear classifier of differences of two checkpoints: its direction is the ranker's score."""

    def fit(z: FloatArray, y: FloatArray) -> Predict:
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC

        incidence, up = _pairs(z, y)
        classifier = (
            LogisticRegression(fit_intercept=False, max_iter=1000)
            if machine == "logistic"
            else LinearSVC(fit_intercept=False, dual=True, max_iter=20_000, random_state=0, tol=1e-3)
        )
        direction = classifier.fit(incidence @ z, up).coef_[0] if len(up) else np.zeros(z.shape[1])
        return _line(z @ direction, y, lambda new: np.asarray(new @ direction))

    return fit


def _rbf_ranksvm(z: FloatArray, y: FloatArray) -> Predict:
    """RankSVM with a Gaussian kernel of checkpoints: the kernel of two pairs is that of their differences in it."""
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.svm import SVC

    incidence, up = _pairs(z, y)
    gamma = 1 / z.shape[1]
    if not len(up):
        return lambda new: np.full(len(new), y.mean())
    machine = SVC(kernel="precomputed", C=1.0).fit(incidence @ rbf_kernel(z, gamma=gamma) @ incidence.T, up)
    weights = machine.dual_coef_[0] @ incidence[machine.support_]  # of each checkpoint

    def score(new: FloatArray) -> FloatArray:
        return np.asarray(rbf_kernel(new, z, gamma=gamma) @ weights)

    return _line(score(z), y, score)


RANKERS: dict[str, Callable[[FloatArray, FloatArray], Predict]] = {
    "best single proxy": _single,
    "sparse combination of three": lambda z, y: _sparse(z, y).predict,
    "ridge": _ridge,
    "pairwise logistic": _pairwise("logistic"),
    "linear RankSVM": _pairwise("svm"),
    "RBF RankSVM": _rbf_ranksvm,
}
