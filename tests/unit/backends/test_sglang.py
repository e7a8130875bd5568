"""Answers of SGLang with a fault are errors that name the trajectory; both forms of answer are the same numbers."""

import base64

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval.models.sglang_generate_API")

from lm_eval.models.openai_completions import LocalChatCompletion  # noqa: E402
from lm_eval.models.sglang_causallms import SGLangLM  # noqa: E402
from lm_eval.models.sglang_generate_API import SGLANGGENERATEAPI  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from hesnr_tasks.backends import backend_for  # noqa: E402
from hesnr_tasks.backends.base import TokenSequence  # noqa: E402
from hesnr_tasks.errors import ScoringError  # noqa: E402
from hesnr_tasks.testing import byte_tokenizer, fake_server, save_checkpoint, tiny_model  # noqa: E402

TEXT = TokenSequence("t-17", np.array([*range(40, 80), 256, 41], np.int32), np.array([5, 6, 20, 40, 41], np.int32))
START = 4  # one before the first target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("sglang") / "model")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_server(tiny_model(), byte_tokenizer()) as server:
        yield server


def remote(server, folder, **settings):
    given = {"model": server.name, "base_url": server.generate_address, "tokenizer": folder, "max_retries": 1}
    return backend_for(SGLANGGENERATEAPI(**(given | settings)))


def in_process(server, folder, **args):
    lm = SGLangLM.__new__(SGLangLM)  # its constructor starts the engine
    lm.model, lm.tokenizer = server, AutoTokenizer.from_pretrained(folder)
    lm.model_args, lm.add_bos_token, lm._max_length = {"model_path": folder} | args, False, 4096
    return backend_for(lm)


def scored(backend, k=5):
    return dict(backend.score([TEXT], k, lambda tokens: None))[0]


def test_flat_arrays_lists_and_the_engine_are_the_same_numbers(server, folder):
    flat = scored(remote(server, folder))
    request = server.requests[-1]
    assert (request["logprob_start_len"], request["top_logprobs_num"]) == (START, 10)
    assert request["sampling_params"]["max_new_tokens"] == 1
    assert request["return_logprob"] is True
    assert request["return_text_in_logprobs"] is False
    server.forms = ()
    for other in (scored(remote(server, folder)), scored(in_process(server, folder))):
        for column, expected in zip(other, flat, strict=True):
            np.testing.assert_array_equal(column, expected)
    assert flat.topk_ids.shape == (5, 5)
    assert ((flat.rank >= 1) | (flat.rank == -10)).all()


def _shorter(meta):
    meta["input_token_logprobs"].pop()


def _shifted(meta):
    meta["input_token_logprobs"][0] = (-1.0, meta["input_token_logprobs"][0][1], None)


def _other_token(meta):
    value, token, text = meta["input_token_logprobs"][2]
    meta["input_token_logprobs"][2] = (value, token + 1, text)


def _null(meta):
    meta["input_token_logprobs"][1] = (None, *meta["input_token_logprobs"][1][1:])


def _no_candidates(meta):
    meta.pop("input_top_logprobs")


def _fewer_candidates(meta):
    meta["input_top_logprobs"][1].pop()


def _next_candidates(meta):
    """Those of the next position, as TensorRT-LLM tells them."""
    meta["input_top_logprobs"] = [*meta["input_top_logprobs"][1:], meta["input_top_logprobs"][0]]


def _twice(meta):
    meta["input_top_logprobs"][1][3] = meta["input_top_logprobs"][1][2]


def _own_above(meta):
    _, token, text = meta["input_token_logprobs"][1]
    meta["input_token_logprobs"][1] = (-1e-9, token, text)


def _aborted(meta):
    meta["finish_reason"] = {"type": "abort", "message": "KV cache is full"}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_shorter, r"no values of the 38 tokens from token 4 on came back \(37\)"),
        (_shifted, "positions are shifted"),
        (_other_token, "token 6 is of id 47, and 46 was sent"),
        (_null, "token 5 of the prompt is null"),
        (_no_candidates, "no candidates at the 38 positions"),
        (_fewer_candidates, "different numbers of candidates"),
        (_next_candidates, "more likely than|differs from its value|cannot sum|exceed 1|different numbers|NoneType"),
        (_twice, "there twice"),
        (_own_above, "more likely than the most likely|cannot sum|differs from its value|exceed 1"),
        (_aborted, "aborted: KV cache is full"),
    ],
)
def test_an_answer_with_a_fault_is_an_error(server, folder, spoil, complaint):
    server.spoil = spoil
    with pytest.raises(ScoringError, match=complaint) as caught:
        scored(in_process(server, folder))
    assert "'t-17'" in str(caught.value)


def _flat(change):
    def spoil(meta):
        if "input_top_logprobs_shape" in meta:
            change(meta)

    return spoil


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m.update(input_top_logprobs_shape=[36, 10]), "candidates of 36 positions after 1"),
        (lambda m: m.update(input_top_logprobs_null_prefix=0), "candidates of 37 positions after 0"),
        (lambda m: m.update(input_top_logprobs_val_flat_b64_dtype="float16"), "of type 'float16'"),
        (lambda m: m.update(input_top_logprobs_val_flat_b64="!"), "cannot be used"),
        (lambda m: m.update(input_top_logprobs_idx_flat_b64=base64.b64encode(b"1234").decode()), "cannot be used"),
    ],
)
def test_flat_arrays_with_a_fault_are_an_error(server, folder, change, complaint):
    backend = remote(server, folder)
    server.spoils, server.spoil = len(TEXT.ids), _flat(change)
    with pytest.raises(ScoringError, match=complaint) as caught:
        scored(backend)
    assert "'t-17'" in str(caught.value)


def test_the_server_scores_with_the_model_it_has_and_says_so(server, folder, caplog):
    server.name = "served"
    described = remote(server, folder, model="wanted").describe()
    assert (described["backend"], described["model"], described["served"]) == ("sglang-generate", "wanted", "served")
    assert "scores with served" in caplog.text
    assert remote(server, folder).max_length == server.context - 1


def test_the_key_of_the_environment_reaches_a_server_that_wants_one(server, folder, monkeypatch):
    server.key = "sk-secret-1"
    with pytest.raises(ScoringError, match="OPENAI_API_KEY"):
        scored(remote(server, folder))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    assert scored(remote(server, folder)).logprob.shape == (5,)


def test_adapters_that_would_not_be_applied_are_refused(server, folder):
    with pytest.raises(ScoringError, match=r"never applies.*\nMerge"):
        in_process(server, folder, lora_paths=["x"])


def test_more_candidates_than_entries_never_reach_the_engine(server, folder):
    with pytest.raises(ScoringError, match="top 300"):
        scored(in_process(server, folder), 300)


def test_what_the_engine_raises_names_the_trajectory(server, folder):
    server.generate = lambda **_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory."))
    with pytest.raises(ScoringError, match=r"'?t-17'?: RuntimeError: CUDA out of memory\.\n.*chunked_prefill_size"):
        scored(in_process(server, folder))


def test_chat_is_refused_before_its_base_class_is_found():
    with pytest.raises(ScoringError, match=r"LocalChatCompletion cannot score.*\nUse local-completions"):
        backend_for(LocalChatCompletion.__new__(LocalChatCompletion))
