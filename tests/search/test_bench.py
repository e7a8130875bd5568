"""The bench: graphs and policies in closed form, outcomes executed again, and a real search that takes the same way."""

from __future__ import annotations

import ast
import math
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.bench.experiment import Plan, experiment, firing, methods
from hesnr_tasks.search.bench.graph import LIMIT, build
from hesnr_tasks.search.bench.judging import BenchJudge
from hesnr_tasks.search.bench.outcomes import execute, outcomes
from hesnr_tasks.search.bench.policy import ScriptedPolicy, draw
from hesnr_tasks.search.bench.repositories import load, names
from hesnr_tasks.search.bench.rules import selection_table
from hesnr_tasks.search.bench.simulate import choose, simulate
from hesnr_tasks.search.consolidate_collect import source_only
from hesnr_tasks.search.costs import costs
from hesnr_tasks.search.entropy import decision_entropy
from hesnr_tasks.search.judge import Blend, posterior
from hesnr_tasks.search.types import Usage

ALL = names()
RATE = 0.4


def method(start):
    return next(one for one in methods(RATE) if one.name.startswith(start))


def paths(graph, path=()):
    """Every way to the end, with its probability."""
    if graph.ended(path):
        yield path, 1.0
    for edge in graph.edges(path):
        for rest, chance in paths(graph, (*path, edge.label)):
            yield rest, edge.probability * chance


# --- repositories ---


def test_there_are_ten_repositories_of_real_size():
    assert len(ALL) == 10
    for name in ALL:
        found = load(name)
        texts = [*found.source.values(), *found.visible.values(), *found.hidden.values()]
        assert 50 <= sum(len(text.splitlines()) for text in texts) <= 300
        assert all(ast.parse(text) for text in texts)
        assert found.task
        assert set(found.tests) == {"right", "wrong"}
        assert len(found.edits["A"]) == 3
        assert len(found.edits["B"]) == 2
    with pytest.raises(SearchError, match="no repository"):
        load("nothing")


@pytest.mark.parametrize("name", ALL)
def test_only_the_whole_mend_resolves_and_wrong_ones_are_plausible(name):
    known = outcomes(name)
    assert [state for state, one in known.states.items() if one.resolved] == ["right/right"]
    fooled = [state for state, one in known.states.items() if one.visible and not one.resolved]
    assert len(fooled) >= 4  # pass all visible tests, fail hidden ones
    assert not known.states["nothing"].visible
    right, wrong = known.states["right/right"].patch, {one.patch for one in known.states.values()}
    assert len(wrong) == 10
    assert right
    by_right = [test for test in known.tests if test["authors"] == ["right"]]
    assert by_right
    assert all(test["passes"]["right/right"] for test in by_right)
    by_wrong = [test for test in known.tests if test["authors"] == ["wrong"]]
    assert by_wrong
    assert not any(test["passes"]["right/right"] for test in by_wrong)


def meaning(test):
    return test["authors"], test["name"].rpartition("::")[2]


def test_shipped_outcomes_are_what_execution_gives(namespaces):
    known = outcomes("money")
    states = ("right/right", "float/show-only")
    found = execute("money", repeats=1, states=states)
    assert found.states == {state: known.states[state] for state in states}
    assert found.tests
    for test in found.tests:
        (same,) = [one for one in known.tests if meaning(one) == meaning(test)]
        assert test["passes"] == {state: same["passes"][state] for state in states}


# --- agents ---


@pytest.mark.parametrize("name", ALL)
def test_chances_of_every_step_sum_to_one(name):
    graph = build(load(name), 1)
    seen = {}
    for path in (("A:loop",),):
        assert [edge.label for edge in graph.edges(path)] == ["loop"]
    path = ()
    while not graph.ended(path):
        edges = graph.edges(path)
        seen[path] = edges
        assert math.fsum(edge.probability for edge in edges) == pytest.approx(1, abs=1e-12)
        assert len({edge.command for edge in edges}) == len(edges)
        path = (*path, edges[0].label)
    assert path[-1] == "submit"
    wrong = [any(not edge.good for edge in edges) for edges in seen.values()]
    assert sum(wrong) == 2  # two consequential forks


