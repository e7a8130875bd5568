"""Sampled answers for lm-eval, each with a seed of its own, stored on disk as they finish.

lm-eval sends one seed with all repeats of a request, so that a server that heeds it gives K equal answers, and caches
no sampled answer, so that a crash loses all. The request type `passk_samples` closes both. How the seed reaches the
model depends on the backend:

- hf: one batch at a time, each row with its own generator. Batches are cut from all answers in a fixed order, done or
  not, so a run that resumes after a crash computes the same batches.
- API models: one request an answer, `num_concurrent` in flight.
- vllm: all requests at once; what its scheduler finishes is stored at that step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from tqdm import tqdm

from hesnr_tasks.errors import ScoringError, SettingsError
from hesnr_tasks.files.atomic import Journal
from hesnr_tasks.lm_eval_compat import attach_request_type, exit_on_command_line, running_evaluation
from hesnr_tasks.scores.store import scores_dir

REQUEST_TYPE = "passk_samples"
SEED_LIMIT = 1 << 31  # seeds are below this: servers take signed 32-bit numbers
_AUTO_BATCH = 16  # rows at a time where lm-eval was to find out, which it does anew for every call
_log = logging.getLogger("lm_eval.hesnr_passk")  # below lm-eval's own logger, whose handler prints it


def problem_id(prompt: str, occurrence: int) -> str:
    """What makes a problem this one: its prompt, and which of several with the same prompt it is."""
    return hashlib.sha256(f"{occurrence}\n{prompt}".encode(errors="surrogatepass")).hexdigest()[:24]


def seed_of(base: int, problem: str, repeat: int) -> int:
    """The seed of one answer, from 0 below `SEED_LIMIT`: consecutive from a hash of base seed and `problem_id`.

    It depends on neither the number of answers nor the other problems, so a run with more of either has the same
    ones.
    """
    start = int.from_bytes(hashlib.sha256(f"{base}\n{problem}".encode()).digest()[:4], "big")
    return (start + repeat) % SEED_LIMIT


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One answer to sample."""

    task: str
    version: str
    problem: str  # `problem_id`
    context: Any  # the prompt: text, or lm-eval's wrapped chat messages
    kwargs: Mapping[str, Any]  # without a seed
    base_seed: int
    folder: str | None  # the setting "answers"
    repeat: int = 0

    @property
    def seed(self) -> int:
        """The seed of this answer."""
        return seed_of(self.base_seed, self.problem, self.repeat)

    @property
    def key(self) -> str:
        """Names the answer within its task and settings."""
        return f"{self.problem}:{self.repeat}"


@exit_on_command_line()
def generate_samples(lm: Any, requests: Sequence[Any], **ignored: Any) -> list[str]:
    """lm-eval's entry for our request type: an answer a request, each of which is there `repeats` times."""
    repeats: Counter[int] = Counter()
    tasks: dict[str, list[tuple[int, SampleRequest]]] = defaultdict(list)
    for i, request in enumerate(requests):
        repeat = repeats[id(request)] % request.repeats  # beyond: padding of several processes
        repeats[id(request)] += 1
        tasks[request.sample.task].append((i, replace(request.sample, repeat=repeat)))
    answers: list[str] = [""] * len(requests)
    for numbered in tasks.values():
        texts = _sample_task([sample for _, sample in numbered], lm)
        for (i, _), text in zip(numbered, texts, strict=True):
            answers[i] = text
    return answers


attach_request_type(REQUEST_TYPE, generate_samples)


