"""Requests to a completions server: tried again where that can help, explained in words where it cannot.

A server is not trusted: it gets the key only at its own address (no redirect leads elsewhere), a limited time for a
whole answer, however slowly it comes, and a limited size, unpacked. What it says reaches the terminal without control
characters and without our secrets. Settings of the environment:

* `OPENAI_API_KEY`: sent as `Authorization: Bearer …`; `HESNR_HEADERS`: a JSON object of headers, which win.
* `HESNR_REQUEST_SECONDS`: for one attempt, all of it; default: twice `timeout` of --model_args.
* `HESNR_ANSWER_MB`: of one answer; default: 16, and 1 for every 2,000 candidates asked for.
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

from hesnr_tasks.backends.base import Backend, Scores, TokenSequence
from hesnr_tasks.backends.prompt_logprobs import Rows, number, row, same_value, stack, to_scores, vocabulary_bound
from hesnr_tasks.errors import ScoringError, printable
from hesnr_tasks.lm_eval_compat import running_evaluation

__all__ = ["FORMS", "Refused", "Server", "TokenTexts", "make"]

_AGAIN = {408, 425, 429}  # and every 5xx: the same request may succeed later
_CONNECT_SECONDS = 10
_LONGEST_PAUSE = 60.0
_REDIRECTS = 5
_REDIRECT = {301, 302, 303, 307, 308}
_MEGABYTE = 1 << 20
_BASE_MEGABYTES = 16
_CANDIDATES_PER_MEGABYTE = 2000
_READ = 1 << 16
_SECRET_ARGUMENTS = re.compile(
    r"(\w*_)?headers?|auth\w*|((api|access|auth|bearer|private|secret|hf)_?)?(key|token)|secret|passw\w*|cookies?|bearer",
    re.IGNORECASE,
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_SECRET_NAMES = re.compile("key|token|secret|passw|signature", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_log = logging.getLogger("hesnr_tasks")


class Refused(Exception):
    """The server said no to this request and will say it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message.rstrip('.')}")
        self.status = status


class _Failure(NamedTuple):
    reason: str
    pause: float | None  # seconds, where the server asks for a pause


