"""Reinforcement learning with advantages shaped by entropy, for verl and (`rl.trl`) TRL.

Tokens at which the policy hesitates weigh a little more:
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
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hesnr_tasks.errors import ScoringError, SettingsError

__all__ = ["EntropyShapedGRPOTrainer", "EntropyShapedPPOLoss", "entropy_shaped_advantage"]

ALPHA_GRPO = 0.4
ALPHA_PPO = 0.1
KAPPA = 2.0
_ROUNDING = 0.5  # nats below zero that an entropy computed in bfloat16 can reach; anything lower is no entropy


class Shaped(NamedTuple):
    """Shaped advantages with what logs need, each (B, T)."""

    advantages: Tensor  # in the dtype of those given
    bonus: Tensor  # ψ, float32 or wider, 0 outside the mask
    relative: Tensor  # ψ / |A| at counted tokens, 0 elsewhere
    counted: Tensor  # tokens inside the mask whose advantage is not 0
    capped: Tensor  # those of them with α·H >= |A| / κ


def entropy_shaped_advantage(
    advantages: Tensor, entropies: Tensor, mask: Tensor, alpha: float = ALPHA_GRPO, kappa: float = KAPPA
) -> Tensor:
    """A + min(α·H, |A| / κ) where `mask` is not 0, A elsewhere. Source: arXiv 2506.14758.

    Computed in float32 or wider, under autocast too. No gradient passes through ψ; the gradient with respect to
    `advantages` is that of A alone. The sign of an advantage never changes, also not to 0: where rounding would do
    that, A is returned.

    Args:
        advantages: (B,), one a sequence (spread over the tokens of its own row, also where B = T), or (B, T).
        entropies: (B, T), nats. Outside the mask they may be anything, NaN included; inside it values down to -0.5,
            which low-precision arithmetic produces, count as 0.
        mask: (B, T).
        alpha: 0 returns A bit for bit. The default is that for GRPO (PPO: `ALPHA_PPO`), from secondary sources.
        kappa: greater than 1.

    Returns:
        (B, T), in the dtype of `advantages`.

    Raises:
        ScoringError: an entropy inside the mask is not finite, or lower than -0.5, with its position.
        SettingsError: `alpha` < 0, `kappa` <= 1, or shapes that differ.
    """
    return shape(advantages, entropies, mask, alpha, kappa).advantages


def shape(
    advantages: Tensor, entropies: Tensor, mask: Tensor, alpha: float = ALPHA_GRPO, kappa: float = KAPPA
) -> Shaped:
    """What `entropy_shaped_advantage` returns, with ψ and the tokens it counts and caps; same arguments and errors."""
    check_strength(alpha, kappa)
    if entropies.dim() != 2 or mask.shape != entropies.shape:
        raise SettingsError(
            f"entropies have shape {tuple(entropies.shape)} and mask {tuple(mask.shape)}; both must be (B, T): "
            "sequences by tokens"
        )
    if not (advantages.is_floating_point() and entropies.is_floating_point()):
        raise SettingsError(f"advantages are {advantages.dtype} and entropies {entropies.dtype}; both must be floats")
    if advantages.shape not in (entropies.shape, entropies.shape[:1]):
        raise SettingsError(
            f"advantages have shape {tuple(advantages.shape)} beside entropies of shape {tuple(entropies.shape)}; they "
            f"must be ({entropies.shape[0]},), one for each sequence, or {tuple(entropies.shape)}, one for each token"
        )
    if advantages.shape != entropies.shape:
        advantages = advantages.unsqueeze(1).expand(entropies.shape)
    inside, given = mask != 0, advantages.detach()
    entropy = torch.where(inside, entropies.detach(), 0.0)
    wrong = ~torch.isfinite(entropy) | (entropy < -_ROUNDING)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ScoringError(
            f"the entropy at sequence {row}, token {column} of the batch is {float(entropies[row, column])} "
            f"({int(wrong.sum())} such positions inside the mask). Entropies are finite and >= 0 nats: check that the "
            "model's logits are finite and that these are not log-probabilities, or take the position out of the mask."
        )
    with torch.no_grad():
        wide = torch.promote_types(torch.promote_types(given.dtype, entropy.dtype), torch.float32)
        magnitude = given.to(wide).abs()
        uncapped, limit = alpha * entropy.clamp_min(0.0).to(wide), magnitude / kappa
        bonus = torch.where(inside, torch.minimum(uncapped, limit), 0.0)
        counted = inside & (magnitude > 0)
        relative = torch.where(counted, bonus / magnitude, 0.0)
    shaped = (advantages.to(wide) + bonus).to(given.dtype)
    same_sign = inside & (torch.sign(shaped.detach()) == torch.sign(given)) & (given != 0)
    shaped = torch.where(same_sign, shaped, advantages)
    return Shaped(shaped, bonus, relative, counted, counted & (uncapped >= limit))


def version_of(package: str) -> str | None:
    """The version of a package; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_strength(alpha: float, kappa: float) -> None:
    """Raise `SettingsError` unless `alpha` is a finite number >= 0 and `kappa` > 1."""
    if not 0 <= alpha < math.inf:
        raise SettingsError(f"alpha is {alpha}; it weighs the entropy and must be a finite number >= 0 (0: no shaping)")
    if not kappa > 1:
        raise SettingsError(
            f"kappa is {kappa}; it must be greater than 1. The bonus reaches |A| / kappa, so at kappa <= 1 a negative "
            "advantage could become 0 or positive: what was wrong would be rewarded. The usual value is 2."
        )