def test_harmless_forks_hesitate_as_much_as_consequential_ones():
    graph = build(load("money"), 0)
    path, harmless, consequential = (), [], []
    while not graph.ended(path):
        edges = graph.edges(path)
        kind = consequential if any(not edge.good for edge in edges) else harmless
        kind.append(graph.entropy(path))
        path = (*path, edges[0].label)
    assert max(harmless) > min(consequential)
    assert sorted(harmless)[len(harmless) // 2] < 0.3 < min(consequential)


def test_plain_runs_resolve_as_often_as_the_graph_says():
    graph, known = build(load("lru"), 0), outcomes("lru")
    expected = graph.skill.mends_a * (1 - graph.skill.loops) * graph.skill.mends_b
    runs = [simulate(graph, method("best-of-N"), str(seed)) for seed in range(400)]
    resolved = [known.states[known.state(run.path)].resolved for run in runs]
    assert sum(resolved) / 400 == pytest.approx(expected, abs=0.07)
    loops = [run for run in runs if "A:loop" in run.path]
    assert len(loops) / 400 == pytest.approx(graph.skill.loops, abs=0.04)
    assert all(len(run.path) == LIMIT and known.state(run.path) == "nothing" for run in loops)


def test_draws_follow_their_chances_and_their_meaning():
    graph = build(load("pages"), 2)
    path = ("look",)
    drawn = Counter(draw(graph, path, number, "s").label for number in range(3000))
    for edge in graph.edges(path):
        assert drawn[edge.label] / 3000 == pytest.approx(edge.probability, abs=0.03)
    assert draw(graph, path, 7, "s") == draw(build(load("pages"), 2), path, 7, "s")


def test_log_probabilities_usage_and_commands_agree():
    graph = build(load("roman"), 0)
    policy, messages, path, tokens = ScriptedPolicy(graph, 5), [], (), 2_000
    for _ in range(11):
        draws = policy.sample(messages, 3)
        assert decision_entropy(draws[0].decision, "max") == pytest.approx(graph.entropy(path), abs=1e-9)
        assert draws[0].usage.prompt == tokens
        assert [one.usage.prompt for one in draws[1:]] == [0, 0]
        content = draws[0].message["extra"]["response"]["choices"][0]["logprobs"]["content"]
        edge = next(one for one in graph.edges(path) if one.command == draws[0].command)
        assert math.exp(content[0]["logprob"]) == pytest.approx(edge.probability)
        assert policy.sample(messages, 1)[0].usage.cached == tokens  # the same prompt again
        messages += [draws[0].message, {"role": "user", "content": "output"}]
        path, tokens = (*path, edge.label), tokens + edge.output + edge.observed
    with pytest.raises(SearchError, match="would not run"):
        graph.walk(["rm -rf /"])


def test_a_stateless_policy_goes_on_from_messages():
    graph = build(load("roman"), 0)
    first, messages = ScriptedPolicy(graph, 5), []
    for _ in range(6):
        messages.append(first.query(messages))
    assert ScriptedPolicy(graph, 5).query(messages[:5]) == messages[5]


# --- judge ---


def test_the_judge_of_the_bench_picks_the_right_option_as_often_as_planted():
    graph = build(load("versions"), 0)
    path = ()
    while "A:right" not in {edge.label for edge in graph.edges(path)}:
        path = (*path, graph.edges(path)[0].label)
    rates = {}
    for d_prime in (0.0, 2.0):
        wins = 0
        for seed in range(600):
            scores = BenchJudge(graph, d_prime, seed).scores(path, ["A:text", "A:right"])
            odds = posterior([1, 1], scores, Blend())
            wins += odds[1] > odds[0]
        rates[d_prime] = wins / 600
    assert rates[0.0] == pytest.approx(0.5, abs=0.07)
    assert rates[2.0] == pytest.approx(0.921, abs=0.04)  # Φ(2 / √2)


# --- the experiment ---


@pytest.fixture(scope="module")
def records():
    plan = Plan(variants=1, repetitions=8, plain=(1, 4), gated=(1,), repositories=("lru", "money", "pages", "roman"))
    wanted = (
        "best-of-N",
        "entropy (log-probabilities), good",
        "entropy (log-probabilities), blind",
        "oracle gate, good",
    )
    chosen = [one for one in methods(RATE) if one.name.startswith(wanted)]
    return list(experiment(plan, chosen)), plan


def test_the_experiment_shows_what_it_must(records):
    found = costs(records[0])
    rate = {name: one.resolved.mean(axis=0) for name, one in found.items()}
    assert rate["best-of-N"][1] > rate["best-of-N"][0]
    assert rate["entropy (log-probabilities), good judge"][0] > rate["best-of-N"][0] + 0.2
    assert rate["entropy (log-probabilities), blind judge"][0] < rate["best-of-N"][0] + 0.15
    cheap, dear = found["oracle gate, good judge"], found["entropy (log-probabilities), good judge"]
    assert (cheap.tokens < dear.tokens).all()


def test_the_experiment_is_the_same_every_time(records):
    (first, plan) = records
    again = list(experiment(Plan(**{**plan.__dict__, "repositories": ("lru",)}), [method("best-of-N")]))
    assert again == [one for one in first if one.task == "lru" and one.method == "best-of-N"]


def test_the_entropy_gate_fires_at_every_fork_and_nowhere_else():
    graph = build(load("lru"), 0)
    run = simulate(graph, method("entropy (log-probabilities), good"), "3")
    assert run.forks == sum(graph.entropy(run.path[:at]) > 0.3 for at in range(len(run.path)))
    assert 0.2 < firing(Plan(variants=1, repositories=("lru",))) < 0.6


def test_usage_of_a_plain_run_is_the_scripted_truth():
    graph = build(load("lru"), 0)
    run = simulate(graph, method("best-of-N"), "1")
    edges = graph.taken(run.path)
    prompts = [2_000 + sum(edge.output + edge.observed for edge in edges[:at]) for at in range(len(edges))]
    truth = Usage(sum(prompts), sum(prompts[:-1]), sum(edge.output for edge in edges))
    assert run.usage == {"sample": truth}


def test_choosing_is_bounded_by_the_oracle():
    table = selection_table(Plan(1, 6, repositories=("lru",)), method("best-of-N"), 4)
    rates = {row["rule"]: row["resolved"].value for row in table.rows}
    assert max(rates.values()) == rates["oracle"]
    for row in table.rows:
        assert row["regret"].value == pytest.approx(rates["oracle"] - row["resolved"].value)
    graph, known = build(load("lru"), 0), outcomes("lru")
    runs = [simulate(graph, method("best-of-N"), f"0.{at}") for at in range(3)]
    chosen = choose("task", runs, known, "0")
    assert chosen.usage["sample"].prompt == sum(run.usage["sample"].prompt for run in runs)


# --- for real ---


def test_a_real_search_takes_the_same_way_at_the_same_cost(namespaces, tmp_path, monkeypatch):
    """The real agent, real forks, real commands, real tests against the simulation: path, patch, ledger."""
    pytest.importorskip("minisweagent")
    from hesnr_tasks.search.agent import EntropyGuidedAgent
    from hesnr_tasks.search.forks import open_forks

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "repository").mkdir()
    repository = load("money")
    root = repository.write(tmp_path / "repository")
    graph, known, seed = build(repository, 0, sys.executable), outcomes("money"), "0.0"
    way = method("entropy (log-probabilities), good")
    expected = simulate(graph, way, seed)
    policy = ScriptedPolicy(graph, seed)
    agent = EntropyGuidedAgent(
        policy,
        open_forks(root, tmp_path / "store"),
        tmp_path / "out",
        policy=policy,
        gate=way.gate,
        judge=BenchJudge(graph, way.d_prime, seed),
        settings=way.settings,
        environment={"timeout": 30, "env": {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}},
        system_template="You mend software.",
        instance_template="{{ task }}",
        step_limit=LIMIT,
        cost_limit=0,
    )
    agent.run(repository.task)
    (leaf,) = agent.leaves
    assert graph.walk(leaf.commands) == expected.path
    assert source_only(leaf.patch) == source_only(known.states[known.state(expected.path)].patch)
    assert agent.ledger.sums() == expected.usage
    assert leaf.status == "Submitted"
    assert leaf.score == pytest.approx(expected.score)
