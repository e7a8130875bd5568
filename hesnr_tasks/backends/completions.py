"""Scoring through a completions server (`--model local-completions`): vLLM's, or any that returns log-probabilities of
the prompt.

A trajectory is one request, its token ids the prompt; several are in flight. One short request at the start shows which
form of answer the server has (`FORMS`).

A server is not trusted: it gets the key only at its own address (no redirect leads elsewhere), a limited time for a
whole answer, however slowly it comes, and a limited size, unpacked. What it says reaches the terminal without control
characters and without our secrets. Settings of the environment:

* `OPENAI_API_KEY`: sent as `Authorization: Bearer …`; `HESNR_HEADERS`: a JSON object of headers, which win.
* `HESNR_REQUEST_SECONDS`: for one attempt, all of it; default: twice `timeout` of --model_args.
* `HESNR_ANSWER_MB`: of one answer; default: 16, and 1 for every 2,000 candidates requested.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urljoin, urlsplit, urlunsplit

import numpy as np
import requests
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util.retry import Retry

from hesnr_tasks.backends.base import (
    Backend,
    Rows,
    TokenSequence,
    number,
    row,
    same_value,
    stack,
    to_scores,
    vocabulary_bound,
)
from hesnr_tasks.errors import ScoringError, printable
from hesnr_tasks.files.bounded import parse_json
from hesnr_tasks.lm_eval_compat import running_evaluation
from hesnr_tasks.scores.schema import SequenceScores

_T = TypeVar("_T")
_log = logging.getLogger("hesnr_tasks")

# --- the server -------------------------------------------------------------------------------------------------------

_TEMPORARY = (408, 425, 429, *range(500, 600))  # the same request may succeed later
_CONNECT_SECONDS = 10
_FIRST_PAUSE, _MAX_PAUSE = 0.5, 60.0  # seconds
_MAX_REDIRECTS = 5
_MEGABYTE = 1 << 20
_BASE_MEGABYTES, _CANDIDATES_PER_MEGABYTE = 16, 2000
_SECRET_ARGUMENTS = re.compile(
    r"(\w*_)?headers?|auth\w*|((api|access|auth|bearer|private|secret|hf)_?)?(key|token)|secret|passw\w*|cookies?|bearer",
    re.IGNORECASE,
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_SECRET_NAMES = re.compile("key|token|secret|passw|signature", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}


class RefusedError(Exception):
    """The server refuses this request and will refuse it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message.rstrip('.')}")
        self.status = status


