"""Scoring through a completions server (`--model local-completions`): vLLM's, or any that returns log-probabilities of
the prompt.

A trajectory is one request, its token ids the prompt; several are in flight. One short request at the start finds out
which form of answer the server has (api_answers.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from hesnr_tasks.backends.api_answers import FORMS, Form, TokenTexts
from hesnr_tasks.backends.api_http import Refused, Server
from hesnr_tasks.backends.prompt_logprobs import Rows, to_scores, vocabulary_bound
from hesnr_tasks.backends.types import Backend, Passage, Scores
from hesnr_tasks.errors import ScoringError

__all__ = ["make"]

_UNSET_MAX_LENGTH = 2047  # lm-eval's default of 2048 less the token that it leaves for the answer
_PROBE = 16  # tokens
_TOLD = ("root", "parent", "meta")  # what servers say of a model beside its name; times and permissions change
_CANARY = (
    "The cache was stale, so the test failed twice before 1024 retries passed.\n\ndef merge(left, right):\n"
    "    while left and right:\n        yield (left if left[0] <= right[0] else right).pop(0)\n"
)
_CANARY_TOKENS, _CANARY_K = 64, 5
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError)
_log = logging.getLogger("hesnr_tasks")


def make(lm: Any) -> Backend:
    """The backend for lm-eval's `LocalCompletionsAPI`.

    Raises `ScoringError` for other APIs (chat endpoints return no log-probabilities of given text), without a Hugging
    Face tokenizer, and where no server answers.
    """
    names = [cls.__name__ for cls in type(lm).__mro__]
    if "LocalCompletionsAPI" not in names or any("Chat" in name for name in names):
        raise ScoringError(
            f"{names[0]} cannot score given text: chat endpoints return log-probabilities of what they generate, not "
            "of what they are given. Use --model local-completions with the server's /v1/completions address, or hf or "
            "vllm."
        )
    _refuse_other_tokenizers(lm)
    return _API(lm)


class _API(Backend):
    def __init__(self, lm: Any) -> None:
        self._lm = lm
        self._server = Server(lm)
        self._served = self._server.models()
        self._card = next((card for card in self._served if card.get("id") == lm.model), {})
        self._max_length = _max_length(int(lm.max_length), self._card.get("max_model_len"))
        self._texts = TokenTexts(lm.tokenizer)
        self._vocabulary = vocabulary_bound(lm.tokenizer)

    @property
    def tokenizer(self) -> Any:
        return self._lm.tokenizer

    @property
    def bos(self) -> bool | None:
        """True where asked for. lm-eval's default here is False, unlike elsewhere, so False means "not said"."""
        return True if self._lm.add_bos_token else None

    @property
    def max_length(self) -> int:
        """What `max_length` says less the token that servers always generate; unset: what the server can read."""
        return self._max_length

    def describe(self) -> dict[str, Any]:
        return {
            "backend": "api",
            "model": str(self._lm.model),
            "engine": self._card.get("owned_by"),
            **{name: self._card[name] for name in _TOLD if self._card.get(name) is not None},
        }

    def canary(self) -> list[float] | None:
        """One tiny request: a server cannot prove its weights, but others would score this text otherwise."""
        ids = np.asarray(self.tokenizer(_CANARY, add_special_tokens=False)["input_ids"], dtype=np.int32)
        ids = ids[: min(_CANARY_TOKENS, self.max_length)]
        passage = Passage("a first short request", ids, np.arange(1, len(ids), dtype=np.int32))
        return [round(float(value), 6) for value in self._first_answer(passage, _CANARY_K)[1].logprob]

    def score(
        self, passages: Sequence[Passage], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
    ) -> Iterator[tuple[int, Scores]]:
        order = sorted(set(range(len(passages))) - set(skip), key=lambda i: -len(passages[i].ids))
        if not order:
            return
        form = self._find_form(passages[order[-1]], k)
        self._server.stop.clear()
        try:
            for index, scores in _in_parallel(order, lambda i: self._read(form, passages[i], k), self._lm._concurrent):
                yield index, scores
                progress(len(passages[index].ids))
        finally:
            self._server.stop.set()

    def _read(self, form: Form, passage: Passage, k: int) -> Scores:
        what = f"trajectory {passage.name!r} ({len(passage.ids)} tokens)"
        try:
            rows = self._ask(form, passage, k, what)
        except Refused as error:
            raise ScoringError(
                f"{self._server} refused {what}: {error}. If it is too long for the server, set max_length in "
                "--model_args to the server's own context length."
            ) from error
        except _MALFORMED as error:
            raise ScoringError(f"{self._server} answered {what} with values that cannot be used: {error}") from error
        return to_scores(passage, rows, f"the server at {self._server}", self._vocabulary)

    def _ask(self, form: Form, passage: Passage, k: int, what: str) -> Rows:
        payload = {"model": self._lm.model, "prompt": passage.ids.tolist(), "max_tokens": 1, "temperature": 0}
        return form.rows(passage, self._server.complete(payload | form.fields(k), what), k, self._texts)

    # --- what can this server do? -------------------------------------------------------------------------------------

    def _find_form(self, passage: Passage, k: int) -> Form:
        ids = passage.ids[:_PROBE]
        probe = Passage("a first short request", ids, np.array([len(ids) - 1], dtype=np.int32))
        form, _ = self._first_answer(probe, k)
        _log.info("%s returns %s", self._server, form.name)
        return form

    def _first_answer(self, probe: Passage, k: int) -> tuple[Form, Scores]:
        failed: dict[str, list[str]] = {}
        for form in FORMS:
            try:
                rows = self._ask(form, probe, k, probe.name)
                return form, to_scores(probe, rows, str(self._server), self._vocabulary)
            except Refused as error:
                self._refuse_for_good(error)
                failed.setdefault(str(error), []).append(form.name)
            except _MALFORMED as error:
                failed.setdefault(str(error), []).append(form.name)
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in failed.items())
        raise ScoringError(
            f"{self._server} does not return the k={k} most likely tokens at each position of a prompt ({reasons}). It "
            f"must take token ids as prompt, have prompt_logprobs, or echo with logprobs, of at least {k}, and name "
            f"tokens by id: `vllm serve` does, with --max-logprobs {max(k, 20)}. Otherwise use --model hf or vllm."
        )

    def _refuse_for_good(self, error: Refused) -> None:
        if error.status in (401, 403):
            raise ScoringError(
                f"{self._server} refused access ({error}); put its key into the environment variable "
                "OPENAI_API_KEY, or headers of its own into HESNR_HEADERS, as JSON"
            ) from error
        if error.status in (404, 405):
            names = ", ".join(str(card.get("id")) for card in self._served) or "it does not say"
            raise ScoringError(
                f"{self._server} has no model {self._lm.model!r}, or no completions at this address ({error}). Models "
                f"it serves: {names}. Set model=… and base_url=http://HOST:PORT/v1/completions in --model_args."
            ) from error


