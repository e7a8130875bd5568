"""What users can set, and what they are told when it cannot be."""

import math

import pytest

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.settings import Settings
from hesnr_tasks.trajectory import Kind


def test_defaults_are_the_papers_metric():
    settings = Settings.read({"version": 1.0, "pretrained": "x", "dtype": "float32", "max_length": 4096, "seed": 1})
    assert settings.kinds == (Kind.ACTION,)
    assert settings.filters == ("xml", "format", "comments")
    assert settings.epsilon == pytest.approx((math.log(3) + math.log(4)) / 2, abs=1e-15)
    assert settings.k == 10


def test_words_may_be_lists_or_text():
    a = Settings.read({"kinds": "thought+action", "filters": "none", "only_resolved": "true", "k": "20"})
    b = Settings.read({"kinds": ["action", "thought"], "filters": [], "only_resolved": True, "k": 20})
    assert a == b


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"trajectoriez": "x"}, "unknown setting 'trajectoriez'.*Did you mean 'trajectories'"),
        ({"epsilom": 1}, "Did you mean 'epsilon'"),
        ({"kinds": "acton"}, "kinds is 'acton'.*Did you mean 'action'"),
        ({"filters": ["xlm"]}, "Did you mean 'xml'"),
        ({"render": "chat-ml"}, "Did you mean 'chatml'"),
        ({"overflow": "left"}, "right, error, skip"),
        ({"epsilon": "high"}, "epsilon must be a number"),
        ({"epsilon": 3}, "no entropy exceeds 2.3026 nats"),
        ({"k": 2.5}, "k must be a number"),
        ({"k": True}, "k must be a number"),
        ({"limit": 0}, "at least 1"),
        ({"only_resolved": "maybe"}, "true or false"),
        ({"kinds": "none"}, "kinds must name some of"),
        ({"kinds": "scaffold"}, "kinds must name some of"),
        ({"trajectories": 3}, "trajectories"),
        ({"trajectories": [3]}, "trajectories must be text"),
    ],
)
def test_a_bad_setting_says_what_to_do(metadata, message):
    with pytest.raises(SettingsError, match=message):
        Settings.read(metadata)


def test_what_defines_a_task_cannot_be_overridden():
    fixed = {"kinds": ["thought"], "filters": []}
    assert Settings.read({}, fixed).kinds == (Kind.THOUGHT,)
    with pytest.raises(SettingsError, match=r"filters, kinds cannot be set for this task"):
        Settings.read({"kinds": "action", "filters": "xml"}, fixed)


def test_model_arguments_are_not_mistaken_for_typos():
    names = [
        "pretrained",
        "revision",
        "tensor_parallel_size",
        "gpu_memory_utilization",
        "trust_remote_code",
        "parallelize",
    ]
    names += ["softmax_dtype", "peft", "delta", "add_bos_token", "prefix_token_id", "max_model_len", "load_in_8bit"]
    names += [
        "attn_implementation",
        "truncation",
        "logits_cache",
        "backend",
        "device",
        "seed",
        "swap_space",
        "kv_cache_dtype",
    ]
    names += [
        "tokenizer",
        "tokenizer_mode",
        "enforce_eager",
        "base_url",
        "num_concurrent",
        "max_retries",
        "tokenized_requests",
    ]
    Settings.read(dict.fromkeys(names, 1))