class _TemporaryError(Exception):
    """An attempt failed in a way that may pass; `pause`: seconds, where the server names them."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _TooLargeError(Exception):
    """An answer went on beyond the limit."""


class Server:
    """One completions endpoint, with the settings of lm-eval's `TemplateAPI` (address, header, retries, timeout).

    Safe to use from several threads. `stop` ends the pauses between attempts, for when the run is over.
    """

    def __init__(self, lm: Any) -> None:
        if not lm.base_url:
            raise ScoringError("no server given: add base_url=http://HOST:PORT/v1/completions to --model_args")
        self.url = str(lm.base_url)
        _refuse_secrets_in_url(self.url)
        _refuse_secret_arguments(lm)
        self.stop = threading.Event()
        self._timeout = (min(_CONNECT_SECONDS, lm.timeout), lm.timeout)
        self._seconds = _limit("HESNR_REQUEST_SECONDS", 2.0 * lm.timeout)
        self._attempts = max(1, int(lm.max_retries))
        self._retry = Retry(
            self._attempts - 1, status_forcelist=_TEMPORARY, allowed_methods=None, backoff_factor=_FIRST_PAUSE
        )
        self._verify = lm.ca_cert_path or lm.verify_certificate
        self._headers = _headers(lm) | {"accept-encoding": "identity"}
        secret = [value for name, value in self._headers.items() if name not in ("content-type", "accept-encoding")]
        parts = {part for value in secret for part in (value, *value.split()) if len(part) >= 4 and part != "Bearer"}
        self._secrets = sorted(parts, key=len, reverse=True)
        self._local = threading.local()

    def __str__(self) -> str:
        """The address without credentials."""
        return _without_secrets(self.url)

    def models(self) -> list[dict[str, Any]]:
        """What `GET …/models` lists; empty where the server has no such list.

        Raises:
            ScoringError: there is no server.
        """
        base = self.url.rstrip("/").removesuffix("/completions")
        address = (base.removesuffix("/generate") + "/v1" if base.endswith("/generate") else base) + "/models"
        try:
            cards = self._request("GET", address, None, "its list of models").get("data")
        except RefusedError:
            return []
        return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []

    def answer(self, payload: Mapping[str, Any], what: str) -> dict[str, Any]:
        """The JSON object that answers a POST; `what` is requested, for messages.

        Raises:
            RefusedError: the server will never take this request.
            ScoringError: all attempts failed.
        """
        return self._request("POST", self.url, payload, what)

    def _request(self, method: str, url: str, payload: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
        """The JSON object that the server answers, after as many attempts as allowed."""
        retry = self._retry
        while True:
            try:
                return self._attempt(method, url, payload)
            except _TemporaryError as error:
                failure = error
            try:
                retry = retry.increment(method, url, error=failure)
            except MaxRetryError:
                break
            pause = min(_MAX_PAUSE, failure.pause or max(_FIRST_PAUSE, retry.get_backoff_time()))
            _log.warning("%s: %s; trying again in %.1f s", self, failure, pause)
            if self.stop.wait(pause):
                break
        raise ScoringError(
            f"{self} failed on {what} (attempts: {self._attempts}): {failure}. Check that the server runs and has "
            "not run out of memory (its log); max_retries, timeout (seconds) and num_concurrent are set in "
            "--model_args."
        )

    def _attempt(self, method: str, url: str, payload: Mapping[str, Any] | None) -> dict[str, Any]:
        candidates = 0
        if payload:
            sizes = (payload.get(name) for name in ("prompt_logprobs", "logprobs", "top_logprobs_num"))
            candidates = len(payload.get("prompt", payload.get("input_ids", ()))) * (
                1 + int(next(filter(None, sizes), 0))
            )
        usual = _BASE_MEGABYTES + candidates / _CANDIDATES_PER_MEGABYTE
        most = int(_limit("HESNR_ANSWER_MB", usual) * _MEGABYTE)
        try:
            status, headers, body = _within(self._seconds, lambda: self._exchange(method, url, payload, most))
        except (TimeoutError, requests.exceptions.Timeout) as error:
            limit = self._seconds if isinstance(error, TimeoutError) else self._timeout[1]
            raise _TemporaryError(f"no answer within {limit:g} seconds") from error
        except requests.exceptions.ConnectionError as error:
            reason = re.search(r"\[Errno -?\d+\] ([\w ]+)|'(Remote end [\w ]+)'", str(error))
            detail = f" ({reason.group(1) or reason.group(2)})" if reason else ""
            raise _TemporaryError(f"cannot connect{detail}") from error
        except requests.exceptions.RequestException as error:
            raise _TemporaryError(f"{type(error).__name__}: {self._clean(str(error))}") from error
        except _TooLargeError:
            raise ScoringError(
                f"{self} sent an answer of more than {most / _MEGABYTE:.0f} MB, unpacked; the rest was not read. "
                "If it should be that large, set HESNR_ANSWER_MB in the environment."
            ) from None
        if self._retry.is_retry(method, status):
            try:
                pause = self._retry.parse_retry_after(headers.get("Retry-After", ""))
            except (HTTPError, ValueError, OverflowError):
                pause = None
            raise _TemporaryError(f"HTTP {status}: {self._message(body)}", pause)
        if not 200 <= status < 300:
            raise RefusedError(status, self._message(body))
        try:
            return _json_object(body)
        except ValueError as error:
            raise _TemporaryError(f"the answer is {error}: {self._clean(_text(body))!r}") from error

    def _exchange(
        self, method: str, url: str, payload: Mapping[str, Any] | None, most: int
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and unpacked body of one request, through redirects to the same origin."""
        until = time.monotonic() + self._seconds
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._local.session.request(
                method, url, json=payload, headers=self._headers, timeout=self._timeout, verify=self._verify,
                allow_redirects=False, stream=True,
            )  # fmt: skip
            with answer:
                if not answer.is_redirect:
                    body = bytearray()
                    for part in answer.iter_content(1 << 16):
                        body += part
                        if len(body) > most:
                            raise _TooLargeError
                        if time.monotonic() > until:
                            raise TimeoutError
                    return answer.status_code, answer.headers, bytes(body)
            target = urljoin(url, answer.headers["Location"])
            if _origin(target) != _origin(url) or (method != "GET" and answer.status_code not in (307, 308)):
                raise ScoringError(
                    f"{self} redirects to {self._clean(_without_secrets(target))} (HTTP {answer.status_code}), which "
                    "was not followed: key and text go to the given address only. If that is where the server is, set "
                    "base_url in --model_args to it."
                )
            url = target
        raise ScoringError(f"{self} redirects in circles; set base_url in --model_args to the address it means")

    def _message(self, body: bytes) -> str:
        """The server's explanation, from the shapes that servers use."""
        try:
            content: Any = _json_object(body)
        except ValueError:
            return self._clean(_text(body))
        for key in ("error", "message", "detail"):
            if isinstance(content, dict) and content.get(key):
                content = content[key]
        return self._clean(content if isinstance(content, str) else json.dumps(content))

    def _clean(self, text: str) -> str:
        """Foreign text on one line, without control characters and without our own secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        line = " ".join(printable(text, keep=" ").split())
        return line if len(line) <= 300 else line[:300] + " …"


def _refuse_secret_arguments(lm: Any) -> None:
    """lm-eval writes --model_args into its results, whatever they are."""
    arguments = {"header": getattr(lm, "_header", None), **(running_evaluation().model_args or {})}
    for name, value in arguments.items():
        if value and _SECRET_ARGUMENTS.fullmatch(name.replace("-", "_")):
            raise ScoringError(
                f"{printable(name)} in --model_args may hold a secret, and lm-eval writes it into its results. "
                "Put a key into the environment variable OPENAI_API_KEY, other headers into HESNR_HEADERS, as a JSON "
                'object such as {"X-API-Key": "…"}.'
            )


def _refuse_secrets_in_url(url: str) -> None:
    """lm-eval writes --model_args into its results, base_url with them: a secret there would be published."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ScoringError(f"base_url in --model_args is no address: {printable(str(error))}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ScoringError("base_url in --model_args must be http://HOST:PORT/v1/completions")
    named = [name for name, _ in parse_qsl(parts.query) if _SECRET_NAMES.search(name)]
    if parts.password or named:
        raise ScoringError(
            f"base_url in --model_args holds a {'password' if parts.password else named[0]}, and lm-eval writes it "
            "into its results. Put a key into the environment variable OPENAI_API_KEY or, as a header, HESNR_HEADERS; "
            "user and password into ~/.netrc."
        )


