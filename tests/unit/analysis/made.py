"""Made-up runs of any size: tokens correlated within trajectories, entropies with peaks at ln 1 … ln 4."""

from dataclasses import replace

import numpy as np

from hesnr_tasks.scores import ScoreStore, Source, Text
from hesnr_tasks.scores.schema import SequenceScores, TokenScores
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Rendered, Span
from tests.unit.scores import made

WANTED = made.BOTH


def run_of(folder, trajectories=20, tokens=200, seed=0, shift=0.0, quality=0.0, cut=(), first_key=0, **run):
    """A store of made-up scores. `shift` moves mass from ln 4 to ln 3, `quality` raises all probabilities a little.

    The texts depend on nothing but their number, so two runs are of the same trajectories; `first_key`: as if of
    other texts.
    """
    store = ScoreStore.open(folder, made.signature(**run))
    for index in range(trajectories):
        rng = np.random.default_rng([seed, index])
        shape = np.random.default_rng([99, index])
        n = int(shape.integers(max(1, tokens // 2), tokens * 3 // 2 + 1))
        scores = trajectory(index, n, rng, shape, shift, quality, WANTED if index in cut else None)
        scores = replace(scores, key=f"{index + first_key:064x}")
        source = Source(f"run{index}", f"task{index // 2}", (True, False, None)[index % 3])
        store.write(scores, text=text(index, n), mask=WANTED, sources=[source])
    return store


def text(index, n):
    """n tokens of four characters: ten turns of a thought and an action with a known tool and language."""
    body, spans = "", []
    for turn in range(1, 11):
        for kind in (Kind.THOUGHT, Kind.ACTION):
            size = 4 * ((n * turn // 10) - (n * (turn - 1) // 10)) // 2
            size = size if kind is Kind.THOUGHT else 4 * (n * turn // 10) - len(body)
            words = ("look at it; " * (size // 8 + 9))[:size] if kind is Kind.THOUGHT else _action(turn, size)
            spans.append(Span(len(body), len(body) + size, kind, turn, False))
            body += words
    return Text(Rendered(body, tuple(spans)), np.arange(n, dtype=np.int32) % 600)


def _action(turn, size):
    name, key = ("bash", "command") if turn % 2 else ("str_replace_editor", "file_text")
    path = "" if turn % 2 else "<parameter=path>a.py</parameter>\n"
    head = f"<function={name}>\n{path}<parameter={key}>"
    tail = "</parameter>\n</function>"
    room = size - len(head) - len(tail)
    return head + ("x = 1\n" * (room // 6 + 1))[:room] + tail if room >= 0 else "l" * size


def trajectory(index, n, rng, shape, shift, quality, beyond):
    """Scores of one made-up trajectory."""
    spans = text(index, n).rendered.spans
    last = 4 * np.arange(n) + 3
    where = np.searchsorted([s.end for s in spans], last, side="right")
    codes = np.where([spans[i].kind is Kind.THOUGHT for i in where], 2, 4 + shape.choice(8, n, p=[0.65] + [0.05] * 7))
    top, rank = candidates(n, rng, shape, shift, quality)
    ids = (7 * np.arange(n)[:, None] + np.arange(10)).astype(np.int32) % 600
    cut = int(0.4 * n) if beyond is not None else 0
    keep = slice(0, n - cut)
    label = np.left_shift(np.uint64(1), codes.astype(np.uint64))
    return TokenScores(
        key=f"{index:064x}",
        position=np.arange(n, dtype=np.int32)[keep],
        token_id=(np.arange(n, dtype=np.int32) % 600)[keep],
        turn=np.array([spans[i].turn for i in where], dtype=np.int32)[keep],
        label=label[keep],
        char_start=4 * np.arange(n, dtype=np.int32)[keep],
        char_end=4 * np.arange(1, n + 1, dtype=np.int32)[keep],
        scores=SequenceScores(
            np.where(rank <= 10, top[np.arange(n), np.minimum(rank, 10) - 1], np.float32(-9.5))[keep],
            rank.astype(np.int32)[keep],
            top[keep],
            ids[keep],
        ),
        tokens_total=n,
        labels_cut=label[n - cut :],
        run=made.RUN,
    )


def candidates(n, rng, shape, shift=0.0, quality=0.0):
    """Top-10 log-probabilities (n, 10), falling, of tokens that hesitate between 1 … 4 continuations, and ranks."""
    level = shape.normal(0, 0.35)
    odds = np.array([0.45, 0.2, 0.15 + 0.1 * shift, 0.2 - 0.1 * shift]) * np.exp(level * np.arange(4))
    ways = 1 + shape.choice(4, n, p=odds / odds.sum())
    logits = np.where(np.arange(10) < ways[:, None], 0.0, -5.0 - 0.4 * np.arange(10)) + rng.normal(0, 0.15, (n, 10))
    logits = -np.sort(-logits, axis=1) + quality * np.eye(10)[0]
    top = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)) - 0.01
    rank = 1 + (rng.random((n, 1)) > np.cumsum(np.exp(top), axis=1)).sum(axis=1)
    return np.ascontiguousarray(top, dtype=np.float32), rank
