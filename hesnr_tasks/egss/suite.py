"""`hesnr select`: one patch an instance from finished runs, by tests that all of them must pass and models that vote.

1. Candidates: the submissions of the runs. Empty ones, and those that do not apply, are out where others are left.
   Patches that change the same source in the same way are one, with as many copies as runs.
2. One suite of tests from all runs is run on each. The `top` patches by pass rate go on; those that could not be
   tested come last.
3. Voters (`selectors`) vote; most votes win.

Ties, wherever they are, are broken at random with the seed, and counted. Beside the patches that were chosen stands, in
`*.why.json`, what each choice rests on, and what the controls would have chosen: a random run, the patch most runs
have, the suite alone, the best of N by scores of the voters without a suite (only where it was asked for: it costs).

Gathered are the test files that agents wrote (as their patches leave them, else as their calls wrote them), the files
of the repository's tests that they ran, and one that a model may write. Every patch is measured by the same tests: its
own changes to tests are taken out before it is applied. Outcomes are read from JUnit files; nobody's word is taken for
them. A test is kept if it gives the same answer in all repeats and some patch passes it. Dropped are, with a reason:
files that collect on no patch or on their author's alone, skipped tests, flaky ones, tests that no patch passes. On a
patch on which a file does not collect or runs out of time, though it does not on others, its tests fail.

Tests are arbitrary code and can forge their own JUnit file: a suite is evidence about patches of one policy, no
protection against an adversary. They run in mini-swe-agent's environments, a fresh one for each patch, configured as
mini is (`environment`, `run.env_startup_command`), so what an agent ran in is what its patch is tested in. Nothing of a
candidate is executed outside of the environment, git neither: patches are applied inside, with an empty configuration.
Variables of the caller that look like keys are not passed on unless named.
"""

from __future__ import annotations

import base64
import binascii
import copy
import functools
import math
import os
import posixpath
import random
import re
import shlex
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hesnr_tasks.egss.judges import Ballot, ChatModel, Finalist, fingerprint, vote, write_tests
from hesnr_tasks.egss.runs import PYTEST_FILES, PatchCandidate, changed_files, patch_key, source_patch
from hesnr_tasks.errors import SearchError, SettingsError, printable
from hesnr_tasks.files.atomic import Journal

# --- environments -----------------------------------------------------------------------------------------------------

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|_PAT$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"^\w[\w+.-]*://[^/\s:@]*:[^/\s@]+@")  # an address with a password in it
_OUTSIDE = re.compile(  # in the lines of a diff that name files
    r"^(?:\+\+\+|---|rename to|rename from|copy to) \"?"
    r"((?:[ab]/)?(?!/dev/null)(?:/|(?:[^\n]*/)?(?:\.\.|\.git)/)[^\n]*)",
    re.MULTILINE | re.IGNORECASE,
)
_CHUNK = 60_000  # characters; one argument of a command holds 128 KiB
_MARGIN = 20  # seconds an environment gets beyond the time limit of a command inside
_LARGEST = 8_000_000  # bytes read out of an environment
# git reads no configuration but that of an empty repository: not the user's, not the candidate's, no hooks, no network
_APPLY = """export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_ALLOW_PROTOCOL=none GIT_NO_LAZY_FETCH=1
if command -v git >/dev/null; then
  empty=$(mktemp -d) && git init -q --bare --template= "$empty" &&
    GIT_DIR="$empty" GIT_WORK_TREE="$PWD" git apply --whitespace=nowarn {patch}
else false; fi || patch --batch --fuzz=5 --no-backup-if-mismatch -p1 -i {patch}
status=$?; rm -rf "$empty" {patch}; exit $status"""


class SandboxError(SearchError):
    """An environment did not start, or died."""


class PatchError(SearchError):
    """A patch does not apply."""


class CommandResult(NamedTuple):
    """A command's output (stdout and stderr together), exit status, and whether its time was up."""

    output: str
    status: int
    timed_out: bool = False


def secret_variables(named: Sequence[str] = ()) -> list[str]:
    """The environment variables that look like keys, but for those the user named."""
    return sorted(
        name
        for name, value in os.environ.items()
        if name not in named and (_SECRET.search(name) or _SECRET_VALUE.match(value))
    )


