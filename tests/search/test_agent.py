"""The agent on mini-swe-agent: equal to it without branching; branches, limits, errors, and going on after a kill."""

import json
import logging
import math
import os
import signal
import subprocess
import time

import pytest

pytest.importorskip("minisweagent")

from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.exceptions import FormatError
from minisweagent.models.test_models import DeterministicModel, make_output

from hesnr_tasks.errors import JudgeError, SearchError, SettingsError
from hesnr_tasks.readers import read_trajectories
from hesnr_tasks.search.agent import EntropyGuidedAgent
from hesnr_tasks.search.decide import SearchSettings
from hesnr_tasks.search.forks import open_forks
from hesnr_tasks.search.forks.copies import CopyForks
from hesnr_tasks.search.forks.files import ForkMismatch, hash_tree
from hesnr_tasks.search.gates import Always, Never, Random, Threshold
from hesnr_tasks.search.ledger import read_ledger
from hesnr_tasks.search.policy import ModelPolicy, decision_of
from hesnr_tasks.search.tree import Journal
from hesnr_tasks.search.types import Draw, Usage, Verdict
from tests.search.scripted import SUBMIT, Scripted, agent_settings, repository_at

SETTINGS = SearchSettings(n=4)


pytestmark = pytest.mark.usefixtures("namespaces")


@pytest.fixture
def repository(tmp_path):
    return repository_at(tmp_path / "repo")


def searched(repository, output, model, **options):
    forks = open_forks(repository, output / "store")
    agent = EntropyGuidedAgent(model, forks, output, **{"settings": SETTINGS, **agent_settings(), **options})
    agent.run("Mend it.")
    return agent


def outputs():
    return [
        make_output("look", [{"command": "pwd; ls; git status --short"}], cost=0.5),
        make_output("two", [{"command": "echo 1 > new"}, {"command": "cat new; exit 3"}]),
        make_output("slow", [{"command": "echo begun; sleep 30"}]),
        make_output("bytes", [{"command": "printf 'a\\r\\n\\377'; kill -9 $$"}]),
        make_output("none", []),
        make_output("done", [{"command": f"{SUBMIT}; cat new"}, {"command": "echo never"}]),
        make_output("after the end", [{"command": "echo never"}]),
    ]


@pytest.mark.parametrize("limits", [{}, {"step_limit": 3}, {"cost_limit": 2.0}])
def test_one_candidate_and_gate_never_is_mini_swe_agent_byte_for_byte(repository, tmp_path, monkeypatch, limits):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.25)
    output = tmp_path / "out"
    path = output / "leaves" / "r.traj.json"
    model = {"outputs": outputs()}
    agent_settings_ = agent_settings(cost_limit=0.0) | limits
    copied = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(repository), str(copied)], check=True)
    environment = LocalEnvironment(cwd=str(repository), timeout=1)
    stock = DefaultAgent(DeterministicModel(**model), environment, output_path=path, **agent_settings_)
    end = stock.run("Mend it.")
    expected = path.read_bytes()
    path.unlink()
    subprocess.run(["rm", "-rf", str(repository)], check=True)
    copied.rename(repository)

    forks = open_forks(repository, output / "store")
    ours = EntropyGuidedAgent(
        DeterministicModel(**model), forks, output, gate=Never(), environment={"timeout": 1}, **agent_settings_
    )
    assert ours.run("Mend it.") == end
    assert path.read_bytes() == expected
    assert json.loads(expected)["info"]["exit_status"] == ("LimitsExceeded" if limits else "Submitted")


class Malformed:
    """A model of mini-swe-agent whose calls of some numbers are malformed."""

    def __init__(self, bad, **settings):
        self.inner, self.bad, self.calls = DeterministicModel(**settings), bad, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def query(self, messages, **options):
        self.calls += 1
        if self.calls in self.bad:
            extra = {"interrupt_type": "FormatError", "cost": 0.25}
            raise FormatError({"role": "user", "content": f"malformed {self.calls}", "extra": extra})
        return self.inner.query(messages, **options)

    def serialize(self):
        return self.inner.serialize()


