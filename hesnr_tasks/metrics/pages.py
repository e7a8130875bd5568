"""A page of every registered metric, from its registration, its docstring, and a worked example that is computed.

`make docs` writes them for the site; `page` gives the same text anywhere. A metric that is registered has its page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SettingsError, nearest
from hesnr_tasks.metrics.registry import (
    EPSILON,
    METRICS,
    Metric,
    TokenColumns,
    TrajectorySums,
    cell_sums,
    evaluate,
    terms_of,
    topk_entropy,
)
from hesnr_tasks.stats import Scale
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import kind_code

WORDS = ("sed", " -i", " s/a", "/b/", "1 passed", " pytest")
VOCABULARY = 50  # of the example; what the ten most likely leave is spread evenly over the others
TOP = np.array([
    [0.90, 0.04, 0.02, 0.01, 0.008, 0.006, 0.004, 0.003, 0.002, 0.001],
    [0.40, 0.30, 0.12, 0.06, 0.04, 0.02, 0.02, 0.01, 0.01, 0.005],
    [0.25, 0.24, 0.20, 0.12, 0.06, 0.04, 0.03, 0.02, 0.01, 0.01],
    [0.55, 0.25, 0.10, 0.03, 0.02, 0.01, 0.01, 0.005, 0.005, 0.005],
    [0.30, 0.28, 0.15, 0.10, 0.05, 0.03, 0.02, 0.02, 0.01, 0.01],
    [0.70, 0.10, 0.05, 0.05, 0.02, 0.02, 0.01, 0.01, 0.01, 0.01],
])  # fmt: skip
RANK = np.array([1, 1, 3, 2, 11, 1], dtype=np.int32)  # of the targets; of equals, the target counts first
SHORT = np.array([0.90, 0.02, 0.15, 0.25, 0.0008, 0.60])  # p with a short context
HIDDEN = np.array([0.0, 0.5, 0.75, 2.0, 0.0, 5.0])  # windows
KEY = np.array([-1, 1, 0, 0, -1, 0], dtype=np.int8)
TEACHER = np.array([0.95, 0.60, 0.10, 0.50, 0.30, 0.90])
REFERENCE = np.array([False, True, True, True, False, False])
FREQUENCY = np.array([5.0, 2, 1, 1, 3, 2])
TRAJECTORY = np.array([0, 0, 0, 0, 0, 1])
TURN = np.array([1, 1, 2, 2, 2, 1], dtype=np.int32)
OBSERVED = 4  # the place of a token of an observation; the others are of actions


def probabilities() -> npt.NDArray[np.float64]:
    """Of every token of the vocabulary at each of the example's positions, falling."""
    rest = (1 - TOP.sum(axis=1, keepdims=True)) / (VOCABULARY - TOP.shape[1])
    return np.hstack([TOP, np.repeat(rest, VOCABULARY - TOP.shape[1], axis=1)])


def _columns() -> TokenColumns:
    p = probabilities()
    kinds = np.full(len(RANK), 1 << kind_code(Kind.ACTION), dtype=np.uint8)
    kinds[OBSERVED] = 1 << kind_code(Kind.OBSERVATION)
    return TokenColumns(
        logprob=np.log(p[np.arange(len(RANK)), RANK - 1]),
        rank=RANK,
        entropy=topk_entropy(np.log(TOP), 10),
        topk_logprobs=np.log(TOP),
        n_bytes=np.array([len(word.encode()) for word in WORDS], dtype=np.float64),
        full_entropy=-(p * np.log(p)).sum(axis=1),
        expected_rank=p @ np.arange(1, VOCABULARY + 1),
        frequency=FREQUENCY,
        kinds=kinds,
        turn=TURN,
        trajectory=TRAJECTORY,
        short_logprob=np.log(SHORT),
        hidden=HIDDEN,
        key=KEY,
        teacher=TEACHER,
        reference_decision=REFERENCE,
    )


EXAMPLE = _columns()
"""Six tokens of two trajectories, with every column that a metric can need."""


def worked_example(name: str) -> float:
    """The value of a registered metric over `EXAMPLE`.

    >>> from hesnr_tasks.metrics import worked_example
    >>> round(worked_example("top1_acc"), 4)
    0.5
    """
    return _value(_entry(name), _sums(name, EXAMPLE))


def page(name: str) -> str:
    """What a metric is, what it does not depend on, where it is shown, and an example: Markdown.

    Raises:
        SettingsError: no metric has this name.
    """
    entry = _entry(name)
    definition, _, prose = (entry.definition.__doc__ or "No description.").strip().partition("\n")
    lines = [f"# {entry.title}", "", f"`{name}`: {definition}"]
    prose = " ".join(prose.split())
    lines += ["", prose] if prose else []
    lines += ["", "| property | |", "| --- | --- |"]
    for key, text in _properties(entry).items():
        escaped = text.replace("|", "\\|")
        lines.append(f"| {key} | {escaped} |")
    return "\n".join([*lines, "", "## Example", "", *_example(entry), "", "## Source", "", _source(entry)]) + "\n"