def _headers(lm: Any) -> dict[str, str]:
    """lm-eval's header, which has the key of OPENAI_API_KEY, and the headers of HESNR_HEADERS; names in lower case.

    Raises:
        ScoringError: something is no header; without its value.
    """
    try:
        own = json.loads(os.environ.get("HESNR_HEADERS") or "{}")
    except (ValueError, RecursionError):
        own = None
    if not isinstance(own, dict) or not all(isinstance(value, str) for value in own.values()):
        raise ScoringError(
            'HESNR_HEADERS in the environment must be a JSON object of names and texts, such as {"X-API-Key": "…"}'
        )
    headers = {name.lower(): value for name, value in own.items()}
    if "authorization" not in headers:
        try:
            headers = {name.lower(): str(value) for name, value in lm.header.items() if value != "Bearer "} | headers
        except ValueError as error:
            raise ScoringError(str(error)) from error
        if key := os.environ.get("OPENAI_API_KEY"):  # lm-eval's sglang-generate sends none
            headers.setdefault("authorization", f"Bearer {key}")
    for name, value in headers.items():
        if not (_HEADER_NAME.fullmatch(name) and value.isascii() and value.isprintable() and value == value.strip()):
            raise ScoringError(
                f"the header {printable(name)[:40]!r} (OPENAI_API_KEY or HESNR_HEADERS in the environment) cannot be "
                "sent: its name or value has a line break, a blank at an end or a character that is not ASCII"
            )
    return headers


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None, None


