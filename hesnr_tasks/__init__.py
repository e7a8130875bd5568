"""HE-SNR, HE-PPL and PPL of code models over software-engineering agent trajectories.

The names below are the Python API (`hesnr_tasks.api`). They are imported when they are first used: importing this
package imports neither torch nor lm-eval nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hesnr_tasks.api import LabelledText, Scores, compare, label, load, open_scores, score
    from hesnr_tasks.metrics import metric
    from hesnr_tasks.stats import Difference, Estimate
    from hesnr_tasks.trajectory import Trajectory

__version__ = "0.1.0"
__all__ = [
    "Difference",
    "Estimate",
    "LabelledText",
    "Scores",
    "Trajectory",
    "compare",
    "label",
    "load",
    "metric",
    "open_scores",
    "score",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("hesnr_tasks.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
