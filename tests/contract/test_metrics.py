"""Every registered metric against plain float64 loops, and the properties that any metric must have.

A new metric needs one more line in tests/reference/metrics.py, and passes everything here.
"""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.metrics import (
    EPSILON,
    METRICS,
    TokenColumns,
    TrajectorySums,
    cell_sums,
    describe_metrics,
    evaluate,
    measure,
    metric,
    token_bytes,
    topk_entropy,
    unregister,
)
from hesnr_tasks.stats import SEED, Scale
from tests.reference import metrics as reference

VOCABULARY = 30
numbers = pytest.mark.numbers


@pytest.fixture(params=METRICS)
def name(request):
    return request.param


def columns(logits, targets, sizes, k=10):
    """Token columns of float64 logits, by numpy and independent of the reference."""
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    rows = np.arange(len(targets))
    top = -np.sort(-logs, axis=1)[:, :k]
    rank = 1 + (logits > logits[rows, targets][:, None]).sum(axis=1)
    p = -np.sort(-np.exp(logs), axis=1)
    return TokenColumns.of(
        logs[rows, targets],
        rank.astype(np.int32),
        top,
        k,
        sizes.astype(float),
        full_entropy=-(p * np.log(p)).sum(axis=1),
        expected_rank=p @ np.arange(1, VOCABULARY + 1),
        frequency=1.0 + targets % 5,
        kinds=np.where(sizes % 2 == 0, 2, 16).astype(np.uint8),
        turn=np.arange(len(targets), dtype=np.int32) // 3,
        trajectory=np.zeros(len(targets), dtype=np.int64),
        short_logprob=logs[rows, targets] - 0.3 * (sizes - 4),
        hidden=(targets % 7).astype(float),
        key=(targets % 3 - 1).astype(np.int8),
        teacher=np.where(targets % 11 == 0, np.nan, sizes / 10),
        reference_decision=targets % 2 == 0,
    )


