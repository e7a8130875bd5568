"""Runs of scripted agents: mini-swe-agent's own agent, the shipped model class, the scripted server, many times over.

Only the commands are not executed again: what each patch is worth was found by executing it (`world.execute`). An
answer is chosen among the runs of a task by the tests that these runs wrote or saw, then three scripted selectors of
d' = 1; ties by lot. All methods have the same limits and the same way to choose.
"""

import functools
import itertools
import multiprocessing
import os
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
os.environ.setdefault("MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm
from minisweagent.agents.default import DefaultAgent
from minisweagent.exceptions import Submitted
from minisweagent.models.utils import actions_toolcall

from benchmarks.egss.server import Server
from benchmarks.egss.world import LIMIT, NOTHING, build, names, outcomes, seeded, state_of
from hesnr_tasks.egss import GatedModel, calibrate
from hesnr_tasks.egss.judges import Spent
from hesnr_tasks.egss.runs import InstanceRun, TaskCost, read_instance
from hesnr_tasks.testing import fake_server

MODEL = "openai/bench"
PRICES = (3e-6, 3e-7, 1.5e-5)  # $ a token: prompt, cached prompt, output
# mini compiles its templates and litellm looks up prices at every call; neither is measured here
actions_toolcall.Template = functools.cache(actions_toolcall.Template)
litellm.cost_calculator.completion_cost = lambda reply, model: money_of(reply.usage)
JUDGES = {"good": 2.0, "mediocre": 1.0, "blind": 0.0}  # d'
SELECT = 1_000  # tokens that a selector reads beside the patches


class Method(NamedTuple):
    """A name, settings of the model class, and the quality of the judge."""

    name: str
    settings: dict
    d_prime: float = 0.0


class Run(NamedTuple):
    """One run: the end it came to, the labels of its steps, what it cost."""

    state: str
    path: tuple
    instance: InstanceRun


class ScriptedEnvironment:
    """Commands are not executed; the submission ends the run."""

    config = None

    def execute(self, action, cwd=""):
        if "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT" in action["command"]:
            raise Submitted({"role": "exit", "content": "", "extra": {"exit_status": "Submitted", "submission": ""}})
        return {"output": "…", "returncode": 0, "exception_info": ""}

    def get_template_vars(self, **kwargs):
        return {}

    def serialize(self):
        return {}


@contextmanager
def answered_by(server, loopback):
    """litellm asks `server`: in this process, or over loopback; yields what the model needs to reach it."""
    if loopback:
        with fake_server(answer=server.reply) as http:
            yield {"api_base": http.url, "api_key": "none"}
        return
    original, litellm.completion = litellm.completion, server.complete
    try:
        yield {}
    finally:
        litellm.completion = original


def money_of(usage):
    """At `PRICES`."""
    cached = usage.prompt_tokens_details.cached_tokens
    return PRICES[0] * (usage.prompt_tokens - cached) + PRICES[1] * cached + PRICES[2] * usage.completion_tokens


def simulate(name, variant, method, seed, loopback=False):
    """One run to its end."""
    graph, server = build(name, variant), Server()
    user = f"{graph.name}|{seed}"
    with answered_by(server, loopback) as reach:
        model = GatedModel(
            model_name=MODEL,
            model_kwargs={"extra_body": {"user": user}, **reach},
            judge_kwargs={"extra_body": {"user": f"{user}|{method.d_prime}"}},
            observation_template="{{output.output}}",
            **method.settings,
        )
        agent = DefaultAgent(
            model,
            ScriptedEnvironment(),
            system_template="You mend.",
            instance_template="{{task}}",
            step_limit=LIMIT,
            cost_limit=0,
        )
        agent.run(f"{seed}: {graph.repository.task}")
    calls = [call for message in agent.messages for call in message.get("tool_calls") or ()]
    path = tuple(call["id"].partition("#")[0].replace("__", ":") for call in calls)
    return Run(state_of(path), path, read_instance(agent.serialize(), f"{graph.name}.traj.json"))


def methods(rate, calibration):
    """All of them; `rate`: the share of steps at which the votes fire; `calibration`: estimates by log-probability."""
    several = [Method("best-of-N (never)", {"gate": "never"})]
    gated = {
        "votes of 2": {"gate": "threshold:0"},
        "log-probability": {"gate": f"quantile:{rate:.4f}", "estimator": "logprob", "calibration": calibration},
        "random, rate of votes": {"gate": f"random:{rate:.4f}"},
        "edit class": {"gate": "edit"},
    }
    for (gate, settings), (judge, d_prime) in itertools.product(gated.items(), JUDGES.items()):
        several.append(Method(f"{gate}, {judge} judge", settings, d_prime))
    return [*several, Method("always, mediocre judge", {"gate": "always"}, 1.0)]


def measure(repositories, variants, folder):
    """(share of steps at which two votes differ, calibration file of log-probabilities), from runs of their own."""
    votes = [
        simulate(name, variant, Method("", {"gate": "threshold:0", "judge": "votes"}), f"rate {variant}").instance
        for name in repositories
        for variant in range(variants)
    ]
    settings = {"gate": "threshold:inf", "estimator": "logprob"}
    stated = [
        simulate(name, variant, Method("", settings), f"calibration {variant}").instance
        for name in repositories
        for variant in range(variants)
    ]
    path = Path(folder) / "gate.json"
    estimates = [value for instance in stated for value in instance.estimates]
    calibrate(estimates, stated[0].estimator, stated[0].model).write(path)
    return sum(run.fired for run in votes) / sum(run.steps for run in votes), path


def experiment(repositories=(), variants=1, repetitions=1, counts=(1, 2, 4, 8), processes=2):
    """([records for `hesnr egss report`'s tables], {method: (share of steps fired, calls by kind a run)})."""
    repositories = list(repositories or names())
    with tempfile.TemporaryDirectory() as folder:
        rate, calibration = measure(repositories, variants, folder)
        jobs = [
            (name, variant, method, repetition, max(counts))
            for method in methods(rate, calibration)
            for name in repositories
            for variant in range(variants)
            for repetition in range(repetitions)
        ]
        if processes > 1:
            with multiprocessing.get_context("spawn").Pool(processes) as pool:
                pools = pool.map(_pool, jobs, chunksize=4)
        else:
            pools = list(map(_pool, jobs))
    records, fired = [], {}
    for (name, variant, method, repetition, _), runs in zip(jobs, pools, strict=True):
        for count in counts:
            records += [choose(name, method.name, runs[i : i + count], (variant, repetition, i, count))
                        for i in range(0, len(runs), count)]  # fmt: skip
        tally = fired.setdefault(method.name, Counter())
        for run in runs:
            tally.update(steps=run.instance.steps, fired=run.instance.fired, runs=1)
            tally.update({kind: spent.calls for kind, spent in run.instance.spent.items()})
    return records, fired, rate


def _pool(job):
    name, variant, method, repetition, count = job
    return [simulate(name, variant, method, f"{repetition}.{i}") for i in range(count)]


def choose(name, method, runs, seed):
    """The record of one answer chosen among `runs`: best three by tests, then three selectors, ties by lot."""
    outcomes_of_task = outcomes(name)
    votes, states = Counter(), sorted({run.state for run in runs} - {NOTHING})
    spent = [run.instance.total for run in runs]
    if len(states) > 1:
        wrote = {"repository"} | {label[4:] for run in runs for label in run.path if label.startswith("own:")}
        tests = [test for test in outcomes_of_task["tests"] if wrote.intersection(test["authors"])]
        lot = {state: seeded("lot", name, method, seed, state).random() for state in states}
        passed = {state: sum(test["passes"][state] for test in tests) for state in states}
        finalists = sorted(states, key=lambda state: (-passed[state], lot[state]))[:3]
        for voter in range(3):
            score = {}
            for state in finalists:
                noise = seeded("selector", voter, name, seed, state).gauss(0, 1)
                score[state] = (0.5 if outcomes_of_task["resolved"][state] else -0.5) + noise
            votes[max(score, key=score.get)] += 1
        spent.append(Spent(3, 3 * (SELECT + 200 * len(finalists)), 0, 3 * (10 + 55 * len(finalists))))
        states = [max(finalists, key=lambda state: (votes[state], lot[state]))]
    resolved = bool(states) and outcomes_of_task["resolved"][states[0]]
    return TaskCost(name, method, len(runs), float(resolved), Spent.sum(spent))
