"""The bootstrap, errors and intervals: against closed forms and slow loops, and by simulation of correlated tokens."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from hesnr_tasks import stats
from hesnr_tasks.analysis.compare import Run, diagnostics
from hesnr_tasks.metrics import TrajectorySums
from hesnr_tasks.stats import (
    Scale,
    bootstrap_sums,
    effective_number,
    estimates,
    holm,
    minimum_detectable,
    paired,
    resample_counts,
    standard_error,
    trajectories_needed,
    why_withheld,
)
from tests.reference import comparison as slow


def trajectories(rng, n, spread=0.4, length=120):
    """(numerator, denominator) of n trajectories of unequal length; each has a level of its own, skewed."""
    size = np.maximum(5, rng.lognormal(math.log(length), spread, n)).astype(int).astype(float)
    level = 0.3 * rng.gamma(4, 1 / 4, n)
    return size * level + rng.normal(0, 0.3, n) * np.sqrt(size), size


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def test_every_resample_has_as_many_trajectories_as_the_data():
    assert (resample_counts(7, 2500, 3).sum(axis=1) == 7).all()


def test_resamples_are_seeded():
    assert (resample_counts(5, 50, 1) == resample_counts(5, 50, 1)).all()
    assert (resample_counts(5, 50, 1) != resample_counts(5, 50, 2)).any()


@pytest.mark.parametrize("size", [1, 1000, 1 << 25])
@pytest.mark.parametrize("held", [0, 1 << 24])
def test_resamples_do_not_depend_on_how_many_are_drawn_at_a_time(size, held, monkeypatch):
    monkeypatch.setattr(stats, "_BLOCK_BYTES", size)
    monkeypatch.setattr(stats, "_MOST_HELD", held)
    resample_counts.cache_clear()
    picks = np.random.default_rng(3).integers(0, 37, size=(2500, 37))
    expected = [np.bincount(row, minlength=37) for row in picks]
    assert np.array_equal(resample_counts(37, 2500, 3), expected)
    sums = np.random.default_rng(0).random((37, 2))
    assert np.allclose(bootstrap_sums(sums, 2500, 3), expected @ sums, rtol=1e-12)
    resample_counts.cache_clear()


def test_memory_of_the_bootstrap_is_what_a_block_of_resamples_takes():
    """However many trajectories there are."""
    trajectories, resamples = 30_000, 1000
    numerator, denominator = np.random.default_rng(0).random((2, trajectories, 2))
    estimates(numerator[:9], denominator[:9], resamples=resamples)  # imports scipy
    tracemalloc.start()
    try:
        estimates(numerator, denominator, resamples=resamples)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2 * stats._BLOCK_BYTES


def test_the_error_of_a_mean_is_the_textbook_one():
    """For a plain mean of n values the bootstrap's error tends to sd / sqrt(n)."""
    values = np.random.default_rng(0).normal(size=(400, 1))
    replicates = bootstrap_sums(values, 10_000, 1)[:, 0] / 400
    assert standard_error(replicates) == pytest.approx(values.std() / math.sqrt(400), rel=0.03)


def test_errors_cover_clustered_tokens_where_the_naive_one_does_not():
    """Tokens share their trajectory's level: the cluster bootstrap sees it, sd / sqrt(tokens) does not."""
    rng = np.random.default_rng(4)
    covered = naive = 0
    for trial in range(200):
        level = rng.normal(0, 1, 60)
        tokens = level[:, None] + rng.normal(0, 1, (60, 50))
        sums = np.column_stack([tokens.sum(axis=1), np.full(60, 50.0)])
        mean = tokens.mean()
        replicates = bootstrap_sums(sums, 400, trial)
        covered += abs(mean) < 1.96 * standard_error(replicates[:, 0] / replicates[:, 1])
        naive += abs(mean) < 1.96 * tokens.std() / math.sqrt(tokens.size)
    assert 0.90 <= covered / 200 <= 0.99
    assert naive / 200 < 0.5


def test_mostly_undefined_resamples_give_no_error():
    values = np.full(100, np.nan)
    values[:50] = 1.0
    assert math.isnan(standard_error(values))


# --- against slow loops -----------------------------------------------------------------------------------------------


def test_intervals_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    pairs = [trajectories(rng, 12) for _ in range(3)]
    result = estimates(*(np.stack(side, axis=1) for side in zip(*pairs)), resamples=1000, seed=5)
    for i, (numerator, denominator) in enumerate(pairs):
        want = slow.robust_t(list(zip(numerator.tolist(), denominator.tolist())))
        assert (result[i].value, result[i].ci_low, result[i].ci_high) == pytest.approx(want, rel=1e-9)
        sums = bootstrap_sums(np.stack([numerator, denominator], axis=1), 1000, 5)
        assert result[i].stderr == pytest.approx(standard_error(sums[:, 0] / sums[:, 1]), rel=1e-9)


