"""The list of runs in a folder of score files, and what may be added to a folder."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hesnr_tasks.cli import command_parser
from hesnr_tasks.cli.analyze import analyze, compare
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.scores import ScoreStore, Source, StoreError, Wanted, choose_runs
from hesnr_tasks.scores.runs import add_run, checkpoint_name, model_of, short_names
from tests.unit.scores import made


def arguments(command, *words):
    return command_parser().parse_args([command, *map(str, words), "--format", "json", "--resamples", "100"])


def analyzed(folder, *words):
    """Rows of the table of results, and what was said of each run that was read."""
    results = json.loads(analyze(arguments("analyze", folder, *words)))
    return results["tables"]["results"], [about["read"] for about in results["runs"].values()]


# --- the list itself --------------------------------------------------------------------------------------------------


def wanted(task, seeds, data="{}"):
    return [Wanted(task, i, f"{s:064x}", 1, Source(f"run{s}", f"task{s}", True), data) for i, s in enumerate(seeds)]


def test_tasks_with_different_data_are_read_apart(tmp_path):
    made.filled(tmp_path, [1, 2, 3, 4])
    add_run(tmp_path, [*wanted("a", [1, 2]), *wanted("b", [3, 4, 1]), *wanted("c", [1, 2])], "1")
    rows, remarks = analyzed(tmp_path)
    assert [row["trajectories"] for row in rows] == [2, 3]
    assert ["a+c" in remarks[0], "b on" in remarks[1]] == [True, True]
    with pytest.raises(
        SettingsError, match=r"had different data; name one of them: --run \w{10}: a\+c; --run \w{10}: b"
    ):
        compare(arguments("compare", tmp_path, tmp_path))


def test_a_text_counts_as_often_as_the_run_had_it(tmp_path):
    store = made.filled(tmp_path, [1, 2])
    made.put(store, 1, sources=[Source("again")])
    add_run(tmp_path, wanted("a", [1, 1, 1, 2]), "1")
    add_run(tmp_path, wanted("a", [1, 2]), "1")
    counts = [analyzed(tmp_path, *words)[0][0]["trajectories"] for words in ([], ["--run", "1"], ["--all"])]
    assert counts == [2, 4, 3]


def test_a_part_of_a_run_does_not_take_its_place(tmp_path):
    made.filled(tmp_path, [1, 2, 3])
    add_run(tmp_path, wanted("a", [1, 2, 3]), "1")
    add_run(tmp_path, wanted("a", [1]), "1")
    rows, remarks = analyzed(tmp_path)
    assert rows[0]["trajectories"] == 3
    assert "run 1 of 2" in remarks[0]
    assert "run 2 had 1 of its 3 trajectories" in remarks[0]
    assert analyzed(tmp_path, "--run", "2")[0][0]["trajectories"] == 1
    add_run(tmp_path, wanted("a", [2]), "2")  # labelled by another version: not the same texts, whatever their keys
    assert analyzed(tmp_path)[0][0]["trajectories"] == 1
    add_run(tmp_path, wanted("a", [3, 4]), "1")
    assert choose_runs(tmp_path)[0].number == 4


def test_a_run_that_did_not_finish_says_so(tmp_path):
    made.filled(tmp_path, [1, 2])
    add_run(tmp_path, wanted("a", [1, 2, 3, 4]), "1")
    rows, remarks = analyzed(tmp_path)
    assert rows[0]["trajectories"] == 2
    assert remarks[0].endswith("2 of 4 trajectories; the run was not finished")
    add_run(tmp_path, wanted("a", [5]), "1")
    with pytest.raises(DataError, match="has no score files yet of run 2 of 2"):
        analyzed(tmp_path)


def test_a_folder_without_a_list_is_one_run(tmp_path):
    made.filled(tmp_path, [1, 2])
    _, remarks = analyzed(tmp_path)
    assert remarks == ["everything in the folder: 2 trajectories"]
    with pytest.raises(SettingsError, match="no list of runs"):
        analyzed(tmp_path, "--run", "1")


def test_runs_at_once_and_leftovers(tmp_path):
    made.filled(tmp_path, [1, 2])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".host.1.0123456789abcdef.tmp").write_text("{")
    (tmp_path / "runs" / "000001.json").write_text("{")
    with pytest.raises(StoreError, match=r"000001\.json is damaged.*--all"):
        analyzed(tmp_path)
    rows, remarks = analyzed(tmp_path, "--all")
    assert rows[0]["trajectories"] == 2
    assert "in the list of runs 1 damaged file" in remarks[0]
    add_run(tmp_path, wanted("a", [1]), "1")
    assert analyzed(tmp_path)[0][0]["trajectories"] == 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: add_run(tmp_path, wanted("a", [seed]), "1"), range(2, 26)))
    assert choose_runs(tmp_path)[0].runs == 26
    assert sorted(s.id for n in range(3, 27) for t in choose_runs(tmp_path, str(n))[0].texts.values() for s in t) == (
        sorted(f"run{seed}" for seed in range(2, 26))
    )


# --- what may be added to a folder ------------------------------------------------------------------------------------


def test_an_older_folder_can_be_read_and_not_added_to(tmp_path):
    made.filled(tmp_path, [1, 2])
    path = tmp_path / "run.json"
    content = json.loads(path.read_text())
    content["schema"] = content["signature"]["schema"] = 1
    path.write_text(json.dumps(content))
    ScoreStore.open(tmp_path)
    with pytest.raises(SettingsError, match=r"older version.*can be analyzed but not added to"):
        ScoreStore.open(tmp_path, made.signature())


def test_a_servers_canary_may_move_by_noise_alone(tmp_path, caplog):
    rng = np.random.default_rng(0)
    canary = (-rng.gamma(1.0, 2.0, 50)).tolist()
    ScoreStore.open(tmp_path, made.signature(canary=canary))

    def opened(changes):
        ScoreStore.open(tmp_path, made.signature(canary=[a + b for a, b in zip(canary, changes, strict=True)]))

    opened(np.zeros(50))
    assert not caplog.text
    opened(rng.normal(0, 0.02, 50))
    assert "may be numerical noise" in caplog.text
    for changes in (np.full(50, 0.03), rng.normal(0, 0.2, 50), np.eye(50)[3] * 0.8):
        with pytest.raises(SettingsError, match=r"serves other weights.*name another folder"):
            opened(changes)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ({"model": "out/step1000/hf"}, "step1000/hf"),
        ({"model": "/a/global_step_100/actor/huggingface/"}, "global_step_100/actor/huggingface"),
        ({"model": "out2/step1000/checkpoint-5"}, "checkpoint-5"),
        ({"model": "allenai/Olmo-3-7B", "revision": "stage1-step10"}, "Olmo-3-7B@stage1-step10"),
        ({"model": "org/Model-8B", "revision": "main"}, "Model-8B"),
        ({"model": "/data1/x/y/z/final"}, "final"),
        ({"model": "C:\\runs\\step7\\hf"}, "step7/hf"),
        ({"model": "out/exp7/hf"}, "exp7/hf"),
        ({"model": "out/lr-3e4/actor/HF_model"}, "lr-3e4/actor/HF_model"),
        ({"model": "/hf"}, "hf"),
        ({"model": "hf"}, "hf"),
        ({}, "model"),
    ],
)
def test_a_checkpoint_alone_is_called_by_the_end_that_says_which_it_is(run, name):
    assert checkpoint_name(run) == name


def test_checkpoints_are_called_by_the_ends_that_differ():
    names = short_names(["out/step1/hf", "out/step2/hf", "org/m@lc"])
    assert list(names.values()) == ["step1/hf", "step2/hf", "m@lc"]
    assert list(short_names(["a/step1/hf", "b/step1/hf"]).values()) == ["a/step1/hf", "b/step1/hf"]
    assert list(short_names(["a/x", "b/y"]).values()) == ["x", "y"]
    revisions = [model_of({"model": "org/m", "revision": name}) for name in ("main", "step1", "step2")]
    assert list(short_names(revisions).values()) == ["m", "m@step1", "m@step2"]
