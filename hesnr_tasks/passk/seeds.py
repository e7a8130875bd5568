"""A seed for every answer: distinct within a problem by construction, and the same whenever the run is made again."""

from __future__ import annotations

import hashlib

__all__ = ["LIMIT", "identity", "seed_of"]

LIMIT = 1 << 31  # seeds are below this: servers take signed 32-bit numbers


def identity(prompt: str, occurrence: int) -> str:
    """What makes a problem this one: its prompt, and which of several with the same prompt it is."""
    return hashlib.sha256(f"{occurrence}\n{prompt}".encode(errors="surrogatepass")).hexdigest()[:24]


def seed_of(base: int, problem: str, repeat: int) -> int:
    """The seed of a problem's answer number `repeat` (from 0): consecutive from a hash of base seed and problem.

    It depends on neither the number of answers nor the other problems, so a run with more of either has the same ones.
    """
    start = int.from_bytes(hashlib.sha256(f"{base}\n{problem}".encode()).digest()[:4], "big")
    return (start + repeat) % LIMIT
