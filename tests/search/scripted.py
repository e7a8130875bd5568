"""A model of mini-swe-agent that plays a script: by depth, the commands of its draws, with known token counts."""

import subprocess

from minisweagent.exceptions import FormatError
from minisweagent.models.test_models import DeterministicModel

from hesnr_tasks.search.policy import malformed
from hesnr_tasks.search.types import Draw, Usage

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


def agent_settings(**more):
    templates = {"system_template": "You mend.", "instance_template": "Task: {{task}}\n{{cwd}}"}
    return templates | {"cost_limit": 0.0} | more


def repository_at(folder):
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text("*.log\n")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


class Scripted(DeterministicModel):
    """Its answer depends on the conversation alone: the depth is the number of steps in it. BAD: a malformed call.

    A call costs 100 prompt tokens (10 of them cached) and 7 output tokens a draw.
    """

    def __init__(self, script, decisions=None, fails=None):
        super().__init__(outputs=[])
        self.script, self.decisions, self.fails = script, decisions or {}, fails or {}
        self.spent = Usage()

    def sample(self, messages, n):
        depth = sum(m["role"] == "assistant" or "malformed" in m["content"] for m in messages)
        if depth in self.fails:
            raise self.fails[depth]
        start = 1 if n == 3 else 0  # what is left of four after a probe of one
        commands = self.script[depth][start : start + n]
        self.spent = Usage(self.spent.prompt + 100, self.spent.cached + 10, self.spent.output + 7 * n)
        return [self._draw(command, depth, index) for index, command in enumerate(commands)]

    def _draw(self, command, depth, index):
        usage = Usage(100, 10, 7) if index == 0 else Usage(0, 0, 7)
        if command == "BAD":
            bad = malformed(FormatError({"role": "user", "content": "malformed", "extra": {}}))
            return Draw(bad.message, "", error=bad.error, usage=usage)
        decision = (self.decisions[depth],) if depth in self.decisions else ()
        message = {"role": "assistant", "content": command, "extra": {"actions": [{"command": command}], "cost": 0.0}}
        return Draw(message, command, decision, usage=usage)
