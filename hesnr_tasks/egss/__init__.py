"""Entropy-guided stepwise scaling (EGSS, arXiv 2602.05242) for agents that run on mini-swe-agent.

An extra (`pip install 'hesnr-tasks[egss]'`). `GatedModel` is a model class of mini-swe-agent: it draws two actions at
a step, more only where a gate says so, and lets a judge choose. `hesnr select` chooses among finished runs, `hesnr egss
report` says what either costs. Here: estimates of how undecided the agent is, and the gates that use them.

Gates (`model.gate`):

- never             one draw a step: mini-swe-agent as it is
- always            all draws at every step
- random:RATE       at this share of steps, chosen by seed: the control at a matched rate
- edit              where the first draw is an edit: the control that needs no entropy
- threshold:NATS    where the estimate exceeds a number (`threshold:inf` measures and never branches)
- quantile:SHARE    at the share of steps with the highest estimates, by a calibration that the same estimator made

Estimators (`model.estimator`), in nats, from a few drawn actions (the probes):

- votes: the plug-in entropy of the canonical actions of the probes. Works with every server; two probes have two
  values, 0 (they agree) and ln 2.
- logprob: minus the mean log-probability of the tokens of the command, as the server states them for the tokens it
  chose, averaged over the probes: a length-normalised estimate of the entropy of whole commands. Thoughts, the mark-up
  of the call and the alternatives to a token are not looked at.

EGSS (arXiv 2602.05242, Eq. 1) is -sum P(a | s) ln P(a | s) over actions; where P comes from is not public.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.errors import DataError, SearchError, SettingsError, nearest
from hesnr_tasks.files.bounded import open_regular, parse_json, read_rest

__all__ = ["SWEBENCH_CONFIG", "GatedModel", "GatedTextbasedModel"]

SWEBENCH_CONFIG = Path(__file__).parent / "swebench_egss.yaml"  # for mini-extra swebench -c


def __getattr__(name: str) -> Any:
    """The model classes, loaded when asked for: mini-swe-agent is not needed for the rest."""
    if name in ("GatedModel", "GatedTextbasedModel"):
        from hesnr_tasks.egss import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


ESTIMATORS = ("votes", "logprob")
GATES = ("never", "always", "random", "edit", "threshold", "quantile")
_ACTIONS = "canonical-1"  # version of what counts as the same action; part of what a calibration must agree with
_FORMAT = "hesnr-egss-calibration-1"

# --- estimators -------------------------------------------------------------------------------------------------------


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
        return {"estimator": self.name, "probes": self.probes, "actions": _ACTIONS}

    def __call__(self, keys: Sequence[str], logprobs: Sequence[float]) -> float:
        """The estimate in nats; NaN where too few probes were well-formed.

        Args:
            keys: canonical actions of the well-formed probes.
            logprobs: mean log-probability (nats a token) of each one's command; NaN where the server stated none.
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
    """Plug-in entropy, nats in [0, ln n], of the shares that n draws give each action; 0 without draws."""
    n = len(keys)
    return max(0.0, -math.fsum(c / n * math.log(c / n) for c in Counter(keys).values())) if n else 0.0


def command_logprob(choice: Mapping[str, Any], commands: Sequence[str]) -> float:
    """Mean log-probability, nats a token, of the tokens of a choice that spell its commands; NaN: not stated."""
    tokens = [  # (bytes, log-probability)
        (bytes(e["bytes"]) if e.get("bytes") else str(e.get("token") or "").encode("utf-8", "surrogatepass"),
         e.get("logprob"))
        for e in (choice.get("logprobs") or {}).get("content") or []
    ]  # fmt: skip
    text, spans = b"".join(token for token, _ in tokens), []
    end = len(text)
    for command in reversed(commands):  # what a thought spells comes before the call
        spans.append(_last_span(text[:end], command))
        end = spans[-1][0]
    values, position = [], 0
    for token, value in tokens:
        if any(position < stop and position + len(token) > start for start, stop in spans):
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                return math.nan
            values.append(float(value))
        position += len(token)
    return math.fsum(values) / len(values) if values else math.nan


def _last_span(text: bytes, command: str) -> tuple[int, int]:
    """Where a command is spelled last, as JSON has it or as it is; an empty span where it is not."""
    quoted = [('"', json.dumps(command, ensure_ascii=ascii_only)[1:-1], '"') for ascii_only in (True, False)]
    for opening, spelling, closing in [*quoted, ("\n", command, "\n"), ("", command, "")]:
        wanted = f"{opening}{spelling}{closing}".encode("utf-8", "surrogatepass")
        start = text.rfind(wanted)
        if command and start >= 0:
            return start + len(opening), start + len(wanted) - len(closing)
    return len(text), len(text)


