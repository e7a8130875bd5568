"""The registry of metrics, and the one result model: sums of each trajectory, from which every number follows.

A metric is one function from token columns to per-token terms. The terms are summed per trajectory in float64
(`TrajectorySums`) and divided once, so averages are pooled over tokens (micro-averages) unless the metric says
`average="macro"`, and errors, paired tests and breakdowns need nothing but the sums.

    @metric("ppl", better="down", unit="", source="…", scale=Scale.EXP)
    def ppl(tokens):
        return -tokens.logprob            # over the number of tokens; or return (numerator, denominator)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate, Scale, estimates
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import kind_code

EPSILON = (math.log(3) + math.log(4)) / 2  # 1.2424533…: midpoint of ln 3 and ln 4, in nats
LEAST_ENTROPY = 0.01  # nats: 1 / H is taken of no less, or a few certain tokens would be all that counts
MIN_TOKENS = 30  # below that a mean is withheld: its relative error is some 20 % even for independent tokens

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """n scored tokens. Logarithms are natural, entropies in nats; `None`: that column is not available."""

    logprob: FloatArray  # (n,) ln p(x_t | x_<t)
    rank: npt.NDArray[np.int32]  # (n,) 1 + number of tokens strictly more likely; -m: beyond the m most likely
    entropy: FloatArray  # (n,) H_topk
    topk_logprobs: npt.NDArray[np.floating] | None = None  # (n, k) descending
    n_bytes: FloatArray | None = None  # (n,) UTF-8 bytes of the token's text
    full_entropy: FloatArray | None = None  # (n,) entropy over the whole vocabulary
    expected_rank: FloatArray | None = None  # (n,) sum of rank times probability over the whole vocabulary
    frequency: FloatArray | None = None  # (n,) how often the target token occurs in the texts of the run
    kinds: npt.NDArray[np.uint8] | None = None  # (n,) what the token's characters are: bits of `kinds_of`
    turn: npt.NDArray[np.int32] | None = None  # (n,) of the trajectory
    trajectory: IntArray | None = None  # (n,) which one; only where these are all tokens that count, in their order
    # of other scores of the same texts, see analysis/compare.py
    short_logprob: FloatArray | None = None  # (n,) ln p with the context of a short-context pass
    hidden: FloatArray | None = None  # (n,) tokens at the beginning of the text that it hides, over its window
    key: npt.NDArray[np.int8] | None = None  # (n,) of an evaluator: 1: key, 0: not, -1: its window hides nothing
    teacher: FloatArray | None = None  # (n,) mean probability of the token's characters; NaN: not known of any
    reference_decision: npt.NDArray[np.bool_] | None = None  # (n,) in the 𝓗 of a reference checkpoint

    @classmethod
    def of(
        cls,
        logprob: npt.NDArray[np.floating],
        rank: npt.NDArray[np.int32],
        topk_logprobs: npt.NDArray[np.floating],
        k: int,
        n_bytes: FloatArray | None = None,
        **optional: Any,
    ) -> TokenColumns:
        """From the arrays of a scoring backend; a rank of 0 means beyond the stored candidates."""
        rank = np.where(rank == 0, -topk_logprobs.shape[1], rank)
        entropy = topk_entropy(topk_logprobs, k)
        return cls(logprob.astype(np.float64), rank, entropy, topk_logprobs, n_bytes, **optional)

    @classmethod
    def of_scores(cls, scored: Any, counted: npt.NDArray[np.bool_], k: int, text: str) -> TokenColumns:
        """The tokens of a `TokenScores` where `counted` (n,) is true; `text`: what was scored."""
        n_bytes = token_bytes(text, scored.char_start, scored.char_end)[counted]
        logprob, rank, top, _, full_entropy, expected_rank = scored.scores.take(counted)
        return cls.of(
            logprob, rank, top, k, n_bytes,
            full_entropy=column_or_none(full_entropy), expected_rank=column_or_none(expected_rank),
            kinds=kinds_of(scored.label[counted]), turn=scored.turn[counted],
            trajectory=np.zeros(len(logprob), dtype=np.int64),
        )  # fmt: skip

    def __getitem__(self, index: Any) -> TokenColumns:
        """Some of the tokens; they are not all that count, so nothing knows their trajectories any more."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "trajectory"}
        chosen: dict[str, Any] = {n: None if column is None else column[index] for n, column in columns.items()}
        return TokenColumns(**chosen)

    def __len__(self) -> int:
        return len(self.logprob)