@pytest.mark.parametrize("bad", [{1, 2}, {2, 3, 4}])
def test_malformed_calls_are_as_in_mini_swe_agent(repository, tmp_path, monkeypatch, bad):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.25)
    path = tmp_path / "out" / "leaves" / "r.traj.json"
    settings = {"outputs": [outputs()[0], make_output("done", [{"command": SUBMIT}])]}
    stock = DefaultAgent(
        Malformed(bad, **settings), LocalEnvironment(cwd=str(repository)), output_path=path, **agent_settings()
    )
    end = stock.run("Mend it.")
    expected = path.read_bytes()
    agent = searched(repository, tmp_path / "out", Malformed(bad, **settings), gate=Never())
    assert path.read_bytes() == expected
    assert end["exit_status"] == ("Submitted" if len(bad) == 2 else "RepeatedFormatError") == agent.leaves[0].status


def test_votes_are_counted_and_the_majority_goes_on(repository, tmp_path):
    model = Scripted({0: ["cat a.py", "ls", "cat  a.py", "BAD"], 1: [SUBMIT] * 4})
    agent = searched(repository, tmp_path / "out", model, gate=Threshold(0.6))
    record = agent.tree.draws["r/0"]
    assert [(c["votes"], c["draw"]) for c in record["candidates"]] == [(2, 0), (1, 1)]
    assert record["entropy"] == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    assert [record["fork"], record["chosen"], record["scores"]] == [True, [0], None]
    assert agent.tree.draws["r/1"]["entropy"] == 0
    assert not agent.tree.draws["r/1"]["fork"]
    assert [leaf.commands for leaf in agent.leaves] == [("cat a.py", SUBMIT)]


class Likes:
    """A judge that gives 1 to commands with a word in them, 0 to others."""

    def __init__(self, word):
        self.word, self.asked = word, []

    def judge(self, task, history, candidates):
        self.asked.append((task, len(history), [c.votes for c in candidates]))
        return Verdict(tuple(float(self.word in c.draw.command) for c in candidates), Usage(100, 10, 5))


class Nonsense:
    def judge(self, task, history, candidates):
        raise JudgeError("no number in 'good luck'")


def test_the_judge_overrules_votes_and_its_failure_leaves_them(repository, tmp_path):
    script = {0: ["ls", "cat a.py", "ls", "ls"], 1: [SUBMIT] * 4}
    judge = Likes("cat")
    judged = searched(repository, tmp_path / "a", Scripted(script), gate=Always(), judge=judge)
    assert judged.leaves[0].commands[0] == "cat a.py"
    assert judged.leaves[0].score == 1.0
    assert judge.asked == [("Mend it.", 2, [3, 1])], "it is asked only where there is a choice"
    assert judged.ledger.sums()["judge"] == Usage(100, 10, 5)
    failed = searched(repository, tmp_path / "b", Scripted(script), gate=Always(), judge=Nonsense())
    assert failed.leaves[0].commands[0] == "ls"
    assert failed.tree.draws["r/0"]["scores"] is None
    assert "good luck" in failed.tree.draws["r/0"]["judge_error"]
    assert math.isnan(failed.leaves[0].score), "a judge that failed is no score of 0"


def test_split_makes_branches_that_do_not_see_each_other(repository, tmp_path):
    script = {
        0: ["echo one > new", "echo two > new; echo > second", "echo one > new", "rm a.py"],
        1: ["ls; cat new"] * 4,
    }
    model = Scripted(script | {2: [f"{SUBMIT}; ls"] * 4})
    before = hash_tree(repository)
    settings = SearchSettings(n=4, mode="split", width=3, resolution="whole")
    agent = searched(repository, tmp_path / "out", model, gate=Threshold(0.5), settings=settings)
    assert [leaf.id for leaf in agent.leaves] == ["r", "r.0x1", "r.0x2"]
    assert [leaf.commands[0] for leaf in agent.leaves] == [script[0][0], script[0][1], script[0][3]]
    first, second, third = agent.leaves
    assert "second" not in first.patch
    assert "+two" in second.patch
    assert "-x = 1" in third.patch
    assert "+one" not in third.patch
    assert hash_tree(repository) == before
    assert agent.forks.tokens() == [], "states that nothing needs are removed"
    read = list(read_trajectories([str(leaf.trajectory) for leaf in agent.leaves]))
    assert len(read) == 3
    assert all(trajectory.meta["exit_status"] == "Submitted" for trajectory in read)
    saved = json.loads(second.trajectory.read_text())
    assert saved["trajectory_format"] == "mini-swe-agent-1.1"
    assert saved["info"]["search"]["forks"] == ["r/0"]
    assert "two" in saved["messages"][5]["content"]


