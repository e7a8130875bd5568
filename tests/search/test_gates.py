"""Gates: how often they fire, and that nothing but the step decides."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.errors import SearchError, SettingsError
from hesnr_tasks.search import gates
from hesnr_tasks.search.entropy import vote_entropy
from hesnr_tasks.search.gates import Budget, StepState


def rate(gate, values):
    return np.mean([bool(gate(StepState(f"task/{i}", value))) for i, value in enumerate(values)])


def test_never_and_always_look_at_nothing():
    steps = [StepState(str(i)) for i in range(50)]  # no entropy
    assert not any(map(gates.Never(), steps))
    assert all(map(gates.Always(), steps))
    assert not gates.Never().signal
    assert not gates.Always().signal


def test_a_decision_is_true_iff_it_is_to_fork_and_says_why():
    assert bool(gates.Decision(False, "x")) is False
    assert gates.Threshold(1.0)(StepState("a", 1.5)).reason == "entropy 1.5000 > 1.0000"


@given(st.lists(st.floats(0, 2.3), min_size=1, max_size=80, unique=True), st.floats(0, 1))
def test_a_calibrated_gate_fires_at_the_share_asked_for(values, quantile):
    """Distinct values: to one step, with a coin for the step at the threshold."""
    fired = rate(gates.calibrate(values, quantile), values) * len(values)
    assert abs(fired - (1 - quantile) * len(values)) <= 1 + 1e-6


def test_the_rate_is_exact_where_a_whole_number_of_steps_is_asked_for():
    values = np.random.default_rng(0).permutation(200) / 100
    for quantile in (0.0, 0.5, 0.8, 0.9, 0.99, 1.0):
        gate = gates.calibrate(values, quantile)
        assert rate(gate, values) == pytest.approx(1 - quantile, abs=1e-12)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8, 0.9])
def test_votes_have_few_values_and_a_coin_at_the_threshold_makes_up_for_it(quantile):
    rng = np.random.default_rng(1)
    values = [vote_entropy(rng.choice(4, 4, p=[0.7, 0.1, 0.1, 0.1]).tolist()) for _ in range(4_000)]
    gate = gates.calibrate(values, quantile)
    assert gate.tie > 0
    assert rate(gate, values) == pytest.approx(1 - quantile, abs=0.025)


def test_without_a_value_nothing_is_calibrated():
    with pytest.raises(SearchError, match="no step with an entropy"):
        gates.calibrate([math.nan], 0.9)
    with pytest.raises(SettingsError, match="quantile"):
        gates.calibrate([1.0], 90)


def test_nan_in_the_data_takes_no_part_and_at_a_step_is_an_error():
    assert gates.calibrate([math.nan, 1.0, 2.0], 0.5) == gates.calibrate([1.0, 2.0], 0.5)
    for gate in (gates.Threshold(1.0), gates.Relative(0.1)):
        with pytest.raises(SearchError, match="task/3"):
            gate(StepState("task/3"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_random_fires_at_its_rate_whatever_the_entropy(share):
    gate = gates.Random(share)
    assert rate(gate, itertools.repeat(math.nan, 20_000)) == pytest.approx(share, abs=0.01)


def test_random_depends_on_seed_and_step_alone():
    steps = [StepState(f"django-1/{i}", entropy=i) for i in range(200)]
    one = [bool(gates.Random(0.5, 7)(step)) for step in steps]
    again = {step.id: bool(gates.Random(0.5, 7)(StepState(step.id, forks=9))) for step in reversed(steps)}
    other = [bool(gates.Random(0.5, 8)(step)) for step in steps]
    assert one == [again[step.id] for step in steps]
    assert 60 < sum(a != b for a, b in zip(one, other)) < 140


def test_the_budget_stops_forks_and_tokens():
    gate = Budget(gates.Always(), forks=3, tokens=1_000)
    assert [bool(gate(StepState("s", forks=n))) for n in range(5)] == [True, True, True, False, False]
    assert [bool(gate(StepState("s", tokens=n))) for n in (0, 999, 1_000)] == [True, True, False]
    assert "3 of 3 forks" in gate(StepState("s", forks=3)).reason
    assert Budget(gates.Threshold(1)).signal
    assert not Budget(gates.Never()).signal
    spent = 0
    for i in range(40):
        spent += bool(gate(StepState(str(i), forks=spent)))
    assert spent == 3


def test_relative_looks_at_the_rise():
    gate = gates.Relative(0.5)
    assert not gate(StepState("s", 2.0))  # nothing to compare with
    assert gate(StepState("s", 2.0, history=(1.0, 1.2)))
    assert not gate(StepState("s", 2.0, history=(1.9, 1.8)))
    assert gates.Relative(0.5, "initial")(StepState("s", 2.0, history=(1.0, 1.9)))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("never", gates.Never()),
        ("always", gates.Always()),
        ("random:0.25", gates.Random(0.25, 5)),
        ("threshold:1.04", gates.Threshold(1.04, seed=5)),
        ("relative:0.5", gates.Relative(0.5)),
        ("relative:0.5:initial", gates.Relative(0.5, "initial")),
    ],
)
def test_gates_have_names(word, expected):
    assert gates.gate_of(word, seed=5) == expected


@pytest.mark.parametrize(
    "word", ["nevr", "random", "random:x", "random:2", "quantile:0.9", "relative:1:median", "never:1", ""]
)
def test_a_gate_that_is_none_is_an_error(word):
    with pytest.raises(SettingsError):
        gates.gate_of(word)
