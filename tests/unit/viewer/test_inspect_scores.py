"""`hesnr inspect --scores`: the page shows what the score files of a run hold."""

import pytest

from hesnr_tasks.cli import main
from hesnr_tasks.errors import DataError
from hesnr_tasks.viewer.model import ScoredRun, view_of
from tests import tiny
from tests.lm_eval_run import SMALL, evaluate, run, values, write


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A trajectory file, a folder of its scores, and lm-eval's numbers."""
    folder = tmp_path_factory.mktemp("scored")
    checkpoint = tiny.llama(str(folder / "checkpoint"), steps=40)
    data = write(folder / "small.jsonl", SMALL)
    metadata = {"trajectories": data, "scores": str(folder / "scores")}
    return data, str(folder / "scores"), evaluate(checkpoint, ["hesnr_swe_unfiltered", "hesnr_swe"], metadata)


def test_tokens_are_those_that_lm_eval_counted(scored):
    _, folder, result = scored
    tokens = [token for trajectory in SMALL for token in ScoredRun(folder).tokens(view_of(trajectory))]
    assert len(tokens) == values(result, "hesnr_swe_unfiltered")["tokens"]
    assert sum(token.in_decision_set for token in tokens) == values(result, "hesnr_swe")["he_tokens"]
    assert all(len(token.top) == 10 for token in tokens)
    whole = view_of(SMALL[0]).text
    first = ScoredRun(folder).tokens(view_of(SMALL[0]))[0]
    assert whole[first.start : first.end].strip() in ("Look", "L")


def test_the_command_writes_a_page_with_two_runs(scored, tmp_path, capsys):
    data, folder, _ = scored
    page = tmp_path / "page.html"
    assert main(["inspect", data, "--html", str(page), "--scores", folder, "--compare", folder]) == 0
    assert "surprisal" in page.read_text()
    assert main(["inspect", data, "--scores", folder]) == 2
    assert main(["inspect", data, "--html", str(page), "--compare", folder]) == 2
    assert main(["inspect", data, "--html", str(page), "--scores", str(tmp_path / "none")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_trajectory_that_was_not_scored_is_named(scored):
    _, folder, _ = scored
    with pytest.raises(DataError, match="no scores of trajectory 'new'"):
        ScoredRun(folder).tokens(view_of(run("new", ("a", "b", "c"))))
