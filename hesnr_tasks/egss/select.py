"""`hesnr select`: one patch an instance from finished runs, by tests that all of them must pass and models that vote.

1. Candidates: the submissions of the runs. Empty ones, and those that do not apply, are out where others are left.
   Patches that change the same source in the same way are one, with as many copies as runs.
2. The suite (`suite`) is run on each. The `top` patches by pass rate go on; those that could not be tested come last.
3. Voters (`selectors`) vote; most votes win.

Ties, wherever they are, are broken at random with the seed, and told. Beside the patches that were chosen stands, in
`*.why.json`, what each choice rests on, and what the controls would have chosen: a random run, the patch most runs
have, the suite alone, the best of N by scores of the voters without a suite (only where it was asked for: it costs).
"""

from __future__ import annotations

import collections
import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hesnr_tasks.egss.collect import Candidate, patch_key, source_patch
from hesnr_tasks.egss.judges import Ballot, ChatModel, Finalist, vote, write_tests
from hesnr_tasks.egss.suite import WRITTEN_BY_MODEL, PatchTester, Runner, Suite, TestFile

__all__ = ["METHODS", "Settings", "select_instance"]

_LOG = logging.getLogger("hesnr_tasks")
METHODS = ("egss", "suite", "majority", "random", "best-of-n")
_SHOWN = 12  # failed tests that a voter is told


@dataclass(frozen=True)
class Settings:
    """Of a selection.

    Attributes:
        method: one of `METHODS`.
        votes: ballots of each voter.
        top: patches that voters see.
        limit: most characters of each piece that models see.
        seed: of orders and ties.
        augment_path: of the test file that a model writes.
    """

    method: str = "egss"
    votes: int = 1
    top: int = 3
    limit: int = 40_000
    seed: int = 1234
    augment_path: str = "test_current_issue.py"
    runner: Runner = field(default_factory=Runner)


# --- one instance -----------------------------------------------------------------------------------------------------


def select_instance(
    candidates: Sequence[Candidate],
    instance: Mapping[str, Any],
    settings: Settings,
    tester: PatchTester | None,
    models: Sequence[ChatModel],
    writer: ChatModel | None,
) -> tuple[str, dict[str, Any]]:
    """The patch chosen, and why.

    Args:
        candidates: of one instance, in the order of the runs.
        instance: its row; `instance_id` and `problem_statement` are used here, the rest by the environment.
        settings: of the selection.
        tester: runs the tests; None: the method needs none.
        models: the voters.
        writer: writes missing tests; None: nobody does.
    """
    task, test_files = str(instance.get("problem_statement") or ""), settings.runner.test_files
    key_of = {candidate.run: patch_key(candidate.patch, test_files) for candidate in candidates}
    sources = {key_of[c.run]: source_patch(c.patch, test_files) for c in candidates}
    with_patch = [c for c in candidates if sources[key_of[c.run]]] or list(candidates)
    suite = Suite()
    if tester and any(sources.values()):
        suite = tester.suite(with_patch, _writing(writer, task, with_patch, settings) if writer else None)
    fit = [c for c in with_patch if key_of[c.run] not in suite.unfit] or with_patch
    keys = list(dict.fromkeys(key_of[c.run] for c in fit))
    choice = _Choice(str(instance["instance_id"]), settings, suite, fit, key_of, sources)
    controls = {"random": choice.random(), "majority": choice.majority(), "suite": choice.by_suite(keys)}
    ballots: list[Ballot] = []
    if settings.method == "best-of-n":
        chosen, ballots = choice.best_of_n(models, task)
    elif settings.method == "egss":
        chosen, ballots = choice.by_votes(models, task)
    else:
        chosen = controls[settings.method]
    key, decided_by, tied = chosen
    runs = [c.run for c in fit if key_of[c.run] == key]
    patch = next(c.patch for c in fit if c.run == runs[0])
    record = {
        "chosen": key,
        "runs": runs,
        "decided_by": decided_by,
        "tie_broken_at_random": tied,
        "cut_at_random": choice.cut_at_random,  # patches of equal pass rate, more than voters see
        "controls": {name: control[0] for name, control in controls.items()},
        "candidates": [_candidate(c, key_of[c.run], suite) for c in candidates],
        "suite": {"tests": suite.tests, "dropped": suite.dropped, "runs_of_files": suite.runs},
        "ballots": [ballot._asdict() for ballot in ballots],
        "spent": {
            model.name: model.spent._asdict() for model in [*models, *([writer] if writer else [])] if model.spent.calls
        },
    }
    return patch, record


def _writing(writer: ChatModel, task: str, candidates: Sequence[Candidate], settings: Settings) -> Any:
    patches = list(dict.fromkeys(source_patch(c.patch, settings.runner.test_files) for c in candidates))

    def written(files: Sequence[TestFile], problem: str) -> TestFile | None:
        tests = {file.path: file.content for file in files if file.content and WRITTEN_BY_MODEL not in file.authors}
        path = settings.augment_path
        content = write_tests(writer, path, task, patches, tests, problem, settings.limit)
        return TestFile(path, content, (WRITTEN_BY_MODEL,)) if content else None

    return written