def test_width_holds_for_the_whole_tree(repository, tmp_path):
    script = {depth: [f"echo {k} > f{depth}" for k in range(4)] for depth in range(3)}
    settings = SearchSettings(n=4, mode="split", width=5, resolution="whole")
    agent = searched(
        repository, tmp_path / "out", Scripted(script | {3: [SUBMIT] * 4}), gate=Always(), settings=settings
    )
    assert len(agent.leaves) == 5


def test_the_ledger_is_the_scripted_truth(repository, tmp_path):
    model = Scripted({0: ["ls", "cat a.py", "ls", "ls"], 1: [SUBMIT] * 4})
    agent = searched(repository, tmp_path / "out", model, gate=Always(), judge=Likes("x"))
    entries = read_ledger(tmp_path / "out" / "ledger.jsonl")
    assert [(e.kind, e.node, e.n) for e in entries] == [("sample", "r/0", 4), ("judge", "r/0", 1), ("sample", "r/1", 4)]
    assert agent.ledger.sums() == {"sample": model.spent, "judge": Usage(100, 10, 5)}
    assert agent.ledger.tokens == model.spent.prompt + model.spent.output + 105


@pytest.mark.parametrize(("settings", "agent", "steps"), [({}, {"step_limit": 5}, 5), ({"token_limit": 600}, {}, 5)])
def test_limits_hold_for_the_whole_tree(repository, tmp_path, settings, agent, steps):
    script = {depth: [f"echo {k} > f{depth}" for k in range(4)] for depth in range(9)}
    full = SearchSettings(n=4, mode="split", width=4, resolution="whole", **settings)
    found = searched(repository, tmp_path / "out", Scripted(script), gate=Always(), settings=full, **agent)
    assert len(found.tree.draws) == steps
    assert len(found.leaves) == 4
    assert {leaf.status for leaf in found.leaves} == {"LimitsExceeded"}
    assert all("+0" in leaf.patch or "+1" in leaf.patch or "+2" in leaf.patch for leaf in found.leaves)


def test_gates_without_a_signal_draw_once_where_they_do_not_fire(repository, tmp_path):
    model = Scripted({depth: ["ls"] * 4 for depth in range(6)} | {6: [SUBMIT] * 4})
    agent = searched(repository, tmp_path / "out", model, gate=Random(0.5))
    numbers = [len(record["draws"]) for record in agent.tree.draws.values()]
    assert set(numbers) == {1, 4}
    assert [n == 4 for n in numbers] == [record["fork"] for record in agent.tree.draws.values()]


def test_logprob_gate_and_falling_back_to_votes_said_once(repository, tmp_path, caplog):
    settings = SearchSettings(n=4, source="logprob")
    script = {0: ["ls", "cat a.py", "ls", "ls"], 1: ["ls"] * 4, 2: [SUBMIT] * 4}
    model = Scripted(
        script, decisions={0: {"ls": math.log(0.5), "cat": math.log(0.5)}, 1: {"ls": 0.0}, 2: {"echo": 0.0}}
    )
    agent = searched(repository, tmp_path / "a", model, gate=Threshold(0.6), settings=settings)
    assert [len(record["draws"]) for record in agent.tree.draws.values()] == [4, 1, 1]
    assert agent.tree.draws["r/0"]["entropy"] == pytest.approx(math.log(2))
    with caplog.at_level(logging.WARNING, logger="hesnr_tasks"):
        agent = searched(repository, tmp_path / "b", Scripted(script), gate=Threshold(0.5), settings=settings)
    assert [record["source"] for record in agent.tree.draws.values()] == ["vote"] * 3
    assert [len(record["draws"]) for record in agent.tree.draws.values()] == [4, 4, 4]
    assert len([r for r in caplog.records if "log-probabilities" in r.message]) == 1