def column_or_none(column: npt.NDArray[np.floating] | None) -> FloatArray | None:
    """A stored column; None where it is not known of any token."""
    return None if column is None or (len(column) and np.isnan(column).all()) else column.astype(np.float64)


def kinds_of(label: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Which kinds of characters tokens cover, from their labels: bit `kind_code(kind)` of each (see rendering.py)."""
    action = np.uint64(kind_code(Kind.ACTION))
    others = label & ((np.uint64(1) << action) - np.uint64(1))
    return (others | ((label >> action != 0).astype(np.uint64) << action)).astype(np.uint8)


Terms = FloatArray | npt.NDArray[np.bool_] | float  # per token; a number stands for all tokens
Definition = Callable[[TokenColumns], "Terms | tuple[Terms, Terms]"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One registered metric. `numerator` and `denominator` name columns of `TrajectorySums`."""

    name: str
    definition: Definition
    better: str | None  # "up", "down", None: neither
    unit: str
    source: str
    title: str  # heading in tables
    over: tuple[str, str]  # the token sets that numerator and denominator are summed over: "tokens", "decisions"
    scale: Scale
    average: str  # "micro": pooled over tokens; "macro": mean of the trajectories' own ratios; "total": a plain sum
    needs: tuple[str, ...]  # optional columns of `TokenColumns`
    numerator: str
    denominator: str | None  # None for a total
    across_tokenizers: bool = False  # whether values of different tokenizers compare
    suite: str = "core"  # "core": in every result; "proxies", "world", "pairs": where they are asked for

    @property
    def higher_is_better(self) -> bool | None:
        """None where neither direction is better."""
        return None if self.better is None else self.better == "up"

    @property
    def columns(self) -> set[str]:
        """The columns of `TrajectorySums` that it needs, that of its number of tokens included."""
        return {self.numerator, self.denominator or self.numerator, _COUNTS[self.over[1]]}

    @property
    def exponentiate(self) -> bool:
        """Whether the value is exp of the ratio."""
        return self.scale is Scale.EXP


METRICS: dict[str, Metric] = {}  # in the order of registration, which is the order of tables
_COUNTS = {"tokens": "tokens", "decisions": "he_tokens"}  # the column that counts each set of tokens
_COLUMNS: dict[str, tuple[str, int]] = {
    "tokens": ("", 0),
    "he_tokens": ("", 0),
}  # column: (metric, its 0th or 1st part)


def metric(
    name: str,
    *,
    better: str | None = None,
    unit: str = "",
    source: str = "",
    title: str = "",
    over: str | tuple[str, str] = "tokens",
    scale: Scale = Scale.LINEAR,
    average: str = "micro",
    needs: Sequence[str] = (),
    own_denominator: bool = False,
    across_tokenizers: bool = False,
    suite: str = "core",
) -> Callable[[Definition], Definition]:
    """Register a metric; everything that shows metrics has it from then on.

    Args:
        name: key in results; letters, digits and underscores.
        better: "up", "down", or None.
        unit: such as "bits/byte"; empty for a pure number.
        source: the publication or code that defines it.
        title: heading in tables (default: the name and an arrow).
        over: the tokens that are summed over: "tokens" (all that count, M), "decisions" (𝓗), or one for numerator and
            one for denominator.
        scale: its range, on which the interval is symmetric; `Scale.EXP`: the value is exp of the ratio.
        average: "micro", "macro" or "total" (a plain sum, which has no error).
        needs: optional columns it reads; where they are missing the metric is NaN.
        own_denominator: the function returns (numerator, denominator); else the denominator is the number of tokens.
        across_tokenizers: values of checkpoints with different tokenizers compare.
        suite: "core" for every result and table; "proxies" for `hesnr_proxies`, `compare --metrics` and ladders only;
            "pairs" for `analyze --against`.

    Raises:
        ValueError: for a name that is taken, or has other signs.
    """
    sets = (over, over) if isinstance(over, str) else over
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"a metric's name has letters, digits and underscores only, not {name!r}")
    if name in METRICS or (name in _COLUMNS and average != "total"):
        raise ValueError(
            f"a metric named {name!r} is registered already; choose another name, or `unregister` it first"
        )
    if better not in (None, "up", "down") or average not in ("micro", "macro", "total") or not {*sets} <= {*_COUNTS}:
        raise ValueError(
            f"metric {name!r}: better={better!r}, over={over!r} or average={average!r} is none of its values"
        )

    def register(definition: Definition) -> Definition:
        counted = name == _COUNTS[sets[0]]
        denominator = None if average == "total" else f"{name}_denominator" if own_denominator else _COUNTS[sets[1]]
        arrow = {"up": " ↑", "down": " ↓", None: ""}[better]
        METRICS[name] = Metric(
            name, definition, better, unit, source, title or name.replace("_", " ") + arrow, sets, scale, average,
            tuple(needs), name, denominator, across_tokenizers, suite,
        )  # fmt: skip
        if not counted:
            _COLUMNS[name] = (name, 0)
        if own_denominator:
            _COLUMNS[f"{name}_denominator"] = (name, 1)
        return definition

    return register


