"""How unlike others a sentence is: the mean cosine distance to its nearest neighbours, by TF-IDF or an embedding.

Neighbours are sought among the same texts, or in a reference corpus, such as what the base model writes (which is the
sense of "rare" in arXiv 2506.14758).
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


def distances(
    texts: Sequence[str],
    reference: Sequence[str] | None = None,
    *,
    embed: Embed | None = None,
    references: int = REFERENCES,
    seed: int = 0,
) -> FloatArray:
    """Mean cosine distance of each text to its nearest neighbours.

    Args:
        texts: Words separated by spaces.
        reference: Among which neighbours are sought, and whose term frequencies weigh; None: among the other texts.
        embed: Texts to vectors, in the place of TF-IDF of words and pairs of neighbouring words.
        references: Of more than so many, so many are drawn by `seed`.
        seed: Of the draw.

    Returns:
        Shape (n,), mean over `NEIGHBOURS` neighbours, in [0, 1] for TF-IDF; NaN where there are too few.
    """
    from sklearn.neighbors import NearestNeighbors

    own = reference is None
    corpus = texts if reference is None else reference
    if not len(texts) or len(corpus) < NEIGHBOURS + own:
        return np.full(len(texts), np.nan)
    drawn = np.random.default_rng(seed).permutation(len(corpus))[:references]
    rows = np.sort(drawn) if len(corpus) > references else np.arange(len(corpus))
    of_corpus, of_texts = _vectors(corpus, None if own else texts, embed)
    search = NearestNeighbors(n_neighbors=NEIGHBOURS + own, metric="cosine", algorithm="brute").fit(of_corpus[rows])
    apart, found = search.kneighbors(of_texts)
    if own:  # a text is no neighbour of its own; where equal texts crowd it out, all of these are at distance 0
        itself = rows[found] == np.arange(len(texts))[:, None]
        itself[~itself.any(axis=1), -1] = True
        apart = apart[~itself].reshape(len(texts), NEIGHBOURS)
    return np.clip(apart.mean(axis=1, dtype=np.float64), 0.0, None)


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


def _vectors(corpus: Sequence[str], texts: Sequence[str] | None, embed: Embed | None) -> tuple[Any, Any]:
    """Vectors of the corpus and of the texts (None: the corpus itself)."""
    if embed is not None:
        of_corpus = _embedded(corpus, embed)
        return of_corpus, of_corpus if texts is None else _embedded(texts, embed)
    from sklearn.feature_extraction.text import TfidfVectorizer

    terms = TfidfVectorizer(analyzer=_terms, sublinear_tf=True)
    of_corpus = terms.fit_transform(corpus)
    return of_corpus, of_corpus if texts is None else terms.transform(texts)


def _embedded(texts: Sequence[str], embed: Embed) -> npt.NDArray[np.float64]:
    distinct = list(dict.fromkeys(texts))
    vectors = np.asarray(embed(distinct), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(distinct) or not np.isfinite(vectors).all():
        raise SettingsError(
            f"the function of --embed gave an array of shape {vectors.shape} (or one with NaN) for {len(distinct)} "
            "texts; it must give one finite row a text"
        )
    places = {text: i for i, text in enumerate(distinct)}
    return vectors[[places[text] for text in texts]]


def _terms(text: str) -> list[str]:
    words = text.split()
    return [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]
