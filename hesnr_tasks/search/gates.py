"""Gates: at which steps a search spends more. A gate is a pure function of what is known of a step.

Deterministic: the same step gives the same decision, whatever was asked before, so a search that is resumed decides as
it did. Random decisions are seeded by the step's id, so another order of steps or more of them changes none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SearchError, SettingsError, nearest
from hesnr_tasks.search.entropy import BASELINES, relative

__all__ = [
    "Always",
    "Budget",
    "Decision",
    "Gate",
    "Never",
    "Random",
    "Relative",
    "StepState",
    "Threshold",
    "calibrate",
    "gate_of",
]


@dataclass(frozen=True)
class StepState:
    """What is known of a step when it is decided whether to branch there.

    `id` must mean the same step in every run: the instance and the path through the tree, never a counter or a time.
    `forks` and `tokens` are of the whole tree so far; `history`: entropies of the earlier steps on this path.
    """

    id: str
    entropy: float = math.nan  # nats, by whatever estimator the gate was made for; NaN: not known
    history: Sequence[float] = ()
    forks: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Decision:
    """Whether to branch, and why; true iff to branch."""

    fork: bool
    reason: str

    def __bool__(self) -> bool:
        return self.fork


class Gate(Protocol):
    """Decides at which steps to branch."""

    @property
    def signal(self) -> bool:
        """Whether it looks at the step's entropy at all."""
        ...

    def __call__(self, step: StepState) -> Decision:
        """Decide. Raises `SearchError` where the gate needs an entropy and the step has none."""
        ...


@dataclass(frozen=True)
class Never:
    """Never branches: the plain agent."""

    signal: ClassVar[bool] = False

    def __call__(self, step: StepState) -> Decision:
        """No."""
        return Decision(False, "never")


@dataclass(frozen=True)
class Always:
    """Branches at every step: a beam."""

    signal: ClassVar[bool] = False

    def __call__(self, step: StepState) -> Decision:
        """Yes."""
        return Decision(True, "always")


@dataclass(frozen=True)
class Random:
    """Branches at a share `rate` of steps, chosen by a hash of seed and step id: the control for every entropy gate."""

    rate: float
    seed: int = 1234
    signal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_share("rate", self.rate)

    def __call__(self, step: StepState) -> Decision:
        """By the hash of seed and step id."""
        drawn = _uniform(self.seed, step.id)
        return Decision(drawn < self.rate, f"random {drawn:.4f} {'<' if drawn < self.rate else '>='} {self.rate:g}")


@dataclass(frozen=True)
class Threshold:
    """Branches where the entropy is greater than `threshold` nats.

    Votes have few values, and many steps share one: of the steps that are *at* the threshold a share `tie`, chosen by a
    hash of seed and step id, branches too. `calibrate` sets both so that the wanted share of steps branches.
    """

    threshold: float
    tie: float = 0.0
    seed: int = 1234
    signal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_share("tie", self.tie)
        if math.isnan(self.threshold):
            raise SettingsError("the threshold of a gate is NaN; it must be a number of nats")

    def __call__(self, step: StepState) -> Decision:
        """By the level of the entropy."""
        value = _known(step)
        if value == self.threshold and self.tie > 0:
            drawn = _uniform(self.seed, step.id)
            return Decision(drawn < self.tie, f"entropy {value:.4f} at the threshold, random {drawn:.4f}")
        above = value > self.threshold
        return Decision(above, f"entropy {value:.4f} {'>' if above else '<='} {self.threshold:.4f}")


@dataclass(frozen=True)
class Relative:
    """Branches where the entropy is more than `threshold` nats above its baseline on this path (`entropy.relative`)."""

    threshold: float
    baseline: str = "mean"
    signal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise SettingsError(f"baseline is {self.baseline!r}; it must be one of {', '.join(BASELINES)}")

    def __call__(self, step: StepState) -> Decision:
        """By its rise."""
        rise = relative(_known(step), step.history, self.baseline)
        above = rise > self.threshold
        return Decision(above, f"rise {rise:+.4f} {'>' if above else '<='} {self.threshold:.4f}")


