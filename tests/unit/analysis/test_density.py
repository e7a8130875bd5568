"""Peaks, masses and the valley between them."""

import math

import numpy as np
import pytest

from hesnr_tasks.analysis import breakdowns
from hesnr_tasks.analysis.breakdowns import density, histogram, mass_near, population, valley
from hesnr_tasks.metrics.definitions import state_order
from tests.reference import comparison as slow


def mixture(n, weights, seed=0, width=0.05):
    rng = np.random.default_rng(seed)
    ways = 1 + rng.choice(len(weights), n, p=weights)
    return np.clip(np.abs(np.log(ways) + rng.normal(0, width, n)), 0, math.log(10))


def test_the_density_is_the_sum_over_all_values():
    values = mixture(400, [0.4, 0.3, 0.3])
    curve = density(values, 10)
    for index in (0, 100, 700, 1500, 2047):
        want = slow.density(values.tolist(), curve.grid[index], curve.bandwidth, math.log(10))
        assert curve.height[index] == pytest.approx(want, rel=2e-3, abs=1e-3)
    cells = (curve.height[1:] + curve.height[:-1]) / 2 * np.diff(curve.grid)
    assert cells.sum() == pytest.approx(1, abs=1e-6)


def test_peaks_are_where_the_mass_is_the_highest_first():
    curve = density(mixture(50_000, [0.45, 0.25, 0.2, 0.1]), 10)
    assert curve.mode == pytest.approx(0, abs=0.02)
    assert sorted(p.entropy for p in curve.peaks) == pytest.approx([0, math.log(2), math.log(3), math.log(4)], abs=0.03)
    assert [p.height for p in curve.peaks] == sorted((p.height for p in curve.peaks), reverse=True)


def test_peaks_and_prominences_are_scipys(monkeypatch):
    monkeypatch.setattr(breakdowns, "_PROMINENCE", -math.inf)  # also ripples
    rng, signal = np.random.default_rng(5), pytest.importorskip("scipy.signal")
    for trial in range(200):  # plateaus and ties, and rough curves
        n = int(rng.integers(2, 120))
        height = rng.integers(0, 4, n).astype(float) if trial % 2 else np.abs(np.cumsum(rng.normal(size=n)))
        index, theirs = signal.find_peaks(np.pad(height, 1), prominence=0)
        peaks = sorted(breakdowns._peaks(np.arange(n, dtype=float), height, 1e9))
        assert [peak.entropy for peak in peaks] == (index - 1).tolist()
        assert [peak.prominence for peak in peaks] == theirs["prominences"].tolist()


def test_ripples_are_no_peaks():
    assert len(density(np.random.default_rng(1).normal(1.1, 0.2, 20_000), 10).peaks) == 1


def test_the_shift_to_ln_3_is_seen_in_the_masses():
    before, after = mixture(20_000, [0.5, 0.2, 0.1, 0.2]), mixture(20_000, [0.5, 0.2, 0.2, 0.1])
    assert [mass_near(before, ways, 0.14) for ways in (1, 2, 3, 4)] == pytest.approx([0.5, 0.2, 0.1, 0.2], abs=0.02)
    assert mass_near(after, 3) > 1.8 * mass_near(before, 3)
    assert math.isnan(mass_near(np.zeros(0), 3))


def test_the_valley_lies_between_ln_3_and_ln_4_or_is_not_there():
    curve = valley(density(mixture(50_000, [0.3, 0.3, 0.2, 0.2]), 10))
    assert math.log(3) < curve.epsilon < math.log(4)
    assert curve.epsilon == pytest.approx((math.log(3) + math.log(4)) / 2, abs=0.05)
    none = valley(density(mixture(50_000, [0.5, 0.5]), 10))
    assert math.isnan(none.epsilon)
    assert none.reason == "no peak within 0.2 nats of ln 3"
    middle = valley(density(np.random.default_rng(0).normal(1.24, 0.01, 5000), 10))
    assert math.isnan(middle.epsilon)
    assert "nearest both" in middle.reason


@pytest.mark.parametrize("values", [[], [0.5], [0.0, 0.0, 0.0]])
def test_little_or_constant_data_breaks_nothing(values):
    curve = density(np.array(values, dtype=float), 10)
    assert np.isfinite(curve.height).all()
    assert math.isnan(curve.mode) == (len(values) < 2)
    assert histogram(np.array(values, dtype=float), 10).counts.sum() == len(values)


def test_every_entropy_up_to_the_bound_is_in_the_histogram():
    values = np.array([0.0, 0.3, math.log(5), math.log(10)])
    curve = histogram(values, 10, bins=10)
    assert curve.counts.sum() == 4
    assert curve.counts[-1] == 1
    assert curve.edges[[0, -1]].tolist() == [0.0, math.log(10)]


def test_populations_leave_out_the_likeliest_and_keep_unknown_ranks():
    rank = np.array([1, 2, 3, 0, 50], dtype=np.int32)
    assert population(rank, "all").tolist() == [True] * 5
    assert population(rank, "non-top-1").tolist() == [False, True, True, True, True]
    assert population(rank, "non-top-2").tolist() == [False, False, True, True, True]


def plain_order(p, distance):
    """The nearest number of equally likely continuations, by loops."""
    k, best = len(p), (2.0, 0)
    for j in range(1, k + 1):
        apart = math.fsum(abs(x - (1 / j if i < j else 0.0)) for i, x in enumerate(p)) / 2
        best = min(best, (apart, j))
    return best[1] if best[0] <= distance else 0


def test_states_equal_plain_loops_and_an_entropy_near_ln_3_is_none():
    rng = np.random.default_rng(4)
    p = -np.sort(-rng.dirichlet(np.full(10, 0.3), 300), axis=1)
    p[:3] = [[0.75] + [0.25 / 9] * 9, [1 / 3] * 3 + [0.0] * 7, [0.1] * 10]
    with np.errstate(divide="ignore"):
        orders = state_order(np.log(p * 0.9), 10)
    assert orders[:3].tolist() == [0, 3, 10]
    assert orders.tolist() == [plain_order(row, 0.2) for row in p.tolist()]
    assert state_order(np.zeros((0, 10)), 10).tolist() == []
