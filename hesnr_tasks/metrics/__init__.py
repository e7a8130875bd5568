"""Metrics: one registry, one result model, the published definitions. Imports neither torch nor lm-eval."""

from hesnr_tasks.metrics import definitions  # noqa: F401  (registers the metrics)
from hesnr_tasks.metrics.pages import page, worked_example
from hesnr_tasks.metrics.registry import (
    EPSILON,
    METRICS,
    MIN_TOKENS,
    Metric,
    Share,
    TokenColumns,
    TrajectorySums,
    cell_sums,
    describe_metrics,
    evaluate,
    measure,
    metric,
    names_of,
    needed_columns,
    parse_epsilon,
    share_scored,
    token_bytes,
    topk_entropy,
    unregister,
)

__all__ = [
    "EPSILON",
    "METRICS",
    "MIN_TOKENS",
    "Metric",
    "Share",
    "TokenColumns",
    "TrajectorySums",
    "cell_sums",
    "describe_metrics",
    "evaluate",
    "measure",
    "metric",
    "names_of",
    "needed_columns",
    "page",
    "parse_epsilon",
    "share_scored",
    "token_bytes",
    "topk_entropy",
    "unregister",
    "worked_example",
]
