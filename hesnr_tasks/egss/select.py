"""`hesnr select`: one patch an instance from finished runs, by tests that all of them must pass and models that vote.

1. Candidates: the submissions of the runs. Empty ones, and those that do not apply, are out where others are left.
   Patches that change the same source in the same way are one, with as many copies as runs.
2. The suite (`suite`) is run on each. The `top` patches by pass rate go on; those that could not be tested come last.
3. Voters (`selectors`) vote; most votes win.

Ties, wherever they are, are broken at random with the seed, and counted. Beside the patches that were chosen stands, in
`*.why.json`, what each choice rests on, and what the controls would have chosen: a random run, the patch most runs
have, the suite alone, the best of N by scores of the voters without a suite (only where it was asked for: it costs).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hesnr_tasks.egss.collect import PatchCandidate, patch_key, source_patch
from hesnr_tasks.egss.judges import Ballot, ChatModel, Finalist, vote, write_tests
from hesnr_tasks.egss.suite import WRITTEN_BY_MODEL, PatchTester, SelectSettings, Suite, TestFile

_SHOWN = 12  # failed tests that a voter sees


def select_instance(
    candidates: Sequence[PatchCandidate],
    instance: Mapping[str, Any],
    settings: SelectSettings,
    tester: PatchTester | None,
    models: Sequence[ChatModel],
    writer: ChatModel | None,
) -> tuple[str, dict[str, Any]]:
    """The patch chosen for one instance, and why.

    `tester` None: the method needs no suite; `writer` None: nobody writes missing tests.
    """
    task, test_files = str(instance.get("problem_statement") or ""), settings.test_files
    key_of = {candidate.run: patch_key(candidate.patch, test_files) for candidate in candidates}
    sources = {key_of[c.run]: source_patch(c.patch, test_files) for c in candidates}
    with_patch = [c for c in candidates if sources[key_of[c.run]]] or list(candidates)

    def written(files: Sequence[TestFile], problem: str) -> TestFile | None:
        assert writer is not None
        tests = {file.path: file.content for file in files if file.content and WRITTEN_BY_MODEL not in file.authors}
        patches = list(dict.fromkeys(sources[key_of[c.run]] for c in with_patch))
        content = write_tests(writer, settings.augment_path, task, patches, tests, problem, settings.limit)
        return TestFile(settings.augment_path, content, (WRITTEN_BY_MODEL,)) if content else None

    suite = Suite()
    if tester and any(sources.values()):
        suite = tester.suite(with_patch, written if writer else None)
    fit = [c for c in with_patch if key_of[c.run] not in suite.unfit] or with_patch
    selection = _PatchSelection(
        str(instance["instance_id"]), settings, suite, [key_of[c.run] for c in fit], sources, task, models
    )
    controls = {
        "random": (key_of[selection.generator("random").choice(sorted(c.run for c in fit))], "random", True),
        "majority": selection.best(Counter(selection.keys), "majority"),
        "suite": selection.by_suite(),
    }
    by_models = {"best-of-n": selection.best_of_n, "egss": selection.by_votes}.get(settings.method)
    key, decided_by, tied = by_models() if by_models else controls[settings.method]
    runs = [c.run for c in fit if key_of[c.run] == key]
    described = []
    for c in candidates:
        own = key_of[c.run]
        row: dict[str, Any] = {"run": c.run, "patch": own, "characters": len(c.patch)}
        if problem := suite.problems.get(own) or ("" if c.patch.strip() else "it changes nothing"):
            row["problem"] = problem
        described.append(row | ({"tests": counts._asdict()} if (counts := suite.counts(own)) else {}))
    record = {
        "chosen": key,
        "runs": runs,
        "decided_by": decided_by,
        "tie_broken_at_random": tied,
        "cut_at_random": selection.cut_at_random,
        "controls": {name: control[0] for name, control in controls.items()},
        "candidates": described,
        "suite": {"tests": suite.tests, "dropped": suite.dropped, "runs_of_files": suite.runs},
        "ballots": [ballot._asdict() for ballot in selection.ballots],
        "spent": {m.name: m.spent._asdict() for m in [*models, *([writer] if writer else [])] if m.spent.calls},
    }
    return next(c.patch for c in fit if c.run == runs[0]), record


_Chosen = tuple[str, str, bool]  # patch key, what decided, whether by lot


@dataclass
class _PatchSelection:
    """One instance's patches, and what chooses among them."""

    instance_id: str
    settings: SelectSettings
    suite: Suite
    keys: Sequence[str]  # patch key of each run that is left
    sources: Mapping[str, str]  # patch key -> patch without tests
    task: str
    models: Sequence[ChatModel]
    ballots: list[Ballot] = field(default_factory=list)
    cut_at_random: bool = False  # more patches of equal pass rate than voters see

    def generator(self, purpose: str) -> random.Random:
        """Of random choices."""
        return random.Random(f"{self.settings.seed} {self.instance_id} {purpose}")

    def best(self, scores: Mapping[str, float], purpose: str) -> _Chosen:
        """The patch with the highest score; ties by seed."""
        best = sorted(key for key, score in scores.items() if score >= max(scores.values()) - 1e-12)
        chosen = self.generator(purpose).choice(best)
        return chosen, purpose if len(scores) > 1 else "only patch", len(best) > 1

    def by_suite(self) -> _Chosen:
        """The best pass rate; patches that were not tested come last."""
        return self.best({key: self._rate(key) for key in self.keys}, "suite")

    def _rate(self, key: str) -> float:
        counts = self.suite.counts(key)
        return counts.rate if counts else -1.0

    def by_votes(self) -> _Chosen:
        """The best patches by the suite, then the votes; without a usable vote the suite decides."""
        keys = sorted(set(self.keys))
        ranked = sorted(self.generator("cut").sample(keys, len(keys)), key=lambda key: -self._rate(key))
        finalists = ranked[: self.settings.top]
        if len(ranked) > len(finalists) and self._rate(finalists[-1]) == self._rate(ranked[len(finalists)]):
            self.cut_at_random = True
        highest = max(map(self._rate, finalists))
        if len(finalists) == 1 or not self._vote([self._finalist(key, highest) for key in finalists]):
            return self.by_suite()
        votes = Counter(dict.fromkeys(finalists, 0))
        votes.update(ballot.vote for ballot in self.ballots)
        return self.best(votes, "votes")

    def _finalist(self, key: str, highest: float) -> Finalist:
        counts = self.suite.counts(key)
        if counts is None:
            return Finalist(key, self.sources[key])
        failures = self.suite.failures(key)
        lines = [f"passed {counts.passed}, failed {counts.failed}, error {counts.error}, total {counts.total}"]
        lines += [f"not passed: {name}" for name in failures[:_SHOWN]]
        lines += [f"and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
        return Finalist(key, self.sources[key], "\n".join(lines), counts.rate >= highest - 1e-12)

    def _vote(self, finalists: Sequence[Finalist]) -> list[Ballot]:
        seed, limit = (self.settings.seed, self.instance_id), self.settings.limit
        voters = [(model, f"{model.name} #{n + 1}") for model in self.models for n in range(self.settings.votes)]
        cast = [vote(model, voter, self.task, finalists, seed, limit) for model, voter in voters]
        usable = [ballot for ballot in cast if ballot]
        self.ballots += usable
        return usable

    def best_of_n(self) -> _Chosen:
        """Each patch alone, by the mean of the voters' scores, without a suite."""
        means = {}
        for key in dict.fromkeys(self.keys):
            scores = [ballot.scores[key] for ballot in self._vote([Finalist(key, self.sources[key])])]
            means[key] = math.fsum(scores) / len(scores) if scores else -1.0
        return self.best(means, "best of N")
