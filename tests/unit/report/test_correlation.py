"""Agreement beside scipy and slow loops."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hesnr_tasks.report.tables import orient_higher_is_better
from hesnr_tasks.stats import CORRELATIONS, agreement, correlations
from tests.unit.report import reference

_SMALL = st.integers(-3, 3).map(float)
_PAIRS = st.integers(2, 9).flatmap(lambda n: st.tuples(*[st.lists(_SMALL, min_size=n, max_size=n)] * 2))


def slow(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns where a side does not vary
        actual = [stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0], stats.kendalltau(x, y)[0]]
    return dict(zip(CORRELATIONS, [*map(float, actual), reference.decision(x, y)]))


@settings(max_examples=150)
@given(_PAIRS)
def test_every_statistic_is_scipys_with_ties_and_without_spread(pair):
    x, y = pair
    actual = {name: float(values[0]) for name, values in correlations(np.array(x), np.array(y)).items()}
    assert actual == pytest.approx(slow(x, y), abs=1e-12, nan_ok=True)


def test_what_does_not_vary_has_no_correlation_whatever_its_mean_rounds_to():
    assert np.mean([0.1] * 3) != 0.1
    for x, y in (([0.1] * 3, [1, 2, 3]), ([1, 2, 3], [0.1] * 3)):
        actual = correlations(x, y)
        assert all(np.isnan(actual[name][0]) for name in ("pearson", "spearman", "kendall"))


def test_many_rows_at_once_are_each_alone():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2500, 40)), rng.integers(0, 9, 40).astype(float)  # more than one block
    actual = correlations(x, y)
    for index in (0, 1249, 1250, 2499):
        assert {name: values[index] for name, values in actual.items()} == pytest.approx(slow(x[index], y), abs=1e-12)


def test_a_value_that_is_not_known_makes_no_number():
    actual = correlations(np.array([1.0, math.nan, 3.0]), np.array([1.0, 2.0, 3.0]))
    assert all(np.isnan(values).all() for values in actual.values())


def test_intervals_are_percentiles_of_resamples_drawn_one_by_one():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=7), rng.normal(size=7)
    resampled = x + 0.3 * rng.normal(size=(300, 7))
    actual = agreement(x, y, resampled, resamples=200, seed=11)
    picked = np.random.default_rng(11).integers(0, 7, (200, 7))
    over = [reference.pearson(x[list(row)], y[list(row)]) for row in picked if len(set(row.tolist())) > 1]
    assert actual["pearson"].checkpoints[0] == pytest.approx(reference.percentile(over, 0.025))
    assert actual["pearson"].checkpoints[1] == pytest.approx(reference.percentile(over, 0.975))
    over = [reference.decision(row, y) for row in resampled]
    assert actual["decision"].trajectories == pytest.approx([reference.percentile(over, p) for p in (0.025, 0.975)])
    assert actual["kendall"].value == pytest.approx(stats.kendalltau(x, y)[0])


def test_fewer_than_four_checkpoints_have_no_interval():
    x = np.array([1.0, 2.0, 3.0])
    for entry in agreement(x, x, np.tile(x, (50, 1)), resamples=100).values():
        assert entry.value == 1
        assert all(math.isnan(end) for end in (*entry.checkpoints, *entry.trajectories))
    assert not math.isnan(agreement(np.arange(4.0), np.arange(4.0), resamples=100)["kendall"].checkpoints[0])


def test_lower_is_better_is_turned():
    values = np.array([9.0, 5.0, 3.0])
    score = np.array([0.1, 0.2, 0.4])
    assert correlations(orient_higher_is_better("ppl", values), score)["kendall"] == 1
    assert correlations(orient_higher_is_better("he_ppl", values), score)["decision"] == 1
    assert correlations(orient_higher_is_better("he_snr", values), score)["kendall"] == -1