class _Reply(NamedTuple):
    """A whole answer, read within the limits."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


class _TooLarge(Exception):
    """An answer went on beyond the limit."""


T = TypeVar("T")


class Server:
    """One completions endpoint, with the settings of lm-eval's `TemplateAPI` (address, header, retries, timeout).

    Safe to use from several threads. `stop` ends the pauses between attempts, for when the run is over.
    """

    def __init__(self, lm: Any) -> None:
        if not lm.base_url:
            raise ScoringError("no server given: add base_url=http://HOST:PORT/v1/completions to --model_args")
        self.url = str(lm.base_url)
        _refuse_secrets_in(self.url)
        self.stop = threading.Event()
        self._timeout = (min(_CONNECT_SECONDS, lm.timeout), lm.timeout)
        self._seconds = _limit("HESNR_REQUEST_SECONDS", 2.0 * lm.timeout)
        self._attempts = max(1, int(lm.max_retries))
        self._verify = lm.ca_cert_path or lm.verify_certificate
        _refuse_secret_arguments(lm)
        self._header = _headers(lm) | {"accept-encoding": "identity"}
        self._secrets = _secrets(self._header)
        self._local = threading.local()

    def __str__(self) -> str:
        """The address without credentials."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def models(self) -> list[dict[str, Any]]:
        """What `GET …/models` lists; empty where the server has no such list.

        Raises `ScoringError` where there is no server.
        """
        try:
            answer = self._ask(
                "GET", self.url.rsplit("/completions", 1)[0].rstrip("/") + "/models", None, "its list of models"
            )
        except Refused:
            return []
        cards = answer.get("data")
        return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []

    def complete(self, payload: Mapping[str, Any], what: str) -> dict[str, Any]:
        """The answer's only choice. `what` is read, for messages.

        Raises `Refused` for a request the server will never take, `ScoringError` when all attempts have failed.
        """
        choices = self._ask("POST", self.url, payload, what).get("choices")
        if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
            raise ScoringError(f"{self} answered without a completion to {what}: is this a completions endpoint?")
        return choices[0]

    def _ask(self, method: str, url: str, payload: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
        reason = ""
        for attempt in range(1, self._attempts + 1):
            found = self._try(method, url, payload)
            if isinstance(found, dict):
                return found
            reason = found.reason
            if attempt < self._attempts:
                pause = min(_LONGEST_PAUSE, found.pause or 0.5 * 2 ** (attempt - 1))
                _log.warning("%s: %s; trying again in %.1f s", self, reason, pause)
                if self.stop.wait(pause):
                    break
        raise ScoringError(
            f"{self} failed on {what} (attempts: {self._attempts}): {reason}. Check that the server runs and has "
            "not run out of memory (its log); max_retries, timeout (seconds) and num_concurrent are set in "
            "--model_args."
        )

    def _try(self, method: str, url: str, payload: Mapping[str, Any] | None) -> dict[str, Any] | _Failure:
        usual = _BASE_MEGABYTES + _candidates(payload) / _CANDIDATES_PER_MEGABYTE
        most = int(_limit("HESNR_ANSWER_MB", usual) * _MEGABYTE)
        try:
            reply = _within(self._seconds, lambda: self._exchange(method, url, payload, most))
        except (TimeoutError, requests.exceptions.Timeout) as error:
            limit = self._seconds if isinstance(error, TimeoutError) else self._timeout[1]
            return _Failure(f"no answer within {limit:g} seconds", None)
        except requests.exceptions.ConnectionError as error:
            return _Failure(f"cannot connect{_errno(error)}", None)
        except requests.exceptions.RequestException as error:
            return _Failure(f"{type(error).__name__}: {self._clean(str(error))}", None)
        except _TooLarge:
            raise ScoringError(
                f"{self} sent an answer of more than {most / _MEGABYTE:.0f} MB, unpacked; the rest was not read. "
                "If it should be that large, set HESNR_ANSWER_MB in the environment."
            ) from None
        if reply.status in _AGAIN or reply.status >= 500:
            return _Failure(f"HTTP {reply.status}: {self._message(reply)}", _pause(reply))
        if not 200 <= reply.status < 300:
            raise Refused(reply.status, self._message(reply))
        try:
            return _decoded(reply.body)
        except ValueError as error:
            return _Failure(f"the answer is {error}: {self._clean(_text(reply.body))!r}", None)

    def _exchange(self, method: str, url: str, payload: Mapping[str, Any] | None, most: int) -> _Reply:
        """One request and its whole answer, through redirects to the same origin."""
        until = time.monotonic() + self._seconds
        for _ in range(_REDIRECTS + 1):
            answer = self._session.request(
                method, url, json=payload, headers=self._header, timeout=self._timeout, verify=self._verify,
                allow_redirects=False, stream=True,
            )  # fmt: skip
            with answer:
                target = answer.headers.get("Location")
                if answer.status_code not in _REDIRECT or not target:
                    return _Reply(answer.status_code, answer.headers, _body(answer, most, until), url)
            self._refuse_redirect(method, answer.status_code, url, urljoin(url, target))
            url = urljoin(url, target)
        raise ScoringError(f"{self} redirects in circles; set base_url in --model_args to the address it means")

    def _refuse_redirect(self, method: str, status: int, url: str, target: str) -> None:
        """Raises `ScoringError` where a redirect leads to another origin or would change the request."""
        if _origin(target) == _origin(url) and (method == "GET" or status in (307, 308)):
            return
        raise ScoringError(
            f"{self} redirects to {self._clean(_without_secrets(target))} (HTTP {status}), which was not followed: key "
            "and text go to the given address only. If that is where the server is, set base_url in --model_args to it."
        )

    def _message(self, reply: _Reply) -> str:
        """What the server says went wrong, from the shapes that servers use."""
        try:
            found: Any = _decoded(reply.body)
        except ValueError:
            return self._clean(_text(reply.body))
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and found.get(key):
                found = found[key]
        return self._clean(found if isinstance(found, str) else json.dumps(found))

    def _clean(self, text: str) -> str:
        """Foreign text on one line, without control characters and without our own secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return _short(printable(text, keep=" "))

    @property
    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session


def _errno(error: Exception) -> str:
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)|'(Remote end [\w ]+)'", str(error))
    return f" ({found.group(1) or found.group(2)})" if found else ""


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


def _headers(lm: Any) -> dict[str, str]:
    """lm-eval's header, which has the key of OPENAI_API_KEY, and the headers of HESNR_HEADERS; names in lower case.

    Raises `ScoringError`, without the values, for what is no header.
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
            headers = {name.lower(): value for name, value in lm.header.items() if value != "Bearer "} | headers
        except ValueError as error:
            raise ScoringError(str(error)) from error
    for name, value in headers.items():
        if not (_HEADER_NAME.fullmatch(name) and value.isascii() and value.isprintable() and value == value.strip()):
            raise ScoringError(
                f"the header {printable(name)[:40]!r} (OPENAI_API_KEY or HESNR_HEADERS in the environment) cannot be "
                "sent: its name or value has a line break, a blank at an end or a character that is not ASCII"
            )
    return headers


def _secrets(header: Mapping[str, str]) -> list[str]:
    """What must not be shown: the values of all headers but the common ones, longest first."""
    values = [str(value) for name, value in header.items() if name not in ("content-type", "accept-encoding")]
    parts = {part for value in values for part in (value, *value.split()) if len(part) >= 4 and part != "Bearer"}
    return sorted(parts, key=len, reverse=True)


def _refuse_secrets_in(url: str) -> None:
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


def _candidates(payload: Mapping[str, Any] | None) -> int:
    """How many log-probabilities a request asks for."""
    if not payload:
        return 0
    return len(payload.get("prompt", ())) * (int(payload.get("prompt_logprobs") or payload.get("logprobs") or 0) + 1)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`; raises `TimeoutError` when that takes longer, whatever it is waiting for."""
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:  # raised again by who waits
            done.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _body(answer: requests.Response, most: int, until: float) -> bytes:
    """The unpacked body. Raises `_TooLarge` beyond `most` bytes, `TimeoutError` after `until`."""
    parts, size = [], 0
    for part in answer.iter_content(_READ):
        size += len(part)
        if size > most:
            raise _TooLarge
        if time.monotonic() > until:
            raise TimeoutError
        parts.append(part)
    return b"".join(parts)


def _decoded(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; raises `ValueError`, in words."""
    try:
        found = json.loads(body, object_pairs_hook=_without_repeats)
    except _Repeated as error:
        raise ValueError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


class _Repeated(Exception):
    """A key is twice in an object."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Repeated("not usable, a key is there twice in one object")
    return made


def _pause(reply: _Reply) -> float | None:
    try:
        seconds = float(reply.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if seconds > 0 else None  # false for NaN


def _text(body: bytes) -> str:
    return body[:4000].decode("utf-8", "replace")


def _short(text: str, most: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + " …"


# --- The forms in which completion servers return log-probabilities of a prompt, and how to read each of them ---

_ID = r"(0|[1-9][0-9]{0,9})"
_TOKEN_ID = re.compile(f"token_id:{_ID}", re.ASCII)
_PLAIN_ID = re.compile(_ID, re.ASCII)
_RANKS = 10  # accuracies are reported up to the ten likeliest


class TokenTexts:
    """From a token's text to its id, where only one token has that text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def id_of(self, text: str) -> int:
        """Raises `ValueError` for a text that no token or several tokens have."""
        found = self._ids.get(text)
        if found is None:
            several = "no token or several tokens of the tokenizer have"
            raise ValueError(f"the server names tokens by their text, and {several} the text {text[:80]!r}")
        return found

    def is_text_of(self, text: str, token: int) -> bool:
        """Whether a token decodes to `text`."""
        return self._texts[token] == text if 0 <= token < len(self._texts) else False

    @cached_property
    def _texts(self) -> list[str]:
        return list(self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))]))

    @cached_property
    def _ids(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for index, text in enumerate(self._texts):
            found[text] = None if text in found else index
        return found


class Form(NamedTuple):
    """One way to ask: the fields of the request for given k, and how the answer's choice becomes `Rows`."""

    name: str
    fields: Callable[[int], dict[str, Any]]
    rows: Callable[[TokenSequence, Mapping[str, Any], int, TokenTexts], Rows]


def _prompt_logprobs(passage: TokenSequence, choice: Mapping[str, Any], k: int, texts: TokenTexts) -> Rows:
    found = choice.get("prompt_logprobs")
    if not isinstance(found, list) or len(found) != len(passage.ids):
        got = f"{len(found)} positions" if isinstance(found, list) else "none"
        raise ValueError(f"no prompt_logprobs for {len(passage.ids)} tokens came back ({got})")
    sent = choice.get("prompt_token_ids")
    if sent is not None and sent != passage.ids.tolist():
        raise ValueError("the answer is to other tokens than those that were sent")
    _refuse_value_of_first(found[0])
    for at, token in enumerate(passage.ids.tolist()):
        if at and not (isinstance(found[at], dict) and found[at]):
            raise ValueError(f"the values of token {at} are null")
        if at and str(token) not in found[at]:
            raise ValueError(f"the values of token {at} are of other tokens than token {token}, which was sent")
    rows = []
    for at in passage.targets.tolist():
        entries = [(_plain_id(key), _fields(value, key)) for key, value in found[at].items()]
        numbered = [
            (token, number(value.get("logprob"), f"token {token}"), value.get("rank")) for token, value in entries
        ]
        rows.append(_named(at, int(passage.ids[at]), numbered, k))
    return stack(rows)


def _refuse_value_of_first(value: Any) -> None:
    if value:
        raise ValueError(
            "there is a value of the first token, which nothing precedes: positions are shifted, or the server put a "
            "token before the prompt"
        )


def _plain_id(key: str) -> int:
    if not _PLAIN_ID.fullmatch(key):
        raise ValueError(f"{key[:40]!r} is not a token id")
    return int(key)


def _fields(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"the value of token {key[:40]} is not an object with a logprob")
    return value


def _named(at: int, target: int, entries: list[tuple[int, float, int | None]], k: int) -> Any:
    """`row`, with the position in its errors."""
    try:
        return row(target, entries, k)
    except ValueError as error:
        raise ValueError(f"at token {at} of the prompt: {error}") from error


def _echo(passage: TokenSequence, choice: Mapping[str, Any], k: int, texts: TokenTexts) -> Rows:
    found, n = choice.get("logprobs") or {}, len(passage.ids)
    if not isinstance(found, dict):
        raise ValueError("logprobs is not an object")
    tokens, own, top = (found.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not all(isinstance(column, list) for column in (tokens, own, top)):
        raise ValueError("tokens, token_logprobs or top_logprobs is not a list")
    if not len(tokens) == len(own) == len(top) or len(tokens) not in (n, n + 1):
        raise ValueError(f"no log-probabilities of the {n} prompt tokens came back (values for {len(tokens)} tokens)")
    if not all(isinstance(token, str) for token in tokens):
        raise ValueError("a token's name is not text")
    by_id = all(_TOKEN_ID.fullmatch(token) for token in tokens)
    for at, token in enumerate(passage.ids.tolist()):
        if not (tokens[at] == f"token_id:{token}" if by_id else texts.is_text_of(tokens[at], token)):
            raise ValueError(f"token {at} came back as {tokens[at][:80]!r}, which is not what was sent")
        if at and (own[at] is None or not (isinstance(top[at], dict) and top[at])):
            raise ValueError(f"the values of token {at} are null")
    _refuse_value_of_first(own[0])
    _refuse_value_of_first(top[0])
    return stack(
        [_echoed(at, int(passage.ids[at]), own[at], top[at], k, _by_id if by_id else texts) for at in passage.targets]
    )


class _ById:
    """Names that are ids."""

    def id_of(self, name: str) -> int:
        match = _TOKEN_ID.fullmatch(name)
        if not match:
            raise ValueError(f"{name[:40]!r} is not a token id")
        return int(match.group(1))


_by_id = _ById()


def _echoed(at: int, target: int, own: Any, top: Mapping[str, Any], k: int, names: _ById | TokenTexts) -> Any:
    """A row of OpenAI's form: the target's value and those of the most likely tokens, which may hold the target too."""
    value = number(own, f"token {target} (token_logprobs, at token {at} of the prompt)")
    named = [(names.id_of(name), number(entry, f"token {name[:40]}")) for name, entry in top.items()]
    entries: list[tuple[int, float, int | None]] = [(token, entry, None) for token, entry in named]
    listed = [entry for token, entry in named if token == target]
    if listed and not same_value(listed[0], value):
        raise ValueError(
            f"at token {at} of the prompt, token_logprobs ({value:.4f}) and top_logprobs ({listed[0]:.4f}) disagree"
        )
    if not listed:
        if value > min(entry for _, entry in named) and not same_value(value, min(entry for _, entry in named)):
            raise ValueError(
                f"token {at} of the prompt is more likely than a token of top_logprobs, and not among them"
            )
        entries.append((target, value, None))
    return _named(at, target, entries, k)


def _named_by_id(passage: TokenSequence, choice: Mapping[str, Any], k: int, texts: TokenTexts) -> Rows:
    found = choice.get("logprobs")
    tokens = found.get("tokens") if isinstance(found, dict) else None
    if isinstance(tokens, list) and not all(isinstance(token, str) and _TOKEN_ID.fullmatch(token) for token in tokens):
        raise ValueError("the server does not name tokens by id")
    return _echo(passage, choice, k, texts)


def _by_number(wanted: int) -> dict[str, Any]:
    return {"echo": True, "logprobs": wanted, "return_tokens_as_token_ids": True}


def _by_text(wanted: int) -> dict[str, Any]:
    return {"echo": True, "logprobs": wanted}


FORMS = (
    Form("prompt_logprobs", lambda k: {"prompt_logprobs": k, "return_token_ids": True}, _prompt_logprobs),
    Form("echo + logprobs", lambda k: _by_number(max(k, _RANKS) + 1), _named_by_id),
    Form("echo + logprobs, k + 1", lambda k: _by_number(k + 1), _named_by_id),
    Form("echo + logprobs, k", _by_number, _named_by_id),
    Form("plain echo + logprobs, k + 1", lambda k: _by_text(k + 1), _echo),
    Form("plain echo + logprobs, k", _by_text, _echo),
)


# --- the backend ---

_UNSET_MAX_LENGTH = 2047  # lm-eval's default of 2048 less the token that it leaves for the answer
_PROBE = 16  # tokens
_TOLD = ("root", "parent", "meta")  # what servers say of a model beside its name; times and permissions change
_CANARY = (
    "The cache was stale, so the test failed twice before 1024 retries passed.\n\ndef merge(left, right):\n"
    "    while left and right:\n        yield (left if left[0] <= right[0] else right).pop(0)\n"
)
_CANARY_TOKENS, _CANARY_K = 64, 5
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError)


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
        passage = TokenSequence("a first short request", ids, np.arange(1, len(ids), dtype=np.int32))
        return [round(float(value), 6) for value in self._first_answer(passage, _CANARY_K)[1].logprob]

    def score(
        self, passages: Sequence[TokenSequence], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
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

    def _read(self, form: Form, passage: TokenSequence, k: int) -> Scores:
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

    def _ask(self, form: Form, passage: TokenSequence, k: int, what: str) -> Rows:
        payload = {"model": self._lm.model, "prompt": passage.ids.tolist(), "max_tokens": 1, "temperature": 0}
        return form.rows(passage, self._server.complete(payload | form.fields(k), what), k, self._texts)

    # --- what can this server do? -------------------------------------------------------------------------------------

    def _find_form(self, passage: TokenSequence, k: int) -> Form:
        ids = passage.ids[:_PROBE]
        probe = TokenSequence("a first short request", ids, np.array([len(ids) - 1], dtype=np.int32))
        form, _ = self._first_answer(probe, k)
        _log.info("%s returns %s", self._server, form.name)
        return form

    def _first_answer(self, probe: TokenSequence, k: int) -> tuple[Form, Scores]:
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
