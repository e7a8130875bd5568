"""Several processes give the numbers of one, bit for bit, and no trajectory is read twice."""

import json
from pathlib import Path

import pytest

from tests import processes, tiny
from tests.lm_eval_run import call, run, write
from tests.slow import ranks_main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("ranks")), steps=80)


@pytest.fixture
def corpus(tmp_path):
    runs = [
        run(
            f"run{i}",
            ("Look.", call(f"ls -la dir{i}"), "a.py " * i),
            ("Read.", call(f"cat dir{i}/a.py | head -{i}"), "x"),
        )
        for i in range(5)
    ]
    return write(tmp_path / "five.jsonl", runs)


def evaluate(count, checkpoint, corpus, folder):
    """lm-eval in `count` processes; the folder that they wrote to."""
    folder.mkdir()
    ranks = [processes.start(ranks_main.main, rank, count, checkpoint, corpus, folder) for rank in range(count)]
    assert processes.finish(*ranks) == [0] * count
    return folder


def test_numbers_do_not_depend_on_the_number_of_processes(checkpoint, corpus, tmp_path):
    alone, split = (
        json.loads((evaluate(n, checkpoint, corpus, tmp_path / str(n)) / "result.json").read_text()) for n in (1, 3)
    )
    assert alone["results"]["hesnr_swe"]["he_tokens,none"] > 10
    for task in ranks_main.TASKS:
        assert alone["results"][task] == split["results"][task]
        assert alone["configs"][task]["metadata"]["signature"] == split["configs"][task]["metadata"]["signature"]


def test_fewer_trajectories_than_processes_says_so_on_every_process(checkpoint, corpus, tmp_path):
    single = tmp_path / "single.jsonl"
    single.write_text(Path(corpus).read_text().splitlines(keepends=True)[0])
    folder = evaluate(2, checkpoint, str(single), tmp_path / "two")
    for rank in range(2):
        assert "1 trajectory cannot be split over 2 processes" in (folder / f"refused{rank}").read_text()
