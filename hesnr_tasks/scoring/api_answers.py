"""The forms in which completion servers return log-probabilities of a prompt, and how to read each of them.

`prompt_logprobs` is vLLM's own: per position a dict from token id to log-probability and rank. `echo` with `logprobs`
is OpenAI's: per position the prompt's token and a dict from *token* to log-probability, where a token is an id only if
the server was asked for ids and understands that. Texts of different tokens can be equal (all parts of a character
decode to U+FFFD), and of equal keys only one survives; so a text counts only where exactly one token id has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hesnr_tasks.scoring.prompt_logprobs import Rows, row
from hesnr_tasks.scoring.types import Passage

__all__ = ["FORMS", "Form", "TokenTexts"]

_TOKEN_ID = re.compile(r"token_id:(\d+)")
_CLAMPED = -9999.0  # what servers write for minus infinity, which JSON lacks


class TokenTexts:
    """From a token's text to its id, where only one token has that text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def id_of(self, text: str) -> int:
        """Raises `ValueError` for a text that no token or several tokens have."""
        found = self._ids.get(text)
        if found is None:
            several = "no token or several tokens of the tokenizer have"
            raise ValueError(f"the server names tokens by their text, and {several} the text {text!r}")
        return found

    @cached_property
    def _ids(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for index, text in enumerate(self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))])):
            found[text] = None if text in found else index
        return found


class Form(NamedTuple):
    """One way to ask: the fields of the request for given k, and how the answer's choice becomes `Rows`."""

    name: str
    fields: Callable[[int], dict[str, Any]]
    rows: Callable[[Passage, Mapping[str, Any], int, TokenTexts], Rows]


def _number(value: Any) -> float | None:
    if value is None:
        return None
    return float(value) if value > _CLAMPED else -np.inf


def _prompt_logprobs(passage: Passage, choice: Mapping[str, Any], k: int, texts: TokenTexts) -> Rows:
    found = choice.get("prompt_logprobs")
    if not isinstance(found, list) or len(found) != len(passage.ids):
        got = f"{len(found)} positions" if isinstance(found, list) else "none"
        raise ValueError(f"no prompt_logprobs for {len(passage.ids)} tokens came back ({got})")
    sent = choice.get("prompt_token_ids")
    if sent is not None and sent != passage.ids.tolist():
        raise ValueError("the answer is to other tokens than those that were sent")
    made, ranks = [], []
    for at in passage.targets.tolist():
        target, entry = int(passage.ids[at]), found[at]
        if not entry:
            raise ValueError(f"the values of token {at} are null")
        made.append(row(target, ((int(i), _number(value["logprob"])) for i, value in entry.items()), k))
        ranks.append(entry[str(target)].get("rank") or 0)
    return _rows(made, ranks)


def _echo(passage: Passage, choice: Mapping[str, Any], k: int, texts: TokenTexts) -> Rows:
    found = choice.get("logprobs") or {}
    tokens, own, top = (found.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    n = len(passage.ids)
    if not len(tokens) == len(own) == len(top) or len(tokens) not in (n, n + 1):
        raise ValueError(f"no log-probabilities of the {n} prompt tokens came back (values for {len(tokens)} tokens)")
    by_id = all(_TOKEN_ID.fullmatch(token) for token in tokens)
    read = (lambda token: int(token.partition(":")[2])) if by_id else texts.id_of
    made = []
    for at in passage.targets.tolist():
        target = int(passage.ids[at])
        if read(tokens[at]) != target:
            raise ValueError(f"token {at} came back as {tokens[at]!r}, which is not what was sent")
        if not top[at]:
            raise ValueError(f"the values of token {at} are null")
        entries = [(read(token), _number(value)) for token, value in top[at].items()]
        made.append(row(target, [*entries, (target, _number(own[at]))], k))
    return _rows(made, [0] * len(made))


def _rows(made: list[tuple[list[int], list[float]]], ranks: list[int]) -> Rows:
    ids, logprobs = zip(*made, strict=True)
    return Rows(np.array(ids, dtype=np.int64), np.array(logprobs, dtype=np.float64), np.array(ranks, dtype=np.int64))


FORMS = (
    Form("prompt_logprobs", lambda k: {"prompt_logprobs": k, "return_token_ids": True}, _prompt_logprobs),
    Form("echo + logprobs", lambda k: {"echo": True, "logprobs": k, "return_tokens_as_token_ids": True}, _echo),
    Form("plain echo + logprobs", lambda k: {"echo": True, "logprobs": k}, _echo),
)
