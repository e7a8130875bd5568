"""One evaluation of a model in memory: score the texts, share the work among processes, sum, and leave no trace.

`in_training` takes a model out of its Trainer; `Evaluator` scores the same texts with it again and again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from hesnr_tasks.backends import check_tokenizer, hf, refuse_non_finite, tokenise
from hesnr_tasks.backends.base import Backend, TokenSequence
from hesnr_tasks.backends.hf import LiveModel, is_a
from hesnr_tasks.errors import DataError, HesnrError, ScoringError, SettingsError, number_of
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.metrics import TokenColumns, TrajectorySums, measure, names_of, token_bytes
from hesnr_tasks.scores.schema import SequenceScores, TokenScores
from hesnr_tasks.stats import Estimate, paired
from hesnr_tasks.tasks.corpus import open_corpus
from hesnr_tasks.tasks.settings import TaskSettings, native_template, signature
from hesnr_tasks.trajectory.alignment import Encoder
from hesnr_tasks.trajectory.rendering import label_mask

_log = logging.getLogger("hesnr_tasks")

# --- the model in training --------------------------------------------------------------------------------------------


def in_training(model: Any, tokenizer: Any, args: Any, longest: int | None) -> LiveModel:
    """The model of a Trainer, wrapped or not, its tokenizer or processor, and the Trainer's arguments.

    Raises:
        ScoringError: a model that cannot be scored in training.
        SettingsError: no tokenizer.
    """
    model = unwrap(model, getattr(args, "parallelism_config", None))
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if not callable(inner) or not hasattr(inner, "get_vocab"):
        raise SettingsError(
            "HESNRCallback found no tokenizer: give the Trainer processing_class=tokenizer, or the callback "
            f"tokenizer=… (processing_class is {type(tokenizer).__name__})."
        )
    precision = torch.bfloat16 if getattr(args, "bf16", False) else None
    precision = torch.float16 if getattr(args, "fp16", False) and not precision else precision
    precision = None if getattr(args, "deepspeed", None) else precision  # DeepSpeed casts the weights instead
    live = LiveModel(model, inner, precision, longest)
    if is_sharded(model):
        live.together, live.forward_device = gather, args.device
    return live


def unwrap(model: Any, parallelism: Any = None) -> torch.nn.Module:
    """The model inside DistributedDataParallel, DataParallel, DeepSpeed's engine, torch.compile.

    Raises:
        ScoringError: a model that cannot be scored; `parallelism` is the Trainer's `parallelism_config`.
    """
    reason = next(_refusals(model, parallelism), "")
    if reason:
        instead = "Evaluate saved checkpoints with lm_eval --tasks hesnr_swe instead."
        raise ScoringError(f"HESNRCallback cannot read this model: {reason}. {instead}")
    wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    while hasattr(model, "_orig_mod") or isinstance(model, wrappers) or is_a(model, "DeepSpeedEngine"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def _refusals(model: Any, parallelism: Any) -> Iterator[str]:
    if any(is_a(module, "FullyShardedDataParallel") for module in model.modules()):
        yield "it is sharded by FSDP 1, which PyTorch has replaced; set fsdp_version: 2 in fsdp_config"
    split, processes = tensor_parallel_size(model), dist.get_world_size() if _grouped() else 1
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "placements") and split == 1 and not _has_fsdp2(model):
            yield f"{name} is spread over processes (a DTensor), but neither by FSDP2 nor by transformers' tp_plan"
        if parameter.device.type == "meta":
            yield f"{name} has no data here (device meta)"
    if split > 1 and (split != processes or _has_fsdp2(model)):
        yield (
            f"it is split by tensor parallelism over {split} of {processes} processes; only tensor parallelism over "
            "all processes, with no other parallelism beside it, is supported"
        )
    for kind in ("cp", "sp"):
        if getattr(parallelism, f"{kind}_enabled", False):
            yield f"parallelism_config has {kind}_enabled"


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether FSDP2, ZeRO stage 3 or tensor parallelism has spread `model` over processes: each holds a part of it.

    All gather parameters or activations module by module in the forward pass of the model itself, which all processes
    must run.
    """
    zero3 = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    return zero3 or _has_fsdp2(model) or tensor_parallel_size(model) > 1


def tensor_parallel_size(model: torch.nn.Module) -> int:
    """Over how many processes transformers' `tp_plan` has split the weights of `model`; 1: it has not."""
    return max(int(getattr(module, "_tp_size", None) or 1) for module in model.modules())


def _has_fsdp2(model: torch.nn.Module) -> bool:
    return any(is_a(module, "FSDPModule") for module in model.modules())


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


# --- the texts --------------------------------------------------------------------------------------------------------


