"""`hesnr select` over three finished runs of five small repositories, in mini-swe-agent's own environments."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("minisweagent")

from hesnr_tasks.cli import main
from hesnr_tasks.egss.judges import GATE, PATCH_DIMENSIONS, ChatModel, Spent
from hesnr_tasks.egss.runs import PatchCandidate, patch_key
from hesnr_tasks.egss.suite import (
    PYTEST,
    PatchError,
    PatchTester,
    Sandbox,
    SandboxError,
    SelectSettings,
    junit_outcomes,
    sandbox_config,
    secret_variables,
    select_instance,
)
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.files.atomic import Journal
from hesnr_tasks.testing import Reply, fake_server
from tests.unit.egss import runs

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
    return {**dict.fromkeys(PATCH_DIMENSIONS, value), GATE: gate}


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
    output, log, hold = tmp_path / "preds.json", tmp_path / "log", tmp_path / "hold"
    folders = runs.three_runs(tmp_path, ["clamp", "slug"])
    stay = f"while [ -e {hold} ] && [ $(wc -l < {log}) -ge 8 ]; do sleep 0.05; done"
    command = words((data[0], folders), output, runner=f"echo {{file}} >> {log}; {stay}; {QUICK}")
    hold.touch()
    killed = subprocess.Popen([sys.executable, "-m", "hesnr_tasks.cli", *command], start_new_session=True)
    journal = tmp_path / "preds.work.jsonl"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b"\n") < 2):
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    hold.unlink()
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
    with fake_server(answer=points) as server:
        output = tmp_path / "preds.json"
        more = ["--selector", "openai/judge", "--votes", "3", "--test-files", "^none$"]
        more += ["--model-kwargs", json.dumps({"api_base": server.url, "temperature": 0.5})]
        assert main(words((folder, [first, second]), output, *more)) == 0
        requested = len(server.requests)
        assert requested == 15
        assert main(words((folder, [first, second]), output, *more)) == 0
        assert len(server.requests) == requested
    predictions, why, notes = read(output)
    for name, record in by_name(why).items():
        assert predictions[f"demo__{name}-1"]["model_patch"].startswith(runs.patch(name, runs.RIGHT))
        assert record["decided_by"] == "votes"
        assert len(record["ballots"]) == 3
        assert record["spent"]["openai/judge"] == Spent(calls=3, prompt=300, output=30)._asdict()
    assert notes == {"instances whose suite tells nothing": 5}
    assert all(request["headers"]["Authorization"] == "Bearer sk-of-the-user" for request in server.requests)
    assert {request["temperature"] for request in server.requests} == {0.5}
    orders = {
        re.search(r"patch A =====\n(.*?)=====", r["messages"][1]["content"], re.DOTALL)[1] for r in server.requests
    }
    assert len(orders) > 5  # the order is permuted
    for path in tmp_path.iterdir():
        assert "sk-of-the-user" not in path.read_text()


# --- one instance -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tester(data, tmp_path):
    """Runs tests of the repository `clamp` in local environments, quickly."""

    def make(repeats=3, budget=300, timeout=60, config=None, journal=None):
        config = config or sandbox_config([COPY.format(data[0])], "local", [])
        settings = SelectSettings(runner=QUICK, timeout=timeout, repeats=repeats, budget=budget)
        keeper = journal or Journal(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl")
        return PatchTester(
            config, {"instance_id": "demo__clamp-1", "problem_statement": "Clamp."}, settings, keeper, Counter()
        )

    return make


def candidate(run, solution, tests=None, patch=None):
    text = runs.patch("clamp", solution) if patch is None else patch
    return PatchCandidate("demo__clamp-1", run, text, "Clamp.", tests or {})


RIGHT, WRONG = patch_key(runs.patch("clamp", runs.RIGHT)), patch_key(runs.patch("clamp", runs.WRONG))
HEAD = "from clamp import clamp\n\n\ndef test_it():\n    "


def test_every_reason_to_drop_a_test_is_told(tester, tmp_path):
    state = tmp_path / "state"
    tests = {
        "test_good.py": HEAD + "assert clamp(0, 1, 3) == 1\n",
        "test_flaky.py": f"from clamp import clamp\nimport pathlib\np = pathlib.Path({str(state)!r})\n\n"
        "def test_it():\n    n = len(p.read_text()) if p.exists() else 0\n    p.write_text('x' * (n + 1))\n"
        "    assert n % 3 == 0\n",
        "test_hopeless.py": HEAD + "assert clamp(0, 1, 3) == 7\n",
        "test_broken.py": "import nothing_of_this_name\n\n\ndef test_it():\n    pass\n",
    }
    it = tester()
    suite = it.suite([candidate("a", runs.RIGHT, tests), candidate("b", runs.WRONG)], None)
    assert list(suite.tests) == ["test_good.py::test_it"]
    assert suite.tests["test_good.py::test_it"] == {RIGHT: "passed", WRONG: "failed"}
    assert suite.dropped["test_flaky.py::test_it"] == "it is flaky"
    assert suite.dropped["test_hopeless.py::test_it"] == "no patch passes it"
    assert "cannot run: No module named" in suite.dropped["test_broken.py"]
    assert it.notes == {"flaky tests left out": 1, "test files that run on no patch": 1}


def test_a_patch_that_does_not_apply_is_counted_and_not_chosen(tester):
    bad = runs.patch("clamp", runs.RIGHT).replace("return max(x, low)", "return something_else")
    outside = runs.diff("../outside.py", "", "x = 1\n")
    it = tester()
    several = [candidate("a", None, patch=bad), candidate("b", None, patch=outside), candidate("c", runs.WRONG)]
    patch, why = select_instance(several, it.instance, it.settings, it, [], None)
    assert patch == runs.patch("clamp", runs.WRONG)
    assert [("problem" in c) for c in why["candidates"]] == [True, True, False]
    assert it.notes["patches that do not apply"] == 2
    patch, _ = select_instance(several[:2], it.instance, it.settings, it, [], None)
    assert patch in (bad, outside)  # nothing else is there


@pytest.mark.parametrize("method", ["egss", "suite", "majority", "random"])
def test_an_empty_submission_is_chosen_only_where_nothing_else_is_there(tester, method):
    good = {"test_good.py": HEAD + "assert clamp(0, 1, 3) == 1\n"}
    it = tester()
    several = [candidate("a", None, patch=""), candidate("b", runs.RIGHT, good), candidate("c", None, patch="\n")]
    patch, why = select_instance(several, it.instance, replace(it.settings, method=method), it, [], None)
    assert patch == runs.patch("clamp", runs.RIGHT)
    assert [c.get("problem") for c in why["candidates"]] == ["it changes nothing", None, "it changes nothing"]
    assert ["tests" in c for c in why["candidates"]] == [False, True, False]
    patch, _ = select_instance(several[:1], it.instance, replace(it.settings, method=method), it, [], None)
    assert patch == ""


def test_environments_that_die_or_do_not_start_are_counted_and_tried_again(tester, data, tmp_path):
    good = {"test_good.py": HEAD + "assert clamp(0, 1, 3) == 1\n"}
    several = [candidate("a", runs.RIGHT, good), candidate("b", runs.WRONG)]
    broken = sandbox_config(["run.env_startup_command=exit 3"], "local", [])
    journal = Journal(tmp_path / "j.jsonl")
    it = tester(config=broken, journal=journal)
    _, why = select_instance(several, it.instance, it.settings, it, [], None)
    assert it.notes["environments that failed"] == 4
    assert "the environment did not start" in why["candidates"][0]["problem"]
    assert (why["decided_by"], why["tie_broken_at_random"]) == ("suite", True)
    assert (tmp_path / "j.jsonl").read_text() == ""  # a rerun tries again
    died = {"test_kill.py": "import shutil, os\nshutil.rmtree(os.getcwd())\n"}
    it = tester(journal=journal)
    suite = it.suite([candidate("a", runs.RIGHT, {**good, **died}), candidate("b", runs.WRONG)], None)
    assert it.notes["environments that failed"] == 4
    assert set(suite.problems) == {RIGHT, WRONG}


def test_docker_without_a_daemon_is_a_note(tester):
    config = sandbox_config(["swebench.yaml", "environment.executable=/nonexistent/docker"], "docker", [])
    it = tester(config=config)
    suite = it.suite([candidate("a", runs.RIGHT), candidate("b", runs.WRONG)], None)
    assert "the environment did not start" in suite.problems[RIGHT]


def test_a_test_that_hangs_on_one_patch_fails_there(tester):
    hangs = "from clamp import clamp\n\n\ndef test_it():\n    while clamp(0, 1, 3) != 1:\n        pass\n"
    for timeout in (2, 20, 200):  # on a busy machine, two seconds may be too few for what does not hang
        it = tester(timeout=timeout, repeats=1)
        suite = it.suite([candidate("a", runs.RIGHT, {"test_h.py": hangs}), candidate("b", runs.WRONG)], None)
        if suite.tests:
            break
    assert suite.tests == {"test_h.py::test_it": {RIGHT: "passed", WRONG: "error"}}
    assert suite.counts(WRONG)._asdict() == {"passed": 0, "failed": 0, "error": 1, "total": 1}


def test_the_budget_bounds_the_runs(tester):
    tests = {f"test_{i}.py": HEAD + "assert clamp(0, 1, 3) == 1\n" for i in range(5)}
    it = tester(budget=6)
    suite = it.suite([candidate("a", runs.RIGHT, tests), candidate("b", runs.WRONG)], None)
    assert suite.runs == 6
    assert it.notes["test files left out: more than the budget of 6 runs an instance"] == 2
    assert it.notes["repeats of tests left out: the budget of runs is spent"] == 1


def test_missing_tests_are_written_and_mended_once(data, tmp_path):
    """The model's first file does not compile, its second does not run; the third tells the patches apart."""
    replies = iter(["```python\ndef test_(:\n```", "```python\nimport nowhere\n```",
                    "Now:\n```python\n" + HEAD + "assert clamp(-5, 1, 3) == 1\n```\n"])  # fmt: skip
    folders = runs.three_runs(tmp_path, ["clamp"])
    output = tmp_path / "p.json"
    with fake_server(answer=lambda body: next(replies)) as server:
        more = [
            "--augment",
            "openai/writer",
            "--model-kwargs",
            json.dumps({"api_base": server.url}),
            "--method",
            "suite",
        ]
        command = [*words((data[0], [folders[0], folders[2]]), output), *more]
        assert main(command) == main(command) == 0
    _, why, notes = read(output)
    assert "test_current_issue.py::test_it" in why["demo__clamp-1"]["suite"]["tests"]
    assert notes["the model's test file did not run and was written anew"] == 1
    assert notes["openai/writer: answers that could not be used"] == 1
    assert len(server.requests) == 3
    assert "does not compile" in server.requests[1]["messages"][-1]["content"]
    assert "No module named 'nowhere'" in server.requests[2]["messages"][1]["content"]


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ("I like patch A.", "openai/j: gave up after 3 answers"),
        ('{"A": {"code_quality": 9}}', "openai/j: gave up after 3 answers"),
        (Reply(302, headers={"Location": "http://127.0.0.1:9/stolen"}), "no answer"),
        (Reply(400), "it refuses the request"),
    ],
)
def test_voters_without_a_usable_answer_cast_no_vote(data, tmp_path, answer, note):
    folders = runs.three_runs(tmp_path, ["clamp"])
    output = tmp_path / "p.json"
    with fake_server(answer=lambda body: answer) as server:
        kwargs = json.dumps({"api_base": server.url, "num_retries": 0})
        more = ["--selector", "openai/j", "--model-kwargs", kwargs, "--method", "best-of-n"]
        assert main([*words((data[0], folders), output), *more]) == 0
    (record,) = read(output)[1].values()
    assert any(note in line for line in read(output)[2])
    assert (record["ballots"], record["tie_broken_at_random"]) == ([], True)
    assert server.requests