def describe_metrics() -> str:
    """The registered metrics as a Markdown table; the definition is the first line of the function's docstring."""
    lines = ["| metric | better | unit | over | definition | source |", "| --- | --- | --- | --- | --- | --- |"]
    for entry in METRICS.values():
        over = " / ".join({"tokens": "M", "decisions": "𝓗"}[part] for part in dict.fromkeys(entry.over))
        definition = (entry.definition.__doc__ or "").strip().split("\n")[0]
        if entry.average == "macro":
            definition += " Mean of the trajectories' own values."
        cells = (f"`{entry.name}`", entry.better or "", entry.unit, over, definition, entry.source)
        lines.append(" | ".join(["", *(cell.replace("|", "\\|") for cell in cells), ""]).strip())
    return "\n".join(lines) + "\n"


def names_of(suite: str = "core") -> tuple[str, ...]:
    """The metrics of the core and of a suite, in the order of registration.

    "all": of every suite that one folder of scores is enough for, which "pairs" is not.
    """
    if suite == "all":
        return tuple(name for name, entry in METRICS.items() if entry.suite != "pairs")
    return tuple(name for name, entry in METRICS.items() if entry.suite in ("core", suite))


def unregister(name: str) -> None:
    """Take a metric out of the registry; its columns stay in sums that were made before."""
    del METRICS[name]
    for column in (name, f"{name}_denominator"):
        if column not in _COUNTS.values():
            _COLUMNS.pop(column, None)


