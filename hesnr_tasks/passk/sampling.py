"""Sampled answers, each with a seed of its own, kept on disk as they come.

lm-eval sends one seed with all repeats of a request, so that a server that heeds it gives K equal answers, and caches
no sampled answer, so that a crash loses all. The request type `passk_samples` closes both. How a seed an answer reaches
the model is the backend's affair:

- hf: one batch at a time, each row with its own generator (hf_sampler.py). Batches are cut from all answers in a fixed
  order, done or not, so a run that goes on after a crash computes the same batches.
- API models: one request an answer, `num_concurrent` in flight.
- vllm: all requests at once; what its scheduler finishes is kept at that step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from tqdm import tqdm

from hesnr_tasks.bounded_io import parse_json
from hesnr_tasks.errors import DataError, HesnrError, ScoringError, SettingsError
from hesnr_tasks.tasks.score_cache import place_of_scores

__all__ = [
    "REQUEST_TYPE",
    "SEED_LIMIT",
    "Job",
    "KeptAnswers",
    "generate_samples",
    "identity",
    "place_of_answers",
    "seed_of",
]

REQUEST_TYPE = "passk_samples"
SEED_LIMIT = 1 << 31  # seeds are below this: servers take signed 32-bit numbers
_AUTO = 16  # rows at a time where lm-eval was to find out, which it does anew for every call
_log = logging.getLogger("lm_eval.hesnr_passk")  # below lm-eval's own logger, whose handler prints it


def identity(prompt: str, occurrence: int) -> str:
    """What makes a problem this one: its prompt, and which of several with the same prompt it is."""
    return hashlib.sha256(f"{occurrence}\n{prompt}".encode(errors="surrogatepass")).hexdigest()[:24]


def seed_of(base: int, problem: str, repeat: int) -> int:
    """The seed of a problem's answer number `repeat` (from 0): consecutive from a hash of base seed and problem.

    It depends on neither the number of answers nor the other problems, so a run with more of either has the same ones.
    """
    start = int.from_bytes(hashlib.sha256(f"{base}\n{problem}".encode()).digest()[:4], "big")
    return (start + repeat) % SEED_LIMIT


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to sample."""

    task: str
    version: str
    problem: str  # `identity` of the prompt
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


def generate_samples(lm: Any, requests: Sequence[Any], **ignored: Any) -> list[str]:
    """lm-eval's entry for our request type: an answer a request, in their order; a request is there `repeats` times."""
    times: Counter[int] = Counter()
    tasks: dict[str, list[tuple[int, Job]]] = defaultdict(list)
    for i, request in enumerate(requests):
        repeat = times[id(request)] % request.repeats  # beyond: padding of several processes
        times[id(request)] += 1
        tasks[request.job.task].append((i, replace(request.job, repeat=repeat)))
    answers: list[str] = [""] * len(requests)
    for numbered in tasks.values():
        texts = _answers([job for _, job in numbered], lm)
        for (i, _), text in zip(numbered, texts, strict=True):
            answers[i] = text
    return answers


LM.passk_samples = generate_samples  # evaluate() calls getattr(lm, request_type); no other type is touched


def _answers(jobs: Sequence[Job], lm: Any) -> list[str]:
    backend = _backend_of(lm)
    first, model = jobs[0], _describe(lm)
    settings = {
        "task": first.task,
        "version": first.version,
        "generation_kwargs": dict(first.kwargs),
        "seed": first.base_seed,
        "model": model,
    }
    stem = place_of_answers(first.folder, first.task, str(model.get("model", "model")), settings)
    kept = KeptAnswers(stem, settings, int(getattr(lm, "rank", 0))) if stem else None
    texts: dict[int, str] = {}
    try:
        if kept is not None:
            texts = {i: text for i, job in enumerate(jobs) if (text := kept.get(job.key)) is not None}
            _log.info("%s: %d of %d answers are in %s", first.task, len(texts), len(jobs), kept.path)
        with tqdm(total=len(jobs), initial=len(texts), desc="Sampling answers") as bar:

            def keep(some: Sequence[tuple[int, str]]) -> None:
                new = [(i, text) for i, text in some if i not in texts]
                if kept is not None:
                    kept.put([(jobs[i].key, jobs[i].seed, text) for i, text in new])
                texts.update(new)
                bar.update(len(new))

            if len(texts) < len(jobs):
                backend(lm, jobs, frozenset(texts), keep)
    finally:
        if kept is not None:
            kept.close()
    if len(texts) < len(jobs):
        raise ScoringError(f"{first.task}: the model gave {len(texts)} of {len(jobs)} answers")
    _warn_of_equals(jobs, texts)
    return [texts[i] for i in range(len(jobs))]


