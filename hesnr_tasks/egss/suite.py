"""One test suite from all runs of an instance, run by us on every patch, and sifted.

Gathered are the test files that agents wrote (as their patches leave them, else as their calls wrote them), the files
of the repository's tests that they ran, and one that a model may write. Every patch is measured by the same tests: its
own changes to tests are taken out before it is applied. Outcomes are read from JUnit files; nobody's word is taken for
them. A test is kept if it gives the same answer in all repeats and some patch passes it. Dropped are, with a reason:
files that collect on no patch or on their author's alone, skipped tests, flaky ones, tests that no patch passes. On a
patch on which a file does not collect or runs out of time, though it does not on others, its tests fail.

Tests are arbitrary code and can forge their own JUnit file: a suite is evidence about patches of one policy, no
protection against an adversary.
"""

from __future__ import annotations

import functools
import math
import posixpath
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hesnr_tasks.egss.collect import PYTEST_FILES, Candidate, changed_files, patch_key, source_patch
from hesnr_tasks.egss.journal import Journal, fingerprint
from hesnr_tasks.egss.sandbox import PatchError, Sandbox, SandboxError
from hesnr_tasks.errors import printable

__all__ = ["PYTEST", "WRITTEN_BY_MODEL", "Counts", "PatchTester", "Runner", "Suite", "TestFile", "junit_outcomes"]

PYTEST = (
    "$(command -v python || command -v python3 || echo python) -m pytest -q -p no:cacheprovider -o junit_logging=no "
    "--junitxml={junit} {file}"
)
WRITTEN_BY_MODEL = "augmentation"
_REPOSITORY = "repository"
_JUNIT = ".hesnr-junit.xml"
_PASSED, _FAILED, _SKIPPED, _ERROR = "passed", "failed", "skipped", "error"
_HUNG = "it takes longer than"
# patch key -> path -> test -> outcome; a file without an outcome has the one test "" with the reason
_Outcomes = dict[str, dict[str, dict[str, str]]]


@dataclass(frozen=True)
class Runner:
    """How tests are run.

    Attributes:
        command: shell template with {file} and {junit}, the JUnit file it must write.
        test_files: regular expression of paths that are tests.
        timeout: seconds for one file.
        repeats: how often a file that tells patches apart is run.
        budget: most runs of a file for one instance.
    """

    command: str = PYTEST
    test_files: str = PYTEST_FILES
    timeout: int = 120
    repeats: int = 3
    budget: int = 300


class TestFile(NamedTuple):
    """A file of tests; content None: as it stands in the repository."""

    path: str
    content: str | None
    authors: tuple[str, ...]  # runs, or one of the names above


class Counts(NamedTuple):
    """What a patch does of the suite; `error`: tests that did not collect or ran out of time."""

    passed: int
    failed: int
    error: int
    total: int

    @property
    def rate(self) -> float:
        """passed / total; NaN for an empty suite."""
        return self.passed / self.total if self.total else math.nan


@dataclass
class Suite:
    """The sifted suite. Keys are those of `patch_key`."""

    tests: dict[str, dict[str, str]] = field(default_factory=dict)  # kept test -> key -> outcome
    dropped: dict[str, str] = field(default_factory=dict)  # test or file -> reason
    problems: dict[str, str] = field(default_factory=dict)  # key -> why the patch was not tested
    unfit: set[str] = field(default_factory=set)  # keys of patches that do not apply
    runs: int = 0  # of a file

    def counts(self, key: str) -> Counts | None:
        """None: the patch was not tested, or there is no test."""
        if not self.tests or key not in next(iter(self.tests.values())):
            return None
        outcomes = Counter(test[key] for test in self.tests.values())
        return Counts(outcomes[_PASSED], outcomes[_FAILED], outcomes[_ERROR], len(self.tests))

    def failures(self, key: str) -> list[str]:
        """The tests that the patch does not pass."""
        return [name for name, outcomes in self.tests.items() if outcomes.get(key, _PASSED) != _PASSED]


