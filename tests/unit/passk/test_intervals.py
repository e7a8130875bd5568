"""Intervals and tests against scipy, slow loops and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.passk import (
    AnswerCounts,
    IntervalSettings,
    curve,
    differences,
    discordant,
    newcombe,
    pass_at_ks,
    sign_flip,
    wilson,
)
from hesnr_tasks.stats import minimum_detectable, paired


def outcomes(n, c, name="run"):
    labels = tuple(f"p{i:03}" for i in range(len(c)))
    return AnswerCounts(
        name, labels, labels, np.broadcast_to(n, len(c)).astype(np.int64), np.asarray(c, dtype=np.int64)
    )


@pytest.mark.parametrize(("c", "n"), [(0, 1), (1, 1), (0, 30), (13, 30), (17, 30), (30, 30), (3, 256)])
def test_wilson_and_clopper_pearson_equal_scipy(c, n):
    exact, score = (stats.binomtest(c, n).proportion_ci(method=method) for method in ("exact", "wilson"))
    (point,) = curve(outcomes(n, [c]), [1])
    assert (point.low, point.high) == pytest.approx(tuple(exact), abs=1e-12)
    assert point.method == "Clopper-Pearson"
    assert wilson(c, n) == pytest.approx(tuple(score), abs=1e-12)


def test_problems_that_are_all_alike_give_no_interval_without_width():
    """Every resample of them is the same, which says nothing of other problems."""
    a, b = outcomes(2, [1] * 30, "a"), outcomes(2, [2] * 30, "b")
    point = curve(a, [1])[0]
    assert (point.low, point.high, point.method) == (*wilson(15, 30), "Wilson (wide)")
    difference = differences(a, b, [1])[0]
    assert (difference.low, difference.high, difference.method) == (*newcombe(15, 30, 30), "Newcombe (wide)")
    assert math.isnan(difference.detectable)
    assert difference.needed is None
    assert difference.p < 1e-4


def test_thirteen_of_thirty_is_27_to_61_per_cent():
    assert [round(100 * end) for end in wilson(13, 30)] == [27, 61]


def test_newcombes_interval_is_made_of_both_shares_wilson_intervals():
    low, high = newcombe(29, 48, 80)
    a, b = (stats.binomtest(x, 80).proportion_ci(method="wilson") for x in (29, 48))
    d = 19 / 80
    assert low == pytest.approx(d - math.sqrt((0.6 - b.low) ** 2 + (a.high - 29 / 80) ** 2))
    assert high == pytest.approx(d + math.sqrt((b.high - 0.6) ** 2 + (29 / 80 - a.low) ** 2))


def loop_flip(differences):
    observed = abs(sum(differences))
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    sums = (abs(sum(s * d for s, d in zip(assignment, differences))) for assignment in signs)
    return sum(value >= observed - 1e-9 for value in sums) / len(signs)


def test_sign_flips_equal_a_loop_over_all_signs():
    rng = np.random.default_rng(3)
    for _ in range(10):
        values = np.round(rng.normal(0.2, 1, 9), 2)
        padded = np.concatenate([values, np.zeros(5)])
        assert sign_flip(padded, 0) == pytest.approx(loop_flip(values.tolist()))


@pytest.mark.parametrize(("plus", "minus"), [(4, 0), (6, 0), (9, 2), (0, 0), (40, 20)])
def test_of_ones_it_is_mcnemars_exact_test(plus, minus):
    exact = stats.binomtest(plus, plus + minus).pvalue if plus + minus else 1.0
    p = sign_flip(np.array([1.0] * plus + [-1.0] * minus + [0.0] * 7), 1)
    assert p == pytest.approx(exact, abs=1e-12)


def test_the_largest_published_gain_of_four_problems_is_p_one_eighth():
    base, shaped = [1] * 13 + [0] * 17, [1] * 17 + [0] * 13
    (difference,) = differences(outcomes(1, base), outcomes(1, shaped), [1])
    assert (difference.p, difference.method) == (0.125, "Newcombe (wide)")
    assert math.isnan(difference.detectable)


def test_standard_errors_are_lm_evals_and_heed_no_order():
    """The number that lm_eval prints beside pass@k of `hesnr_passk` on the same answers."""
    from lm_eval.api.metrics import mean_stderr

    n, right, ks = np.array([8, 8, 6, 8, 16]), np.array([0, 2, 4, 1, 12]), [1, 2, 4]
    points, same = (curve(outcomes(n[order], right[order]), ks) for order in (slice(None), slice(None, None, -1)))
    assert [point.stderr for point in points] == [
        pytest.approx(mean_stderr(values), rel=1e-12) for values in pass_at_ks(n, right, ks).T.tolist()
    ]
    assert points == same


def test_one_problem_has_the_exact_interval_carried_to_k():
    points = curve(outcomes(16, [5]), [1, 4])
    low, high = stats.binomtest(5, 16).proportion_ci(method="exact")
    assert (points[1].low, points[1].high) == pytest.approx((1 - (1 - low) ** 4, 1 - (1 - high) ** 4), abs=1e-9)
    assert points[1].method == "Clopper-Pearson"
    assert math.isnan(points[1].stderr)


def test_where_k_is_n_the_interval_is_wilsons_and_nothing_is_averaged():
    (point,) = curve(outcomes(8, [0] * 17 + [3] * 13), [8])
    assert (point.method, point.averaged) == ("Wilson", False)
    assert (point.low, point.high) == pytest.approx(wilson(13, 30))


def test_few_passes_get_a_wide_interval_and_none_gets_no_zero_width():
    (scarce,) = curve(outcomes(8, [0] * 39 + [1]), [2])
    assert scarce.method == "Wilson (wide)"
    (none,) = curve(outcomes(8, [0] * 40), [2])
    assert none.high > 0.05


def test_k_beyond_some_problems_n_names_the_problem():
    with pytest.raises(SettingsError, match=r"--k 4: run has 3 answers to 'p001'"):
        curve(outcomes([8, 3, 8], [1, 1, 1]), [1, 4])


def test_different_n_each_problem_by_its_own():
    (point,) = curve(outcomes([2, 4, 8, 16, 4], [1, 1, 1, 1, 4]), [2])
    assert point.value == pytest.approx((1 + 0.5 + 0.25 + 0.125 + 1) / 5)


def test_discordant_problems_are_those_one_never_solved():
    a, b = outcomes(4, [0, 2, 4, 0], "a"), outcomes(4, [3, 0, 1, 0], "b")
    assert list(discordant(a, b)) == [
        {"problem": "p000", "solved_by": "b", "a": "0 of 4", "b": "3 of 4"},
        {"problem": "p001", "solved_by": "a", "a": "2 of 4", "b": "0 of 4"},
    ]


def simulate(problems, n, shape, ks, rounds, seed):
    """Share of intervals that hold the truth of a population of problems with beta-distributed chances."""
    rng = np.random.default_rng(seed)
    truth = [1 - np.mean((1 - rng.beta(*shape, 100_000)) ** k) for k in ks]
    hits = np.zeros(len(ks))
    for _ in range(rounds):
        c = rng.binomial(n, rng.beta(*shape, problems))
        points = curve(outcomes(n, c), ks, IntervalSettings(resamples=100))
        hits += [point.low <= value <= point.high for point, value in zip(points, truth)]
    return hits / rounds


@pytest.mark.parametrize(("problems", "rounds"), [(30, 200), (500, 120)])
@pytest.mark.parametrize("shape", [(0.3, 0.7), (0.2, 1.5)])
def test_intervals_cover_the_truth(problems, rounds, shape):
    """95 % nominal; 0.9 is more than three standard errors of 200 rounds below it, two and a half of 120."""
    assert simulate(problems, 16, shape, [1, 4, 16], rounds, 5).min() >= 0.9


def test_equal_checkpoints_are_told_apart_once_in_twenty():
    """Of 16 problems all assignments of signs are enumerated."""
    rng, alarms = np.random.default_rng(2), np.zeros(2)
    for _ in range(150):
        chance = rng.beta(0.8, 1, 16)
        a, b = (outcomes(8, rng.binomial(8, chance)) for _ in range(2))
        (compared,) = differences(a, b, [2], IntervalSettings(resamples=100))
        alarms += [compared.p < 0.05, compared.p_mean < 0.05]
    assert (alarms / 150 <= 0.1).all()


def test_the_detectable_difference_is_found_as_often_as_asked():
    """80 % power is asked for at the true standard error; found between 65 and 95 % of 120 rounds."""
    rng, detected = np.random.default_rng(4), 0
    chance = rng.uniform(0.2, 0.6, 200)
    ones = np.ones(200)
    a, b = (rng.binomial(16, chance) / 16 for _ in range(2))
    lift = minimum_detectable(paired((a, ones), (b, ones), resamples=100).stderr)
    for _ in range(120):
        a, b = (rng.binomial(16, np.clip(p, 0, 1)) / 16 for p in (chance, chance + lift))
        detected += paired((a, ones), (b, ones), resamples=100).p < 0.05  # `p_mean` of Pass@1
    assert 0.65 <= detected / 120 <= 0.95