def sandbox_config(specs: Sequence[str], environment_class: str | None, variables: Sequence[str]) -> dict[str, Any]:
    """A configuration of mini-swe-agent for `Sandbox`.

    Args:
        specs: as `mini-extra swebench -c` takes them: files, names of built-in files, `key=value`.
        environment_class: overrides theirs; docker, singularity, bubblewrap, local, or a class by its dotted name.
        variables: environment variables for what is run, `NAME=VALUE` or `NAME` (its value here).

    Raises:
        SettingsError: one cannot be used, or candidates would run in a folder of the user's.
    """
    os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
    try:
        from minisweagent.config import get_config_from_spec
        from minisweagent.utils.serialize import recursive_merge
    except ImportError:
        raise SettingsError("tests run in mini-swe-agent's environments: pip install 'hesnr-tasks[egss]'") from None
    try:
        configs = [get_config_from_spec(spec) or {} for spec in specs]
        config: dict[str, Any] = recursive_merge(*configs)
    except Exception as error:  # whatever mini-swe-agent and its YAML reader raise
        raise SettingsError(f"-c {' '.join(specs)}: {printable(str(error))}") from error
    environment = dict(config.get("environment") or {})
    kind = environment_class or environment.get("environment_class") or "docker"
    given = {}
    for name, equals, value in (word.partition("=") for word in variables):
        if not equals and name not in os.environ:
            raise SettingsError(f"--env {name}: this variable is not set here; set it, or give {name}=VALUE")
        given[name] = value if equals else os.environ[name]
    environment |= {"environment_class": kind, "env": {**(environment.get("env") or {}), **given}}
    named = [*environment["env"], *(environment.get("forward_env") or ())]
    if kind in ("local", "bubblewrap"):
        if environment.get("cwd"):
            raise SettingsError(
                f"environment.cwd = {environment['cwd']!r}: patches would be applied there.\nLeave it out for the "
                f"{kind} environment: each patch gets a fresh folder, which run.env_startup_command fills."
            )
        if not (config.get("run") or {}).get("env_startup_command"):
            raise SettingsError(
                f"the {kind} environment starts in an empty folder; say how the repository gets there, such as\n"
                "  -c 'run.env_startup_command=cp -r /data/repos/{{ instance_id }}/. .'"
            )
    if kind == "bubblewrap":
        from minisweagent.environments.extra.bubblewrap import BubblewrapEnvironmentConfig

        arguments = list(environment.get("wrapper_args") or BubblewrapEnvironmentConfig().wrapper_args)
        unset = (word for name in secret_variables(named) for word in ("--unsetenv", name))
        # without these two, a command that ran out of time goes on, and can read this process's variables in /proc
        environment["wrapper_args"] = [*arguments, "--unshare-pid", "--die-with-parent", *unset]
    elif kind not in ("docker", "singularity", "swerex_docker", "swerex_modal", "contree"):  # these pass on none
        environment["env"] |= dict.fromkeys(secret_variables(named), "")
    return {**config, "environment": environment}