@dataclass
class PatchTester:
    """Runs tests on the patches of one instance; what was run before is taken from the journal."""

    config: Mapping[str, Any]
    instance: Mapping[str, Any]
    runner: Runner
    journal: Journal
    notes: Counter[str]

    def suite(
        self, candidates: Sequence[Candidate], written: Callable[[Sequence[TestFile], str], TestFile | None] | None
    ) -> Suite:
        """Gather, run and sift.

        Args:
            candidates: of this instance.
            written: given the tests so far and what is wrong with its last file (empty at first), one file more.
        """
        test_files = self.runner.test_files
        owners = {c.run: patch_key(c.patch, test_files) for c in candidates}
        patches = {owners[c.run]: source_patch(c.patch, test_files) for c in candidates}
        files = self._gathered(candidates)
        suite = Suite()
        extra = written(files, "") if written else None
        if extra:
            files = [extra, *files]
        files = self._affordable(files, len(patches))
        first = self._run(patches, suite, files, 0)
        if extra and written and extra in files and all("" in tests[extra.path] for tests in first.values()):
            problem = next((tests[extra.path][""] for tests in first.values()), "")
            mended = written(files, problem) if problem else None
            if mended:
                files = [mended if file.path == extra.path else file for file in files]
                self.notes["the model's test file did not run and was written anew"] += 1
                for key, outcomes in self._run(patches, suite, [mended], 0).items():
                    first[key] |= outcomes
        first = {key: outcomes for key, outcomes in first.items() if key not in suite.problems}
        telling = [file for file in files if _tells(file.path, first)]
        again = []
        for repeat in range(1, self.runner.repeats):
            if telling and suite.runs + len(telling) * len(first) > self.runner.budget:
                self.notes["repeats of tests left out: the budget of runs is spent"] += 1
                break
            again.append(self._run(patches, suite, telling, repeat) if telling else {})
        for file in files:
            own = {owners[author] for author in file.authors if author in owners}
            self._sift(file, own, first, again, suite)
        if not suite.tests:
            self.notes["instances whose suite tells nothing"] += 1
        return suite

    # --- gathering ---

    def _gathered(self, candidates: Sequence[Candidate]) -> list[TestFile]:
        """Every test file once; one path with several contents gets further names beside it."""
        contents: dict[tuple[str, str | None], list[str]] = {}
        for candidate in candidates:
            files: dict[str, str | None] = {**candidate.tests.written, **self._in_patch(candidate)}
            files |= {path: None for path in candidate.tests.ran if path not in files}
            for item in files.items():
                contents.setdefault(item, []).append(candidate.run)
        used: set[str] = set()
        gathered = []
        for (path, content), authors in sorted(contents.items(), key=lambda item: item[0][1] is None):
            name, number = path, 2
            while name in used and content is not None:
                folder, base = posixpath.split(path)
                name = posixpath.join(folder, base.replace("test_", f"test_{number}_", 1))
                name = name if name != path else posixpath.join(folder, f"v{number}_{base}")
                number += 1
            if name not in used:
                used.add(name)
                gathered.append(TestFile(name, content, (_REPOSITORY,) if content is None else tuple(authors)))
        return gathered

    def _in_patch(self, candidate: Candidate) -> dict[str, str]:
        """The test files of a patch, as they stand when it is applied."""
        parts = [
            (path, text) for path, text in changed_files(candidate.patch) if re.search(self.runner.test_files, path)
        ]
        new = {path: _added(text) for path, text in parts if re.search(r"^--- /dev/null", text, re.M)}
        changed = [path for path, text in parts if path not in new and not re.search(r"^\+\+\+ /dev/null", text, re.M)]
        if not changed:
            return new

        def read() -> dict[str, str]:
            with Sandbox(self.config, self.instance) as sandbox:
                sandbox.apply(candidate.patch)
                texts = {path: sandbox.read(path) for path in changed}
            return {path: text for path, text in texts.items() if text is not None}

        try:
            key = fingerprint("files", self.config, self.instance, candidate.patch, changed)
            return {**new, **self.journal.once(key, read)}
        except SandboxError:
            self.notes["tests of a patch not read: its environment failed"] += 1
        except PatchError:  # counted where it is tested
            pass
        return new

    def _affordable(self, files: Sequence[TestFile], patches: int) -> list[TestFile]:
        most = self.runner.budget // max(1, patches)
        if len(files) > most:
            self.notes[f"test files left out: more than the budget of {self.runner.budget} runs an instance"] += (
                len(files) - most
            )
        return list(files[:most])

    # --- running ---

    def _attempt(self, suite: Suite, key: str, journal_key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives; where an environment fails twice the patch is not tested, and a rerun tries again."""
        for last in (False, True):
            try:
                return self.journal.once(journal_key, make)
            except SandboxError as error:
                self.notes["environments that failed"] += 1
                if last:
                    suite.problems[key] = str(error)
        return None

    def _run(self, patches: Mapping[str, str], suite: Suite, files: Sequence[TestFile], repeat: int) -> _Outcomes:
        """Run files on all patches that can be tested, each patch in an environment of its own."""

        def run(patch: str) -> dict[str, Any]:
            with Sandbox(self.config, self.instance) as sandbox:
                try:
                    sandbox.apply(patch)
                except PatchError as error:
                    return {"problem": str(error)}
                for file in files:
                    if file.content is not None:
                        sandbox.write(file.path, file.content)
                return {"files": {file.path: self._outcomes(sandbox, file.path, repeat) for file in files}}

        runner = (self.runner.command, self.runner.timeout)
        ran: _Outcomes = {}
        for key, patch in patches.items():
            if key in suite.problems:
                continue
            journal_key = fingerprint("run", self.config, self.instance, *runner, patch, files, repeat)
            result = self._attempt(suite, key, journal_key, functools.partial(run, patch))
            if result is not None and "problem" in result:
                suite.problems[key] = result["problem"]
                suite.unfit.add(key)
                self.notes["patches that do not apply"] += 1
            elif result is not None:
                suite.runs += len(files)
                ran[key] = result["files"]
        return ran

    def _outcomes(self, sandbox: Sandbox, path: str, repeat: int) -> dict[str, str]:
        command = self.runner.command.replace("{junit}", _JUNIT).replace("{file}", shlex.quote(path))
        ran = sandbox.run(
            f"rm -f {_JUNIT}; export PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED={repeat}; {command}", self.runner.timeout
        )
        if ran.timed_out:
            return {"": f"{_HUNG} {self.runner.timeout} s"}
        outcomes = junit_outcomes(sandbox.read(_JUNIT))
        if outcomes:
            return outcomes
        sandbox.check()
        return {"": f"no outcome (exit status {ran.status}): {printable(ran.output.strip())[-400:]}"}

    # --- sifting ---

    def _sift(self, file: TestFile, own: set[str], first: _Outcomes, again: Sequence[_Outcomes], suite: Suite) -> None:
        """Keep the tests of one file, or say why not."""
        ran = {key: files[file.path] for key, files in first.items()}
        collected = {key for key, tests in ran.items() if "" not in tests}
        if not collected:
            suite.dropped[file.path] = next((tests[""] for tests in ran.values()), "no patch could be tested")
            self.notes["test files that run on no patch"] += 1
            return
        hung = {key for key, tests in ran.items() if tests.get("", "").startswith(_HUNG)}
        if own and collected <= own and len(ran) > len(collected | hung):
            suite.dropped[file.path] = "it runs only on the patch of its author"
            return
        for name in dict.fromkeys(name for key in collected for name in ran[key]):
            outcomes = {key: tests.get(name, _ERROR) for key, tests in ran.items()}
            full = f"{file.path}::{name}"
            repeats = [(key, files[file.path]) for run in again for key, files in run.items() if file.path in files]
            if _SKIPPED in outcomes.values():
                suite.dropped[full] = "it is skipped"
            elif _PASSED not in outcomes.values():
                suite.dropped[full] = "no patch passes it"
            elif any((tests.get(name) == _PASSED) != (outcomes[key] == _PASSED) for key, tests in repeats):
                suite.dropped[full] = "it is flaky"
                self.notes["flaky tests left out"] += 1
            else:
                suite.tests[full] = outcomes


def _tells(path: str, first: _Outcomes) -> bool:
    """Whether some test of a file tells patches apart."""
    ran = [outcomes[path] for outcomes in first.values()]
    names = {name for outcomes in ran for name in outcomes if name}
    return any(len({outcomes.get(name) == _PASSED for outcomes in ran}) > 1 for name in names)


def _added(text: str) -> str:
    """The content of a file that a diff adds."""
    lines = re.split(r"^@@.*@@.*\n", text, maxsplit=1, flags=re.M)[-1].split("\n")
    content = "\n".join(line[1:] for line in lines if line.startswith("+"))
    return content if text.rstrip("\n").endswith("\\ No newline at end of file") else content + "\n"


def junit_outcomes(text: str | None) -> dict[str, str]:
    """Test -> outcome of a JUnit file; empty for one that is missing, broken, declares entities or has no test."""
    if text is None or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return {}
    try:
        cases = list(ElementTree.fromstring(text).iter("testcase"))
    except ElementTree.ParseError:
        return {}
    outcomes: dict[str, str] = {}
    for name, outcome in map(_case, cases):  # a test whose teardown fails stands there twice
        if not outcome:
            return {}
        outcomes[name] = outcome if outcomes.get(name, _PASSED) == _PASSED else outcomes[name]
    return outcomes


def _case(case: ElementTree.Element) -> tuple[str, str]:
    """A test's name and outcome; an empty outcome: the file did not collect."""
    error = case.find("error")
    if error is not None and "collection failure" in error.get("message", ""):
        return "", ""
    bad = error is not None or case.find("failure") is not None
    outcome = _FAILED if bad else _SKIPPED if case.find("skipped") is not None else _PASSED
    return "::".join(filter(None, (case.get("classname", ""), case.get("name", "")))), outcome
