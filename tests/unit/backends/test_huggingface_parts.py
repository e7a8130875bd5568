"""Parts of the Hugging Face engine that can be checked against something simpler."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402
from transformers.masking_utils import (  # noqa: E402
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sliding_window_causal_mask_function,
)

from hesnr_tasks.backends.hf import forward  # noqa: E402
from hesnr_tasks.backends.hf.engine import batch_by_length, build_prefix_tree, prefix_hashes  # noqa: E402
from hesnr_tasks.backends.hf.forward import (  # noqa: E402
    LogitsReducer,
    reduce_logits,
    split_range,
)
from hesnr_tasks.backends.hf.model import CausalChunks  # noqa: E402

pytestmark = pytest.mark.numbers


@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 5),
    size=st.integers(10, 3000),
    k=st.integers(1, 10),
    tied=st.booleans(),
    tile=st.sampled_from([(64, 64), (128, 256), (1024, 2048), forward._TILE_CPU]),
)
@settings(max_examples=60)
def test_reductions_equal_sorting(seed, rows, size, k, tied, tile):
    """Also where many logits are equal and the vocabulary is no multiple of anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "_TILE_CPU", tile)
        _reductions_equal_sorting(seed, rows, size, k, tied=tied)


def _reductions_equal_sorting(seed, rows, size, k, *, tied):
    torch.manual_seed(seed)
    logits = torch.randn(rows, size) * 3
    logits = logits.round() if tied else logits
    targets = torch.randint(0, size, (rows,))
    logprob, rank, values, ids, entropy, expected_rank = reduce_logits(logits, targets, k, full_vocabulary=True)
    assert all(map(torch.equal, reduce_logits(logits, targets, k), (logprob, rank, values, ids)))
    expected = logits.double().log_softmax(1)
    at_target = expected.gather(1, targets[:, None])
    np.testing.assert_allclose(logprob, at_target[:, 0], rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(rank, 1 + (logits > logits.gather(1, targets[:, None])).sum(1))
    np.testing.assert_allclose(values, expected.sort(1, descending=True).values[:, :k], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(values, expected.gather(1, ids.long()), rtol=1e-6, atol=1e-5)
    assert all(len(set(row)) == k for row in ids.tolist())
    p = expected.exp().sort(1, descending=True).values
    np.testing.assert_allclose(entropy, -(p * p.log()).sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(expected_rank, p @ torch.arange(1.0, size + 1, dtype=torch.float64), rtol=1e-5)


def test_entropy_and_expected_rank_of_a_large_vocabulary_of_which_some_is_masked():
    torch.manual_seed(1)
    scale = torch.tensor([0.5, 1, 2, 3, 5])[:, None]
    logits = torch.randn(5, 40_000) * scale
    logits[:, 17] += 9
    logits[:, -5000:] = -torch.inf  # masked ids have no rank that counts
    whole = reduce_logits(logits, torch.zeros(5, dtype=torch.long), 10, full_vocabulary=True)
    entropy, expected_rank = whole[4:]
    p = logits.double().softmax(1).sort(1, descending=True).values
    np.testing.assert_allclose(expected_rank, p @ torch.arange(1.0, 40_001, dtype=torch.float64), rtol=1e-5)
    np.testing.assert_allclose(entropy, torch.special.entr(p).sum(1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_never_in_half_precision(dtype):
    """From half-precision logits, the same numbers as from the same logits in float64."""
    torch.manual_seed(0)
    logits, targets = (torch.randn(7, 50_000) * 4).to(dtype), torch.randint(0, 50_000, (7,))
    collector = LogitsReducer(targets, 10)
    for part in logits.split(3):
        collector(part)
    expected = logits.double().log_softmax(1)
    np.testing.assert_allclose(
        collector.scores().logprob, expected.gather(1, targets[:, None])[:, 0], rtol=1e-6, atol=1e-5
    )
    np.testing.assert_allclose(collector.scores().topk_logprobs, expected.topk(10).values, rtol=1e-6, atol=1e-5)


def test_a_missing_position_is_noticed():
    """Rather a crash than numbers of other tokens."""
    collector = LogitsReducer(torch.zeros(3, dtype=torch.long), 2)
    collector(torch.randn(2, 9))
    with pytest.raises(RuntimeError, match="2 of 3 positions"):
        collector.scores()


def _mask(new, past, function=causal_mask_function, **settings):
    """What transformers makes for a chunk."""
    given = {"batch_size": 2, "q_length": new, "kv_length": past + new, "q_offset": past, "mask_function": function}
    given |= {"attention_mask": None, "allow_is_causal_skip": True} | settings
    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](**given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("new", "past"), [(2, 1), (70, 333), (300, 40), (1500, 600)])
def test_attention_without_the_mask_equals_attention_with_it(new, past, dtype):
    """For one text or several, and the scale of the model."""
    torch.manual_seed(0)
    query = torch.randn(2, 3, new, 16).to(dtype)
    key, value = (torch.randn(2, 3, past + new, 16).to(dtype) for _ in "kv")
    mask = _mask(new, past)
    expected = scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask=mask, scale=0.3)
    with CausalChunks() as mode:
        results = scaled_dot_product_attention(query, key, value, attn_mask=_mask(new, past), scale=0.3)
    assert mode.replaced
    assert results.dtype == dtype
    np.testing.assert_allclose(results.float(), expected, rtol=1e-6, atol=1e-5 if dtype == torch.float32 else 3e-2)
    assert torch.equal(_mask(new, past), mask)  # outside, transformers makes them as before


def test_a_mask_without_content_cannot_be_taken_for_one():
    """Attention in other forms, and anything else that reads it, fails."""
    query, (key, value) = torch.randn(2, 2, 40, 8), torch.randn(2, 2, 2, 90, 8)
    with CausalChunks():
        mask = _mask(40, 50)
        for settings in ({"dropout_p": 0.1}, {"is_causal": True}, {"enable_gqa": True}):
            with pytest.raises(RuntimeError, match="in a form that needs its mask"):
                scaled_dot_product_attention(query, key, value, attn_mask=mask, **settings)
        with pytest.raises(RuntimeError, match="in a form that needs its mask"):
            scaled_dot_product_attention(query, key[:, :, :80], value[:, :, :80], attn_mask=mask)
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.zeros(2, 1, 40, 90).masked_fill(mask, 1).sum().item()
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.where(mask, torch.zeros(2, 1, 40, 90), torch.ones(())).sum().item()
        assert mask[:, :, :, :90].shape == mask.shape
        for use in (torch.clone, torch.tril, torch.ones_like, torch.Tensor.contiguous, lambda mask: mask & True):
            with pytest.raises(RuntimeError, match="something else than attention"):
                use(mask)
        with pytest.raises(RuntimeError, match="something else than attention"):
            scaled_dot_product_attention(query, key, value, mask)


@pytest.mark.parametrize(
    ("new", "past", "settings"),
    [
        (40, 50, {"function": sliding_window_causal_mask_function(20)}),
        (40, 50, {"attention_mask": torch.ones(2, 90, dtype=torch.bool).tril(70)}),
        (40, 50, {"allow_is_causal_skip": False}),
        (40, 50, {"kv_offset": 3}),
        (40, 50, {"q_offset": 20}),
        (40, 0, {}),
        (1, 50, {}),
    ],
)
def test_masks_that_are_not_causal_are_left_alone(new, past, settings):
    """Sliding windows, padding, masks that become a part of another, other offsets, whole texts, single tokens."""
    before = _mask(new, past, **settings)
    with CausalChunks():
        inside = _mask(new, past, **settings)
    assert inside is before is None or torch.equal(inside, before)


@given(st.integers(0, 5000), st.integers(1, 9000), st.integers(1, 3000))
def test_chunks_cover_the_text_and_are_of_about_equal_length(start, length, chunk):
    """None is longer than asked for, and none is a stub."""
    edges = split_range(start, start + length, chunk)
    sizes = np.diff(edges)
    assert (edges[0], edges[-1]) == (start, start + length)
    assert sizes.max() <= chunk
    assert sizes.max() - sizes.min() <= 1


@given(st.lists(st.integers(1, 600), max_size=30), st.integers(1, 9), st.integers(1, 2000))
def test_batches_hold_every_text_once_within_the_limits(lengths, most, tokens):
    """Only a text that is too long by itself exceeds the number of tokens."""
    texts = [100 + i for i in range(len(lengths))]
    batches = batch_by_length(texts, lengths, most, tokens)
    assert sorted(text for batch in batches for text in batch) == texts
    for batch in batches:
        widest = max(lengths[text - 100] for text in batch)
        assert len(batch) <= most
        assert len(batch) * widest <= tokens or len(batch) == 1


def texts_with(starts, rest=50):
    rng = np.random.default_rng(0)
    return [np.append(start, rng.integers(0, 999, rest)).astype(np.int32) for start in starts]


def tree_of(texts):
    return build_prefix_tree([prefix_hashes(text, len(text) - 1) for text in texts])


def shape(group):
    return (group.stop, sorted(group.members), sorted(map(shape, group.children)))


def test_the_plan_is_a_tree_of_prefixes():
    """Two families, one within the other, and loners; prefixes are cut to whole steps."""
    rng = np.random.default_rng(1)
    root, other = rng.integers(0, 999, 1100), rng.integers(0, 999, 300)
    branch = np.append(root, rng.integers(0, 999, 900))
    texts = texts_with([root, branch, other, branch, root, rng.integers(0, 999, 700), other, root, branch])
    group = tree_of(texts)
    inner = (1792, [1, 3, 8], [])
    assert shape(group) == (0, [5], sorted([(1024, [0, 4, 7], [inner]), (256, [2, 6], [])]))


def test_short_prefixes_of_long_texts_are_not_worth_a_cache():
    """What going on from a cache costs would exceed what is saved."""
    start = np.random.default_rng(1).integers(0, 999, 300)
    assert shape(tree_of(texts_with([start] * 3, 9000))) == (
        0,
        [0, 1, 2],
        [],
    )
    assert shape(tree_of(texts_with([start] * 3, 300)))[1] == []


def test_a_shared_prefix_includes_the_token_it_predicts():
    """Texts that part exactly at a step do not share that step: the score after it would differ."""
    start = np.random.default_rng(1).integers(0, 999, 512).astype(np.int32)
    texts = [np.append(start, [i] * 40).astype(np.int32) for i in range(3)]
    assert shape(tree_of(texts)) == (
        0,
        [],
        [(256, [0, 1, 2], [])],
    )


def test_the_plan_can_be_cut_to_one_process():
    """Groups without a text of this process disappear; the others keep their borders."""
    start = np.random.default_rng(1).integers(0, 999, 600)
    texts = texts_with([start, start, range(600), start, range(600)])
    group = tree_of(texts)
    assert shape(group.restricted({3: [0]})) == (0, [], [(512, [0], [])])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_of_logits_take_turns_in_one_memory_and_are_the_heads(bias, dtype):
    """To the bit; a head that is anything but a plain linear layer is left alone."""
    head = torch.nn.Linear(24, 300, bias=bias, dtype=dtype)
    model = SimpleNamespace(head=head, autocast=None, device=torch.device("cpu"))
    slices = [torch.randn(1, n, 24).to(dtype) for n in (7, 7, 3)]
    with torch.inference_mode(), forward._one_memory_for_logits(model) as release:
        places = set()
        for part in slices:
            logits = head(part)
            places.add(logits.data_ptr())
            assert torch.equal(logits, torch.nn.functional.linear(part, head.weight, head.bias))
            assert head(part).data_ptr() != logits.data_ptr()  # the model may join the two
            release()
    assert len(places) == 1
    assert "forward" not in vars(head)
    own = head.forward = lambda hidden: hidden  # as accelerate's
    with forward._one_memory_for_logits(model):
        assert head.forward is own