def test_trajectories_of_equal_length_have_the_textbook_interval_of_a_mean():
    values = np.random.default_rng(3).normal(5, 2, 9)
    result = estimates(100 * values[:, None], np.full((9, 1), 100.0), resamples=200)
    want = student.interval(0.95, 8, values.mean(), values.std(ddof=1) / 3)
    assert (result[0].ci_low, result[0].ci_high) == pytest.approx(want, rel=1e-12)


def test_perplexities_are_exponentiated_intervals_of_their_logarithm_and_at_least_one():
    numerator, denominator = (side[:, None] for side in trajectories(np.random.default_rng(1), 15))
    plain = estimates(numerator, denominator, resamples=500)
    powers = estimates(numerator, denominator, Scale.EXP, resamples=500)
    assert powers[0].ci_low == pytest.approx(math.exp(plain[0].ci_low))
    assert powers[0].ci_high == pytest.approx(math.exp(plain[0].ci_high))
    sums = bootstrap_sums(np.hstack([numerator, denominator]), 500)
    assert powers[0].stderr == pytest.approx(standard_error(np.exp(sums[:, 0] / sums[:, 1])))


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 1)), min_size=1, max_size=30),
    st.sampled_from([Scale.EXP, Scale.SHARE, Scale.POSITIVE]),
)
def test_no_interval_leaves_the_range_of_its_metric(rows, scale):
    """However unequal the trajectories; and an interval holds its value, or there is none."""
    size = np.array([[n] for n, _ in rows], dtype=np.float64)
    level = np.array([[x] for _, x in rows]) * (9 if scale is not Scale.SHARE else 1)
    numerator = np.floor(size * level) if scale is Scale.SHARE else size * level
    ((value, _, low, high),) = estimates(numerator, size, scale, resamples=100)
    if math.isnan(low):
        assert math.isnan(high)
        return
    least, most = {Scale.EXP: (1, math.inf), Scale.SHARE: (0, 1), Scale.POSITIVE: (0, math.inf)}[scale]
    assert least <= low <= value * (1 + 1e-9)
    assert value * (1 - 1e-9) <= high <= most


@pytest.mark.parametrize("exponentiate", [False, True])
def test_paired_differences_are_those_of_a_plain_loop(exponentiate):
    rng = np.random.default_rng(2)
    a, size = trajectories(rng, 14)
    b, other = a + rng.normal(0.3, 2, 14), size + rng.integers(0, 9, 14)
    result = paired((a, size), (b, other), exponentiate, resamples=1000, seed=3)
    sides = [list(zip(x.tolist(), y.tolist())) for x, y in ((a, size), (b, other))]
    want = slow.paired_t(*sides, exponentiate)
    assert (result.value, result.ci_low, result.ci_high, result.p) == pytest.approx(want, rel=1e-8)


def test_holm_is_the_textbook_rule():
    given = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9}
    assert list(holm(given).values()) == pytest.approx(slow.holm(list(given.values())))
    assert holm({"a": 0.01, "b": 0.04}) == {"a": 0.02, "b": 0.04}
    assert math.isnan(holm({"a": 0.01, "b": math.nan})["b"])


# --- by simulation ----------------------------------------------------------------------------------------------------


def test_intervals_cover_clustered_tokens_where_naive_ones_fail():
    """1000 data sets of 60 trajectories: 93 to 97 % of the intervals hold the truth; per-token ones far fewer."""
    rng = np.random.default_rng(4)
    truth, trials, covered, naive = 0.3, 1000, 0, 0
    for _ in range(trials):
        size = np.maximum(5, rng.lognormal(math.log(60), 0.4, 60)).astype(int)
        level = 0.3 * rng.gamma(4, 1 / 4, 60)
        tokens = np.repeat(level, size) + rng.normal(0, 0.3, size.sum())
        numerator = np.add.reduceat(tokens, np.concatenate([[0], np.cumsum(size)[:-1]]))
        result = estimates(numerator[:, None], size[:, None].astype(float), resamples=400, seed=9)
        covered += result[0].ci_low < truth < result[0].ci_high
        naive += abs(tokens.mean() - truth) < 1.96 * tokens.std() / math.sqrt(len(tokens))
    assert 0.93 <= covered / trials <= 0.97
    assert naive / trials < 0.6


def test_a_comparison_of_equals_is_significant_one_time_in_twenty():
    """2000 pairs of runs without a true difference: 4 to 6 % have p <= 0.05."""
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(2000):
        base, size = trajectories(rng, 80)
        a, b = (base + size * rng.normal(0, 0.05, 80) for _ in range(2))
        alarms += paired((a, size), (b, size), resamples=399, seed=8).p <= 0.05
    assert 0.04 <= alarms / 2000 <= 0.06


