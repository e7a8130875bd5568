"""The steps where the model hesitated most, with what it weighed up."""

from __future__ import annotations

from typing import Any

import numpy as np

from hesnr_tasks.actions.classes import action_class, canonical_key
from hesnr_tasks.analysis.cases import Speller
from hesnr_tasks.analysis.output import Table
from hesnr_tasks.search.profile_run import UNSHOWN, Profile

__all__ = ["forks"]

_SHOWN = 10  # candidates
_ACTION = 240  # characters of the action
_NAMES = ("position", "char_start", "char_end", "topk_logprobs", "topk_ids")


def forks(made: Profile, each: int = 10) -> Table:
    """The `each` steps of greatest entropy (texts that two trajectories have: once), and the candidates there.

    The candidates are those of the step's most undecided token; probabilities are over the full vocabulary.
    """
    first = {place: at for at, place in reversed(list(enumerate(made.place)))}
    ranked = sorted(
        (-value, made.parts[at].key, i, at)
        for at in first.values()
        for i, value in enumerate(made.measured[at].value.tolist())
        if value == value
    )
    spell = Speller(made.frame)
    rows = [{**made.named, "place": n, **_fork(made, at, i, spell)} for n, (_, _, i, at) in enumerate(ranked[:each], 1)]
    note = "candidates: of the most undecided token of the step, with probabilities over the full vocabulary"
    return Table(
        "tool_entropy_forks",
        "Steps of greatest tool entropy",
        rows,
        (note,),
        wide=("select", "k", "epsilon", *UNSHOWN, "text_key", "position", "action_key"),
        below=("action", "candidates"),
    )


def _fork(made: Profile, at: int, i: int, spell: Speller) -> dict[str, Any]:
    entry, step, text = made.frame.entries[made.place[at]], made.steps[at][i], made.text(at)
    token = int(made.rows[at][made.measured[at].peak[i]])
    row = int(made.frame.row[token])
    _, columns = made.frame.store.columns(entry.key, _NAMES)
    ids = columns["topk_ids"][row, : min(made.k, _SHOWN)].tolist()
    weights = np.exp(columns["topk_logprobs"][row, : min(made.k, _SHOWN)].astype(np.float64)).tolist()
    action = text[step.start : step.end].strip()
    return {
        "trajectory": ",".join(source.id for source in entry.sources),
        "text_key": entry.key,
        "turn": step.turn,
        "class": action_class(action),
        "action_key": canonical_key(action),
        "entropy": float(made.measured[at].value[i]),
        "p": float(np.exp(np.float64(made.frame.logprob[token]))),
        "rank": int(made.frame.rank[token]),
        "token": text[int(columns["char_start"][row]) : int(columns["char_end"][row])],
        "position": int(columns["position"][row]),
        "action": action if len(action) <= _ACTION else action[:_ACTION] + " …",
        "candidates": [[spell(one), round(weight, 6)] for one, weight in zip(ids, weights, strict=True)],
    }
