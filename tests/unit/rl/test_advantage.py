"""The pure function: against a loop, and the promises its docstring makes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.errors import ScoringError, SettingsError
from hesnr_tasks.rl import LexiconPivotal, entropy_shaped_advantage, shape
from tests import tiny
from tests.reference import shaping as reference

__all__ = []

SIZES = [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1), (1, 1)]


def case(rows, columns, *, per_token=False, dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    size = (rows, columns) if per_token else (rows,)
    advantages = torch.randn(size, generator=make, dtype=torch.float64).to(dtype)
    entropies = (torch.rand(rows, columns, generator=make, dtype=torch.float64) * 4).to(dtype)
    return advantages, entropies, torch.rand(rows, columns, generator=make) < 0.7


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("alpha", "kappa"), [(0.4, 2.0), (0.1, 2.0), (3.0, 1.01), (0.0, 2.0)])
def test_equals_the_loop_also_where_sequences_and_tokens_are_equally_many(size, per_token, alpha, kappa):
    advantages, entropies, mask = case(*size, per_token=per_token)
    expected = reference.shaped(advantages.tolist(), entropies.tolist(), mask.tolist(), alpha, kappa)
    actual = entropy_shaped_advantage(advantages, entropies, mask, alpha, kappa)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_one_advantage_per_sequence_goes_along_the_tokens_of_its_own_row():
    shaped = entropy_shaped_advantage(torch.tensor([1.0, -2.0]), torch.zeros(2, 2), torch.ones(2, 2))
    assert shaped.tolist() == [[1.0, 1.0], [-2.0, -2.0]]


def test_known_values_on_both_branches():
    shaped = entropy_shaped_advantage(
        torch.tensor([1.0, -1.0]), torch.tensor([[0.25, 9.0], [0.25, 9.0]]), torch.ones(2, 2), alpha=0.4, kappa=2
    )
    torch.testing.assert_close(shaped, torch.tensor([[1.1, 1.5], [-0.9, -0.5]]))


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=150)
@given(
    advantages=st.lists(numbers, min_size=1, max_size=4),
    entropy=st.floats(0, 1e4, width=32),
    alpha=st.floats(0, 1e6),
    kappa=st.floats(1, 1e6, exclude_min=True),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_sign_never_flips_nor_becomes_zero(advantages, entropy, alpha, kappa, dtype):
    given_ones = torch.tensor(advantages, dtype=torch.float64).clamp(-6e4, 6e4).to(dtype)
    entropies = torch.full((len(advantages), 3), entropy, dtype=torch.float32)
    shaped = entropy_shaped_advantage(given_ones, entropies, torch.ones(len(advantages), 3), alpha, kappa)
    assert shaped.dtype == dtype
    assert torch.equal(torch.sign(shaped), torch.sign(given_ones)[:, None].expand_as(shaped))
    assert torch.all(shaped >= given_ones[:, None])


@pytest.mark.parametrize(
    ("value", "kappa", "dtype"),
    [(-6e-8, 1.5, torch.float16), (-1e-45, 1.5, torch.float32), (-1.0, 1 + 1e-12, torch.float32)],
)
def test_where_rounding_would_make_it_zero_the_advantage_stays(value, kappa, dtype):
    advantages = torch.tensor([value], dtype=dtype)
    naive = (advantages.float() + advantages.float().abs() / kappa).to(dtype)
    assert naive.item() == 0
    assert torch.equal(
        entropy_shaped_advantage(advantages, torch.full((1, 1), 9.0), torch.ones(1, 1), 5, kappa), advantages[:, None]
    )


@settings(max_examples=50)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), seed=st.integers(0, 10_000), alpha=st.floats(0, 5))
def test_tokens_outside_the_mask_keep_every_bit_whatever_stands_there(rows, columns, seed, alpha):
    advantages, entropies, mask = case(rows, columns, per_token=True, dtype=torch.float32, seed=seed)
    entropies[~mask] = torch.tensor([math.nan, math.inf, -math.inf, -5.0, 1e30])[: (~mask).sum() % 5 or 5].repeat(16)[
        : (~mask).sum()
    ]
    shaped = entropy_shaped_advantage(advantages, entropies, mask, alpha)
    assert torch.equal(shaped[~mask].view(torch.int32), advantages[~mask].view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_alpha_zero_returns_every_bit_also_of_minus_zero(dtype):
    advantages = torch.tensor([-0.0, 0.0, -1e-7, 3.14159, -2.71828, math.inf], dtype=dtype)
    shaped = entropy_shaped_advantage(advantages, torch.rand(6, 4), torch.ones(6, 4), alpha=0)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[advantages.element_size()]
    assert torch.equal(shaped.view(bits), advantages[:, None].expand(6, 4).contiguous().view(bits))


def test_no_gradient_through_the_bonus_and_plain_gradient_through_the_advantage():
    logits = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([0.7, -1.3], dtype=torch.float64, requires_grad=True)
    logp = torch.log_softmax(logits, -1)
    entropies = -(logp.exp() * logp).sum(-1)
    shaped = entropy_shaped_advantage(advantages, entropies, torch.ones(2, 3))
    (shaped * torch.tensor([[1.0], [2.0]])).sum().backward()
    assert logits.grad is None
    assert advantages.grad.tolist() == [3.0, 6.0]


def test_the_gradient_of_a_policy_loss_is_that_with_constant_weights():
    """gradcheck sees the true derivative, entropies included: they must enter as constants."""
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weights = entropy_shaped_advantage(
        torch.tensor([1.0, -1.0], dtype=torch.float64),
        torch.distributions.Categorical(logits=logits).entropy(),
        torch.ones(2, 3),
    )
    assert not weights.requires_grad

    def loss(values):
        return -(weights * torch.log_softmax(values, -1)[..., 0]).sum()

    assert torch.autograd.gradcheck(loss, (logits,))
    probabilities = torch.softmax(logits.detach(), -1)
    chosen = torch.zeros_like(probabilities)
    chosen[..., 0] = 1
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    torch.testing.assert_close(gradient, -weights[..., None] * (chosen - probabilities))


def test_bfloat16_is_computed_in_float32_and_under_autocast_alike():
    advantages, entropies, mask = case(3, 4, dtype=torch.bfloat16)
    wide = entropy_shaped_advantage(advantages.float(), entropies.float(), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shaped = shape(advantages, entropies, mask)
    assert shaped.bonus.dtype == torch.float32
    assert torch.equal(shaped.advantages, wide.bfloat16())


def test_rounding_below_zero_counts_as_zero():
    shaped = entropy_shaped_advantage(torch.tensor([-1e-3]), torch.tensor([[-0.25, -1e-6]]), torch.ones(1, 2))
    assert torch.equal(shaped, torch.full((1, 2), -1e-3))


def test_counts_only_tokens_with_an_advantage_inside_the_mask():
    entropies = torch.tensor([[9.0, 0.1, 9.0], [9.0, 9.0, 9.0]])
    result = shape(torch.tensor([1.0, 0.0]), entropies, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert result.counted.tolist() == [[True, True, False], [False, False, False]]
    assert result.capped.tolist() == [[True, False, False], [False, False, False]]
    torch.testing.assert_close(result.bonus, torch.tensor([[0.5, 0.04, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(result.relative, torch.tensor([[0.5, 0.04, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("kappa", [1.0, 0.5, 0.0, -2.0, math.nan])
def test_kappa_of_one_or_less_is_refused_and_told_why(kappa):
    with pytest.raises(SettingsError, match=r"greater than 1.*negative advantage could become 0 or positive"):
        entropy_shaped_advantage(torch.ones(1), torch.ones(1, 1), torch.ones(1, 1), kappa=kappa)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_alpha_must_be_a_finite_number_not_below_zero(alpha):
    with pytest.raises(SettingsError, match="alpha is"):
        entropy_shaped_advantage(torch.ones(1), torch.ones(1, 1), torch.ones(1, 1), alpha=alpha)


@pytest.mark.parametrize(
    ("advantages", "entropies", "mask"),
    [((3,), (2, 3), (2, 3)), ((2, 1), (2, 3), (2, 3)), ((1, 3), (2, 3), (2, 3)), ((), (2, 3), (2, 3)),
     ((2,), (2,), (2,)), ((2,), (2, 3), (2, 2)), ((2,), (2, 3), (3,))],
)  # fmt: skip
def test_shapes_that_broadcasting_would_bend_are_refused(advantages, entropies, mask):
    with pytest.raises(SettingsError, match="shape"):
        entropy_shaped_advantage(torch.ones(advantages), torch.ones(entropies), torch.ones(mask))


def test_whole_numbers_are_refused():
    with pytest.raises(SettingsError, match="must be floats"):
        entropy_shaped_advantage(torch.tensor([1, -1]), torch.ones(2, 2), torch.ones(2, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -3.0])
def test_what_is_no_entropy_is_an_error_that_names_the_position(value):
    entropies = torch.ones(2, 3)
    entropies[1, 2] = value
    with pytest.raises(ScoringError, match=r"sequence 1, token 2 .*1 such position"):
        entropy_shaped_advantage(torch.ones(2), entropies, torch.ones(2, 3))


def test_arguments_stay_as_they_were():
    arguments = case(3, 4)
    before = [tensor.clone() for tensor in arguments]
    entropy_shaped_advantage(*arguments)
    entropy_shaped_advantage(*arguments, alpha=0).zero_()
    assert all(torch.equal(old, new) for old, new in zip(before, arguments))


# --- Tokens that begin a pivotal word, on tokenizers that split in different places ---

TEXT = "The test fails, however “é” is read. Therefore we stop because `because` is code — but not more."
WORDS = ["however", "Therefore", "because", "but"]


@pytest.mark.parametrize("tokenizer", [tiny.byte_level(), tiny.sentencepiece_fast()], ids=["bytes", "sentencepiece"])
def test_marks_the_token_in_which_each_pivotal_word_begins(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    marks = LexiconPivotal(tokenizer)(ids)
    assert len(marks) == len(ids)
    assert sum(marks) == len(WORDS)
    tails = [tokenizer.decode(ids[index:]).lstrip() for index, mark in enumerate(marks) if mark]
    assert all(tail.startswith(word) for tail, word in zip(tails, WORDS, strict=True))


def test_bears_ids_that_join_to_no_text_and_none_at_all():
    tokenizer = tiny.byte_level()
    broken = tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    words = tokenizer(" But we go on because", add_special_tokens=False)["input_ids"]
    ids = [*broken, *words, tokenizer.eos_token_id, 10**6]
    marks = LexiconPivotal(tokenizer)(ids)
    assert len(marks) == len(ids)
    assert sum(marks) == 2
    assert LexiconPivotal(tokenizer)([]) == []