# --- gates ------------------------------------------------------------------------------------------------------------


class GateInput(NamedTuple):
    """What a gate may look at."""

    chance: float  # uniform in [0, 1), a function of seed, task and step
    action: str = ""  # class of the first draw
    estimate: float = math.nan  # nats


@dataclass(frozen=True)
class Gate:
    """`needs`: "nothing" (decides before anything is drawn), "first" (after one draw) or "estimate" (after probes)."""

    spec: str
    needs: str
    fires: Callable[[GateInput], bool]

    @property
    def name(self) -> str:
        """One of `GATES`."""
        return self.spec.partition(":")[0]


@dataclass(frozen=True)
class Calibration:
    """The estimates of finished runs, in nats, and what made them."""

    estimator: Mapping[str, Any]
    model: str
    estimates: tuple[float, ...]

    def rule(self, share: float) -> tuple[float, float]:
        """A threshold in nats, and a chance, that fire at a share of the steps: always above it, with this chance at
        it.
        """
        values = sorted(self.estimates, reverse=True)
        threshold = values[min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))]
        above, equal = sum(v > threshold for v in values), values.count(threshold)
        return threshold, min(1.0, max(0.0, (share * len(values) - above) / equal))

    def write(self, path: Path) -> None:
        """As JSON."""
        stored = {"format": _FORMAT, "model": self.model, **self.estimator, "estimates": list(self.estimates)}
        path.write_text(json.dumps(stored) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """From a file of `hesnr egss calibrate`. Raises `DataError`."""
        try:
            with open_regular(path) as file:
                stored = parse_json(read_rest(file))
            if stored["format"] != _FORMAT:
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


def calibrate(estimates: Sequence[float], identity: Mapping[str, Any], model: str) -> Calibration:
    """A calibration from the estimates of runs, nats a step; those that are not finite are left out.

    Raises:
        DataError: Fewer than 20 are finite.
    """
    finite = tuple(sorted(value for value in estimates if math.isfinite(value)))
    if len(finite) < 20:
        raise DataError(
            f"a calibration needs the estimates of at least 20 steps; these runs hold {len(finite)}.\n"
            "Run with model.gate=threshold:inf (measures and never branches), and give that folder."
        )
    return Calibration(dict(identity), model, finite)


def open_gate(spec: str, estimator: Estimator, calibration: Path | None = None) -> Gate:
    """The gate of a setting, such as threshold:0.3; see the module.

    Raises:
        SettingsError: It cannot be one, or is calibrated by another estimator.
    """
    name, colon, text = spec.partition(":")
    if name not in GATES:
        raise SettingsError(f"model.gate is {spec!r}; it must be one of {', '.join(GATES)}.{nearest(name, GATES)}")
    if bool(colon) != (name in ("random", "threshold", "quantile")):
        raise SettingsError(f"model.gate is {spec!r}; write it {name if colon else f'{name}:NUMBER'}.")
    number, high = math.nan, math.inf if name == "threshold" else 1.0
    if colon:
        with contextlib.suppress(ValueError):
            number = float(text)
        if not 0 <= number <= high:
            raise SettingsError(f"model.gate is {spec!r}; {text!r} must be a number from 0 to {high:g}.")
    gates: dict[str, tuple[str, Callable[[GateInput], bool]]] = {
        "never": ("nothing", lambda step: False),
        "always": ("nothing", lambda step: True),
        "random": ("nothing", lambda step: step.chance < number),
        "edit": ("first", lambda step: step.action == "edit"),
        "threshold": ("estimate", lambda step: step.estimate > number),
    }
    if name in gates:
        return Gate(spec, *gates[name])
    if calibration is None:
        raise SettingsError(
            f"model.gate is {spec!r}, and nothing says which estimates those are.\n"
            "Run with model.gate=threshold:inf, then `hesnr egss calibrate RUN -o gate.json`, then set "
            "model.calibration=gate.json."
        )
    stored = Calibration.read(calibration)
    if dict(stored.estimator) != estimator.identity:
        theirs, ours = (", ".join(f"{k} {v}" for k, v in i.items()) for i in (stored.estimator, estimator.identity))
        raise SettingsError(
            f"{calibration} was calibrated by another estimator: {theirs}, and this run has {ours}.\n"
            "Calibrate with the settings of the run, or run with those of the file."
        )
    limit, chance = stored.rule(number)
    return Gate(spec, "estimate", lambda s: s.estimate > limit or (s.estimate == limit and s.chance < chance))


def uniform(*about: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(json.dumps([str(part) for part in about]).encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)
