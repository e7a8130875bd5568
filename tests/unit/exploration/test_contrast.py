"""Differences against dense least squares, intervals against the truth, bounds against built distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.exploration.entropy_profile import contrast, difference_bounds, entropy_bounds
from hesnr_tasks.metrics import topk_entropy
from hesnr_tasks.stats import estimates
from tests.reference import exploration as reference


def simulated(seed, n=160, runs=8, cells=12):
    rng = np.random.default_rng(seed)
    trajectory, cell = rng.integers(0, runs, n), rng.integers(0, cells, n)
    treated = rng.random(n) < 0.1 + 0.05 * (cell % 5)
    values = rng.gamma(2.0, 0.5, n) + 0.3 * cell + 0.2 * trajectory + 0.5 * treated
    return values, treated, trajectory, rng.integers(0, 3, runs), cell


@pytest.mark.parametrize(("seed", "runs", "cells"), [(0, 8, 12), (1, 20, 5), (2, 3, 40), (3, 1, 4)])
def test_differences_are_those_of_dense_least_squares(seed, runs, cells):
    """With fewer cells than trajectories and the other way round, some texts twice, some not at all."""
    values, treated, trajectory, copies, cell = simulated(seed, runs=runs, cells=cells)
    copies = np.maximum(copies, 1) if runs == 1 else copies
    rows = list(zip(values.tolist(), treated.tolist(), trajectory.tolist(), cell.tolist(), copies[trajectory].tolist()))
    matched = contrast(values, treated, trajectory, copies, cell)
    assert matched.value(copies) == pytest.approx(reference.matched(rows), abs=1e-7)
    raw = contrast(values, treated, trajectory, copies)
    assert raw.value(copies) == pytest.approx(reference.raw(rows), abs=1e-12)


def test_nothing_to_compare_is_no_number():
    values, treated, trajectory, copies, _ = simulated(0)
    apart = contrast(values, treated, trajectory, copies, treated.astype(np.int64))  # a cell has one kind only
    assert np.isnan(apart.value(copies))
    assert (apart.used, apart.clusters) == (0.0, 0)
    own = contrast(values, trajectory == 2, trajectory, np.ones_like(copies), np.zeros(len(values), dtype=np.int64))
    assert np.isnan(own.value(np.ones_like(copies)))  # treated is what the trajectory is


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """250 corpora of 24 trajectories with levels, effects of cells, and effects that differ by trajectory."""
    truth, hits, sizes = 0.3, 0, []
    for seed in range(250):
        rng = np.random.default_rng([7, seed])
        trajectory = np.repeat(np.arange(24), rng.integers(30, 120, 24))
        cell = rng.integers(0, 9, len(trajectory))
        treated = rng.random(len(cell)) < 0.05 + 0.04 * cell
        own = rng.normal(0, 0.3, 24)[trajectory] + treated * rng.normal(truth, 0.1, 24)[trajectory]
        values = own + 0.2 * cell + rng.gamma(1, 0.5, len(cell))
        difference = contrast(values, treated, trajectory, np.ones(24, dtype=np.int64), cell)
        ends = estimates(difference.numerator[:, None], difference.denominator[:, None], resamples=300, seed=seed)
        hits += bool(ends.ci_low[0] <= truth <= ends.ci_high[0])
        sizes.append(ends.ci_high[0] - ends.ci_low[0])
    assert 0.91 <= hits / 250 <= 0.99
    assert np.median(sizes) < 0.4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.floats(0, 0.6), st.integers(5, 90))
def test_bounds_are_the_extreme_distributions_built_token_by_token(weights, tail, vocabulary):
    chances = np.sort(np.array(weights))[::-1]
    chances = chances / chances.sum() * (1 - tail)
    if tail > (vocabulary - 3) * chances[-1]:  # no distribution has these as its largest
        return
    low, high = entropy_bounds(np.log(chances)[None], vocabulary)
    want = reference.extremes(chances.tolist(), vocabulary)
    assert low[0] == pytest.approx(want[0], abs=1e-9)
    assert high[0] == pytest.approx(want[1], abs=1e-9)


def test_the_entropy_of_whole_distributions_lies_within_the_bounds():
    """Softmax of random logits over 500 tokens, of which ten are known, stored in float32."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, rng.uniform(0.5, 5, (300, 1)), (300, 500))
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    entropy = -(np.exp(logs) * logs).sum(axis=1)
    top = -np.sort(-logs, axis=1)[:, :10].astype(np.float32)
    low, high = entropy_bounds(top, 500)
    assert (low <= entropy + 1e-5).all()
    assert (entropy <= high + 1e-5).all()
    assert np.isinf(entropy_bounds(top, None).high).all()
    assert (np.abs(topk_entropy(top, 10) - entropy) > 0.01).any()  # the renormalised one is neither


def test_bounds_of_the_difference_are_reached():
    """By taking every treated unit at one end and every other at the opposite one, or the other way where they lift."""
    values, treated, trajectory, copies, cell = simulated(4)
    difference = contrast(values, treated, trajectory, copies, cell)
    low, high = values - 0.1, values + np.random.default_rng(0).uniform(0, 0.5, len(values))
    least, most = difference_bounds(difference.lift, copies[trajectory].astype(float), low, high)
    for end, want in (
        (np.where(difference.lift > 0, low, high), least),
        (np.where(difference.lift > 0, high, low), most),
    ):
        assert contrast(end, treated, trajectory, copies, cell).value(copies) == pytest.approx(want, abs=1e-8)
    assert least < difference.value(copies) < most
