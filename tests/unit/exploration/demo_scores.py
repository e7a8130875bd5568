"""Score files of the demo's last checkpoint, made again from what the exploration profile reads of them."""

import json
from pathlib import Path

import numpy as np

from hesnr_tasks.scores import ScoreStore, Source, Text
from hesnr_tasks.scores.schema import SequenceScores, TokenScores
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Rendered, Span
from tests.unit.scores import made

GOLDEN = Path(__file__).with_name("golden")


def write(folder):
    """The thoughts of the 12 demo trajectories, as `hesnr_swe_thought` scored them, with a vocabulary of 2048."""
    store = ScoreStore.open(folder, made.signature(tokenizer="2048 tokens demo"))
    with np.load(GOLDEN / "demo_scores.npz") as arrays:
        for i, about in enumerate(json.loads(arrays["about"].tobytes())):
            start, end, turn, top = (arrays[f"{i}/{name}"] for name in ("start", "end", "turn", "top"))
            n, spans = len(start), [Span(a, b, Kind(kind), *rest) for a, b, kind, *rest in about["spans"]]
            scores = TokenScores(
                key=about["key"],
                position=np.arange(1, n + 1, dtype=np.int32),
                token_id=np.zeros(n, dtype=np.int32),
                turn=turn,
                label=np.full(n, 1 << 2, dtype=np.uint64),
                char_start=start,
                char_end=end,
                scores=SequenceScores(
                    top[:, 0].copy(), np.ones(n, dtype=np.int32), top, np.zeros((n, 10), dtype=np.int32)
                ),
                tokens_total=n + 1,
                labels_cut=np.zeros(0, dtype=np.uint64),
                run=made.RUN,
            )
            text = Text(Rendered(about["text"], tuple(spans)), np.zeros(n + 1, dtype=np.int32))
            source = Source(about["id"], about["instance"], about["resolved"])
            store.write(scores, text=text, mask=made.THOUGHT, sources=[source])
    return folder