class Sandbox:
    """One fresh environment with an instance's repository, until it is closed. `SandboxError`: it did not start."""

    def __init__(self, config: Mapping[str, Any], instance: Mapping[str, Any]) -> None:
        from minisweagent.run.benchmarks.swebench import get_sb_environment

        self._environment: Any = None
        self._folder, own = "", copy.deepcopy(dict(config))
        if own["environment"]["environment_class"] == "local":
            self._folder = own["environment"]["cwd"] = tempfile.mkdtemp(prefix="hesnr-select-")
        try:
            self._environment = get_sb_environment(own, dict(instance))
        except Exception as error:  # docker, singularity, a template, a class that is not there: all raise their own
            self.close()
            detail = getattr(error, "stderr", None) or getattr(error, "output", None) or error
            raise SandboxError(f"the environment did not start: {printable(str(detail))[-400:]}") from error

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the environment and its files."""
        getattr(self._environment, "cleanup", lambda: None)()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, command: str, timeout: int = 60) -> CommandResult:
        """Run a shell command inside, for at most `timeout` seconds. Raises `SandboxError`: the environment is gone."""
        from minisweagent.exceptions import Submitted

        # the environments stop waiting; only `timeout` inside also ends the command
        limit = f'limit=$(command -v timeout) && limit="$limit -k 5 {timeout}"'
        bounded = f'{limit}; $limit "${{BASH:-sh}}" -c {shlex.quote(command)}'
        try:
            raw = self._environment.execute({"command": bounded}, timeout=timeout + _MARGIN)
        except Submitted as submitted:  # a test that prints mini-swe-agent's marker
            message: dict[str, Any] = submitted.messages[0] if getattr(submitted, "messages", None) else {}
            return CommandResult(str(message.get("content", "")), 0)
        except Exception as error:
            raise SandboxError(f"the environment died: {printable(str(error))[-300:]}") from error
        kind = (raw.get("extra") or {}).get("exception_type")
        if kind == subprocess.TimeoutExpired.__name__ or raw["returncode"] in (124, 137):
            return CommandResult(raw["output"], 124, True)
        if kind:
            raise SandboxError(f"the environment died: {printable(str(raw['exception_info']))[-300:]}")
        return CommandResult(raw["output"], int(raw["returncode"]))

    def check(self) -> None:
        """Raise `SandboxError` if the environment no longer executes anything."""
        if "hesnr-alive" not in self.run("echo hesnr-alive", 30).output:
            raise SandboxError("the environment died: it executes no command any more")

    def write(self, path: str, content: str) -> None:
        """Write a file inside. Raises `SandboxError`."""
        quoted, folder = shlex.quote(path), shlex.quote(posixpath.dirname(path) or ".")
        text = base64.b64encode(content.encode("utf-8", "surrogateescape")).decode()
        prepare = f"mkdir -p {folder} && rm -rf {quoted} && : > {quoted}"
        for start in range(0, len(text) or 1, _CHUNK):
            chunk = text[start : start + _CHUNK]
            result = self.run(f"{prepare} && printf %s '{chunk}' | base64 -d >> {quoted}")
            prepare = "true"
            if result.status:
                self.check()
                raise SandboxError(f"{path} cannot be written in the environment: {printable(result.output)[-200:]}")

    def read(self, path: str) -> str | None:
        """The text of a file inside; None where there is none."""
        file = shlex.quote(path)
        result = self.run(f"test -f {file} && printf '<hesnr:' && head -c {_LARGEST} {file} | base64 && printf ':>'")
        match = re.search(r"<hesnr:([A-Za-z0-9+/=\s]*):>", result.output)
        try:
            return base64.b64decode(match[1]).decode("utf-8", "replace") if match else None
        except binascii.Error:
            return None

    def apply(self, patch: str) -> None:
        """Apply a patch. Raises `PatchError`, `SandboxError`."""
        if not patch.strip():
            return
        if outside := _OUTSIDE.search(patch):
            raise PatchError(f"the patch changes files outside of the repository, or git's own: {outside[1]!r}")
        file = ".hesnr-select.patch"
        self.write(file, patch)
        result = self.run(_APPLY.format(patch=file))
        if result.status:
            self.check()
            raise PatchError(f"the patch does not apply: {printable(result.output.strip())[-300:]}")


# --- the suite --------------------------------------------------------------------------------------------------------

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


METHODS = ("egss", "suite", "majority", "random", "best-of-n")


def _option(default: Any, help: str, shown: str = "") -> Any:
    return field(default=default, metadata={"help": f"{help} (default: {shown or default})"})


@dataclass(frozen=True)
class SelectSettings:
    """Of a selection; each is an option of `hesnr select`."""

    method: str = _option("egss", ", ".join(METHODS))
    runner: str = _option(PYTEST, "shell command that runs {file} and writes JUnit to {junit}", "pytest")
    test_files: str = _option(PYTEST_FILES, "regular expression of paths that are tests", "pytest's")
    augment_path: str = _option("test_current_issue.py", "of the test file that --augment writes")
    votes: int = _option(1, "ballots of each voter")
    timeout: int = _option(120, "seconds for one test file")
    repeats: int = _option(3, "runs of a file that tells patches apart")
    budget: int = _option(300, "most runs of a test file an instance")
    top: int = _option(3, "patches that voters see")
    limit: int = _option(40_000, "most characters of each piece that models see")
    seed: int = _option(1234, "of orders and ties")


class TestFile(NamedTuple):
    """A file of tests; content None: as it stands in the repository."""

    path: str
    content: str | None
    authors: tuple[str, ...]  # runs, `WRITTEN_BY_MODEL` or the repository


class Counts(NamedTuple):
    """What a patch does of the suite; `error`: tests that did not collect or ran out of time."""

    passed: int
    failed: int
    error: int
    total: int

    @property
    def rate(self) -> float:
        """passed / total."""
        return self.passed / self.total


@dataclass
class Suite:
    """The filtered suite. Keys are those of `patch_key`."""

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
    settings: SelectSettings
    journal: Journal
    notes: Counter[str]

    def suite(
        self, candidates: Sequence[PatchCandidate], written: Callable[[Sequence[TestFile], str], TestFile | None] | None
    ) -> Suite:
        """Gather, run and filter; `written` makes one file more from the tests so far and what is wrong with its last
        one.
        """
        suite, budget, test_files = Suite(), self.settings.budget, self.settings.test_files
        owners = {c.run: patch_key(c.patch, test_files) for c in candidates}
        patches = {owners[c.run]: source_patch(c.patch, test_files) for c in candidates}
        files = self._gather(candidates)
        extra = written(files, "") if written else None
        files = [*([extra] if extra else []), *files]
        most = budget // max(1, len(patches))
        if len(files) > most:
            self.notes[f"test files left out: more than the budget of {budget} runs an instance"] += len(files) - most
        files = files[:most]
        first = self._run(patches, suite, files, 0)
        if extra and written and extra in files and all("" in tests[extra.path] for tests in first.values()):
            problem = next((tests[extra.path][""] for tests in first.values()), "")
            if mended := written(files, problem) if problem else None:
                files = [mended if file.path == extra.path else file for file in files]
                self.notes["the model's test file did not run and was written anew"] += 1
                for key, outcomes in self._run(patches, suite, [mended], 0).items():
                    first[key] |= outcomes
        first = {key: outcomes for key, outcomes in first.items() if key not in suite.problems}
        telling = []  # files of which some test tells patches apart
        for file in files:
            by_patch = [outcomes[file.path] for outcomes in first.values()]
            names = {name for outcomes in by_patch for name in outcomes if name}
            if any(len({outcomes.get(name) == _PASSED for outcomes in by_patch}) > 1 for name in names):
                telling.append(file)
        again = []
        for repeat in range(1, self.settings.repeats):
            if telling and suite.runs + len(telling) * len(first) > budget:
                self.notes["repeats of tests left out: the budget of runs is spent"] += 1
                break
            again.append(self._run(patches, suite, telling, repeat) if telling else {})
        for file in files:
            self._filter(file, {owners[a] for a in file.authors if a in owners}, first, again, suite)
        if not suite.tests:
            self.notes["instances whose suite tells nothing"] += 1
        return suite

    # --- gathering ---

    def _gather(self, candidates: Sequence[PatchCandidate]) -> list[TestFile]:
        """Every test file once; one path with several contents gets further names beside it."""
        authors: dict[tuple[str, str | None], list[str]] = {}
        for candidate in candidates:
            files: dict[str, str | None] = {**candidate.tests, **self._in_patch(candidate)}
            files |= {path: None for path in candidate.ran if path not in files}
            for item in files.items():
                authors.setdefault(item, []).append(candidate.run)
        gathered: dict[str, TestFile] = {}
        for (path, content), runs in sorted(authors.items(), key=lambda item: item[0][1] is None):
            name, number = path, 2
            while name in gathered and content is not None:
                folder, base = posixpath.split(path)
                name = posixpath.join(folder, base.replace("test_", f"test_{number}_", 1))
                name = name if name != path else posixpath.join(folder, f"v{number}_{base}")
                number += 1
            gathered.setdefault(name, TestFile(name, content, (_REPOSITORY,) if content is None else tuple(runs)))
        return list(gathered.values())

    def _in_patch(self, candidate: PatchCandidate) -> dict[str, str]:
        """The test files of a patch, as they stand when it is applied."""
        parts = {p: text for p, text in changed_files(candidate.patch) if re.search(self.settings.test_files, p)}
        new = {path: _added(text) for path, text in parts.items() if re.search(r"^--- /dev/null", text, re.M)}
        changed = [p for p in parts if p not in new and not re.search(r"^\+\+\+ /dev/null", parts[p], re.M)]
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

    # --- running ---

    def _run(self, patches: Mapping[str, str], suite: Suite, files: Sequence[TestFile], repeat: int) -> _Outcomes:
        """Run files on all patches that can be tested, each patch in an environment of its own.

        Where an environment fails twice the patch is not tested; that is not kept, so a rerun tries again.
        """

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

        runner = (self.settings.runner, self.settings.timeout)
        outcomes: _Outcomes = {}
        for key, patch in patches.items():
            journal_key = fingerprint("run", self.config, self.instance, *runner, patch, files, repeat)
            for last in (False, True):
                if key in suite.problems or key in outcomes:
                    break
                try:
                    result = self.journal.once(journal_key, functools.partial(run, patch))
                except SandboxError as error:
                    self.notes["environments that failed"] += 1
                    if last:
                        suite.problems[key] = str(error)
                    continue
                if "problem" in result:
                    suite.problems[key] = result["problem"]
                    suite.unfit.add(key)
                    self.notes["patches that do not apply"] += 1
                else:
                    suite.runs += len(files)
                    outcomes[key] = result["files"]
        return outcomes

    def _outcomes(self, sandbox: Sandbox, path: str, repeat: int) -> dict[str, str]:
        command = self.settings.runner.replace("{junit}", _JUNIT).replace("{file}", shlex.quote(path))
        variables = f"PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED={repeat}"
        result = sandbox.run(f"rm -f {_JUNIT}; export {variables}; {command}", self.settings.timeout)
        if result.timed_out:
            return {"": f"{_HUNG} {self.settings.timeout} s"}
        outcomes = junit_outcomes(sandbox.read(_JUNIT))
        if outcomes:
            return outcomes
        sandbox.check()
        return {"": f"no outcome (exit status {result.status}): {printable(result.output.strip())[-400:]}"}

    # --- filtering ---

    def _filter(
        self, file: TestFile, own: set[str], first: _Outcomes, again: Sequence[_Outcomes], suite: Suite
    ) -> None:
        """Keep the tests of one file, or say why not; `own`: the patches of its authors."""
        by_patch = {key: files[file.path] for key, files in first.items()}
        collected = {key for key, tests in by_patch.items() if "" not in tests}
        if not collected:
            suite.dropped[file.path] = next((tests[""] for tests in by_patch.values()), "no patch could be tested")
            self.notes["test files that run on no patch"] += 1
            return
        hung = {key for key, tests in by_patch.items() if tests.get("", "").startswith(_HUNG)}
        if own and collected <= own and len(by_patch) > len(collected | hung):
            suite.dropped[file.path] = "it runs only on the patch of its author"
            return
        repeats = [(key, files[file.path]) for run in again for key, files in run.items() if file.path in files]
        for name in dict.fromkeys(name for key in collected for name in by_patch[key]):
            outcomes = {key: tests.get(name, _ERROR) for key, tests in by_patch.items()}
            test = f"{file.path}::{name}"
            if _SKIPPED in outcomes.values():
                suite.dropped[test] = "it is skipped"
            elif _PASSED not in outcomes.values():
                suite.dropped[test] = "no patch passes it"
            elif any((tests.get(name) == _PASSED) != (outcomes[key] == _PASSED) for key, tests in repeats):
                suite.dropped[test] = "it is flaky"
                self.notes["flaky tests left out"] += 1
            else:
                suite.tests[test] = outcomes


def _added(text: str) -> str:
    """The content of a file that a diff adds."""
    lines = re.split(r"^@@.*@@.*\n", text, maxsplit=1, flags=re.M)[-1].split("\n")
    content = "\n".join(line[1:] for line in lines if line.startswith("+"))
    return content if text.rstrip("\n").endswith("\\ No newline at end of file") else content + "\n"


def junit_outcomes(text: str | None) -> dict[str, str]:
    """Test → outcome in a JUnit file; empty for one that is missing, broken, declares entities or has no test."""
    if text is None or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return {}
    try:
        cases = list(ElementTree.fromstring(text).iter("testcase"))
    except ElementTree.ParseError:
        return {}
    outcomes: dict[str, str] = {}
    for case in cases:  # a test whose teardown fails stands there twice
        error = case.find("error")
        if error is not None and "collection failure" in error.get("message", ""):
            return {}
        bad = error is not None or case.find("failure") is not None
        outcome = _FAILED if bad else _SKIPPED if case.find("skipped") is not None else _PASSED
        name = "::".join(filter(None, (case.get("classname", ""), case.get("name", ""))))
        outcomes[name] = outcome if outcomes.get(name, _PASSED) == _PASSED else outcomes[name]
    return outcomes


# --- the selection ----------------------------------------------------------------------------------------------------

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
