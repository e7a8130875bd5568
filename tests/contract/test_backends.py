"""What every registered backend must do, with a real tiny model behind it; numbers against a float64 reference.

A new backend needs one more entry in `MODELS`: lm-eval's model around a checkpoint.
"""

import contextlib
import dataclasses
import importlib.util
import json
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval.models.huggingface")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from benchmarks import engines  # noqa: E402
from hesnr_tasks.backends import BACKENDS, backend_for, iterate_scores  # noqa: E402
from hesnr_tasks.backends.base import Backend, TokenSequence  # noqa: E402
from hesnr_tasks.errors import ScoringError  # noqa: E402
from hesnr_tasks.filters import FILTERS, char_codes  # noqa: E402
from hesnr_tasks.scores.schema import ScoringRequest  # noqa: E402
from hesnr_tasks.testing import byte_tokenizer, fake_server, save_checkpoint, tiny_model, trajectory  # noqa: E402
from hesnr_tasks.trajectory import Kind  # noqa: E402
from hesnr_tasks.trajectory.rendering import label_mask, render  # noqa: E402
from tests.reference.scoring import assert_scores, score_slowly  # noqa: E402

K = 5
pytestmark = pytest.mark.numbers


@contextlib.contextmanager
def hf(checkpoint):
    from lm_eval.models.huggingface import HFLM

    yield HFLM(pretrained=checkpoint, dtype="float32", device="cpu")


@contextlib.contextmanager
def completions(checkpoint):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    with _server(checkpoint) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield LocalCompletionsAPI(
            model=server.name, base_url=server.address, tokenizer=checkpoint, tokenizer_backend="huggingface",
            max_length=32768, num_concurrent=2, max_retries=1,
        )  # fmt: skip


@contextlib.contextmanager
def vllm(checkpoint):
    from lm_eval.models.vllm_causallms import VLLM

    yield VLLM(pretrained=checkpoint, dtype="float32", max_length=4096, enforce_eager=True)


def _server(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return fake_server(model, AutoTokenizer.from_pretrained(checkpoint))


@contextlib.contextmanager
def sglang_generate(checkpoint):
    from lm_eval.models.sglang_generate_API import SGLANGGENERATEAPI

    with _server(checkpoint) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield SGLANGGENERATEAPI(
            model=server.name, base_url=server.generate_address, tokenizer=checkpoint, max_length=32768,
            num_concurrent=2, max_retries=1,
        )  # fmt: skip


@contextlib.contextmanager
def sglang(checkpoint):
    """lm-eval's class around an object with the documented `generate` of SGLang's `Engine`."""
    from lm_eval.models.sglang_causallms import SGLangLM

    lm = SGLangLM.__new__(SGLangLM)  # its constructor starts the engine
    lm.model_args, lm.add_bos_token, lm._max_length = {"model_path": checkpoint, "dtype": "float32"}, False, 32768
    with _server(checkpoint) as lm.model:
        lm.tokenizer = lm.model.tokenizer
        yield lm


MODELS = {
    "HFLM": hf, "LocalCompletionsAPI": completions, "VLLM": vllm, "SGLANGGENERATEAPI": sglang_generate,
    "SGLangLM": sglang,
}  # fmt: skip


def test_every_backend_is_tried_here():
    assert MODELS.keys() == BACKENDS.keys()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("contract") / "model")


@pytest.fixture(scope="module", params=MODELS)
def lm(request, checkpoint):
    if request.param == "VLLM" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    with MODELS[request.param](checkpoint) as lm:
        yield lm