def _sample_task(samples: Sequence[SampleRequest], lm: Any) -> list[str]:
    names = {cls.__name__ for cls in type(lm).__mro__}  # by name, so that nothing uninstalled is imported
    backend = next((generate for name, generate in _BACKENDS.items() if name in names), None)
    if backend is None:
        raise ScoringError(
            f"--model {type(lm).__name__}: it is not known how to give each of its answers a seed, without which "
            "Pass@K would be of equal answers, or of none that can be had again. Use hf, vllm, or an API model such as "
            "local-completions."
        )
    if backend is _api:
        model = {"backend": "api", "model": str(lm.model), "base_url": str(lm.base_url)}
    else:
        from hesnr_tasks.backends import backend_for

        model = dict(backend_for(lm).describe())
    first = samples[0]
    settings: dict[str, Any] = {"task": first.task, "version": first.version, "generation_kwargs": dict(first.kwargs)}
    settings |= {"seed": first.base_seed, "model": model}
    stem = answers_stem(first.folder, first.task, str(model.get("model", "model")), settings)
    store = AnswerStore(stem, int(getattr(lm, "rank", 0))) if stem else None
    texts: dict[int, str] = {}
    with contextlib.closing(store) if store else contextlib.nullcontext():
        if store:
            texts = {i: text for i, sample in enumerate(samples) if (text := store.get(sample.key)) is not None}
            _log.info("%s: %d of %d answers are in %s", first.task, len(texts), len(samples), store.path)
        with tqdm(total=len(samples), initial=len(texts), desc="Sampling answers") as bar:

            def save(answers: Sequence[tuple[int, str]]) -> None:
                new = [(i, text) for i, text in answers if i not in texts]
                if store:
                    store.put([(samples[i].key, samples[i].seed, text) for i, text in new])
                texts.update(new)
                bar.update(len(new))

            if len(texts) < len(samples):
                backend(lm, samples, frozenset(texts), save)
    if len(texts) < len(samples):
        raise ScoringError(f"{first.task}: the model gave {len(texts)} of {len(samples)} answers")
    distinct: dict[str, set[str]] = defaultdict(set)
    for i, sample in enumerate(samples):
        distinct[sample.problem].add(texts[i])
    counts = Counter(sample.problem for sample in samples)
    if max(counts.values()) > 1 and all(len(distinct[problem]) == 1 for problem, n in counts.items() if n > 1):
        _log.warning(
            "%s: all answers to each problem are equal, so every pass@k is pass@1. Does the model (or server) sample, "
            "and heed the seed it is sent?", first.task,
        )  # fmt: skip
    return [texts[i] for i in range(len(samples))]


# --- answers on disk --------------------------------------------------------------------------------------------------


class AnswerStore:
    """The answers of one task under one set of settings, in journals: a crash costs what was in flight.

    Each process writes a file of its own and reads all of them. An answer that the disk damaged is sampled again, and a
    warning counts such.
    """

    def __init__(self, stem: Path, rank: int = 0) -> None:
        self._journal = Journal(stem.with_name(f"{stem.name}.{rank}.jsonl"))
        self.path, damaged = self._journal.path, self._journal.damaged
        self._answers: dict[str, Any] = {}  # key → (seed, text)
        try:
            for path in sorted(stem.parent.glob(f"{stem.name}.*.jsonl")):
                answers, lost, _ = Journal.read(path)
                self._answers |= answers
                damaged += lost
        except BaseException:
            self.close()
            raise
        if damaged:
            _log.warning("%s: %d kept answers are damaged (checksum) and are sampled again", stem, damaged)

    def get(self, key: str) -> str | None:
        """The answer under `key`, or None."""
        return self._answers[key][1] if key in self._answers else None

    def put(self, answers: Sequence[tuple[str, int, str]]) -> None:
        """Store (key, seed, answer); when this returns they are on disk."""
        self._journal.put({key: (seed, text) for key, seed, text in answers})

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


def answers_stem(setting: str | None, task: str, model: str, settings: Mapping[str, Any]) -> Path | None:
    """Where answers are stored: folder and beginning of the name; None: nowhere.

    `setting` is a folder, "none", or None: next to lm-eval's --output_path. The name carries a hash of `settings`, all
    that an answer depends on, so that answers of others are never mixed in: they begin another file.
    """
    place = scores_dir(None, running_evaluation().output_path)
    folder = Path(setting) if setting else place and place[0].parent / "answers"
    if setting == "none" or not folder:
        return None
    short, short_model = (re.sub(r"[^0-9A-Za-z._-]+", "-", name) for name in (task, model.rstrip("/").split("/")[-1]))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"{short}-{short_model[:80]}-{digest}"


# --- backends: (lm-eval's model, all samples, which are done, save) ---------------------------------------------------

SaveAnswers = Callable[[Sequence[tuple[int, str]]], None]

_WARPERS: Mapping[str, tuple[str, tuple[Any, ...]]] = {  # class in transformers, values without effect
    "temperature": ("TemperatureLogitsWarper", (1,)),  # in the order in which `generate` applies them
    "top_k": ("TopKLogitsWarper", (0, -1)),
    "top_p": ("TopPLogitsWarper", (1,)),
    "min_p": ("MinPLogitsWarper", (0,)),
    "typical_p": ("TypicalLogitsWarper", (1,)),
    "epsilon_cutoff": ("EpsilonLogitsWarper", (0,)),
    "eta_cutoff": ("EtaLogitsWarper", (0,)),
}
_REFUSED = ("num_beams", "num_return_sequences", "top_h", "penalty_alpha", "assistant_model")


