"""Scoring with lm-eval's `--model hf`: any Hugging Face causal language model, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
import transformers

from hesnr_tasks.backends.base import Backend, TokenSequence
from hesnr_tasks.backends.hf.engine import TEXT, Engine
from hesnr_tasks.backends.hf.model import CausalLM
from hesnr_tasks.backends.identity import weights_of
from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scores.base import SequenceScores

__all__ = ["HuggingFaceBackend", "make"]


def make(lm: Any) -> Backend:
    """The backend for an lm-eval `HFLM`; raises `ScoringError` for models that cannot be scored."""
    if getattr(lm, "backend", "causal") != "causal":
        raise ScoringError(
            f"this is an encoder-decoder model (backend {lm.backend!r}); log-likelihoods of a text given all the text "
            "before it need a decoder-only model (causal language model)."
        )
    if lm.tokenizer is None:
        raise ScoringError("this model has no tokenizer; name one with tokenizer=… in --model_args")
    return HuggingFaceBackend(lm)


class HuggingFaceBackend(Backend):
    """Runs the model of an lm-eval `HFLM`."""

    full_vocabulary = True

    def __init__(self, lm: Any) -> None:
        super().__init__(lm)
        precision, together = getattr(lm, "mixed_precision_dtype", None), getattr(lm, "together", None)
        self._model = CausalLM(lm.model, lm.device, precision, together)
        self._engine: Engine | None = None

    @property
    def max_length(self) -> int:
        """`max_length` of --model_args, else what the model's configuration says."""
        return int(self._lm.max_length)

    @property
    def engine(self) -> Engine:
        """The engine; it checks itself on the model when it is first used."""
        if self._engine is None:
            sample = self.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
            size = str(getattr(self._lm, "batch_size", 1))
            self._engine = Engine(self._model, sample, int(size) if size.isdigit() else 0, self.gather)  # 0: auto
        return self._engine

    def describe(self) -> dict[str, Any]:
        """Identity of model, adapters and software; `weights` is a hash of every bit of every tensor."""
        lm, model = self._lm, self._model
        name = lm.pretrained if isinstance(lm.pretrained, str) else getattr(lm.pretrained, "name_or_path", "")
        return {
            "backend": "hf",
            "model": str(name or type(lm.pretrained).__name__),
            "revision": str(getattr(lm, "revision", None)),
            "peft": getattr(lm, "peft", None),
            "delta": getattr(lm, "delta", None),
            "architecture": model.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "autocast": str(model.autocast).removeprefix("torch.") if model.autocast else None,
            "attention": getattr(model.config, "_attn_implementation", None),
            "parameters": sum(p.numel() for p in model.outer.parameters()),
            "weights": weights_of(model.outer),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }

    def gather(self, items: list[Any]) -> list[Any]:
        """See `Backend.gather`."""
        if int(getattr(self._lm, "world_size", 1) or 1) == 1 or not torch.distributed.is_initialized():
            return items
        lists: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(lists, items)
        return [item for part in lists for item in part]

    def score(
        self, sequences: Sequence[TokenSequence], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
    ) -> Iterator[tuple[int, SequenceScores]]:
        """See `Backend.score`; prefixes that sequences share are computed once."""
        return self.engine.score(sequences, k, progress, skip)
