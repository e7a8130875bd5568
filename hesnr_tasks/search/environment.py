"""A working state as an environment of mini-swe-agent: its local environment, with another place to run commands."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from minisweagent.environments.local import LocalEnvironment

from hesnr_tasks.search.types import Ran, Workspace

__all__ = ["ForkEnvironment"]


class ForkEnvironment(LocalEnvironment):
    """mini-swe-agent's local environment, executing in `workspace` alone; the same output for the same command."""

    def __init__(self, workspace: Workspace, **settings: Any) -> None:
        super().__init__(**{**settings, "cwd": str(workspace.root)})
        self.workspace = workspace

    def execute(self, action: dict, cwd: str = "", *, timeout: int | None = None) -> dict[str, Any]:
        """Run an action. Raises `Submitted` when it ends the task, `SearchError` where nothing can be isolated."""
        command, limit = action.get("command", ""), timeout or self.config.timeout
        inherited = os.environ if getattr(self.workspace, "on_host", True) else {}
        ran = self.workspace.execute(command, timeout=limit, env={**inherited, **self.config.env})
        output = _late(command, limit, ran) if ran.timed_out else _done(ran)
        self._check_finished(output)
        return output

    def serialize(self) -> dict:
        """As the local environment: that is what runs the path again."""
        kind = f"{LocalEnvironment.__module__}.{LocalEnvironment.__name__}"
        settings = {"environment": self.config.model_dump(mode="json"), "environment_type": kind}
        return {"info": {"config": settings}}


def _done(ran: Ran) -> dict[str, Any]:
    return {"output": ran.output, "returncode": ran.status, "exception_info": ""}


def _late(command: str, limit: float, ran: Ran) -> dict[str, Any]:
    error = subprocess.TimeoutExpired(command, limit)
    told = f"An error occurred while executing the command: {error}"
    kind = {"exception_type": "TimeoutExpired", "exception": str(error)}
    return {"output": ran.output, "returncode": -1, "exception_info": told, "extra": kind}
