"""Reading a rubric reply: every number asked for, or a reason that can be told to the model. Nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hesnr_tasks.search.prompts import Dimension

__all__ = ["BadReply", "read_scores"]

Scores = list[dict[str, int]]


class BadReply(ValueError):
    """Why a reply cannot be used, in words that the model can act on."""


def read_scores(text: str, names: Sequence[str], rubric: Sequence[Dimension]) -> Scores:
    """The points of each of `names`, in that order, by dimension key. Raises `BadReply`.

    Around the object only white space and one code fence may stand; after a reasoning block, the rest counts.
    """
    found = _object(text)
    if set(found) != set(names):
        raise BadReply(f"the keys must be exactly {', '.join(names)}; yours are {_listed(found)}")
    return [_points(name, found[name], rubric) for name in names]


def _object(text: str) -> dict[str, Any]:
    body = text.rpartition("</think>")[2].strip()
    if body.startswith("```") and body.endswith("```") and "\n" in body:
        body = body.partition("\n")[2].removesuffix("```").strip()
    try:
        found = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"the reply is not one JSON object: {error}") from None
    if not isinstance(found, dict):
        raise BadReply("the reply is JSON, but no object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadReply("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise BadReply(f"{name} is no number that can be used")


def _points(name: str, given: Any, rubric: Sequence[Dimension]) -> dict[str, int]:
    if not isinstance(given, dict):
        raise BadReply(f'"{name}" must be an object of points')
    if set(given) != {one.key for one in rubric}:
        raise BadReply(f'"{name}" must have exactly the keys {_listed([d.key for d in rubric])}; has {_listed(given)}')
    for one in rubric:
        points = given[one.key]
        if isinstance(points, bool) or not isinstance(points, int) or points not in one.points:
            allowed = ", ".join(str(p) for p in one.points)
            raise BadReply(f'"{name}": "{one.key}" must be one of {allowed}, not {json.dumps(points)[:40]}')
    return {one.key: given[one.key] for one in rubric}


def _listed(names: Any) -> str:
    return ", ".join(str(name)[:40] for name in list(names)[:12]) or "none"
