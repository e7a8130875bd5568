"""Rankers learned from a ladder: against loops, on ladders with and without a signal, and honest about few."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from hesnr_tasks.analysis.learned import FEWEST, RANKERS, learned_rankers
from tests.reference import learned as slow


def ladder(checkpoints, proxies, signal, seed=0):
    rng = np.random.default_rng(seed)
    ability = rng.normal(size=checkpoints)
    x = signal * ability[:, None] * rng.normal(1, 0.2, proxies) + rng.normal(size=(checkpoints, proxies))
    return x * rng.uniform(0.1, 10, proxies), 30 + 8 * ability


def rows_of(x, y, families=None):
    names = [f"p{i}" for i in range(x.shape[1])]
    rows = learned_rankers(x, names, y, families or ["a"] * len(y))
    return {(row.ranker, row.left_out): row for row in rows}


@pytest.mark.parametrize(("name", "method"), [("best single proxy", slow.best_single), ("ridge", slow.ridge)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_errors_are_those_of_a_loop(name, method, seed):
    x, y = ladder(9, 4, 1.0, seed)
    row = rows_of(x, y)[name, "checkpoint"]
    error, of_mean = slow.leave_one_out(method, x, y)
    assert row.error_of_mean == pytest.approx(of_mean, rel=1e-9)
    assert row.error == pytest.approx(error, rel=1e-6)


def test_a_proxy_that_is_the_score_is_found_and_every_ranker_orders_by_it():
    rng = np.random.default_rng(3)
    y = np.array([3.0, 8, 12, 20, 21, 30, 33, 40, 44, 51])
    x = np.column_stack([rng.normal(size=10), y, rng.normal(size=10)])
    rows = rows_of(x, y)
    assert rows["best single proxy", "checkpoint"].error == pytest.approx(0, abs=1e-9)
    assert rows["best single proxy", "checkpoint"].uses == ("p1",)
    assert "p1" in rows["sparse combination of three", "checkpoint"].uses
    for row in rows.values():
        assert row.ordered > 0.7, row  # the Gaussian kernel cannot follow a score beyond those it has seen
        assert row.error < row.error_of_mean, row


def test_without_a_signal_nothing_beats_the_mean_on_average():
    """What is chosen after looking would: the best of ten proxies of noise."""
    gains, ordered = {name: [] for name in RANKERS}, {name: [] for name in RANKERS}
    for seed in range(16):
        x, y = ladder(7, 10, 0.0, seed)
        for (name, _), row in rows_of(x, y).items():
            gains[name].append(row.error_of_mean - row.error)
            ordered[name].append(row.ordered)
    for name, values in gains.items():
        assert np.mean(values) < 2 * np.std(values) / np.sqrt(16), (name, np.mean(values))
        assert np.mean(ordered[name]) == pytest.approx(0.5, abs=0.1), name  # beside a seen score it would be 0.75


def test_a_family_left_out_is_predicted_from_the_others_alone():
    rng = np.random.default_rng(5)
    ability = rng.normal(size=12)
    x, families = ability[:, None] + 0.1 * rng.normal(size=(12, 3)), ["a"] * 6 + ["b"] * 6
    rows = rows_of(x, 30 + 8 * ability, families)
    assert {left_out for _, left_out in rows} == {"checkpoint", "family"}
    assert rows["ridge", "family"].error < 0.5 * rows["ridge", "family"].error_of_mean
    moved = 30 + 8 * ability + np.array([0.0] * 6 + [100.0] * 6)  # another level: only within a family is it learned
    rows = rows_of(x, moved, families)
    assert rows["ridge", "checkpoint"].error < 4
    assert rows["ridge", "family"].error > 50
    assert rows["ridge", "family"].ordered > 0.8


def test_scale_and_order_of_checkpoints_do_not_matter():
    x, y = ladder(8, 3, 1.0)
    turned = np.random.default_rng(0).permutation(8)
    for key, row in rows_of(x, y).items():
        other = rows_of((x * 1e3 - 7)[turned], y[turned])[key]
        assert other.error == pytest.approx(row.error, rel=1e-3), key


def test_few_checkpoints_are_not_learned_from_or_not_believed():
    x, y = ladder(7, 3, 1.0)
    assert rows_of(x[: FEWEST - 1], y[: FEWEST - 1]) == {}
    assert not any(row.believable for row in rows_of(x, y).values())
    assert rows_of(x, np.full(7, 3.0)) == {}
    assert rows_of(np.full((7, 2), np.nan), y) == {}
    x, y = ladder(8, 3, 1.0)
    assert all(row.believable for row in rows_of(x, y).values())
    assert not any(row.believable for row in rows_of(x, y, [*"aaaaaaa", "b"]).values())  # b cannot be predicted


def test_equal_proxies_and_scores_are_no_trouble():
    x, y = ladder(8, 2, 1.0)
    x, y = np.column_stack([x, x, np.ones(8)]), np.round(y / 10)
    for row in rows_of(x, y).values():
        assert np.isfinite(row.error)