def _limit(name: str, default: float) -> float:
    """A limit of the environment. Raises `ScoringError` for what is no positive number."""
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ScoringError(f"{name}={text[:40]!r} in the environment: a positive number is wanted")
    return value


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """The result of `call`; raises `TimeoutError` when that takes longer, whatever it is waiting for."""
    results: SimpleQueue[tuple[_T | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:  # raised again by the caller
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; raises `ValueError`, in words."""
    try:
        content = parse_json(body)
    except ValueError as error:
        repeated = "more than once" in str(error)
        raise ValueError("not usable, a key is there twice in one object" if repeated else "not JSON") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _text(body: bytes) -> str:
    return body[:4000].decode("utf-8", "replace")


# --- forms of answers -------------------------------------------------------------------------------------------------
# `prompt_logprobs` is vLLM's: per position a dict from token id to log-probability and rank. `echo` with `logprobs`
# is OpenAI's: per position the prompt's token and a dict from *token* to log-probability, where a token is an id only
# if the server understands the request for ids. Texts of different tokens can be equal (all parts of a character
# decode to U+FFFD), and of equal keys only one survives; so a text counts only where exactly one token id has it.
# OpenAI's form has no ranks, and k entries may be the k most likely or k - 1 of them and the prompt's token: more
# than k are requested, eleven at least where the server gives them, so that the ten likeliest are certain.

_ID = re.compile(r"(token_id:)?(0|[1-9][0-9]{0,9})", re.ASCII)
_RANKS = 10  # accuracies are reported up to the ten likeliest
_SHIFTED = (
    "there is a value of the first token, which nothing precedes: positions are shifted, or the server put a token "
    "before the prompt"
)


class TokenIdsByText:
    """From a token's text to its id, where only one token has that text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def id_of(self, text: str) -> int:
        """Raises `ValueError` for a text that no token or several tokens have."""
        index = self._ids.get(text)
        if index is None:
            several = "no token or several tokens of the tokenizer have"
            raise ValueError(f"the server names tokens by their text, and {several} the text {text[:80]!r}")
        return index

    def is_text_of(self, text: str, token: int) -> bool:
        """Whether a token decodes to `text`."""
        return self._texts[token] == text if 0 <= token < len(self._texts) else False

    @cached_property
    def _texts(self) -> list[str]:
        return list(self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))]))

    @cached_property
    def _ids(self) -> dict[str, int | None]:
        ids: dict[str, int | None] = {}
        for index, text in enumerate(self._texts):
            ids[text] = None if text in ids else index
        return ids


class AnswerForm(NamedTuple):
    """A form of answer: the fields of the request for k candidates, and how the answer's choice becomes `Rows`."""

    name: str
    fields: Callable[[int], dict[str, Any]]
    rows: Callable[[TokenSequence, Mapping[str, Any], int, TokenIdsByText], Rows] | None = None


def _token_id(name: str, prefix: str | None = None) -> int:
    match = _ID.fullmatch(name)
    if not match or match[1] != prefix:
        raise ValueError(f"{name[:40]!r} is not a token id")
    return int(match[2])


