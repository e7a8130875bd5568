"""Reading a model in training without a trace: what is random, what the modules remember, what they switch."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from hesnr_tasks.alignment import Encoder, token_labels
from hesnr_tasks.backends import hf
from hesnr_tasks.backends.base import Scores, TokenSequence
from hesnr_tasks.errors import DataError, HesnrError, ScoringError, SettingsError
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.labels import label_mask
from hesnr_tasks.metrics import METRICS, Item, TokenColumns, TrajectorySums, aggregate, aggregate_error, token_bytes
from hesnr_tasks.stats import paired
from hesnr_tasks.tasks.corpus import Labelled, open_corpus
from hesnr_tasks.tasks.settings import Settings, signature

__all__ = [
    "Evaluation",
    "Evaluator",
    "LiveModel",
    "Text",
    "Texts",
    "UnfinishedPass",
    "change",
    "gather",
    "is_sharded",
    "mixed_precision",
    "numbers",
    "tokenizer_of",
    "untouched",
    "unwrapped",
]

_MISSING = object()
_SMALL = 1 << 20  # elements; larger buffers (quantised weights, say) are watched, not copied


@contextmanager
def untouched(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """All modules of `model` in evaluation mode for a while; afterwards everything is as it was, whatever happened.

    That is: the generators of random numbers (Python, NumPy, PyTorch on the CPU and on `device`), every attribute of
    every module (its own training flag, gradient checkpointing, hooks, caches), buffers by identity and by value
    (rotary embeddings grow with the length of what they see), and configurations. Weights and gradients are not
    written by reading under inference mode. What forward hooks write elsewhere cannot be known, and stays. Raises
    `ScoringError` if a buffer too large to copy was changed.
    """
    randomness = _Randomness(device)
    kept = [_Kept(item) for item in _remembering(model)]
    try:
        for module in model.modules():
            module.training = False  # not .eval(): what a model's own train() does beside it cannot be undone
        yield
    finally:
        for one in kept:
            one.restore()
        randomness.restore()


def _remembering(model: torch.nn.Module) -> list[Any]:
    """The modules and their configurations, each once."""
    modules = list(model.modules())
    names = ("config", "generation_config")
    found = [item for module in modules for item in (module, *(vars(module).get(name) for name in names))]
    return list({id(item): item for item in found if hasattr(item, "__dict__")}.values())


class _Randomness:
    """The state of every generator that training draws from."""

    def __init__(self, device: torch.device) -> None:
        self._python, self._numpy, self._cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._module = getattr(torch, device.type, None) if device.type != "cpu" else None
        self._every = hasattr(self._module, "get_rng_state_all")
        if self._module is not None:
            self._device = self._module.get_rng_state_all() if self._every else self._module.get_rng_state()

    def restore(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._module is not None:
            (self._module.set_rng_state_all if self._every else self._module.set_rng_state)(self._device)


class _Kept:
    """One object's attributes, the entries of those that are dictionaries or lists, and its tensors' values."""

    def __init__(self, owner: Any) -> None:
        self._attributes = vars(owner)
        self._before = dict(self._attributes)
        self._dictionaries = [(value, value.copy()) for value in self._before.values() if isinstance(value, dict)]
        self._lists = [(value, value.copy()) for value in self._before.values() if isinstance(value, list)]
        buffers = self._before.get("_buffers") or {}
        found = [*self._before.values(), *buffers.values()]
        self._tensors = [_Tensor(value) for value in found if isinstance(value, torch.Tensor)]

    def restore(self) -> None:
        _put_back(self._attributes, self._before)
        for entries, kept in self._dictionaries:
            _put_back(entries, kept)
        for items, once in self._lists:
            if len(items) != len(once) or any(a is not b for a, b in zip(items, once, strict=True)):
                items[:] = once
        for tensor in self._tensors:
            tensor.restore()


def _put_back(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Make `now` hold what it held; what did not change is not written, and the order stays."""
    same = len(now) == len(before)
    if same and all(now.get(key, _MISSING) is value for key, value in before.items()):
        return
    now.clear()
    now.update(before)


