"""Scores are kept beside a run: read once, resumed after a crash, never mixed."""

import importlib.util
import itertools
import threading
import time
from pathlib import Path

import pytest
from lm_eval.loggers import EvaluationTracker

from hesnr_tasks.backends import hf
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.scores import ScoreStore
from hesnr_tasks.scores.store import ScoreCache, scores_dir
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import label_mask
from tests import processes, tiny
from tests.lm_eval_run import SMALL, call, evaluate, run, write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("keeping")), steps=80)


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "small.jsonl", SMALL)


@pytest.fixture
def read(monkeypatch):
    """Names of the trajectories that the model really reads."""
    names = []
    score = hf.HuggingFaceBackend.score

    def counting(self, passages, k, progress, skip=()):
        names.extend(p.name for i, p in enumerate(passages) if i not in skip)
        return score(self, passages, k, progress, skip)

    monkeypatch.setattr(hf.HuggingFaceBackend, "score", counting)
    return names


def test_a_second_run_reads_nothing_and_gives_the_same_bits(checkpoint, small, tmp_path, read):
    metadata = {"trajectories": small, "scores": str(tmp_path / "scores")}
    tasks = ["hesnr_swe_ablation", "hesnr_swe"]
    first = evaluate(checkpoint, tasks, metadata)["results"]
    assert sorted(read) == ["one", "three", "two"]
    second = evaluate(checkpoint, tasks, metadata)["results"]
    assert len(read) == 3
    assert first == second
    bare = evaluate(checkpoint, tasks, {"trajectories": small})["results"]["hesnr_swe"]
    # without score files the head sees fewer rows: equal but for float32's last bits
    assert {name: bare[name] for name in bare if name != "alias" and isinstance(bare[name], float)} == pytest.approx(
        {name: value for name, value in first["hesnr_swe"].items() if isinstance(value, float)}, rel=1e-5
    )


def test_thoughts_and_whole_actions_are_kept_for_later_questions(checkpoint, small, tmp_path, read):
    metadata = {"trajectories": small, "scores": str(tmp_path / "scores")}
    evaluate(checkpoint, ["hesnr_swe"], metadata)
    later = evaluate(checkpoint, ["hesnr_swe_unfiltered", "hesnr_swe_ablation"], metadata)["results"]
    assert len(read) == 3
    alone = evaluate(checkpoint, ["hesnr_swe_unfiltered"], {"trajectories": small})["results"]
    assert later["hesnr_swe_unfiltered"]["ppl,none"] == pytest.approx(
        alone["hesnr_swe_unfiltered"]["ppl,none"], rel=1e-5
    )
    read.clear()
    least = metadata | {"scores": str(tmp_path / "least"), "keep": "none"}
    evaluate(checkpoint, ["hesnr_swe"], least)
    evaluate(checkpoint, ["hesnr_swe_unfiltered"], least)
    assert len(read) == 6
    everything = metadata | {"scores": str(tmp_path / "most"), "keep": "thought+action+observation+context"}
    evaluate(checkpoint, ["hesnr_swe"], everything)
    most, usual = ScoreStore.open(tmp_path / "most"), ScoreStore.open(tmp_path / "scores")
    everyone = label_mask([kind for kind in Kind if kind is not Kind.SCAFFOLD], (), tuple(FILTERS))
    for key in most:
        assert most.entry(key).mask & everyone == everyone
        assert usual.entry(key).mask & everyone != everyone
    assert all(len(most.read(key).position) > len(usual.read(key).position) for key in most)


def test_without_pyarrow_no_scores_are_kept_unless_asked_for(checkpoint, small, tmp_path, monkeypatch, caplog):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pyarrow" else find(name))
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small}, evaluation_tracker=tracker)
    assert "no score files are kept: they need pyarrow" in caplog.text
    assert not (tmp_path / "out").exists()


def test_another_task_on_kept_scores_reads_only_what_is_missing(checkpoint, small, tmp_path, read):
    metadata = {"trajectories": small, "scores": str(tmp_path / "scores")}
    evaluate(checkpoint, ["hesnr_swe_unfiltered"], metadata)
    filtered = evaluate(checkpoint, ["hesnr_swe"], metadata)["results"]["hesnr_swe"]
    assert len(read) == 3  # filtered action tokens are among those kept
    more = write(tmp_path / "more.jsonl", [*SMALL, run("four", ("Look.", call("pwd"), "/"))])
    evaluate(checkpoint, ["hesnr_swe"], metadata | {"trajectories": more})
    assert read[3:] == ["four"]
    alone = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small})["results"]["hesnr_swe"]
    # the head saw other rows beside these: equal but for float32's last bits
    assert filtered["ppl,none"] == pytest.approx(alone["ppl,none"], rel=1e-5)
    assert filtered["he_snr,none"] == pytest.approx(alone["he_snr,none"], rel=1e-5)