def test_a_fork_that_differs_ends_its_branch_alone(repository, tmp_path, monkeypatch):
    copied = CopyForks.copy
    failed = []

    def spoilt(self, state):
        if len(failed) < 1 and len(self.tokens()) == 2:
            failed.append(state.token)
            raise ForkMismatch("the copy differs")
        return copied(self, state)

    monkeypatch.setattr(CopyForks, "copy", spoilt)
    settings = SearchSettings(n=4, mode="split", width=2)
    model = Scripted({0: ["ls", "cat a.py", "ls", "ls"], 1: [SUBMIT] * 4})
    agent = searched(repository, tmp_path / "out", model, gate=Always(), settings=settings)
    assert {leaf.id: leaf.status for leaf in agent.leaves} == {"r": "Submitted", "r.0x1": "ForkMismatch"}


def test_a_model_that_fails_stops_the_search_and_it_goes_on(repository, tmp_path):
    script = {0: ["ls"] * 4, 1: [SUBMIT] * 4}
    with pytest.raises(SearchError, match=r"no answer at task r/1: ConnectionError: refused.*goes on"):
        searched(repository, tmp_path / "out", Scripted(script, fails={1: ConnectionError("refused")}), gate=Never())
    agent = searched(repository, tmp_path / "out", Scripted(script), gate=Never())
    assert agent.leaves[0].commands == ("ls", SUBMIT)
    assert len(agent.ledger.entries) == 2


def test_a_full_context_ends_one_branch(repository, tmp_path):
    class ContextWindowExceededError(Exception):
        pass

    script = {0: ["ls"] * 4, 1: [SUBMIT] * 4}
    model = Scripted(script, fails={1: ContextWindowExceededError("too long")})
    agent = searched(repository, tmp_path / "out", model, gate=Never())
    assert agent.leaves[0].status == "ContextWindowExceededError"


def dying(append, at, kind):
    """An append that does not survive the `at`-th line: it is killed before it, or in the middle, or interrupted."""
    count = iter(range(1, 1_000_000))

    def counted(self, record):
        if next(count) == at:
            if kind == "interrupt":
                raise KeyboardInterrupt
            if kind == "torn":
                self._file.seek(0, os.SEEK_END)
                self._file.write(b'{"type": "node", "id"')
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, record)

    return counted


def run_and_die(repository, output, at, kind):
    """The search in another process that ends early; returns how it ended."""
    child = os.fork()
    if child == 0:
        try:
            Journal.append = dying(Journal.append, at, kind)
            killable(repository, output)
        except KeyboardInterrupt:
            os._exit(130)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killable(repository, output):
    script = {0: ["echo 1 > a", "echo 2 > b", "echo 1 > a", "BAD"], 1: ["cat a b", "ls", "ls > c", "BAD"]}
    settings = SearchSettings(n=4, mode="split", width=3)
    model = Scripted(script | {2: ["BAD"] * 4, 3: [SUBMIT] * 4})
    return searched(repository, output, model, gate=Threshold(0.6), settings=settings, judge=Likes("1"))


def shape(output):
    """Everything in the tree but the names of states and the times of observations."""
    records = [json.loads(line) for line in (output / "tree.jsonl").read_text().splitlines()]
    text = json.dumps([{k: v for k, v in record.items() if k != "state"} for record in records])
    return [json.loads(text, object_hook=lambda d: {k: v for k, v in d.items() if k != "timestamp"})]