def _warn_of_equals(jobs: Sequence[Job], texts: Mapping[int, str]) -> None:
    """Where no two answers to any problem differ, nothing was sampled, whatever the settings say."""
    by_problem: dict[str, dict[int, str]] = defaultdict(dict)
    for i, job in enumerate(jobs):
        by_problem[job.problem][job.repeat] = texts[i]
    several = [answers for answers in by_problem.values() if len(answers) > 1]
    if several and all(len(set(answers.values())) == 1 for answers in several):
        _log.warning(
            "%s: all answers to each problem are equal, so every pass@k is pass@1. Does the model (or server) sample, "
            "and heed the seed it is sent?", jobs[0].task,
        )  # fmt: skip


# --- answers on disk --------------------------------------------------------------------------------------------------


class KeptAnswers:
    """The answers of one task under one set of settings, in SQLite: a crash costs what was in flight.

    Each process writes a file of its own and reads all of them. Every answer has a checksum; one that does not match is
    sampled again, and that is said. Answers of other settings are not mixed in (`SettingsError` names the setting).
    """

    def __init__(self, stem: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self.path = stem.with_name(f"{stem.name}.{rank}.sqlite")
        self.damaged = 0
        self._settings = json.loads(json.dumps(settings, sort_keys=True))
        self._answers: dict[str, str] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HesnrError(f"cannot write answers to {self.path} ({error.strerror})") from None
        with self._errors(self.path):
            self._database = sqlite3.connect(self.path, timeout=60)
            with self._database:
                self._database.execute("CREATE TABLE IF NOT EXISTS settings (text TEXT)")
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, seed INT, answer TEXT, checksum TEXT)"
                )
                if not self._database.execute("SELECT COUNT(*) FROM settings").fetchone()[0]:
                    self._database.execute("INSERT INTO settings VALUES (?)", (json.dumps(self._settings),))
        try:
            for path in sorted(stem.parent.glob(f"{stem.name}.*.sqlite")):
                if path.name[len(stem.name) + 1 : -len(".sqlite")].isdecimal():  # else: of a task called `<stem>.more`
                    self._read(path)
        except BaseException:
            self.close()
            raise
        if self.damaged:
            _log.warning("%s: %d kept answers are damaged (checksum) and are sampled again", stem, self.damaged)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """The answer kept under `key`, or None."""
        return self._answers.get(key)

    def put(self, answers: Sequence[tuple[str, int, str]]) -> None:
        """Keep (key, seed, answer); when this returns they are on disk."""
        encoded = [(key, seed, json.dumps(text)) for key, seed, text in answers]  # JSON: lone surrogates survive
        with self._errors(self.path), self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", [(*row, _checksum(*row)) for row in encoded]
            )
        self._answers |= {key: text for key, _, text in answers}

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _read(self, path: Path) -> None:
        with self._errors(path), contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
            database.text_factory = lambda text: text.decode(errors="replace")  # damage is the checksum's to find
            theirs = database.execute("SELECT text FROM settings").fetchone()
            rows = database.execute("SELECT key, seed, answer, checksum FROM answers").fetchall()
        try:
            changed = list(_changed("", parse_json(theirs[0]), self._settings)) if theirs else []
        except (ValueError, TypeError):
            raise DataError(f"{path}: its settings cannot be read; {_ADVICE}") from None
        if changed:
            raise SettingsError(
                f"{path} holds answers sampled with other settings ({'; '.join(changed[:4])}); mixing them would give "
                'a number of neither. Name another folder with "answers", or run with the settings of the file.'
            )
        for key, seed, answer, checksum in rows:
            if checksum == _checksum(key, seed, answer):
                self._answers.setdefault(key, json.loads(answer))
            else:
                self.damaged += 1

    @contextlib.contextmanager
    def _errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise HesnrError(
                f"cannot keep answers in {path} ({error}). Those before are safe; make room and start the same command "
                f"again: it goes on there. If the file is damaged, {_ADVICE}."
            ) from None
        except (sqlite3.DatabaseError, UnicodeError) as error:
            raise DataError(f"{path}: no readable file of kept answers ({error}); {_ADVICE}") from None


