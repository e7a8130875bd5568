"""Models whose positions depend on the text's length: the numbers of a fresh float64 forward pass over each text."""

import copy
import itertools
import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hesnr_tasks.backends.base import TokenSequence  # noqa: E402
from hesnr_tasks.backends.hf import forward  # noqa: E402
from hesnr_tasks.backends.hf.engine import Engine  # noqa: E402
from hesnr_tasks.backends.hf.model import (  # noqa: E402
    CausalLM,
    fresh_rope,
    length_dependence,
)
from hesnr_tasks.errors import ScoringError  # noqa: E402
from tests.reference.scoring import score_slowly  # noqa: E402

VOCABULARY = 211
K = 10
BOUNDARY = 320  # beyond the self-check's short text
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 4096,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 9.0, 27.0],
    "rope_theta": 10000.0, "original_max_position_embeddings": BOUNDARY,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": BOUNDARY}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
PER_LAYER = {"full_attention": DYNAMIC, "sliding_attention": PLAIN}
OLD_NAME = {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": BOUNDARY}
KINDS = {
    "longrope": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": BOUNDARY}),
    "dynamic": ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": BOUNDARY}),
    "dynamic in some layers": (
        "Gemma3Text",
        {"rope_parameters": PER_LAYER, "max_position_embeddings": BOUNDARY, "head_dim": 8, "sliding_window": 32,
         "layer_types": ["full_attention", "sliding_attention"], "query_pre_attn_scalar": 8},
    ),
}  # fmt: skip


def build(name, changes, dtype=torch.float64):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**COMMON | copy.deepcopy(changes))
    return transformers.AutoModelForCausalLM.from_config(config).eval().to(dtype)


def ids_of(n, seed):
    return np.random.default_rng(seed).integers(3, VOCABULARY, n).astype(np.int32)


def passage(n, seed, start=(), read=None):
    """A text of n tokens that begins with `start`; the last wanted token is the last, or stands before `read`."""
    ids = np.append(start, ids_of(n - len(start), seed)).astype(np.int32)
    last = (read or n) - 1
    rest = np.random.default_rng(seed).choice(np.arange(1, last), min(40, last - 1), replace=False)
    return TokenSequence(f"t{seed}", ids[: last + 1], np.sort(np.append(rest, last)).astype(np.int32), n), ids


def engine_for(model, batch=1):
    return Engine(CausalLM(model, torch.device("cpu")), ids_of(150, 99).tolist(), batch)


def expected(model, texts):
    """A fresh copy of the model for every text, the whole of which is read at once."""
    return [score_slowly(copy.deepcopy(model), ids.tolist(), text.targets.tolist(), K) for text, ids in texts]


def assert_right(scores, rows):
    np.testing.assert_allclose(scores.logprob, [row.logprob for row in rows], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.topk_logprobs, [[v for v, _ in row.top] for row in rows], rtol=1e-5, atol=1e-5)
    assert scores.rank.tolist() == [row.rank for row in rows]


def texts_around_the_boundary():
    """Short, at and beside the boundary, far beyond; three share what comes first; two go on after what is wanted."""
    start = ids_of(260, 50)
    sizes = [40, BOUNDARY - 1, BOUNDARY, BOUNDARY + 1, 1000]
    texts = [passage(n, seed) for seed, n in enumerate(sizes)]
    texts += [passage(n, seed, start) for seed, n in enumerate((300, BOUNDARY + 30), start=20)]
    return [*texts, passage(500, 30, read=200), passage(500, 31, start, read=310)]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_read_as_a_fresh_model_reads_each_of_them_alone(kind):
    """In several orders, side by side if that were allowed, with chunks forced; twice by the same engine."""
    model = build(*KINDS[kind])
    texts = texts_around_the_boundary()
    rows = expected(model, texts)
    rng = np.random.default_rng(3)
    for batch, times in ((1, 1), (8, 2)):
        engine = engine_for(model, batch)
        engine.limits.longest = 64
        for _ in range(times):
            order = rng.permutation(len(texts)).tolist()
            results = dict(engine.score([texts[i][0] for i in order], K))
            for number, i in enumerate(order):
                assert_right(results[number], rows[i])


