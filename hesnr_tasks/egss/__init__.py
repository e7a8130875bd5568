"""Entropy-guided stepwise scaling (EGSS, arXiv 2602.05242) for agents that run on mini-swe-agent.

An extra (`pip install 'hesnr-tasks[egss]'`). `GatedModel` is a model class of mini-swe-agent: it draws two actions at
a step, more only where a gate says so, and lets a judge choose. `hesnr select` chooses among finished runs, `hesnr egss
report` says what either costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["SWEBENCH_CONFIG", "GatedModel", "GatedTextbasedModel"]

SWEBENCH_CONFIG = Path(__file__).parent / "swebench_egss.yaml"  # for mini-extra swebench -c


def __getattr__(name: str) -> Any:
    """The model classes, loaded when asked for: mini-swe-agent is not needed for the rest."""
    if name in ("GatedModel", "GatedTextbasedModel"):
        from hesnr_tasks.egss import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
