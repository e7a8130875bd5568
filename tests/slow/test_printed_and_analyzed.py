"""What lm_eval printed is what `analyze` prints, whatever was scored into the folder before."""

import argparse
import json
import math
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hesnr_tasks.cli.analyze import analyze, compare
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.metrics import names_of
from hesnr_tasks.scores import choose_runs
from tests import tiny
from tests.lm_eval_run import call, evaluate, run, values, write
from tests.unit.scores.test_runs import analyzed, arguments

OPTIONS = {
    "hesnr_swe": ["--kinds", "action"],
    "hesnr_swe_unfiltered": ["--kinds", "thought+action", "--filters", "none"],
    "hesnr_swe_thought": ["--kinds", "thought"],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("runs")), steps=20)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data sets that share some trajectories, edit others, and repeat texts."""
    folder = tmp_path_factory.mktemp("data")
    plain = [run(f"t{i}", ("Look around.", call(f"cat f{i}.py"), "x"), ("Go.", call("ls " * i), "")) for i in range(5)]
    edited = [run("t1", ("Look elsewhere.", call("cat other.py | head"), "x"))]
    twins = [run(f"twin{i}", ("Same words.", call("git diff"), "")) for i in range(2)]
    sets = {"first": plain[:4], "second": [*edited, plain[2], plain[4]], "third": [*twins, plain[0]]}
    return {name: write(folder / f"{name}.jsonl", some) for name, some in sets.items()}


def same(row, result, task):
    want = values(result, task)
    for name in names_of():
        value = row[name]["value"] if isinstance(row[name], dict) else row[name]
        value = math.nan if value is None else value  # as JSON has it
        assert value == pytest.approx(want[name], rel=1e-12, nan_ok=True), (task, name)
    assert row["trajectories"] == result["configs"][task]["metadata"]["signature"]["trajectories"]


def test_printed_and_analyzed_agree_over_random_sequences_of_runs(checkpoint, data, tmp_path):
    rng = random.Random(7)
    for sequence in range(2):
        folder, printed = tmp_path / str(sequence), []
        for _ in range(4):
            tasks = rng.sample(sorted(OPTIONS), rng.randint(1, 3))
            metadata = {"trajectories": data[rng.choice(sorted(data))], "scores": str(folder), "resamples": 100}
            metadata |= rng.choice([{}, {"limit": 2}, {"sample": 2}, {"sample": 1, "sample_seed": 5}])
            limit, floor = rng.choice([None, None, 1, 2]), rng.choice([0, 30])
            metadata |= {"min_tokens": floor}
            result = evaluate(checkpoint, tasks, metadata, limit=limit)
            printed.append((tasks, result, floor))
            for task in tasks:  # by its data: without --run, an earlier run that has all its texts is taken
                digest = result["configs"][task]["metadata"]["signature"]["data"][:10]
                rows, notes = analyzed(folder, *OPTIONS[task], "--min-tokens", floor, "--run", digest)
                assert (len(rows), len(notes)) == (1, 1)
                same(rows[0], result, task)
        for tasks, result, floor in printed:  # and every one of them can be had again
            task = tasks[0]
            digest = result["configs"][task]["metadata"]["signature"]["data"]
            rows, _ = analyzed(folder, *OPTIONS[task], "--min-tokens", floor, "--run", digest[:10])
            same(rows[0], result, task)


def test_two_data_sets_are_not_pooled_unless_asked_for(checkpoint, data, tmp_path):
    folder = tmp_path / "scores"
    first = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": data["first"], "scores": str(folder)})
    second = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": data["second"], "scores": str(folder)})
    rows, notes = analyzed(folder, "--min-tokens", 0)
    same(rows[0], second, "hesnr_swe")
    assert "run 2 of 2" in notes[0]
    assert "second.jsonl" in notes[0]
    assert notes[0].endswith("3 of 3 trajectories")
    rows, notes = analyzed(folder, "--run", 1, "--min-tokens", 0)
    same(rows[0], first, "hesnr_swe")
    rows, notes = analyzed(folder, "--all")
    assert rows[0]["trajectories"] == 6
    assert notes == ["everything in the folder (2 runs): 6 trajectories; with more than one text each: "
                    "1 trajectory (t1)"]  # fmt: skip
    with pytest.raises(SettingsError, match=r"has no run '9'\. It has run 1 of 2 .*; run 2 of 2"):
        analyzed(folder, "--run", 9)
    text = analyze(argparse.Namespace(**{**vars(arguments("analyze", folder)), "format": "text"}))
    assert "run 2 of 2" in text


def test_compare_takes_the_same_data_in_two_folders(checkpoint, data, tmp_path):
    for name in ("a", "b"):
        for some in ("first", "second") if name == "a" else ("first",):
            metadata = {"trajectories": data[some], "scores": str(tmp_path / name)}
            result = evaluate(checkpoint, ["hesnr_swe"], metadata)
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(DataError, match=r"name runs of the same data with --run"):
        compare(arguments("compare", *folders))
    digest = result["configs"]["hesnr_swe"]["metadata"]["signature"]["data"][:10]
    content = json.loads(compare(arguments("compare", *folders, "--run", digest)))
    assert sum("4 of 4 trajectories" in note for note in content["notes"]) == 2


def test_the_same_run_again_is_not_another_one(checkpoint, data, tmp_path):
    metadata = {"trajectories": data["first"], "scores": str(tmp_path / "scores")}
    for _ in range(2):
        evaluate(checkpoint, ["hesnr_swe", "hesnr_swe_thought"], metadata)
    (stored,) = choose_runs(tmp_path / "scores")
    assert (stored.number, stored.runs, stored.tasks) == (1, 1, ("hesnr_swe", "hesnr_swe_thought"))
    assert str(stored.about["labels"])


def test_a_text_in_other_tokens_is_refused(checkpoint, data, tmp_path, monkeypatch):
    """Should an identity ever fail to tell two tokenizers apart, the ids of the texts do."""
    copy = tmp_path / "checkpoint"
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(copy)
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((Path(checkpoint) / name).read_bytes())
    monkeypatch.setattr("hesnr_tasks.backends.tokenizer_of", lambda tokenizer: "600 tokens, all alike")
    metadata = {"trajectories": data["first"], "scores": str(tmp_path / "scores")}
    evaluate(str(copy), ["hesnr_swe"], metadata | {"keep": "none"})
    content = json.loads((copy / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:100]
    (copy / "tokenizer.json").write_text(json.dumps(content))
    for task in ("hesnr_swe", "hesnr_swe_unfiltered"):  # what is there, and what would be added to it
        with pytest.raises(SettingsError, match=r"text in other tokens \(\d+ then, \d+ now.*name another folder"):
            evaluate(str(copy), [task], metadata)
    monkeypatch.undo()
    with pytest.raises(SettingsError, match="tokenizer: 600"):
        evaluate(str(copy), ["hesnr_swe"], metadata)
