"""How unlike all others a sentence is: the mean cosine distance to its nearest neighbours.

By default sentences are compared by TF-IDF weights of their words and pairs of neighbouring words. Any function that
maps texts to vectors can take its place (an embedding model, say).
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SettingsError

__all__ = ["NEIGHBOURS", "REFERENCES", "Embed", "distances", "embedder", "rare"]

FloatArray = npt.NDArray[np.float64]
Embed = Callable[[list[str]], Any]  # n texts -> array (n, d)
NEIGHBOURS = 5
REFERENCES = 10_000
_SHARE = 0.1
_FREQUENT = 0.01  # terms of so many sentences are multiplied as a dense matrix, the others one by one
_BLOCK = 256  # sentences at a time


def distances(
    texts: Sequence[str], *, embed: Embed | None = None, references: int = REFERENCES, seed: int = 0
) -> FloatArray:
    """Mean cosine distance of each text to the `NEIGHBOURS` nearest others, shape (n,), in [0, 1] for TF-IDF.

    Beyond `references` texts, neighbours are sought among so many of them, drawn by `seed`.
    """
    n = len(texts)
    if n <= NEIGHBOURS:
        return np.full(n, np.nan)
    drawn = np.random.default_rng(seed).permutation(n)[:references] if n > references else np.arange(n)
    rows = np.sort(drawn)
    similar = _dense(_embedded(texts, embed), rows) if embed else _Terms(texts).similar(rows)
    own = np.full(n, -1)
    own[rows] = np.arange(len(rows))
    found = np.empty(n)
    for at in range(0, n, _BLOCK):
        block = similar(at, min(n, at + _BLOCK))
        mine = own[at : at + len(block)]
        block[np.flatnonzero(mine >= 0), mine[mine >= 0]] = -np.inf
        found[at : at + len(block)] = 1 - np.partition(block, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:].mean(axis=1)
    return np.clip(found, 0.0, None)


def rare(found: FloatArray, share: float = _SHARE) -> npt.NDArray[np.bool_]:
    """The `share` of texts with the greatest distances; ties at the limit are not rare."""
    known = found[~np.isnan(found)]
    if not len(known):
        return np.zeros(len(found), dtype=bool)
    limit = np.sort(known)[::-1][int(share * len(known))]  # the first one beyond the share
    return np.nan_to_num(found, nan=-np.inf) > limit


def embedder(name: str) -> Embed:
    """The function `package.module:function`; `SettingsError` where there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"--embed {name!r} cannot be used ({error}); it names a function as package.module:function, which takes "
            "a list of texts and gives an array with a row for each"
        ) from None
    if not callable(found):
        raise SettingsError(f"--embed {name!r} is no function")
    return cast(Embed, found)


def _embedded(texts: Sequence[str], embed: Embed) -> npt.NDArray[np.float32]:
    distinct = list(dict.fromkeys(texts))
    vectors = np.asarray(embed(distinct), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(distinct) or not np.isfinite(vectors).all():
        raise SettingsError(
            f"the function of --embed gave an array of shape {vectors.shape} (or one with NaN) for {len(distinct)} "
            "texts; it must give one finite row a text"
        )
    places = {text: i for i, text in enumerate(distinct)}
    return vectors[[places[text] for text in texts]]


Similar = Callable[[int, int], npt.NDArray[np.float32]]  # rows from, to -> similarities to every reference


def _dense(vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> Similar:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return lambda start, end: unit[start:end] @ unit[rows].T


class _Terms:
    """Unit TF-IDF vectors: sublinear term counts, smoothed inverse document frequencies, as is usual."""

    def __init__(self, texts: Sequence[str]) -> None:
        names: dict[str, int] = {}
        ids = [[names.setdefault(term, len(names)) for term in _terms(text)] for text in texts]
        lengths = np.array([len(one) for one in ids])
        row = np.repeat(np.arange(len(texts)), lengths)
        term = np.array([i for one in ids for i in one], dtype=np.int64)
        cells, counts = np.unique(row * max(1, len(names)) + term, return_counts=True)
        self.row, self.term = np.divmod(cells, max(1, len(names)))
        self.documents = np.bincount(self.term, minlength=len(names))
        idf = np.log((1 + len(texts)) / (1 + self.documents)) + 1
        weight = (1 + np.log(counts)) * idf[self.term]
        norm = np.sqrt(np.bincount(self.row, weight**2, len(texts)))
        self.weight = (weight / norm[self.row]).astype(np.float32)
        self.starts = np.searchsorted(self.row, np.arange(len(texts) + 1))
        self.count = len(texts)

    def similar(self, rows: npt.NDArray[np.int64]) -> Similar:
        """Cosines with the texts `rows`."""
        frequent = np.flatnonzero(self.documents > _FREQUENT * self.count)
        column = np.full(len(self.documents), -1)
        column[frequent] = np.arange(len(frequent))
        dense = np.zeros((self.count, len(frequent)), dtype=np.float32)
        often = column[self.term] >= 0
        dense[self.row[often], column[self.term[often]]] = self.weight[often]
        lists = self._postings(rows, ~often)

        def block(start: int, end: int) -> npt.NDArray[np.float32]:
            found = dense[start:end] @ dense[rows].T if len(frequent) else np.zeros((end - start, len(rows)), "f4")
            for at in range(self.starts[start], self.starts[end]):
                if not often[at]:
                    places, weights = lists(self.term[at])
                    found[self.row[at] - start, places] += self.weight[at] * weights
            return found

        return block

    def _postings(
        self, rows: npt.NDArray[np.int64], seldom: npt.NDArray[np.bool_]
    ) -> Callable[[int], tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """For a term, the references that have it and with what weight."""
        place = np.full(self.count, -1)
        place[rows] = np.arange(len(rows))
        at = np.flatnonzero(seldom & (place[self.row] >= 0))
        at = at[np.argsort(self.term[at], kind="stable")]
        bounds = np.searchsorted(self.term[at], np.arange(len(self.documents) + 1))
        places, weights = place[self.row[at]], self.weight[at]
        return lambda term: (places[bounds[term] : bounds[term + 1]], weights[bounds[term] : bounds[term + 1]])


def _terms(text: str) -> list[str]:
    words = text.split()
    return [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]
