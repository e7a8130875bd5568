"""The server backend: against a small server around a real model, its misbehaviour, and a real `vllm serve`."""

import json
import logging
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from hesnr_tasks.backends import backend_for
from hesnr_tasks.backends.base import TokenSequence
from hesnr_tasks.backends.completions import FORMS, TokenIdsByText
from hesnr_tasks.errors import ScoringError
from hesnr_tasks.testing import fake_server
from tests.server_model import (
    assert_same,
    end_group,
    entropy,
    find_vllm_python,
    load,
    passage,
    reference,
    save_model,
)

OPENAI_FIELDS = {"model", "prompt", "max_tokens", "temperature", "echo", "logprobs"}
TOKENS = int(os.environ.get("HESNR_TEST_TOKENS", "3500"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("api") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture
def server(folder, model, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_server(model, AutoTokenizer.from_pretrained(folder)) as server:
        server.folder = folder
        yield server


def backend_of(server, **settings):
    """lm-eval's own model class with the settings a user gives, and our backend for it."""
    given = {
        "model": "tiny", "base_url": server.address, "tokenizer": str(server.folder), "max_length": 32768,
        "tokenizer_backend": "huggingface", "num_concurrent": 3, "max_retries": 3, "timeout": 300,
    }  # fmt: skip
    return backend_for(LocalCompletionsAPI(**(given | settings)))


def score(backend, passages, k=10):
    read = []
    results = dict(backend.score(passages, k, read.append))
    assert sum(read) == sum(len(p.ids) for p in passages)
    assert sorted(results) == list(range(len(passages)))
    return [results[i] for i in range(len(passages))]


def error_of(server, passages=None, k=10, **settings):
    """The message of the `ScoringError`: one paragraph."""
    with pytest.raises(ScoringError) as caught:
        score(backend_of(server, **settings), passages or [passage("t-1", 0, 30)], k)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PASSAGES = [passage("a", 0, 400), passage("b", 300, 90, every=3), passage("c", 900, 2)]


def test_vllm_form_agrees_with_a_plain_forward(server, model):
    for actual, text in zip(score(backend_of(server), PASSAGES), PASSAGES, strict=True):
        assert_same(actual, reference(model, text), 1e-4)


@pytest.mark.parametrize("strict", [False, True])
def test_openai_form_agrees_and_gives_no_rank_beyond_the_top(server, model, strict):
    server.forms = ("echo",)
    server.fields = OPENAI_FIELDS | {"return_tokens_as_token_ids"} if strict else None
    for actual, text in zip(score(backend_of(server), PASSAGES), PASSAGES, strict=True):
        want = reference(model, text)
        beyond = want.rank > 10
        assert (actual.rank[beyond] <= -10).all()
        assert (np.abs(actual.rank - want.rank)[~beyond & (want.rank < 10)] <= 1).all()  # ties up to rounding
        actual.rank[beyond] = want.rank[beyond]
        assert_same(actual, want, 1e-4)


def clear_passage(server, model, k):
    """A passage whose wanted tokens, and the k likeliest beside them, all have a text of their own."""
    texts = TokenIdsByText(server.tokenizer)
    clear = np.array([i for i in range(len(server.tokenizer)) if texts._ids[server.tokenizer.decode([i])] is not None])
    for start in range(0, 3000, 16):
        text = passage("clear", start, 200)
        top = reference(model, text, k).topk_ids
        good = np.isin(top, clear).all(axis=1) & np.isin(text.ids[1:], clear)
        if good[14]:  # what the first short request asks for
            return text._replace(targets=text.targets[good])
    raise AssertionError("no such passage")


@pytest.mark.parametrize("strict", [False, True])
def test_token_texts_count_only_where_they_are_unambiguous(server, model, strict):
    server.forms = ("echo",)
    server.names_ids = False
    server.fields = OPENAI_FIELDS if strict else None
    text = clear_passage(server, model, k=3)
    want = reference(model, text, 2)
    (actual,) = score(backend_of(server), [text], k=2)
    assert len(actual.logprob) > 10
    assert np.abs(actual.logprob - want.logprob).max() < 1e-4
    assert (actual.topk_ids == want.topk_ids).all()
    whole = text._replace(targets=np.arange(1, len(text.ids), dtype=np.int32))
    reported = error_of(server, [whole], k=2)
    assert "tokens by their text" in reported
    assert "'clear'" in reported


def test_passages_to_skip_are_not_asked_for(server):
    read = []
    results = dict(backend_of(server).score(PASSAGES, 10, read.append, skip={0}))
    assert sorted(results) == [1, 2]
    assert sum(read) == sum(len(p.ids) for p in PASSAGES[1:])
    assert PASSAGES[0].ids.tolist() not in server.prompts
    assert not list(backend_of(server).score(PASSAGES, 10, read.append, skip={0, 1, 2}))


def test_token_ids_are_the_prompt(server):
    score(backend_of(server), PASSAGES[:1])
    assert server.prompts[-1] == PASSAGES[0].ids.tolist()


def test_several_requests_are_in_flight(server):
    three = threading.Barrier(3)
    server.spoils, server.spoil = 20, lambda choice: three.wait(300)
    score(backend_of(server), [passage(str(i), i, 20) for i in range(9)])
    assert server.busiest == 3


def test_failures_that_pass_are_tried_again(server, model):
    server.fail = [500, 503]
    (actual,) = score(backend_of(server), PASSAGES[:1])
    assert_same(actual, reference(model, PASSAGES[0]), 1e-4)


def test_a_wait_that_the_server_asks_for_is_kept(server, monkeypatch):
    server.fail, server.pause, backend, waits = [429], 2, backend_of(server), []
    monkeypatch.setattr(backend._server.stop, "wait", waits.append)
    score(backend, PASSAGES[:1])
    assert waits == [2]


def test_failures_that_stay_name_the_trajectory_and_the_reason(server):
    server.spoil = lambda choice: server.fail.extend([500] * 3)  # after the first short request
    reported = error_of(server, num_concurrent=1)
    assert "failed on trajectory 't-1' (30 tokens) (attempts: 3): HTTP 500: try later" in reported


SPOILS = {
    "the values of token 7 are null": lambda values: values.__setitem__(7, None),
    "is null": lambda values: next(iter(values[7].values())).update(logprob=None),
    "other tokens than token": lambda values: values.insert(1, values.pop()),
    "29 positions": lambda values: values.pop(),
    "9 tokens came back, 10 were asked for": lambda values: [values[7].popitem() for _ in range(len(values[7]) - 9)],
    "exceed 1": lambda values: [value.update(logprob=-0.1, rank=None) for value in values[7].values()],
}


@pytest.mark.parametrize("reported", SPOILS)
def test_values_that_cannot_be_right_name_the_trajectory(server, reported):
    server.spoils = 30  # not the first short request
    server.spoil = lambda choice: SPOILS[reported](choice["prompt_logprobs"])
    message = error_of(server)
    assert reported in message
    assert "'t-1'" in message


def test_minus_infinity_is_an_error(server):
    server.spoils = 30
    server.spoil = lambda choice: next(iter(choice["prompt_logprobs"][5].values())).update(logprob=-9999.0)
    assert "minus infinity" in error_of(server)


def test_servers_that_allow_too_few_or_cannot_echo_are_refused(server):
    server.most_logprobs = 5
    reported = error_of(server)
    assert "k=10" in reported
    assert "at most 5" in reported
    assert "--max-logprobs" in reported
    server.cuts_logprobs = True
    assert "tokens came back, 10 were asked for" in error_of(server)
    server.forms = ()
    assert "no log-probabilities of the 16 prompt tokens came back (values for 1 tokens)" in error_of(server)


def test_unknown_models_wrong_addresses_and_keys_are_explained(server):
    assert "Models it serves: tiny" in error_of(server, model="huge")
    assert "no completions at this address" in error_of(server, base_url=server.address.replace("completions", "chat"))
    server.key = "secret"
    reported = error_of(server)
    assert "OPENAI_API_KEY" in reported
    assert "secret" not in reported


def test_the_header_is_lm_evals(server, monkeypatch):
    server.key = "secret"
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    score(backend_of(server), PASSAGES[:1])


def test_a_context_that_is_too_short_names_the_trajectory(server):
    server.lists_models = False
    server.context = 25
    reported = error_of(server)
    assert "'t-1' (30 tokens): HTTP 400" in reported
    assert "maximum context length is 25" in reported
    assert "max_length" in reported


def test_no_server_is_explained(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1/completions"
        reported = error_of(server, base_url=address, max_retries=1)
    assert "cannot connect (Connection refused)" in reported


def test_a_slow_server_is_explained(server):
    server.delay = 300
    assert "no answer within 1 seconds" in error_of(server, timeout=1, max_retries=1)


def test_an_answer_that_is_not_json_is_explained(server):
    backend = backend_of(server, max_retries=1)
    server.body = "<html>gateway</html>"
    with pytest.raises(ScoringError, match="not JSON: '<html>gateway</html>'"):
        score(backend, PASSAGES[:1])


def test_an_error_ends_a_run_at_once(server):
    """Requests in flight and pauses between attempts do not hold it up."""
    over = threading.Event()

    def spoil(choice):
        if len(choice["prompt_logprobs"]) == 20:
            over.wait(300)
        elif len(choice["prompt_logprobs"]) == 30:
            choice["prompt_logprobs"].pop()

    server.spoil = spoil
    passages, backend = [passage("long", 0, 30), *(passage(str(i), 0, 20) for i in range(20))], backend_of(server)
    with pytest.raises(ScoringError):
        score(backend, passages)
    assert len(server.prompts) <= 5  # of 22: one to try, "long" is the first, two in flight beside it, one after it
    over.set()


def test_context_length_is_learned_from_the_server(server, caplog):
    caplog.set_level(logging.WARNING, "hesnr_tasks")
    server.context = 5000
    assert backend_of(server, max_length=4000).max_length == 3999
    assert not caplog.records
    assert backend_of(server, max_length=6000).max_length == 4999
    assert "max_length=6000 is more than the 5000" in caplog.text
    assert backend_of(server, max_length=2048).max_length == 4999
    assert "max_length is not set: the server reads 5000" in caplog.text
    server.lists_models = False
    assert backend_of(server, max_length=2048).max_length == 2047
    assert "default of 2048" in caplog.text


def test_chat_endpoints_and_other_tokenizers_are_refused(server):
    with pytest.raises(ScoringError, match="chat endpoints"):
        backend_for(LocalChatCompletion(model="tiny", base_url=server.address, max_length=100))
    reported = error_of(server, tokenizer=None, tokenizer_backend="None")
    assert "tokenizer=NAME_OR_PATH,tokenizer_backend=huggingface" in reported
    assert "base_url=http" in error_of(server, base_url=None)


def test_bos_is_the_tokenizers_unless_asked_for(server):
    assert backend_of(server).bos is None
    assert backend_of(server, add_bos_token=True).bos is True


def test_description_identifies_the_model(server):
    described = backend_of(server).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["model"] == "tiny"
    assert described["engine"] == "test"


# --- a real vLLM server -----------------------------------------------------------------------------------------------


class Running:
    """A running `vllm serve`: where it is."""

    def __init__(self, folder, port):
        self.folder = folder
        self.address = f"http://127.0.0.1:{port}/v1/completions"


@pytest.fixture(scope="module")
def vllm(folder, tmp_path_factory):
    python = find_vllm_python()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        Path(python).with_name("vllm"), "serve", folder, "--served-model-name", "tiny", "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_until_ready(process, port, log)
        yield Running(folder, port)
    finally:
        end_group(process)


def wait_until_ready(process, port, log, seconds=400):
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError("vllm serve did not start:\n" + log.read_text()[-4000:])


def test_vllm_serve_agrees_with_a_plain_forward(vllm, model, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    backend = backend_of(vllm, max_length=2048, timeout=300)
    assert backend.max_length == 32767
    assert backend.describe()["engine"] == "vllm"
    passages = [passage("long", 0, TOKENS), passage("one", 0, 700, every=3), passage("two", 0, 640, every=7)]
    for actual, text in zip(score(backend, passages), passages, strict=True):
        want = reference(model, text)
        assert_same(actual, want)
        change = np.abs(entropy(actual.topk_logprobs) - entropy(want.topk_logprobs)).max()
        error = np.abs(actual.logprob - want.logprob).max()
        print(f"{len(text.ids)} tokens: |Δ logprob| {error:.1e}, |Δ H| {change:.1e}")


def test_vllm_serve_echo_form_agrees_too(vllm, model, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    text = passage("one", 0, 700)
    actual, want = backend_of(vllm, timeout=300)._score_text(FORMS[1], text, 10), reference(model, text)
    assert (actual.rank[want.rank > 11] <= -10).all()
    assert_same(actual._replace(rank=np.where(actual.rank < 0, want.rank, actual.rank)), want)


def test_vllm_serve_errors_are_explained(vllm, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "25" in error_of(vllm, k=25)
    assert "Models it serves: tiny" in error_of(vllm, model="huge")
    text = passage("t-1", 0, 1000)
    long = TokenSequence("long", np.resize(text.ids, 32768), np.array([5], dtype=np.int32))
    assert "refused trajectory 'long' (32768 tokens): HTTP 400" in error_of(vllm, [long])