class _Tensor:
    """A tensor's value, or for a large one the number of times it was written."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        small = tensor.numel() <= _SMALL and tensor.device.type != "meta"
        self._value = tensor.detach().clone() if small else None
        self._version = -1 if tensor.is_inference() else tensor._version

    def restore(self) -> None:
        watched = self._version >= 0
        if watched and self._tensor._version == self._version:
            return
        if self._value is not None:
            with torch.inference_mode():  # the one mode in which every tensor may be written
                self._tensor.copy_(self._value)
        elif watched:
            raise ScoringError(
                f"this model writes into a buffer of shape {tuple(self._tensor.shape)} while it reads; it cannot be "
                "evaluated without disturbing its training. Evaluate saved checkpoints with lm_eval instead."
            )


# --- The model in training, as the scoring engine wants a model: with a device, a tokenizer and a length ---

_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_DEFAULT_LENGTH = 2048  # as lm-eval's
_INSTEAD = "Evaluate saved checkpoints with lm_eval --tasks hesnr_swe instead."


@dataclass
class LiveModel:
    """What `backends.hf` reads of lm-eval's model, taken from a model in training.

    `longest`: the most tokens to read of a text; None: what the model's configuration says, as lm-eval does.
    `together`, `computes`: see `Net`, and the device on which forward passes run, for a model of which each process
    holds a part.
    """

    model: torch.nn.Module
    tokenizer: Any
    mixed_precision_dtype: torch.dtype | None = None
    longest: int | None = None
    add_bos_token: bool | None = None
    together: Callable[[Any], list[Any]] | None = None
    computes: torch.device | None = None
    batch_size: int = 1  # side by side, the last bits of a text's numbers would depend on its neighbours

    @property
    def backend(self) -> str:
        """As lm-eval calls the two families of models."""
        return "seq2seq" if getattr(self._config, "is_encoder_decoder", False) else "causal"

    @property
    def device(self) -> torch.device:
        """Where ids are fed in."""
        if self.computes is not None:
            return self.computes
        find = getattr(self.model, "get_input_embeddings", None)
        embedding = find() if find else None
        return next((embedding or self.model).parameters()).device

    @property
    def max_length(self) -> int:
        """The most tokens of a text that are read."""
        config = getattr(self._config, "text_config", None) or self._config
        known = [getattr(config, name, None) for name in _LENGTHS] + [getattr(self.tokenizer, "model_max_length", None)]
        fits = next((int(n) for n in known if n is not None and n < 1 << 40), _DEFAULT_LENGTH)
        return self.longest or fits

    @property
    def pretrained(self) -> torch.nn.Module:
        """The model itself; it has no place of its own."""
        return self.model

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See `untouched`; gathered parameters are given up as well, or training would go on with those of now."""
        _reshard(self.model)
        with untouched(self.model, self.device):
            try:
                yield
            finally:
                _reshard(self.model)

    @property
    def _config(self) -> Any:
        return getattr(self.model, "config", None)


def unwrapped(model: Any, parallelism: Any = None) -> torch.nn.Module:
    """The model inside DistributedDataParallel, DataParallel, DeepSpeed stages 1 and 2, torch.compile.

    `parallelism`: the Trainer's `parallelism_config`. Raises `ScoringError` for models that cannot be read.
    """
    reason = next(_reasons(model, parallelism), "")
    if reason:
        raise ScoringError(f"HESNRCallback cannot read this model: {reason}. {_INSTEAD}")
    while True:
        inner = model._orig_mod if hasattr(model, "_orig_mod") else _inside(model)
        if inner is None:
            return model
        model = inner


def _inside(model: Any) -> Any:
    parallel = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    names = [cls.__name__ for cls in type(model).__mro__]
    return model.module if isinstance(model, parallel) or "DeepSpeedEngine" in names else None


def _reasons(model: Any, parallelism: Any) -> Iterator[str]:
    if any(_is_a(module, "FullyShardedDataParallel") for module in model.modules()):
        yield "it is sharded by FSDP 1, which PyTorch has replaced; set fsdp_version: 2 in fsdp_config"
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            yield f"DeepSpeed ZeRO stage 3 has partitioned it ({name})"
        if hasattr(parameter, "placements") and not is_sharded(model):
            yield f"{name} is spread over processes (a DTensor), but not by FSDP2"
        if parameter.device.type == "meta":
            yield f"{name} has no data here (device meta)"
    if int(getattr(model, "_tp_size", None) or 1) > 1:
        yield "it is split by tensor parallelism"
    for kind in ("tp", "cp", "sp"):
        if getattr(parallelism, f"{kind}_enabled", False):
            yield f"parallelism_config has {kind}_enabled"


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether FSDP2 has spread `model` over processes: each holds a part of every parameter."""
    return any(_is_a(module, "FSDPModule") for module in model.modules())


def _is_a(module: torch.nn.Module, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(module).__mro__)


def _reshard(model: torch.nn.Module) -> None:
    """FSDP2's root keeps its parameters after a forward pass until a backward pass, which reading has none of."""
    for module in model.modules():
        if _is_a(module, "FSDPModule"):
            module.reshard()  # type: ignore[operator]


