"""Requests to a completions server: tried again where that can help, explained in words where it cannot."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import requests

from hesnr_tasks.errors import ScoringError

__all__ = ["Refused", "Server"]

_AGAIN = {408, 425, 429}  # and every 5xx: the same request may succeed later
_CONNECT_SECONDS = 10
_LONGEST_PAUSE = 60.0
_log = logging.getLogger("hesnr_tasks")


class Refused(Exception):
    """The server said no to this request and will say it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message.rstrip('.')}")
        self.status = status


class _Failure(NamedTuple):
    reason: str
    pause: float | None  # seconds, where the server asks for a pause


class Server:
    """One completions endpoint, with the settings of lm-eval's `TemplateAPI` (address, header, retries, timeout).

    Safe to use from several threads. `stop` ends the pauses between attempts, for when the run is over.
    """

    def __init__(self, lm: Any) -> None:
        if not lm.base_url:
            raise ScoringError("no server given: add base_url=http://HOST:PORT/v1/completions to --model_args")
        self.url = str(lm.base_url)
        self.stop = threading.Event()
        self._timeout = (min(_CONNECT_SECONDS, lm.timeout), lm.timeout)
        self._attempts = max(1, int(lm.max_retries))
        self._verify = lm.ca_cert_path or lm.verify_certificate
        self._header = _header(lm)
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
        """The answer's first choice. `what` is read, for messages.

        Raises `Refused` for a request the server will never take, `ScoringError` when all attempts have failed.
        """
        choices = self._ask("POST", self.url, payload, what).get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
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
        try:
            answer = self._session.request(
                method, url, json=payload, headers=self._header, timeout=self._timeout, verify=self._verify
            )
        except requests.exceptions.Timeout:
            return _Failure(f"no answer within {self._timeout[1]} seconds", None)
        except requests.exceptions.ConnectionError as error:
            return _Failure(f"cannot connect{_errno(error)}", None)
        except requests.exceptions.RequestException as error:
            return _Failure(f"{type(error).__name__}: {_short(str(error))}", None)
        if answer.status_code in _AGAIN or answer.status_code >= 500:
            return _Failure(f"HTTP {answer.status_code}: {_message(answer)}", _pause(answer))
        if not answer.ok:
            raise Refused(answer.status_code, _message(answer))
        return _decoded(answer)

    @property
    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session


def _errno(error: Exception) -> str:
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)|'(Remote end [\w ]+)'", str(error))
    return f" ({found.group(1) or found.group(2)})" if found else ""


def _header(lm: Any) -> dict[str, str]:
    try:
        return dict(lm.header)
    except ValueError as error:
        raise ScoringError(str(error)) from error


def _decoded(answer: requests.Response) -> dict[str, Any] | _Failure:
    try:
        found = answer.json()
    except ValueError:
        return _Failure(f"the answer is not JSON: {_short(answer.text)!r}", None)
    if not isinstance(found, dict):
        return _Failure(f"the answer is not a JSON object: {_short(answer.text)!r}", None)
    return found


def _pause(answer: requests.Response) -> float | None:
    try:
        return float(answer.headers.get("Retry-After", ""))
    except ValueError:
        return None


def _message(answer: requests.Response) -> str:
    """What the server says went wrong, from the shapes that servers use."""
    try:
        found = answer.json()
    except ValueError:
        return _short(answer.text)
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return _short(found if isinstance(found, str) else json.dumps(found))


def _short(text: str, most: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + " …"
