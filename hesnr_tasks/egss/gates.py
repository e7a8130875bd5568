"""When to draw more: the gates of a step.

never             one draw a step: mini-swe-agent as it is
always            all draws at every step
random:RATE       at this share of steps, chosen by seed: the control at a matched rate
edit              where the first draw is an edit: the control that needs no entropy
threshold:NATS    where the estimate exceeds a number (`threshold:inf` measures and never branches)
quantile:SHARE    at the share of steps with the highest estimates, by a calibration that the same estimator made
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.bounded_io import open_regular, parse_json, read_rest
from hesnr_tasks.egss.estimators import Estimator
from hesnr_tasks.errors import DataError, SettingsError, nearest

__all__ = ["FORMAT", "GATES", "Calibration", "Gate", "Step", "calibrate", "open_gate", "uniform"]

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
