"""The miniature's world, sandbox, tool loop and one small step of each stage of its training."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch

from hesnr_tasks.demo import ladder_file
from hesnr_tasks.ladder.schema import read_ladder_file
from hesnr_tasks.trajectory import Trajectory
from hesnr_tasks.trajectory.rendering import render
from scripts.miniature import __main__ as stages
from scripts.miniature import agent, corpus, downstream, programs, sandbox, train
from tests import ROOT

SLEEP = "import time; time.sleep(60)"
TASKS = [programs.make_task(f"task-{i}", "act", random.Random(f"{i}")) for i in range(25)]


def runs(seed: int = 0) -> list[agent.Session]:
    return [agent.expert(task, random.Random(seed), agent.without_running(task)) for task in TASKS]


# --- sandbox ----------------------------------------------------------------------------------------------------------


def test_the_sandbox_runs_a_program():
    assert sandbox.run_code("print(sys.stdin.read() + '!', 'PATH' in os.environ, sys.flags.isolated)", "x") == (
        0,
        "x! False 1\n",
    )


def test_time_is_limited():
    with ThreadPoolExecutor() as pool:
        assert all(status < 0 for status, _ in pool.map(sandbox.run_code, ("while True: pass", SLEEP)))


def test_memory_and_output_are_limited():
    assert sandbox.run_code("x = bytearray(10**9)")[0] != 0
    assert len(sandbox.run_code("while True: print('x' * 10000)")[1]) <= sandbox.OUTPUT


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "open('/etc/hostname')",
        "open('x', 'w')",
        "os.pipe()",
        "import subprocess; subprocess.run(['true'])",
        "os.fork()",
        "os.close(0); os.open('/etc/hostname', 0)",  # one that is closed is not free for another
        "os.close(0); import _socket; _socket.socket()",
        "os.close(0); os.execv('/bin/sh', ['sh', '-c', 'echo survived'])",
        "os.kill(os.getpid(), 0)",
        "os.mkdir('folder')",
        "os.symlink('/etc', 'link')",
        "os.remove(sys.executable)",
        "sys.settrace(print)",
    ],
)
def test_no_network_no_files_no_processes(code):
    status, printed = sandbox.run_code(f"{code}\nprint('survived')")
    assert (status != 0, printed) == (True, "")


def test_no_shell_and_no_root():
    status, printed = sandbox.run_code("print(os.getuid(), flush=True); os.system('echo shell')")
    assert status != 0
    assert printed.strip().isdecimal()
    assert printed.strip() != "0"


@pytest.mark.parametrize(
    "line",
    [
        "def f(a): return __import__('os').getpid()",
        "def f(a): return (lambda: 1)()",
        "def f(a): return 9 ** 9 ** 9",
        "def f(a): return a.__class__",
        "def f(a): return [1 for x in a]",
        "import os",
        "def f(a=print(1)): return a",
        "def f(a, *, b=1 // 0): return a",
        "def f(a): return 'a'",
        "def f(a): return f(a)",
        "def f(a): return (" * 500,
        "\0",
    ],
)
def test_only_the_closed_language_is_run(line):
    (failures,) = sandbox.run_tests([({"cat.py": [line]}, [("cat.py", "f", (1,), 1)])])
    assert [failure.value for failure in failures] == ["no code"]


def test_what_ends_the_process_counts_against_its_own_task_only():
    deep = ["def f(a): return " + "(" * 90 + "a" + ")" * 90]
    good, bad = ["def f(a): return a + 1"], ["def f(a): return a // 0"]
    requests = [({"cat.py": lines}, [("cat.py", "f", (1,), 2)]) for lines in (good, bad, deep)]
    assert [[f.value for f in rows] for rows in sandbox.run_tests(requests)] == [[], ["error"], ["1"]]


# --- tasks and the expert ---------------------------------------------------------------------------------------------


def test_the_expert_solves_every_task_and_no_task_is_solved_before():
    assert all(agent.solved(runs()))
    assert not any(agent.solved([agent.Session(task) for task in TASKS]))


def test_texts_for_training_show_what_the_sandbox_would():
    for task in TASKS[:5]:
        real = agent.expert(task, random.Random(3))
        assert real.observations == agent.expert(task, random.Random(3), agent.without_running(task)).observations


def test_the_transcript_is_the_packages():
    for session in runs():
        text, own = agent.transcript(session)
        rendered = render(Trajectory.from_json(agent.record(session, resolved=True)), "transcript")
        assert rendered.text == text
        assert [text[a:b] for a, b in own] == [thought + action for thought, action in session.turns]


def test_bad_calls_are_answered():
    session = agent.Session(TASKS[0])
    path = next(iter(session.files))
    for action, answer in (
        (agent.call("read", path="../x"), "No such file."),
        (agent.call("edit", path=path, line="99", text="x"), "No such line."),
        (agent.call("edit", path=path, line="²", text="x"), "No such line."),
        (agent.call("shell", command="ls"), "Unknown call."),
        ("no call", "Unknown call."),
    ):
        session.act("", action)
        assert session.observations[-1] == answer


def test_what_is_trained_on_holds_nothing_that_is_held_out():
    """Every right or wrong line of code in training text is of the bucket "train", by its text."""
    texts = [text for family in corpus.FAMILIES for text in islice(corpus.documents(family, 1), 300)]
    rng = random.Random(5)
    tasks = [programs.make_task("", "train", rng) for _ in range(40)]
    texts += [agent.transcript(agent.expert(task, rng, agent.without_running(task)))[0] for task in tasks]
    lines = [
        line for text in texts for line in re.findall(r"def \w+\((.*)\): return (.*?)(?:</parameter>|$)", text, re.M)
    ]
    assert len(lines) > 500
    hashed = {programs.bucket(parameters.split(", "), code) for parameters, code in lines}
    assert hashed == {"train"}
    shown = {(", ".join(f.parameters), f.code(repaired=True)) for t in TASKS for fs in t.files.values() for f in fs}
    assert {programs.bucket(p.split(", "), code.partition("return ")[2]) for p, code in shown} == {"act"}


def test_the_shipped_runs_are_made_again_to_the_byte():
    folder = ladder_file().parent
    tokenizer = train.load_tokenizer(next((folder / "checkpoints").iterdir()))
    tasks = stages.held_out("score", stages.N_SCORE, tokenizer)
    rows = [
        agent.record(agent.expert(task, random.Random(task.name), agent.without_running(task)), resolved=True)
        for task in tasks
    ]
    shipped = (folder / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    assert rows == [json.loads(line) for line in shipped]
    for task in tasks:
        for functions in task.files.values():
            assert {programs.bucket(f.parameters, f.expression) for f in functions} == {"score"}


def test_every_score_is_the_share_of_the_tasks_that_are_listed_as_solved():
    """The ladder file, and the table of counts in the experiment's README, against the outcome of every task."""
    folder = ladder_file().parent
    solved = json.loads((folder / "downstream.json").read_text(encoding="utf-8"))
    ladder = read_ladder_file(folder / "ladder.yaml")
    tasks = stages.held_out("act", stages.N_ACT, train.load_tokenizer(next((folder / "checkpoints").iterdir())))
    text = (ROOT / "scripts" / "miniature" / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| ((?:code|prose)-\S+) \| (.*)$", text, re.M))
    assert (
        list(table) == [checkpoint.name for checkpoint in ladder.checkpoints] == list(solved["0"]) == list(solved["1"])
    )
    for checkpoint in ladder.checkpoints:
        first, second = (solved[seed][checkpoint.name] for seed in "01")
        score = checkpoint.downstream["repaired"]
        assert (score.n, score.value) == (len(first), round(first.count("1") / len(first), 4))
        count, other, sizes, *_ = table[checkpoint.name].split(" | ")
        assert (int(count.split()[0]), int(other)) == (first.count("1"), second.count("1"))
        for size, shown in enumerate(re.findall(r"\d+", sizes), 1):
            own = [ok == "1" for ok, task in zip(first, tasks, strict=True) if task.operators == size]
            assert abs(100 * sum(own) / len(own) - int(shown)) <= 0.5


@pytest.mark.parametrize("page", ["README.md", "results/README.md", "scripts/miniature/README.md"])
def test_tables_in_documents_are_those_of_the_results(page):
    """Values and errors of HE-SNR, HE-PPL and PPL, the claims' coefficients, against results/verdict.json."""
    verdict = json.loads((ROOT / "results" / "verdict.json").read_text(encoding="utf-8"))
    measured = {row["checkpoint"]: row for row in verdict["tables"]["ladder"]}
    text = (ROOT / page).read_text(encoding="utf-8")
    header = re.search(r"^\| base checkpoint \|.*$", text, re.M)[0].split(" | ")
    rows = [line.split(" | ") for line in re.findall(r"^\| ((?:code|prose)-\d.*)$", text, re.M)]
    assert len(rows) in (6, 12)
    for name, *cells in rows:
        for title, metric in (("HE-SNR ↑", "he_snr"), ("HE-PPL ↓", "he_ppl"), ("PPL ↓", "ppl")):
            value, error = re.findall(r"[\d.]+", cells[[title.strip("| ") for title in header].index(title) - 1])
            shown, digits = measured[name][metric], len(value.partition(".")[2])
            assert (f"{shown['value']:.{digits}f}", f"{shown['stderr']:.{digits}f}") == (value, error)
    pooled = next(claim for claim in verdict["claims"] if claim["group"] == "pooled")
    gain = pooled["spearman_gain"]
    plain = " ".join(text.replace("−", "-").split())
    assert f"[{gain['low']:+.2f}, {gain['high']:+.2f}]" in plain
    for key in ("spearman", "spearman_baseline"):
        assert f"{pooled[key]['value']:+.2f}" in plain


# --- a small step of each stage ---------------------------------------------------------------------------------------

TINY = train.Recipe(
    width=32, layers=1, inner=32, short=64, long=128, tokens_per_step=128, rungs=(2, 3), long_rungs=(4,), warm_up=2,
    sft_tasks=3, sft_steps=2, sft_batch=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    texts = [*islice(corpus.documents("code", 1), 300), *(agent.transcript(s)[0] for s in runs())]
    return train.train_tokenizer(iter(texts))


def test_tokens_are_lossless_and_end_with_a_call(tokenizer):
    for session in runs()[:5]:
        text, _ = agent.transcript(session)
        assert tokenizer.decode(train.encode(tokenizer, text)) == text


def test_a_run_that_was_stopped_ends_in_the_same_weights(tokenizer, tmp_path, monkeypatch):
    quiet = [].append
    train.pretrain("code", TINY, tokenizer, tmp_path / "whole", 1, quiet)
    save = train.save

    class StoppedError(Exception):
        pass

    def save_and_stop(model, tok, folder):
        save(model, tok, folder)
        if folder.name == "step-3":
            raise StoppedError

    monkeypatch.setattr(train, "save", save_and_stop)
    with pytest.raises(StoppedError):
        train.pretrain("code", TINY, tokenizer, tmp_path / "half", 1, quiet)
    monkeypatch.setattr(train, "save", save)
    train.pretrain("code", TINY, tokenizer, tmp_path / "half", 1, quiet)
    assert {p.name for p in (tmp_path / "half").iterdir()} == {"step-2", "step-3", "step-4", "state.pt"}
    ends = [torch.load(tmp_path / run / "state.pt", weights_only=True)["model"] for run in ("whole", "half")]
    for name, weights in ends[0].items():
        torch.testing.assert_close(weights, ends[1][name], rtol=1e-4, atol=1e-6)


def test_fine_tuning_learns_the_agents_own_text_only(tokenizer):
    for ids, labels in train.examples(tokenizer, 3, 1):
        learned = tokenizer.decode([token for token in labels if token != -100])
        assert "<function=submit>" in learned
        assert "FAIL" not in learned
        assert len(ids) == len(labels)
    torch.manual_seed(0)
    model = train.make_model(TINY)
    before = model.model.embed_tokens.weight.detach().clone()
    train.fine_tune(model, TINY, tokenizer, 1, [].append)
    assert not torch.equal(before, model.model.embed_tokens.weight)


def test_a_model_acts_until_it_makes_no_call(tokenizer):
    torch.manual_seed(0)
    results, sessions = downstream.act(train.make_model(TINY).eval(), tokenizer, TASKS[:4])
    assert results == [False] * 4
    assert all(session.turns and session.ended for session in sessions)


def test_answers_do_not_depend_on_the_batch(tokenizer):
    torch.manual_seed(0)
    model = train.make_model(TINY).eval()
    prompts = [train.encode(tokenizer, text) for text in ("User:\nRead cat.py.\n\n", "def bend(a, b):")]
    alone = [downstream.answers(model, tokenizer, [prompt], [0])[0] for prompt in prompts]
    assert downstream.answers(model, tokenizer, prompts, [0]) == alone
