"""Score files: what a model made of each trajectory, kept so that everything after needs no model (docs/scores.md).

Imports neither torch nor lm-eval, and pyarrow only when a store is opened.
"""

from hesnr_tasks.scores.runs import SettingChange, StoredRun, Wanted, choose_runs, differences, mixed, scoring_signature
from hesnr_tasks.scores.schema import COLUMNS, Entry, Source, StoreError, Text
from hesnr_tasks.scores.store import ScoreCache, ScoreStore

__all__ = [
    "COLUMNS",
    "Entry",
    "ScoreCache",
    "ScoreStore",
    "SettingChange",
    "Source",
    "StoreError",
    "StoredRun",
    "Text",
    "Wanted",
    "choose_runs",
    "differences",
    "mixed",
    "scoring_signature",
]