def test_other_settings_are_refused_by_name(checkpoint, small, tmp_path):
    metadata = {"trajectories": small, "scores": str(tmp_path / "scores")}
    evaluate(checkpoint, ["hesnr_swe"], metadata)
    with pytest.raises(SettingsError, match="render: transcript → chatml"):
        evaluate(checkpoint, ["hesnr_swe"], metadata | {"render": "chatml"})
    with pytest.raises(SettingsError, match="max_length: 32768 → 100"):
        evaluate(checkpoint, ["hesnr_swe"], metadata, "dtype=float32,max_length=100")
    other = tiny.llama(str(tmp_path / "other"), seed=5)
    with pytest.raises(SettingsError, match="weights"):
        evaluate(other, ["hesnr_swe"], metadata)


def test_what_each_token_spells_is_kept(checkpoint, small, tmp_path):
    folder = tmp_path / "scores"
    evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small, "scores": str(folder)})
    store = ScoreStore.open(folder)
    spelled = store.token_bytes()
    for key in store:
        text = store.text(key)
        assert b"".join(spelled[i] for i in text.ids.tolist()).decode() == text.rendered.text


def test_the_default_place_is_next_to_the_output():
    assert scores_dir(None, None) is None
    assert scores_dir("none", Path("out")) is None
    assert scores_dir(None, Path("out")) == (Path("out/scores"), False)
    assert scores_dir(None, Path("out/r.json")) == (Path("out/scores"), False)
    assert scores_dir("here", Path("out")) == (Path("here"), True)


def test_a_folder_is_the_runs_by_its_hash_whatever_its_name(tmp_path):
    """Earlier versions called it by the last part of the model's path alone."""

    def opened(name):
        cache = ScoreCache(
            tmp_path, named=False, render="transcript", wanted=[], filters=["xml", "format", "comments"], labels="6"
        )
        cache.open({"model": name, "weights": "0" * 64}, 10, "right", lambda items: items, first=False)
        return cache.store.folder

    first = opened("out/step1000/hf")
    assert first.name.startswith("step1000-hf-")
    old = first.rename(tmp_path / first.name.replace("step1000-", ""))
    assert opened("out/step1000/hf") == old
    assert opened("elsewhere/step1000/hf") == old  # the weights are the same


def read_four_and_stay(checkpoint, metadata):
    """An evaluation, in a process of its own, whose model stands still before the fifth trajectory."""
    score = hf.HuggingFaceBackend.score

    def four(self, passages, k, progress, skip=()):
        yield from itertools.islice(score(self, passages, k, progress, skip), 4)
        threading.Event().wait()

    hf.HuggingFaceBackend.score = four
    evaluate(checkpoint, ["hesnr_swe"], metadata)


def test_a_killed_run_goes_on_where_it_stopped(checkpoint, tmp_path, read):
    """kill -9 in the middle; the second run gives what an undisturbed one gives, to the bit."""
    runs = [run(f"r{i}", *[("Look.", call(f"cat f{i}_{j}.py"), "x = 1\n" * 40) for j in range(8)]) for i in range(12)]
    data = write(tmp_path / "many.jsonl", runs)
    scores = tmp_path / "scores"
    metadata = {"trajectories": data, "scores": str(scores)}
    process = processes.start(read_four_and_stay, checkpoint, metadata)
    while process.is_alive() and len(list(scores.glob("*.parquet"))) < 3:
        time.sleep(0.005)
    process.kill()
    process.join()
    kept = len(list(scores.glob("*.parquet")))
    assert 3 <= kept <= 4
    resumed = evaluate(checkpoint, ["hesnr_swe"], metadata)
    assert len(read) == 12 - kept
    undisturbed = evaluate(checkpoint, ["hesnr_swe"], metadata | {"scores": str(tmp_path / "undisturbed")})
    assert resumed["results"]["hesnr_swe"] == undisturbed["results"]["hesnr_swe"]
