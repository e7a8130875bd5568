"""Assistant turns stored as typed parts: Anthropic content blocks, OpenAI Responses items, inspect_ai content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hesnr_tasks.formats import canonical
from hesnr_tasks.formats.canonical import Call
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import as_list, left_out, mapping, string
from hesnr_tasks.trajectory import Segment

__all__ = ["Turn", "reasoning_of"]

_REASONING = ("thinking", "reasoning")
_HIDDEN = ("redacted_thinking", "reasoning_opaque")


@dataclass
class Turn:
    """What the model wrote in one turn, gathered part by part."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def add(self, part: Any, draft: Draft) -> None:
        """Take one part in; kinds that hold no text of the model are warned about."""
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _HIDDEN:
            draft.warn("reasoning is stored only encrypted and is left out")
        elif kind in _REASONING:
            self._add_reasoning(part, draft)
        elif kind in ("tool_use", "server_tool_use"):
            self.calls.append(Call(string(part, "name"), canonical.arguments_of(part.get("input"))))
        elif kind in ("function_call", "custom_tool_call", "local_shell_call", "web_search_call"):
            self.calls.append(_responses_call(part))
        elif kind == "message":
            self.add_all(part.get("content"), draft)
        elif text := draft.text([part]):
            self.text.append(text)

    def add_all(self, content: Any, draft: Draft) -> None:
        """Take a whole content in: a string or a list of parts."""
        if isinstance(content, str):
            self.text.extend([content] if content else [])
            return
        parts = as_list(content)
        for part in parts if parts is not None else ([] if content is None else [content]):
            self.add(part, draft)

    def _add_reasoning(self, part: Mapping[str, Any], draft: Draft) -> None:
        text = reasoning_of(part)
        if text and text not in self.reasoning:
            self.reasoning.append(text)
        elif not text and any(part.get(key) for key in ("encrypted_content", "signature", "redacted")):
            draft.warn("reasoning is stored only encrypted and is left out")
        elif not text:
            left_out(part, "a part with reasoning has no readable text")

    def segments(self) -> tuple[Segment, ...]:
        """The turn as labelled text, in the canonical form."""
        return canonical.generated("\n".join(self.text), self.calls, "\n".join(self.reasoning))


def reasoning_of(part: Mapping[str, Any]) -> str:
    """The readable text of a reasoning part: `thinking`, `reasoning`, `text`, or the parts of `content`, `summary`."""
    for key in ("thinking", "reasoning", "text"):
        if string(part, key):
            return string(part, key)
    for key in ("content", "summary"):
        if text := _joined(as_list(part.get(key)) or [part.get(key)]):
            return text
    return ""


def _joined(parts: Iterable[Any]) -> str:
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else string(part, "text")
        if not text:
            left_out(part, "a part of reasoning has no readable text")
        texts.append(text)
    return "\n".join(text for text in texts if text)


def _responses_call(part: Mapping[str, Any]) -> Call:
    built_in = {"local_shell_call": "local_shell", "web_search_call": "web_search"}.get(string(part, "type"))
    if built_in:
        return Call(built_in, {k: v for k, v in mapping(part, "action").items() if k != "type" and v is not None})
    if part.get("type") == "custom_tool_call":
        return Call(string(part, "name"), {"input": string(part, "input")})
    return Call(string(part, "name"), canonical.arguments_of(part.get("arguments")))
