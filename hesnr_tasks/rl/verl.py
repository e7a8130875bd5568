"""verl's PPO loss with the entropy-shaped advantage. Experimental: tested as a function, never on a cluster.

verl's registered policy losses do not see the entropies, so the loss function of the actor is replaced whole, as
verl 0.9 allows (older versions have no such place)::

    from functools import partial
    loss = partial(EntropyShapedPPOLoss(alpha=0.4), config=actor_config)
    actor_rollout_wg.set_loss_fn(loss)   # after init_workers(), which sets verl's own, before fit()

The actor must compute entropies: `actor_rollout_ref.actor.calculate_entropy=true`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.rl.advantage import KAPPA, check_strength, shape

LINE = (0, 9)  # the minor line of verl whose ppo_loss was read and tested


def check_version(installed: str | None) -> None:
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
            try:
                check_version(version("verl"))
            except PackageNotFoundError:
                check_version(None)
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