def mixed_precision(args: Any) -> torch.dtype | None:
    """The dtype of the Trainer's autocast, from its arguments; DeepSpeed casts the weights instead."""
    if getattr(args, "deepspeed", None):
        return None
    if getattr(args, "bf16", False):
        return torch.bfloat16
    return torch.float16 if getattr(args, "fp16", False) else None


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer of a Trainer's `processing_class`, which may be a processor around it."""
    found = getattr(processing_class, "tokenizer", processing_class)
    if not callable(found) or not hasattr(found, "get_vocab"):
        raise SettingsError(
            "HESNRCallback found no tokenizer: give the Trainer processing_class=tokenizer, or the callback "
            f"tokenizer=… (processing_class is {type(processing_class).__name__})."
        )
    return found


# --- The texts of an evaluation, tokenised once: what is read of each and which tokens of it count ---

_log = logging.getLogger("hesnr_tasks")


class Text(NamedTuple):
    """One trajectory; `cut`: tokens that count but lie beyond the context and are not scored."""

    name: str
    key: str
    passage: TokenSequence
    cut: int
    lost: int  # characters the tokenizer cannot represent
    characters: int
    n_bytes: npt.NDArray[np.float64]  # (targets,) UTF-8 bytes of each


class Texts(NamedTuple):
    """The texts in the order of their keys, as a run of lm-eval sorts them."""

    items: tuple[Text, ...]
    left_out: int = 0  # tokens that count, of trajectories that overflow=skip leaves out

    @property
    def tokens(self) -> int:
        """Tokens read in one evaluation."""
        return sum(len(text.passage.ids) for text in self.items)

    @property
    def counted(self) -> int:
        """Tokens scored in one evaluation."""
        return sum(len(text.passage.targets) for text in self.items)

    @property
    def scored(self) -> float:
        """The share of the tokens that would count that is scored."""
        return self.counted / (self.counted + sum(text.cut for text in self.items) + self.left_out)

    def share(self, rank: int, processes: int) -> set[int]:
        """The numbers of the texts that process `rank` reads: longest first, each to who has the least to read."""
        loads, shares = [0] * processes, [set[int]() for _ in range(processes)]
        for number in sorted(range(len(self.items)), key=lambda i: (-len(self.items[i].passage.ids), i)):
            least = loads.index(min(loads))
            loads[least] += len(self.items[number].passage.ids)
            shares[least].add(number)
        return shares[rank]


def prepare(settings: Settings, tokenizer: Any, bos: bool | None, max_length: int) -> Texts:
    """Read, render, label and tokenise. Raises `HesnrError` where nothing can be scored."""
    corpus, encoder = open_corpus(settings), Encoder(tokenizer, bos)
    mask = label_mask(settings.kinds, settings.filters, tuple(FILTERS))
    items, left_out = [], 0
    for index, trajectory in enumerate(corpus.trajectories):
        text = _text(trajectory.id, corpus.labelled(index, settings.render), encoder, mask, max_length)
        if text.cut and settings.overflow == "error":
            raise ScoringError(
                f"trajectory {text.name!r} is longer than the {max_length} tokens that are read; set overflow to "
                "'right' to score the part that fits, or 'skip' to leave it out"
            )
        if text.cut and settings.overflow == "skip":
            left_out += text.cut + len(text.passage.targets)
        else:
            items.append(text)
    _report(items, len(corpus.trajectories), max_length, tokenizer)
    return Texts(tuple(sorted(items, key=lambda text: text.key)), left_out)


