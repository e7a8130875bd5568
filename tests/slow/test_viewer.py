"""The viewer with what it needs a process for: score files of an lm_eval run, a pager, a pipe."""

import os
import pty
import subprocess
import sys

import pytest

from hesnr_tasks.cli import main
from hesnr_tasks.errors import DataError
from hesnr_tasks.viewer import ScoredRun, view_of
from tests import tiny
from tests.lm_eval_run import SMALL, evaluate, run, values, write

# --- score files ------------------------------------------------------------------------------------------------------


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
    runs = [ScoredRun(folder).summary(view_of(trajectory)) for trajectory in SMALL]
    wanted = values(result, "hesnr_swe")
    assert sum(run.tokens for run in runs) == wanted["tokens"]
    pooled = sum(run.he_snr * run.he_tokens for run in runs if run.he_snr is not None) / wanted["he_tokens"]
    assert pooled == pytest.approx(wanted["he_snr"], rel=1e-9)
    assert all(run.scored == 1.0 for run in runs if run.tokens)
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


# --- pager and pipe ---------------------------------------------------------------------------------------------------

SHOW = """
import sys
from hesnr_tasks.cli import trajectories
sys.argv = ["x"]
style = trajectories.style_of(sys.stdout, full=False)
trajectories.write(iter(["style " + str(tuple(style)), *(f"line {i} ┃" for i in range(5))]))
print("done", file=sys.stderr)
"""


def in_terminal(**environment):
    """What a process that has a terminal as its standard output writes to it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdout=theirs,
        stdin=theirs,
        stderr=subprocess.PIPE,
        env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", **environment},
        text=True,
    )
    os.close(theirs)
    out = b""
    try:
        while data := os.read(ours, 4096):
            out += data
    except OSError:  # Linux says so when the other end is closed
        pass
    assert process.communicate()[1] == "done\n"
    os.close(ours)
    return out.decode().replace("\r\n", "\n")


def test_a_terminal_gets_the_pager_of_the_user():
    out = in_terminal(PAGER="sed s/^/paged:/")
    assert out.startswith("paged:style (True, ")
    assert out.count("paged:line") == 5


def test_leaving_the_pager_early_is_no_error():
    assert in_terminal(PAGER="head -n 1").count("\n") == 1


def test_no_color_and_no_pager():
    out = in_terminal(PAGER="no-such-pager", NO_COLOR="1")
    assert out.startswith("style (False, ")
    assert "line 4 ┃" in out


def test_a_pipe_gets_plain_unwrapped_text_in_its_encoding():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    out = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, env=environment, check=True
    ).stdout
    assert out.startswith("style (False, None, False, True, False)")
    assert "line 4 ?" in out
