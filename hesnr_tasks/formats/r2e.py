"""R2E-Gym rollouts (`trajectory_steps`): calls were parsed and written again, so fidelity is synthetic.

Source: R2E-Gym, `agenthub/trajectory/trajectory.py`, `agenthub/action/action.py`, `agenthub/agent/agent.py` (2025-04).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import text
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, deep, left_out, mapping, need_items, scalar_text, string
from hesnr_tasks.formats.outcome import outcome
from hesnr_tasks.trajectory import Fidelity, Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "r2e-gym"
RULE = "'trajectory_steps'"
_NO_CALL = "<function=></function>"  # what R2E-Gym writes when it found no call, white space aside


def detect(record: Any) -> float:
    """1 for a list of steps under `trajectory_steps`."""
    return float(isinstance(record, Mapping) and isinstance(record.get("trajectory_steps"), list))


def read(record: Any, where: Where) -> Trajectory:
    """Read one rollout: the prompt as far as it can be filled in, then thought, action and observation of each step."""
    draft = Draft(NAME, where)
    _prompt(record, draft)
    for i, step in enumerate(need_items(record, "trajectory_steps")):
        if not isinstance(step, Mapping):
            raise DataError(f"trajectory_steps[{i}] must be an object with 'thought' and 'action'")
        if not step.keys() & {"thought", "action"}:
            left_out(step, "a step has neither thought nor action")
        _step(step, draft)
    resolved, stored = outcome(record, "reward")
    instance = scalar_text(deep(record, "ds", "instance_id")) or scalar_text(record.get("docker_image"))
    return draft.build(
        id=instance,
        instance_id=instance,
        resolved=resolved,
        fidelity=Fidelity.SYNTHETIC,
        outcome=stored,
        exit_status=scalar_text(record.get("exit_reason")),
        model=scalar_text(deep(record, "agent_args", "llm_name")),
    )


def _prompt(record: Mapping[str, Any], draft: Draft) -> None:
    arguments = mapping(record, "agent_args")
    system, template = string(arguments, "system_prompt"), string(arguments, "instance_prompt")
    if arguments and not arguments.keys() & {"system_prompt", "instance_prompt"}:
        left_out(arguments, "the agent's arguments hold no prompt")
    if "system_prompt" in arguments:
        draft.context("system", system)
    problem = string(record, "problem_statement")
    if "instance_prompt" in arguments:
        draft.context("user", template.replace("{problem_statement}", problem))
    elif problem:
        draft.context("user", problem)


def _step(step: Mapping[str, Any], draft: Draft) -> None:
    thought, action = string(step, "thought"), string(step, "action")
    if "".join(action.split()) == _NO_CALL:
        draft.warn("a turn without a call holds one that R2E-Gym wrote; it is left out")
        action = ""
    # R2E-Gym builds the message this way (agent.py)
    draft.generated(text.split(f"{thought}\n\n{action}" if action else thought, "function"))
    draft.observation("user", string(step, "observation"))