def sampling_arguments(kwargs: Mapping[str, Any], model: Any) -> dict[str, float]:
    """Temperature, top_p and the like, but for values without effect; the model's own fill in what `kwargs` leave open.

    Raises:
        SettingsError: For ways of generating in which rows cannot have generators of their own.
    """
    for name in _REFUSED:
        if kwargs.get(name) not in (None, 1):
            raise SettingsError(f"generation_kwargs: {name} does not go with Pass@K's seeds; leave it out")
    config = getattr(model, "generation_config", None)
    own = config.to_diff_dict() if config is not None else {}
    values = {name: kwargs.get(name, own.get(name)) for name in _WARPERS}
    return {name: value for name, value in values.items() if value is not None and value not in _WARPERS[name][1]}


class SeededSampler:
    """A logits processor that leaves one token of every row's scores (rows, vocabulary), drawn by the row's generator.

    `generate` samples all rows of a batch with one generator, so an answer would depend on what it was batched with.
    With this as the last processor it runs greedily and takes the one token that is left.
    """

    def __init__(self, arguments: Mapping[str, float], seeds: Sequence[int]) -> None:
        import transformers

        self._warpers = [getattr(transformers, _WARPERS[name][0])(value) for name, value in arguments.items()]
        self._generators = [random.Random(seed) for seed in seeds]

    def __deepcopy__(self, memo: Any) -> SeededSampler:
        """Itself: lm-eval copies generation arguments, and a copy would draw the same again."""
        return self

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """See the class; `ScoringError` where the batch is not the one the seeds are for."""
        import torch

        if len(scores) != len(self._generators):
            raise ScoringError(f"the model was given {len(scores)} rows, and there are {len(self._generators)} seeds")
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        summed = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        uniform = [generator.random() for generator in self._generators]
        target = torch.tensor(uniform, dtype=torch.float64, device=scores.device) * summed[:, -1]
        # right=True: the first token whose sum exceeds the target, hence one with a probability above 0
        token = torch.searchsorted(summed, target[:, None], right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -float("inf")).scatter_(1, token, 0.0)


def _huggingface(lm: Any, samples: Sequence[SampleRequest], done: frozenset[int], save: SaveAnswers) -> None:
    from transformers import LogitsProcessorList

    rows = lm.batch_size
    if not isinstance(rows, int):
        lm.batch_size_per_gpu = rows = _AUTO_BATCH
        _log.info("--batch_size auto: %d answers at a time", rows)
    length = {str(sample.context): len(lm.tok_encode(str(sample.context))) for sample in samples}
    # as lm-eval sorts them within a call, so that rows and seeds go together
    order = sorted(range(len(samples)), key=lambda i: (-length[str(samples[i].context)], str(samples[i].context)))
    shared = {name: value for name, value in samples[0].kwargs.items() if name not in _WARPERS}
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        if not done.issuperset(batch):
            sampler: Any = SeededSampler(
                sampling_arguments(samples[0].kwargs, lm.model), [samples[i].seed for i in batch]
            )
            greedy = {"do_sample": False, "temperature": 0.0, "logits_processor": LogitsProcessorList([sampler])}
            texts = _generated(lm, [samples[i] for i in batch], [shared | greedy] * len(batch))
            save(list(zip(batch, texts, strict=True)))


