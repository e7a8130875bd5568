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
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urljoin, urlsplit, urlunsplit

import requests

from hesnr_tasks.errors import ScoringError, printable
from hesnr_tasks.tasks.invocation import model_arguments

__all__ = ["Refused", "Server"]

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
    arguments = {"header": getattr(lm, "_header", None), **(model_arguments().given or {})}
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
