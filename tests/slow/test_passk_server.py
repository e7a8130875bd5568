"""Plain lm-eval with the example task against a real server process that honours seeds (or does not)."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from hesnr_tasks.passk import pass_at_k
from hesnr_tasks.tasks.registration import tasks_path
from tests import processes

TASK, FILTER, PROBLEMS, REPEATS = "hesnr_passk_arithmetic", "first_integer", 24, 8
HERE = Path(__file__).parent


@contextlib.contextmanager
def serving(*words):
    process = subprocess.Popen([sys.executable, HERE / "sampler_server.py", *words], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def requests_of(address):
    with urllib.request.urlopen(f"{address}/requests") as reply:
        return json.load(reply)


def arguments(address, concurrent=4):
    return {
        "model": "sampler", "base_url": f"{address}/v1/completions", "tokenizer_backend": None,
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


def count(path):
    """Answers that another process has kept until now."""
    if not path.exists():
        return 0
    with (
        contextlib.closing(sqlite3.connect(path, timeout=30)) as database,
        contextlib.suppress(sqlite3.OperationalError),
    ):
        return database.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    return 0


def answers_of(result):
    return {sample["doc"]["id"]: sample["resps"][0] for sample in result["samples"][TASK]}


@pytest.fixture(scope="module")
def undisturbed():
    with serving() as address:
        yield evaluate(address), requests_of(address)


def test_every_answer_has_its_own_seed_and_the_answers_differ(undisturbed):
    result, requests = undisturbed
    assert len(requests) == PROBLEMS * REPEATS
    seeds = {}
    for request in requests:
        seeds.setdefault(request["prompt"], []).append(request["seed"])
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
    kept = tmp_path / f"{TASK}.0.sqlite"
    with serving("--hold", "60") as address:
        process = processes.start(evaluate, address, tmp_path)
        until = time.monotonic() + 120
        while count(kept) < 40:
            if not process.is_alive() or time.monotonic() > until:
                process.kill()
                pytest.fail("the evaluation ended or stands still")
            time.sleep(0.01)
        process.kill()
        process.join()
        assert 40 <= count(kept) <= 60
        urllib.request.urlopen(f"{address}/go").close()
        result = evaluate(address, tmp_path)
        requests = Counter((request["prompt"], request["seed"]) for request in requests_of(address))
    assert answers_of(result) == answers_of(undisturbed[0])
    assert len(requests) == PROBLEMS * REPEATS
    assert sum(requests.values()) <= PROBLEMS * REPEATS + 4  # what was in flight, or torn, is asked for again


def test_more_answers_later_keep_the_first_ones(tmp_path):
    with serving() as address:
        few = evaluate(address, tmp_path, {"repeats": 2}, limit=3)
        more = evaluate(address, tmp_path, {"repeats": 4}, limit=5)
        assert len(requests_of(address)) == 5 * 4
    for name, answers in answers_of(few).items():
        assert answers_of(more)[name][:2] == answers


def test_a_server_that_heeds_no_seed_is_noticed(caplog):
    with serving("--deaf") as address:
        result = evaluate(address, limit=4)
        assert len({request["seed"] for request in requests_of(address)}) == 4 * REPEATS
    assert all(len(set(some)) == 1 for some in answers_of(result).values())
    assert any("every pass@k is pass@1" in record.getMessage() for record in caplog.records)