def _vllm_rows(text: TokenSequence, choice: Mapping[str, Any], k: int, names: TokenIdsByText) -> Rows:
    values = choice.get("prompt_logprobs")
    if not isinstance(values, list) or len(values) != len(text.ids):
        positions = f"{len(values)} positions" if isinstance(values, list) else "none"
        raise ValueError(f"no prompt_logprobs for {len(text.ids)} tokens came back ({positions})")
    sent = choice.get("prompt_token_ids")
    if sent is not None and sent != text.ids.tolist():
        raise ValueError("the answer is to other tokens than those that were sent")
    if values[0]:
        raise ValueError(_SHIFTED)
    for position, token in enumerate(text.ids.tolist()):
        if position and not (isinstance(values[position], dict) and values[position]):
            raise ValueError(f"the values of token {position} are null")
        if position and str(token) not in values[position]:
            raise ValueError(f"the values of token {position} are of other tokens than token {token}, which was sent")
    rows = []
    for position in text.targets.tolist():
        entries = []
        for key, value in values[position].items():
            token = _token_id(key)
            if not isinstance(value, dict):
                raise ValueError(f"the value of token {key[:40]} is not an object with a logprob")
            entries.append((token, number(value.get("logprob"), f"token {token}"), value.get("rank")))
        rows.append(_row(position, int(text.ids[position]), entries, k))
    return stack(rows)


def _row(position: int, target: int, entries: list[tuple[int, float, int | None]], k: int) -> Any:
    """`row`, with the position in its errors."""
    try:
        return row(target, entries, k)
    except ValueError as error:
        raise ValueError(f"at token {position} of the prompt: {error}") from error


def _openai_rows(text: TokenSequence, choice: Mapping[str, Any], k: int, texts: TokenIdsByText) -> Rows:
    logprobs, n = choice.get("logprobs") or {}, len(text.ids)
    if not isinstance(logprobs, dict):
        raise ValueError("logprobs is not an object")
    tokens, own, top = (logprobs.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not all(isinstance(column, list) for column in (tokens, own, top)):
        raise ValueError("tokens, token_logprobs or top_logprobs is not a list")
    if not len(tokens) == len(own) == len(top) or len(tokens) not in (n, n + 1):
        raise ValueError(f"no log-probabilities of the {n} prompt tokens came back (values for {len(tokens)} tokens)")
    if not all(isinstance(token, str) for token in tokens):
        raise ValueError("a token's name is not text")
    by_id = _names_ids(tokens)
    for position, token in enumerate(text.ids.tolist()):
        name = tokens[position]
        if not (name == f"token_id:{token}" if by_id else texts.is_text_of(name, token)):
            raise ValueError(f"token {position} came back as {name[:80]!r}, which is not what was sent")
        if position and (own[position] is None or not (isinstance(top[position], dict) and top[position])):
            raise ValueError(f"the values of token {position} are null")
    if own[0] or top[0]:
        raise ValueError(_SHIFTED)
    rows = []
    for position in text.targets.tolist():  # the target's value, and those of the most likely, which may include it
        target = int(text.ids[position])
        value = number(own[position], f"token {target} (token_logprobs, at token {position} of the prompt)")
        candidates: list[tuple[int, float, int | None]] = [
            (_token_id(name, "token_id:") if by_id else texts.id_of(name), number(entry, f"token {name[:40]}"), None)
            for name, entry in top[position].items()
        ]
        listed = [entry for token, entry, _ in candidates if token == target]
        least = min(entry for _, entry, _ in candidates)
        if listed and not same_value(listed[0], value):
            raise ValueError(
                f"at token {position} of the prompt, token_logprobs ({value:.4f}) and top_logprobs ({listed[0]:.4f}) "
                "disagree"
            )
        if not listed and value > least and not same_value(value, least):
            raise ValueError(
                f"token {position} of the prompt is more likely than a token of top_logprobs, and not among them"
            )
        if not listed:
            candidates.append((target, value, None))
        rows.append(_row(position, target, candidates, k))
    return stack(rows)


def _names_ids(tokens: list[Any]) -> bool:
    matches = (_ID.fullmatch(token) if isinstance(token, str) else None for token in tokens)
    return all(match and match[1] for match in matches)


def _openai_rows_by_id(text: TokenSequence, choice: Mapping[str, Any], k: int, texts: TokenIdsByText) -> Rows:
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
    if isinstance(tokens, list) and not _names_ids(tokens):
        raise ValueError("the server does not name tokens by id")
    return _openai_rows(text, choice, k, texts)


def _echo(candidates: int, *, by_id: bool = True) -> dict[str, Any]:
    return {"echo": True, "logprobs": candidates} | ({"return_tokens_as_token_ids": True} if by_id else {})


FORMS = (
    AnswerForm("prompt_logprobs", lambda k: {"prompt_logprobs": k, "return_token_ids": True}, _vllm_rows),
    AnswerForm("echo + logprobs", lambda k: _echo(max(k, _RANKS) + 1), _openai_rows_by_id),
    AnswerForm("echo + logprobs, k + 1", lambda k: _echo(k + 1), _openai_rows_by_id),
    AnswerForm("echo + logprobs, k", _echo, _openai_rows_by_id),
    AnswerForm("plain echo + logprobs, k + 1", lambda k: _echo(k + 1, by_id=False), _openai_rows),
    AnswerForm("plain echo + logprobs, k", lambda k: _echo(k, by_id=False), _openai_rows),
)
"""One line a form of answer, the best first."""


# --- the backend ------------------------------------------------------------------------------------------------------

_UNSET_MAX_LENGTH = 2047  # lm-eval's default of 2048 less the token that it leaves for the answer
_PROBE = 16  # tokens
_CARD_FIELDS = ("root", "parent", "meta")  # of a served model, beside its name; times and permissions change
_CANARY = (
    "The cache was stale, so the test failed twice before 1024 retries passed.\n\ndef merge(left, right):\n"
    "    while left and right:\n        yield (left if left[0] <= right[0] else right).pop(0)\n"
)
_CANARY_TOKENS, _CANARY_K = 64, 5
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError)


