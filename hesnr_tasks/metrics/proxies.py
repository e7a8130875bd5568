"""Further published statistics of teacher-forced tokens that predict downstream performance."""

from __future__ import annotations

import math
from typing import Any

from hesnr_tasks.metrics.registry import TokenColumns, metric
from hesnr_tasks.stats import Scale


@metric(
    "bpb", better="down", unit="bits/byte", title="BPB ↓", scale=Scale.POSITIVE, needs=("n_bytes",),
    own_denominator=True, source="olmo-eval, BPBMetricByteAvg",
)  # fmt: skip
def _bits_per_byte(tokens: TokenColumns) -> Any:
    """Negative log-likelihood in bits over the UTF-8 bytes of the tokens: comparable across tokenizers."""
    return -tokens.logprob / math.log(2), tokens.n_bytes
