"""Every architecture in every way of reading: the same numbers as a plain forward pass and as the slow reference."""

import functools
import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hesnr_tasks.backends.base import TokenSequence  # noqa: E402
from hesnr_tasks.backends.hf.engine import Engine  # noqa: E402
from hesnr_tasks.backends.hf.model import CausalLM  # noqa: E402
from tests.reference.scoring import TOLERANCE, assert_scores, score_slowly  # noqa: E402

VOCABULARY = 211
K = 10
CPU = torch.device("cpu")
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CAPPED = {"head_dim": 16, "sliding_window": 32, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 16}
MLA = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "shared_expert_intermediate_size": 32, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
BAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_chunk_size": 16, "attn_layer_indices": [1],
}  # fmt: skip
JAMBA = {
    "attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False,
}  # fmt: skip
ARCHITECTURES = {
    "Llama": COMMON,
    "Qwen2": COMMON,
    "Qwen3": COMMON | {"head_dim": 16},
    "Qwen3Moe": COMMON | EXPERTS | {"head_dim": 16},
    "Mistral": COMMON | {"head_dim": 16, "sliding_window": 32},
    "Gemma2": COMMON | CAPPED | {"attn_logit_softcapping": 5.0},
    "Gemma3Text": COMMON | CAPPED | {"layer_types": ["sliding_attention", "full_attention"]},
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048},
    "GPTNeoX": COMMON,
    "OPT": {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 64,
    },
    "Phi3": COMMON | {"original_max_position_embeddings": 2048},
    "DeepseekV3": COMMON | MLA,
    "Cohere": COMMON | {"logit_scale": 3.0},
    "Granite": COMMON | {"logits_scaling": 0.3, "attention_multiplier": 0.2, "embedding_multiplier": 2.0},
    "Mamba2": MAMBA | {"num_heads": 8, "head_dim": 16, "n_groups": 2, "expand": 2, "chunk_size": 16},
    "Qwen3Next": COMMON | EXPERTS | DELTA | {"head_dim": 16},
    "Bamba": COMMON | BAMBA,
    "Mamba": MAMBA,
    "FalconMamba": MAMBA,
    "Jamba": COMMON | JAMBA,
}
NOT_IN_CHUNKS = {"Mamba", "FalconMamba", "Jamba"}  # they drop their state between chunks, without a word


def build(name, dtype=torch.float32, **changes):
    """A random model whose logits are spread like a trained one's, so that differences would show."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**ARCHITECTURES[name], **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        spread = model(torch.arange(3, 100)[None]).logits.std()
        model.get_output_embeddings().weight.mul_(float(1.5 / spread))
    return model.to(dtype)


@pytest.fixture(scope="module")
def models():
    """One float32 model of each architecture for all tests of this file."""
    return functools.lru_cache(build)


def ids_of(n, seed):
    return np.random.default_rng(seed).integers(3, VOCABULARY, n).astype(np.int32)


def passage(n, wanted, seed=0, start=None):
    """A text of random tokens (the first ones from `start`) with wanted targets, the last token among them."""
    ids = ids_of(n, seed)
    if start is not None:
        ids[: len(start)] = start
    targets = np.random.default_rng(seed).choice(np.arange(1, n - 1), wanted - 1, replace=False)
    return TokenSequence(f"t{seed}", ids, np.sort(np.append(targets, n - 1)).astype(np.int32))


def engine_for(model, batch=1):
    return Engine(CausalLM(model, CPU), ids_of(150, 99).tolist(), batch)


def plain(model, text):
    """Log-probabilities (m, V) by one plain forward pass."""
    with torch.no_grad():
        return model(torch.from_numpy(text.ids).long()[None]).logits[0, text.targets - 1].float().log_softmax(1)


def assert_equal(scores, rows, text, tolerance=10 * TOLERANCE):
    near = {"rtol": tolerance, "atol": tolerance}
    position = torch.from_numpy(text.ids[text.targets]).long()[:, None]
    np.testing.assert_allclose(scores.logprob, rows.gather(1, position)[:, 0], **near)
    np.testing.assert_allclose(scores.topk_logprobs, rows.topk(K, 1).values, **near)
    np.testing.assert_allclose(scores.topk_logprobs, rows.gather(1, torch.from_numpy(scores.topk_ids).long()), **near)


def scores_of(engine, texts):
    results = dict(engine.score(texts, K))
    assert sorted(results) == list(range(len(texts)))
    return [results[i] for i in range(len(texts))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_way_of_reading_equals_the_plain_forward(name, models, caplog):
    """At once, in chunks of several sizes, after a shared prefix, side by side."""
    model, text = models(name), passage(300, 100)
    with caplog.at_level(logging.WARNING, "hesnr_tasks"):
        engine = engine_for(model, batch=0)
    assert engine.mode.logits_strategy == "replay_lm_head"
    assert engine.mode.batch_texts
    assert engine.mode.use_kv_cache == engine.mode.share_prefixes == (name not in NOT_IN_CHUNKS)
    assert ("cannot be read in chunks" in caplog.text) == (name in NOT_IN_CHUNKS)
    assert engine.mode.explicit_positions == (engine.mode.use_kv_cache and name != "Mamba2")  # Bamba goes wrong without
    expected = plain(model, text)
    for longest in (10**9, 150, 33) if engine.mode.use_kv_cache else (10**9, 33):
        engine.limits.longest = longest
        assert_equal(*scores_of(engine, [text]), expected, text)
    engine.limits.longest = 10**9
    several = [passage(n, 30, seed, start=ids_of(260, 50)) for seed, n in enumerate((280, 350, 280, 301))]
    several += [passage(n, 20, seed) for seed, n in enumerate((40, 90), start=10)]
    for scores, text in zip(scores_of(engine, several), several, strict=True):
        assert_equal(scores, plain(model, text), text)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_numbers_equal_the_float64_reference(name, models):
    """Log-probability, rank and the ten most likely tokens, by plain loops."""
    model, text = models(name), passage(120, 30)
    (scores,) = scores_of(engine_for(model), [text])
    rows = score_slowly(model, text.ids.tolist(), text.targets.tolist(), K)
    assert_scores(scores, rows, 10 * TOLERANCE)
    assert np.mean(scores.rank == [row.rank for row in rows]) > 0.95  # float32 may order near-ties otherwise


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Qwen3Moe", "GPT2", "Mamba2"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.06), (torch.float16, 0.008)])
def test_half_precision_models_lose_only_what_their_weights_and_logits_lose(name, dtype, most):
    """Mean absolute error of log-probabilities against the same weights in float32 (nats)."""
    model, text = build(name, dtype), passage(200, 150)
    halves, whole = scores_of(engine_for(model), [text])[0], build(name)
    whole.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    rows = plain(whole, text)
    position = torch.from_numpy(text.ids[text.targets]).long()[:, None]
    assert np.abs(halves.logprob - rows.gather(1, position)[:, 0].numpy()).mean() < most
    assert halves.logprob.dtype == np.float32


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_attention_implementations_agree(kind):
    """Eager attention has no fast path, but the same numbers."""
    model = build("Llama", attn_implementation=kind)
    text = passage(400, 60)
    engine = engine_for(model)
    engine.limits.longest = 130
    assert engine.mode.use_kv_cache
    assert_equal(*scores_of(engine, [text]), plain(model, text), text)
