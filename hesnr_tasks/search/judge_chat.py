"""Asking an OpenAI-style chat endpoint over plain HTTP, and asking again where the reply cannot be used."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from hesnr_tasks.errors import JudgeError, SettingsError, printable
from hesnr_tasks.search.judge_replies import BadReply
from hesnr_tasks.search.types import Message, Usage, total

__all__ = ["Chat", "HttpChat", "JudgeFailed", "Reply", "ask_until_read", "usage_of"]

Read = TypeVar("Read")
_AGAIN = (408, 409, 429, 500, 502, 503, 504)


class Reply(NamedTuple):
    """What a model said and what it cost."""

    text: str
    usage: Usage


class Chat(Protocol):
    """Messages in, one reply out. Raises `JudgeError` when there is none."""

    def __call__(self, messages: Sequence[Message]) -> Reply:
        """Ask once."""
        ...


class JudgeFailed(JudgeError):
    """A judge gave no number; `usage`: what asking had cost by then."""

    def __init__(self, message: str, usage: Usage = Usage()) -> None:  # noqa: B008 (a tuple)
        super().__init__(message)
        self.usage = usage


@dataclass(frozen=True)
class HttpChat:
    """A chat endpoint: `url` ends in /v1 or in /chat/completions; the key is read from the variable `key_variable`."""

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    tries: int = 3
    pause: float = 1.0  # seconds before the second try; doubles
    options: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 2000})

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise SettingsError(f"the judge's address {self.url!r} must begin with http:// or https://")

    def __call__(self, messages: Sequence[Message]) -> Reply:
        """Ask, again after a passing fault of the server, at most `tries` times."""
        problem = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return _reply(self._post(messages))
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {_body(error)}"
                if error.code not in _AGAIN:
                    break
            except (OSError, ValueError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
        raise JudgeFailed(f"the judge {self.model!r} at {self.url} did not answer: {printable(problem)}")

    def _post(self, messages: Sequence[Message]) -> Any:
        plain = [{"role": one["role"], "content": one["content"]} for one in messages]
        body = json.dumps({**self.options, "model": self.model, "messages": plain}).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._address(), body, headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.loads(answer.read())

    def _address(self) -> str:
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


def ask_until_read(
    chat: Chat, messages: Sequence[Message], read: Callable[[str], Read], retries: int
) -> tuple[Read, Usage]:
    """Ask; where `read` refuses the reply tell the model why, at most `retries` times. Raises `JudgeFailed`.

    The usage is that of all replies, also in the error.
    """
    spent, asked, problem = Usage(), list(messages), ""
    for _ in range(retries + 1):
        try:
            reply = chat(asked)
        except JudgeError as error:
            raise JudgeFailed(str(error), total((spent, getattr(error, "usage", Usage())))) from error
        spent = total((spent, reply.usage))
        try:
            return read(reply.text), spent
        except BadReply as error:
            problem = str(error)
            told = f"That reply cannot be used: {problem}. Reply again, with the JSON object alone."
            said = {"role": "assistant", "content": reply.text[:4_000]}
            asked = [*messages, said, {"role": "user", "content": told}]
    raise JudgeFailed(f"the judge gave no usable reply in {retries + 1} tries; the last one: {problem}", spent)


def usage_of(answer: Any) -> Usage:
    """The tokens that a chat completion states; servers that state none are an error, as the ledger would lie."""
    stated = answer.get("usage") if isinstance(answer, dict) else None
    stated = stated if isinstance(stated, dict) else {}
    details = stated.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counts = Usage(stated.get("prompt_tokens", -1), cached or 0, stated.get("completion_tokens", -1))
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("the reply states no token usage")
    return counts


def _body(error: urllib.error.HTTPError) -> str:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return error.read(300).decode("utf-8", "replace")
    return "no message"


def _reply(answer: Any) -> Reply:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"no chat completion: {json.dumps(answer)[:200]}") from None
    return Reply(text if isinstance(text, str) else "", usage_of(answer))
