"""Entropies over actions: closed forms, a slow reference, bias and bounds by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.errors import SearchError, SettingsError
from hesnr_tasks.search import entropy

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)


def reference(p):
    """-sum p ln p in plain Python."""
    return -math.fsum(x * math.log(x) for x in p if x > 0)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ("aaaa", 0.0),
        ("aaab", math.log(4) - 0.75 * math.log(3)),
        ("aabb", math.log(2)),
        ("aabc", 1.5 * math.log(2)),
        ("abcd", math.log(4)),
    ],
)
def test_four_draws_have_five_values(votes, expected):
    assert entropy.vote_entropy(votes) == pytest.approx(expected, abs=1e-15)
    assert entropy.vote_entropy(votes, "normalised") == pytest.approx(expected / math.log(4), abs=1e-15)
    extra = (len(set(votes)) - 1) / 8
    assert entropy.vote_entropy(votes, "miller_madow") == pytest.approx(expected + extra, abs=1e-15)


def test_no_other_values_come_of_four_draws():
    seen = {round(entropy.vote_entropy(votes), 3) for votes in itertools.product("abcd", repeat=4)}
    assert seen == {0.0, 0.562, 0.693, 1.04, 1.386}


@given(COUNTS)
def test_plug_in_is_the_entropy_of_the_shares(counts):
    n = sum(counts)
    assert entropy.plug_in(counts) == pytest.approx(reference([c / n for c in counts]), abs=1e-12)
    assert 0 <= entropy.plug_in(counts) <= math.log(n) + 1e-12


@given(COUNTS)
def test_margin_and_disagreement_are_of_the_two_most_frequent(counts):
    first, second = (*sorted(counts, reverse=True), 0)[:2]
    assert entropy.top_margin(counts) == pytest.approx((first - second) / sum(counts))
    assert entropy.disagreement(counts) == pytest.approx(1 - (first - second) / sum(counts))


def test_shares_sum_to_one_and_ties_are_as_drawn():
    found = entropy.shares(["b", "a", "b", "a", "c"])
    assert list(found.items()) == [("b", 0.4), ("a", 0.4), ("c", 0.2)]
    assert entropy.shares([]) == {}


def test_miller_madow_takes_away_most_of_the_bias():
    """20 draws from 5 actions, 4 000 times: the plug-in is about (5 - 1) / 40 too low."""
    p = np.array([0.4, 0.25, 0.15, 0.1, 0.1])
    rng = np.random.default_rng(0)
    counts = rng.multinomial(20, p, size=4_000).tolist()
    bias = {f: np.mean([f(c) for c in counts]) - reference(p) for f in (entropy.plug_in, entropy.miller_madow)}
    error = np.std([entropy.plug_in(c) for c in counts]) / math.sqrt(4_000)
    assert bias[entropy.plug_in] == pytest.approx(-4 / 40, abs=0.02)
    assert abs(bias[entropy.miller_madow]) < abs(bias[entropy.plug_in]) / 3
    assert abs(bias[entropy.plug_in]) > 10 * error


@pytest.mark.parametrize(("share", "n", "expected"), [(0.7, 4, 0.752), (0.7, 2, 0.42), (0.9, 4, 0.344), (0.9, 2, 0.18)])
def test_how_often_draws_disagree_at_a_fork(share, n, expected):
    """Two actions with shares p and 1 - p: the probability that n draws are not all alike, by enumeration."""
    found = 0.0
    for votes in itertools.product((0, 1), repeat=n):
        if entropy.vote_entropy(votes) > 0:
            found += math.prod(share if v == 0 else 1 - share for v in votes)
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_no_draw_is_an_error_and_never_a_number(counts):
    for estimator in entropy.ESTIMATORS.values():
        with pytest.raises(SearchError, match="no draw"):
            estimator(counts)


def test_one_draw_has_no_normalised_entropy():
    assert entropy.vote_entropy(["a"]) == 0.0
    with pytest.raises(SearchError, match="at least 2"):
        entropy.vote_entropy(["a"], "normalised")
    with pytest.raises(SettingsError, match="Did you mean 'plug_in'"):
        entropy.vote_entropy(["a"], "plugin")


# --- log-probabilities ------------------------------------------------------------------------------------------------


def distributions(seed, n=200, vocabulary=60):
    """Rows of every sharpness, most likely first."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, vocabulary)) * rng.uniform(0.1, 6, size=(n, 1))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return -np.sort(-p / p.sum(axis=1, keepdims=True), axis=1)


