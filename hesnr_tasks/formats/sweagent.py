"""SWE-agent `.traj` files of all generations: text parsers and function calling.

The message list (`history`) is read, because it is what the model saw; `trajectory` says which outputs were rejected
(they are in no later prompt and are left out, counted) and holds a last step that some versions keep out of the
history. Sources: SWE-agent 0.x to 1.1.0, `sweagent/agent/agents.py`, `sweagent/tools/parsing.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import canonical, text
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, deep, items, left_out, mapping, messages_of, scalar_text, string
from hesnr_tasks.formats.roles import is_generated, role_of
from hesnr_tasks.trajectory import Fidelity, Kind, Segment, Trajectory

__all__ = ["EXIT", "NAME", "RULE", "detect", "read"]

NAME = "swe-agent"
RULE = "'trajectory' steps with action, observation and response, or 'attempts', or a 'history' of SWE-agent messages"

_STYLES = {
    "thought_action": "fence",
    "edit_format": "fence",
    "xml_thought_action": "command",
    "xml_function_calling": "function",
    "json": "json",
    "all_bash_code_blocks": "bash",
    "single_bash_code_block": "bash",
    "action": "whole",
    "action_only": "whole",
    "identity": "whole",
    "function_calling": "none",
}
_NOT_AN_INSTANCE = ("", "main", "swe_main")
EXIT = re.compile(r"exit(?:ing|ed)? due to ", re.IGNORECASE)

Item = Mapping[str, Any]


def detect(record: Any) -> float:
    """Steps with action, observation and response; or attempts; or a history that only SWE-agent writes."""
    if not isinstance(record, Mapping):
        return 0.0
    step = deep(record, "trajectory", 0)
    if isinstance(step, Mapping) and {"action", "observation", "response"} <= step.keys():
        return 1.0
    if deep(record, "attempts", 0, "trajectory") is not None:
        return 1.0
    first = deep(record, "history", 0)
    if isinstance(first, Mapping) and "role" in first and ("message_type" in first or "agent" in first):
        return 0.9
    return 0.9 if "trajectory" in record and "exit_status" in mapping(record, "info") else 0.0


def read(record: Any, where: Where) -> Trajectory:
    """Read one file; where there are several attempts, the one that was chosen."""
    draft = Draft(NAME, where)
    run = _attempt(record, draft)
    history = _history(run, draft)
    style = _style(run, history)
    rendered = [_message(item, style, draft) for item in history]
    rendered += [_late(step, style, draft) for step in _outside_history(run, history, draft)]
    instance = _instance(run)
    return draft.build(
        id=instance or where.identity,
        instance_id=instance or where.stem,
        fidelity=Fidelity.RENDERED if any(rendered) else Fidelity.EXACT,
        format_version=scalar_text(deep(run, "info", "swe_agent_version")),
        exit_status=scalar_text(deep(run, "info", "exit_status")),
        model=scalar_text(deep(run, "replay_config", "agent", "model", "name")),
        parser=style,
    )


def _attempt(record: Any, draft: Draft) -> Item:
    attempts = [item for item in items(record, "attempts") if isinstance(item, Mapping)]
    if not attempts or record.get("trajectory") or record.get("history"):
        return record
    best = deep(record, "info", "best_attempt_idx")
    chosen = best if isinstance(best, int) and 0 <= best < len(attempts) else len(attempts) - 1
    draft.warn(f"the file holds {len(attempts)} attempts and no choice; attempt {chosen + 1} is read")
    return attempts[chosen]


def _history(run: Item, draft: Draft) -> list[Item]:
    """The messages: `history`, or what the last step had before it, or the bare steps."""
    history = messages_of(run, "history") if items(run, "history") else []
    steps = _steps(run)
    if history or not steps:
        return history
    last = steps[-1]
    if items(last, "messages"):
        return messages_of(last, "messages")
    if any("role" in item for item in items(last, "query") if isinstance(item, Mapping)):
        return messages_of(last, "query")
    draft.warn("the prompt is not stored: the file has steps but no history")
    return []


def _steps(run: Item) -> list[Item]:
    steps = items(run, "trajectory")
    for i, step in enumerate(steps):
        if not isinstance(step, Mapping):
            raise DataError(f"trajectory[{i}] must be an object with 'action' and 'response'")
    return steps


def _instance(run: Item) -> str | None:
    named = scalar_text(deep(run, "replay_config", "problem_statement", "id"))
    environment = string(run, "environment")
    return named or (environment if environment not in _NOT_AN_INSTANCE else None)


# --- what the parser was ----------------------------------------------------------------------------------------------


def _style(run: Item, history: Sequence[Item]) -> str:
    parser = deep(run, "replay_config", "agent", "tools", "parse_function", "type")
    known = _STYLES.get(parser) if isinstance(parser, str) else None
    if any(canonical.openai_calls(item.get("tool_calls")) for item in history):
        known = "none"
    return known or _guess([*(item for item in history if is_generated(item)), *_steps(run)])


def _guess(turns: Sequence[Item]) -> str:
    """The style whose calls hold the stored actions; else the one that finds most calls."""
    scores = {style: sum(_agrees(turn, style) for turn in turns) for style in dict.fromkeys(_STYLES.values())}
    best = max(scores, key=lambda style: scores[style])
    return best if scores[best] else text.guess_style(_response(turn) for turn in turns)


def _agrees(turn: Item, style: str) -> bool:
    action, response = string(turn, "action").strip(), _response(turn)
    if not action or action not in response:
        return False
    if style == "whole":
        return action == response.strip()
    return any(s.kind is Kind.ACTION and action in s.text for s in text.split(response, style))


def _response(turn: Item) -> str:
    return string(turn, "response") or string(turn, "content")


# --- messages ---------------------------------------------------------------------------------------------------------


def _message(item: Item, style: str, draft: Draft) -> bool:
    """Add one message; true when a part of it had to be rendered."""
    role, content = role_of(item), draft.text(item.get("content"))
    if role == "system" or item.get("is_demo") or item.get("message_type") == "demonstration":
        draft.context(role or "user", content)
    elif role == "assistant":
        return _turn(item, content, style, draft)
    elif role is None:
        draft.warn(f"a message of the unknown role {item.get('role')!r} is labelled observation")
        if not content:
            left_out(item, "a message of unknown shape")
        draft.observation("user", content)
    else:
        draft.given(role, content)
    return False


def _turn(item: Item, content: str, style: str, draft: Draft) -> bool:
    calls = canonical.openai_calls(item.get("tool_calls"))
    if not calls and EXIT.match(content) and string(item, "action") in ("", *_exits(item)):
        draft.not_generated(content)
        return False
    reasoning = "\n".join(string(block, "thinking") for block in items(item, "thinking_blocks"))
    if calls:
        draft.generated(canonical.generated(content, calls, reasoning))
    else:
        draft.generated(_split(canonical.with_reasoning(content, reasoning), string(item, "action"), style))
    return bool(calls or reasoning.strip())


def _exits(item: Item) -> tuple[str, ...]:
    action = string(item, "action")
    return (action,) if action.startswith("exit_") else ()


def _split(content: str, action: str, style: str) -> tuple[Segment, ...]:
    segments = text.split(content, style)
    command = action.strip()
    if command and command in content and not any(s.kind is Kind.ACTION for s in segments):
        start = content.rfind(command)
        return text.label(content, [(start, start + len(command))])
    return segments


def _outside_history(run: Item, history: Sequence[Item], draft: Draft) -> list[Item]:
    """The last steps that are not in the history; earlier ones are rejected outputs and only counted."""
    stored = [draft.text(item.get("content")) for item in history if is_generated(item) and not item.get("is_demo")]
    late: list[Item] = []
    at = rejected = 0
    for step in _steps(run):
        if at < len(stored) and stored[at] == string(step, "response"):
            at, rejected, late = at + 1, rejected + len(late), []
        else:
            late.append(step)
    if stored and at < len(stored):  # the two lists do not fit together: the history alone is safe
        return []
    executed = [step for step in late if string(step, "action").strip()]
    rejected += len(late) - len(executed)
    if rejected:
        draft.warn("an output that SWE-agent rejected or replaced is in no later prompt and is left out", rejected)
    return executed


def _late(step: Item, style: str, draft: Draft) -> bool:
    """Add a step that is not in the history; function calls are not stored there, only their shell form."""
    response, action = string(step, "response"), string(step, "action").strip()
    structured = style == "none" or (action not in response and style != "function")
    if not structured:
        draft.generated(_split(response, action, style))
    elif action.isidentifier():  # a call without arguments, such as submit
        draft.generated(canonical.generated(response, [canonical.Call(action, {})]))
    else:
        draft.warn("the call of a step outside the history is stored only as a shell line and is left out")
        draft.generated(canonical.generated(response, []))
    draft.observation("user", string(step, "observation"))
    return structured
