"""The entropy-shaped advantage: tokens at which the policy hesitates weigh a little more.

ψ = min(α·H, |A| / κ), and A + ψ takes the place of A ("Reasoning with Exploration: An Entropy Perspective",
arXiv 2506.14758). H is the entropy, in nats, of the current policy over the whole vocabulary at the position that
emits the token; no gradient flows through ψ, which is what sets the method apart from an entropy bonus. The values
that the paper is reported to use (from secondary sources, not checked against its text): κ = 2 everywhere, α = 0.4
with GRPO, α = 0.1 with PPO.

Two consequences to know. ψ is never negative, so the advantages of a group no longer sum to zero. And ψ stops growing
at |A| / κ: with |A| = 1, κ = 2, α = 0.4 every token above 1.25 nats is capped, hence on a model that is not trained yet
(about 9 nats) *all* tokens are, and shaping only multiplies positive advantages by 1.5 and negative ones by 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hesnr_tasks.alignment import Encoder
from hesnr_tasks.errors import ScoringError, SettingsError
from hesnr_tasks.exploration.text import load_lexicon, prose, sentences

__all__ = ["ALPHA_GRPO", "KAPPA", "LexiconPivotal", "Shaped", "check_strength", "entropy_shaped_advantage", "shape"]

ALPHA_GRPO = 0.4
ALPHA_PPO = 0.1
KAPPA = 2.0
_ROUNDING = 0.5  # nats below zero that an entropy computed in bfloat16 can reach; anything lower is no entropy


class Shaped(NamedTuple):
    """Shaped advantages with what logs need, each (B, T).

    `advantages` has the dtype of the advantages given; `bonus` is ψ (float32 or wider, 0 outside the mask);
    `counted` marks tokens inside the mask whose advantage is not 0, `capped` those of them with α·H >= |A| / κ, and
    `relative` is ψ / |A| at counted tokens, 0 elsewhere.
    """

    advantages: Tensor
    bonus: Tensor
    relative: Tensor
    counted: Tensor
    capped: Tensor


def entropy_shaped_advantage(
    advantages: Tensor, entropies: Tensor, mask: Tensor, alpha: float = ALPHA_GRPO, kappa: float = KAPPA
) -> Tensor:
    """A + min(α·H, |A| / κ) where `mask` is not 0, A elsewhere; shape (B, T), dtype of `advantages`.

    `advantages` is (B,), one per sequence, or (B, T), one per token. A (B,) tensor is always spread over the tokens of
    its own row, also where B = T. `entropies` is (B, T), in nats; `mask` is (B, T). Computed in float32 or wider,
    under autocast too. No gradient passes through ψ; the gradient with respect to `advantages` is that of A alone.

    The sign of an advantage never changes, also not to 0: where rounding would do that, A is returned. `alpha` = 0
    returns A bit for bit. Entropies outside the mask may be anything, NaN included; inside it one that is not finite,
    or lies more than 0.5 nats below 0, raises `ScoringError` with its position; smaller negative values, which
    low-precision arithmetic produces, count as 0. `SettingsError`: `alpha` < 0, `kappa` <= 1, or shapes that differ.

    Source: arXiv 2506.14758; the defaults are those for GRPO (PPO: `ALPHA_PPO`), from secondary sources.
    """
    return shape(advantages, entropies, mask, alpha, kappa).advantages


def shape(
    advantages: Tensor, entropies: Tensor, mask: Tensor, alpha: float = ALPHA_GRPO, kappa: float = KAPPA
) -> Shaped:
    """What `entropy_shaped_advantage` returns, with ψ and the tokens it counts and caps; same arguments and errors."""
    check_strength(alpha, kappa)
    given = _spread(advantages, entropies, mask)
    inside = mask != 0
    entropy = _entropies(entropies, inside)
    with torch.no_grad():
        wide = torch.promote_types(torch.promote_types(given.dtype, entropy.dtype), torch.float32)
        magnitude = given.detach().to(wide).abs()
        wanted = alpha * entropy.to(wide)
        limit = magnitude / kappa
        bonus = torch.where(inside, torch.minimum(wanted, limit), 0.0)
        counted = inside & (magnitude > 0)
        relative = torch.where(counted, bonus / magnitude, 0.0)
    return Shaped(_add(given, bonus, inside), bonus, relative, counted, counted & (wanted >= limit))


def check_strength(alpha: float, kappa: float) -> None:
    """Raise `SettingsError` unless `alpha` is a finite number >= 0 and `kappa` > 1."""
    if not 0 <= alpha < math.inf:
        raise SettingsError(f"alpha is {alpha}; it weighs the entropy and must be a finite number >= 0 (0: no shaping)")
    if not kappa > 1:
        raise SettingsError(
            f"kappa is {kappa}; it must be greater than 1. The bonus reaches |A| / kappa, so at kappa <= 1 a negative "
            "advantage could become 0 or positive: what was wrong would be rewarded. The usual value is 2."
        )


def _add(given: Tensor, bonus: Tensor, inside: Tensor) -> Tensor:
    """A + ψ, rounded to the dtype of A; A itself outside the mask, where it is 0, and where its sign would be lost."""
    shaped = (given.to(bonus.dtype) + bonus).to(given.dtype)
    kept = inside & (torch.sign(shaped.detach()) == torch.sign(given.detach())) & (given.detach() != 0)
    return torch.where(kept, shaped, given)


def _spread(advantages: Tensor, entropies: Tensor, mask: Tensor) -> Tensor:
    """`advantages` as (B, T), after the shapes were compared."""
    if entropies.dim() != 2 or mask.shape != entropies.shape:
        raise SettingsError(
            f"entropies have shape {tuple(entropies.shape)} and mask {tuple(mask.shape)}; both must be (B, T): "
            "sequences by tokens"
        )
    if not (advantages.is_floating_point() and entropies.is_floating_point()):
        raise SettingsError(f"advantages are {advantages.dtype} and entropies {entropies.dtype}; both must be floats")
    if advantages.shape == entropies.shape:
        return advantages
    if advantages.shape == entropies.shape[:1]:
        return advantages.unsqueeze(1).expand(entropies.shape)
    raise SettingsError(
        f"advantages have shape {tuple(advantages.shape)} beside entropies of shape {tuple(entropies.shape)}; they "
        f"must be ({entropies.shape[0]},), one for each sequence, or {tuple(entropies.shape)}, one for each token"
    )


def _entropies(entropies: Tensor, inside: Tensor) -> Tensor:
    """Detached entropies: 0 outside the mask and for rounding below 0; an error for what is no entropy."""
    entropy = torch.where(inside, entropies.detach(), 0.0)
    wrong = ~torch.isfinite(entropy) | (entropy < -_ROUNDING)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ScoringError(
            f"the entropy at sequence {row}, token {column} of the batch is {float(entropies[row, column])} "
            f"({int(wrong.sum())} such positions inside the mask). Entropies are finite and >= 0 nats: check that the "
            "model's logits are finite and that these are not log-probabilities, or take the position out of the mask."
        )
    return entropy.clamp_min(0.0)


# --- Which tokens of a completion begin a pivotal word (because, however, first …), for the logs of a training run ---


class LexiconPivotal:
    """The `pivotal` of `EntropyShapedGRPOMixin` from the lexicon of `hesnr_tasks.exploration`, in English prose.

    Takes the token ids of one completion, gives one bool for each: whether the first character of a pivotal word lies
    in it. `tokenizer` is that of the model; a token whose text it cannot tell counts as none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._spelling = Encoder(tokenizer).token_bytes()
        self._lexicon = load_lexicon()

    def __call__(self, ids: Sequence[int]) -> list[bool]:
        """One bool for each of `ids`."""
        pieces = [self._spell(one) for one in ids]
        text = b"".join(pieces).decode("utf-8", "surrogateescape")  # sampled tokens need not join to valid UTF-8
        ends = np.cumsum([len(piece) for piece in pieces])
        marks = np.zeros(len(pieces), dtype=bool)
        for start in self._starts(text):
            marks[np.searchsorted(ends, len(text[:start].encode("utf-8", "surrogateescape")), side="right")] = True
        return [bool(mark) for mark in marks]

    def _spell(self, one: int) -> bytes:
        return (self._spelling[one] if one < len(self._spelling) else None) or b""

    def _starts(self, text: str) -> list[int]:
        """Characters at which pivotal words begin."""
        flat = prose(text)
        return [s.words[hit.word].start for s in sentences(flat) for hit in self._lexicon.hits(flat, s)]
