"""Tokens as a model scored them, from the score files of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hesnr_tasks.backends import labelled_key
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.labels import label_mask
from hesnr_tasks.metrics import EPSILON, topk_entropy
from hesnr_tasks.scores import ScoreStore
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.viewer.tokens import TokenView
from hesnr_tasks.viewer.view import View

__all__ = ["ScoredRun"]

_SHOWN = 10  # candidates on hover


class ScoredRun:
    """The score files in a folder, as tokens to look at. Raises `StoreError` where there are none."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._store = ScoreStore.open(folder)
        self._vocabulary = self._store.vocabulary()
        self._mask = label_mask([Kind.ACTION], list(FILTERS), list(self._store.signature["filters"]))

    @property
    def name(self) -> str:
        """What the page calls this model."""
        return Path(self._folder).resolve().name

    @property
    def rendering(self) -> str:
        """The rendering of the texts that were scored."""
        found = str(self._store.signature["render"])
        if found not in ("transcript", "chatml"):
            raise SettingsError(
                f"the scores in {self._folder} were made with the model's own chat template, which is not at hand "
                "here. Score with render=transcript or render=chatml to look at tokens."
            )
        return found

    def tokens(self, view: View) -> list[TokenView]:
        """The scored tokens of a trajectory; 𝓗 is that of the paper's metric (filtered actions)."""
        key = labelled_key(view.text, view.codes)
        if key not in self._store:
            raise DataError(
                f"{self._folder} has no scores of trajectory {view.trajectory.id!r} with this text. It was scored from "
                "another file or by another version, or not at all; `--id` shows one of those that were."
            )
        found = self._store.read(key)
        entropy = topk_entropy(found.scores.topk_logprobs, _SHOWN)
        rank = found.scores.rank
        high = (entropy > EPSILON) & (rank >= 1) & (rank <= _SHOWN) & found.where(self._mask)
        chances = np.exp(found.scores.topk_logprobs[:, :_SHOWN].astype(np.float64))
        return [
            TokenView(
                int(found.char_start[i]),
                int(found.char_end[i]),
                -float(found.scores.logprob[i]),
                float(entropy[i]),
                bool(high[i]),
                [
                    (self._spelled(index), chance)
                    for index, chance in zip(
                        found.scores.topk_ids[i, :_SHOWN].tolist(), chances[i].tolist(), strict=True
                    )
                ],
            )
            for i in range(len(found.position))
        ]

    def _spelled(self, token: int) -> str:
        spelled = self._vocabulary[token] if self._vocabulary and token < len(self._vocabulary) else None
        return f"⟨{token}⟩" if spelled is None else spelled.decode(errors="replace")