def test_killed_anywhere_it_goes_on_to_the_same_tree(repository, tmp_path):
    whole = killable(repository, tmp_path / "whole")
    expected, leaves = shape(tmp_path / "whole"), whole.leaves
    assert len(leaves) == 3
    lines = sum(len((tmp_path / "whole" / name).read_text().splitlines()) for name in ("tree.jsonl", "ledger.jsonl"))
    for at, kind in [(2, "before"), (5, "torn"), (8, "before"), (lines // 2, "torn"), (lines - 1, "interrupt")]:
        output = tmp_path / f"{kind}{at}"
        assert run_and_die(repository, output, at, kind) == (130 if kind == "interrupt" else -9)
        agent = killable(repository, output)
        assert shape(output) == expected
        assert [(leaf.id, leaf.patch, leaf.commands) for leaf in agent.leaves] == [
            (leaf.id, leaf.patch, leaf.commands) for leaf in leaves
        ]
        assert agent.forks.tokens() == []


def test_going_on_with_other_settings_or_at_the_same_time_is_an_error(repository, tmp_path):
    agent = searched(repository, tmp_path / "out", Scripted({0: [SUBMIT] * 4}), gate=Never())
    with pytest.raises(SettingsError, match=r"begun with another n \(4, now 2\)"):
        searched(repository, tmp_path / "out", Scripted({}), gate=Never(), settings=SearchSettings(n=2))
    with pytest.raises(SettingsError, match="gate"):
        searched(repository, tmp_path / "out", Scripted({}), gate=Always())
    held = EntropyGuidedAgent(Scripted({}), agent.forks, tmp_path / "other", **agent_settings())
    with pytest.raises(SearchError, match="being written by another run"):
        EntropyGuidedAgent(Scripted({}), agent.forks, tmp_path / "other", **agent_settings())
    held.close()


def test_a_working_state_that_was_changed_in_between_is_refused(repository, tmp_path):
    model = Scripted({0: ["ls"] * 4}, fails={1: ConnectionError("refused")})
    with pytest.raises(SearchError, match="refused"):
        searched(repository, tmp_path / "out", model, gate=Never())
    state = next((tmp_path / "out" / "store" / "states").iterdir())
    (state / "tree" / "a.py").write_text("tampered")
    with pytest.raises(SearchError, match="not as the search left it"):
        searched(repository, tmp_path / "out", model, gate=Never())


def test_draws_of_any_model_say_their_errors_and_tokens():
    class Tool(Malformed):
        pass

    draws = ModelPolicy(Tool({2}, outputs=outputs())).sample([], 3)
    assert [draw.error for draw in draws] == ["", "FormatError", ""]
    assert [draw.cost for draw in draws] == [0.5, 0.25, 1.0]
    assert draws[2].command == "echo 1 > new\ncat new; exit 3"
    assert all(isinstance(draw, Draw) for draw in draws)


def choice(tokens):
    return {"logprobs": {"content": [{"token": t, "logprob": -0.5, "top_logprobs": top(t)} for t in tokens]}}


def top(token):
    return [{"token": token, "logprob": -0.5}, {"token": "other", "logprob": -1.0}]


@pytest.mark.parametrize(
    ("tokens", "command", "first"),
    [
        (["I ", "will ", "ls", ". ", '{"command": "', "ls", " -la", '"}'], "ls -la", ["ls", " -la", '"}']),
        (['{"command": "ec', 'ho \\"a\\"', '"}'], 'echo "a"', ['{"command": "ec', 'ho \\"a\\"', '"}']),
        (["```\n", "cat", " a", "\n```"], "cat a", ["cat", " a", "\n```"]),
        (["no ", "command"], "ls", []),
        (["ls"], "", []),
    ],
)
def test_decision_tokens_are_those_that_begin_the_command(tokens, command, first):
    found = decision_of(choice(tokens), command, 3)
    assert list(found) == [{token: -0.5, "other": -1.0} for token in first]
    assert decision_of({"logprobs": None}, command, 3) == ()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "spit"}, "mode"),
        ({"n": 0}, "at least 1"),
        ({"n": 2, "probe": 3}, "probe"),
        ({"source": "x"}, "source"),
    ],
)
def test_settings_that_cannot_be_are_errors(settings, told):
    with pytest.raises(SettingsError, match=told):
        SearchSettings(**settings)
