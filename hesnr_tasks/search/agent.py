"""The agent that branches where it hesitates, on mini-swe-agent's `DefaultAgent`. Needs mini-swe-agent.

Every step runs in a fork of the state before it, and is in `tree.jsonl` before the next begins; so a search that is
stopped at any moment, by any signal, goes on where it was when it is started again. With the gate `never` it is
mini-swe-agent as it is: the same messages, the same file.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minisweagent.agents.default import DefaultAgent
from minisweagent.exceptions import InterruptAgentFlow

from hesnr_tasks.errors import HesnrError, SearchError, printable
from hesnr_tasks.search.decide import Decider, SearchSettings
from hesnr_tasks.search.environment import ForkEnvironment
from hesnr_tasks.search.forks import Forks
from hesnr_tasks.search.forks.files import ForkMismatch
from hesnr_tasks.search.gates import Gate, Never, StepState
from hesnr_tasks.search.leaf import exit_message, leaf_of, leaf_record, write_whole
from hesnr_tasks.search.ledger import Ledger
from hesnr_tasks.search.policy import ModelPolicy
from hesnr_tasks.search.tree import Node, Tree
from hesnr_tasks.search.types import Judge, Leaf, Message, Policy, Usage

__all__ = ["EntropyGuidedAgent", "header_of"]

_log = logging.getLogger("hesnr_tasks")


def header_of(
    instance: str, task: str, model: Any, gate: Gate, judge: Judge | None, settings: SearchSettings
) -> dict[str, Any]:
    """What a search is of and by: only the same may go on with a tree."""
    asked = getattr(getattr(judge, "chat", None), "model", "")
    names = {"gate": repr(gate), "judge": f"{type(judge).__name__} {asked}".strip() if judge else ""}
    config = model.config
    options = getattr(config, "model_kwargs", {})
    names |= {"model": str(getattr(config, "model_name", "")), "temperature": str(options.get("temperature", ""))}
    return {"instance": instance, "task": task, "settings": asdict(settings) | names}


class EntropyGuidedAgent(DefaultAgent):
    """Searches one task: `run(task)`, then `leaves`. Its limits of steps, cost and time hold for the whole tree.

    `output`: the folder for tree.jsonl, ledger.jsonl and leaves/; if a search was begun there, it goes on.
    `environment`: settings of mini-swe-agent's local environment (timeout, env). `agent`: settings of its agent.
    """

    def __init__(
        self,
        model: Any,
        forks: Forks,
        output: Path,
        *,
        policy: Policy | None = None,
        gate: Gate | None = None,
        judge: Judge | None = None,
        settings: SearchSettings | None = None,
        environment: dict[str, Any] | None = None,
        instance: str = "task",
        **agent: Any,
    ) -> None:
        nowhere: Any = None  # each node has an environment of its own
        super().__init__(model, nowhere, **agent)
        self.forks, self.output, self.instance = forks, output, instance
        self.settings, self.gate = settings or SearchSettings(), gate or Never()
        self._environment = environment or {}
        self.tree = Tree.open(output / "tree.jsonl")
        self.ledger = Ledger(output / "ledger.jsonl")
        self._states: dict[str, Any] = {}
        self._decider = Decider(policy or ModelPolicy(model), self.gate, judge, self.settings, self._spend)

    # --- the whole search ---------------------------------------------------------------------------------------

    def run(self, task: str = "", **variables: Any) -> dict:
        """Search until every branch has ended; returns the first leaf's exit status and submission.

        Raises `SearchError` where it cannot go on; what was found is kept, and the same call goes on later.
        """
        self.extra_template_vars |= {"task": task, **variables}
        try:
            self._begin(task)
            while nodes := self.tree.open_nodes():
                self._work(nodes[0])
                self._forget()
        finally:
            self.close()
        first = self.tree.messages(self._last(next(iter(self.tree.leaves.values()))))
        return first[-1].get("extra", {})

    def close(self) -> None:
        """Let another process go on."""
        self.tree.close()
        self.ledger.close()

    @property
    def leaves(self) -> list[Leaf]:
        """The branches that have ended, in the order in which they did."""
        return [leaf_of(self.output / "leaves", record) for record in self.tree.leaves.values()]

    def _begin(self, task: str) -> None:
        header = header_of(self.instance, task, self.model, self.gate, self._decider.judge, self.settings)
        self.tree.begin(header | {"base": getattr(self.forks, "base_hash", "")})
        self._decider.votes_only |= any(record["source"] == "vote" for record in self.tree.draws.values())
        keep_only = getattr(self.forks, "keep_only", None)
        if keep_only is not None:  # what an earlier process was about to make
            keep_only({node.state for node in self.tree.open_nodes()})
        for run in range(1, self.settings.runs + 1):
            if (root := "r/0" if run == 1 else f"r{run}/0") not in self.tree.nodes:
                self._plant(root)

    def _plant(self, root: str) -> None:
        """Begin a run, as mini-swe-agent does."""
        state = self.forks.begin()
        self._states[state.token] = state
        self.env = self._environment_of(state)
        first = [("system", self.config.system_template), ("user", self.config.instance_template)]
        messages = [self.model.format_message(role=r, content=self._render_template(t)) for r, t in first]
        self.tree.add_node(Node(root, None, -1, messages, state.token, state.tree_hash()))

    def _work(self, node: Node) -> None:
        """The next thing to do at an open node."""
        if node.status:
            return self._end(node)
        if node.id not in self.tree.draws:
            if stop := self._limit(node):
                return self._add(node, 0, -1, stop, node.state, node.hash)
            if not self._decide(node):
                return None
        record = self.tree.draws[node.id]
        if not record["chosen"]:
            return self._reject(node, record)
        for rank, index in self.tree.waiting(node):
            self._step_to(node, rank, record["candidates"][index]["draw"])
        return None

    # --- one step -----------------------------------------------------------------------------------------------

    def _decide(self, node: Node) -> bool:
        """Write the decision at `node`; false where the branch ended instead."""
        self._checked_state(node)
        messages = self.tree.messages(node)
        try:
            record = self._decider.decide(node.id, self._task, messages, self._state_of(node), self._room(node))
        except HesnrError:
            raise
        except Exception as error:
            if type(error).__name__ == "ContextWindowExceededError":
                self._add(node, 0, -1, [exit_message(type(error).__name__, str(error))], node.state, node.hash)
                return False
            told = f"{type(error).__name__}: {printable(str(error)[:500])}"
            raise SearchError(
                f"the model gave no answer at {self.instance} {node.id}: {told}. Run it again: it goes on."
            ) from error
        self.tree.add(record)
        return True

    def _step_to(self, node: Node, rank: int, draw: int) -> None:
        """Execute a drawn step in a fork of the state, and write what came of it."""
        drawn = self.tree.draws[node.id]["draws"][draw]
        try:
            state = self._checked_state(node).fork()
        except ForkMismatch as error:
            return self._add(node, rank, draw, [exit_message("ForkMismatch", str(error))], node.state, node.hash)
        self._states[state.token] = state
        agent = self._at(node, state)
        agent.add_messages(drawn["message"])
        before = len(agent.messages)
        try:
            agent.execute_actions(drawn["message"])
        except InterruptAgentFlow as error:
            agent.add_messages(*error.messages)
        return self._add(node, rank, draw, agent.messages[before:], state.token, state.tree_hash())

    def _reject(self, node: Node, record: dict[str, Any]) -> None:
        """All draws were malformed: go on as mini-swe-agent does, with the first one's error in the conversation."""
        errors = node.format_errors + 1 if record["draws"][0]["error"] == "FormatError" else node.format_errors
        repeated = 0 < self.config.max_consecutive_format_errors <= errors
        more = [exit_message("RepeatedFormatError")] if repeated else []
        self._add(node, 0, 0, more, node.state, node.hash, format_errors=errors)

    def _add(
        self,
        node: Node,
        rank: int,
        draw: int,
        messages: Sequence[Message],
        state: str,
        tree_hash: str,
        format_errors: int = 0,
    ) -> None:
        record = self.tree.draws.get(node.id) if draw >= 0 else None
        cost = node.cost + sum(drawn["cost"] for drawn in record["draws"]) if record else node.cost
        calls = node.calls + (1 if record else 0)
        last = messages[-1] if messages else (record["draws"][draw]["message"] if record else {})
        status = last.get("extra", {}).get("exit_status", "") or "ended" if last.get("role") == "exit" else ""
        child = Node(
            node.child(rank), node.id, draw, list(messages), state, tree_hash, calls, cost, format_errors, status
        )
        self.tree.add_node(child)

    def _end(self, node: Node) -> None:
        """Write a branch's trajectory and patch, then its leaf."""
        state = self._checked_state(node)
        patch, trajectory = (self.output / "leaves" / f"{node.branch}.{end}" for end in ("patch", "traj.json"))
        write_whole(patch, state.diff().encode("utf-8", errors="surrogateescape"))
        agent = self._at(node, state)
        agent.config = self.config.model_copy(update={"output_path": trajectory})
        write_whole(trajectory, json.dumps(agent.serialize(*self._about(node)), indent=2).encode())
        self.tree.add(leaf_record(self.tree, node))

    # --- parts --------------------------------------------------------------------------------------------------

    def _at(self, node: Node, state: Any) -> EntropyGuidedAgent:
        """This agent as mini-swe-agent's would be after the steps to `node`, in `state`."""
        agent = copy.copy(self)
        agent.messages, agent.env = self.tree.messages(node), self._environment_of(state)
        agent.n_calls = node.calls + (1 if node.id in self.tree.draws else 0)
        agent.cost, agent.n_consecutive_format_errors = node.cost, node.format_errors
        if node.id in self.tree.draws:
            agent.cost += sum(drawn["cost"] for drawn in self.tree.draws[node.id]["draws"])
        return agent

    def _environment_of(self, state: Any) -> ForkEnvironment:
        return ForkEnvironment(state, **self._environment)

    def _checked_state(self, node: Node) -> Any:
        """The working state of `node`; one that an earlier process left is held against its hash."""
        if node.state not in self._states:
            self._states[node.state] = self.forks.reopen(node.state, node.hash)
        return self._states[node.state]

    def _forget(self) -> None:
        """Remove the states that nothing is to be done in any more."""
        needed = {node.state for node in self.tree.open_nodes()}
        for token in [token for token in self._states if token not in needed]:
            self._states.pop(token).close()

    def _limit(self, node: Node) -> list[Message]:
        """What mini-swe-agent appends when a limit is reached; empty while none is."""
        config, steps = self.config, len(self.tree.draws)
        spent = 0 < self.settings.token_limit <= self.ledger.tokens
        if 0 < config.step_limit <= steps or 0 < config.cost_limit <= self.ledger.cost or spent:
            return [exit_message("LimitsExceeded")]
        if 0 < config.wall_time_limit_seconds <= int(time.time() - self._start_time):
            return [exit_message("TimeExceeded")]
        return []

    def _state_of(self, node: Node) -> StepState:
        """What the gate may know."""
        entropies = [
            self.tree.draws[step.id]["entropy"] for step in self.tree.path(node)[:-1] if step.id in self.tree.draws
        ]
        history = tuple(entropy for entropy in entropies if entropy is not None)
        forks = sum(record["fork"] for record in self.tree.draws.values())
        return StepState(f"{self.instance}:{node.id}", history=history, forks=forks, tokens=self.ledger.tokens)

    def _room(self, node: Node) -> int:
        """How many more branches the run of `node` may have."""
        same = [record for name, record in self.tree.draws.items() if self.tree.nodes[name].run == node.run]
        return max(0, self.settings.width - 1 - sum(max(0, len(record["chosen"]) - 1) for record in same))

    def _spend(self, kind: str, usage: Usage, n: int, cost: float, node: str) -> None:
        self.ledger.add(kind, usage, node=node, n=n, cost=cost)

    def _last(self, leaf: dict[str, Any]) -> Node:
        return self.tree.nodes[leaf["node"]]

    @property
    def _task(self) -> str:
        return str(self.extra_template_vars.get("task", ""))

    # --- the saved form -----------------------------------------------------------------------------------------

    def _about(self, node: Node) -> list[dict[str, Any]]:
        """What a leaf's file says beside what mini-swe-agent's own says; nothing without branching."""
        if isinstance(self.gate, Never):
            return []
        forks = [step.id for step in self.tree.path(node) if self.tree.draws.get(step.id, {}).get("fork")]
        return [{"info": {"search": {"leaf": node.branch, "forks": forks, "settings": self.tree.header["settings"]}}}]

    def serialize(self, *extra_dicts: dict) -> dict:
        """As mini-swe-agent's agent; without branching it is that agent."""
        data = super().serialize(*extra_dicts)
        if isinstance(self.gate, Never):
            data["info"]["config"]["agent_type"] = f"{DefaultAgent.__module__}.{DefaultAgent.__name__}"
        return data