def joined(data):
    """The columns of several trajectories, and the trajectory of each token."""
    tokens = columns(*(np.concatenate(part) for part in zip(*data)))
    cell = np.repeat(np.arange(len(data)), [len(targets) for _, targets, _ in data])
    turn = np.concatenate([np.arange(len(targets)) // 3 for _, targets, _ in data]).astype(np.int32)
    return replace(tokens, trajectory=cell, turn=turn), cell


@st.composite
def trajectories(draw):
    """A few trajectories of (logits, targets, bytes), with flat, peaked and tied rows; some are empty."""
    seed, count = draw(st.integers(0, 2**31)), draw(st.integers(1, 5))
    scale, digits = draw(st.sampled_from([0.0, 0.3, 1.0, 4.0, 20.0])), draw(st.sampled_from([1, 9]))
    return [random_trajectory(np.random.default_rng([seed, i]), scale, digits) for i in range(count)]


def random_trajectory(rng, scale=0.6, digits=9, n=None):
    n = int(rng.integers(0, 12)) if n is None else n
    logits = np.round(rng.normal(0, scale, (n, VOCABULARY)), digits)
    return logits, rng.integers(0, VOCABULARY, n), rng.integers(1, 9, n)


def sums_of(data, epsilon=EPSILON):
    """The sums of each trajectory, from a pass over its own tokens, as lm-eval's tasks make them."""
    rows = [TrajectorySums.of(columns(*trajectory), epsilon, metrics=tuple(METRICS)) for trajectory in data]
    return TrajectorySums(np.concatenate([row.values for row in rows]), rows[0].names)


def estimates(sums, names=None, resamples=100, seed=1, min_tokens=0):
    """Values with errors over all trajectories."""
    options = {"resamples": resamples, "seed": seed, "min_tokens": min_tokens}
    return measure(sums[None], np.ones(len(sums), np.int64), tuple(METRICS) if names is None else names, **options)[0]


def estimates_of(data, epsilon=EPSILON, **options):
    """The same, from the tokens."""
    return estimates(sums_of(data, epsilon), **options)


def reference_tokens(data, k=10):
    return [
        [
            reference.Token(
                *reference.token(row.tolist(), int(target), k),
                int(size),
                reference.candidates(row.tolist(), k),
                *reference.of_the_vocabulary(row.tolist()),
                frequency=1 + int(target) % 5,
                kind="observation" if size % 2 == 0 else "action",
                turn=i // 3,
                short_logprob=reference.token(row.tolist(), int(target), k)[0] - 0.3 * (int(size) - 4),
                hidden=int(target) % 7,
                key=int(target) % 3 - 1,
                teacher=math.nan if target % 11 == 0 else int(size) / 10,
                reference_decision=target % 2 == 0,
            )
            for i, (row, target, size) in enumerate(zip(*trajectory))
        ]
        for trajectory in data
    ]


# --- every metric -----------------------------------------------------------------------------------------------------


@numbers
@given(data=trajectories(), epsilon=st.sampled_from([EPSILON, 0.5, math.log(2), 2.0]))
@settings(max_examples=60)
def test_every_metric_equals_the_plain_loop(data, epsilon):
    expected = reference.everything(reference_tokens(data), epsilon)
    for name, estimate in estimates_of(data, epsilon=epsilon).items():
        assert estimate.value == pytest.approx(expected[name], rel=1e-9, abs=1e-12, nan_ok=True), name


@numbers
@given(data=trajectories(), random=st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_the_order_of_trajectories_changes_no_bit_of_a_value_and_that_of_tokens_no_digit(data, random):
    shuffled = estimates_of(random.sample(data, len(data)))
    turned = estimates_of([tuple(column[::-1] for column in trajectory) for trajectory in data])
    for name, estimate in estimates_of(data).items():
        needs = METRICS[name].needs
        if "trajectory" in needs and name not in ("ppl_forking", "top1_forking"):
            continue  # windows and turns have an order
        assert repr(estimate.value) == repr(shuffled[name].value)
        assert turned[name].value == pytest.approx(estimate.value, rel=1e-12, nan_ok=True)


@numbers
@given(data=trajectories())
@settings(max_examples=40)
def test_sums_add_up_over_trajectories(data):
    """The sums of a text in two parts are those of the whole, of every statistic."""
    joint = TrajectorySums.of(columns(*(np.concatenate(part) for part in zip(*data))))
    parts = [TrajectorySums.of(columns(*trajectory)) for trajectory in data]
    assert sum(part.values for part in parts) == pytest.approx(joint.values, rel=1e-12, abs=1e-12)


def test_without_tokens_a_ratio_is_nan_and_a_total_0(name):
    estimate = estimates(of_random(0, 0, 0), [name])[name]
    assert estimate.value == 0 if METRICS[name].denominator is None else math.isnan(estimate.value)
    assert math.isnan(estimate.stderr)


@cache
def of_random(*lengths, epsilon=0.5):
    """The sums of random trajectories of so many tokens."""
    return sums_of([random_trajectory(np.random.default_rng(i), n=n) for i, n in enumerate(lengths)], epsilon)


def test_over_fewer_tokens_than_the_floor_a_ratio_is_withheld(name):
    sums = of_random(20, 20, 20, 20)
    tokens = int(sums.counted(name).sum())
    total = METRICS[name].denominator is None
    for floor, withheld in ((tokens, False), (tokens + 1, not total)):
        estimate = estimates(sums, [name], min_tokens=floor)[name]
        assert math.isnan(estimate.value) == withheld
        assert math.isnan(estimate.stderr) == (withheld or total)


def test_a_missing_column_makes_a_metric_nan_not_wrong(name):
    tokens = columns(*random_trajectory(np.random.default_rng(3), n=40))
    without = TokenColumns(tokens.logprob, tokens.rank, tokens.entropy)
    values = [
        evaluate(METRICS[name], *(part.sum() for part in TrajectorySums.of(t, metrics=tuple(METRICS)).parts(name)))
        for t in (tokens, without)
    ]
    assert math.isnan(values[1]) == bool(METRICS[name].needs)
    assert METRICS[name].needs or values[0] == values[1]


@numbers
def test_errors_equal_a_plain_loop_over_resamples(name):
    if METRICS[name].denominator is None:
        return
    estimates, resamples = of_four_trajectories()
    assert estimates[name].stderr == pytest.approx(reference.error(resamples, name), rel=1e-9)


@cache
def of_four_trajectories():
    """Each metric, and each metric of 200 resamples by the plain loop."""
    data = [random_trajectory(np.random.default_rng(n), n=n) for n in (16, 29, 14, 31)]
    rng = np.random.default_rng(77)
    draws = [rng.integers(0, 4, size=4).tolist() for _ in range(200)]
    return estimates_of(data, resamples=200, seed=77), reference.resampled(reference_tokens(data), draws, EPSILON)


def test_many_settings_at_once_are_each_alone(name):
    """`measure` over several thresholds, with a text that counts twice, gives what each gives alone."""
    joint, alone = of_six_trajectories()
    lines = measure(joint, np.array([1, 2, 1, 1, 0, 1]), [name], resamples=300)
    for sums, line in zip(alone, lines):
        assert line[name] == pytest.approx(estimates(sums, [name], 300, SEED)[name], rel=1e-12, nan_ok=True)
        assert not line[name].ci_low > line[name].value > line[name].ci_high


@cache
def of_six_trajectories():
    """Their sums for three thresholds at once; for each alone, with the second twice and without the fifth."""
    data = [random_trajectory(np.random.default_rng(i), n=20 + i) for i in range(6)]
    tokens, cell = joined(data)
    epsilons = [1.9, 0.5, EPSILON]
    sums = cell_sums(tokens, cell, 6, epsilons, metrics=tuple(METRICS))
    return sums, [sums_of([data[i] for i in (0, 1, 1, 2, 3, 5)], epsilon) for epsilon in epsilons]


def test_windows_end_where_a_trajectory_does(monkeypatch):
    """Trajectories longer than the windows, which are made short for it."""
    from hesnr_tasks.metrics import definitions

    monkeypatch.setattr(definitions, "RECENT", 7)
    monkeypatch.setattr(definitions, "_GROUP", 5)
    data = [random_trajectory(np.random.default_rng(i), n=n) for i, n in enumerate((29, 4, 0, 16))]
    tokens, cell = joined(data)
    sums = cell_sums(tokens, cell, 4, metrics=tuple(METRICS))[0]
    expected = reference.of_trajectories(reference_tokens(data), recent=7, window=5)
    for name, value in expected.items():
        parts = (part.sum() for part in sums.parts(name))
        assert float(evaluate(METRICS[name], *parts)) == pytest.approx(value, rel=1e-9), name


# --- registration -----------------------------------------------------------------------------------------------------


def test_a_metric_is_one_function():
    """Registered, it is in the sums; a macro-average is the mean of the trajectories' own ratios."""

    @metric("surprise", better="down", unit="nats", average="macro", scale=Scale.POSITIVE)
    def surprise(tokens):
        return -tokens.logprob

    try:
        data = [random_trajectory(np.random.default_rng(i), n=n) for i, n in enumerate((4, 0, 9))]
        expected = np.mean([-np.mean([t[0] for t in tokens]) for tokens in reference_tokens(data) if tokens])
        assert estimates_of(data)["surprise"].value == pytest.approx(expected, rel=1e-12)
        with pytest.raises(ValueError, match="registered already"):
            metric("surprise")(surprise)
        with pytest.raises(ValueError, match="better='higher'"):
            metric("other", better="higher")
    finally:
        unregister("surprise")
    assert "surprise" not in TrajectorySums.of(columns(*data[0])).names


def test_the_documentation_lists_every_metric():
    """Made by: python -c "from hesnr_tasks.metrics import describe_metrics as d; print(d())"."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    assert describe_metrics() in page


# --- the pieces -------------------------------------------------------------------------------------------------------


@numbers
@given(data=trajectories())
@settings(max_examples=60)
def test_bounds(data):
    for trajectory in data:
        entropy = columns(*trajectory).entropy
        assert ((entropy >= 0) & (entropy <= math.log(10))).all()
    snr = estimates_of(data)["he_snr"].value
    assert math.isnan(snr) or 0 <= snr <= 1 / EPSILON


@numbers
def test_entropy_of_equally_likely_candidates_is_ln_k():
    """Lemma 4.1: the bound is reached iff the candidates are equally likely."""
    for k in (2, 3, 4, 10):
        logs = np.full((1, 10), -np.inf)
        logs[0, :k] = math.log(0.5 / k)
        assert topk_entropy(logs, 10)[0] == pytest.approx(math.log(k), abs=1e-12)


def test_a_huge_nll_overflows_to_infinity_without_a_warning():
    assert evaluate(METRICS["ppl"], 1e6, 1.0) == math.inf


def test_one_trajectory_has_no_error():
    assert math.isnan(estimates_of([random_trajectory(np.random.default_rng(0), n=40)])["ppl"].stderr)


def test_a_rank_beyond_the_candidates_is_a_hit_nowhere_and_unknown_above_them():
    """A backend that returns only the top k: the token is in no top-j of theirs, and not in 𝓗; above, nobody knows."""
    flat = np.full((40, 5), math.log(0.1), dtype=np.float32)
    rank = np.random.default_rng(0).integers(1, 6, 40).astype(np.int32)
    unknown = rank.copy()
    unknown[7] = 0
    before, after = (TrajectorySums.of(TokenColumns.of(flat[:, 0], r, flat, 5), k=5) for r in (rank, unknown))
    for name in before.names:
        a, b = float(before.column(name)[0]), float(after.column(name)[0])
        if name == "top10_acc":
            assert math.isnan(b)
        elif name.startswith("top"):
            assert b == a - (rank[7] <= int(name[3]))
        elif name in ("he_tokens", "density"):
            assert b == a - 1
        elif name in ("tokens", "ppl", "entropy"):
            assert b == pytest.approx(a)
        assert not math.isnan(a) or name.startswith("bpb")


def test_bytes_of_tokens_add_up_to_the_text_and_shared_characters_count_once():
    text = "naïve 😀 x"
    start, end = np.array([0, 2, 3, 6, 6, 7]), np.array([2, 3, 6, 7, 7, 9])  # two tokens are parts of the emoji
    assert token_bytes(text, start, end).tolist() == [2, 2, 3, 4, 0, 2]
    assert token_bytes(text, start, end).sum() == len(text.encode())
    assert token_bytes("", start[:0], end[:0]).tolist() == []
