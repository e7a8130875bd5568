"""Answers of vLLM's engine are kept at the step that finishes them; against a small engine with vLLM's two methods."""

import itertools
from types import SimpleNamespace

import pytest

from hesnr_tasks.passk import seeded_generation
from hesnr_tasks.passk.seeded_generation import SampleRequest


class Engine:
    """Runs two requests at a time; a request with seed s takes 1 + s % 5 steps and answers with its prompt and seed."""

    def __init__(self, stop_after=None):
        self.waiting, self.running, self.steps, self.stop_after = [], [], 0, stop_after

    def add_request(self, request_id, prompt, params):
        self.waiting.append([request_id, prompt, params, 1 + params.seed % 5])

    def step(self):
        self.steps += 1
        if self.stop_after is not None and self.steps > self.stop_after:
            raise RuntimeError("the engine died")
        while self.waiting and len(self.running) < 2:
            self.running.append(self.waiting.pop(0))
        outputs = []
        for request in list(self.running):
            request[3] -= 1
            if not request[3]:
                self.running.remove(request)
            text = f"{request[1]} {request[2].seed} END and more"
            outputs.append(SimpleNamespace(request_id=request[0], finished=not request[3],
                                           outputs=[SimpleNamespace(text=text)]))  # fmt: skip
        return outputs


class VLLM:
    """As lm-eval drives the engine: all requests at once, the texts in their order, cut at stop words."""

    think_end_token, eot_token_id, max_gen_toks = None, 0, 8
    tokenizer = SimpleNamespace(decode=lambda _: "<eos>")

    def __init__(self, **kwargs):
        self.model = SimpleNamespace(llm_engine=Engine(**kwargs))
        self.ids = itertools.count()

    def modify_gen_kwargs(self, kwargs, *, eos, default_max_gen_toks):
        return kwargs, [*kwargs["until"], eos], default_max_gen_toks

    def generate_until(self, requests, disable_tqdm):
        engine, texts = self.model.llm_engine, {}
        order = sorted(requests, key=lambda request: request.args[0])  # lm-eval sorts, too
        for request in order:
            engine.add_request(str(next(self.ids)), request.args[0], SimpleNamespace(seed=request.args[1]["seed"]))
        while engine.waiting or engine.running:
            texts |= {output.request_id: output.outputs[0].text for output in engine.step() if output.finished}
        by_request = {id(r): texts[i].split("END")[0] for i, r in zip(sorted(texts, key=int), order)}
        return [by_request[id(request)] for request in requests]


def jobs(problems=3, repeats=4):
    return [
        SampleRequest("t", "1", f"problem{p}", f"prompt {p}", {"until": ["END"], "temperature": 1.0}, 1234, None, i)
        for p in range(problems)
        for i in range(repeats)
    ]


def expected(job):
    return f"{job.context} {job.seed} "


@pytest.mark.parametrize("done", [frozenset(), frozenset({0, 5, 6})])
def test_answers_come_as_they_are_finished_and_belong_to_their_jobs(done):
    lm, kept, calls = VLLM(), {}, []

    def keep(some):
        calls.append(len(some))
        for i, text in some:
            assert kept.setdefault(i, text) == text

    every = jobs()
    seeded_generation._vllm(lm, every, done, keep)
    assert kept == {i: expected(job) for i, job in enumerate(every) if i not in done}
    assert max(calls[:-1]) <= 2  # at most what finishes in a step
    assert sum(calls[:-1]) == len(every) - len(done)
    assert lm.model.llm_engine.step.__func__ is Engine.step  # no longer watched


def test_an_engine_that_dies_leaves_what_it_had_finished():
    lm, kept = VLLM(stop_after=9), {}
    with pytest.raises(RuntimeError, match="died"):
        seeded_generation._vllm(lm, jobs(), frozenset(), lambda some: kept.update(some))
    assert 3 <= len(kept) < 12
    assert all(text == expected(jobs()[i]) for i, text in kept.items())


def test_two_problems_with_one_seed_are_kept_apart(monkeypatch):
    """Their ranges of seeds met: which is which is known when all are there, not before."""
    monkeypatch.setattr(seeded_generation, "seed_of", lambda base, problem, repeat: 7 + repeat)
    lm, kept = VLLM(), {}
    every = jobs()
    seeded_generation._vllm(lm, every, frozenset(), lambda some: kept.update(some))
    assert kept == {i: expected(job) for i, job in enumerate(every)}