@pytest.mark.parametrize("name", ["openai/m", "anthropic/m", "hosted_vllm/m", "gemini/m"])
def test_no_key_and_no_question_follows_a_redirect(tmp_path, name):
    with fake_server(answer=lambda body: "{}") as other, Journal(tmp_path / "j") as journal:
        elsewhere = {"Location": other.url.replace("127.0.0.1", "localhost")}
        with fake_server(
            act=lambda handler: handler.send(Reply(307, headers=elsewhere))
        ) as server:  # whatever the path
            kwargs = {"api_base": server.url, "api_key": "sk-mine", "num_retries": 0, "timeout": 30}
            model = ChatModel(name, journal, Counter(), kwargs)
            assert model.ask([{"role": "user", "content": "hi"}], str, None, 1) is None
    assert server.requests
    assert not other.requests


def test_a_key_that_is_refused_stops_with_what_to_do(data, tmp_path, capsys):
    folders = runs.three_runs(tmp_path, ["clamp"])
    with fake_server(answer=lambda body: Reply(401)) as server:
        more = [
            "--selector",
            "openai/j",
            "--model-kwargs",
            json.dumps({"api_base": server.url}),
            "--method",
            "best-of-n",
        ]
        assert main([*words((data[0], folders), tmp_path / "p.json"), *more]) == 2
    assert "Mend the model or its key" in capsys.readouterr().err