# --- sums -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrajectorySums:
    """Sufficient statistics of T trajectories: `values[..., t, s]` is the sum `names[s]` over tokens of the t-th."""

    values: FloatArray  # (..., T, S)
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, tokens: TokenColumns, epsilon: float = EPSILON, k: int = 10, metrics: Sequence[str] | None = None
    ) -> TrajectorySums:
        """Of one trajectory whose tokens all count; T = 1. `metrics` as in `cell_sums`."""
        return cell_sums(tokens, np.zeros(len(tokens), dtype=np.int64), 1, [epsilon], k, metrics)[0]

    def __getitem__(self, index: Any) -> TrajectorySums:
        """Indexes the leading axes, trajectories last: `sums[keep]`, `sums[setting]`, `sums[None]`."""
        return TrajectorySums(self.values[index], self.names)

    def __iter__(self) -> Iterator[TrajectorySums]:
        return (self[i] for i in range(len(self.values)))

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: str) -> FloatArray:
        """One statistic, shape (..., T)."""
        return self.values[..., self.names.index(name)]

    def parts(self, metric: str) -> tuple[FloatArray, FloatArray]:
        """Numerator and denominator of a metric for each trajectory, each of shape (..., T); a total's is over 1."""
        entry = METRICS[metric]
        numerator = self.column(entry.numerator)
        if entry.denominator is None:
            return numerator, np.ones_like(numerator)
        denominator = self.column(entry.denominator)
        if entry.average != "macro":
            return numerator, denominator
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(denominator == 0, 0.0, numerator / denominator)
        return ratio, np.where(np.isnan(denominator), np.nan, denominator != 0)

    def counted(self, metric: str) -> FloatArray:
        """The number of tokens that a metric averages over, for each trajectory; shape (..., T)."""
        return self.column(_COUNTS[METRICS[metric].over[1]])

    def repeat(self, multiplicity: IntArray) -> TrajectorySums:
        """Each trajectory as often as `multiplicity` (T,) says."""
        return TrajectorySums(np.repeat(self.values, multiplicity, axis=-2), self.names)


def cell_sums(
    tokens: TokenColumns,
    cell: IntArray,
    cells: int,
    epsilons: Sequence[float] = (EPSILON,),
    k: int = 10,
    metrics: Sequence[str] | None = None,
) -> TrajectorySums:
    """Every statistic of some registered metrics, of each cell of tokens, at several thresholds at once.

    Args:
        tokens: n tokens.
        cell: shape (n,), 0 … cells - 1: what each token is summed into, such as the index of its trajectory.
        cells: how many there are.
        epsilons: thresholds of 𝓗 in nats, in any order.
        k: candidates that the target must be among.
        metrics: names of the metrics (default: the core ones).

    Returns:
        Sums of shape (thresholds, cells, statistics).
    """
    thresholds, order = np.unique(np.asarray(epsilons, dtype=np.float64), return_inverse=True)
    above = (tokens.entropy > thresholds.min(initial=np.inf)) & (tokens.rank >= 1) & (tokens.rank <= k)
    high = np.flatnonzero(above)
    subsets = {"tokens": tokens, "decisions": tokens[high]}
    # a token counts at every threshold below its entropy: sum by the number of such thresholds, then accumulate
    level = np.searchsorted(thresholds, subsets["decisions"].entropy, side="left") - 1
    slot = {"tokens": cell, "decisions": cell[high] * len(thresholds) + level}

    def total(terms: Any, over: str) -> FloatArray:
        """Shape (thresholds, cells); the same at every threshold for a sum over all tokens."""
        weights = np.asarray(terms, dtype=np.float64)
        bins = cells if over == "tokens" else cells * len(thresholds)
        if weights.ndim:
            sums = np.bincount(slot[over], weights, bins)
        else:  # a number for all tokens; where there are none the sum is 0, even of NaN
            counts = np.bincount(slot[over], minlength=bins)
            sums = np.where(counts, counts * weights, 0.0)
        if over == "tokens":
            return np.broadcast_to(sums, (len(thresholds), cells))
        return sums.reshape(cells, len(thresholds))[:, ::-1].cumsum(axis=1)[:, ::-1].T

    terms: dict[tuple[str, str], Any] = {}

    def part_of(entry: Metric, part: int) -> Any:
        key = (entry.name, entry.over[part])
        if key not in terms:
            subset = subsets[entry.over[part]]
            missing = any(getattr(subset, name) is None for name in entry.needs)
            terms[key] = (math.nan, math.nan) if missing else terms_of(entry, subset)
        return terms[key][part] if isinstance(terms[key], tuple) else terms[key]

    chosen = set(names_of() if metrics is None else metrics)
    names = tuple(name for name, (owner, _) in _COLUMNS.items() if not owner or owner in chosen)
    values = np.empty((len(thresholds), cells, len(names)))
    for i, name in enumerate(names):
        owner, part = _COLUMNS[name]
        if owner:
            values[..., i] = total(part_of(METRICS[owner], part), METRICS[owner].over[part])
        else:
            values[..., i] = total(1.0, "tokens" if name == "tokens" else "decisions")
    return TrajectorySums(values[order], names)


