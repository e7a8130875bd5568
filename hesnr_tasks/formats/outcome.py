"""Whether a run solved its task, from the many ways that is stored; what was stored stays in `meta`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["outcome", "outcome_meta", "resolved_of"]

_TRUE = ("true", "resolved", "success", "c", "pass", "passed", "yes")
_FALSE = ("false", "unresolved", "fail", "failed", "i", "no")
_KEYS = ("resolved", "reward")


def resolved_of(value: Any) -> bool | None:
    """True, false or unknown: bool; 1 / 0 / -1; a reward from 0 to 1 (1 solves); their text; "C"/"I" and the like."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _from_text(value.strip().lower())
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if math.isnan(number) or number < 0:
        return None
    return number >= 1


def _from_text(text: str) -> bool | None:
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    try:
        return resolved_of(float(text))
    except ValueError:
        return None  # the name of an exception, for instance


def outcome(record: Mapping[str, Any], *keys: str) -> tuple[bool | None, Any]:
    """The outcome of a row and what was stored, from the first of `keys` that is there (default: the usual ones)."""
    for key in keys or _KEYS:
        if record.get(key) is not None:
            return resolved_of(record[key]), outcome_meta(record[key])
    return None, None


def outcome_meta(value: Any) -> Any:
    """`value` as something JSON can hold: NaN becomes text, long values are cut."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)
    return text[:200]
