"""Answers on disk: whole after a crash, never mixed, one writer at a time."""

import json
import os

import pytest

from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.passk.answers import KeptAnswers, place_of_answers
from hesnr_tasks.passk.seeds import LIMIT, identity, seed_of

SETTINGS = {"task": "t", "generation_kwargs": {"temperature": 0.6}, "model": {"model": "m"}}


def filled(stem, keys="abc", rank=0):
    kept = KeptAnswers(stem, SETTINGS, rank)
    kept.put((key, 7, f"answer {key}\n\u2028é\ud83d") for key in keys)
    kept.close()
    return kept.path


def test_what_was_kept_is_there_again(tmp_path):
    filled(tmp_path / "t")
    again = KeptAnswers(tmp_path / "t", SETTINGS)
    assert len(again) == 3
    assert again.get("b") == "answer b\n\u2028é\ud83d"
    assert again.get("x") is None
    again.put([("b", 7, "another")])
    assert again.get("b") == "answer b\n\u2028é\ud83d"
    again.close()


def test_every_cut_of_the_file_loses_the_cut_line_alone(tmp_path):
    data = filled(tmp_path / "t").read_bytes()
    for cut in range(len(data)):
        path = tmp_path / f"{cut}" / "t.0.jsonl"
        path.parent.mkdir()
        path.write_bytes(data[:cut])
        kept = KeptAnswers(tmp_path / f"{cut}" / "t", SETTINGS)
        assert len(kept) == max(0, data[:cut].count(b"\n") - 1)
        kept.put([("new", 1, "text")])
        kept.close()
        again = KeptAnswers(tmp_path / f"{cut}" / "t", SETTINGS)
        assert again.get("new") == "text"
        again.close()


def test_another_tasks_answers_in_the_folder_are_not_these(tmp_path):
    other = KeptAnswers(tmp_path / "t.hard", {**SETTINGS, "task": "t.hard"})
    other.put([("x", 1, "theirs")])
    other.close()
    kept = KeptAnswers(tmp_path / "t", SETTINGS)
    assert kept.get("x") is None
    kept.close()


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HesnrError, match="cannot write answers"):
        KeptAnswers(tmp_path / "file" / "t", SETTINGS)


def test_other_settings_are_not_mixed_in(tmp_path):
    filled(tmp_path / "t")
    other = {**SETTINGS, "generation_kwargs": {"temperature": 1.0}}
    with pytest.raises(SettingsError, match=r"generation_kwargs\.temperature: 0\.6 there, 1\.0 here"):
        KeptAnswers(tmp_path / "t", other)


@pytest.mark.parametrize(
    ("line", "text"), [(1, "{}"), (1, "rubbish"), (2, '{"key": 3, "answer": "x"}'), (3, "rub\0bish")]
)
def test_damage_is_an_error_with_its_line(tmp_path, line, text):
    path = filled(tmp_path / "t")
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"t\.0\.jsonl:{line}: "):
        KeptAnswers(tmp_path / "t", SETTINGS)


def test_processes_write_apart_and_read_all(tmp_path):
    filled(tmp_path / "t", "ab", rank=0)
    filled(tmp_path / "t", "cd", rank=1)
    filled(tmp_path / "t-2", "xy")  # another task, whose name begins alike
    kept = KeptAnswers(tmp_path / "t", SETTINGS, rank=2)
    assert [kept.get(key) is not None for key in "abcdxy"] == [True] * 4 + [False] * 2
    kept.close()


@pytest.mark.skipif(os.name == "nt", reason="no file locks")
def test_two_runs_do_not_write_one_file(tmp_path):
    kept = KeptAnswers(tmp_path / "t", SETTINGS)
    with pytest.raises(HesnrError, match="another run"):
        KeptAnswers(tmp_path / "t", SETTINGS)
    kept.close()


def test_the_place(tmp_path, monkeypatch):
    assert place_of_answers("none", "t", "m", SETTINGS) is None
    assert place_of_answers(str(tmp_path), "a/t", "m", SETTINGS) == tmp_path / "a-t"
    monkeypatch.setattr("sys.argv", ["lm_eval", "--output_path", "out/results.json"])
    found = place_of_answers(None, "t", "org/model", SETTINGS)
    assert found.parent.as_posix() == "out/answers"
    assert found.name.startswith("t-model-")
    assert found != place_of_answers(None, "t", "org/model", {**SETTINGS, "task": "u"})
    monkeypatch.setattr("sys.argv", ["lm_eval"])
    assert place_of_answers(None, "t", "m", SETTINGS) is None


def test_the_file_is_json_lines(tmp_path):
    lines = [json.loads(line) for line in filled(tmp_path / "t").read_text().splitlines()]
    assert lines[0]["settings"] == SETTINGS
    assert [(line["key"], line["seed"]) for line in lines[1:]] == [("a", 7), ("b", 7), ("c", 7)]


def test_seeds_are_distinct_within_a_problem_and_the_same_again():
    problem = identity("2 + 2 =", 1)
    seeds = [seed_of(1234, problem, i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < LIMIT for seed in seeds)
    assert seeds == [seed_of(1234, problem, i) for i in range(2000)]
    assert not set(seeds) & {seed_of(1235, problem, i) for i in range(2000)}
    assert not set(seeds) & {seed_of(1234, identity("2 + 2 =", 2), i) for i in range(2000)}