def terms_of(entry: Metric, tokens: TokenColumns) -> Any:
    """What a metric's function returns, checked: one number a token, or two such arrays."""
    try:
        terms = entry.definition(tokens)
        for part in terms if isinstance(terms, tuple) else (terms,):
            np.broadcast_to(np.asarray(part, dtype=np.float64), len(tokens))
    except Exception as error:  # the function is a user's
        raise SettingsError(
            f"the metric {entry.name!r} cannot be computed ({type(error).__name__}: {error}).\n"
            "Its function must return one number a token, or a pair of such arrays (numerators, denominators)."
        ) from error
    return terms


_LOGARITHM = r"ln\s*\(?\s*([0-9.]+)\s*\)?"
_MIDPOINT = rf"\(\s*{_LOGARITHM}\s*\+\s*{_LOGARITHM}\s*\)\s*/\s*2"


def parse_epsilon(value: float | str, name: str = "epsilon") -> float:
    """A threshold of entropy in nats.

    Args:
        value: a number, or text: a number, `ln3`, `ln(3.5)`, or the midpoint of two logarithms, `(ln3+ln4)/2`.
        name: what the message calls it.

    Raises:
        SettingsError: it is none of these, or no finite number.
    """
    word = str(value).strip()
    try:
        match = re.fullmatch(_MIDPOINT, word) or re.fullmatch(_LOGARITHM, word)
        number = float(np.mean([math.log(float(x)) for x in match.groups()])) if match else float(word)
        if math.isfinite(number) and not isinstance(value, bool):
            return number
    except ValueError:
        pass
    raise SettingsError(f"{name} must be a number of nats, or such as ln3 or (ln3+ln4)/2, not {word[:40]!r}")


def topk_entropy(topk_logprobs: npt.NDArray[np.floating], k: int) -> FloatArray:
    """H_topk in nats of each row, from its first k log-probabilities renormalised to sum to 1; in [0, ln k].

    Args:
        topk_logprobs: shape (n, >= k), descending.

    Returns:
        Shape (n,).
    """
    logs = np.empty((min(k, topk_logprobs.shape[1]), len(topk_logprobs)))
    logs[...] = topk_logprobs[:, :k].T  # a row a candidate: operations on long rows take a third of the time
    logs -= logs.max(axis=0)
    weights = np.exp(logs)
    normaliser = _sum_of_rows(weights)
    # H = ln Z - E[ln w]; a weight of 0 contributes 0 (0 ln 0 = 0)
    expected = (
        np.multiply(weights, logs, out=np.zeros_like(logs), where=weights > 0) if 0 in weights else weights * logs
    )
    return np.clip(np.log(normaliser) - _sum_of_rows(expected) / normaliser, 0.0, math.log(k))


def _sum_of_rows(rows: FloatArray) -> FloatArray:
    """Sums along the first axis, in the order in which NumPy sums along the last axis of the transpose."""
    if len(rows) < 8:
        parts, rest = [np.zeros(rows.shape[1])], rows
    else:
        whole = len(rows) - len(rows) % 8
        parts = [sum(rows[i + 8 : whole : 8], start=rows[i]) for i in range(8)]
        rest = rows[whole:]
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return sum(rest, start=parts[0])