def _vllm(lm: Any, samples: Sequence[SampleRequest], done: frozenset[int], save: SaveAnswers) -> None:
    """Watches the engine that lm-eval drives: requests by their seed, answers at the step that finishes them.

    With replicas (data_parallel_size), whose engines run elsewhere, answers are kept when all are there.
    """
    from lm_eval.models.utils import postprocess_generated_text

    waiting = [i for i in range(len(samples)) if i not in done]
    kwargs = [{**samples[i].kwargs, "seed": samples[i].seed} for i in waiting]
    times = Counter(samples[i].seed for i in waiting)  # two problems' ranges of seeds can meet
    by_seed = {samples[i].seed: i for i in waiting if times[samples[i].seed] == 1}
    engine = getattr(getattr(lm, "model", None), "llm_engine", None)
    if engine is None or not hasattr(engine, "step") or not hasattr(engine, "add_request"):
        _log.info("answers are kept when all are there: this vLLM's engine cannot be watched")
        save(list(zip(waiting, _generated(lm, [samples[i] for i in waiting], kwargs), strict=True)))
        return
    add, step, numbers = engine.add_request, engine.step, dict[str, int]()
    eos = lm.tokenizer.decode(lm.eot_token_id) or getattr(lm.tokenizer, "eos_token", None)
    until = lm.modify_gen_kwargs(dict(samples[0].kwargs), eos=eos, default_max_gen_toks=lm.max_gen_toks)[1]

    def watched_add(request_id: str, *args: Any, **named: Any) -> Any:
        seed = next((x.seed for x in (*args, *named.values()) if getattr(x, "seed", None) in by_seed), None)
        if seed is not None:
            numbers[str(request_id)] = by_seed[seed]
        return add(request_id, *args, **named)

    def watched_step(*args: Any, **named: Any) -> Any:
        outputs = step(*args, **named)
        finished = [output for output in outputs if output.finished and str(output.request_id) in numbers]
        texts = [postprocess_generated_text(output.outputs[0].text, until, lm.think_end_token) for output in finished]
        if finished:
            save([(numbers[str(output.request_id)], text) for output, text in zip(finished, texts, strict=True)])
        return outputs

    engine.add_request, engine.step = watched_add, watched_step
    try:
        all_texts = _generated(lm, [samples[i] for i in waiting], kwargs)
    finally:
        engine.add_request, engine.step = add, step
    save(list(zip(waiting, all_texts, strict=True)))


def _api(lm: Any, samples: Sequence[SampleRequest], done: frozenset[int], save: SaveAnswers) -> None:
    with ThreadPoolExecutor(max(1, int(getattr(lm, "_concurrent", 1)))) as pool:
        waiting = {pool.submit(_request, lm, sample): i for i, sample in enumerate(samples) if i not in done}
        pending = set(waiting)
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                save([(waiting[future], future.result()) for future in finished if not future.exception()])
                for future in finished:
                    future.result()
        finally:
            for future in waiting:
                future.cancel()


def _request(lm: Any, sample: SampleRequest) -> str:
    import requests
    from tenacity import Retrying, stop_after_attempt, wait_exponential

    kwargs = {**sample.kwargs, "seed": sample.seed}
    messages = [sample.context]
    if lm.tokenized_requests:  # as lm-eval does it: ids, truncated on the left to leave room for the answer
        room = lm.max_length - int(kwargs.get("max_gen_toks", kwargs.get("max_tokens", lm._max_gen_toks)))
        messages = [ids[-room:] for ids in lm.tok_encode([sample.context], add_special_tokens=lm.add_bos_token)]
    wait, stop = wait_exponential(multiplier=0.5, min=1, max=10), stop_after_attempt(lm.max_retries)
    try:
        reply = Retrying(stop=stop, wait=wait, reraise=True)(
            lm.model_call, messages=messages, generate=True, gen_kwargs=kwargs
        )
    except requests.RequestException as error:
        raise ScoringError(
            f"{lm.base_url} gave no answer ({error}). Answers that came before are kept; mend the server and "
            "start the same command again."
        ) from error
    texts = lm.parse_generations(outputs=reply, contexts=[sample.context])
    if not texts or texts[0] is None:
        _log.warning("%s: an answer without text (seed %d) counts as empty", sample.task, sample.seed)
        return ""
    return str(texts[0])


_BACKENDS = {"HFLM": _huggingface, "VLLM": _vllm, "TemplateAPI": _api}  # by lm-eval's classes


def _generated(lm: Any, samples: Sequence[SampleRequest], kwargs: Sequence[Mapping[str, Any]]) -> list[str]:
    """lm-eval's own generation, without --use_cache, which would file a sampled answer under a greedy one's key."""
    requests = [
        Instance("generate_until", {}, (sample.context, dict(arguments)), idx=i, task_name=sample.task, doc_id=i)
        for i, (sample, arguments) in enumerate(zip(samples, kwargs, strict=True))
    ]
    hook = getattr(lm, "cache_hook", None)
    lm.cache_hook = CacheHook(None)
    try:
        return [str(text) for text in lm.generate_until(requests, disable_tqdm=True)]
    finally:
        lm.cache_hook = hook