def _entry(name: str) -> Metric:
    if name not in METRICS:
        raise SettingsError(f"there is no metric {name!r}.{nearest(name, METRICS)}")
    return METRICS[name]


# --- properties -------------------------------------------------------------------------------------------------------

_RANGE = {
    Scale.EXP: "1 … ∞",
    Scale.SHARE: "0 … 1",
    Scale.POSITIVE: "0 … ∞",
    Scale.LINEAR: "any number",
}
_LIMITS = {"he_snr": "0 … 1/ε", "he_snr_shared": "0 … 1/ε", "entropy": "0 … ln k", "uncertainty": "0 … ln k"}
_SHOWN = {
    "core": "every task and table",
    "proxies": "`hesnr_proxies`, `hesnr compare --metrics`, `hesnr ladder verdict --proxies`",
    "world": "`hesnr_world_model`, `hesnr compare --metrics`, `hesnr ladder verdict --proxies`",
    "pairs": "`hesnr analyze A --against B`: it needs other scores of the same texts",
}
_NEEDED = {
    "topk_logprobs": "the log-probabilities of the k most likely tokens",
    "n_bytes": "the text",
    "full_entropy": "all logits (`--model hf`)",
    "expected_rank": "all logits (`--model hf`)",
    "frequency": "the token ids of all texts of the run (score files)",
    "kinds": "the kinds of characters",
    "turn": "turns",
    "trajectory": "whole trajectories, in order",
    "short_logprob": "a short-context pass of the same model (`window`)",
    "hidden": "its window",
    "key": "a whole and a short-context pass of an evaluator",
    "teacher": "the scores of a teacher",
    "reference_decision": "the scores of a reference checkpoint with the same tokens",
}


def _properties(entry: Metric) -> dict[str, str]:
    sets = {"tokens": "the tokens that count, M", "decisions": "𝓗, the tokens that count with H > ε and rank ≤ k"}
    total = entry.denominator is None
    average = {
        "micro": "pooled over tokens: long trajectories weigh more",
        "macro": "mean of the trajectories' own values: each weighs the same, however long",
        "total": "a sum: it grows with the data, and has no error",
    }[entry.average]
    own, in_any_order = entry.denominator == f"{entry.name}_denominator", {"turn", "trajectory"}.isdisjoint(entry.needs)
    properties = {
        "better": {"up": "higher", "down": "lower", None: "neither"}[entry.better],
        "range": "0, 1, 2, …" if total else _LIMITS.get(entry.name, _RANGE[entry.scale]),
        "unit": entry.unit,
        "over": ("some of " if own else "") + " per ".join(sets[part] for part in dict.fromkeys(entry.over)),
        "average": average,
        "tokenizers": "comparable across them" if entry.across_tokenizers else "compare checkpoints of one only",
        "order of tokens": "does not matter" if in_any_order else "may matter: it knows turns or whole trajectories",
        "only 5 of 10 candidates stored": _truncated(entry),
        "needs": "; ".join(dict.fromkeys(_NEEDED.get(name, name) for name in entry.needs)) or "ln p, rank, H_topk",
        "without it": "N/A" if entry.needs else "",
        "shown by": _SHOWN.get(entry.suite, entry.suite),
        "interval": "" if total else "cluster bootstrap over trajectories; 95 %, within the range",
    }
    return {key: text for key, text in properties.items() if text}


def _truncated(entry: Metric) -> str:
    """What fewer stored candidates do to the value, by trying it."""
    top = np.log(TOP[:, :5])
    rank = np.where(RANK > 5, -5, RANK).astype(np.int32)
    fewer = replace(EXAMPLE, rank=rank, entropy=topk_entropy(top, 5), topk_logprobs=top)
    before, after = worked_example(entry.name), _value(entry, _sums(entry.name, fewer, k=5))
    if math.isnan(after):
        return "N/A where a rank lies beyond those stored, and is not known (servers)"
    same = math.isclose(before, after, rel_tol=1e-12)
    return "no change" if same else f"another value: {_number(after)} in the example below"


# --- the example ------------------------------------------------------------------------------------------------------


def _sums(name: str, tokens: TokenColumns, k: int = 10) -> TrajectorySums:
    return cell_sums(tokens, TRAJECTORY, len(set(TRAJECTORY)), [EPSILON], k, [name])[0]


