"""Right, wrong or unknown, as files say it. Strict: what is neither is an error, not a guess."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["MOST", "Neither", "verdict", "whole"]

MOST = 100_000  # answers to a problem: a count above it is a mistake in the file

_RIGHT = ("true", "pass", "passed", "resolved", "success", "correct", "yes", "ok", "1", "1.0")
_WRONG = ("false", "fail", "failed", "unresolved", "failure", "incorrect", "wrong", "no", "0", "0.0")
_UNKNOWN = ("", "unknown", "null", "none", "nan")


class Neither(ValueError):
    """A value is neither right nor wrong nor unknown."""


def verdict(value: Any) -> bool | None:
    """True, false, or None for unknown; `Neither` for anything else, such as a reward of 0.37."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        if math.isnan(value):
            return None
        if value in (0, 1):
            return bool(value)
        raise Neither(repr(value))
    word = value.strip().lower() if isinstance(value, str) else None
    if word in _RIGHT or word in _WRONG:
        return word in _RIGHT
    if word in _UNKNOWN:
        return None
    raise Neither(repr(value)[:80])


def whole(value: Any) -> int:
    """A count, from a number or its text; `Neither` for anything that is no whole number from 0 to `MOST`."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (0 <= number <= MOST and number == int(number)):
        raise Neither(repr(value)[:80])
    return int(number)
