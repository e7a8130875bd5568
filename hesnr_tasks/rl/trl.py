"""TRL's GRPOTrainer with the entropy-shaped advantage, without a second forward pass.

TRL computes the entropies of a batch and then reads its advantages. The mixin hands it a copy of the batch, waits for
the entropies, and puts the shaped advantages into that copy. This leans on the order of two calls inside TRL, which is
watched while it runs: training stops in the first step if the order is ever another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from torch import Tensor

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.rl import ALPHA_GRPO, KAPPA, Shaped, check_strength, shape, version_of

LOSS_TYPES = ("bnpo", "cispo", "dapo", "dr_grpo", "grpo", "sapo", "vespo")
OLDEST = "0.29.1"  # this version and 1.0, 1.8 and 1.16 were read: entropies first, then advantages

Pivotal = Callable[[Sequence[int]], Sequence[bool]]
"""The token ids of one completion → which of them count as pivotal, one bool for each id."""


def check_version(installed: str | None) -> None:
    """Raise `SettingsError` for TRL's version `installed` (None: it is not) where it is too old."""
    if installed is None:
        raise SettingsError("shaping advantages in TRL needs TRL: pip install 'hesnr-tasks[trl]'")
    if Version(installed) < Version(OLDEST):
        raise SettingsError(
            f"TRL {installed} is installed; shaping needs TRL {OLDEST} or newer: pip install 'hesnr-tasks[trl]'. With "
            "an older version, call entropy_shaped_advantage in a trainer of your own."
        )


check_version(version_of("trl"))
from trl import GRPOConfig, GRPOTrainer  # noqa: E402  (a version that does not fit may fail to import)

if TYPE_CHECKING:
    from trl import GRPOTrainer as _Trainer
else:
    _Trainer = object


class _WatchedInputs(dict[str, Any]):
    """A shallow copy of a batch that sees to it that its advantages are read only after they were shaped."""

    shaped = False
    read = False

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def _note(self, key: str) -> None:
        if key == "advantages":
            if not self.shaped:
                raise _moved("reads the advantages before it computes the entropies")
            self.read = True

    def shape(self, entropies: Tensor, mask: Tensor, alpha: float, kappa: float) -> Shaped:
        """Put shaped advantages, (B, T), in the place of those given."""
        if self.shaped:
            raise _moved("computes the entropies of a batch twice")
        shaped = shape(super().__getitem__("advantages"), entropies, mask, alpha, kappa)
        self["advantages"] = shaped.advantages
        self.shaped = True
        return shaped


