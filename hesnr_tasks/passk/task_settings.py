"""What can be set of a Pass@K task, and how the task's own filters and metrics are read for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from hesnr_tasks.errors import SettingsError, nearest
from hesnr_tasks.passk.estimator import powers
from hesnr_tasks.passk.seeds import LIMIT
from hesnr_tasks.statistics import RESAMPLES, SEED

__all__ = ["PassKSettings", "all_answers", "verifier_of"]

_LOSSY = {"take_first_k": "keeps some of the answers", "majority_vote": "keeps one answer of all"}


@dataclass(frozen=True, slots=True)
class PassKSettings:
    """The block `passk`."""

    repeats: int = 1  # answers a problem (default: the YAML file's `repeats`)
    k: tuple[int, ...] = ()  # default: powers of two up to repeats
    seed: int = 1234  # from which every answer's seed is made
    verifier: str | None = None  # the metric that says right or wrong (default: the task's first)
    threshold: float | None = None  # from which value of the verifier on an answer is right (default: it says 0 or 1)
    answers: str | None = None  # folder where answers are kept; "none": nowhere (default: beside --output_path)
    resamples: int = RESAMPLES
    bootstrap_seed: int = SEED

    @classmethod
    def read(cls, yaml: Any, command_line: Any, repeats: Any) -> PassKSettings:
        """From the YAML block, over which the command line's wins."""
        found: dict[str, Any] = {"repeats": repeats}
        for block in (yaml, command_line):
            if block is not None and not isinstance(block, Mapping):
                raise SettingsError(f"passk must be a block of settings, not {block!r}")
            found |= dict(block or {})
        known = [field.name for field in fields(cls)]
        for name in found:
            if name not in known:
                raise SettingsError(f"passk: unknown setting {name!r}.{nearest(str(name), known)}")
        found["k"] = _ks(found.get("k"))
        made = cls(**found)
        made._check()
        return made

    @property
    def ks(self) -> list[int]:
        """Every k to report."""
        return sorted(set(self.k)) or powers(self.repeats)

    def to_json(self) -> dict[str, Any]:
        """For the configuration that lm-eval saves."""
        return {**asdict(self), "k": self.ks}

    def _check(self) -> None:
        whole = (("repeats", 1, LIMIT), ("seed", 0, None), ("resamples", 100, None), ("bootstrap_seed", 0, None))
        for name, low, high in whole:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low or (high and value >= high):
                raise SettingsError(f"passk: {name} must be a whole number of at least {low}, not {value!r}")
        for k in self.ks:
            if not 1 <= k <= self.repeats:
                raise SettingsError(
                    f"passk: pass@{k} cannot be known from {self.repeats} answers a problem; raise repeats, or lower k"
                )
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float, type(None))):
            raise SettingsError(f"passk: threshold must be a number, not {self.threshold!r}")
        for name in ("verifier", "answers"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise SettingsError(f"passk: {name} must be a text, not {getattr(self, name)!r}")


def all_answers(filters: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The task's filters with `keep_all` instead of `take_first`; `SettingsError` for filters that lose answers."""
    found = []
    for one in filters or [{"name": "none", "filter": []}]:
        steps = [dict(step) for step in one["filter"] if step.get("function") != "take_first"]
        for step in steps:
            if step.get("function") in _LOSSY:
                raise SettingsError(
                    f"the filter {step['function']} of {one['name']!r} {_LOSSY[step['function']]}; Pass@K needs all. "
                    "Leave it out of filter_list"
                )
        kept = [step for step in steps if step.get("function") != "keep_all"]
        found.append({"name": one["name"], "filter": [*kept, {"function": "keep_all"}]})
    return found


def verifier_of(metrics: Sequence[Mapping[str, Any]] | None, named: str | None) -> tuple[str, list[dict[str, Any]]]:
    """The name of the verifier, and the task's metrics with `passk` replaced by the verifier it names."""
    found, wanted = [], named
    for one in metrics or [{"metric": "exact_match"}]:
        made = dict(one)
        if made.get("metric") == "passk":
            made["metric"] = made.pop("verifier", "exact_match")
            wanted = wanted or made["metric"]
            if made.keys() & {"k", "threshold"}:
                raise SettingsError("k and threshold of a PassKTask are set in the block passk, not in metric_list")
        found.append({"aggregation": "mean", "higher_is_better": True, **made})
    first = found[0]["metric"]
    return wanted or (first.__name__ if callable(first) else str(first)), found


def _ks(value: Any) -> tuple[int, ...]:
    listed = [] if value is None else [value] if isinstance(value, int) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(k, int) and not isinstance(k, bool) for k in listed):
        raise SettingsError(f"passk: k must be a whole number or a list of them, not {value!r}")
    return tuple(listed)
