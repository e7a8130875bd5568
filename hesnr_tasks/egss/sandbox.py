"""Where stage 2 executes candidates' code: mini-swe-agent's environments, one fresh one at a time.

Configuration is mini-swe-agent's own (`environment`, `run.env_startup_command`), so what an agent ran in is what its
patch is tested in. Nothing of a candidate is executed outside of the environment, git neither: patches are applied
inside, with an empty configuration. Variables of the caller that look like keys are not passed on unless named.
"""

from __future__ import annotations

import base64
import binascii
import copy
import os
import posixpath
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from hesnr_tasks.errors import SearchError, SettingsError, printable

__all__ = ["PatchError", "Ran", "Sandbox", "SandboxError", "sandbox_config", "secret_variables"]

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


class Ran(NamedTuple):
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
        SettingsError: a file is not there or not YAML, a variable is not set, or candidates would run in a folder of
            the user's.
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
    given = dict(_variable(word) for word in variables)
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


def _variable(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals and name not in os.environ:
        raise SettingsError(f"--env {name}: this variable is not set here; set it, or give {name}=VALUE")
    return name, value if equals else os.environ[name]


class Sandbox:
    """One fresh environment with an instance's repository, until it is closed.

    Raises:
        SandboxError: it did not start.
    """

    def __init__(self, config: Mapping[str, Any], instance: Mapping[str, Any]) -> None:
        from minisweagent.run.benchmarks.swebench import get_sb_environment

        own = copy.deepcopy(dict(config))
        self._folder = ""
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the environment and its files."""
        cleanup = getattr(getattr(self, "_environment", None), "cleanup", None)
        if cleanup:
            cleanup()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, command: str, timeout: int = 60) -> Ran:
        """Run a shell command inside, for at most `timeout` seconds.

        Raises:
            SandboxError: the environment is no longer there.
        """
        from minisweagent.exceptions import Submitted

        # the environments stop waiting; only `timeout` inside also ends the command
        limit = f'limit=$(command -v timeout) && limit="$limit -k 5 {timeout}"'
        bounded = f'{limit}; $limit "${{BASH:-sh}}" -c {shlex.quote(command)}'
        try:
            raw = self._environment.execute({"command": bounded}, timeout=timeout + _MARGIN)
        except Submitted as submitted:  # a test that prints mini-swe-agent's marker
            message: dict[str, Any] = submitted.messages[0] if getattr(submitted, "messages", None) else {}
            return Ran(str(message.get("content", "")), 0)
        except Exception as error:
            raise SandboxError(f"the environment died: {printable(str(error))[-300:]}") from error
        kind = (raw.get("extra") or {}).get("exception_type")
        if kind == subprocess.TimeoutExpired.__name__ or raw["returncode"] in (124, 137):
            return Ran(raw["output"], 124, True)
        if kind:
            raise SandboxError(f"the environment died: {printable(str(raw['exception_info']))[-300:]}")
        return Ran(raw["output"], int(raw["returncode"]))

    def check(self) -> None:
        """Raise `SandboxError` if the environment no longer executes anything."""
        if "hesnr-alive" not in self.run("echo hesnr-alive", 30).output:
            raise SandboxError("the environment died: it executes no command any more")

    def write(self, path: str, content: str) -> None:
        """Write a file inside. Raises `SandboxError`."""
        quoted, folder = shlex.quote(path), shlex.quote(posixpath.dirname(path) or ".")
        text = base64.b64encode(content.encode("utf-8", "surrogateescape")).decode()
        chunks = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
        start = f"mkdir -p {folder} && rm -rf {quoted} && : > {quoted}"
        for chunk in chunks or [""]:
            ran = self.run(f"{start} && printf %s '{chunk}' | base64 -d >> {quoted}")
            start = "true"
            if ran.status:
                self.check()
                raise SandboxError(f"{path} cannot be written in the environment: {printable(ran.output)[-200:]}")

    def read(self, path: str) -> str | None:
        """The text of a file inside; None where there is none."""
        quoted = shlex.quote(path)
        ran = self.run(f"test -f {quoted} && printf '<hesnr:' && head -c {_LARGEST} {quoted} | base64 && printf ':>'")
        match = re.search(r"<hesnr:([A-Za-z0-9+/=\s]*):>", ran.output)
        if not match:
            return None
        try:
            return base64.b64decode(match[1]).decode("utf-8", "replace")
        except binascii.Error:
            return None

    def apply(self, patch: str) -> None:
        """Apply a patch. Raises `PatchError`, `SandboxError`."""
        if not patch.strip():
            return
        outside = _OUTSIDE.search(patch)
        if outside:
            raise PatchError(f"the patch changes files outside of the repository, or git's own: {outside[1]!r}")
        file = ".hesnr-select.patch"
        self.write(file, patch)
        ran = self.run(_APPLY.format(patch=file))
        if ran.status:
            self.check()
            raise PatchError(f"the patch does not apply: {printable(ran.output.strip())[-300:]}")