@pytest.fixture(scope="module")
def sequences():
    """Of several lengths; two share a prefix; few and many targets, the last token always among them."""
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 256, n) for n in (40, 333, 2, 600)]
    texts.append(np.append(texts[3][:512], rng.integers(0, 256, 30)))
    targets = [np.unique(np.append(rng.integers(1, len(ids), len(ids) // 3), len(ids) - 1)) for ids in texts]
    return [
        TokenSequence(f"text {i}", ids.astype(np.int32), chosen.astype(np.int32))
        for i, (ids, chosen) in enumerate(zip(texts, targets, strict=True))
    ]


def scored(lm, sequences, k=K, skip=()):
    steps = []
    scores = dict(backend_for(lm).score(sequences, k, steps.append, skip))
    assert sorted(scores) == [i for i in range(len(sequences)) if i not in skip]
    assert sum(steps) == sum(len(sequences[i].ids) for i in scores)
    return scores


def test_scores_are_those_of_a_float64_forward_pass(lm, sequences):
    model = tiny_model()
    for index, scores in scored(lm, sequences).items():
        text = sequences[index]
        ranked = 10 if "SGLANG" in type(lm).__name__.upper() else None  # it tells no ranks beyond its candidates
        assert_scores(scores, score_slowly(model, text.ids.tolist(), text.targets.tolist(), K), 1e-4, ranked)


def test_arrays_have_the_shapes_types_and_order_of_scores(lm, sequences):
    for index, scores in scored(lm, sequences).items():
        m = len(sequences[index].targets)
        assert [column.shape for column in scores[:4]] == [(m,), (m,), (m, K), (m, K)]
        assert [column.dtype for column in scores[:4]] == [np.float32, np.int32, np.float32, np.int32]
        assert all(column is None or (column.shape, column.dtype) == ((m,), np.float32) for column in scores[4:])
        assert (np.diff(scores.topk_logprobs, axis=1) <= 0).all()
        assert (scores.logprob <= 0).all()
        listed = scores.topk_ids == sequences[index].ids[sequences[index].targets][:, None]
        within = (scores.rank >= 1) & (scores.rank <= K)
        assert (listed.any(axis=1) == within).mean() > 0.99  # ties may stand before the target
        np.testing.assert_allclose(np.where(listed, scores.topk_logprobs, 0).sum(1)[within], scores.logprob[within])


def test_order_and_what_is_skipped_change_no_number(lm, sequences):
    straight, mirrored = scored(lm, sequences), scored(lm, sequences[::-1], skip={0, 2})
    for index, scores in mirrored.items():
        np.testing.assert_allclose(scores.logprob, straight[len(sequences) - 1 - index].logprob, rtol=1e-4, atol=1e-4)


def test_fewer_candidates_are_the_first_of_more(lm, sequences):
    few, many = scored(lm, sequences, 2), scored(lm, sequences, K)
    for index, scores in few.items():
        np.testing.assert_allclose(scores.topk_logprobs, many[index].topk_logprobs[:, :2], rtol=1e-4, atol=1e-4)


def test_more_candidates_than_there_are_is_an_error_in_words(lm, sequences):
    with pytest.raises(ScoringError, match="258"):
        scored(lm, sequences, 258)


def test_no_sequences_need_no_work(lm):
    assert scored(lm, []) == {}


def test_the_description_is_json_and_the_same_each_time(lm):
    backend = backend_for(lm)
    assert isinstance(backend, Backend)
    described = backend.describe()
    assert described["backend"]
    assert described["model"]
    assert json.loads(json.dumps(described)) == described == backend_for(lm).describe()
    assert backend.max_length > 1
    canary = backend.canary()
    assert canary is None or canary == pytest.approx(backend.canary(), abs=1e-4)


def test_a_trajectory_becomes_scores_of_the_wanted_tokens(lm):
    """Two tasks share a text: it is scored once, for both, and each character of the action has a token."""
    text = render(trajectory("t", ("Look.", "ls -la", "a.py"), ("Done.", "submit", "")), "transcript")
    codes = char_codes(text)
    masks = [label_mask([kind], (), tuple(FILTERS)) for kind in (Kind.ACTION, Kind.THOUGHT)]
    requests = [
        ScoringRequest("t", lambda: dataclasses.replace(text, codes=codes), mask, K, "right", "key", len(text.text))
        for mask in masks
    ]
    (_, first, _), (_, second, _) = iterate_scores(lm, requests)
    assert first is second
    assert set(first.position[first.selected(masks[0])]).isdisjoint(first.position[first.selected(masks[1])])
    ids = byte_tokenizer()(text.text)["input_ids"]
    assert first.token_id.tolist() == [ids[position] for position in first.position]
    covered = [text.text[a:b] for a, b in zip(first.char_start, first.char_end, strict=True)]
    assert "".join(covered).count("ls -la") == 1
    # where one of two asks for numbers over all logits, both have them if the backend can compute them
    assert first.scores[4:] == (None, None)
    requests_with_one_full = [requests[0], dataclasses.replace(requests[1], full_vocabulary=True)]
    (_, again, _), _ = iterate_scores(lm, requests_with_one_full)
    assert all(np.isfinite(column).all() for column in again.scores[4:] if column is not None)
    assert [column is not None for column in again.scores[4:]] == [backend_for(lm).full_vocabulary] * 2


def test_the_table_of_engines_is_of_any_server_whatever_it_calls_the_model(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with _server(checkpoint) as server:
        assert server.name != checkpoint
        places = (("local-completions", server.address), ("sglang-generate", server.generate_address))
        for model, address in places:
            names = ["--served", server.name, "--path", checkpoint]
            engines.main(["--model", model, "--url", address, *names, "--tokens", "300"])
            printed = capsys.readouterr().out
            assert "same rank up to ten: 100.00%" in printed
            assert float(re.search(r"\|Δ ln p\| (\S+)", printed)[1]) < 1e-4
