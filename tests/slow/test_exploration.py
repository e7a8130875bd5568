"""The exploration profile of own answers, as the README has it: sample log, trajectories, lm_eval, analyze."""

import json

import numpy as np
import pytest

from hesnr_tasks import demo
from hesnr_tasks.cli import command_parser
from hesnr_tasks.cli.analyze import analyze
from hesnr_tasks.cli.answers import behaviour_tables
from hesnr_tasks.exploration.entropy_profile import vocabulary_size
from hesnr_tasks.scores import ScoreStore
from tests.lm_eval_run import evaluate
from tests.unit.exploration.test_behaviours import rows_of, write

pytestmark = pytest.mark.slow


def arguments(command, *words):
    return command_parser().parse_args([command, *map(str, words), "--resamples", "100"])


def test_answers_are_scored_on_the_model_that_wrote_them(tmp_path):
    own, scores = tmp_path / "own.jsonl", tmp_path / "scores"
    behaviour_tables(arguments("behaviours", write(tmp_path / "log", rows_of(1)), "--trajectories", own))
    metadata = {"trajectories": str(own), "scores": str(scores), "sample": 12}
    evaluate(str(demo.ladder_paths()[-1][1]), ["hesnr_swe_thought"], metadata)
    tables = json.loads(analyze(arguments("analyze", scores, "--exploration", "--format", "json")))["tables"]
    whole = tables["exploration"][0]
    assert (whole["part"], whole["group"]) == ("pivotal words", "all")
    assert whole["n"] >= 5
    assert whole["trajectories"] >= 5
    assert sum(row["n"] for row in tables["exploration"][1:6]) == whole["n"]
    sentences = next(row for row in tables["exploration"] if row["part"] == "reflective sentences")
    assert sentences["n"] + sentences["others"] > 40
    for row in tables["exploration_bounds"]:
        if row["topk"] is not None:
            assert 0 < row["low"] < row["high"] < np.log(640)
    assert vocabulary_size(ScoreStore.open(scores)) == 640
