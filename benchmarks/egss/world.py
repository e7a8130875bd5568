"""Ten small packages with planted bugs, and scripted agents that mend them: what they may do next, how likely.

A file of repositories/ is a list of sections, each begun by a line `@@@ KIND …`: task; file PATH; visible PATH (tests
that the agent sees); hidden PATH (it does not); right PART PATH and wrong PART NAME PATH (edits: `old`, a line `====`,
`new`; several parted by `----`); test right|wrong PATH (what an agent may write). Both parts must be mended.

Every agent looks, finds, reads, tests, mends A, looks again, mends B, writes a test of its own and submits. Steps are
plain (one action has nearly all probability), harmless forks (several ways to the same knowledge) or consequential
(mending A and B: one option is right). An agent that mended A wrongly writes a test that confirms it more often; one
that begins to loop repeats itself to the step limit. An edit can be spelled in several ways: agents seldom write
one text twice.
"""

import functools
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "LIMIT",
    "NOTHING",
    "Edge",
    "Graph",
    "Repository",
    "execute",
    "load",
    "names",
    "outcomes",
    "seeded",
    "state_of",
]

FOLDER = Path(__file__).parent / "repositories"
OUTCOMES = Path(__file__).parent / "outcomes.json"
LIMIT = 40  # steps
PROMPT = 2_000  # tokens of the system's and the user's message
NOTHING = "nothing"  # the end of an agent without a patch
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && git diff"
SPELLINGS = (("path", 0.5), ("file", 0.3), ("source", 0.2))  # the name that an edit's script gives the file
EDITOR = """import pathlib
{name} = pathlib.Path({path!r})
text = {name}.read_text()
for old, new in {changes!r}:
    assert text.count(old) == 1, old
    text = text.replace(old, new)
{name}.write_text(text)"""
ORDER = (
    *("look", "find", "package", "tests", "module", "run", "history", "usage", "try", "again"),
    *("A", "check", "diff", "around", "B", "check2", "status", "own", "ran", "settings", "last", "review", "submit"),
)


def seeded(*about):
    """A generator that depends on what it is about, everywhere the same."""
    return random.Random(hashlib.sha256(json.dumps([str(part) for part in about]).encode()).digest())


@dataclass(eq=False)
class Repository:
    """`edits`: part -> name ("right" or a wrong one's) -> (path, changes); `tests`: right, wrong -> (path, text)."""

    name: str
    digest: str
    task: str = ""
    source: dict = field(default_factory=dict)
    visible: dict = field(default_factory=dict)
    hidden: dict = field(default_factory=dict)
    edits: dict = field(default_factory=lambda: {"A": {}, "B": {}})
    tests: dict = field(default_factory=dict)

    def edit(self, part, name, spelling="path"):
        """A shell command that makes the change, and fails where the text is not as expected."""
        path, changes = self.edits[part][name]
        return f"python3 - <<'EDIT'\n{EDITOR.format(name=spelling, path=path, changes=changes)}\nEDIT"

    def write(self, folder):
        """The repository as the agent finds it, with one git commit."""
        for path, text in {".gitignore": "__pycache__/\n", **self.source, **self.visible}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgsign=false"]
        for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "begin"]):
            subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
        return folder


def names():
    """All repositories."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


@functools.cache
def load(name):
    """One repository."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    repository = Repository(name, hashlib.sha256(text.encode()).hexdigest()[:16])
    parts = re.split(r"^@@@ (.+)\n", text, flags=re.M)
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        kind, *words = head.split()
        if kind == "task":
            repository.task = body.strip()
        elif kind in ("file", "visible", "hidden"):
            getattr(repository, "source" if kind == "file" else kind)[words[0]] = body
        elif kind == "test":
            repository.tests[words[0]] = (words[1], body)
        else:
            pairs = [block.split("====\n") for block in re.split(r"^----\n", body, flags=re.M)]
            changes = [(old.removesuffix("\n"), new.removesuffix("\n")) for old, new in pairs]
            repository.edits[words[0]]["right" if kind == "right" else words[1]] = (words[-1], changes)
    return repository


# --- what every end of an agent is worth -----------------------------------------------------------------------------


