"""What calls of models cost."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

KINDS = ("probe", "draw", "judge")  # before the gate decides; after it fired; who chooses


class Spent(NamedTuple):
    """Tokens and money of some calls; `cached` of the `prompt` tokens were read from a cache.

    `unstated`: calls whose reply states no usage: their tokens are unknown, and not zero.
    """

    calls: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    cost: float = 0.0
    unstated: int = 0

    @classmethod
    def sum(cls, several: Iterable[Spent]) -> Spent:
        """All of them together."""
        return cls(*map(sum, zip(*several, strict=True)))

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Spent:
        """From a trajectory. Raises `ValueError` for anything but counts and a sum of money."""
        values = cls(**{name: stored[name] for name in cls._fields if name in stored})
        if not all(type(value) is int and value >= 0 for value in (*values[:4], values.unstated)):
            raise ValueError(f"token counts that are none: {dict(stored)}")
        if not (isinstance(values.cost, (int, float)) and 0 <= values.cost < math.inf):
            raise ValueError(f"a cost that is none: {values.cost!r}")
        return values


def spent_of(usage: Any, cost: float = 0.0) -> Spent:
    """What one call used, by the `usage` of a chat completion (an object or a mapping; reasoning tokens are output).

    Without tokens, and counted as `unstated`, where the server stated no usable counts.
    """
    stated = usage if isinstance(usage, Mapping) else usage.model_dump() if hasattr(usage, "model_dump") else {}
    details = stated.get("prompt_tokens_details")
    cached = (details.get("cached_tokens") if isinstance(details, Mapping) else 0) or 0
    prompt, output = stated.get("prompt_tokens"), stated.get("completion_tokens")
    if not all(type(count) is int and count >= 0 for count in (prompt, cached, output)) or not prompt:
        return Spent(calls=1, cost=cost, unstated=1)
    return Spent(1, prompt, int(cached), int(output or 0), cost)


class Ledger:
    """What one step, or one run, spent by kind of call, and counted notes on what happened."""

    def __init__(self) -> None:
        self.spent: dict[str, Spent] = {}
        self.notes: Counter[str] = Counter()

    def add(self, kind: str, spent: Spent) -> None:
        """Count calls."""
        self.spent[kind] = Spent.sum((self.spent.get(kind, Spent()), spent))

    def extend(self, other: Ledger) -> None:
        """Count all that another ledger has."""
        for kind, spent in other.spent.items():
            self.add(kind, spent)
        self.notes.update(other.notes)

    @property
    def cost(self) -> float:
        """Money, all kinds."""
        return math.fsum(spent.cost for spent in self.spent.values())

    def as_dict(self) -> dict[str, Any]:
        """For a trajectory."""
        usage = {kind: self.spent[kind]._asdict() for kind in KINDS if kind in self.spent}
        return {"usage": usage, "notes": dict(sorted(self.notes.items()))}


def fingerprint(*parts: Any) -> str:
    """A hash of JSON values: the key of a result that depends on them."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
