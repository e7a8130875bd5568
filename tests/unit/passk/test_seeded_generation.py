"""Answers on disk: whole after a crash, never mixed, never silently another."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from hesnr_tasks.errors import DataError, HesnrError
from hesnr_tasks.lm_eval_compat import RunningEvaluation
from hesnr_tasks.passk import seeded_generation
from hesnr_tasks.passk.seeded_generation import (
    SEED_LIMIT,
    AnswerStore,
    SampleRequest,
    answers_stem,
    problem_id,
    seed_of,
)

__all__ = []

SETTINGS = {"task": "t", "generation_kwargs": {"temperature": 0.6}, "model": {"model": "m"}}


def filled(stem, keys="abc", rank=0):
    kept = AnswerStore(stem, rank)
    kept.put([(key, 7, f"answer {key}\n\u2028é\ud83d") for key in keys])
    kept.close()
    return kept.path


def test_what_was_kept_is_there_again(tmp_path):
    filled(tmp_path / "t")
    again = AnswerStore(tmp_path / "t")
    assert again.get("b") == "answer b\n\u2028é\ud83d"
    assert again.get("x") is None
    again.close()


def test_no_flipped_bit_changes_an_answer_silently(tmp_path):
    """Whatever bit of the file flips: answers are those kept, or lost, and then sampled again."""
    kept = {key: f"answer {key}\n\u2028é\ud83d" for key in "abc"}
    data = filled(tmp_path / "t").read_bytes()
    lost, rng = 0, random.Random(1)
    for number, place in enumerate(rng.sample(range(len(data)), 120)):
        stem = tmp_path / str(number) / "t"
        stem.parent.mkdir()
        broken = bytearray(data)
        broken[place] ^= 1 << rng.randrange(8)
        stem.with_name("t.0.jsonl").write_bytes(bytes(broken))
        again = AnswerStore(stem)
        answers = [again.get(key) for key in kept]
        assert all(answer in (None, text) for answer, text in zip(answers, kept.values()))
        lost += None in answers
        again.close()
    assert lost >= 119


def test_a_damaged_answer_is_sampled_again_and_counted(tmp_path, caplog):
    path = filled(tmp_path / "t")
    path.write_bytes(path.read_bytes().replace(b"answer b", b"answer B"))
    again = AnswerStore(tmp_path / "t")
    assert (again.get("a") is None, again.get("b")) == (False, None)
    assert any("1 kept answers are damaged" in record.getMessage() for record in caplog.records)
    again.put([("b", 7, "mended")])
    again.close()
    caplog.clear()
    again = AnswerStore(tmp_path / "t")
    assert (again.get("b"), caplog.text) == ("mended", "")
    again.close()


def test_what_cannot_be_written_or_is_no_file_of_answers_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HesnrError, match="cannot write"):
        AnswerStore(tmp_path / "file" / "t")
    (tmp_path / "t.0.jsonl").write_text("rubbish\n" * 100)
    with pytest.raises(DataError, match=r"t\.0\.jsonl: no line of it"):
        AnswerStore(tmp_path / "t")


def test_a_line_that_a_kill_cut_off_is_sampled_again(tmp_path):
    path = filled(tmp_path / "t")
    path.write_bytes(path.read_bytes()[:-9])
    again = AnswerStore(tmp_path / "t")
    assert [again.get(key) is None for key in "abc"] == [False, False, True]
    again.put([("c", 7, "mended")])
    again.close()
    again = AnswerStore(tmp_path / "t")
    assert (again.get("b"), again.get("c")) == ("answer b\n\u2028é\ud83d", "mended")
    again.close()


def test_processes_write_apart_and_read_all(tmp_path):
    filled(tmp_path / "t", "ab", rank=0)
    filled(tmp_path / "t", "cd", rank=1)
    filled(tmp_path / "t-2", "xy")  # another task, whose name begins alike
    kept = AnswerStore(tmp_path / "t", rank=2)
    assert [kept.get(key) is not None for key in "abcdxy"] == [True] * 4 + [False] * 2
    kept.close()


def test_a_second_process_is_refused(tmp_path):
    first = AnswerStore(tmp_path / "t")
    with pytest.raises(HesnrError, match="another process"):
        AnswerStore(tmp_path / "t")
    first.close()
    AnswerStore(tmp_path / "t").close()


def test_the_place(tmp_path, monkeypatch):
    assert answers_stem("none", "t", "m", SETTINGS) is None
    given = answers_stem(str(tmp_path), "a/t", "m", SETTINGS)
    assert (given.parent, given.name[:6]) == (tmp_path, "a-t-m-")
    running = RunningEvaluation(output_path=Path("out/results.json"))
    monkeypatch.setattr(seeded_generation, "running_evaluation", lambda: running)
    stem = answers_stem(None, "t", "org/model", SETTINGS)
    assert stem.parent.as_posix() == "out/answers"
    assert stem.name.startswith("t-model-")
    assert stem != answers_stem(None, "t", "org/model", {**SETTINGS, "task": "u"})
    running = RunningEvaluation()
    assert answers_stem(None, "t", "m", SETTINGS) is None


def test_seeds_are_distinct_within_a_problem_and_the_same_again():
    problem = problem_id("2 + 2 =", 1)
    seeds = [seed_of(1234, problem, i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < SEED_LIMIT for seed in seeds)
    assert seeds == [seed_of(1234, problem, i) for i in range(2000)]
    assert not set(seeds) & {seed_of(1235, problem, i) for i in range(2000)}
    assert not set(seeds) & {seed_of(1234, problem_id("2 + 2 =", 2), i) for i in range(2000)}


# --- answers of vLLM's engine are kept at the step that finishes them ------------------------------------------------


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
