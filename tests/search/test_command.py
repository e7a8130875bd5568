"""`hesnr search run` as users start it: against a real local server, stopped and started again, and misused."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else litellm asks the network when it is imported
pytest.importorskip("minisweagent")
pytest.importorskip("litellm")

from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.readers import read_trajectories
from hesnr_tasks.search import command
from hesnr_tasks.search.forks.files import hash_tree
from hesnr_tasks.search.ledger import read_ledger
from tests.scoring.server_model import load, save_model
from tests.search.chat_server import serving
from tests.search.scripted import repository_at

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("namespaces")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def server(model):
    with serving(model) as found:
        yield found


@pytest.fixture
def repository(tmp_path):
    return repository_at(tmp_path / "repo")


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["run", *map(str, words)])


def hesnr(*words):
    return command.run(arguments(*words))


def usual(server, repository, output, *more):
    one = ["--task", "Mend it.", "--repo", repository, "-o", output, "--model", "tiny", "--base-url", server.address]
    return [*one, "--step-limit", "8", *more]


def summed(output):
    entries = read_ledger(output / "repo" / "ledger.jsonl")
    return {name: sum(getattr(entry.usage, name) for entry in entries) for name in ("prompt", "output")}


def test_a_whole_search_against_a_real_server(server, repository, tmp_path, capsys):
    before = hash_tree(repository)
    output = tmp_path / "out"
    options = [
        "--gate",
        "threshold:0.3",
        "--n",
        "4",
        "--mode",
        "split",
        "--width",
        "3",
        "--key",
        "whole",
        "--runs",
        "2",
    ]
    assert hesnr(*usual(server, repository, output, *options)) == 0
    told = capsys.readouterr().out
    result = json.loads((output / "repo" / "result.json").read_text())
    assert f"chosen {result['chosen']}" in told
    assert len(result["leaves"]) > 2
    assert result["forks"] > 0
    assert summed(output) == server.usage, "the ledger has every token that the server counted"
    assert all(asked.get("n", 1) in (1, 4) for asked in server.requests)
    assert not any(asked.get("logprobs") for asked in server.requests), "votes need none"
    read = list(read_trajectories(str(output / "repo" / "leaves" / "*.traj.json")))
    assert len(read) == len(result["leaves"])
    assert hash_tree(repository) == before
    assert not (output / "repo" / "work").exists()
    asked = len(server.requests)
    assert hesnr(*usual(server, repository, output, *options)) == 0
    assert len(server.requests) == asked, "what is done is not done again"


def test_a_finished_search_is_no_answer_to_another_question(server, repository, tmp_path):
    server.ends_at = 0
    first = usual(server, repository, tmp_path / "out", "--gate", "never")
    assert hesnr(*first) == 0
    held = (tmp_path / "out" / "repo" / "tree.jsonl").read_bytes()
    (repository / "more").write_text("the patch may be applied in between")
    assert hesnr(*first) == 0
    for words in (("--task", "Another."), ("--gate", "always"), ("--temperature", "0.5"), ("--select", "llm")):
        assert hesnr(*first, *words) == 2, words
    assert (tmp_path / "out" / "repo" / "tree.jsonl").read_bytes() == held
    (tmp_path / "out" / "repo" / "result.json").write_text("[]")
    assert hesnr(*first) == 2


def test_methods_that_differ_have_different_names(tmp_path):
    from hesnr_tasks.search.settings import how_of

    words = ["--task", "x", "--repo", ".", "-o", tmp_path, "--base-url", "http://127.0.0.1:9/v1", "--model", "m"]
    options = [(), ("--n", 3), ("--key", "file"), ("--entropy", "logprob"), ("--probe", 2), ("--select", "llm")]
    options += [("--no-tests",), ("--temperature", 1), ("--model", "m2"), ("--max-forks", 2), ("--width", 2)]
    names = [how_of(arguments(*words, "--gate", "always", *more)).method for more in options]
    assert len(set(names)) == len(options)
    assert names[0] == "gate=always n=4 mode=choose judge=none model=m"


def test_a_judge_that_talks_nonsense_is_told_in_the_result(server, repository, tmp_path, capsys):
    server.ends_at = 1
    words = ["--gate", "always", "--n", "3", "--judge", "llm", "--no-tests"]
    assert hesnr(*usual(server, repository, tmp_path / "out", *words)) == 0
    failures = json.loads((tmp_path / "out" / "repo" / "result.json").read_text())["judge_failures"]
    assert failures == sum(bool(record["judge_error"]) for record in records(tmp_path / "out")) > 0
    assert f"(the judge failed at {failures})" in capsys.readouterr().out
    assert summed(tmp_path / "out") == server.usage


def test_a_server_without_usage_is_told_once(server, repository, tmp_path, caplog):
    server.states_usage = False
    server.ends_at = 2
    assert hesnr(*usual(server, repository, tmp_path / "out", "--gate", "never")) == 0
    assert sum("states no token usage" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        "agent.step_limit=abc",
        "environment.timeout=abc",
        "agent.instance_template={{ nosuch }}",
        "agent.system_template={%",
    ],
)
def test_a_configuration_that_mini_refuses_is_an_error(server, repository, tmp_path, capsys, wrong):
    words = ["--task", "x", "--repo", repository, "-o", tmp_path / "out", "--model", "m", "--base-url", server.address]
    assert hesnr(*words, "--gate", "never", "-c", "mini.yaml", "-c", wrong) == 2
    assert "repo: -c: mini-swe-agent cannot use this configuration" in capsys.readouterr().err
    server.ends_at = 0
    assert hesnr(*words, "--gate", "never", "-c", "mini.yaml") == 0, "nothing of it is in the way"


def test_texts_are_taken_as_they_are(repository, tmp_path):
    text = "one\u2028two\x0bthree\n"
    (tmp_path / "task").write_text(text)
    words = ["--repo", repository, "-o", tmp_path / "out"]
    assert command.read_tasks(arguments("--task", f"@{tmp_path / 'task'}", *words))[0].text == text
    row = {"instance_id": "a", "repo": "repo", "problem_statement": text}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n")
    tasks = command.read_tasks(arguments("--instances", tmp_path / "tasks.jsonl", "-o", tmp_path / "out"))
    assert [task.text for task in tasks] == [text]


def records(output):
    lines = (output / "repo" / "tree.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["type"] == "draws"]


def test_logprobs_are_asked_for_and_used(server, repository, tmp_path):
    output = tmp_path / "out"
    assert hesnr(*usual(server, repository, output, "--gate", "threshold:0.2", "--entropy", "logprob", "--n", "3")) == 0
    assert server.requests[0]["top_logprobs"] == 20
    steps = [record for record in records(output) if record["source"]]
    assert steps
    assert {record["source"] for record in steps} == {"logprob"}
    assert summed(output) == server.usage
    kept = [draw["message"]["extra"]["response"]["choices"] for record in steps for draw in record["draws"]]
    assert all(len(choices) == 1 for choices in kept)


@pytest.mark.parametrize("lack", ["gives none", "refuses them", "refuses n", "gives one choice"])
def test_servers_that_can_do_less(server, repository, tmp_path, caplog, lack):
    server.gives_logprobs = lack != "gives none"
    server.refuses = {"refuses them": {"logprobs"}, "refuses n": {"n"}}.get(lack, set())
    server.most_choices = 1 if lack == "gives one choice" else 128
    output = tmp_path / "out"
    source = "vote" if "n" in lack.split() or "choice" in lack else "logprob"
    options = ["--gate", "threshold:0.3", "--entropy", source, "--n", "3"]
    assert hesnr(*usual(server, repository, output, *options)) == 0
    steps = records(output)
    assert {record["source"] for record in steps} <= {"vote", ""}
    assert any(len(record["draws"]) == 3 for record in steps)
    assert summed(output) == server.usage
    told = [r.message for r in caplog.records if "From here on the gate goes by votes" in r.message]
    assert len(told) == (1 if source == "logprob" else 0)


def test_gate_never_and_runs_are_best_of_n_with_plain_files(server, repository, tmp_path):
    output = tmp_path / "out"
    server.ends_at = 1
    assert hesnr(*usual(server, repository, output, "--gate", "never", "--runs", "3", "--no-tests")) == 0
    result = json.loads((output / "repo" / "result.json").read_text())
    assert result["leaves"] == ["r", "r2", "r3"]
    saved = json.loads((output / "repo" / "leaves" / "r2.traj.json").read_text())
    assert "search" not in saved["info"]
    assert all("n" not in asked for asked in server.requests)
    assert "sk-" not in json.dumps(saved)


def test_keys_are_not_saved(server, repository, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.delenv("HOSTED_VLLM_API_KEY", raising=False)
    server.ends_at = 0
    assert hesnr(*usual(server, repository, tmp_path / "out", "--gate", "never")) == 0
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"sk-secret" not in path.read_bytes()


def test_instances_one_broken_does_not_stop_the_others(server, repository, tmp_path, capsys):
    rows = [{"instance_id": name, "repo": "repo", "problem_statement": "Mend."} for name in ("a-1", "b-2")]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    broken = tmp_path / "out" / "a-1" / "tree.jsonl"
    broken.parent.mkdir(parents=True)
    broken.write_text("nonsense\n")
    server.ends_at = 0
    words = ["--instances", tmp_path / "tasks.jsonl", "-o", tmp_path / "out", "--model", "tiny", "--gate", "never"]
    assert hesnr(*words, "--base-url", server.address) == 2
    told = capsys.readouterr()
    assert "b-2: 1 steps" in told.out
    assert "a-1: " in told.err
    assert "tree.jsonl:1: damaged" in told.err


def test_interrupted_nothing_is_lost(server, repository, tmp_path):
    server.ends_at = 2
    words = usual(server, repository, tmp_path / "out", "--gate", "never", "--step-limit", "40")
    code = (
        "import argparse, sys; from hesnr_tasks.search import command; p = argparse.ArgumentParser()\n"
        f"command.add_arguments(p); sys.exit(command.run(p.parse_args({['run', *map(str, words)]!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    tree = tmp_path / "out" / "repo" / "tree.jsonl"
    until = time.monotonic() + 60
    while not tree.exists() or '"draws"' not in tree.read_text():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    if process.returncode != 0:  # it may have been done already
        assert process.returncode == 130, told
        assert "nothing is lost" in told
    held = tree.read_bytes()
    assert hesnr(*words) == 0
    assert tree.read_bytes().startswith(held)


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (["--task", "x"], SettingsError, "either --task and --repo"),
        (["--task", "x", "--repo", "/nowhere/x"], SettingsError, "there is no folder"),
        (["--task", "@/nowhere/x", "--repo", "."], DataError, "cannot read /nowhere/x"),
        (["--task", "x", "--repo", ".", "--gate", "sometimes"], SettingsError, "gate 'sometimes'"),
        (["--task", "x", "--repo", ".", "--n", "0"], SettingsError, "n is 0"),
        (["--task", "x", "--repo", ".", "-c", "nothing.yaml"], SettingsError, "nothing.yaml"),
        (["--task", "x", "--repo", ".", "-c", "model.x=1"], SettingsError, "-c"),
        (
            ["--task", "x", "--repo", ".", "-c", "mini.yaml", "-c", "environment=[]"],
            SettingsError,
            "environment must be",
        ),
        (["--task", "x", "--repo", "."], SettingsError, "no model"),
        (["--task", "x", "--repo", ".", "--model", "m", "--judge", "llm"], SettingsError, "--judge-url"),
    ],
)
def test_misuse(tmp_path, monkeypatch, words, kind, told):
    monkeypatch.delenv("MSWEA_MODEL_NAME", raising=False)
    with pytest.raises(kind, match=told):
        hesnr(*words, "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ('{"instance_id": "a", "repo": "repo"}', "problem_statement is missing"),
        ('{"instance_id": "../a", "repo": "repo", "problem_statement": "x"}', "cannot name a folder"),
        ('{"instance_id": "b", "repo": "repo", "problem_statement": "x"}', "twice"),
    ],
)
def test_instances_that_are_none(repository, tmp_path, line, told):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"instance_id": "b", "repo": "repo", "problem_statement": "x"}\n' + line + "\n")
    with pytest.raises(HesnrError, match=told) as caught:
        command.read_tasks(arguments("--instances", path, "-o", tmp_path / "out"))
    assert "tasks.jsonl" in str(caught.value)


def test_without_mini_swe_agent_the_extra_is_named(tmp_path):
    words = ["run", "--task", "x", "--repo", ".", "-o", str(tmp_path / "out"), "--model", "m"]
    script = (
        "import argparse, importlib.util, sys\nfrom hesnr_tasks.search import command\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'minisweagent' else find(name, *a)\n"
        f"p = argparse.ArgumentParser(); command.add_arguments(p); command.run(p.parse_args({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "pip install 'hesnr-tasks[search]'" in done.stderr