class LexiconPivotal:
    """Which tokens of a completion begin a pivotal word (because, however, first …) of English prose, for logs.

    The `pivotal` of `EntropyShapedGRPOMixin` from the lexicon of `hesnr_tasks.exploration`. `tokenizer` is that of the
    model; a token whose text it cannot tell counts as none.
    """

    def __init__(self, tokenizer: Any) -> None:
        from hesnr_tasks.exploration import load_lexicon
        from hesnr_tasks.trajectory.alignment import Encoder

        self._token_bytes, self._lexicon = Encoder(tokenizer).token_bytes(), load_lexicon()

    def __call__(self, ids: Sequence[int]) -> list[bool]:
        """One bool for each of the token ids of one completion: a pivotal word's first character lies in it."""
        from hesnr_tasks.exploration import prose, sentences

        table = self._token_bytes
        pieces = [(table[token] if token < len(table) else None) or b"" for token in ids]
        text = b"".join(pieces).decode("utf-8", "surrogateescape")  # sampled tokens need not join to valid UTF-8
        flat, ends = prose(text), np.cumsum([len(piece) for piece in pieces])
        marks = np.zeros(len(pieces), dtype=bool)
        for sentence in sentences(flat):
            for hit in self._lexicon.hits(flat, sentence):
                before = text[: sentence.words[hit.word].start].encode("utf-8", "surrogateescape")
                marks[np.searchsorted(ends, len(before), side="right")] = True
        return [bool(mark) for mark in marks]


# --- verl -------------------------------------------------------------------------------------------------------------

LINE = (0, 9)  # the minor line of verl whose ppo_loss was read and tested


def check_verl(installed: str | None) -> None:
    """Raise `SettingsError` unless `installed`, verl's version or None, is of the line that was read."""
    if installed is None:
        raise SettingsError("shaping advantages in verl needs verl, which is not installed: pip install 'verl==0.9.*'")
    if tuple(int(part) for part in installed.split(".")[:2]) != LINE:
        raise SettingsError(
            f"verl {installed} is installed; its loss was read and tested in verl 0.9 only. With another version, call "
            "entropy_shaped_advantage on padded tensors right before your policy loss."
        )


class EntropyShapedPPOLoss:
    """verl's `ppo_loss` on A + min(α·H, |A| / κ); takes the same arguments and can be pickled.

    Experimental: tested as a function, never on a cluster. verl's registered policy losses do not see the entropies, so
    the loss function of the actor is replaced whole, as verl 0.9 allows (older versions have no such place)::

        from functools import partial
        loss = partial(EntropyShapedPPOLoss(alpha=0.4), config=actor_config)
        actor_rollout_wg.set_loss_fn(loss)   # after init_workers(), which sets verl's own, before fit()

    The actor must compute entropies: `actor_rollout_ref.actor.calculate_entropy=true`.

    `alpha` has no default: the paper is reported to use 0.4 with GRPO's advantages and 0.1 with PPO's. `kappa` > 1
    (2). `ppo_loss(config, model_output, data, dp_group)` and `pad(tensor, data)`, which gives model output as
    (B, T) of the responses, are verl's own unless given. `SettingsError`: no entropies in the model's output, a
    version of verl that was not read, or a strength out of range.

    Adds to verl's metrics, for tokens of each micro-batch whose advantage is not 0: `actor/shaping_capped` (share with
    α·H >= |A| / κ) and `actor/shaping_relative_bonus` (mean ψ / |A|); both 0 where there is no such token.
    """

    def __init__(
        self,
        alpha: float,
        kappa: float = KAPPA,
        *,
        ppo_loss: Callable[..., Any] | None = None,
        pad: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> None:
        check_strength(alpha, kappa)
        if ppo_loss is None or pad is None:
            check_verl(version_of("verl"))
            ppo_loss = ppo_loss or import_module("verl.workers.utils.losses").ppo_loss
            pad = pad or import_module("verl.workers.utils.padding").no_padding_2_padding
        self.alpha, self.kappa = alpha, kappa
        self._ppo_loss, self._pad = ppo_loss, pad

    def __call__(
        self, config: Any, model_output: Any, data: Any, dp_group: Any = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a micro-batch and its metrics; `data` itself is not changed."""
        entropies = model_output.get("entropy", None)
        if entropies is None:
            raise SettingsError(
                "the actor computed no entropies, so its advantages cannot be shaped: set "
                "actor_rollout_ref.actor.calculate_entropy=true"
            )
        given = data["advantages"]
        advantages, mask = (
            torch.nested.to_padded_tensor(tensor, 0) if tensor.is_nested else tensor
            for tensor in (given, data["response_mask"])
        )
        shaped = shape(advantages, self._pad(entropies.detach(), data), mask, self.alpha, self.kappa)
        copy = data.copy()
        copy["advantages"] = shaped.advantages
        if given.is_nested:
            rows = [row[: len(before)] for row, before in zip(shaped.advantages, given.unbind(), strict=True)]
            copy["advantages"] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        loss, metrics = self._ppo_loss(config, model_output, copy, dp_group)
        count = shaped.counted.sum().clamp_min(1)
        means = torch.stack([shaped.capped.sum() / count, shaped.relative.sum() / count])
        capped, relative = means.tolist()  # a single transfer; verl averages numbers, not tensors on a device
        return loss, {**metrics, "actor/shaping_capped": capped, "actor/shaping_relative_bonus": relative}


def __getattr__(name: str) -> Any:
    """Import the trainer when it is first used: TRL is needed for it alone."""
    if name != "EntropyShapedGRPOTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("hesnr_tasks.rl.trl").EntropyShapedGRPOTrainer