def _text(name: str, labelled: Labelled, encoder: Encoder, mask: np.uint64, max_length: int) -> Text:
    encoded = encoder.encode(labelled.rendered)
    wanted = np.flatnonzero((token_labels(encoded, labelled.codes) & mask) != 0).astype(np.int32)
    wanted = wanted[wanted > 0]  # nothing precedes the first token
    fits = wanted[wanted < max_length]
    ids = encoded.ids[: int(fits[-1]) + 1] if len(fits) else encoded.ids[:0]
    cut = len(wanted) - len(fits)
    passage = TokenSequence(name, ids, fits, min(len(encoded.ids), max_length))
    n_bytes = token_bytes(labelled.rendered.text, encoded.start[fits], encoded.end[fits])
    return Text(name, labelled.key, passage, cut, encoded.lost, len(labelled.rendered.text), n_bytes)


def _report(items: list[Text], found: int, max_length: int, tokenizer: Any) -> None:
    if not any(len(text.passage.targets) for text in items):
        raise DataError(
            f"no token of the {found} trajectories counts: kinds and filters leave nothing, or all of it lies beyond "
            f"the {max_length} tokens that are read"
        )
    cut, lost = sum(text.cut for text in items), sum(text.lost for text in items)
    if lost > 0.05 * sum(text.characters for text in items):
        raise ScoringError(
            f"the tokenizer {type(tokenizer).__name__} cannot represent {lost} characters of the trajectories; check "
            "that it belongs to the model"
        )
    if cut or len(items) < found:
        _log.warning(
            "%d tokens that count lie beyond the %d tokens that are read of a text and are not scored; %d of %d "
            "trajectories are left out", cut, max_length, found - len(items), found,
        )  # fmt: skip
    if lost:
        _log.warning("the tokenizer cannot represent %d characters; they are scored as what it makes of them", lost)


# --- One evaluation of a model in training: read the texts, share the work among processes, sum, and make numbers ---


class Evaluation(NamedTuple):
    """What one evaluation found."""

    step: int
    seconds: float  # reading, by the slowest process
    sums: TrajectorySums  # (T, statistics), in the order of their keys


class UnfinishedPass(ScoringError):
    """A forward pass of all processes that only some may have finished: the others wait, so this process must end."""


