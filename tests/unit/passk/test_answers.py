"""Answers on disk: whole after a crash, never mixed, never silently another."""

import random
from collections import Counter
from pathlib import Path

import pytest

from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.lm_eval_compat import RunningEvaluation
from hesnr_tasks.passk import seeded_generation
from hesnr_tasks.passk.seeded_generation import SEED_LIMIT, AnswerStore, answers_stem, problem_id, seed_of

SETTINGS = {"task": "t", "generation_kwargs": {"temperature": 0.6}, "model": {"model": "m"}}


def filled(stem, keys="abc", rank=0):
    kept = AnswerStore(stem, SETTINGS, rank)
    kept.put([(key, 7, f"answer {key}\n\u2028é\ud83d") for key in keys])
    kept.close()
    return kept.path


def test_what_was_kept_is_there_again(tmp_path):
    filled(tmp_path / "t")
    again = AnswerStore(tmp_path / "t", SETTINGS)
    assert again.get("b") == "answer b\n\u2028é\ud83d"
    assert again.get("x") is None
    again.close()


def test_no_flipped_bit_changes_an_answer_silently(tmp_path):
    """Whatever bit of the file flips: an error that names the file, or answers that are those kept; lost ones are
    sampled again.
    """
    kept = {key: f"answer {key}\n\u2028é\ud83d" for key in "abc"}
    data = filled(tmp_path / "t").read_bytes()
    outcomes, rng = Counter(), random.Random(1)
    for number, place in enumerate(rng.sample(range(len(data)), 120)):
        stem = tmp_path / str(number) / "t"
        stem.parent.mkdir()
        broken = bytearray(data)
        broken[place] ^= 1 << rng.randrange(8)
        stem.with_name("t.0.jsonl").write_bytes(bytes(broken))
        try:
            again = AnswerStore(stem, SETTINGS)
        except HesnrError as error:
            outcomes["error" if "t.0.jsonl" in str(error) else "an error without the file"] += 1
            continue
        answers = [again.get(key) for key in kept]
        assert all(answer in (None, text) for answer, text in zip(answers, kept.values()))
        outcomes["lost"] += None in answers
        assert again.damaged == 1 or place == len(data) - 1
        again.close()
    assert set(outcomes) == {"error", "lost"}
    assert outcomes.total() >= 119


def test_a_damaged_answer_is_sampled_again_and_counted(tmp_path, caplog):
    path = filled(tmp_path / "t")
    path.write_bytes(path.read_bytes().replace(b"answer b", b"answer B"))
    again = AnswerStore(tmp_path / "t", SETTINGS)
    assert (again.get("a") is None, again.get("b"), again.damaged) == (False, None, 1)
    assert any("1 kept answers are damaged" in record.getMessage() for record in caplog.records)
    again.put([("b", 7, "mended")])
    again.close()
    again = AnswerStore(tmp_path / "t", SETTINGS)
    assert (again.get("b"), again.damaged) == ("mended", 0)
    again.close()


def test_another_tasks_answers_in_the_folder_are_not_these(tmp_path):
    other = AnswerStore(tmp_path / "t.hard", {**SETTINGS, "task": "t.hard"})
    other.put([("x", 1, "theirs")])
    other.close()
    kept = AnswerStore(tmp_path / "t", SETTINGS)
    assert kept.get("x") is None
    kept.close()


def test_what_cannot_be_written_or_is_no_file_of_answers_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HesnrError, match="cannot write"):
        AnswerStore(tmp_path / "file" / "t", SETTINGS)
    (tmp_path / "t.0.jsonl").write_text("rubbish\n" * 100)
    with pytest.raises(DataError, match=r"t\.0\.jsonl: no line of it"):
        AnswerStore(tmp_path / "t", SETTINGS)


def test_a_line_that_a_kill_cut_off_is_sampled_again(tmp_path):
    path = filled(tmp_path / "t")
    path.write_bytes(path.read_bytes()[:-9])
    again = AnswerStore(tmp_path / "t", SETTINGS)
    assert ([again.get(key) is None for key in "abc"], again.damaged) == ([False, False, True], 0)
    again.put([("c", 7, "mended")])
    again.close()
    again = AnswerStore(tmp_path / "t", SETTINGS)
    assert (again.get("b"), again.get("c")) == ("answer b\n\u2028é\ud83d", "mended")
    again.close()


def test_other_settings_are_not_mixed_in(tmp_path):
    filled(tmp_path / "t")
    other = {**SETTINGS, "generation_kwargs": {"temperature": 1.0}}
    with pytest.raises(SettingsError, match=r"generation_kwargs\.temperature: 0\.6 there, 1\.0 here"):
        AnswerStore(tmp_path / "t", other)


def test_processes_write_apart_and_read_all(tmp_path):
    filled(tmp_path / "t", "ab", rank=0)
    filled(tmp_path / "t", "cd", rank=1)
    filled(tmp_path / "t-2", "xy")  # another task, whose name begins alike
    kept = AnswerStore(tmp_path / "t", SETTINGS, rank=2)
    assert [kept.get(key) is not None for key in "abcdxy"] == [True] * 4 + [False] * 2
    kept.close()


def test_a_second_process_is_refused(tmp_path):
    first = AnswerStore(tmp_path / "t", SETTINGS)
    with pytest.raises(HesnrError, match="another process"):
        AnswerStore(tmp_path / "t", SETTINGS)
    first.close()
    AnswerStore(tmp_path / "t", SETTINGS).close()


def test_the_place(tmp_path, monkeypatch):
    assert answers_stem("none", "t", "m", SETTINGS) is None
    assert answers_stem(str(tmp_path), "a/t", "m", SETTINGS) == tmp_path / "a-t"
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