@pytest.mark.parametrize("kind", KINDS)
def test_the_boundary_matters_here(kind):
    """A reading of the beginning alone gives other numbers: otherwise the tests above would show nothing."""
    model = build(*KINDS[kind])
    ids = ids_of(900, 1)
    whole = score_slowly(copy.deepcopy(model), ids.tolist(), [100], K)[0].logprob
    begin = score_slowly(copy.deepcopy(model), ids[:102].tolist(), [100], K)[0].logprob
    assert abs(whole - begin) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_sees_it_without_the_configuration(kind, monkeypatch, caplog):
    """Texts up to the boundary are still shared and read in chunks; the first that crosses it changes the way."""
    model = build(*KINDS[kind])
    monkeypatch.setattr("hesnr_tasks.backends.hf.engine.length_dependence", lambda model: "")
    engine = engine_for(model)
    short, long = passage(BOUNDARY - 20, 1), passage(BOUNDARY + 400, 2)
    dict(engine.score([short[0]], K))
    assert not engine.mode.whole_texts
    with caplog.at_level(logging.WARNING, "hesnr_tasks"):
        results = dict(engine.score([short[0], long[0]], K))
    assert engine.mode.whole_texts
    assert "depend on the length" in caplog.text
    for number, rows in enumerate(expected(model, [short, long])):
        assert_right(results[number], rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_in_lower_precision_are_recognised_too(dtype, monkeypatch):
    monkeypatch.setattr("hesnr_tasks.backends.hf.engine.length_dependence", lambda model: "")
    engine = engine_for(build(*KINDS["longrope"], dtype))
    dict(engine.score([passage(BOUNDARY + 400, 2)[0]], K))
    assert engine.mode.whole_texts


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", {"rope_parameters": YARN}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        ("Qwen3", {"head_dim": 8}),
        ("Gemma3Text", {"head_dim": 8, "sliding_window": 32, "query_pre_attn_scalar": 8}),
        ("GPTNeoX", {}),
        ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
        ("Bloom", {"n_head": 4, "n_layer": 2}),
        ("Mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 2, "expand": 2, "chunk_size": 16, "state_size": 8}),
    ],
)
def test_other_models_still_share_and_read_in_chunks(name, changes):
    for dtype in (torch.float32, torch.bfloat16):
        model = build(name, changes, dtype)
        assert length_dependence(model) == ""
        engine = engine_for(model)
        dict(engine.score([passage(BOUNDARY + 80, 2)[0]], K))
        assert not engine.mode.whole_texts
        assert engine.mode.share_prefixes


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"rope_scaling": {"type": "su"}}, "su"),
        ({"rope_scaling": {"rope_type": "longrope", "type": "yarn"}}, "longrope"),
        ({"rope_parameters": {"full": {"rope_type": "dynamic"}, "sliding": None}}, "dynamic"),
        ({"text_config": {"llm": {"rope_scaling": {"type": "dynamic_ntk"}}}}, "dynamic_ntk"),
        ({"rope_type": "dynamic-yarn"}, "dynamic-yarn"),
        ({"rotary_config": {"type": "dynamic"}}, "dynamic"),
        ({"use_dynamic_ntk": True}, "use_dynamic_ntk"),
        ({"use_logn_attn": True}, "use_logn_attn"),
        (transformers.LlamaConfig(**COMMON | OLD_NAME).to_dict(), "dynamic"),
        ({"use_dynamic_ntk": False, "rope_scaling": None}, ""),
        ({"rope_scaling": {"type": "yarn"}, "moe": {"type": "dynamic"}}, ""),
        ({"rope_scaling": {"rope_type": "llama3"}, "rope_theta": 1e6, "partial_rotary_factor": 0.5}, ""),
    ],
)
def test_configurations_say_so_in_many_forms(config, kind):
    model = torch.nn.Linear(1, 1)
    model.config = transformers.PreTrainedConfig(**{key: value for key, value in config.items() if "rope" not in key})
    model.config.to_dict = lambda: config
    assert length_dependence(model) == kind


