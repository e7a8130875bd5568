"""The filter `xml`: the tags of the call and their attributes, and the JSON around the values of a JSON call.

Only the call's own syntax, found by parsing the call: markup inside values (`<div>`, `List<int>`) stays.
"""

from __future__ import annotations

from hesnr_tasks.actions import parse_action
from hesnr_tasks.actions.views import CharSpan

__all__ = ["xml"]


def xml(text: str) -> list[CharSpan]:
    """Spans of the call syntax in one action's text. Never raises."""
    return [span for call in parse_action(text) for span in call.tags]