@dataclass(frozen=True)
class Budget:
    """Another gate, until the tree has `forks` forks or has cost `tokens` tokens; None: no limit."""

    gate: Gate
    forks: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if any(limit is not None and limit < 0 for limit in (self.forks, self.tokens)):
            raise SettingsError("the budget of a gate must not be negative")

    @property
    def signal(self) -> bool:
        """As the gate inside."""
        return self.gate.signal

    def __call__(self, step: StepState) -> Decision:
        """As the gate inside, while the budget lasts."""
        if self.forks is not None and step.forks >= self.forks:
            return Decision(False, f"budget: {step.forks} of {self.forks} forks used")
        if self.tokens is not None and step.tokens >= self.tokens:
            return Decision(False, f"budget: {step.tokens} of {self.tokens} tokens used")
        return self.gate(step)


def calibrate(
    values: Sequence[float] | npt.NDArray[np.float64] | str | Path, quantile: float, seed: int = 1234
) -> Threshold:
    """The threshold gate that branches at a share 1 - `quantile` of the steps it is calibrated on.

    `values`: entropies of steps in nats (NaN: left out), or a folder of score files (their tool entropies, as
    `hesnr analyze --tool-entropy` has them). A threshold holds for one model and one estimator: thresholds do not carry
    over (CATTS). Raises `SettingsError` for a quantile outside [0, 1], `SearchError` if there is no value.
    """
    _check_share("quantile", quantile)
    if isinstance(values, (str, Path)):
        from hesnr_tasks.analysis.frame import load, selection
        from hesnr_tasks.analysis.tool_entropy import COLUMNS, profile_of
        from hesnr_tasks.trajectory import Kind

        frame = load(values, [10], extra=COLUMNS)
        chosen = selection(frame.filters, [Kind.ACTION], frame.filters)
        values = profile_of(frame, chosen).measured.entropy.to_numpy()
    found = np.sort(np.asarray(values, dtype=np.float64))
    found = found[~np.isnan(found)]
    if not len(found):
        raise SearchError("a gate cannot be calibrated: there is no step with an entropy")
    wanted = (1.0 - quantile) * len(found)
    if wanted >= len(found) - 1e-9:
        return Threshold(float(np.nextafter(found[0], -np.inf)), seed=seed)
    # the greatest value that fewer than the wanted number exceed; of the steps with that very value, the share missing
    place = min(len(found) - 1, len(found) - 1 - math.floor(wanted + 1e-9))
    threshold = float(found[place])
    above, equal = np.count_nonzero(found > threshold), np.count_nonzero(found == threshold)
    return Threshold(threshold, tie=float(np.clip((wanted - above) / equal, 0.0, 1.0)), seed=seed)


_WORDS = ("never", "always", "random:RATE", "threshold:NATS", "relative:NATS[:mean|initial]", "quantile:SHARE:SCORES")


def gate_of(word: str, seed: int = 1234) -> Gate:
    """The gate that a setting names: never, always, random:0.1, threshold:1.04, relative:0.5:initial, quantile:0.9:DIR.

    Raises `SettingsError` for anything else.
    """
    name, _, rest = word.strip().partition(":")
    first, _, second = rest.partition(":")
    if name in ("never", "always") and not rest:
        return Never() if name == "never" else Always()
    if name == "random":
        return Random(_number(word, first), seed)
    if name == "threshold":
        return Threshold(_number(word, first), seed=seed)
    if name == "relative":
        return Relative(_number(word, first), second or "mean")
    if name == "quantile" and second:
        return calibrate(second, _number(word, first), seed)
    kinds = [kind.split(":")[0] for kind in _WORDS]
    raise SettingsError(f"gate {word!r} is not one of {', '.join(_WORDS)}.{nearest(name, kinds)}")


def _number(word: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"gate {word!r}: {text!r} is not a number; it must be one of {', '.join(_WORDS)}") from None


def _known(step: StepState) -> float:
    if math.isnan(step.entropy):
        raise SearchError(f"step {step.id}: its entropy is not known, and the gate needs it; vote, or use another gate")
    return float(step.entropy)


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise SettingsError(f"the {name} of a gate must lie in [0, 1], not {value}")


def _uniform(seed: int, step: str) -> float:
    """A number in [0, 1) that depends on the seed and the step alone."""
    digest = hashlib.sha256(f"{seed}\0{step}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)