def state_of(labels):
    """Which mends of A and B a path ended with; an agent that loops has no patch."""
    mends = {label.partition(":")[0]: label.partition(":")[2] for label in labels if label[:2] in ("A:", "B:")}
    return NOTHING if mends.get("A", "loop") == "loop" or labels[-1] != "submit" else f"{mends['A']}/{mends['B']}"


@functools.cache
def outcomes(name):
    """{"resolved": state -> bool, "tests": [{"authors", "passes": state -> bool}]}, as `execute` found them."""
    stored = json.loads(OUTCOMES.read_text(encoding="utf-8"))[name]
    if stored["digest"] != load(name).digest:
        raise SystemExit(f"outcomes.json does not fit {name}: python -m benchmarks.egss --execute")
    return stored


def execute(name):
    """Make every possible patch; run hidden tests, visible ones and those that agents write on it, all at once."""
    repository = load(name)
    files = {path: (text, "hidden") for path, text in repository.hidden.items()}
    files |= dict.fromkeys(repository.visible, ("", "repository"))
    for kind, (_, text) in repository.tests.items():
        files[f"tests/test_own_{kind}.py"] = (text, kind)
    authors = {path.removesuffix(".py").replace("/", "."): author for path, (_, author) in files.items()}
    passes = {}
    states = [NOTHING, *(f"{a}/{b}" for a in repository.edits["A"] for b in [*repository.edits["B"], "none"])]
    for state in states:
        with tempfile.TemporaryDirectory() as folder:
            root = repository.write(Path(folder, "repository"))
            for part, edit in zip("AB", state.split("/"), strict=False):
                if state != NOTHING and edit != "none":
                    subprocess.run(["bash", "-c", repository.edit(part, edit)], cwd=root, check=True)
            for path, (text, _) in files.items():
                if text:
                    (root / path).write_text(text)
            report = Path(folder, "report.xml")
            pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
            environment = {
                "PATH": "/usr/bin:/bin",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            }
            subprocess.run(pytest, cwd=root, capture_output=True, env=environment)
            for case in ET.parse(report).iter("testcase"):
                key = authors[case.get("classname")], case.get("name")
                passes.setdefault(key, {})[state] = len(case) == 0
    resolved = {
        s: all(row[s] for (author, _), row in passes.items() if author in ("hidden", "repository")) for s in states
    }
    telling = [
        {"authors": [author], "name": test, "passes": row}
        for (author, test), row in sorted(passes.items())
        if author != "hidden" and len(set(row.values())) > 1
    ]
    return {"digest": repository.digest, "resolved": resolved, "tests": telling}


# --- agents ----------------------------------------------------------------------------------------------------------


class Edge(NamedTuple):
    """One option of a step. `good`: no worse than any other option there; tokens: of the reply, of what comes back."""

    label: str
    probability: float
    commands: tuple  # (command, chance): its spellings
    output: int
    observed: int
    good: bool = True


@dataclass(frozen=True, eq=False)
class Graph:
    """A scripted agent for one repository; where it stands is the labels of the edges it took."""

    name: str
    repository: Repository

    @functools.cached_property
    def stages(self):
        return _stages(self.repository, self.name)

    def stage(self, path):
        """What the agent is about after `path`."""
        if "A:loop" in path:
            return "loop"
        stage = ORDER[len(path)]
        if stage == "own":
            return "own-right" if "A:right" in path else "own-wrong"
        return f"ran-{path[-1]}" if stage == "ran" else stage

    def edges(self, path):
        """What can be done after `path`."""
        return self.stages[self.stage(path)]

    @functools.cache  # noqa: B019 (graphs live as long as the bench)
    def tokens(self, path):
        """Of the prompt after `path`: the first two messages, replies and what came back."""
        if not path:
            return PROMPT
        edge = next(edge for edge in self.edges(path[:-1]) if edge.label == path[-1])
        return self.tokens(path[:-1]) + edge.output + edge.observed


@functools.cache
def build(name, variant=0):
    """The agent of a variant: other chances, same repository."""
    return Graph(f"{name}-{variant}", load(name))


