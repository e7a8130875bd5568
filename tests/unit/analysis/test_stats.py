"""The bootstrap: against closed forms and by simulation."""

import math

import numpy as np
import pytest

from hesnr_tasks.stats import bootstrap_sums, resample_counts, standard_error


def test_every_resample_has_as_many_trajectories_as_the_data():
    assert (resample_counts(7, 2500, 3).sum(axis=1) == 7).all()


def test_resamples_are_seeded():
    assert (resample_counts(5, 50, 1) == resample_counts(5, 50, 1)).all()
    assert (resample_counts(5, 50, 1) != resample_counts(5, 50, 2)).any()


def test_the_error_of_a_mean_is_the_textbook_one():
    """For a plain mean of n values the bootstrap's error tends to sd / sqrt(n)."""
    values = np.random.default_rng(0).normal(size=(400, 1))
    drawn = bootstrap_sums(values, 10_000, 1)[:, 0] / 400
    assert standard_error(drawn) == pytest.approx(values.std() / math.sqrt(400), rel=0.03)


def test_errors_cover_clustered_tokens_where_the_naive_one_does_not():
    """Tokens share their trajectory's level: the cluster bootstrap sees it, sd / sqrt(tokens) does not."""
    rng = np.random.default_rng(4)
    covered = naive = 0
    for trial in range(200):
        level = rng.normal(0, 1, 60)
        tokens = level[:, None] + rng.normal(0, 1, (60, 50))
        sums = np.column_stack([tokens.sum(axis=1), np.full(60, 50.0)])
        mean = tokens.mean()
        drawn = bootstrap_sums(sums, 400, trial)
        covered += abs(mean) < 1.96 * standard_error(drawn[:, 0] / drawn[:, 1])
        naive += abs(mean) < 1.96 * tokens.std() / math.sqrt(tokens.size)
    assert 0.90 <= covered / 200 <= 0.99
    assert naive / 200 < 0.5


def test_mostly_undefined_resamples_give_no_error():
    values = np.full(100, np.nan)
    values[:50] = 1.0
    assert math.isnan(standard_error(values))
