"""The estimator against exact binomials, other implementations' formulas and enumeration."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.passk import pass_at_k, pass_at_ks, powers


def cases(n_max):
    return [(n, c, k) for n in range(1, n_max + 1) for c in range(n + 1) for k in range(1, n + 1)]


def test_all_small_cases_equal_exact_binomials():
    for n, c, k in cases(12):
        exact = 1 - Fraction(comb(n - c, k), comb(n, k))
        assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-14, abs=0), (n, c, k)
        assert (pass_at_k(n, c, k) == 1) is (exact == 1)


def test_it_is_the_share_of_subsets_that_hold_a_right_answer():
    for n, c, k in cases(7):
        subsets = [any(i < c for i in subset) for subset in itertools.combinations(range(n), k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(subsets) / len(subsets), rel=1e-14)


def humaneval(n, c, k):
    """The numpy form published with HumanEval."""
    return 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))


def cruxeval(n, c, k):
    """The loop that CRUXEval's harness uses."""
    if n - c < k:
        return 1.0
    product = 1.0
    for i in range(n - c + 1, n + 1):
        product *= 1.0 - k / i
    return 1.0 - product


@pytest.mark.parametrize("formula", [humaneval, cruxeval])
def test_other_implementations_formulas(formula):
    for n, c, k in [*cases(12), (200, 3, 100), (256, 1, 7), (1000, 17, 900), (4096, 2, 1)]:
        assert pass_at_k(n, c, k) == pytest.approx(formula(n, c, k), abs=1e-13)


def test_pass_at_one_is_the_share_of_right_answers_to_the_last_bit():
    for n in range(1, 200):
        assert pass_at_ks([n] * (n + 1), range(n + 1), [1])[:, 0].tolist() == [c / n for c in range(n + 1)]


def test_small_values_keep_their_digits():
    exact = 1 - Fraction(comb(10**6 - 1, 3), comb(10**6, 3))
    assert pass_at_k(10**6, 1, 3) == pytest.approx(float(exact), rel=1e-15)


counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@given(counts)
def test_it_rises_with_k_and_with_c(case):
    n, c = case
    ks = list(range(1, n + 1))
    values = pass_at_ks([n], [c], ks)[0]
    assert (np.diff(values) >= 0).all()
    assert ((values >= 0) & (values <= 1)).all()
    if c < n:
        assert (pass_at_ks([n], [c + 1], ks)[0] >= values - 1e-14).all()


@given(st.lists(counts, min_size=1, max_size=20), st.integers(1, 5))
def test_many_problems_at_once_equal_one_at_a_time(problems, k):
    problems = [(max(n, k), c) for n, c in problems]
    n, c = zip(*problems)
    assert pass_at_ks(n, c, [k])[:, 0].tolist() == [pass_at_k(*problem, k) for problem in problems]


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_what_cannot_be_is_an_error(n, c, k):
    with pytest.raises(SettingsError):
        pass_at_k(n, c, k)


def test_powers_end_with_n():
    assert [powers(n) for n in (0, 1, 2, 6, 8)] == [[], [1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
