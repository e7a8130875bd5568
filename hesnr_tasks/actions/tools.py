"""The tools of agents: what each runs, and which of its parameters holds what."""

from __future__ import annotations

__all__ = ["names"]


def names(text: str) -> frozenset[str]:
    """The words of `text`, as a set."""
    return frozenset(text.split())
