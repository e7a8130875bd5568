"""Claude Code session files (JSON Lines): lines of one response are merged, subagents and rewound turns left out.

Sources: published session lines of versions 1.0 to 2.1, issue threads. The system prompt is not stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, as_list, deep, left_out, mapping, mappings, parts_of, scalar_text, string
from hesnr_tasks.formats.parts import Turn
from hesnr_tasks.trajectory import Fidelity, Trajectory

__all__ = ["NAME", "RULE", "SESSION", "detect", "read"]

NAME = "claude-code"
RULE = "lines with 'sessionId' or 'session_id' and a 'message'"
SESSION = True

Line = Mapping[str, Any]


def detect(record: Any) -> float:
    """1 when an early line is a message of a session."""
    return float(any(_is_line(line) for line in (as_list(record) or [])[:20]))


def _is_line(line: Any) -> bool:
    if not isinstance(line, Mapping) or not isinstance(line.get("message"), Mapping):
        return False
    return ("sessionId" in line and "parentUuid" in line) or ("session_id" in line and "type" in line)


def read(record: Any, where: Where) -> Trajectory:
    """Read one session."""
    draft = Draft(NAME, where)
    lines = mappings(record, "a line")
    kept = list(_kept(lines, draft))
    for response in _responses(kept):
        if string(response[0], "type") == "assistant":
            _turn(response, draft)
        else:
            _user(response[0], draft)
    draft.warn("the system prompt is not stored in this format")
    first = next((line for line in lines if _is_line(line)), {})
    return draft.build(
        id=where.stem if any(line.get("agentId") for line in kept) else _session(first),
        fidelity=Fidelity.RENDERED,
        format_version=scalar_text(first.get("version")),
        model=next((m for line in kept if (m := scalar_text(deep(line, "message", "model")))), None),
    )


def _session(line: Line) -> str | None:
    return scalar_text(line.get("sessionId")) or scalar_text(line.get("session_id"))


def _kept(lines: Sequence[Line], draft: Draft) -> Iterator[Line]:
    """The user and assistant lines of the main chain, in file order."""
    spoken = [line for line in lines if string(line, "type") in ("user", "assistant") and mapping(line, "message")]
    for line in lines:
        if string(line, "type") in ("user", "assistant") and not isinstance(line.get("message"), Mapping):
            left_out(line.get("message"), "a message is no object")
        elif "message" in line and string(line, "type") not in ("user", "assistant"):
            left_out(line["message"], "a message of an unknown type of line")
    main = [line for line in spoken if not line.get("isSidechain")]
    if main and len(main) < len(spoken):
        draft.warn("a line of a subagent is left out", len(spoken) - len(main))
    chain = main or spoken
    rewound = _rewound(chain)
    for line in chain:
        if string(line, "uuid") in rewound:
            draft.warn("a line of a turn that was taken back is left out")
        elif not line.get("isMeta"):
            yield line


def _rewound(lines: Sequence[Line]) -> set[str]:
    """Lines that follow a prompt which was later given again from the same place."""
    last: dict[str, str] = {}
    for line in lines:
        if _is_prompt(line):
            last[string(line, "parentUuid")] = string(line, "uuid")
    dropped: set[str] = set()
    for line in lines:
        parent = string(line, "parentUuid")
        if parent in dropped or (parent and _is_prompt(line) and last[parent] != string(line, "uuid")):
            dropped.add(string(line, "uuid"))
    return dropped


def _is_prompt(line: Line) -> bool:
    parts = as_list(mapping(line, "message").get("content")) or []
    results = any(string(part, "type") == "tool_result" for part in parts)
    return string(line, "type") == "user" and not results and not line.get("isMeta")


def _responses(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Neighbouring assistant lines of one response together, other lines alone."""
    group: list[Line] = []
    for line in lines:
        same = bool(group) and string(line, "type") == "assistant" and _message_id(line) == _message_id(group[0])
        if group and not (same and _message_id(line)):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _message_id(line: Line) -> str:
    return string(mapping(line, "message"), "id") if string(line, "type") == "assistant" else ""


def _turn(response: Sequence[Line], draft: Draft) -> None:
    if all(string(mapping(line, "message"), "model") == "<synthetic>" for line in response):
        draft.not_generated("\n".join(draft.text(mapping(line, "message").get("content")) for line in response))
        return
    turn = Turn()
    seen: list[Any] = []  # streaming repeats blocks
    for line in response:
        for part in parts_of(_content(line), "the content of a message"):
            if part not in seen:
                seen.append(part)
                turn.add({"type": "text", "text": part} if isinstance(part, str) else part, draft)
    draft.generated(turn.segments())


def _content(line: Line) -> Any:
    message = mapping(line, "message")
    if "content" not in message:
        left_out(message, "a message has no content")
    return message.get("content")


def _user(line: Line, draft: Draft) -> None:
    content = _content(line)
    if line.get("isCompactSummary"):
        draft.warn("a summary of the session so far was put in: the model no longer saw all earlier turns")
    for part in parts_of(content, "the content of a message"):
        if isinstance(part, Mapping) and string(part, "type") == "tool_result":
            draft.observation("tool", draft.text(part.get("content")))
        else:
            draft.given("user", draft.text([part]))
