"""lm-eval's `--model hf` as a scoring backend: any Hugging Face causal language model, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import torch
import transformers

from hesnr_tasks.backends.base import Backend, Scores, TokenSequence
from hesnr_tasks.backends.hf.check import TEXT
from hesnr_tasks.backends.hf.engine import Engine
from hesnr_tasks.backends.hf.forward import no_scores
from hesnr_tasks.backends.hf.model import Net
from hesnr_tasks.backends.identity import weights_of
from hesnr_tasks.errors import ScoringError

__all__ = ["HuggingFaceBackend", "make"]

T = TypeVar("T")


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

    def __init__(self, lm: Any) -> None:
        self._lm = lm
        precision, together = getattr(lm, "mixed_precision_dtype", None), getattr(lm, "together", None)
        self._net = Net(lm.model, lm.device, precision, together)
        self._engine: Engine | None = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that lm-eval loaded."""
        return self._lm.tokenizer

    @property
    def bos(self) -> bool | None:
        """`add_bos_token` of --model_args."""
        return self._lm.add_bos_token

    @property
    def max_length(self) -> int:
        """`max_length` of --model_args, else what the model's configuration says."""
        return int(self._lm.max_length)

    @property
    def engine(self) -> Engine:
        """The engine; it checks itself on the model when it is first used."""
        if self._engine is None:
            sample = self.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
            self._engine = Engine(self._net, sample, _batch_size(self._lm), _gather(self._lm))
        return self._engine

    def describe(self) -> dict[str, Any]:
        """Identity of model, adapters and software; `weights` is a hash of every bit of every tensor."""
        config = self._net.config
        return {
            "backend": "hf",
            "model": _path(self._lm.pretrained),
            "revision": str(getattr(self._lm, "revision", None)),
            "peft": getattr(self._lm, "peft", None),
            "delta": getattr(self._lm, "delta", None),
            "architecture": type(self._net.wrapper).__name__,
            "dtype": str(self._net.dtype).removeprefix("torch."),
            "autocast": str(self._net.autocast).removeprefix("torch.") if self._net.autocast else None,
            "attention": getattr(config, "_attn_implementation", None),
            "parameters": sum(p.numel() for p in self._net.outer.parameters()),
            "weights": weights_of(self._net.outer),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }

    def gather(self, items: list[Any]) -> list[Any]:
        """See `Backend.gather`."""
        return _gather(self._lm)(items)

    def score(
        self, passages: Sequence[TokenSequence], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
    ) -> Iterator[tuple[int, Scores]]:
        """See `Backend.score`; prefixes that passages share are read once."""
        for passage in passages:
            self._refuse(passage, k)
        wanted = [index for index, passage in enumerate(passages) if len(passage.targets)]
        for index in sorted(set(range(len(passages))) - {*wanted, *skip}):
            progress(len(passages[index].ids))
            yield index, no_scores(k)
        skipped = {number for number, index in enumerate(wanted) if index in skip}
        for number, scores in self.engine.score([passages[index] for index in wanted], k, progress, skipped):
            yield wanted[number], scores

    def _refuse(self, passage: TokenSequence, k: int) -> None:
        size = self._net.vocabulary
        if k > size:
            raise ScoringError(f"top {k} asked for, but the model's vocabulary has {size} entries")
        if len(passage.ids) and int(passage.ids.max()) >= size:
            raise ScoringError(
                f"trajectory {passage.name!r} has token id {int(passage.ids.max())}, the model knows {size} ids. "
                "The tokenizer does not belong to this model; name the right one with tokenizer=… in --model_args."
            )


def _batch_size(lm: Any) -> int:
    """`--batch_size`: the most texts side by side; 0 for `auto`."""
    size = str(getattr(lm, "batch_size", 1))
    return int(size) if size.isdigit() else 0


def _gather(lm: Any) -> Callable[[list[T]], list[T]]:
    """A function that joins the lists of all processes among which lm-eval has split the documents."""
    if int(getattr(lm, "world_size", 1) or 1) == 1 or not torch.distributed.is_initialized():
        return list

    def gather(own: list[T]) -> list[T]:
        lists: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(lists, own)
        return [item for part in lists for item in part]

    return gather


def _path(pretrained: Any) -> str:
    if isinstance(pretrained, str):
        return pretrained
    return str(getattr(pretrained, "name_or_path", "") or type(pretrained).__name__)
