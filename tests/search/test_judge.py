"""Scores are numbers or errors; votes stay the prior; planted quality and planted bias are found."""

from __future__ import annotations

import json
import math
import statistics
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hesnr_tasks.errors import JudgeError, SettingsError
from hesnr_tasks.search.judge import (
    Blend,
    LLMJudge,
    LogprobJudge,
    ScriptedJudge,
    best,
    posterior,
    scripted_score,
    strength_from,
)
from hesnr_tasks.search.judge_bias import Question, position_bias
from hesnr_tasks.search.judge_chat import HttpChat, JudgeFailed, Reply
from hesnr_tasks.search.judge_replies import BadReply, read_scores
from hesnr_tasks.search.prompts import PATCH_DIMENSIONS, STEP_DIMENSIONS, letters, step_messages
from hesnr_tasks.search.types import Candidate, Draw, Usage


def candidate(command, votes=1, **extra):
    return Candidate(command, votes, Draw({"role": "assistant", "content": f"do {command}", "extra": extra}, command))


def points(value):
    return {one.key: value for one in STEP_DIMENSIONS}


# --- votes and scores ---


def test_posterior_is_votes_times_exp_of_score():
    found = posterior([3, 1], [0.25, 0.5], Blend(strength=8.0, prior=2.0))
    weights = [9 * math.exp(2), 1 * math.exp(4)]
    assert found == pytest.approx([one / sum(weights) for one in weights], rel=1e-12)


def test_votes_alone_without_scores_and_judge_alone_without_prior():
    assert posterior([3, 1], None) == pytest.approx([0.75, 0.25])
    assert posterior([3, 1], [0.5, 0.5], Blend(prior=0.0)) == pytest.approx([0.5, 0.5])


def test_best_breaks_ties_by_votes_then_by_order():
    many = [candidate("a", 1), candidate("b", 2), candidate("c", 2)]
    assert best(many, [0.5, 0.5, 0.5], Blend(prior=0.0)) == 1
    assert best(many[::2], [0.5, 0.5], Blend(prior=0.0)) == 1
    assert best([candidate("a"), candidate("b")], [0.5, 0.5]) == 0
    assert best(many, [0.9, 0.5, 0.5]) == 0  # e^(8 * 0.4) is more than 2 votes to 1


@pytest.mark.parametrize(
    ("votes", "scores", "blend"),
    [
        ([], None, Blend()),
        ([0, 1], None, Blend()),
        ([1, 1], [0.5], Blend()),
        ([1], [1.5], Blend()),
        ([1], [math.nan], Blend()),
        ([1], [0.5], Blend(strength=math.inf)),
        ([1], [0.5], Blend(prior=-1.0)),
    ],
)
def test_what_is_no_number_is_refused(votes, scores, blend):
    with pytest.raises(SettingsError):
        posterior(votes, scores, blend)


# --- scripted ---


@pytest.mark.parametrize("d_prime", [0.0, 1.0, 2.0])
def test_planted_quality_is_recovered(d_prime):
    good = [scripted_score(True, d_prime, "g", i) for i in range(4000)]
    bad = [scripted_score(False, d_prime, "b", i) for i in range(4000)]
    spread = math.sqrt((statistics.variance(good) + statistics.variance(bad)) / 2)
    assert (statistics.mean(good) - statistics.mean(bad)) / spread == pytest.approx(d_prime, abs=0.07)
    better = sum(g > b for g, b in zip(good, bad)) / 4000
    assert better == pytest.approx(statistics.NormalDist().cdf(d_prime / math.sqrt(2)), abs=0.025)
    assert strength_from(good, bad) == pytest.approx(8 * d_prime, abs=0.6)


def test_scripted_judge_answers_the_same_question_the_same_way():
    judge = ScriptedJudge(lambda task, history, one: one.key == "a", 1.0, cost=lambda h, c: Usage(7, 0, len(c)))
    both = [candidate("a"), candidate("b")]
    first, turned = judge.judge("t", [], both), judge.judge("t", [], both[::-1])
    assert first.scores == turned.scores[::-1]
    assert first.usage == Usage(7, 0, 2)
    assert judge.judge("other", [], both).scores != first.scores


def test_a_judge_that_cannot_be_calibrated_is_refused():
    with pytest.raises(SettingsError):
        strength_from([0.5, 0.5], [0.5, 0.5])
    assert strength_from([0.1, 0.2], [0.8, 0.9]) == 0.0


