"""Distances to the nearest sentences against all pairs compared one by one."""

import numpy as np
import pytest

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.exploration.text import distances, embedder, rare
from tests.reference import exploration as reference

WORDS = tuple("let me the a look at read open test file code fix run see again now first it is in to".split())  # noqa: SIM905


def corpus(n, seed=0):
    """Sentences of everyday words with a few that nobody else uses."""
    rng = np.random.default_rng(seed)
    odds = 1 / np.arange(1, len(WORDS) + 1)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(3, 12)), p=odds / odds.sum())) for _ in range(n)]
    for i in range(0, n, 20):
        texts[i] = " ".join(f"odd{rng.integers(10**9)}" for _ in range(6))
    return texts


@pytest.mark.parametrize("n", [7, 60, 300])
def test_distances_are_those_of_all_pairs(n):
    texts = corpus(n)
    assert distances(texts) == pytest.approx(reference.neighbours(texts), abs=1e-5)


def test_sentences_nobody_else_writes_are_rare_and_repeated_ones_are_not():
    texts = corpus(400) + ["let me read the file"] * 8
    is_rare = rare(distances(texts))
    assert is_rare[0:400:20].all()
    assert not is_rare[400:].any()
    assert 20 <= is_rare.sum() <= 40


def test_a_sample_of_references_gives_nearly_the_same_ones():
    texts = corpus(1500)
    whole, some = rare(distances(texts)), rare(distances(texts, references=500))
    assert (whole & some)[::20].all()
    assert (whole & some).sum() > 0.7 * whole.sum()
    assert (distances(texts, references=500) == distances(texts, references=500)).all()


def test_too_few_sentences_have_no_neighbours():
    assert np.isnan(distances(["a b c"] * 5)).all()
    assert not rare(distances(["a b c"] * 5)).any()
    assert not rare(distances(["a b c"] * 50)).any()
    assert not rare(np.zeros(0)).any()


def test_a_function_can_take_the_place_of_words():
    """Vectors of two numbers: the distances are those of angles."""
    angles = np.linspace(0, 1, 30)
    vectors = {f"t{i}": (np.cos(a), np.sin(a)) for i, a in enumerate(angles)}
    apart = distances(list(vectors), embed=lambda texts: [vectors[text] for text in texts])
    cosines = np.sort(np.cos(angles[:, None] - angles) - 2 * np.eye(30), axis=1)[:, -5:]
    assert apart == pytest.approx(1 - cosines.mean(axis=1), abs=1e-6)
    with pytest.raises(SettingsError, match="one finite row a text"):
        distances(list(vectors), embed=lambda texts: np.full((len(texts), 2), np.nan))
    with pytest.raises(SettingsError, match=r"shape \(3,\)"):
        distances(list(vectors), embed=lambda texts: [1, 2, 3])


def test_functions_are_named_by_module():
    assert embedder("os.path:join") is __import__("os").path.join
    for name in ("nowhere_at_all:f", "os.path:nothing", "os.path", ":f", "math:pi"):
        with pytest.raises(SettingsError, match="--embed"):
            embedder(name)