def _value(entry: Metric, sums: TrajectorySums) -> float:
    numerator, denominator = (math.fsum(part) for part in sums.parts(entry.name))
    return float(evaluate(entry, numerator, denominator))


_COLUMNS: dict[str, tuple[str, Any]] = {
    "n_bytes": ("bytes", EXAMPLE.n_bytes), "full_entropy": ("entropy", EXAMPLE.full_entropy),
    "expected_rank": ("E[rank]", EXAMPLE.expected_rank), "frequency": ("f", FREQUENCY), "turn": ("turn", TURN),
    "short_logprob": ("p, short", SHORT), "hidden": ("hidden", HIDDEN), "key": ("key", KEY),
    "teacher": ("teacher", TEACHER), "reference_decision": ("in its 𝓗", REFERENCE.astype(int)),
    "topk_logprobs": ("p of the most likely", TOP[:, 0]),
}  # fmt: skip


def _example(entry: Metric) -> list[str]:
    """The six tokens with what the metric makes of each, and the value."""
    decisions = (EXAMPLE.entropy > EPSILON) & (RANK <= 10)
    kinds = ["observation" if i == OBSERVED else "action" for i in range(len(WORDS))]
    columns: dict[str, Sequence[str]] = {
        "token": [f"`{word}`" for word in WORDS],
        "trajectory": [str(1 + number) for number in TRAJECTORY],
        "p": _numbers(np.exp(EXAMPLE.logprob)),
        "rank": [str(rank) for rank in RANK],
        "H": _numbers(EXAMPLE.entropy),
        "in 𝓗": ["yes" if inside else "" for inside in decisions],
        **({"kind": kinds} if "kinds" in entry.needs else {}),
        **{_COLUMNS[name][0]: _numbers(_COLUMNS[name][1]) for name in entry.needs if name in _COLUMNS},
    }
    sides = _sides(entry, decisions)
    columns["term"] = sides[0]
    if entry.denominator is not None:
        columns["weight"] = sides[1]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in zip(*columns.values(), strict=True)]
    value, sums = worked_example(entry.name), _sums(entry.name, EXAMPLE)
    numerator, denominator = sums.parts(entry.name)
    if entry.denominator is None:
        words = f"The sum: {_number(value)}."
    elif entry.average == "macro":
        own = [_number(float(n)) for n, d in zip(numerator, denominator, strict=True) if d]
        words = f"Each trajectory's sum of terms over that of weights: {', '.join(own)}. Their mean: {_number(value)}."
    else:
        ratio = f"{_number(math.fsum(numerator))} / {_number(math.fsum(denominator))}"
        inner = f"exp({ratio})" if entry.exponentiate else ratio
        words = f"Sum of terms over sum of weights: {inner} = {_number(value)}."
    code = ["from hesnr_tasks.metrics import worked_example", "", f'round(worked_example("{entry.name}"), 6)']
    return [*lines, "", words, "", "```python", *code, f"# {round(value, 6)!r}", "```"]


def _sides(entry: Metric, decisions: npt.NDArray[np.bool_]) -> list[list[str]]:
    """Term and weight of each token, blank where the token is in neither set."""
    sides = []
    for part, over in enumerate(entry.over):
        inside = decisions if over == "decisions" else np.ones(len(RANK), dtype=bool)
        subset = EXAMPLE if over == "tokens" else EXAMPLE[np.flatnonzero(inside)]
        terms = terms_of(entry, subset)
        values: Any = terms[part] if isinstance(terms, tuple) else (1.0 if part else terms)
        cells = np.full(len(RANK), math.nan)
        cells[inside] = np.broadcast_to(np.asarray(values, dtype=np.float64), int(inside.sum()))
        sides.append(["" if math.isnan(cell) else _number(float(cell)) for cell in cells])
    return sides


def _numbers(values: Any) -> list[str]:
    return [_number(float(value)) for value in values]


def _number(value: float) -> str:
    return "N/A" if math.isnan(value) else f"{value:.4g}"


# --- the source -------------------------------------------------------------------------------------------------------

_NOTES = {
    "arXiv 2605.18607": "Known from secondary texts, not from the paper's own code: clipping of weights, the form of "
    "wrong confidence and the corpus of frequencies are not verified. Entropies as weights are of the stored top k, "
    "frequencies those of the texts of the run.",
    "arXiv 2509.21013": "Known from secondary texts: the mean of tokens that share a character is a choice made here.",
    "arXiv 2602.01745": "Known from secondary texts.",
}


def _source(entry: Metric) -> str:
    if not entry.source:
        return "None was given when the metric was registered."
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", entry.source)
    notes = [note for source, note in _NOTES.items() if source in entry.source]
    return " ".join([f"{text}.", *notes])