class EntropyShapedGRPOMixin(_Trainer):
    """Put before `GRPOTrainer` in a class: A + min(α·H, |A| / κ) takes the place of A in its loss.

    Keyword arguments besides those of `GRPOTrainer`:

    - `alpha` (0.4) and `kappa` (2): see `hesnr_tasks.rl`; `alpha` = 0 trains as the stock trainer does,
      bit for bit;
    - `pivotal`: which tokens of a completion are pivotal, for the logs (None: not logged), such as
      `hesnr_tasks.rl.LexiconPivotal(tokenizer)`.

    H is the entropy, in nats, at the trainer's temperature, that TRL computes anyway. Shaped are tokens of the model
    alone: completion mask times tool mask. The evaluation loss is shaped as well. Logged beside TRL's metrics, over
    all processes, over tokens whose advantage is not 0, `shaping/capped` (share with α·H >= |A| / κ)
    and `shaping/relative_bonus` (mean ψ / |A|); with `pivotal`, `shaping/pivotal_entropy` and `shaping/other_entropy`
    (mean nats).

    `SettingsError` at construction: a trainer that is not GRPOTrainer (RLOO's loss is one number per sequence; the
    asynchronous trainer computes its loss elsewhere), `importance_sampling_level="sequence"`, a `loss_type` outside
    `LOSS_TYPES` (luspo is a loss of sequences), Liger kernels. `SettingsError` in the first step: a TRL that reads the
    advantages before the entropies are known.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if GRPOTrainer in order and order.index(GRPOTrainer) < order.index(EntropyShapedGRPOMixin):
            raise SettingsError(
                f"class {cls.__name__}: EntropyShapedGRPOMixin must stand before GRPOTrainer, or nothing is shaped: "
                f"class {cls.__name__}(EntropyShapedGRPOMixin, GRPOTrainer)"
            )

    def __init__(
        self,
        *args: Any,
        alpha: float = ALPHA_GRPO,
        kappa: float = KAPPA,
        pivotal: Pivotal | None = None,
        **kwargs: Any,
    ) -> None:
        check_strength(alpha, kappa)
        if not isinstance(self, GRPOTrainer):
            raise SettingsError(
                f"{type(self).__name__} is not a GRPOTrainer. The advantage is shaped token by token: RLOO weighs "
                "whole sequences, and the asynchronous trainer computes its loss elsewhere; neither can be shaped."
            )
        for argument in (*args, *kwargs.values()):  # before a model is loaded
            if not isinstance(argument, GRPOConfig):
                continue
            if argument.importance_sampling_level != "token":
                raise SettingsError(
                    f"importance_sampling_level is {argument.importance_sampling_level!r}; entropy shapes the "
                    "advantage of each token, which has no meaning in a loss of whole sequences: use 'token'"
                )
            if argument.loss_type not in LOSS_TYPES:
                raise SettingsError(f"loss_type is {argument.loss_type!r}; shaping supports {', '.join(LOSS_TYPES)}")
            if argument.use_liger_kernel:
                raise SettingsError("use_liger_kernel is not supported with shaping: leave it False")
        self.alpha, self.kappa, self.pivotal = alpha, kappa, pivotal
        self._shaping_batch: _WatchedInputs | None = None
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        batch = self._shaping_batch = _WatchedInputs(inputs)
        try:
            loss = super()._compute_loss(model, batch)
        finally:
            self._shaping_batch = None
        if not (batch.shaped and batch.read):
            raise _moved("computed a loss without the shaped advantages")
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._shaping_batch is not None:  # else: log-probabilities of the old or the reference policy
            if len(result) < 2 or result[1] is None:
                raise _moved("computes a loss without entropies")
            self._shape(self._shaping_batch, result[1].detach())
        return result

    def _shape(self, batch: _WatchedInputs, entropies: Tensor) -> None:
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        shaped = batch.shape(entropies, mask, self.alpha, self.kappa)
        means = {"capped": (shaped.capped.float(), shaped.counted), "relative_bonus": (shaped.relative, shaped.counted)}
        if self.pivotal is not None:
            pivotal = torch.zeros_like(mask, dtype=torch.bool)
            for row, (ids, inside) in enumerate(
                zip(batch["completion_ids"], batch["completion_mask"] != 0, strict=True)
            ):
                marks, count = list(self.pivotal(ids[inside].tolist())), int(inside.sum())
                if len(marks) != count:
                    raise SettingsError(f"pivotal gave {len(marks)} marks for {count} tokens; it must give as many")
                pivotal[row, inside] = torch.tensor(marks, dtype=torch.bool, device=mask.device)
            means["pivotal_entropy"] = entropies, pivotal & (mask != 0)
            means["other_entropy"] = entropies, ~pivotal & (mask != 0)
        sums = [  # (sum, count) of each mean
            torch.stack([torch.where(chosen, values, 0.0).sum(dtype=torch.float32), chosen.sum()])
            for values, chosen in means.values()
        ]
        totals = self.accelerator.reduce(torch.stack(sums), reduction="sum").tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, (total, count) in zip(means, totals, strict=True):
            metrics[f"shaping/{name}"].append(total / count if count else float("nan"))  # TRL leaves NaN out of means


class EntropyShapedGRPOTrainer(EntropyShapedGRPOMixin, GRPOTrainer):
    """`GRPOTrainer` with the entropy-shaped advantage: see `EntropyShapedGRPOMixin`."""


def _moved(what: str) -> SettingsError:
    return SettingsError(
        f"TRL {version_of('trl')} (or a subclass between it and the mixin) {what}, so the advantages cannot be shaped. "
        f"Install TRL {OLDEST} … 1.16, or train with the plain GRPOTrainer."
    )
