"""From leaves to one patch: the suite's cut, selectors with the six-dimension rubric, a majority vote; and baselines.

1. Leaves without a patch are out (unless no leaf has one). Leaves with the same change of source are one candidate,
   represented by the first of them.
2. Cut: candidates whose pass rate is below `least` are out; the best `top` by (rate, mean judge score) go on; untested
   ones rank after tested ones. If all are below `least`, those with the best rate stay. No suite: nobody is cut.
3. Each selector scores every candidate and votes for its best. Scores are points / 18; functionality 0 makes them 0.
   A selector that fails casts no vote; that is noted and never made up for.
4. Most votes win. Ties, in this order: greater sum of the selectors' scores; greater pass rate; more leaves with that
   patch; greater mean judge score; fewer changed lines; earlier leaf. With equal scores a selector's own vote goes by
   the same order from the pass rate on. Judge scores count only where every candidate has one: a path on which nobody
   was asked is neither good nor bad.

EGSS's pass-rate threshold and its ties are not public: `least` = 0 and the order above are choices; `top` = 3 is the
released code's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from hesnr_tasks.errors import JudgeError, SearchError, SettingsError
from hesnr_tasks.search.consolidate import Rate, Suite, patch_key
from hesnr_tasks.search.consolidate_collect import source_only
from hesnr_tasks.search.types import Leaf, Usage, total

__all__ = [
    "Ballot",
    "Chosen",
    "Election",
    "Finalist",
    "Selection",
    "Selector",
    "best_of_n",
    "changed_lines",
    "cut",
    "finalists",
    "first",
    "majority",
    "regret",
    "select",
    "smallest",
]


@dataclass(frozen=True)
class Finalist:
    """One distinct patch: its first leaf, how many leaves have it, and what is known of it."""

    leaf: Leaf
    leaves: tuple[str, ...]
    rate: Rate | None = None  # None: not tested, or no test discriminates

    @property
    def id(self) -> str:
        """Its first leaf's id."""
        return self.leaf.id

    @property
    def share(self) -> float:
        """The pass rate; -1 where it was not tested."""
        return self.rate.share if self.rate else -1.0


class Ballot(NamedTuple):
    """What one selector thinks of each finalist: scores in [0, 1], in their order, and what asking cost."""

    scores: tuple[float, ...]
    usage: Usage
    notes: tuple[str, ...] = ()


class Selector(Protocol):
    """Compares patches. Raises `JudgeError` when it has no numbers."""

    def ballot(self, task: str, candidates: Sequence[Finalist]) -> Ballot:
        """A score for each candidate."""
        ...


class Election(NamedTuple):
    """Votes by finalist id, the winner's place, and by what the winner won: "votes" or the tie rule."""

    votes: Mapping[str, int]
    winner: int
    decided_by: str