def _refuse_other_tokenizers(lm: Any) -> None:
    names = {cls.__name__ for cls in type(lm.tokenizer).__mro__}
    if not names & {"PreTrainedTokenizerBase", "PythonBackend", "TokenizersBackend"}:
        raise ScoringError(
            "scoring through a server needs the model's Hugging Face tokenizer here (found "
            f"{type(lm.tokenizer).__name__}): add tokenizer=NAME_OR_PATH,tokenizer_backend=huggingface to --model_args"
        )


def _max_length(given: int, served: Any) -> int:
    """Largest number of prompt tokens, from lm-eval's `max_length` less one and the server's context length."""
    limit = served - 1 if isinstance(served, int) else None
    if given == _UNSET_MAX_LENGTH:
        if limit is None:
            _log.warning(
                "the server does not tell its context length and max_length is not set: lm-eval's default of 2048 "
                "applies, longer trajectories are cut there; set max_length in --model_args"
            )
            return given
        _log.warning("max_length is not set: the server reads %d tokens, so trajectories may have %d", served, limit)
        return limit
    if limit is not None and given > limit:
        _log.warning(
            "max_length=%d is more than the %d tokens that the server reads: %d it is", given + 1, served, limit
        )
        return limit
    return given


def _in_parallel(order: Sequence[int], call: Callable[[int], Scores], threads: int) -> Iterator[tuple[int, Scores]]:
    """Results as they come; the first exception ends it. Threads are daemons, so that an error ends the process."""
    todo: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, Scores | BaseException]] = SimpleQueue()
    over = threading.Event()
    for index in order:
        todo.put(index)
    for _ in range(min(max(1, threads), len(order))):
        threading.Thread(target=_work_off, args=(todo, done, call, over), daemon=True).start()
    try:
        for _ in order:
            index, found = done.get()
            if isinstance(found, BaseException):
                raise found
            yield index, found
    finally:
        over.set()


def _work_off(
    todo: SimpleQueue[int],
    done: SimpleQueue[tuple[int, Scores | BaseException]],
    call: Callable[[int], Scores],
    over: threading.Event,
) -> None:
    while not over.is_set():
        try:
            index = todo.get_nowait()
        except Empty:
            return
        try:
            done.put((index, call(index)))
        except BaseException as error:  # raised again by the reader
            done.put((index, error))
