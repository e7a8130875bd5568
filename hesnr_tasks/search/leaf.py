"""The ends of branches as files and records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.tree import Node, Tree
from hesnr_tasks.search.types import Leaf, Message

__all__ = ["exit_message", "leaf_of", "leaf_record", "write_whole"]


def exit_message(status: str, content: str = "") -> Message:
    """What ends a conversation, in mini-swe-agent's form."""
    return {"role": "exit", "content": content or status, "extra": {"exit_status": status, "submission": ""}}


def leaf_record(tree: Tree, node: Node) -> dict[str, Any]:
    """The record of the branch that ends at `node`: its mean judge score and the commands executed on its way."""
    steps = [(tree.draws[str(step.parent)], step.draw) for step in tree.path(node) if step.draw >= 0]
    scores = [score for record, draw in steps if (score := _score(record, draw)) is not None]
    drawn = [record["draws"][draw] for record, draw in steps]
    return {
        "type": "leaf",
        "id": node.branch,
        "node": node.id,
        "status": node.status,
        "patch": f"{node.branch}.patch",
        "score": sum(scores) / len(scores) if scores else None,
        "commands": [draw["command"] for draw in drawn if not draw["error"]],
    }


def _score(record: dict[str, Any], draw: int) -> float | None:
    """The judge's score of the candidate that was drawn as `draw`, if it was asked."""
    if record["scores"] is None:
        return None
    places = [place for place, candidate in enumerate(record["candidates"]) if candidate["draw"] == draw]
    return float(record["scores"][places[0]]) if places else None


def leaf_of(folder: Path, record: dict[str, Any]) -> Leaf:
    """A leaf from its record and its files in `folder`."""
    patch = (folder / record["patch"]).read_bytes().decode("utf-8", errors="surrogateescape")
    path = folder / f"{record['id']}.traj.json"
    score = math.nan if record["score"] is None else record["score"]
    return Leaf(record["id"], patch, record["status"], path, tuple(record["commands"]), score)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SearchError(
            f"cannot write {path}: {error.strerror}. Free some space, then run it again: it goes on."
        ) from None
