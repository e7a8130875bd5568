"""The forms in which completion servers return log-probabilities of a prompt, and how to read each of them.

`prompt_logprobs` is vLLM's own: per position a dict from token id to log-probability and rank. `echo` with `logprobs`
is OpenAI's: per position the prompt's token and a dict from *token* to log-probability, where a token is an id only if
the server was asked for ids and understands that. Texts of different tokens can be equal (all parts of a character
decode to U+FFFD), and of equal keys only one survives; so a text counts only where exactly one token id has it.

OpenAI's form has no ranks, and k entries may be the k most likely or k - 1 of them and the prompt's token: more than k
are asked for, eleven at least where the server gives them, so that the ten likeliest are known for certain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from hesnr_tasks.backends.prompt_logprobs import Rows, number, row, same_value, stack
from hesnr_tasks.backends.types import Passage

__all__ = ["FORMS", "Form", "TokenTexts"]

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
    rows: Callable[[Passage, Mapping[str, Any], int, TokenTexts], Rows]


def _prompt_logprobs(passage: Passage, choice: Mapping[str, Any], k: int, texts: TokenTexts) -> Rows:
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


def _echo(passage: Passage, choice: Mapping[str, Any], k: int, texts: TokenTexts) -> Rows:
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


def _named_by_id(passage: Passage, choice: Mapping[str, Any], k: int, texts: TokenTexts) -> Rows:
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
