"""What the engine does on a GPU only, without one: numbers of a made-up device, and shapes on the meta device."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from hesnr_tasks.backends.hf import forward  # noqa: E402
from hesnr_tasks.backends.hf.forward import ForwardMode, LogitsReducer, logits_slice  # noqa: E402
from hesnr_tasks.backends.hf.model import _attend  # noqa: E402

GPU = torch.device("cuda")
GIB = 1 << 30


@pytest.fixture
def gpus(monkeypatch):
    """Three devices: 100 and 40 GiB free, and one that this process does not use."""
    free, reserved, allocated = [100, 40, 1], [15, 50, 0], [10, 20, 0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (free[i] * GIB, 141 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda i: reserved[i] * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda i: allocated[i] * GIB)
    return free


def limits(vocabulary=152_000, strategy="replay_lm_head", **needs):
    model = SimpleNamespace(device=GPU, vocabulary=vocabulary, together=lambda value: [value], name="M")
    mode = ForwardMode(strategy, use_kv_cache=True)
    limits = forward.MemoryLimits(model, mode, torch.zeros(1, 8, dtype=torch.int64))
    measured = {"per_token": 1e6, "per_pair": 0.0, "per_cached_pair": 0.0, "cached_token": 131_072.0} | needs
    limits.__dict__["_needs"] = forward._Needs(**measured)
    return limits


def test_free_memory_is_that_of_the_fullest_device_in_use(gpus):
    assert forward.free_bytes(GPU) == 70 * GIB  # 40 free, and 30 that PyTorch holds and does not use
    assert forward.free_bytes(torch.device("cuda:2")) == 1 * GIB


def test_a_text_that_fits_is_read_in_one_pass_and_a_longer_one_in_chunks(gpus):
    assert limits().chunk(0, 32_768) == 32_768
    longer = limits().chunk(0, 131_072)  # 131 GB in one pass; 0.8 · (70 GiB − 16 GiB of cache) for chunks
    assert longer == 32_768
    gpus[0] = gpus[1] = 0
    assert limits().chunk(0, 131_072) < longer


def test_chunks_are_bounded_by_the_slice_of_logits_where_the_model_makes_all_of_a_chunk(gpus):
    assert logits_slice(SimpleNamespace(device=GPU, vocabulary=152_000)) == (1 << 29) // (4 * 152_000)
    assert limits(strategy="logits_to_keep").chunk(0, 32_768) == (1 << 29) // (4 * 152_000)


def test_batches_on_a_gpu_are_larger_and_shrink_with_memory(gpus):
    assert limits().batch_tokens() == 16_384
    assert limits(per_token=1e8).batch_tokens() == forward._SAFE_TOKENS


def test_a_gpu_reports_itself_that_a_text_is_too_long(gpus):
    limits(per_token=1e12).refuse_too_long(1 << 20, "t")


def test_out_of_memory_halves_the_chunk_until_that_is_no_use(gpus):
    short = limits()
    assert short.halve(4096, "t", "CUDA out of memory") == 2048
    assert short.chunk(0, 32_768) == 2048
    with pytest.raises(forward.ScoringError, match="'t' does not fit into memory"):
        short.halve(200, "t", "CUDA out of memory")
    assert forward.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize(("new", "seen"), [(5, 5), (5, 12), (7, 8)])
def test_a_chunk_over_a_cache_has_the_shape_of_its_queries_on_any_device(new, seen):
    query = torch.empty(1, 4, new, 16, device="meta")
    key = value = torch.empty(1, 4, seen, 16, device="meta")
    assert _attend(query, key, value, None).shape == query.shape


@pytest.mark.parametrize(("new", "seen"), [(5, 12), (7, 8)])
def test_the_mask_that_a_gpu_is_given_is_the_causal_one_of_a_chunk(new, seen):
    from torch.nn.attention.bias import causal_lower_right

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, n, 16, generator=generator) for n in (new, seen, seen))
    attention = torch.nn.functional.scaled_dot_product_attention
    with_bias = attention(query, key, value, attn_mask=causal_lower_right(new, seen))
    mask = torch.ones(new, seen).tril(seen - new).bool()
    torch.testing.assert_close(with_bias, attention(query, key, value, attn_mask=mask))
    torch.testing.assert_close(_attend(query, key, value, None), with_bias)


def test_logits_of_a_large_vocabulary_are_reduced_in_large_pieces(monkeypatch):
    """The same numbers whatever the size of a piece: a GPU's has whole rows and is 512 times a CPU's."""
    logits = torch.randn(64, 40_000, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(64)
    small = LogitsReducer(targets, 5)
    small(logits)
    monkeypatch.setattr(forward, "_TILE_CPU", forward._TILE_GPU)
    large = LogitsReducer(targets, 5)
    large(logits)
    for column, expected in zip(small.scores().padded(), large.scores().padded(), strict=True):
        torch.testing.assert_close(torch.from_numpy(column), torch.from_numpy(expected), equal_nan=True)
