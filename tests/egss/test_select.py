"""`hesnr select` over three finished runs of five small repositories, in mini-swe-agent's own environments."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("minisweagent")

from hesnr_tasks.cli import main
from hesnr_tasks.egss.collect import patch_key
from hesnr_tasks.egss.selectors import DIMENSIONS, GATE
from hesnr_tasks.egss.suite import PYTEST
from tests.egss import runs
from tests.egss.chat_server import serve

COPY = "run.env_startup_command=cp -r {}/repos/{{{{ instance_id }}}}/. ."
# a runner that takes a tenth of pytest's time: it calls the functions of a file and writes JUnit
QUICK = f"""{sys.executable} -c '
import importlib.util, sys, xml.sax.saxutils as x
sys.path.insert(0, "."); out = []
try:
    spec = importlib.util.spec_from_file_location("t", sys.argv[1]); m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    for name in [n for n in dir(m) if n.startswith("test_")]:
        try: getattr(m, name)(); out.append("<testcase name=\\"%s\\"/>" % name)
        except Exception as e: out.append("<testcase name=\\"%s\\"><failure/></testcase>" % name)
    open(sys.argv[2], "w").write("<testsuite>" + "".join(out) + "</testsuite>")
except Exception as e: print("cannot run:", e); sys.exit(2)
' {{file}} {{junit}}"""


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """litellm takes its price list from the package; the interpreter is the one that runs this."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    patch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    yield
    patch.undo()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = runs.repositories(tmp_path_factory.mktemp("data") / "d")
    return folder, runs.three_runs(folder)


def words(data, output, *more, runner=QUICK):
    folder, folders = data
    where = ["--environment-class", "local", "-c", COPY.format(folder)]
    return ["select", *folders, "-o", str(output), "--runner", runner, "--repeats", "2", *where, *more]


def read(output):
    why = json.loads(output.with_name(f"{output.stem}.why.json").read_text())
    return json.loads(output.read_text()), why["instances"], why["notes"]


def by_name(rows):
    return {re.sub(r"demo__|-1", "", name): row for name, row in rows.items()}


def judge(points):
    """Answers with the points that `points(patch text)` gives."""

    def answer(body):
        text = body["messages"][-1]["content"] if len(body["messages"]) == 2 else body["messages"][1]["content"]
        patches = re.findall(r"===== patch (\w+) =====\n(.*?)\n===== end of patch", text, re.DOTALL)
        return "Here: " + json.dumps({name: points(patch) for name, patch in patches})

    return answer


def even(value, gate=3):
    return {**dict.fromkeys(DIMENSIONS, value), GATE: gate}


# --- the whole command ------------------------------------------------------------------------------------------------


def test_the_suite_finds_the_right_patch_of_every_instance(data, tmp_path, capsys):
    output = tmp_path / "preds.json"
    assert main(words(data, output, "-w", "2", "--instances", str(data[0] / "data" / "test.jsonl"))) == 0
    shown = capsys.readouterr().out
    predictions, why, notes = read(output)
    for number, name in enumerate(runs.NAMES):
        row = predictions[f"demo__{name}-1"]
        assert set(row) == {"model_name_or_path", "instance_id", "model_patch"}
        assert runs.patch(name, runs.RIGHT) in row["model_patch"]
        record = why[f"demo__{name}-1"]
        assert record["runs"] == ["second" if number % 2 else "first"]
        assert (record["decided_by"], record["tie_broken_at_random"]) == ("suite", False)
        right, wrong = (
            next(c["tests"] for c in record["candidates"] if c["patch"] == patch_key(runs.patch(name, solution)))
            for solution in (runs.RIGHT, runs.WRONG)
        )
        assert right == {"passed": right["total"], "failed": 0, "error": 0, "total": right["total"]}
        assert wrong["failed"] >= 1
        assert record["controls"]["majority"] == patch_key(runs.patch(name, runs.WRONG))
    assert not notes
    assert "5 instances: 5 by suite; 0 ties broken at random" in shown


@pytest.mark.parametrize("environment", ["local", "bubblewrap"])
def test_real_pytest_in_the_users_environment(data, tmp_path, environment):
    """One folder that holds three runs; PATH is the user's, or what the environment gives."""
    if environment == "bubblewrap" and subprocess.run(["bwrap", "--ro-bind", "/", "/", "true"], check=False).returncode:
        pytest.skip("bubblewrap makes no namespace here")
    runs.three_runs(tmp_path, ["clamp"])
    output, binds = tmp_path / "p.json", ["--ro-bind", "/", "/", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    binds += ["--ro-bind", str(data[0]), str(data[0])]
    more = ["--environment-class", environment, "--env", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", "--repeats", "1"]
    more += ["-c", f"environment.wrapper_args={json.dumps(binds)}"] if environment == "bubblewrap" else []
    assert main([*words((data[0], [str(tmp_path / "runs")]), output, runner=PYTEST), *more]) == 0
    (record,) = read(output)[1].values()
    assert record["runs"] == ["runs/first/demo__clamp-1/demo__clamp-1.traj.json"]
    assert record["chosen"] == patch_key(runs.patch("clamp", runs.RIGHT))
    names = ("test_clamp.py::test_clamp::test_high", "tests/test_clamp_more.py::tests.test_clamp_more::test_more_low")
    assert set(names) <= set(record["suite"]["tests"])


def test_a_killed_selection_goes_on_where_it_was(data, tmp_path):
    """SIGKILL in the middle, a line cut off; then the same command makes only what is missing, with the same result."""
    output, log = tmp_path / "preds.json", tmp_path / "log"
    folders = runs.three_runs(tmp_path, ["clamp", "slug"])
    command = words((data[0], folders), output, runner=f"echo {{file}} >> {log}; {QUICK}")
    killed = subprocess.Popen([sys.executable, "-m", "hesnr_tasks.cli", *command], start_new_session=True)
    journal = tmp_path / "preds.work.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b"\n") < 2):
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert 2 <= journal.read_bytes().count(b"\n") < 8
    with journal.open("ab") as file:
        file.write(b'{"key": "cut o')
    before = len(log.read_text().splitlines())
    assert main(command) == 0
    first, lines = output.read_bytes(), log.read_text().splitlines()
    total = sum(record["suite"]["runs_of_files"] for record in read(output)[1].values())
    assert total <= len(lines) <= total + 2  # at most what ran on one patch was run again
    assert before < len(lines)
    assert main(command) == 0
    assert output.read_bytes() == first
    assert log.read_text().splitlines() == lines


def test_voters_decide_what_tests_leave_open_and_are_asked_once(data, tmp_path):
    """Without tests, the voters' points decide; the key goes to the server, never into the journal."""
    folder, (first, second, _) = data
    liked = {name: runs.RIGHT[name].splitlines()[-1].strip() for name in runs.NAMES}
    points = judge(lambda patch: even(3) if any(f"+    {line}" in patch for line in liked.values()) else even(1))
    with serve(points) as (url, requests):
        output = tmp_path / "preds.json"
        more = ["--selector", "openai/judge", "--votes", "3", "--test-files", "^none$"]
        more += ["--model-kwargs", json.dumps({"api_base": url, "temperature": 0.5})]
        assert main(words((folder, [first, second]), output, *more)) == 0
        asked = len(requests)
        assert asked == 15
        assert main(words((folder, [first, second]), output, *more)) == 0
        assert len(requests) == asked
    predictions, why, notes = read(output)
    for name, record in by_name(why).items():
        assert predictions[f"demo__{name}-1"]["model_patch"].startswith(runs.patch(name, runs.RIGHT))
        assert record["decided_by"] == "votes"
        assert len(record["ballots"]) == 3
        assert record["spent"]["openai/judge"] == {"calls": 3, "prompt": 300, "output": 30, "cost": 0.0}
    assert notes == {"instances whose suite tells nothing": 5}
    assert all(request["headers"]["Authorization"] == "Bearer sk-of-the-user" for request in requests)
    assert {request["temperature"] for request in requests} == {0.5}
    orders = {re.search(r"patch A =====\n(.*?)=====", r["messages"][1]["content"], re.DOTALL)[1] for r in requests}
    assert len(orders) > 5  # the order is permuted
    for path in tmp_path.iterdir():
        assert "sk-of-the-user" not in path.read_text()