class EvaluationTexts(NamedTuple):
    """The texts in the order of their keys, as a run of lm-eval sorts them."""

    items: tuple[TokenScores, ...]  # their tokens, without scores
    sequences: tuple[TokenSequence, ...]
    n_bytes: tuple[npt.NDArray[np.float64], ...]  # of each scored token
    n_tokens: int  # of the forward passes of one evaluation
    n_scored: int
    share_scored: float  # of the tokens that would count

    def assigned(self, rank: int, processes: int) -> set[int]:
        """Indices of the texts of one process: longest first, each to the process with the fewest tokens so far."""
        lengths = [len(sequence.ids) for sequence in self.sequences]
        loads, shares = [0] * processes, [set[int]() for _ in range(processes)]
        for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            least = loads.index(min(loads))
            loads[least] += lengths[index]
            shares[least].add(index)
        return shares[rank]


def prepare(settings: TaskSettings, backend: Backend) -> EvaluationTexts:
    """Load, render, label and tokenise the texts; `HesnrError` where nothing can be scored."""
    corpus, encoder = open_corpus(settings), Encoder(backend.tokenizer, backend.bos)
    mask = label_mask(settings.kinds, settings.filters, tuple(FILTERS))
    native = native_template(backend.tokenizer, settings) if settings.render == "native" else None
    texts: list[tuple[TokenScores, TokenSequence, npt.NDArray[np.float64]]] = []
    losses, passed = [], []
    for index in range(len(corpus)):
        key, name = corpus.text(index, settings.render, native), corpus.documents[index].id
        request = corpus.request(name, key, mask=mask, k=settings.k, overflow=settings.overflow)
        rendered, encoded, tokens = tokenise(request, encoder, backend.max_length)
        sequence = TokenSequence.of(request, encoded.ids, tokens.position, backend.max_length)
        texts.append((tokens, sequence, token_bytes(rendered.text, tokens.char_start, tokens.char_end)))
        losses.append((request, encoded.lost, len(tokens.labels_cut)))
        passed += [rendered.passed] if rendered.passed else []
    if native and (dropped := native.dropped_text(passed)):
        _log.warning("%s", dropped)
    check_tokenizer(losses, backend)
    wanted = sum(len(tokens.position) + len(tokens.labels_cut) for tokens, *_ in texts)
    kept = [text for text in texts if settings.overflow != "skip" or not len(text[0].labels_cut)]
    kept.sort(key=lambda text: text[0].key)
    if not any(len(tokens.position) for tokens, *_ in kept):
        raise DataError(
            f"no token of the {len(texts)} trajectories counts: kinds and filters leave nothing, or all of it lies "
            f"beyond the {backend.max_length} tokens that are read"
        )
    if len(kept) < len(texts):
        total = number_of(len(texts), "trajectory")
        _log.warning("longer than the context and left out: %d of %s", len(texts) - len(kept), total)
    items, sequences, n_bytes = zip(*kept, strict=True)
    scored = sum(len(tokens.position) for tokens in items)
    return EvaluationTexts(items, sequences, n_bytes, sum(len(s.ids) for s in sequences), scored, scored / wanted)


# --- evaluations ------------------------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """The result of one evaluation."""

    step: int
    seconds: float  # in forward passes, by the slowest process
    sums: TrajectorySums  # (T, statistics), in the order of their keys


class UnfinishedPassError(ScoringError):
    """A forward pass of all processes that only some may have finished: the others wait, so this process must end."""


