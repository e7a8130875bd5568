"""Chat rows: messages with tool calls, with calls as text, completion logs, and corpora of documents or pairs.

A row is an object with a list of messages under `messages`, `trajectory` or `conversations` (also as JSON text), or
that list itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hesnr_tasks.actions import ToolCall
from hesnr_tasks.actions.grammar import guess_form
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.base import (
    Format,
    TrajectoryBuilder,
    Turn,
    as_list,
    decoded,
    deep,
    left_out,
    mapping,
    messages_of,
    openai_calls,
    role_of,
    scalar_text,
    split_calls,
    string,
    turn_segments,
    unwrapped,
    with_reasoning,
)
from hesnr_tasks.formats.outcomes import row_outcome
from hesnr_tasks.trajectory import Fidelity, Kind, Segment, Trajectory

JsonObject = Mapping[str, Any]
_KEYS = ("messages", "trajectory", "conversations", "messages_json")
_FIRST = 64  # messages looked at to recognise a row


# --- what chat formats share ------------------------------------------------------------------------------------------


def row_of(record: Any) -> JsonObject:
    """The row as an object; a bare list of messages becomes `{"messages": list}`."""
    return record if isinstance(record, Mapping) else {"messages": as_list(record) or []}


def _messages_key(row: JsonObject) -> str | None:
    for key in _KEYS:
        listed = as_list(decoded(row.get(key)))
        first = unwrapped(listed[0]) if listed else None
        if isinstance(first, Mapping) and ("role" in first or "from" in first):
            return key
    return None


def first_messages(record: Any) -> list[JsonObject]:
    """The first messages of what may be a row, or nothing; never raises."""
    row = row_of(record)
    key = _messages_key(row)
    listed = (as_list(decoded(row.get(key))) or []) if key else []
    return [item for item in map(unwrapped, listed[:_FIRST]) if isinstance(item, Mapping)]


def _messages(record: Any) -> list[JsonObject]:
    row = row_of(record)
    return messages_of(row, _messages_key(row) or "messages")


def _content_text(message: JsonObject) -> str:
    """The text of a message, for detection only."""
    content = message.get("content", message.get("value"))
    if isinstance(content, str):
        return content
    parts = as_list(content) or []
    return "\n".join(p["text"] for p in parts if isinstance(p, Mapping) and isinstance(p.get("text"), str))


def assistant_texts(messages: Sequence[JsonObject]) -> Iterator[str]:
    """The texts of the messages the model wrote, for detection only."""
    return (_content_text(message) for message in messages if role_of(message) == "assistant")


def message_text(message: JsonObject, builder: TrajectoryBuilder) -> str:
    """The text of a message, its content of any shape."""
    return builder.text(message.get("content", message.get("value")))


def label_messages(
    messages: Sequence[JsonObject], builder: TrajectoryBuilder, turn: Callable[[JsonObject], Sequence[Segment] | None]
) -> None:
    """Add the messages of a chat, each by its role.

    Args:
        messages: in order.
        builder: they are added to it.
        turn: the segments of an assistant message; None: the model did not write it.
    """
    for message in messages:
        role = role_of(message)
        if role == "assistant":
            segments = turn(message)
            if segments is None:
                builder.not_generated(message_text(message, builder))
            else:
                builder.generated(segments)
        elif role == "system":
            builder.context(role, message_text(message, builder))
        elif role is None:
            what = f"message of the unknown role {message.get('role')!r}"
            builder.unknown(message, what, message.get("content", message.get("value")))
        else:
            builder.given(role, message_text(message, builder))


def calls_or_text(message: JsonObject, form: str, builder: TrajectoryBuilder) -> tuple[Sequence[Segment], bool]:
    """The segments of an assistant message: its tool calls, or else the calls in its text.

    Args:
        message: with `content`, and perhaps `tool_calls` and `reasoning_content`.
        form: a key of `CALL_FORMS`, for the text.
        builder: takes in warnings.

    Returns:
        The segments, and whether they are rendered rather than the model's own text.
    """
    content = message_text(message, builder)
    calls, reasoning = openai_calls(message.get("tool_calls")), string(message, "reasoning_content")
    if calls:
        return turn_segments(content, calls, reasoning), True
    return split_calls(with_reasoning(content, reasoning), form), bool(reasoning.strip())


def _build(record: Any, builder: TrajectoryBuilder, fidelity: Fidelity) -> Trajectory:
    """Finish a row: its id, instance and outcome as the public data sets name them."""
    row = row_of(record)
    metadata = mapping(row, "metadata")
    instance = scalar_text(row.get("instance_id")) or scalar_text(metadata.get("instance_id"))
    identity = scalar_text(row.get("trajectory_id")) or scalar_text(row.get("traj_id"))
    if not identity:
        run = scalar_text(row.get("run_id"))
        identity = f"{instance}/{run}" if instance and run else instance or run or scalar_text(row.get("id"))
    return builder.build(id=identity, instance_id=instance, resolved=row_outcome(row), fidelity=fidelity)


# --- rows with tool calls ---------------------------------------------------------------------------------------------
# SWE-Gym, nebius OpenHands, Open-SWE-Traces, CoderForge, SWE-smith `tool`, …. Arguments may be JSON text, objects or
# Python text; lists may be JSON text or arrays from Parquet; keys may be null.

_ANTHROPIC_PARTS = ("tool_use", "tool_result", "thinking", "redacted_thinking")


def _detect_tools(record: Any) -> bool:
    """Tool calls, or the role tool where no text holds a call."""
    messages = first_messages(record)
    if any(_calls(message) or _has_parts(message, _ANTHROPIC_PARTS) for message in messages):
        return True
    answered = any(role_of(message) == "tool" for message in messages)
    return answered and guess_form(assistant_texts(messages)) == "none"


def _read_tools(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    def turn(message: JsonObject) -> Sequence[Segment]:
        reasoning = string(message, "reasoning_content") or string(message, "reasoning")
        if not _has_parts(message, _ANTHROPIC_PARTS):
            return turn_segments(message_text(message, builder), _calls(message), reasoning)
        blocks = Turn(reasoning=[reasoning] if reasoning else [])
        blocks.add_all(message.get("content"), builder)
        blocks.calls.extend(_calls(message))
        return blocks.segments()

    given = []
    for message in _messages(record):
        if role_of(message) == "user" and _has_parts(message, ("tool_result",)):  # Anthropic's: of the role tool
            flat: list[Any] = []
            for part in as_list(message.get("content")) or []:
                content = part.get("content") if string(part, "type") == "tool_result" else [part]
                listed = as_list(content)
                flat.extend(listed if listed is not None else [] if content is None else [content])
            message = {"role": "tool", "content": flat}
        given.append(message)
    label_messages(given, builder, turn)
    return _build(record, builder, Fidelity.RENDERED)


def _calls(message: JsonObject) -> list[ToolCall]:
    calls = openai_calls(decoded(message.get("tool_calls")))
    single = message.get("function_call")
    return calls or openai_calls([single] if single else [])


def _has_parts(message: JsonObject, types: Sequence[str]) -> bool:
    """Whether the content has parts of one of `types` (Anthropic's rather than text)."""
    return any(string(part, "type") in types for part in as_list(message.get("content")) or [])


# --- rows with `<function=…><parameter=…>` in the text ----------------------------------------------------------------
# SWE-smith, SWE-Gym SFT, R2E-Gym SFT, Scale-SWE. The text was written again by whoever made the rows (from tool calls
# or from parsed calls), so fidelity is synthetic.

# SWE-smith writes this in the place of SWE-agent's "Exit due to cost limit" (swesmith/train/traj_mgr/utils.py).
_REWRITTEN = (
    "Since we have successfully fixed the issue and verified it works, let's submit the changes:\n\n"
    "<function=submit>\n</function>"
)


def _detect_xml(record: Any) -> bool:
    """Most assistant texts with a call have it in XML: one that only speaks of the tag says nothing."""
    texts = list(assistant_texts(first_messages(record)))
    return any("<function=" in text for text in texts) and guess_form(texts) == "function"


def _read_xml(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    def turn(message: JsonObject) -> Sequence[Segment] | None:
        content = message_text(message, builder)
        return None if content == _REWRITTEN else split_calls(content, "function")

    label_messages(_messages(record), builder, turn)
    return _build(record, builder, Fidelity.SYNTHETIC)


# --- rows with fenced or tagged calls, or without any -----------------------------------------------------------------
# mini-swe-agent v1 rows, SWE-smith `ticks`, Harbor trace export and ShareGPT (`conversations`), plain dialogues.

_TEXT_FORMS = ("tool_call", "mswea", "bash", "json", "keystrokes", "execute", "command", "fence")
_SMITH_ID = re.compile(r".+__.+\.[0-9a-f]{8}\.")


def _read_text(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    messages, row = _messages(record), row_of(record)
    texts = list(assistant_texts(messages))
    style = guess_form(texts, _TEXT_FORMS)
    if style == "bash" and not any(text.lstrip().startswith("THOUGHT:") for text in texts):
        style = "fence"  # `bash` only for mini-swe-agent: SWE-agent's last-block rule is the safe one for other fences
    reasoned = any(string(message, "reasoning_content").strip() for message in messages)
    if style == "none":
        builder.warn("no call was found in any assistant text: all of it is thought")

    def turn(message: JsonObject) -> Sequence[Segment]:
        content = message_text(message, builder)
        return split_calls(with_reasoning(content, string(message, "reasoning_content")), style)

    label_messages(messages, builder, turn)
    if _messages_key(row) == "conversations" or _SMITH_ID.match(string(row, "instance_id")):
        fidelity = Fidelity.SYNTHETIC
    else:
        fidelity = Fidelity.RENDERED if reasoned else Fidelity.EXACT
    trial = scalar_text(row.get("trial_name"))
    if trial is None:
        return _build(record, builder, fidelity)
    return builder.build(id=trial, instance_id=row.get("task"), resolved=row_outcome(row, "result"), fidelity=fidelity)


def episode_rank(value: Any) -> tuple[str, tuple[int, str]] | None:
    """The trial of a trace-export row and the rank of its episode, which repeats all before it; None for other rows.

    Episodes are numbers or end in one (`episode-12`).
    """
    if not isinstance(value, Mapping) or "conversations" not in value or "episode" not in value:
        return None
    if not value.get("trial_name"):
        return None
    text = scalar_text(value.get("episode")) or ""
    digits = "".join(c for c in text.rsplit("-", 1)[-1] if c.isdecimal())[:9]
    return str(value["trial_name"]), (int(digits or "0"), text)


# --- OpenHands completion logs ----------------------------------------------------------------------------------------
# `llm_completions/<id>/*.json`: the last file's messages and response are the whole run. With native calling the calls
# are structures (rendered); without, the text of earlier turns was written again by OpenHands from parsed calls
# (synthetic). Sources: OpenHands 0.x `llm/llm.py`, `llm/fn_call_converter.py`; SDK logs.


def _detect_completions(record: Any) -> bool:
    """Messages beside a response, which may be broken."""
    if not isinstance(record, Mapping) or not isinstance(record.get("messages"), list):
        return False
    whole = isinstance(deep(record, "response", "choices", 0, "message"), Mapping)
    return whole or "raw_response" in record or isinstance(record.get("response"), (Mapping, list))


def _read_completions(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    messages = messages_of(record, "messages")
    last = deep(record, "response", "choices", 0, "message")
    if not isinstance(last, Mapping):
        raise DataError("'response' holds no message (choices[0].message): the last turn cannot be read")
    raw = deep(record, "raw_response", "choices", 0, "message")
    if not isinstance(raw, Mapping) or "content" not in raw or (raw["content"] and not _content_text(raw)):
        left_out(record.get("raw_response"), "'raw_response' holds no message with text")
    if isinstance(raw, Mapping) and "<function=" in _content_text(raw):  # the model's own text, with the call
        last = {"content": raw.get("content")}
    elif not last.keys() & {"content", "tool_calls", "reasoning_content"}:
        left_out(last, "the response's message is empty")
    messages.append({**last, "role": "assistant"})
    label_messages(messages, builder, lambda message: calls_or_text(message, "function", builder)[0])
    if not any(role_of(message) == "assistant" for message in messages[:-1]):
        builder.warn("the log holds one turn only; the last log of a run holds all of them")
    written = any("<function=" in content for content in assistant_texts(messages))
    folder = PurePath(builder.where.path).parent
    return builder.build(
        id=folder.name if folder.parent.name == "llm_completions" else None,
        fidelity=Fidelity.SYNTHETIC if written else Fidelity.RENDERED,
    )


# --- documents and pairs ----------------------------------------------------------------------------------------------
# Any corpus: documents (`text`) and prompt–answer pairs (`prompt`, `completion`). What is to be scored is labelled
# action, so that the default metric works; filters for calls drop nothing.


def _detect_plain(record: Any) -> bool:
    """The keys are common words, so this comes last."""
    is_row = isinstance(record, Mapping)
    return is_row and (("prompt" in record and "completion" in record) or isinstance(record.get("text"), str))


def _read_plain(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    """One document (all of it action) or one pair (prompt context, completion action)."""
    is_pair = "prompt" in record and "completion" in record
    prompt = record["prompt"] if is_pair else []
    for message in as_list(prompt) or ([prompt] if is_pair else []):  # a string, or chat messages, all of them given
        if isinstance(message, Mapping):
            if "content" not in message:
                left_out(message, "a message of the prompt has no content")
            builder.context(role_of(message) or "user", builder.text(message.get("content")))
        elif isinstance(message, str):
            builder.context("user", message)
        else:
            raise DataError(f"'prompt' must be text or a list of messages, not {type(message).__name__}")
    key = "completion" if is_pair else "text"
    value = record.get(key)
    if not isinstance(value, str):
        messages = as_list(value) or []
        if not messages or not all(isinstance(message, Mapping) for message in messages):
            raise DataError(f"{key!r} must be text or a list of messages, not {type(value).__name__}")
        if len(messages) > 1:
            raise DataError(f"{key!r} has {len(messages)} messages; convert dialogues with the key 'messages'")
        value = builder.text(_content_text(messages[0]))
    builder.generated([Segment(Kind.ACTION, value)])
    return builder.build(
        id=record.get("id"),
        instance_id=record.get("instance_id"),
        resolved=row_outcome(record),
        document_source=scalar_text(record.get("source")),
    )


CHAT_TOOLS = Format("chat-tools", "messages of which some have tool calls or the role tool", _detect_tools, _read_tools)
CHAT_XML = Format(
    "chat-xml", "messages whose assistant text has <function=…> and no tool calls", _detect_xml, _read_xml
)
CHAT_TEXT = Format(
    "chat-text",
    "messages with calls as fenced blocks or tags in the assistant text, or with no calls",
    lambda record: any(role_of(message) == "assistant" for message in first_messages(record)),
    _read_text,
    prefix_rank=episode_rank,
)
COMPLETIONS = Format(
    "openhands-completions", "'messages' with the 'response' of one model call", _detect_completions, _read_completions
)
PLAIN = Format("text", "'text', or 'prompt' and 'completion'", _detect_plain, _read_plain)