# --- log-probabilities ---


def test_logprob_judge_is_the_geometric_mean():
    content = [{"token": "a", "logprob": math.log(0.5)}, {"token": "b", "logprob": math.log(0.125)}]
    one = candidate("a", response={"choices": [{"logprobs": {"content": content}}]})
    verdict = LogprobJudge().judge("t", [], [one])
    assert verdict.scores[0] == pytest.approx(0.25)
    assert verdict.usage == Usage()


@pytest.mark.parametrize("response", [None, {"choices": []}, {"choices": [{"logprobs": None}]}])
def test_logprob_judge_without_logprobs_is_an_error(response):
    with pytest.raises(JudgeError, match="logprobs"):
        LogprobJudge().judge("t", [], [candidate("a", response=response)])


# --- replies ---


def test_a_good_reply_is_read_also_fenced_or_after_thoughts():
    text = json.dumps({"A": points(3), "B": points(1)})
    for reply in (text, f"```json\n{text}\n```", f"<think>A or B?</think>\n{text}"):
        assert read_scores(reply, ["A", "B"], STEP_DIMENSIONS) == [points(3), points(1)]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("I like A best.", "not one JSON object"),
        ("", "not one JSON object"),
        ("[1]", "no object"),
        (json.dumps({"A": points(3)}) + " and that is why", "not one JSON object"),
        (json.dumps({"A": points(3), "B": points(1)}), "keys must be exactly A"),
        (json.dumps({"A": 3}), "object of points"),
        (json.dumps({"A": {**points(3), "total": 15}}), "exactly the keys"),
        (json.dumps({"A": {**points(3), "step_consistency": 4}}), "step_consistency"),
        (json.dumps({"A": {**points(3), "step_consistency": 2.5}}), "step_consistency"),
        (json.dumps({"A": {**points(3), "step_consistency": True}}), "step_consistency"),
        (json.dumps({"A": {**points(3), "step_consistency": "3"}}), "step_consistency"),
        ('{"A": {"step_consistency": NaN}}', "NaN"),
        ('{"A": {"x": 1, "x": 2}}', "twice"),
        ("[" * 100_000, "not one JSON object"),
    ],
)
def test_every_other_reply_says_why_not(reply, why):
    with pytest.raises(BadReply, match=why):
        read_scores(reply, ["A"], STEP_DIMENSIONS)


def test_the_gate_dimension_takes_0_or_3_only():
    text = json.dumps({"A": {**{one.key: 3 for one in PATCH_DIMENSIONS}, "functionality_validation": 2}})
    with pytest.raises(BadReply, match="functionality_validation"):
        read_scores(text, ["A"], PATCH_DIMENSIONS)


def test_letters_never_run_out():
    assert letters(2) == ["A", "B"]
    assert len(set(letters(60))) == 60


# --- the model ---


class Chat:
    """Says what `say(user text, number of the call)` returns; keeps what it was asked."""

    def __init__(self, say):
        self.say, self.asked = say, []

    def __call__(self, messages):
        self.asked.append(messages)
        return Reply(self.say(messages[1]["content"], len(self.asked)), Usage(100, 10, 5))


def by_content(shown, number):
    """More points for what stands first in the alphabet, wherever it is shown."""
    parts = shown.split("===== candidate ")[1:]
    return json.dumps({part[0]: points(3 if "$ a" in part else 1) for part in parts})


def by_position(shown, number):
    parts = shown.split("===== candidate ")[1:]
    return json.dumps({part[0]: points(3 if part[0] == "A" else 1) for part in parts})


def test_scores_do_not_depend_on_the_order_shown():
    many = [candidate(name) for name in ("b", "a", "c", "d")]
    orders = set()
    for seed in range(8):
        chat = Chat(by_content)
        verdict = LLMJudge(chat, seed=seed).judge("task", [], many)
        assert verdict.scores == pytest.approx((1 / 3, 1.0, 1 / 3, 1 / 3))
        assert json.loads(verdict.notes[1]) == points(3)
        orders.add(chat.asked[0][1]["content"])
    assert len(orders) > 3  # the order was permuted


def test_an_unusable_reply_is_asked_for_again_with_the_reason():
    chat = Chat(lambda shown, number: by_content(shown, number) if number == 3 else "A is best")
    verdict = LLMJudge(chat).judge("task", [], [candidate("a"), candidate("b")])
    assert verdict.scores == pytest.approx((1.0, 1 / 3))
    assert verdict.usage == Usage(300, 30, 15)
    assert "not one JSON object" in chat.asked[2][-1]["content"]
    assert chat.asked[2][-2]["content"] == "A is best"


