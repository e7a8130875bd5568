"""Texts with ⟦marked⟧ characters: how these tests write down which characters a filter must find."""

from collections.abc import Callable
from pathlib import Path

OPEN, CLOSE = "⟦⟧"
FRAGMENTS = Path(__file__).parent / "fragments"


def unmark(marked: str) -> tuple[str, set[int]]:
    """The text without its marks and the positions that were between them."""
    text: list[str] = []
    inside: set[int] = set()
    depth = 0
    for c in marked:
        if c in (OPEN, CLOSE):
            depth += 1 if c == OPEN else -1
            assert depth in (0, 1), "marks must alternate"
            continue
        if depth:
            inside.add(len(text))
        text.append(c)
    assert depth == 0, "a mark is not closed"
    return "".join(text), inside


def mark(text: str, dropped: set[int]) -> str:
    """`text` with the characters of `dropped` marked, for messages that can be read."""
    out, on = [], False
    for i, c in enumerate(text + "\0"):
        if (i in dropped) != on:
            out.append(CLOSE if on else OPEN)
            on = not on
        out.append(c)
    return "".join(out)[:-1]


def positions(spans: list[tuple[int, int]]) -> set[int]:
    """Every position that one of `spans` covers."""
    return {i for start, end in spans for i in range(start, end)}


def check(filter_: Callable[[str], list[tuple[int, int]]], marked: str) -> None:
    """Assert that `filter_` finds the marked characters and no others (white space apart)."""
    text, expected = unmark(marked)
    dropped = {i for i in positions(filter_(text)) if not text[i].isspace()}
    expected = {i for i in expected if not text[i].isspace()}
    assert mark(text, dropped) == mark(text, expected)


def fragments(language: str) -> list[tuple[str, str, set[int]]]:
    """Title, text and marked positions of every labelled fragment of a language."""
    parts = ("\n" + (FRAGMENTS / f"{language}.txt").read_text(encoding="utf-8")).split("\n=== ")[1:]
    split = (part.partition("\n") for part in parts)
    return [(title, *unmark(body)) for title, _, body in split]
