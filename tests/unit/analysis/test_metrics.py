"""The metrics against plain float64 loops, and their properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.backends.base import Scores
from hesnr_tasks.metrics import EPSILON, METRICS, SUMS, evaluate, statistics_of, topk_entropy
from hesnr_tasks.results import Item, aggregate, aggregate_error
from tests.reference import metrics as reference

VOCABULARY = 30


def scored(logits, targets, k=10):
    """Scores of float64 logits, by numpy and independent of the reference."""
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    rows = np.arange(len(targets))
    order = np.argsort(-logs, axis=1, kind="stable")[:, :k]
    rank = 1 + (logits > logits[rows, targets][:, None]).sum(axis=1)
    return Scores(
        logs[rows, targets].astype(np.float64),
        rank.astype(np.int32),
        np.take_along_axis(logs, order, axis=1),
        order.astype(np.int32),
    )


@st.composite
def trajectories(draw):
    """A few trajectories of logits with flat, peaked and tied rows."""
    seed, count = draw(st.integers(0, 2**31)), draw(st.integers(1, 5))
    scale = draw(st.sampled_from([0.0, 0.3, 1.0, 4.0, 20.0]))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        n = int(rng.integers(0, 12))
        logits = np.round(rng.normal(0, scale, (n, VOCABULARY)), draw(st.sampled_from([1, 9])))
        found.append((logits, rng.integers(0, VOCABULARY, n)))
    return found


def items_of(found, name, epsilon=EPSILON, k=10):
    metric, items = METRICS[name], []
    for i, (logits, targets) in enumerate(found):
        sums = dict(zip(SUMS, statistics_of(scored(logits, targets, k), np.ones(len(targets), bool), epsilon, k)))
        items.append(Item(f"{i:03d}", sums[metric.numerator], sums.get(metric.denominator or "", 1.0), 0))
    return items


def tokens_of(found, k=10):
    return [[reference.token(row.tolist(), int(t), k) for row, t in zip(*one)] for one in found]


@given(trajectories(), st.sampled_from([EPSILON, 0.5, math.log(2), 2.0]))
@settings(max_examples=60, deadline=None)
def test_every_metric_equals_the_reference(found, epsilon):
    expected = reference.metrics([t for one in tokens_of(found) for t in one], epsilon)
    for name in METRICS:
        got = aggregate(METRICS[name], items_of(found, name, epsilon))
        assert got == pytest.approx(expected[name], rel=1e-9, abs=1e-12, nan_ok=True), name


@given(trajectories(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_trajectories_changes_no_bit(found, random):
    for name in METRICS:
        items = items_of(found, name)
        shuffled = random.sample(items, len(items))
        assert repr(aggregate(METRICS[name], items)) == repr(aggregate(METRICS[name], shuffled))
        assert repr(aggregate_error(METRICS[name], items, 100, 1)) == repr(
            aggregate_error(METRICS[name], shuffled, 100, 1)
        )


@given(trajectories())
@settings(max_examples=60, deadline=None)
def test_bounds(found):
    for logits, targets in found:
        entropy = topk_entropy(scored(logits, targets).topk_logprobs, 10)
        assert ((entropy >= 0) & (entropy <= math.log(10))).all()
    snr = aggregate(METRICS["he_snr"], items_of(found, "he_snr"))
    assert math.isnan(snr) or 0 <= snr <= 1 / EPSILON


def test_entropy_of_equally_likely_candidates_is_ln_k():
    """Lemma 4.1: the bound is reached iff the candidates are equally likely."""
    for k in (2, 3, 4, 10):
        logs = np.full((1, 10), -np.inf)
        logs[0, :k] = math.log(0.5 / k)
        assert topk_entropy(logs, 10)[0] == pytest.approx(math.log(k), abs=1e-12)


def test_bootstrap_errors_equal_a_plain_loop():
    rng = np.random.default_rng(5)
    found = [(rng.normal(0, 0.6, (n, VOCABULARY)), rng.integers(0, 4, n)) for n in (6, 9, 4, 11)]
    tokens = tokens_of(found)
    for name in ("he_snr", "he_ppl", "ppl", "top2_acc", "entropy"):
        rng = np.random.default_rng(77)
        draws = [rng.integers(0, 4, size=4).tolist() for _ in range(200)]
        expected = reference.bootstrap(tokens, name, draws, EPSILON)
        assert aggregate_error(METRICS[name], items_of(found, name), 200, 77) == pytest.approx(expected, rel=1e-9), name


def test_nothing_counted_is_nan_never_zero():
    for name in ("he_snr", "he_ppl", "ppl", "top1_acc", "entropy"):
        assert math.isnan(aggregate(METRICS[name], [Item("a", 0.0, 0.0, 0)])), name


def test_a_huge_nll_overflows_to_infinity_without_a_warning():
    assert evaluate(METRICS["ppl"], np.float64(1e6), np.float64(1.0)) == math.inf


def test_one_trajectory_has_no_error():
    assert aggregate_error(METRICS["ppl"], [Item("a", 1.0, 2.0, 0)], 100, 1) == "N/A"


def test_a_rank_beyond_the_candidates_is_not_a_hit():
    """Backends that know only the top k say 0; that token is in no top-j and not in the decision set."""
    flat = np.full((1, 10), math.log(0.05), dtype=np.float32)
    scores = Scores(np.array([-4.0], np.float32), np.array([0], np.int32), flat, np.zeros((1, 10), np.int32))
    sums = dict(zip(SUMS, statistics_of(scores, np.ones(1, bool))))
    assert sums["tokens"] == 1
    assert sums["top10"] == sums["he_tokens"] == 0
