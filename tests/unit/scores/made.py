"""Made-up scores of made-up texts: every column full, nothing of it round."""

import numpy as np

from hesnr_tasks.scores import ScoreStore, Source, Text, scoring_signature
from hesnr_tasks.scores.schema import SequenceScores, TokenScores
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Rendered, Span, label_mask

FILTERS = ("xml", "format", "comments")
ACTION = label_mask([Kind.ACTION], [], FILTERS)
ACTION_FILTERED = label_mask([Kind.ACTION], FILTERS, FILTERS)
THOUGHT = label_mask([Kind.THOUGHT], [], FILTERS)
BOTH = ACTION | THOUGHT
RUN = {"backend": "made", "model": "made/one", "dtype": "float32", "tokenizer": "600 tokens abc", "max_length": 32768}


def signature(k=10, render="transcript", overflow="right", **run):
    return scoring_signature({**RUN, **run}, render=render, overflow=overflow, k=k, filters=FILTERS)


def text_of(seed, turns=4):
    """A rendered text of thoughts and actions, and token ids of it (four characters a token)."""
    rng = np.random.default_rng([seed, 1])
    spans, text = [], ""
    for turn in range(1, turns + 1):
        for kind in (Kind.OBSERVATION, Kind.THOUGHT, Kind.ACTION):
            words = "".join(rng.choice(list("abcde fgh\n—😀"), size=int(rng.integers(8, 60))))
            if kind is Kind.ACTION:
                words = f"<function=tool{turn % 2}>\n<parameter=command>{words}</parameter>\n</function>"
            spans.append(Span(len(text), len(text) + len(words), kind, turn, False))
            text += words
    return Text(Rendered(text, tuple(spans)), rng.integers(0, 600, -(-len(text) // 4)).astype(np.int32))


def scores_of(seed, mask=BOTH, k=10, run=None, cut=5):
    """Scores of the tokens of `text_of(seed)` that `mask` wants; its last `cut` tokens are beyond the context."""
    text = text_of(seed)
    rng = np.random.default_rng([seed, 2])
    n = len(text.ids)
    start = 4 * np.arange(n)
    last = np.minimum(start + 3, len(text.rendered.text) - 1)
    span = [next(s for s in text.rendered.spans if s.start <= within < s.end) for within in last]
    label = np.array([_label(s.kind, rng) for s in span], dtype=np.uint64)
    turn = np.array([s.turn for s in span], dtype=np.int32)
    top = -np.sort(rng.gamma(1.0, 2.0, (n, 20)).astype(np.float32), axis=1)
    ids = rng.integers(0, 600, (n, 20)).astype(np.int32)
    rank = rng.geometric(0.4, n).astype(np.int32)
    ids[np.arange(n), np.minimum(rank, 20) - 1] = text.ids
    logprob = top[np.arange(n), np.minimum(rank, 20) - 1]
    wanted = np.flatnonzero((label & mask) != 0)
    wanted = wanted[wanted > 0]
    within, beyond = wanted[wanted < n - cut], wanted[wanted >= n - cut]
    return TokenScores(
        key=f"{seed:064x}",
        position=within.astype(np.int32),
        token_id=text.ids[within],
        turn=turn[within],
        label=label[within],
        char_start=start[within].astype(np.int32),
        char_end=np.minimum(start + 4, len(text.rendered.text))[within].astype(np.int32),
        scores=SequenceScores(
            logprob[within], rank[within], np.ascontiguousarray(top[within, :k]), np.ascontiguousarray(ids[within, :k])
        ),
        tokens_total=n,
        labels_cut=label[beyond],
        run=dict(RUN if run is None else run),
    )


def _label(kind, rng):
    codes = {Kind.OBSERVATION: [1], Kind.THOUGHT: [2], Kind.ACTION: [4, 5, 6, 8]}[kind]
    return np.bitwise_or.reduce(np.left_shift(np.uint64(1), rng.choice(codes, 1).astype(np.uint64)))


def put(store, seed, mask=BOTH, sources=None):
    scores = scores_of(seed, mask, store.k)
    store.write(scores, text=text_of(seed), mask=mask, sources=sources or [Source(f"run{seed}", f"task{seed}", True)])
    return scores


def filled(folder, seeds, mask=BOTH, **run):
    """A store of the scores of `seeds`."""
    store = ScoreStore.open(folder, signature(**run))
    for seed in seeds:
        put(store, seed, mask)
    return store


def same(a, b):
    """Whether two TokenScores are the same to the last bit, types included."""
    pairs = [
        (getattr(a, name), getattr(b, name))
        for name in ("position", "token_id", "turn", "label", "char_start", "char_end", "labels_cut")
    ]
    pairs += list(zip(a.scores.padded(), b.scores.padded(), strict=True))
    arrays = all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)
    return arrays and (a.key, a.tokens_total, dict(a.run)) == (b.key, b.tokens_total, dict(b.run))
