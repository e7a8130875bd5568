"""Sampling for a batch of one Hugging Face model in which every row has a seed of its own.

`generate` draws all rows of a batch from one generator, so an answer would depend on what it was batched with. Here the
draw is made by the last logits processor, and `generate` runs greedily: it takes the one token that is left.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from hesnr_tasks.errors import ScoringError, SettingsError

__all__ = ["WARPERS", "SeededSampler", "sampling_of"]

# in the order in which `generate` applies them
WARPERS: Mapping[str, Any] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_k": (0, -1),
    "top_p": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}
_REFUSED = ("num_beams", "num_return_sequences", "top_h", "penalty_alpha", "assistant_model")


def sampling_of(kwargs: Mapping[str, Any], model: Any) -> dict[str, float]:
    """Temperature, top_p and the like: from `generation_kwargs`, else what the model's own configuration sets.

    `SettingsError` for ways of generating in which rows have no draws of their own.
    """
    for name in _REFUSED:
        if kwargs.get(name) not in (None, 1):
            raise SettingsError(f"generation_kwargs: {name} does not go with Pass@K's seeds; leave it out")
    config = getattr(model, "generation_config", None)
    own = config.to_diff_dict() if config is not None else {}
    found = {name: kwargs.get(name, own.get(name)) for name in WARPERS}
    return {name: value for name, value in found.items() if value is not None and value not in _NEUTRAL[name]}


class SeededSampler(LogitsProcessor):
    """Leaves of every row's scores (rows, vocabulary) one token: drawn with that row's generator."""

    def __init__(self, sampling: Mapping[str, float], seeds: Sequence[int]) -> None:
        self._warpers = [WARPERS[name](value) for name, value in sampling.items()]
        self._draws = [random.Random(seed) for seed in seeds]

    def __deepcopy__(self, memo: Any) -> SeededSampler:
        """Itself: lm-eval copies generation arguments, and a copy would draw the same again."""
        return self

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """See the class; `ScoringError` where the batch is not the one the seeds are for."""
        if len(scores) != len(self._draws):
            raise ScoringError(
                f"the model was given {len(scores)} rows at once, and {len(self._draws)} seeds are known"
            )
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        summed = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        uniform = torch.tensor([draw.random() for draw in self._draws], dtype=torch.float64, device=scores.device)
        # right=True: the first token whose sum exceeds the draw, hence one with a probability above 0
        token = torch.searchsorted(summed, (uniform * summed[:, -1])[:, None], right=True)
        token = token.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -float("inf")).scatter_(1, token, 0.0)  # type: ignore[return-value]
