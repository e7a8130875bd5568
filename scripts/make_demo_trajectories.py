"""Make the shipped demo trajectories, hesnr_tasks/demo/trajectories.jsonl: `python scripts/make_demo_trajectories.py`.

Needs bash, git and GNU coreutils. Runs are reproducible to the byte.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from demo_agent import play  # noqa: E402
from demo_programs import load  # noqa: E402

from hesnr_tasks.trajectory import Trajectory  # noqa: E402

SHIPPED = HERE.parent / "hesnr_tasks" / "demo" / "trajectories.jsonl"

# Chosen so that no run takes more than 12 turns, and that all habits occur: wrong first repairs, scripts, change notes.
SEEDS = {
    "exchange": 6,
    "folders": 6,
    "invoice": 3,
    "labels": 3,
    "meetings": 6,
    "pager": 5,
    "prices": 7,
    "ranking": 7,
    "settings": 0,
    "shifts": 1,
    "slugs": 1,
    "tagging": 1,
}


def lines(trajectories: Iterable[Trajectory]) -> str:
    """JSON Lines; the same trajectories always give the same bytes."""
    return "".join(json.dumps(t.to_json(), ensure_ascii=False) + "\n" for t in trajectories)


def main() -> None:
    trajectories = [play(program, SEEDS[program.name]) for program in load()]
    SHIPPED.write_text(lines(trajectories), encoding="utf-8")
    sizes = [sum(len(m.text) for m in t.messages) for t in trajectories]
    print(f"{SHIPPED}: {len(sizes)} trajectories, {min(sizes)} to {max(sizes)} characters, {sum(sizes)} in all")


if __name__ == "__main__":
    main()