def test_a_judge_that_talks_nonsense_is_an_error_with_its_cost():
    with pytest.raises(JudgeFailed, match="3 tries") as failed:
        LLMJudge(Chat(lambda shown, number: "nonsense")).judge("task", [], [candidate("a")])
    assert failed.value.usage == Usage(300, 30, 15)
    assert isinstance(failed.value, JudgeError)


def test_position_bias_is_found_and_only_where_it_is():
    questions = [Question(f"task {i}", [], [candidate(f"{name}{i}") for name in "bac"]) for i in range(6)]
    biased = position_bias(LLMJudge(Chat(by_position)), questions, permutations=500)
    assert biased.p < 0.01
    assert biased.effects[0] == pytest.approx(2 * (2 / 3) / 3)
    assert biased.stable == pytest.approx(1 / 3)
    fair = position_bias(LLMJudge(Chat(by_content)), questions, permutations=500)
    assert fair.p == 1.0
    assert fair.stable == 1.0
    assert fair.usage == Usage(1800, 180, 90)


def test_history_is_shortened_and_votes_are_not_shown():
    history = [{"role": "user", "content": "x" * 50_000}, {"role": "user", "content": "the latest output"}]
    asked = step_messages("task", history, [candidate("a", votes=37)], 2_000)
    text = asked[1]["content"]
    assert "the latest output" in text
    assert len(text) < 6_000
    assert "37" not in text + asked[0]["content"]


# --- HTTP ---


@pytest.fixture
def server():
    """A chat endpoint whose answers are queued as (status, body)."""
    answers, seen = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, self.headers.get("Authorization")))
            status, answer = answers.pop(0)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data) + (9 if answer is None else 0)))  # None: broken off
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}/v1", answers, seen
    serving.shutdown()
    serving.server_close()


def completion(text):
    usage = {"prompt_tokens": 50, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 20}}
    return {"choices": [{"message": {"content": text}}], "usage": usage}


def test_a_real_endpoint_is_asked_as_openai_has_it(server, monkeypatch):
    url, answers, seen = server
    monkeypatch.setenv("JUDGE_KEY", "secret")
    answers += [(500, b"busy"), (200, completion(json.dumps({"A": points(2)})))]
    verdict = LLMJudge(HttpChat(url, "m", "JUDGE_KEY", pause=0)).judge("task", [], [candidate("a")])
    assert verdict.scores == pytest.approx((2 / 3,))
    assert verdict.usage == Usage(50, 20, 9)
    path, body, key = seen[1]
    assert (path, body["model"], body["temperature"], key) == ("/v1/chat/completions", "m", 0.0, "Bearer secret")


ODD_USAGE = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1, "completion_tokens": "2"}}


def test_an_address_that_is_none_is_a_failed_judge():
    with pytest.raises(JudgeFailed, match="InvalidURL"):
        HttpChat("http://no where/v1", "m", pause=0)([{"role": "user", "content": "?"}])


@pytest.mark.parametrize(
    ("queued", "why", "calls"),
    [
        ([(401, b"no key")], "HTTP 401", 1),
        ([(503, b"busy")] * 3, "HTTP 503", 3),
        ([(200, b"<html>")] * 3, "JSONDecodeError", 3),
        ([(200, {"choices": [], "usage": {}})] * 3, "no chat completion", 3),
        ([(200, {"choices": [{"message": {"content": "x"}}]})] * 3, "no token usage", 3),
        ([(200, {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1}})] * 3, "no token usage", 3),
        ([(200, ODD_USAGE)] * 3, "no token usage", 3),
        ([(200, None)] * 3, "IncompleteRead", 3),
        ([(401, b"\x1b[2Jgone")], r"HTTP 401:  \[2Jgone", 1),
    ],
)
def test_an_endpoint_that_fails_is_an_error(server, queued, why, calls):
    url, answers, seen = server
    answers += queued
    with pytest.raises(JudgeFailed, match=why):
        HttpChat(url, "m", pause=0)([{"role": "user", "content": "?"}])
    assert len(seen) == calls


def test_an_address_without_scheme_is_refused():
    with pytest.raises(SettingsError):
        HttpChat("localhost:8000/v1", "m")