def _stages(repository, agent):
    chance = seeded("skill", agent)
    right_a, right_b, loops = chance.uniform(0.35, 0.85), chance.uniform(0.35, 0.85), 0.06
    module = repository.edits["A"]["right"][0]
    package, test = module.partition("/")[0], next(iter(repository.visible))
    pytest = "python3 -m pytest -q -p no:cacheprovider"

    def size(what, low, high):
        return seeded("tokens", agent, what).randint(low, high)

    def edge(label, probability, command, good=True):
        commands = command if isinstance(command, tuple) else ((command, 1.0),)
        return Edge(label, probability, commands, size(label, 70, 160), size(f"seen {label}", 200, 1_000), good)

    plain = {
        "look": ("find . -name '*.py' -not -path './.git/*' | sort", "ls"),
        "package": (f"cat {package}/__init__.py", f"ls {package}"),
        "module": (f"cat {module}", f"head -n 60 {module}"),
        "run": (f"{pytest} {test}", f"{pytest} -x tests"),
        "history": ("git log --oneline -n 3", "git log -n 1"),
        "again": (f"sed -n 1,80p {module}", f"tail -n 40 {module}"),
        "check": (f"{pytest} tests", f"{pytest} -x tests"),
        "diff": ("git diff", "git diff --stat"),
        "check2": (f"{pytest} tests", f"{pytest} -x tests"),
        "status": ("git status --short", "git diff --stat"),
        "settings": ("ls -a", "ls -la"),
        "last": (f"{pytest} tests", f"{pytest} -x {test}"),
    }
    harmless = {
        "find": ((0.4, f"grep -n 'def ' {module}"), (0.35, "grep -rn import . --include=*.py"), (0.25, "wc -l */*.py")),
        "tests": ((0.55, f"cat {test}"), (0.45, f"sed -n 1,60p {test}")),
        "usage": ((0.5, f"grep -rn {package} tests"), (0.3, f"grep -c '' {module}"), (0.2, f"grep -n raise {module}")),
        "try": tuple(
            (p, f'python3 -c "import {package}; print({what})"')
            for p, what in ((0.4, f"dir({package})"), (0.35, f"{package}.__doc__"), (0.25, f"{package}.__name__"))
        ),
        "around": ((0.45, f"grep -n return {module}"), (0.3, f"sed -n 20,60p {module}"), (0.25, f"nl {module}")),
        "review": ((0.6, "git diff"), (0.4, "git status")),
    }
    stages = {stage: (edge(stage, 0.97, a), edge(f"{stage}'", 0.03, b)) for stage, (a, b) in plain.items()}
    for stage, options in harmless.items():
        stages[stage] = tuple(edge(f"{stage}:{i}", p, command) for i, (p, command) in enumerate(options))

    def mending(part, right, whole):
        wrong = [name for name in repository.edits[part] if name != "right"]
        weights = [2.0**-i for i in range(len(wrong) + (part == "B"))]
        shares = [(1 - right) * whole * weight / sum(weights) for weight in weights]
        for name, share in [("right", right * whole), *zip(wrong, shares, strict=False)]:
            commands = tuple((repository.edit(part, name, spelling), p) for spelling, p in SPELLINGS)
            label = f"{part}:{name}"
            yield Edge(label, share, commands, size(label, 150, 400), 60, name == "right")
        if part == "B":  # not seeing that there is a second part
            yield Edge("B:none", shares[-1], (("git diff --stat", 1.0),), 60, 120, False)

    loop = (f"{pytest} -x tests -q", 1.0)
    stages["A"] = (*mending("A", right_a, 1 - loops), Edge("A:loop", loops, (loop,), 90, 400, False))
    stages["B"] = tuple(mending("B", right_b, 1.0))
    stages["loop"] = (Edge("loop", 1.0, (loop,), 90, 400),)
    for kind, wrong in (("right", 0.2), ("wrong", 0.6)):
        written = [
            Edge(
                f"own:{own}",
                p * 0.85,
                ((f"cat > {repository.tests[own][0]} <<'TEST'\n{repository.tests[own][1]}TEST", 1.0),),
                size(own, 180, 300),
                20,
            )
            for own, p in (("right", 1 - wrong), ("wrong", wrong))
        ]
        stages[f"own-{kind}"] = (*written, Edge("own:none", 0.15, (("git diff --stat", 1.0),), 60, 120))
    for own in ("right", "wrong"):
        stages[f"ran-own:{own}"] = (edge("ran", 1.0, f"{pytest} {repository.tests[own][0]}"),)
    stages["ran-own:none"] = (edge("ran", 1.0, "git status --short"),)
    stages["submit"] = (Edge("submit", 1.0, ((SUBMIT, 1.0),), 40, 0),)
    return stages
