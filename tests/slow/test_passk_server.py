"""Plain lm-eval with the example task against a server that honours seeds (or does not)."""

import itertools
import random
import re
import socket
import struct
import threading
import time
from collections import Counter

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from hesnr_tasks.passk import pass_at_k
from hesnr_tasks.tasks import tasks_path
from hesnr_tasks.testing import fake_server
from tests import processes

TASK, FILTER, PROBLEMS, REPEATS = "hesnr_passk_arithmetic", "first_integer", 24, 8
PROBLEM = re.compile(r"(\d+) ([+-]) (\d+) =$")


def prompt_of(request):
    return request["prompt"] if isinstance(request["prompt"], str) else request["prompt"][0]


def sampled(request):
    """The right number half of the time, drawn with a generator seeded by the request's seed and prompt."""
    prompt = prompt_of(request)
    draw = random.Random(f"{request['seed']} {prompt}")
    a, sign, b = PROBLEM.search(prompt).groups()
    right = int(a) + int(b) if sign == "+" else int(a) - int(b)
    return f" {right if draw.random() < 0.5 else draw.randrange(10**9)}"


def arguments(address, concurrent=4):
    return {
        "model": "sampler", "base_url": address, "tokenizer_backend": None,
        "tokenized_requests": False, "num_concurrent": concurrent,
    }  # fmt: skip


def evaluate(address, answers="none", passk=None, **kwargs):
    metadata = {"passk": {"answers": str(answers), **(passk or {})}}
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata=metadata)
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments(address),
        tasks=[TASK],
        task_manager=manager,
        **{"bootstrap_iters": 1000, **kwargs},
    )


def count(folder):
    """Answers that another process has kept until now."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(f"{TASK}-*.0.jsonl"))


def answers_of(result):
    return {sample["doc"]["id"]: sample["resps"][0] for sample in result["samples"][TASK]}


@pytest.fixture(scope="module")
def undisturbed():
    with fake_server(answer=sampled) as server:
        yield evaluate(server.address), server.requests


def test_every_answer_has_its_own_seed_and_the_answers_differ(undisturbed):
    result, requests = undisturbed
    assert len(requests) == PROBLEMS * REPEATS
    seeds = {}
    for request in requests:
        seeds.setdefault(prompt_of(request), []).append(request["seed"])
    assert all(len(set(some)) == REPEATS for some in seeds.values())
    assert {request["temperature"] for request in requests} == {0.8}
    assert all(len(set(some)) > 1 for some in answers_of(result).values())


def test_the_metrics_are_of_the_answers(undisturbed):
    result, _ = undisturbed
    counted = []
    for sample in result["samples"][TASK]:
        right = sum(int(text) == int(sample["target"]) for text in answers_of(result)[sample["doc"]["id"]])
        counted.append(right)
        assert sample["pass@1"] == right / REPEATS
    assert 60 < sum(counted) < 132  # half of 192, give or take five standard deviations
    for k in (1, 2, 4, 8):
        mean = sum(pass_at_k(REPEATS, c, k) for c in counted) / PROBLEMS
        assert result["results"][TASK][f"pass@{k},{FILTER}"] == pytest.approx(mean, rel=1e-14)
        assert 0 <= result["results"][TASK][f"pass@{k}_stderr,{FILTER}"] < 0.1


def test_killed_in_the_middle_and_gone_on_the_answers_are_the_same(undisturbed, tmp_path):
    answered, go_on = itertools.count(1), threading.Event()

    def first_sixty(request):
        if next(answered) > 60:
            go_on.wait()
        return sampled(request)

    with fake_server(answer=first_sixty) as server:
        process = processes.start(evaluate, server.address, tmp_path)
        until = time.monotonic() + 600
        while count(tmp_path) < 40:
            if not process.is_alive() or time.monotonic() > until:
                process.kill()
                pytest.fail("the evaluation ended or stands still")
            time.sleep(0.01)
        process.kill()
        process.join()
        n_kept = count(tmp_path)
        assert 40 <= n_kept <= 60
        go_on.set()
        result = evaluate(server.address, tmp_path)
        requests = Counter((prompt_of(request), request["seed"]) for request in server.requests)
    assert answers_of(result) == answers_of(undisturbed[0])
    assert len(requests) == PROBLEMS * REPEATS
    # what was in flight, or answered and not on the disk yet, is asked for again; what was kept is not
    assert sum(requests.values()) <= PROBLEMS * REPEATS + (60 - n_kept) + 4


@pytest.mark.parametrize("body", [b"", b'{"prompt": "3 + '])
def test_a_client_killed_before_its_request_was_whole_asked_for_nothing(body, capfd):
    head = b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99\r\n\r\n"
    with fake_server(answer=sampled) as server:
        for reset in (False, True):
            with socket.create_connection(server.server_address) as client:
                client.sendall(head + body)
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        evaluate(server.address, limit=1)
        assert [prompt_of(request) for request in server.requests] == [prompt_of(server.requests[0])] * REPEATS
    assert "Traceback" not in capfd.readouterr().err


def test_more_answers_later_keep_the_first_ones(tmp_path):
    with fake_server(answer=sampled) as server:
        few = evaluate(server.address, tmp_path, {"repeats": 2}, limit=3)
        more = evaluate(server.address, tmp_path, {"repeats": 4}, limit=5)
        assert len(server.requests) == 5 * 4
    for name, answers in answers_of(few).items():
        assert answers_of(more)[name][:2] == answers


def test_a_server_that_heeds_no_seed_is_noticed(caplog):
    with fake_server(answer=lambda request: sampled(request | {"seed": 0})) as server:
        result = evaluate(server.address, limit=4)
        assert len({request["seed"] for request in server.requests}) == 4 * REPEATS
    assert all(len(set(some)) == 1 for some in answers_of(result).values())
    assert any("every pass@k is pass@1" in record.getMessage() for record in caplog.records)