def _candidate(candidate: Candidate, key: str, suite: Suite) -> dict[str, Any]:
    counts = suite.counts(key)
    described = {"run": candidate.run, "patch": key, "characters": len(candidate.patch)}
    if key in suite.problems:
        described["problem"] = suite.problems[key]
    elif not candidate.patch.strip():
        described["problem"] = "it changes nothing"
    return described | ({"tests": counts._asdict()} if counts else {})


_Chosen = tuple[str, str, bool]  # patch key, what decided, whether by lot


@dataclass
class _Choice:
    """The ways to choose one of an instance's patches."""

    instance_id: str
    settings: Settings
    suite: Suite
    candidates: Sequence[Candidate]
    key_of: Mapping[str, str]
    sources: Mapping[str, str]
    cut_at_random: bool = False

    def _lot(self, keys: Sequence[str], purpose: str) -> str:
        return random.Random(f"{self.settings.seed} {self.instance_id} {purpose}").choice(sorted(keys))

    def _best(self, scores: Mapping[str, float], purpose: str) -> _Chosen:
        best = [key for key, score in scores.items() if score >= max(scores.values()) - 1e-12]
        return self._lot(best, purpose), purpose if len(scores) > 1 else "only patch", len(best) > 1

    def random(self) -> _Chosen:
        """Any run, each with the same chance."""
        run = self._lot([c.run for c in self.candidates], "random")
        return self.key_of[run], "random", True

    def majority(self) -> _Chosen:
        """The patch that most runs have."""
        return self._best(Counter(self.key_of[c.run] for c in self.candidates), "majority")

    def by_suite(self, keys: Sequence[str]) -> _Chosen:
        """The best pass rate; patches that were not tested come last."""
        return self._best({key: self._rate(key) for key in keys}, "suite")

    def _rate(self, key: str) -> float:
        counts = self.suite.counts(key)
        return -1.0 if counts is None or math.isnan(counts.rate) else counts.rate

    def by_votes(self, models: Sequence[ChatModel], task: str) -> tuple[_Chosen, list[Ballot]]:
        """The cut by the suite, then the votes; without a usable vote the suite decides."""
        keys = list(dict.fromkeys(self.key_of[c.run] for c in self.candidates))
        order = random.Random(f"{self.settings.seed} {self.instance_id} cut").sample(sorted(keys), len(keys))
        ranked = sorted(order, key=lambda key: -self._rate(key))
        finalists = ranked[: self.settings.top]
        if len(ranked) > len(finalists) and self._rate(finalists[-1]) == self._rate(ranked[len(finalists)]):
            self.cut_at_random = True
        if len(finalists) == 1 or not models:
            return self.by_suite(keys), []
        best = max(map(self._rate, finalists))
        shown = [self._finalist(key, best) for key in finalists]
        cast = [self._ballot(model, number, task, shown) for model in models for number in range(self.settings.votes)]
        ballots = [ballot for ballot in cast if ballot]
        if not ballots:
            return self.by_suite(keys), []
        votes = Counter(dict.fromkeys(finalists, 0))
        votes.update(ballot.vote for ballot in ballots)
        return self._best(votes, "votes"), ballots

    def _finalist(self, key: str, best: float) -> Finalist:
        counts = self.suite.counts(key)
        if counts is None:
            return Finalist(key, self.sources[key])
        failures = self.suite.failures(key)
        lines = [f"passed {counts.passed}, failed {counts.failed}, error {counts.error}, total {counts.total}"]
        lines += [f"not passed: {name}" for name in failures[:_SHOWN]]
        lines += [f"and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
        return Finalist(key, self.sources[key], "\n".join(lines), counts.rate >= best - 1e-12)

    def _ballot(self, model: ChatModel, number: int, task: str, shown: Sequence[Finalist]) -> Ballot | None:
        voter = f"{model.name} #{number + 1}"
        return vote(model, voter, task, shown, (self.settings.seed, self.instance_id), self.settings.limit)

    def best_of_n(self, models: Sequence[ChatModel], task: str) -> tuple[_Chosen, list[Ballot]]:
        """Each patch alone, by the mean of the voters' scores, without a suite."""
        keys = list(dict.fromkeys(self.key_of[c.run] for c in self.candidates))
        ballots: list[Ballot] = []
        scores: dict[str, list[float]] = collections.defaultdict(list)
        for key in keys:
            alone = [Finalist(key, self.sources[key])]
            cast = [self._ballot(model, n, task, alone) for model in models for n in range(self.settings.votes)]
            ballots += [ballot for ballot in cast if ballot]
            scores[key] = [ballot.scores[key] for ballot in cast if ballot]
        means = {key: math.fsum(values) / len(values) if values else -1.0 for key, values in scores.items()}
        return self._best(means, "best of N"), ballots
