"""A trajectory in the making: messages are added in order, what is odd is counted, the normal form comes out.

Normal form: no empty segments, neighbours of one kind joined, no lone surrogates, an id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hesnr_tasks.formats import canonical
from hesnr_tasks.formats.fields import Where, as_list, left_out, scalar_text
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory, clean

__all__ = ["IMAGE", "Draft"]

IMAGE = "[image]"  # stands for a picture; never counted as the model's text
_IMAGES = ("image_url", "image", "input_image")
_TEXTS = ("text", "input_text", "output_text", "summary_text", "refusal")


class Draft:
    """Collects the messages of one trajectory read from a file of format `name`."""

    def __init__(self, name: str, where: Where) -> None:
        self.name = name
        self.where = where
        self.messages: list[Message] = []
        self.started = False  # whether the agent has written anything
        self._warnings: Counter[str] = Counter()

    def warn(self, text: str, count: int = 1) -> None:
        """Note something odd; the same text is counted, not repeated."""
        self._warnings[text] += count

    def context(self, role: str, text: str) -> None:
        """Add a prompt or demonstration."""
        self._add(role, (Segment(Kind.CONTEXT, text),))

    def observation(self, role: str, text: str) -> None:
        """Add what the environment answered."""
        self._add(role, (Segment(Kind.OBSERVATION, text),))

    def given(self, role: str, text: str) -> None:
        """Add a message that the model did not write: context before its first turn, observation after it."""
        self._add(role, (Segment(Kind.OBSERVATION if self.started else Kind.CONTEXT, text),))

    def generated(self, segments: Iterable[Segment]) -> None:
        """Add a turn of the agent."""
        kept = tuple(segments)
        self.started = self.started or any(segment.text for segment in kept)
        self._add("assistant", kept)

    def not_generated(self, text: str) -> None:
        """Add what the scaffold wrote in the agent's place."""
        self.warn("a message the scaffold wrote in the agent's place is labelled context")
        self._add("assistant", (Segment(Kind.CONTEXT, text),))

    def _add(self, role: str, segments: tuple[Segment, ...]) -> None:
        self.messages.append(Message(role, self._normal(segments)))

    def _normal(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        joined: list[Segment] = []
        for segment in segments:
            text = clean(segment.text)
            if text != segment.text:
                lost = sum(a != b for a, b in zip(text, segment.text, strict=True))
                self.warn("a lone surrogate (half a character) is replaced by U+FFFD", lost)
            if joined and joined[-1].kind is segment.kind:
                text = joined.pop().text + text
            if text:
                joined.append(Segment(segment.kind, text))
        return tuple(joined)

    def leave_out(self, value: Any, text: str) -> None:
        """Note that `value` is not read; the text inside is counted."""
        self.warn(text)
        left_out(value, "", remark=False)

    def text(self, content: Any) -> str:
        """Message content of any shape as text: null, string, parts; pictures become a place-holder."""
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        parts = as_list(content)
        if parts is None:
            parts = [content]
        return "\n".join(text for part in parts if (text := self._part(part)) is not None)

    def _part(self, part: Any) -> str | None:
        if isinstance(part, str):
            return part
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in _IMAGES:
            self.warn("a picture is replaced by a place-holder")
            return IMAGE
        if isinstance(part, Mapping) and (kind in _TEXTS or kind is None):
            text = part.get("text", part.get("refusal"))
            if isinstance(text, str):
                return text
        name = f"of type {kind!r}" if kind else "without a type"
        self.leave_out(part, f"a content part {name} is left out")
        return None

    def build(
        self,
        *,
        id: Any = None,
        instance_id: Any = None,
        resolved: bool | None = None,
        fidelity: Fidelity = Fidelity.EXACT,
        **meta: Any,
    ) -> Trajectory:
        """The finished trajectory. `meta` entries that are None are left out."""
        instance = scalar_text(instance_id)
        known = {key: clean(v) if isinstance(v, str) else v for key, v in meta.items() if v is not None}
        if fidelity is Fidelity.RENDERED:
            known["rendering"] = canonical.VERSION
        known["warnings"] = [text if n == 1 else f"{text} ({n} times)" for text, n in self._warnings.items()]
        return Trajectory(
            id=clean(scalar_text(id) or instance or self.where.identity),
            messages=tuple(self.messages),
            instance_id=instance and clean(instance),
            resolved=resolved,
            source=self.name,
            fidelity=fidelity,
            meta={"format": self.name, **known},
        )