def make(lm: Any, backend: Callable[[Any], Backend] | None = None) -> Backend:
    """The backend for lm-eval's `LocalCompletionsAPI`, or another `backend` of a server.

    Raises:
        ScoringError: no Hugging Face tokenizer, or no server answers.
    """
    tokenizer_names = {cls.__name__ for cls in type(lm.tokenizer).__mro__}
    if not tokenizer_names & {"PreTrainedTokenizerBase", "PythonBackend", "TokenizersBackend"}:
        raise ScoringError(
            "scoring through a server needs the model's Hugging Face tokenizer here (found "
            f"{type(lm.tokenizer).__name__}): add tokenizer=NAME_OR_PATH,tokenizer_backend=huggingface to --model_args"
        )
    return (backend or CompletionsBackend)(lm)


class CompletionsBackend(Backend):
    """SequenceScores with prompt log-probabilities of a server."""

    forms: Sequence[AnswerForm] = FORMS
    needs = (  # of a server, for people
        "It must take token ids as prompt, have prompt_logprobs, or echo with logprobs, of at least {k}, and name "
        "tokens by id: `vllm serve` does, with --max-logprobs {most}; Text Generation Inference and llama.cpp's server "
        "do not. Otherwise use --model hf, vllm or sglang."
    )

    def __init__(self, lm: Any) -> None:
        super().__init__(lm)
        self._server = Server(lm)
        self._served = self._server.models()
        self._card = self._served_card()
        self._max_length = _max_length(int(lm.max_length), self._card.get("max_model_len"))
        self._texts = TokenIdsByText(lm.tokenizer)
        self._vocabulary = vocabulary_bound(lm.tokenizer)

    def _served_card(self) -> Mapping[str, Any]:
        """What the server says of the model that is asked of it."""
        return next((card for card in self._served if card.get("id") == self._lm.model), {})

    @property
    def bos(self) -> bool | None:
        """True where wanted. lm-eval's default here is False, unlike elsewhere, so False means "not said"."""
        return True if self._lm.add_bos_token else None

    @property
    def max_length(self) -> int:
        """`max_length` less the token that servers always generate; unset: what the server can read."""
        return self._max_length

    def describe(self) -> dict[str, Any]:
        """See `Backend.describe`."""
        return {
            "backend": "api",
            "model": str(self._lm.model),
            "engine": self._card.get("owned_by"),
            **{name: self._card[name] for name in _CARD_FIELDS if self._card.get(name) is not None},
        }

    def canary(self) -> list[float] | None:
        """One tiny request: a server cannot prove its weights, but others would score this text otherwise."""
        ids = np.asarray(self.tokenizer(_CANARY, add_special_tokens=False)["input_ids"], dtype=np.int32)
        ids = ids[: min(_CANARY_TOKENS, self.max_length)]
        text = TokenSequence("a first short request", ids, np.arange(1, len(ids), dtype=np.int32))
        return [round(float(value), 6) for value in self._probe(text, _CANARY_K)[1].logprob]

    def score(
        self, sequences: Sequence[TokenSequence], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
    ) -> Iterator[tuple[int, SequenceScores]]:
        """See `Backend.score`; the longest first, several at a time."""
        lengths = {index: len(text.ids) for index, text in enumerate(sequences) if index not in skip}
        order = sorted(lengths, key=lambda index: -lengths[index])
        if not order:
            return
        ids = sequences[order[-1]].ids[:_PROBE]
        form, _ = self._probe(TokenSequence("a first short request", ids, np.array([len(ids) - 1], dtype=np.int32)), k)
        _log.info("%s returns %s", self._server, form.name)
        self._server.stop.clear()
        try:
            for index, scores in _in_parallel(
                order, lambda i: self._score_text(form, sequences[i], k), self._lm._concurrent
            ):
                yield index, scores
                progress(lengths[index])
        finally:
            self._server.stop.set()

    def _score_text(self, form: AnswerForm, text: TokenSequence, k: int) -> SequenceScores:
        what = f"trajectory {text.name!r} ({len(text.ids)} tokens)"
        try:
            return self._scores(form, text, k, what, f"the server at {self._server}")
        except RefusedError as error:
            raise ScoringError(
                f"{self._server} refused {what}: {error}. If it is too long for the server, set max_length in "
                "--model_args to the server's own context length."
            ) from error
        except _MALFORMED as error:
            raise ScoringError(f"{self._server} answered {what} with values that cannot be used: {error}") from error

    def _scores(self, form: AnswerForm, text: TokenSequence, k: int, what: str, source: str) -> SequenceScores:
        payload = {"model": self._lm.model, "prompt": text.ids.tolist(), "max_tokens": 1, "temperature": 0}
        choices = self._server.answer(payload | form.fields(k), what).get("choices")
        if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
            raise ScoringError(
                f"{self._server} answered without a completion to {what}: is this a completions endpoint?"
            )
        assert form.rows is not None
        return to_scores(text, form.rows(text, choices[0], k, self._texts), source, self._vocabulary)

    def _probe(self, text: TokenSequence, k: int) -> tuple[AnswerForm, SequenceScores]:
        """The first form that this server has, and the scores of a short text in it."""
        failed: dict[str, list[str]] = {}
        for form in self.forms:
            try:
                return form, self._scores(form, text, k, text.name, str(self._server))
            except RefusedError as error:
                self._refuse_for_good(error)
                failed.setdefault(str(error), []).append(form.name)
            except _MALFORMED as error:
                failed.setdefault(str(error), []).append(form.name)
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in failed.items())
        raise ScoringError(
            f"{self._server} does not return the k={k} most likely tokens at each position of a prompt ({reasons}). "
            + self.needs.format(k=k, most=max(k, 20))
        )

    def _refuse_for_good(self, error: RefusedError) -> None:
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


def _in_parallel(
    order: Sequence[int], call: Callable[[int], SequenceScores], threads: int
) -> Iterator[tuple[int, SequenceScores]]:
    """Results as they come; the first exception ends it. Threads are daemons, so that an error ends the process."""
    todo: SimpleQueue[int] = SimpleQueue()
    results: SimpleQueue[tuple[int, SequenceScores | BaseException]] = SimpleQueue()
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                index = todo.get_nowait()
            except Empty:
                return
            try:
                results.put((index, call(index)))
            except BaseException as error:  # raised again by the reader
                results.put((index, error))

    for index in order:
        todo.put(index)
    for _ in range(min(max(1, threads), len(order))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in order:
            index, result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield index, result
    finally:
        over.set()