@pytest.mark.parametrize("k", [1, 5, 10, 60])
def test_bounds_hold_the_true_entropy_and_topk_is_the_reference(k):
    p = distributions(k)
    found = entropy.entropy_bounds(np.log(p[:, :k]), 60)
    for row, low, high, top, tail in zip(p, found.low, found.high, found.topk, found.tail):
        assert low - 1e-9 <= reference(row) <= high + 1e-9
        assert top == pytest.approx(reference(row[:k] / row[:k].sum()), abs=1e-9)
        assert tail == pytest.approx(row[k:].sum(), abs=1e-9)
    if k == 60:
        np.testing.assert_allclose(found.low, found.high, atol=1e-9)


def test_bounds_are_attained():
    """The even tail has the upper bound, the packed tail the lower one."""
    even = [0.5, 0.3, *[0.2 / 8] * 8]
    packed = [0.5, 0.06, *[0.06] * 7, 0.02]
    assert entropy.entropy_bounds(np.log([even[:2]]), 10).high[0] == pytest.approx(reference(even))
    assert entropy.entropy_bounds(np.log([packed[:2]]), 10).low[0] == pytest.approx(reference(packed))


def test_without_the_size_of_the_vocabulary_there_is_no_upper_bound_unless_nothing_is_missing():
    found = entropy.entropy_bounds(np.log([[0.5, 0.4], [0.5, 0.5]]))
    assert found.high[0] == math.inf
    assert found.high[1] == pytest.approx(math.log(2))


def test_a_steps_entropy_combines_those_of_its_decision_tokens():
    sure, fair = {"ls": math.log(0.98), "cat": math.log(0.02)}, {"x": math.log(0.4), "y": math.log(0.4)}
    parts = [reference([0.98, 0.02]), math.log(2)]
    want = {"max": max(parts), "mean": sum(parts) / 2, "first": parts[0], "sum": sum(parts)}
    for how, expected in want.items():
        assert entropy.decision_entropy((sure, fair), how) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(entropy.combine([]))
    with pytest.raises(SettingsError, match="must be one of"):
        entropy.combine([1.0], "median")


@pytest.mark.parametrize("decision", [(), ({},), ({"a": -math.inf},)])
def test_a_server_without_log_probabilities_is_an_error_that_says_what_to_do(decision):
    with pytest.raises(SearchError, match="gate on votes"):
        entropy.decision_entropy(decision)


@pytest.mark.parametrize("value", [math.nan, 0.5])
def test_log_probabilities_that_are_none_are_an_error(value):
    with pytest.raises(SearchError, match="that are none"):
        entropy.decision_entropy(({"a": value},))


def test_the_chain_rule_sums_to_the_entropy_of_the_words_together():
    """Two tokens, the second depending on the first: the mean of `sum` over samples is the joint entropy."""
    first, then = [0.7, 0.3], [[0.9, 0.1], [0.5, 0.5]]
    joint = reference([p * q for p, row in zip(first, then) for q in row])
    logs = [{str(i): math.log(p) for i, p in enumerate(row)} for row in (first, *then)]
    mean = sum(p * entropy.decision_entropy((logs[0], logs[1 + i]), "sum") for i, p in enumerate(first))
    assert mean == pytest.approx(joint, abs=1e-12)


@pytest.mark.parametrize(("baseline", "expected"), [("none", 1.5), ("mean", 1.0), ("initial", 1.3)])
def test_relative_to_the_steps_before(baseline, expected):
    assert entropy.relative(1.5, [0.2, math.nan, 0.8], baseline) == pytest.approx(expected)


def test_the_first_step_has_no_rise():
    assert entropy.relative(1.5, [], "mean") == 0.0
    assert entropy.relative(1.5, [math.nan], "initial") == 0.0
    assert math.isnan(entropy.relative(math.nan, [], "mean"))
    with pytest.raises(SettingsError, match="Did you mean 'mean'"):
        entropy.relative(1.0, [], "means")