class Evaluator:
    """Scores the same texts again and again, with the engine of `lm_eval --model hf`.

    The texts are tokenised and the engine checks itself at construction; `run` only scores. With several processes
    each scores its share and all get all sums; numbers do not depend on how many there are. Of a model that is spread
    over the processes (`live.together`) all of them run all forward passes.
    """

    def __init__(self, live: LiveModel, settings: TaskSettings) -> None:
        self.settings, self.live = settings, live
        self.sharded = live.together is not None
        backend = hf.make(live)
        assert isinstance(backend, hf.HuggingFaceBackend)
        self._backend = backend
        self.texts = prepare(settings, backend)
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if _grouped() else (0, 1)
        try:  # the self-check: what cannot be scored is an error before the first step
            with live.evaluating():
                _ = self._backend.engine
                for _ in self._score(range(len(self.texts.items))):  # all skipped: it only refuses what it must
                    pass
        except HesnrError:
            raise
        except Exception as error:
            raise ScoringError(
                f"{type(live.model).__name__} cannot be read as a causal language model "
                f"({type(error).__name__}: {error})"
            ) from error

    def run(self, step: int) -> Evaluation:
        """Score all texts; `step`, where the training is, stands in the result.

        Raises:
            ScoringError: In every process alike, where a number cannot be had.
            UnfinishedPassError: This process failed in a forward pass that the others wait in.
        """
        start, own, problem = time.perf_counter(), dict[int, TrajectorySums](), ""
        try:
            with self.live.evaluating():
                own = self.own_sums()
        except HesnrError as error:
            problem = str(error)
        except Exception as error:
            if self.sharded:
                raise UnfinishedPassError(
                    f"process {self.rank} failed inside a forward pass that all processes run together "
                    f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). The others wait for it, so the "
                    "run ends here. If memory ran out, give HESNRCallback a smaller max_length."
                ) from error
            _log.warning("while scoring a model in training", exc_info=error)
            problem = f"process {self.rank} failed with {type(error).__name__}: {error}"
        answers = gather((own, problem, time.perf_counter() - start))
        if problem := next((text for _, text, _ in answers if text), ""):
            raise ScoringError(problem)
        by_index = {index: sums for part, _, _ in reversed(answers) for index, sums in part.items()}
        parts = [by_index[index] for index in range(len(self.texts.items))]
        values = np.concatenate([part.values for part in parts])
        return Evaluation(step, max(seconds for _, _, seconds in answers), TrajectorySums(values, parts[0].names))

    def own_sums(self) -> dict[int, TrajectorySums]:
        """The sums (T = 1) of each text that this process scores, by index."""
        skipped = set(range(len(self.texts.items))) - self.texts.assigned(self.rank, self.processes)
        k, epsilon, problem = self.settings.k, self.settings.epsilon, ""
        sums = dict[int, TrajectorySums]()
        for index, scores in self._score(set() if self.sharded else skipped):
            try:
                refuse_non_finite(self.texts.sequences[index], scores)
            except ScoringError as error:  # raised after the last pass, which other processes may be in
                problem = problem or str(error)
                continue
            columns = TokenColumns.of(scores.logprob, scores.rank, scores.topk_logprobs, k, self.texts.n_bytes[index])
            sums[index] = TrajectorySums.of(columns, epsilon, k)
        if problem:
            raise ScoringError(problem)
        return sums

    def _score(self, skipped: Collection[int]) -> Iterator[tuple[int, SequenceScores]]:
        return self._backend.score(self.texts.sequences, self.settings.k, lambda _: None, skipped)

    def signature(self) -> dict[str, Any]:
        """Every choice behind the numbers; the weights change with each step and are left out."""
        run = {"backend": "hf", "in_training": True, "max_length": self.live.max_length}
        run |= {"sharded": True} if self.sharded else {}
        run |= {"autocast": str(self.live.mixed_precision_dtype), "architecture": type(self.live.model).__name__}
        texts = [(tokens.key, len(tokens.labels_cut)) for tokens in self.texts.items]
        return signature(self.settings, self.settings.render, texts, run)


def gather(own: Any) -> list[Any]:
    """`own` of every process, in the order of their ranks."""
    if not _grouped():
        return [own]
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, own)
    return answers


def metrics_of(evaluation: Evaluation, settings: TaskSettings) -> dict[str, float]:
    """Values and standard errors by name; what is undefined, or over fewer than `min_tokens` tokens, is left out."""
    values: dict[str, float] = {}
    for name, estimate in _estimates(evaluation, settings).items():
        values |= {name: estimate.value, f"{name}_stderr": estimate.stderr}
    return _finite(values)


def _estimates(evaluation: Evaluation, settings: TaskSettings) -> dict[str, Estimate]:
    """Of the texts in the order of their keys, which is the order that an lm-eval run brings them into."""
    sums, options = evaluation.sums, {"resamples": settings.resamples, "seed": settings.bootstrap_seed}
    once, floor = np.ones(len(sums), np.int64), settings.min_tokens
    return measure(sums[None], once, names_of(), min_tokens=floor, **options)[0]


def he_snr_change(before: Evaluation, after: Evaluation, settings: TaskSettings) -> dict[str, float]:
    """HE-SNR after minus before, two evaluations of the same texts, paired by trajectory.

    Returns:
        `he_snr_change`, with `_stderr` and the 95 % interval `_low`, `_high` where they are defined; empty for fewer
        than `min_tokens` high-entropy tokens on either side.
    """
    if min(side.sums.column("he_tokens").sum() for side in (before, after)) < settings.min_tokens:
        return {}
    if len(after.sums) < 2:
        values = [_estimates(side, settings)["he_snr"].value for side in (before, after)]
        return _finite({"he_snr_change": values[1] - values[0]})
    parts = [side.sums.parts("he_snr") for side in (before, after)]
    change = paired(parts[0], parts[1], resamples=settings.resamples, seed=settings.bootstrap_seed)
    ends = {"_stderr": change.stderr, "_low": change.ci_low, "_high": change.ci_high}
    return _finite({"he_snr_change": change.value} | {f"he_snr_change{name}": end for name, end in ends.items()})


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, float) and math.isfinite(value)}