def token_bytes(
    text: str | npt.NDArray[np.uint8], start: npt.NDArray[np.integer], end: npt.NDArray[np.integer]
) -> FloatArray:
    """UTF-8 bytes of each token of a text, in order; a character that several tokens share belongs to the first.

    Args:
        text: the text, or its UTF-8 bytes.
        start, end: each token's characters, shape (n,).
    """
    data = np.frombuffer(text.encode(), np.uint8) if isinstance(text, str) else text
    offsets = np.append(np.flatnonzero((data & 0xC0) != 0x80), len(data))  # of each character, and of the end
    covered = np.maximum.accumulate(np.concatenate([[0], end[:-1]])) if len(end) else end
    first = np.minimum(np.maximum(start, covered), end)
    return (offsets[end] - offsets[first]).astype(np.float64)


# --- from sums to numbers ---------------------------------------------------------------------------------------------


def evaluate(metric: Metric, numerator: Any, denominator: Any) -> FloatArray:
    """The metric's value for (arrays of) totals; NaN where nothing was counted, never 0."""
    if metric.denominator is None:
        return np.asarray(numerator, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.asarray(numerator, dtype=np.float64) / np.asarray(denominator, dtype=np.float64)
        ratio = np.where(np.asarray(denominator) > 0, ratio, np.nan)
        return np.exp(ratio) if metric.exponentiate else ratio


def measure(
    sums: TrajectorySums,
    multiplicity: IntArray,
    names: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    min_tokens: int = 0,
) -> list[dict[str, Estimate]]:
    """The metrics `names` with error and interval, for each row of sums (rows, T, statistics).

    Args:
        sums: of T trajectories, in the order of their keys, in each of several settings.
        multiplicity: (T,), how often each trajectory counts.
        names: registered metrics.
        resamples, seed: of the bootstrap.
        min_tokens: a ratio over fewer tokens is NaN.
    """
    repeated = sums.repeat(multiplicity)
    ratios: list[tuple[int, str]] = []  # the settings and metrics that have errors
    columns: list[tuple[FloatArray, FloatArray]] = []
    distinct: dict[tuple[bytes, bytes, Scale], int] = {}  # many settings share a ratio: it is bootstrapped once
    index: list[int] = []
    lines: list[dict[str, Estimate]] = []
    for row, setting in enumerate(repeated):
        line = {}
        for name in names:
            entry = METRICS[name]
            numerator, denominator = setting.parts(name)
            few = entry.denominator is not None and setting.counted(name).sum() < min_tokens
            value = math.nan if few else float(evaluate(entry, math.fsum(numerator), math.fsum(denominator)))
            line[name] = Estimate(value)
            if not few and entry.denominator is not None and np.isfinite(value):
                key = numerator.tobytes(), denominator.tobytes(), entry.scale
                if distinct.setdefault(key, len(columns)) == len(columns):
                    columns.append((numerator, denominator))
                ratios.append((row, name))
                index.append(distinct[key])
        lines.append(line)
    if columns:
        numerators, denominators = (np.stack(side, axis=1) for side in zip(*columns, strict=True))
        scales = [scale for _, _, scale in distinct]
        bounds = estimates(numerators, denominators, scales, resamples=resamples, seed=seed)
        for (row, name), i in zip(ratios, index, strict=True):
            lines[row][name] = bounds[i]._replace(value=lines[row][name].value)
    return lines


class Share(float):
    """The share of the tokens that would count that was scored; tables mark it below a half."""


def share_scored(tokens: float, cut: float) -> Share:
    """Tokens scored over tokens that would count if the context had no limit."""
    return Share(tokens / (tokens + cut) if tokens + cut else math.nan)


def needed_columns(names: Iterable[str] | None = None) -> tuple[str, ...]:
    """The optional columns that some registered metric reads."""
    return tuple(
        dict.fromkeys(column for name in (METRICS if names is None else names) for column in METRICS[name].needs)
    )