def test_a_judge_without_a_server_stops_with_what_to_do(data, tmp_path, capsys):
    folders = runs.three_runs(tmp_path, ["clamp"])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        more = ["--selector", "openai/j", "--method", "best-of-n", "--model-kwargs", json.dumps({"api_base": address})]
        assert main([*words((data[0], folders), tmp_path / "p.json"), *more]) == 2
    assert f"openai/j: no server answers at {address}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "base", "why"),
    [
        ("openai/j", "http://127.0.0.1:9", "no server answers at http://127.0.0.1:9"),
        ("nobody-j", "", "names no provider"),
        ("anthropic/j", "", "ANTHROPIC_API_KEY is not set"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_any_test_runs(
    data, tmp_path, capsys, monkeypatch, name, base, why
):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    folders = runs.three_runs(tmp_path, ["clamp"])
    kwargs = ["--model-kwargs", json.dumps({"api_base": base} if base else {})]
    assert main([*words((data[0], folders), tmp_path / "p.json"), "--selector", name, *kwargs]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "p.work.jsonl").exists()


def test_the_gate_is_the_suites_whatever_a_voter_says(data, tmp_path):
    folders = runs.three_runs(tmp_path, ["clamp"])
    output = tmp_path / "p.json"
    wrong_is_fine = judge(lambda patch: even(3) if "min(x, high)" in patch else even(1, gate=0))
    with fake_server(answer=wrong_is_fine) as server:
        more = ["--selector", "openai/j", "--model-kwargs", json.dumps({"api_base": server.url})]
        assert main([*words((data[0], folders), output), *more]) == 0
    (record,) = read(output)[1].values()
    assert (record["chosen"], record["decided_by"]) == (RIGHT, "votes")
    assert record["ballots"][0]["scores"][WRONG] == 0
    assert "not passed: test_clamp.py" in server.requests[0]["messages"][1]["content"]


# --- safety and settings ----------------------------------------------------------------------------------------------


def test_candidates_see_no_key_that_was_not_named(data, monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "HF_TOKEN", "MY_PAT", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("DATABASE", "postgres://me:hidden@host/db")
    monkeypatch.setenv("HARMLESS", "seen")
    assert {"OPENAI_API_KEY", "HF_TOKEN", "DATABASE"} <= set(secret_variables())
    config = sandbox_config([COPY.format(data[0])], "local", ["HF_TOKEN", "MINE=1"])
    with Sandbox(config, {"instance_id": "demo__clamp-1"}) as sandbox:
        shown = sandbox.run("env; echo dir=$PWD").output
    assert "HF_TOKEN=hidden" in shown
    assert "HARMLESS=seen" in shown
    assert "MINE=1" in shown
    assert shown.count("hidden") == 1
    assert "sk-of-the-user" not in shown
    assert f"PATH={os.environ['PATH']}" in shown
    assert not Path(re.search(r"dir=(\S+)", shown)[1]).exists()


def test_git_reads_no_configuration_of_the_candidates(data, tmp_path, monkeypatch):
    repo = tmp_path / "repos" / "demo__clamp-1"
    shutil.copytree(data[0] / "repos" / "demo__clamp-1", repo)
    monkeypatch.setenv("HOME", str(tmp_path))
    mark, hook = tmp_path / "mark", tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    hook.chmod(0o755)
    subprocess.run(["git", "init", "-q"], cwd=repo, check=True)
    text = f'[core]\n fsmonitor = {hook}\n hooksPath = {tmp_path}\n[filter "f"]\n clean = {hook}\n smudge = {hook}\n'
    (repo / ".git" / "config").write_text(text)
    (tmp_path / ".gitconfig").write_text(text)
    (repo / ".gitattributes").write_text("*.py filter=f\n")
    config = sandbox_config([COPY.format(tmp_path)], "local", [])
    with Sandbox(config, {"instance_id": "demo__clamp-1"}) as sandbox:
        sandbox.apply(runs.patch("clamp", runs.RIGHT))
        assert sandbox.read("clamp.py") == runs.RIGHT["clamp"]
        large = runs.diff("big.txt", "", "x" * 70 * 5_000 + "\n")
        sandbox.apply(large)
        assert len(sandbox.read("big.txt")) == 350_001
        with pytest.raises(PatchError):
            sandbox.apply(runs.diff(".git/hooks/post-checkout", "", "x\n"))
    assert not mark.exists()


def test_a_command_that_prints_the_marker_of_a_submission_is_only_output(data):
    config = sandbox_config([COPY.format(data[0])], "local", [])
    with Sandbox(config, {"instance_id": "demo__clamp-1"}) as sandbox:
        assert "after" in sandbox.run("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo after").output
        assert sandbox.run("sleep 30", timeout=1).timed_out
    with pytest.raises(SandboxError, match="did not start"):
        Sandbox(config, {"instance_id": "no such"})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "sute"], "Did you mean 'suite'"),
        (["--method", "best-of-n"], "name one with --selector"),
        (["--votes", "0"], "--votes must be at least 1"),
        (["--runner", "pytest {file}"], "must hold"),
        (["--test-files", "("], "no regular expression"),
        (["--model-kwargs", "{"], "is no JSON"),
        (["--model-kwargs", "[]"], "must be an object"),
        (["-c", "nowhere.yaml"], "Could not find config file"),
        (["-c", "environment.cwd=/home/me/project"], "patches would be applied there"),
        (["--env", "NOT_SET_ANYWHERE"], "is not set here"),
        (["--instances", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_settings_that_cannot_be_are_explained(data, tmp_path, capsys, more, message):
    assert main([*words(data, tmp_path / "p.json"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_empty_folder_needs_a_repository(data, tmp_path, capsys):
    for kind in ("local", "bubblewrap"):
        with pytest.raises(SettingsError, match="env_startup_command"):
            sandbox_config(["swebench.yaml", "environment.cwd="], kind, [])


@pytest.mark.parametrize("text", [None, "", "<x", "<testsuite/>", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'])
def test_reports_that_are_none_have_no_outcome(text):
    assert junit_outcomes(text) == {}


def test_outcomes_of_a_report():
    text = """<testsuites><testsuite><testcase classname="a.B" name="ok"/><testcase classname="a" name="bad"><failure/>
    </testcase><testcase name="odd"><error message="x"/></testcase><testcase name="no"><skipped/></testcase>
    <testcase classname="a.B" name="ok"><error message="teardown"/></testcase></testsuite></testsuites>"""
    assert junit_outcomes(text) == {"a.B::ok": "failed", "a::bad": "failed", "odd": "failed", "no": "skipped"}
    assert junit_outcomes('<t><testcase name="m"><error message="collection failure"/></testcase></t>') == {}
