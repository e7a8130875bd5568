"""What was found at the problems: n answers each, c of them right; and which of several checkpoints has which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, SettingsError

__all__ = ["Answer", "Outcomes", "aligned", "check_ks", "gathered"]

Counts = npt.NDArray[np.int64]
_SHOWN = 3


class Answer(NamedTuple):
    """`n` answers to a problem, `c` of them right, and where that is written. `ok` unknown: n = 0."""

    problem: str
    n: int
    c: int
    where: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The answers of one checkpoint; the arrays are of shape (P,), in the order of `problems`."""

    name: str
    problems: tuple[str, ...]  # keys: what makes a problem the same in two runs
    labels: tuple[str, ...]  # how people call them
    n: Counts
    c: Counts
    notes: tuple[str, ...] = field(default=())

    @property
    def same_n(self) -> bool:
        """Whether all problems have as many answers."""
        return bool(len(self.n)) and int(self.n.min()) == int(self.n.max())

    def taken(self, problems: Sequence[str]) -> Outcomes:
        """These problems only, in this order."""
        at = {problem: i for i, problem in enumerate(self.problems)}
        order = [at[problem] for problem in problems]
        labels = tuple(self.labels[i] for i in order)
        return Outcomes(self.name, tuple(problems), labels, self.n[order], self.c[order], self.notes)


def gathered(name: str, answers: Iterable[Answer], notes: Sequence[str] = ()) -> Outcomes:
    """Answers put together by problem, sorted by its name; `DataError` where no problem has a known outcome.

    A problem all of whose answers are of unknown outcome is left out, and a note says so.
    """
    n: dict[str, int] = {}
    c: dict[str, int] = {}
    labels: dict[str, str] = {}
    for answer in answers:
        n[answer.problem] = n.get(answer.problem, 0) + answer.n
        c[answer.problem] = c.get(answer.problem, 0) + answer.c
        labels.setdefault(answer.problem, answer.label or answer.problem)
    known = sorted((problem for problem in n if n[problem]), key=lambda problem: (labels[problem], problem))
    unknown = [labels[problem] for problem in n if not n[problem]]
    if not known:
        raise DataError(f"{name}: no problem has an answer that is known to be right or wrong")
    told = [f"{name}: no outcome is known for {_listed(sorted(unknown))}: left out"] if unknown else []
    answers, right = (np.array([table[problem] for problem in known], dtype=np.int64) for table in (n, c))
    return Outcomes(name, tuple(known), tuple(labels[p] for p in known), answers, right, (*notes, *told))


def aligned(runs: Sequence[Outcomes], *, common: bool = False) -> tuple[list[Outcomes], list[str]]:
    """The runs on the same problems in the same order, and what has to be said of that.

    `DataError` for runs on different problems, unless `common`, which keeps those that all have.
    """
    first = runs[0]
    shared = set(first.problems).intersection(*(one.problems for one in runs[1:]))
    unlike = [other for other in runs[1:] if set(other.problems) != set(first.problems)]
    told = ["; ".join(_only(first, other)) for other in unlike]
    if unlike and not common:
        raise DataError(
            f"{first.name} and {unlike[0].name} are not of the same problems: {told[0]}. Run both on the same ones, or "
            "compare on those that all have with --common."
        )
    if not shared:
        raise DataError(f"{', '.join(one.name for one in runs)} have no problem in common")
    order = [problem for problem in first.problems if problem in shared]
    notes = [f"compared on the {len(order)} problems that all have ({one})" for one in told]
    return [one.taken(order) for one in runs], notes


def check_ks(one: Outcomes, ks: Sequence[int]) -> None:
    """`SettingsError` for a k below 1, or above the number of answers of some problem, which it names."""
    for k in ks:
        if k < 1:
            raise SettingsError(f"--k {k}: k must be at least 1")
        short = np.flatnonzero(one.n < k)
        if len(short):
            i = int(short[np.argmin(one.n[short])])
            more = f" (and {len(short) - 1} more problems have too few)" if len(short) > 1 else ""
            raise SettingsError(
                f"--k {k}: {one.name} has {one.n[i]} answers to {one.labels[i]!r}{more}; Pass@k cannot be known from "
                f"fewer than k answers. Take more answers, or a k of at most {one.n.min()}."
            )


def _only(a: Outcomes, b: Outcomes) -> Iterable[str]:
    for one, other in ((a, b), (b, a)):
        known = set(other.problems)
        extra = [label for key, label in zip(one.problems, one.labels, strict=True) if key not in known]
        if extra:
            yield f"only {one.name} has {_listed(extra)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