_ADVICE = 'remove the file, or name another folder with "answers"'


def _checksum(key: Any, seed: Any, answer: Any) -> str:
    return hashlib.sha256(f"{key}\n{seed}\n{answer}".encode(errors="surrogatepass")).hexdigest()


def _changed(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _changed(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif old != new:
        yield f"{name}: {old!r} there, {new!r} here"


def place_of_answers(setting: str | None, task: str, model: str, settings: Mapping[str, Any]) -> Path | None:
    """Where answers are kept (folder and beginning of the name); None: nowhere.

    A folder that the user names has one file a task, and refuses other settings. Next to lm-eval's --output_path the
    name carries a hash of the settings, so other settings begin another file.
    """
    short = re.sub(r"[^0-9A-Za-z._-]+", "-", task)
    if setting == "none":
        return None
    if setting:
        return Path(setting) / short
    place = place_of_scores(None)
    if place is None:
        return None
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^0-9A-Za-z._-]+", "-", model.rstrip("/").split("/")[-1])[:80]
    return place[0].parent / "answers" / f"{short}-{name}-{digest}"


# --- backends: (lm-eval's model, all jobs, which are done, keep) ------------------------------------------------------

Keep = Callable[[Sequence[tuple[int, str]]], None]
_Sampler = Callable[[Any, Sequence[Job], frozenset[int], Keep], None]


def _backend_of(lm: Any) -> _Sampler:
    """By the names of the model's classes, so that nothing uninstalled is imported."""
    names = [cls.__name__ for cls in type(lm).__mro__]
    for name, backend in (("HFLM", _huggingface), ("VLLM", _vllm), ("TemplateAPI", _api)):
        if name in names:
            return backend
    raise ScoringError(
        f"--model {names[0]}: it is not known how to give each of its answers a seed, without which Pass@K would be of "
        "equal answers, or of none that can be had again. Use hf, vllm, or an API model such as local-completions."
    )


def _describe(lm: Any) -> dict[str, Any]:
    """Whose answers they are: those of different descriptions are not mixed."""
    if any(cls.__name__ == "TemplateAPI" for cls in type(lm).__mro__):
        return {"backend": "api", "model": str(lm.model), "base_url": str(lm.base_url)}
    from hesnr_tasks.backends import backend_for

    return dict(backend_for(lm).describe())


def _huggingface(lm: Any, jobs: Sequence[Job], done: frozenset[int], keep: Keep) -> None:
    from transformers import LogitsProcessorList

    from hesnr_tasks.passk.hf_sampler import WARPERS, SeededSampler, sampling_of

    rows = lm.batch_size
    if not isinstance(rows, int):
        lm.batch_size_per_gpu = rows = _AUTO
        _log.info("--batch_size auto: %d answers at a time", rows)
    length = {str(job.context): len(lm.tok_encode(str(job.context))) for job in jobs}
    # as lm-eval sorts them within a call, so that rows and seeds go together
    order = sorted(range(len(jobs)), key=lambda i: (-length[str(jobs[i].context)], str(jobs[i].context)))
    shared = {name: value for name, value in jobs[0].kwargs.items() if name not in WARPERS}
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        if done.issuperset(batch):
            continue
        sampler = SeededSampler(sampling_of(jobs[0].kwargs, lm.model), [jobs[i].seed for i in batch])
        kwargs = {**shared, "do_sample": False, "temperature": 0.0, "logits_processor": LogitsProcessorList([sampler])}
        keep(list(zip(batch, _generated(lm, [jobs[i] for i in batch], [kwargs] * len(batch)), strict=True)))


def _vllm(lm: Any, jobs: Sequence[Job], done: frozenset[int], keep: Keep) -> None:
    wanted = [i for i in range(len(jobs)) if i not in done]
    kwargs = [{**jobs[i].kwargs, "seed": jobs[i].seed} for i in wanted]
    times = Counter(jobs[i].seed for i in wanted)  # two problems' ranges of seeds can meet
    by_seed = {jobs[i].seed: i for i in wanted if times[jobs[i].seed] == 1}
    with _kept_at_each_step(lm, by_seed, jobs[0].kwargs, keep):
        texts = _generated(lm, [jobs[i] for i in wanted], kwargs)
    keep(list(zip(wanted, texts, strict=True)))


@contextlib.contextmanager
def _kept_at_each_step(lm: Any, by_seed: Mapping[int, int], kwargs: Mapping[str, Any], keep: Keep) -> Iterator[None]:
    """Watches the engine that lm-eval drives: requests by their seed, answers at the step that finishes them.

    With replicas (data_parallel_size), whose engines run elsewhere, answers are kept when all are there.
    """
    from lm_eval.models.utils import postprocess_generated_text

    engine = getattr(getattr(lm, "model", None), "llm_engine", None)
    if engine is None or not hasattr(engine, "step") or not hasattr(engine, "add_request"):
        _log.info("answers are kept when all are there: this vLLM's engine cannot be watched")
        yield
        return
    add, step, numbers = engine.add_request, engine.step, dict[str, int]()
    eos = lm.tokenizer.decode(lm.eot_token_id) or getattr(lm.tokenizer, "eos_token", None)
    until = lm.modify_gen_kwargs(dict(kwargs), eos=eos, default_max_gen_toks=lm.max_gen_toks)[1]

    def watched_add(request_id: str, *args: Any, **named: Any) -> Any:
        seed = next((x.seed for x in (*args, *named.values()) if getattr(x, "seed", None) in by_seed), None)
        if seed is not None:
            numbers[str(request_id)] = by_seed[seed]
        return add(request_id, *args, **named)

    def watched_step(*args: Any, **named: Any) -> Any:
        outputs = step(*args, **named)
        finished = [output for output in outputs if output.finished and str(output.request_id) in numbers]
        texts = [postprocess_generated_text(one.outputs[0].text, until, lm.think_end_token) for one in finished]
        if finished:
            keep([(numbers[str(one.request_id)], text) for one, text in zip(finished, texts, strict=True)])
        return outputs

    engine.add_request, engine.step = watched_add, watched_step
    try:
        yield
    finally:
        engine.add_request, engine.step = add, step


def _api(lm: Any, jobs: Sequence[Job], done: frozenset[int], keep: Keep) -> None:
    with ThreadPoolExecutor(max(1, int(getattr(lm, "_concurrent", 1)))) as pool:
        waiting = {pool.submit(_ask, lm, job): i for i, job in enumerate(jobs) if i not in done}
        try:
            for future in as_completed(waiting):
                keep([(waiting[future], future.result())])
        finally:
            for future in waiting:
                future.cancel()


def _ask(lm: Any, job: Job) -> str:
    import requests
    from tenacity import Retrying, stop_after_attempt, wait_exponential

    kwargs = {**job.kwargs, "seed": job.seed}
    message = [job.context]
    if lm.tokenized_requests:  # as lm-eval does it: ids, cut on the left to leave room for the answer
        ids = lm.tok_encode([job.context], add_special_tokens=lm.add_bos_token)
        room = lm.max_length - int(kwargs.get("max_gen_toks", kwargs.get("max_tokens", lm._max_gen_toks)))
        message = [one[-room:] for one in ids]
    wait, stop = wait_exponential(multiplier=0.5, min=1, max=10), stop_after_attempt(lm.max_retries)
    try:
        reply = Retrying(stop=stop, wait=wait, reraise=True)(
            lm.model_call, messages=message, generate=True, gen_kwargs=kwargs
        )
    except requests.RequestException as error:
        raise ScoringError(
            f"{lm.base_url} gave no answer ({error}). Answers that came before are kept; mend the server and "
            "start the same command again."
        ) from error
    texts = lm.parse_generations(outputs=reply, contexts=[job.context])
    if not texts or texts[0] is None:
        _log.warning("%s: an answer without text (seed %d) counts as empty", job.task, job.seed)
        return ""
    return str(texts[0])


def _generated(lm: Any, jobs: Sequence[Job], kwargs: Sequence[Mapping[str, Any]]) -> list[str]:
    """lm-eval's own generation, without --use_cache, which would file a sampled answer under a greedy one's key."""
    requests = [
        Instance("generate_until", {}, (job.context, dict(some)), idx=i, task_name=job.task, doc_id=i)
        for i, (job, some) in enumerate(zip(jobs, kwargs, strict=True))
    ]
    hook = getattr(lm, "cache_hook", None)
    lm.cache_hook = CacheHook(None)
    try:
        return [str(text) for text in lm.generate_until(requests, disable_tqdm=True)]
    finally:
        lm.cache_hook = hook
