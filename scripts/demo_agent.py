"""The scripted agent: it knows the repair and plays, from a seed, one of many ways of getting there.

Every command is run (`demo_sandbox`), and observations are what was printed. Nothing is written by hand into a
trajectory except the agent's own words and calls.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from demo_phrases import PHRASES, SYSTEM, TASKS
from demo_programs import Program
from demo_sandbox import ROOT, Sandbox

from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory

__all__ = ["play"]

BLOCKS = ("file_text", "old_str", "new_str")  # parameters with a line of their own
TESTS = ("python runtests.py", f"cd {ROOT} && python runtests.py", "python runtests.py 2>&1 | tail -n 5")


@dataclass(frozen=True)
class Step:
    """A thought and a call. `fails`: the tests must fail after it, or the script is wrong."""

    thought: str
    tool: str
    values: dict[str, str]
    fails: bool = False

    @property
    def action(self) -> str:
        """The call in its canonical form, with the blank line that separates it from the thought."""
        rows = "".join(f"<parameter={key}>{_block(key, text)}</parameter>\n" for key, text in self.values.items())
        return f"\n\n<function={self.tool}>\n{rows}</function>"


def _block(key: str, text: str) -> str:
    return f"\n{text}\n" if key in BLOCKS else text


def play(program: Program, seed: int) -> Trajectory:
    """Run the agent on `program`. The tests fail before and pass after, or this raises RuntimeError."""
    agent = _Agent(program, random.Random(f"{program.name}/{seed}"))
    task = agent.rng.choice(TASKS).format(issue=program.text["issue"])
    messages = [_message("system", (Kind.CONTEXT, SYSTEM)), _message("user", (Kind.CONTEXT, task))]
    with Sandbox(program.files) as sandbox:
        _demand(not sandbox.passes("python runtests.py"), program, "the tests pass before the fix")
        steps = list(agent.steps())
        for step in steps:
            messages.append(_message("assistant", (Kind.THOUGHT, step.thought), (Kind.ACTION, step.action)))
            if step.tool != "submit":
                messages.append(_message("user", (Kind.OBSERVATION, f"OBSERVATION:\n{_observe(sandbox, step)}")))
            if step.fails:
                _demand(not sandbox.passes("python runtests.py"), program, "the wrong repair passes the tests")
        resolved = sandbox.passes("python runtests.py")
    _demand(resolved, program, "the tests fail after the fix")
    name = f"{program.name}.{seed}"
    meta = {"program": program.name, "seed": seed, "steps": len(steps)}
    return Trajectory(name, tuple(messages), program.name, resolved, "scripted-demo", Fidelity.EXACT, meta)


def _message(role: str, *segments: tuple[Kind, str]) -> Message:
    return Message(role, tuple(Segment(kind, text) for kind, text in segments))


def _demand(condition: bool, program: Program, problem: str) -> None:
    if not condition:
        raise RuntimeError(f"{program.name}: {problem}")


def _observe(sandbox: Sandbox, step: Step) -> str:
    if step.tool == "bash":
        return sandbox.bash(step.values["command"])
    answer = sandbox.editor(**step.values)
    if answer.startswith("No replacement"):
        raise RuntimeError(f"{step.values['path']}: {answer}")
    return answer


class _Agent:
    def __init__(self, program: Program, rng: random.Random) -> None:
        self.program = program
        self.rng = rng
        self.script = False  # whether reproduce.py was written
        self.slots = {
            "target": program.target,
            "tests": program.tests,
            "func": program.text["func"],
            "symptom": rng.choice(program.lines("symptom")),
            "why": rng.choice(program.lines("why")),
            "do": rng.choice(program.lines("do")),
            "wrong_why": program.text.get("wrong_why", ""),
            "wrong_after": program.text.get("wrong_after", ""),
        }

    def steps(self) -> Iterator[Step]:
        yield self.explore()
        yield from self.look()
        yield from self.repair()
        if self.script:
            yield self.bash("rerun", "python reproduce.py")
        yield self.bash("verify", self.rng.choice(TESTS))
        yield from self.finish()

    # --- words and calls ------------------------------------------------------------------------------------------

    def say(self, key: str, **more: str) -> str:
        return self.rng.choice(PHRASES[key]).format(**self.slots, **more)

    def bash(self, key: str, command: str, **more: str) -> Step:
        return Step(self.say(key, **more), "bash", {"command": command})

    def edit(self, key: str, old: str, new: str, fails: bool = False) -> Step:
        path = f"{ROOT}/{self.program.target}"
        values = {"command": "str_replace", "path": path, "old_str": old, "new_str": new}
        return Step(self.say(key), "str_replace_editor", values, fails)

    def view(self, key: str, name: str, **more: str) -> Step:
        path = f"{ROOT}/{name}" if name else ROOT
        if self.rng.random() < 0.4:
            return Step(self.say(key, **more), "str_replace_editor", {"command": "view", "path": path})
        commands = [f"cat {name}", f"cat -n {name}", f"cat {path}", f"sed -n '1,40p' {name}", f"head -n 60 {path}"]
        return self.bash(key, self.rng.choice(commands), **more)

    def heredoc(self, key: str, code: str) -> Step:
        opening = self.rng.choice(["python - <<'EOF'", f"cd {ROOT} && python - <<'EOF'", "python - <<'PY'"])
        mark = "PY" if "PY" in opening else "EOF"
        return self.bash(key, f"{opening}\n{code}\n{mark}")

    # --- phases ---------------------------------------------------------------------------------------------------

    def explore(self) -> Step:
        commands = [
            "ls",
            f"ls {ROOT}",
            "ls -R",
            "git ls-files",
            f'find {ROOT} -name "*.py" | sort',
            "find . -path ./.git -prune -o -type f -print | sort",
            "wc -l $(git ls-files)",
        ]
        if self.rng.random() < 0.25:
            return Step(self.say("explore"), "str_replace_editor", {"command": "view", "path": ROOT})
        return self.bash("explore", self.rng.choice(commands))

    def look(self) -> Iterator[Step]:
        """Read and reproduce, in some order, with some detours."""
        phases = [[self.view("read", self.program.target)], list(self.reproduce())]
        detours = [self.bash("search", self.rng.choice(self.searches()))]
        detours.append(self.view("read_tests", self.program.tests))
        for name in self.program.others:
            detours.append(self.view("read_other", name, other=name))
        self.rng.shuffle(phases)
        for step in self.rng.sample(detours, k=self.rng.choice([0, 1, 1, 2, 2])):
            phases.insert(self.rng.randrange(len(phases) + 1), [step])
        for phase in phases:
            yield from phase

    def searches(self) -> list[str]:
        func = self.slots["func"]
        return [f'grep -rn "{func}" --include="*.py" . | sort', f"git grep -n {func}", f"grep -n {func} *.py | sort"]

    def reproduce(self) -> Iterator[Step]:
        code, chance = self.program.text["repro"], self.rng.random()
        if chance < 0.25:
            yield self.bash("baseline", self.rng.choice(TESTS))
            if self.rng.random() < 0.5:
                yield self.heredoc("reproduce", code)
        elif chance < 0.6:
            yield self.heredoc("reproduce", code)
        else:
            self.script = True
            if self.rng.random() < 0.5:
                values = {"command": "create", "path": f"{ROOT}/reproduce.py", "file_text": code}
                yield Step(self.say("create"), "str_replace_editor", values)
                yield self.bash("run", self.rng.choice(["python reproduce.py", f"cd {ROOT} && python reproduce.py"]))
            else:
                yield self.bash("create", f"cat > reproduce.py <<'EOF'\n{code}\nEOF\npython reproduce.py")

    def repair(self) -> Iterator[Step]:
        (old, new), *rest = self.program.repair
        if "wrong" in self.program.text and self.rng.random() < 0.5:
            wrong = self.program.text["wrong"]
            yield self.edit("wrong", old, wrong, fails=True)
            yield self.bash("check_wrong", self.rng.choice(TESTS))
            yield self.edit("again", wrong, new)
        else:
            yield self.first_edit(old, new)
        for old, new in rest:
            yield self.edit("second", old, new)

    def first_edit(self, old: str, new: str) -> Step:
        """Mostly the editor; one line may also be changed by sed, several by a short script."""
        target, chance = self.program.target, self.rng.random()
        if chance < 0.2 and not set("\n'/|&*[]^$\\.+") & set(old + new):
            return self.bash("why", f"sed -i 's/{old.strip()}/{new.strip()}/' {target} && git diff {target}")
        if chance < 0.3 and '"""' not in old + new and "\\" not in old + new:
            code = f'from pathlib import Path\n\npath = Path("{target}")\ntext = path.read_text()\n'
            code += (
                f'# replace the faulty part only\nold = """{old}"""\nnew = """{new}"""\nassert text.count(old) == 1\n'
            )
            code += "path.write_text(text.replace(old, new))"
            return self.bash("why", f"python - <<'EOF'\n{code}\nEOF\ngit diff --stat")
        return self.edit("why", old, new)

    def finish(self) -> Iterator[Step]:
        if "edge" in self.program.text and self.rng.random() < 0.75:
            yield self.heredoc("edge", self.program.text["edge"])
        if "change" in self.program.text and self.rng.random() < 0.7:
            entry = f"\n## Fixed\n\n{self.program.text['change']}"
            yield self.bash("change", f"cat >> CHANGES.md <<'EOF'\n{entry}\nEOF\ntail -n 4 CHANGES.md")
        if self.script:
            yield self.bash("cleanup", self.rng.choice(["rm reproduce.py", "rm reproduce.py && git status --short"]))
        if self.rng.random() < 0.3:
            yield self.bash("diff", self.rng.choice(["git diff", "git diff --stat", "git diff -U1"]))
        yield Step(self.say("submit"), "submit", {})
