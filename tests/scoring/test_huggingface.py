"""The Hugging Face engine against an independent float64 reference, and its behaviour around the numbers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


from hesnr_tasks.scoring.hf_engine import Engine  # noqa: E402
from hesnr_tasks.scoring.hf_net import Net  # noqa: E402
from hesnr_tasks.scoring.types import Passage  # noqa: E402
from tests.reference.scoring import score_slowly  # noqa: E402

VOCABULARY = 1031
K = 10


def llama(**changes):
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**settings, **changes})).eval()


def engine_for(model):
    sample = np.random.default_rng(7).integers(3, VOCABULARY, 150).tolist()
    return Engine(Net(model, torch.device("cpu")), sample)


def passage(n=300, wanted=80, seed=0):
    rng = np.random.default_rng(seed)
    targets = np.sort(rng.choice(np.arange(1, n), wanted, replace=False)).astype(np.int32)
    return Passage("t", rng.integers(3, VOCABULARY, n).astype(np.int32)[: targets[-1] + 1], targets)


def test_numbers_equal_the_float64_reference():
    model, text = llama(), passage()
    scores = engine_for(model).score(text, K, int)
    rows = score_slowly(model, text.ids.tolist(), text.targets.tolist(), K)
    np.testing.assert_allclose(scores.logprob, [row.logprob for row in rows], atol=1e-5)
    np.testing.assert_allclose(scores.topk_logprobs, [[v for v, _ in row.top] for row in rows], atol=1e-5)
    assert scores.rank.tolist() == [row.rank for row in rows]
    assert scores.topk_ids.tolist() == [[i for _, i in row.top] for row in rows]
