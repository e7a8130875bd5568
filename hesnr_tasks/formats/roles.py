"""The roles people give messages, as the four a `Message` can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["is_generated", "role_of"]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "environment": "tool",
    "observation": "tool",
    "exit": "tool",
}


def role_of(message: Mapping[str, Any]) -> str | None:
    """`system`, `user`, `assistant` or `tool`; None for a role nobody is known to use."""
    name = message.get("role", message.get("from"))
    return _ROLES.get(name.lower()) if isinstance(name, str) else None


def is_generated(message: Any) -> bool:
    """Whether the model wrote the message, by its role."""
    return isinstance(message, Mapping) and role_of(message) == "assistant"