def test_the_minimum_detectable_difference_is_found_as_often_as_said():
    rng = np.random.default_rng(6)
    base, size = trajectories(rng, 100)
    first = paired((base, size), (base + size * rng.normal(0, 0.05, 100), size), resamples=999)
    effect = minimum_detectable(first.stderr, 0.8)
    result = 0
    for _ in range(300):
        base, size = trajectories(rng, 100)
        a, b = base, base + size * (effect + rng.normal(0, 0.05, 100))
        result += paired((a, size), (b, size), resamples=199, seed=2).p <= 0.05
    assert 0.7 < result / 300 < 0.9
    assert trajectories_needed(effect / 2, first.stderr, 100) == pytest.approx(400, abs=1)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_identical_runs_do_not_differ():
    a, size = trajectories(np.random.default_rng(7), 20)
    result = paired((a, size), (a, size), resamples=200)
    assert (result.value, result.ci_low, result.ci_high, result.p, result.p_below) == (0, 0, 0, 1, 0.5)
    assert result.correlation == pytest.approx(1)


def test_a_set_without_tokens_has_no_interval():
    result = estimates(np.zeros((5, 1)), np.zeros((5, 1)), resamples=200)
    assert np.isnan(result).all()
    assert math.isnan(paired((np.zeros(5), np.zeros(5)), (np.ones(5), np.ones(5)), resamples=200).p)


def test_one_trajectory_has_a_value_and_no_error():
    result = estimates(np.array([[3.0]]), np.array([[4.0]]), resamples=200)
    assert result[0].value == 0.75
    assert np.isnan([result[0].stderr, result[0].ci_low, result[0].ci_high]).all()
    difference, *others = paired((np.array([3.0]), np.array([4.0])), (np.array([1.3]), np.array([4.0])), resamples=200)
    assert difference == pytest.approx(-0.425)
    assert np.isnan(others).all()


def test_a_set_that_few_trajectories_have_gets_no_interval():
    """With 1 of 30 trajectories holding all tokens, a third of the resamples have none."""
    numerator, denominator = np.zeros((30, 1)), np.zeros((30, 1))
    numerator[0], denominator[0] = 2.0, 5.0
    result = estimates(numerator, denominator, resamples=500)
    assert result[0].value == 0.4
    assert np.isnan([result[0].stderr, result[0].ci_low, result[0].ci_high]).all()


def test_diagnostics_name_what_makes_errors_doubtful():
    def messages(he_tokens, truncated, metric, n=40):
        values = np.column_stack([np.full(40, 100.0), he_tokens, he_tokens])[:n]
        sums = TrajectorySums(values, ("tokens", "he_tokens", "he_snr" if metric == "he_snr" else "ppl"))
        n_truncated = np.array([truncated] + [0] * (n - 1))
        return list(diagnostics(Run("a", {}, (), (), np.ones(n, dtype=np.int64), n_truncated, sums), metric))

    assert messages([500, 3] + [0] * 38, 400, "he_snr") == [
        "no interval: 40 trajectories as unequal as these tell as much as 1.0 equal ones",
        "9% of tokens beyond the context",
        "no such token in 38 trajectories",
    ]
    uneven = "uneven: 40 trajectories tell as much as 8 of equal length"
    assert messages([500] * 8 + [3] * 32, 400, "he_snr")[0] == uneven
    assert messages([500] * 40, 0, "ppl", n=20) == ["few trajectories (20)"]
    assert effective_number(np.ones(7)) == pytest.approx(7)


@pytest.mark.parametrize(
    ("n", "error", "has"), [(1, False, False), (2, True, False), (3, True, False), (4, True, True)]
)
def test_a_few_equal_trajectories_have_an_error_but_no_interval(n, error, has):
    rng = np.random.default_rng(n)
    size = np.full(n, 100.0)
    numerator = size * rng.gamma(4, 1 / 4, n)
    result = estimates(numerator[:, None], size[:, None], resamples=2000)
    other = paired((numerator, size), (numerator + rng.normal(0, 1, n), size), resamples=2000)
    for stderr in (result[0].stderr, other.stderr):
        assert np.isfinite(stderr) == error
    for stderr in (result[0].ci_low, result[0].ci_high, other.ci_low, other.ci_high, other.p):
        assert np.isfinite(stderr) == has
    assert bool(why_withheld(size)) != has


def test_where_one_trajectory_holds_most_tokens_neither_error_nor_interval_is_given_and_the_reason_is():
    size = np.array([2000.0, *[20.0] * 14])
    rng = np.random.default_rng(1)
    result = estimates((size * rng.gamma(4, 1 / 4, 15))[:, None], size[:, None], resamples=500)
    assert np.isfinite(result[0].value)
    assert np.isnan([result[0].stderr, result[0].ci_low, result[0].ci_high]).all()
    assert why_withheld(size) == "15 trajectories as unequal as these tell as much as 1.3 equal ones"
