"""How undecided an agent is at a step, estimated from a few drawn actions, in nats.

- `votes`: the plug-in entropy of the canonical actions of the probes. Works with every server; two probes know two
  values, 0 (they agree) and ln 2.
- `logprob`: minus the mean log-probability of the tokens of the command, as the server states them for the tokens it
  chose, averaged over the probes: a length-normalised estimate of the entropy of whole commands. Thoughts, the mark-up
  of the call and the alternatives to a token are not looked at.

EGSS (arXiv 2602.05242, Eq. 1) is -sum P(a | s) ln P(a | s) over actions; where P comes from is not public.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.actions.classes import canonical_key
from hesnr_tasks.bounded_io import open_regular, parse_json, read_rest
from hesnr_tasks.errors import DataError, SearchError, SettingsError, nearest

__all__ = [
    "FORMAT",
    "Calibration",
    "Estimator",
    "Gate",
    "Step",
    "calibrate",
    "canonical",
    "command_logprob",
    "open_gate",
    "uniform",
    "vote_entropy",
]

ESTIMATORS = ("votes", "logprob")
ACTIONS = "canonical-1"  # version of what counts as the same action; part of what a calibration must agree with


def canonical(command: str) -> str:
    """One spelling of an action: white space, comments, needless quotes and a `cd` to the repository do not count."""
    return canonical_key(command, "whole")


@dataclass(frozen=True)
class Estimator:
    """One of `ESTIMATORS` over so many probes."""

    name: str = "votes"
    probes: int = 2

    def __post_init__(self) -> None:
        if self.name not in ESTIMATORS:
            raise SettingsError(
                f"model.estimator is {self.name!r}; it must be one of {', '.join(ESTIMATORS)}."
                f"{nearest(self.name, ESTIMATORS)}"
            )
        least = 2 if self.name == "votes" else 1
        if self.probes < least:
            raise SettingsError(f"model.probes is {self.probes}; the estimator {self.name!r} needs at least {least}.")

    @property
    def identity(self) -> dict[str, Any]:
        """What two estimates must share to be compared with one threshold."""
        return {"estimator": self.name, "probes": self.probes, "actions": ACTIONS}

    def __call__(self, keys: Sequence[str], logprobs: Sequence[float]) -> float:
        """The estimate in nats; NaN where too few probes were well-formed.

        Args:
            keys: canonical actions of the well-formed probes.
            logprobs: mean log-probability (nats a token) of each one's command; NaN where it is not known.

        Raises:
            SearchError: the estimator is `logprob` and no probe has a log-probability.
        """
        if self.name == "votes":
            return vote_entropy(keys) if len(keys) >= 2 else math.nan
        stated = [value for value in logprobs if not math.isnan(value)]
        if keys and not stated:
            raise SearchError(
                "the server gave no log-probabilities for the tokens of the command, which model.estimator=logprob "
                "needs.\nUse model.estimator=votes, or a server that returns them with tool calls (vLLM does, unless "
                "include_reasoning is false; Ollama and OpenAI's Responses API do not)."
            )
        return -math.fsum(stated) / len(stated) if stated else math.nan


def vote_entropy(keys: Sequence[str]) -> float:
    """Plug-in entropy of the shares that each action has, in [0, ln n]; 0 for no draw."""
    n = len(keys)
    return max(0.0, -math.fsum(c / n * math.log(c / n) for c in Counter(keys).values())) if n else 0.0


def command_logprob(choice: Mapping[str, Any], commands: Sequence[str]) -> float:
    """Mean log-probability of the tokens that spell the commands of a choice.

    Args:
        choice: a choice of a chat completion, as a mapping.
        commands: the commands it was parsed into, in order.

    Returns:
        Nats a token; NaN where the server stated no log-probabilities, or none for the tokens of the commands.
    """
    content = (choice.get("logprobs") or {}).get("content") or []
    tokens, logprobs = [], []
    for entry in content:
        stated = entry.get("bytes")
        tokens.append(bytes(stated) if stated else str(entry.get("token") or "").encode("utf-8", "surrogatepass"))
        logprobs.append(entry.get("logprob"))
    text, covered = b"".join(tokens), []
    before = len(text)
    for command in reversed(commands):  # what is spelled in a thought comes before the call
        begin, end = _place(text, command, before)
        covered.append((begin, end))
        before = begin
    values, position = [], 0
    for token, value in zip(tokens, logprobs, strict=True):
        end = position + len(token)
        if any(position < stop and end > begin for begin, stop in covered):
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                return math.nan
            values.append(float(value))
        position = end
    return math.fsum(values) / len(values) if values else math.nan


def _place(text: bytes, command: str, before: int) -> tuple[int, int]:
    """The last place where a command is spelled, as JSON has it or as it is; an empty span where it is not."""
    quoted = [('"', json.dumps(command, ensure_ascii=ascii_only)[1:-1], '"') for ascii_only in (True, False)]
    for opening, spelling, closing in [*quoted, ("\n", command, "\n"), ("", command, "")]:
        wanted = f"{opening}{spelling}{closing}".encode("utf-8", "surrogatepass")
        begin = text.rfind(wanted, 0, before)
        if command and begin >= 0:
            return begin + len(opening), begin + len(wanted) - len(closing)
    return before, before


# --- When to draw more: the gates of a step ---

GATES = ("never", "always", "random", "edit", "threshold", "quantile")
FORMAT = "hesnr-egss-calibration-1"


class Step(NamedTuple):
    """What a gate may look at."""

    chance: float  # uniform in [0, 1), the same whenever this step of this task is asked about
    action: str = ""  # class of the first draw
    estimate: float = math.nan  # nats


@dataclass(frozen=True)
class Gate:
    """`needs`: "nothing" (decides before anything is drawn), "first" (after one draw) or "estimate" (after probes)."""

    spec: str
    needs: str
    fires: Callable[[Step], bool]

    @property
    def name(self) -> str:
        """One of `GATES`."""
        return self.spec.partition(":")[0]


@dataclass(frozen=True)
class Calibration:
    """The estimates of finished runs, and what made them."""

    estimator: Mapping[str, Any]
    model: str
    estimates: tuple[float, ...]

    def rule(self, share: float) -> tuple[float, float]:
        """(threshold, chance at the threshold): above it always, at it with this chance, so that `share` is met."""
        values = sorted(self.estimates, reverse=True)
        threshold = values[min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))]
        above, equal = sum(v > threshold for v in values), values.count(threshold)
        return threshold, min(1.0, max(0.0, (share * len(values) - above) / equal))

    def write(self, path: Path) -> None:
        """As JSON."""
        stored = {"format": FORMAT, "model": self.model, **self.estimator, "estimates": list(self.estimates)}
        path.write_text(json.dumps(stored) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """From a file of `hesnr egss calibrate`. Raises `DataError`."""
        try:
            with open_regular(path) as file:
                stored = parse_json(read_rest(file))
            if stored["format"] != FORMAT:
                raise ValueError(f"its format is {stored['format']!r}")
            estimates = tuple(float(value) for value in stored["estimates"])
            if not estimates or not all(math.isfinite(value) for value in estimates):
                raise ValueError("it holds no estimates, or one that is no number")
            identity = {name: stored[name] for name in Estimator().identity}
            return cls(identity, str(stored["model"]), estimates)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}. `hesnr egss calibrate RUNS -o {path}` makes it.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a calibration of `hesnr egss calibrate` ({error}).") from None


def open_gate(spec: str, estimator: Estimator, calibration: Path | None = None) -> Gate:
    """The gate of a setting. Raises `SettingsError` where it cannot be one, or is calibrated by another estimator."""
    name, colon, text = spec.partition(":")
    if name not in GATES:
        raise SettingsError(f"model.gate is {spec!r}; it must be one of {', '.join(GATES)}.{nearest(name, GATES)}")
    if bool(colon) != (name in ("random", "threshold", "quantile")):
        wanted = f"{name}:NUMBER" if not colon else name
        raise SettingsError(f"model.gate is {spec!r}; write it {wanted}.")
    if name in ("never", "always"):
        return Gate(spec, "nothing", lambda step: name == "always")
    if name == "edit":
        return Gate(spec, "first", lambda step: step.action == "edit")
    value = _number(spec, text, 0.0, math.inf if name == "threshold" else 1.0)
    if name == "random":
        return Gate(spec, "nothing", lambda step: step.chance < value)
    if name == "threshold":
        return Gate(spec, "estimate", lambda step: step.estimate > value)
    return _quantile(spec, value, estimator, calibration)


def _quantile(spec: str, share: float, estimator: Estimator, path: Path | None) -> Gate:
    if path is None:
        raise SettingsError(
            f"model.gate is {spec!r}, and nothing says which estimates those are.\n"
            "Run with model.gate=threshold:inf, then `hesnr egss calibrate RUN -o gate.json`, then set "
            "model.calibration=gate.json."
        )
    calibration = Calibration.read(path)
    if dict(calibration.estimator) != estimator.identity:
        raise SettingsError(
            f"{path} was calibrated by another estimator: {_words(calibration.estimator)}, and this run has "
            f"{_words(estimator.identity)}.\nCalibrate with the settings of the run, or run with those of the file."
        )
    threshold, chance = calibration.rule(share)
    return Gate(
        spec,
        "estimate",
        lambda step: step.estimate > threshold or (step.estimate == threshold and step.chance < chance),
    )


def uniform(*about: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(json.dumps([str(part) for part in about]).encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def _number(spec: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise SettingsError(f"model.gate is {spec!r}; {text!r} must be a number from {low:g} to {high:g}.")
    return value


def _words(identity: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in identity.items())


def calibrate(estimates: Sequence[float], identity: Mapping[str, Any], model: str) -> Calibration:
    """A calibration from the estimates of runs. Raises `DataError` where there are too few to be one."""
    finite = tuple(sorted(value for value in estimates if math.isfinite(value)))
    if len(finite) < 20:
        raise DataError(
            f"a calibration needs the estimates of at least 20 steps; these runs hold {len(finite)}.\n"
            "Run with model.gate=threshold:inf (measures and never branches), and give that folder."
        )
    return Calibration(dict(identity), model, finite)