class Evaluator:
    """Scores the same texts again and again, with the engine of `lm_eval --model hf`.

    The texts are tokenised and the engine checks itself when this is made; `run` only reads. With several processes
    each reads its share and all get all sums; numbers do not depend on how many there are. Of a model that is spread
    over the processes (`live.together`) all of them read all texts, pass by pass.
    """

    def __init__(self, live: LiveModel, settings: Settings) -> None:
        self.settings, self._live = settings, live
        self.sharded = live.together is not None
        backend = hf.make(live)
        assert isinstance(backend, hf.HuggingFaceBackend)
        self._backend = backend
        self.texts = prepare(settings, live.tokenizer, live.add_bos_token, live.max_length)
        grouped = dist.is_available() and dist.is_initialized()
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
        with live.reading():
            self._check()

    def run(self, step: int) -> Evaluation:
        """Read all texts once. Raises `ScoringError`, in every process alike, where a number cannot be had."""
        start, found, problem = time.perf_counter(), dict[int, TrajectorySums](), ""
        try:
            with self._live.reading():
                found = self._sums()
        except Exception as error:
            if self.sharded and not isinstance(error, HesnrError):
                raise UnfinishedPass(
                    f"process {self.rank} failed inside a forward pass that all processes run together "
                    f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). The others wait for it, so the "
                    "run ends here. If memory ran out, give HESNRCallback a smaller max_length."
                ) from error
            problem = self._problem(error)
        answers = gather((found, problem, time.perf_counter() - start))
        problems = [text for _, text, _ in answers if text]
        if problems:
            raise ScoringError(problems[0])
        sums = {number: row for part, _, _ in reversed(answers) for number, row in part.items()}
        parts = [sums[number] for number in range(len(self.texts.items))]
        values = np.concatenate([part.values for part in parts])
        return Evaluation(step, max(seconds for _, _, seconds in answers), TrajectorySums(values, parts[0].names))

    def signature(self) -> dict[str, Any]:
        """Every choice behind the numbers; the weights change with each step and are left out."""
        run = {"backend": "hf", "in_training": True, "max_length": self._live.max_length}
        run |= {"sharded": True} if self.sharded else {}
        run |= {"autocast": str(self._live.mixed_precision_dtype), "architecture": type(self._live.model).__name__}
        items = [Item(text.key, 0.0, 1.0, text.cut) for text in self.texts.items]
        return signature(self.settings, self.settings.render, items, run)

    def _check(self) -> None:
        """Let the engine try its ways on this model, so that what cannot be read is known before the first step."""
        try:
            _ = self._backend.engine
            for _ in self._score(range(len(self.texts.items))):  # nothing is left to read: it only refuses what it must
                pass
        except HesnrError:
            raise
        except Exception as error:
            raise ScoringError(
                f"{type(self._live.model).__name__} cannot be read as a causal language model "
                f"({type(error).__name__}: {error})"
            ) from error

    def _sums(self) -> dict[int, TrajectorySums]:
        everything = set(range(len(self.texts.items)))
        others = set() if self.sharded else everything - self.texts.share(self.rank, self.processes)
        sums, problems = dict[int, TrajectorySums](), list[HesnrError]()
        for number, scores in self._score(others):
            try:
                sums[number] = self._sum(number, scores)
            except HesnrError as error:  # raised after the last pass, which other processes may be in
                problems.append(error)
        if problems:
            raise problems[0]
        return sums

    def _score(self, skipped: Collection[int]) -> Iterator[tuple[int, Scores]]:
        passages = [text.passage for text in self.texts.items]
        return self._backend.score(passages, self.settings.k, lambda tokens: None, skipped)

    def _sum(self, number: int, scores: Scores) -> TrajectorySums:
        name, _, targets, _ = self.texts.items[number].passage
        good = np.isfinite(scores.logprob) & np.isfinite(scores.topk_logprobs).all(axis=1)
        if not good.all():
            raise ScoringError(
                f"the model gave NaN or infinite values at token {int(targets[np.argmin(good)])} of trajectory "
                f"{name!r} ({int((~good).sum())} of {len(good)} scored tokens). Has the training diverged?"
            )
        k, n_bytes = self.settings.k, self.texts.items[number].n_bytes
        columns = TokenColumns.of(scores.logprob, scores.rank, scores.topk_logprobs, k, n_bytes)
        return TrajectorySums.of(columns, self.settings.epsilon, k)

    def _problem(self, error: Exception) -> str:
        if isinstance(error, HesnrError):
            return str(error)
        _log.warning("while reading a model in training", exc_info=error)
        return f"process {self.rank} failed with {type(error).__name__}: {error}"


def gather(own: Any) -> list[Any]:
    """`own` of every process, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, own)
    return answers


def numbers(found: Evaluation, settings: Settings, tokens_read: int) -> dict[str, float]:
    """Values, standard errors and speed; what is not defined, or over fewer than `min_tokens` tokens, is left out."""
    values: dict[str, float] = {}
    for name, metric in METRICS.items():
        items = _items(found, name)
        error = aggregate_error(metric, items, settings.resamples, settings.bootstrap_seed, settings.min_tokens)
        values |= _finite({name: aggregate(metric, items, settings.min_tokens), f"{name}_stderr": error})
    return {**values, "tokens_per_second": tokens_read / max(found.seconds, 1e-9)}


def change(before: Evaluation, now: Evaluation, settings: Settings) -> dict[str, float]:
    """HE-SNR now minus HE-SNR before, paired by trajectory, with its error and 95 % interval where they are defined."""
    if min(side.sums.column("he_tokens").sum() for side in (before, now)) < settings.min_tokens:
        return {}
    if len(now.sums) < 2:
        return _finite({"he_snr_change": _value(now) - _value(before)})
    sides = [side.sums.parts("he_snr") for side in (before, now)]
    found = paired(sides[0], sides[1], resamples=settings.resamples, seed=settings.bootstrap_seed)
    ends = {"stderr": found.stderr, "low": found.ci_low, "high": found.ci_high}
    return _finite({"he_snr_change": found.value} | {f"he_snr_change_{name}": end for name, end in ends.items()})


def _value(found: Evaluation) -> float:
    return aggregate(METRICS["he_snr"], _items(found, "he_snr"))


def _items(found: Evaluation, name: str) -> list[Item]:
    """In the order of the texts' keys, which is the order that an lm-eval run brings them into."""
    return [Item.of(f"{number:09d}", name, found.sums[[number]]) for number in range(len(found.sums))]


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, float) and math.isfinite(value)}