# --- code that comes with a checkpoint ------------------------------------------------------------------------------


class RemoteAttention(transformers.models.llama.modeling_llama.LlamaAttention):
    """Scales queries by the logarithm of the text's length beyond the boundary, as Qwen 1 does, by their number."""

    def forward(self, hidden_states, *args, **kwargs):
        n = hidden_states.shape[1]
        return super().forward(hidden_states * (1 + 0.2 * (n > BOUNDARY)), *args, **kwargs)


class RemoteLlama(transformers.LlamaForCausalLM):
    """Its module is not one of transformers', as with trust_remote_code."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.__class__ = RemoteAttention


def remote():
    torch.manual_seed(0)
    return RemoteLlama(transformers.LlamaConfig(**COMMON)).eval().double()


def test_remote_code_that_counts_tokens_is_seen_by_reading_a_long_text():
    model = remote()
    engine = engine_for(model)
    texts = texts_around_the_boundary()
    results = dict(engine.score([text for text, _ in texts], K))
    assert engine.mode.whole_texts
    for number, rows in enumerate(expected(model, texts)):
        assert_right(results[number], rows)


class Tables(torch.nn.Module):
    """The rotary tables of older model code: grown to the longest text so far, with its frequencies."""

    def __init__(self):
        super().__init__()
        self.max_seq_len_cached = 4
        self.register_buffer("cos_cached", torch.zeros(4), persistent=False)

    def forward(self, n):
        if n > self.max_seq_len_cached:
            self.max_seq_len_cached = n
            self.register_buffer("cos_cached", torch.full((n,), 1.0 / n), persistent=False)
        return self.cos_cached[:n]


def test_tables_that_grew_are_built_anew_for_each_text_and_put_back():
    tables = Tables()
    outer = torch.nn.ModuleDict({"rotary": tables})
    tables(100)
    for n in (7, 50, 3):
        with fresh_rope(outer):
            assert tables(n).tolist() == pytest.approx([1.0 / n] * n)
    assert tables.max_seq_len_cached == 100
    assert tables(100).tolist() == pytest.approx([0.01] * 100)


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_leaves_the_state_of_the_encodings_as_it_was(kind):
    """A model in training goes on with the frequencies it had."""
    model = build(*KINDS[kind])
    with torch.no_grad():
        model(torch.from_numpy(ids_of(500, 1)).long()[None])  # frequencies have grown
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        engine = engine_for(model)
        dict(engine.score([text for text, _ in texts_around_the_boundary()], K))
    if kind != "longrope":  # which computes its frequencies anew each time
        assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    model(torch.from_numpy(ids_of(400, 1)).long()[None]).logits.sum().backward()


# --- memory ---------------------------------------------------------------------------------------------------------


def test_a_text_that_does_not_fit_whole_is_an_error_that_says_why(monkeypatch):
    engine = engine_for(build(*KINDS["longrope"]))
    text, _ = passage(1500, 1)
    for failing in ("free memory", "allocator"):
        with monkeypatch.context() as patch:
            if failing == "free memory":
                patch.setattr(forward, "free_bytes", lambda device: 1000)
            else:
                patch.setattr(engine.model.backbone, "forward", out_of_memory)
            with pytest.raises(ScoringError, match=r"'t1' does not fit into memory .* depend on the length") as caught:
                dict(engine.score([text], K))
        assert "\n" not in str(caught.value)


def out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CPU out of memory. Tried to allocate 9 GB")


def test_a_shorter_reading_of_the_same_text_gives_the_same_numbers():
    """What is wanted of a text does not decide how much of it is read."""
    engine = engine_for(build(*KINDS["dynamic"]))
    wide, ids = passage(600, 5)
    for last in (100, BOUNDARY - 1, 450):
        targets = wide.targets[wide.targets <= last]
        part = TokenSequence("part", ids[: targets[-1] + 1], targets, 600)
        results = dict(engine.score([wide, part], K))
        for a, b in itertools.zip_longest(results[0].padded(), results[1].padded()):
            np.testing.assert_allclose(a[: len(targets)], b, rtol=1e-6, atol=1e-6)
