"""Rows of data sets on the hub that have a shape of their own: nebius/SWE-agent-trajectories, R2E-Gym rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hesnr_tasks.actions.grammar import split_calls
from hesnr_tasks.formats.base import Format, TrajectoryBuilder, Where, role_of
from hesnr_tasks.formats.json_access import (
    deep,
    items,
    left_out,
    mapping,
    messages_of,
    need_items,
    need_objects,
    scalar_text,
    string,
)
from hesnr_tasks.formats.outcomes import row_outcome
from hesnr_tasks.formats.swe_agent import EXIT
from hesnr_tasks.trajectory import Fidelity, Trajectory

# --- nebius/SWE-agent-trajectories: role `ai`, and the model's own text in `text` -------------------------------------


def _detect_nebius(record: Any) -> float:
    """1 when an early item has the role ai and a text."""
    if not isinstance(record, Mapping):
        return 0.0
    early = items(record, "trajectory")[:8]
    return float(any(isinstance(i, Mapping) and i.get("role") == "ai" and "text" in i for i in early))


def _read_nebius(record: Any, where: Where) -> Trajectory:
    builder = TrajectoryBuilder(NEBIUS.name, where)
    for item in messages_of(record, "trajectory"):
        role, content = role_of(item), string(item, "text")
        if role is None:
            left_out(item, "a message without a known role")
        if role == "system":
            builder.context(role, content or string(item, "system_prompt"))
        elif role != "assistant":
            builder.given(role or "user", content)
        elif EXIT.match(content):
            builder.not_generated(content)
        else:
            builder.generated(split_calls(content, "fence"))
    resolved, stored = row_outcome(record, "target")
    return builder.build(
        id=scalar_text(deep(record, "trajectory_id")),
        instance_id=record.get("instance_id"),
        resolved=resolved,
        outcome=stored,
        exit_status=scalar_text(record.get("exit_status")),
        model=scalar_text(record.get("model_name")),
    )


NEBIUS = Format("nebius-swe-agent", "'trajectory' rows of role ai with 'text'", _detect_nebius, _read_nebius)


# --- R2E-Gym rollouts -------------------------------------------------------------------------------------------------
# Calls were parsed and written again, so fidelity is synthetic. Source: R2E-Gym, `agenthub/trajectory/trajectory.py`,
# `agenthub/action/action.py`, `agenthub/agent/agent.py` (2025-04).

_NO_CALL = "<function=></function>"  # what R2E-Gym writes for a turn without a call, white space aside


def _detect_r2e(record: Any) -> float:
    """1 for a list of steps under `trajectory_steps`."""
    return float(isinstance(record, Mapping) and isinstance(record.get("trajectory_steps"), list))


def _read_r2e(record: Any, where: Where) -> Trajectory:
    """One rollout: the prompt as far as it can be filled in, then thought, action and observation of each step."""
    builder = TrajectoryBuilder(R2E_GYM.name, where)
    _add_r2e_prompt(record, builder)
    steps = need_items(record, "trajectory_steps")
    for step in need_objects(steps, "trajectory_steps[{}]", "an object with 'thought' and 'action'"):
        if not step.keys() & {"thought", "action"}:
            left_out(step, "a step has neither thought nor action")
        thought, action = string(step, "thought"), string(step, "action")
        if "".join(action.split()) == _NO_CALL:
            builder.warn("a turn without a call holds one that R2E-Gym wrote; it is left out")
            action = ""
        # R2E-Gym builds the message this way (agent.py)
        builder.generated(split_calls(f"{thought}\n\n{action}" if action else thought, "function"))
        builder.observation("user", string(step, "observation"))
    resolved, stored = row_outcome(record, "reward")
    instance = scalar_text(deep(record, "ds", "instance_id")) or scalar_text(record.get("docker_image"))
    return builder.build(
        id=instance,
        instance_id=instance,
        resolved=resolved,
        fidelity=Fidelity.SYNTHETIC,
        outcome=stored,
        exit_status=scalar_text(record.get("exit_reason")),
        model=scalar_text(deep(record, "agent_args", "llm_name")),
    )


def _add_r2e_prompt(record: Mapping[str, Any], builder: TrajectoryBuilder) -> None:
    arguments = mapping(record, "agent_args")
    system, template = string(arguments, "system_prompt"), string(arguments, "instance_prompt")
    if arguments and not arguments.keys() & {"system_prompt", "instance_prompt"}:
        left_out(arguments, "the agent's arguments hold no prompt")
    if "system_prompt" in arguments:
        builder.context("system", system)
    problem = string(record, "problem_statement")
    if "instance_prompt" in arguments:
        builder.context("user", template.replace("{problem_statement}", problem))
    elif problem:
        builder.context("user", problem)


R2E_GYM = Format("r2e-gym", "'trajectory_steps'", _detect_r2e, _read_r2e)