@dataclass(frozen=True)
class Chosen:
    """The outcome of a selection, with everything it rests on."""

    leaf: Leaf
    election: Election
    cut: tuple[str, ...]  # ids of finalists that the suite put out
    usage: Usage  # of all selectors
    ballots: tuple[Ballot, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """Settings of the cut; `weighting`: see `Suite.rates`."""

    least: float = 0.0
    top: int = 3
    weighting: str = "test"

    def __post_init__(self) -> None:
        if not (0 <= self.least <= 1 and self.top >= 1):
            raise SettingsError(f"least must be in [0, 1] and top at least 1, not {self.least} and {self.top}")


@dataclass
class _Spent:
    usage: Usage = field(default_factory=Usage)
    problems: list[str] = field(default_factory=list)


def finalists(leaves: Sequence[Leaf], suite: Suite | None = None, weighting: str = "test") -> list[Finalist]:
    """Distinct patches in the order of their first leaves, with their pass rates. Raises `SearchError` for no leaf."""
    if not leaves:
        raise SearchError("there is no leaf to select from: every path of the search failed")
    with_patch = [leaf for leaf in leaves if leaf.patch.strip()] or list(leaves)
    if any(math.isnan(leaf.score) for leaf in with_patch):
        with_patch = [replace(leaf, score=0.0) for leaf in with_patch]
    rates = suite.rates(weighting) if suite else {}
    groups: dict[str, list[Leaf]] = {}
    for leaf in with_patch:
        groups.setdefault(patch_key(leaf.patch), []).append(leaf)
    return [Finalist(same[0], tuple(one.id for one in same), rates.get(same[0].id)) for same in groups.values()]


def cut(candidates: Sequence[Finalist], settings: Selection) -> list[Finalist]:
    """The candidates that go on, in their order."""
    tested = [one for one in candidates if one.rate]
    if not tested:
        return list(candidates)
    bar = min(settings.least, max(one.share for one in tested))
    passing = [one for one in candidates if one.share >= bar or (one.rate is None and settings.least == 0)]
    ranked = sorted(passing, key=lambda one: (-one.share, -one.leaf.score, candidates.index(one)))
    return sorted(ranked[: settings.top], key=candidates.index)


def majority(ballots: Sequence[Ballot], candidates: Sequence[Finalist]) -> Election:
    """Each ballot votes for its best; most votes win; ties as the module says."""
    if not candidates:
        raise SearchError("there is no candidate to vote for")
    votes = dict.fromkeys((one.id for one in candidates), 0)
    for ballot in ballots:
        _check(ballot, candidates)
        votes[candidates[_best(lambda i, b=ballot: b.scores[i], candidates)].id] += 1  # type: ignore[misc]
    sums = [round(sum(ballot.scores[i] for ballot in ballots), 9) for i in range(len(candidates))]
    keys = [(votes[one.id], sums[i], *_merit(one), -i) for i, one in enumerate(candidates)]
    order = sorted(range(len(candidates)), key=lambda i: keys[i], reverse=True)
    return Election(votes, order[0], _decided(keys, order))


def select(
    task: str,
    leaves: Sequence[Leaf],
    suite: Suite | None,
    selectors: Sequence[Selector],
    settings: Selection | None = None,
) -> Chosen:
    """The whole of it. One candidate is chosen without asking anybody."""
    chosen = settings or Selection()
    everyone = finalists(leaves, suite, chosen.weighting)
    left = cut(everyone, chosen)
    spent, ballots = _Spent(), []
    for number, selector in enumerate(selectors if len(left) > 1 else (), 1):
        try:
            ballot = selector.ballot(task, left)
            _check(ballot, left)
        except JudgeError as error:
            spent.usage = total((spent.usage, getattr(error, "usage", Usage())))
            spent.problems.append(f"selector {number} casts no vote: {error}")
        else:
            spent.usage = total((spent.usage, ballot.usage))
            ballots.append(ballot)
    election = majority(ballots, left)
    out = tuple(one.id for one in everyone if one not in left)
    return Chosen(left[election.winner].leaf, election, out, spent.usage, tuple(ballots), tuple(spent.problems))


def first(leaves: Sequence[Leaf]) -> Leaf:
    """Baseline: the first leaf with a patch."""
    return finalists(leaves)[0].leaf


def smallest(leaves: Sequence[Leaf]) -> Leaf:
    """Baseline: the fewest changed lines of source; ties: the first."""
    return min(finalists(leaves), key=lambda one: changed_lines(one.leaf.patch)).leaf


def best_of_n(leaves: Sequence[Leaf], score: Callable[[Leaf], float] = lambda leaf: leaf.score) -> Leaf:
    """Baseline: the greatest score (default: the mean judge score on the way); ties: the first."""
    return max(finalists(leaves), key=lambda one: score(one.leaf)).leaf


def regret(chosen: str, resolved: Mapping[str, bool]) -> int:
    """1 where some leaf solves the task and the chosen one does not, else 0."""
    return int(any(resolved.values())) - int(resolved[chosen])


def changed_lines(patch: str) -> int:
    """Lines that a patch adds or removes outside tests."""
    lines = source_only(patch).splitlines()
    return sum(line[:1] in "+-" and not line.startswith(("+++ ", "--- ")) for line in lines if line)


def _merit(one: Finalist) -> tuple[float, int, float, int]:
    return one.share, len(one.leaves), one.leaf.score, -changed_lines(one.leaf.patch)


_RULES = ("votes", "selectors' scores", "pass rate", "leaves with that patch", "judge score", "size", "order")


def _decided(keys: Sequence[tuple[float, ...]], order: Sequence[int]) -> str:
    """The first rule by which the winner is ahead of the second."""
    if len(order) == 1:
        return "only candidate"
    ahead = (a > b for a, b in zip(keys[order[0]], keys[order[1]], strict=True))
    return next(rule for rule, better in zip(_RULES, ahead, strict=True) if better)


def _best(score: Callable[[int], float], candidates: Sequence[Finalist]) -> int:
    return max(range(len(candidates)), key=lambda i: (round(score(i), 9), *_merit(candidates[i]), -i))


def _check(ballot: Ballot, candidates: Sequence[Finalist]) -> None:
    if len(ballot.scores) != len(candidates) or not all(0 <= one <= 1 for one in ballot.scores):
        raise JudgeError(f"a ballot must give {len(candidates)} scores in [0, 1], not {list(ballot.scores)[:12]}")
