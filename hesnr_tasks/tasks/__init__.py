"""The lm-eval tasks: settings, signature, and everything that lm-eval asks of a task.

Here: where the task files are, and how plain `lm_eval --tasks hesnr_swe` is made to find them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from pathlib import Path

from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.files.bounded import open_regular

OLDEST_LM_EVAL = "0.4.12"  # 0.4.11 and earlier look for the class of a task only beside its YAML file
NEWEST_LM_EVAL = "0.5.0.dev1"  # the newest that the tests ran with

_FOLDER = "hesnr_tasks_registered"
_MARK = "# Copied here by `hesnr register`; `hesnr register --undo` removes it.\n"


def tasks_path() -> Path:
    """The folder for lm-eval's `--include_path`: the clone's own, or the one installed with the package."""
    package = Path(__file__).resolve().parent.parent
    candidates = (package.parent / "task_configs", package / "task_configs")
    return next(path for path in candidates if (path / "hesnr_swe.yaml").is_file())


def task_names() -> set[str]:
    """The names of all tasks of this package."""
    return {path.stem for path in tasks_path().rglob("*.yaml")}


def check_lm_eval() -> str:
    """The version of the installed lm-eval.

    Raises:
        HesnrError: there is none, or it is older than the oldest that can load our tasks.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise HesnrError("lm-eval is not installed in this Python. Install it with: pip install 'hesnr-tasks[hf]'")
    from packaging.version import Version  # comes with lm-eval

    version = importlib.metadata.version("lm-eval")
    if Version(version) < Version(OLDEST_LM_EVAL):
        raise HesnrError(
            f"lm-eval {version} cannot load these tasks: they need {OLDEST_LM_EVAL} or later "
            f"(tested up to {NEWEST_LM_EVAL}).\nUpdate it: pip install -U 'lm-eval>={OLDEST_LM_EVAL}'"
        )
    return version


def registered_files() -> tuple[Path, bool] | None:
    """(folder of the registered task files, whether they are those of this version); None: not registered."""
    folder = _lm_eval_tasks() / _FOLDER
    if not (folder / "hesnr_swe.yaml").is_file():
        return None
    names = [path.relative_to(tasks_path()) for path in tasks_path().rglob("*yaml")]
    current = all(
        (folder / name).is_file()
        and (folder / name).read_text("utf-8") == _MARK + (tasks_path() / name).read_text("utf-8")
        for name in names
    )
    return folder, current


def register() -> Path:
    """Copy the task files into the lm-eval that this Python imports; returns their folder.

    Copies, not links or includes: if this package goes away, lm-eval still reads its task index without an error.
    Running it again, also at the same time, refreshes the copies. Nothing of others is touched.
    """
    check_lm_eval()
    folder = _lm_eval_tasks() / _FOLDER
    wanted = {folder / path.relative_to(tasks_path()): path for path in sorted(tasks_path().rglob("*yaml"))}
    try:  # templates have no suffix, so that lm-eval skips them
        for copy, path in wanted.items():
            if copy.exists() and not _is_ours(copy):
                raise HesnrError(f"{copy} is in the way and not ours; move it elsewhere and register again")
            write_output(copy, _MARK + path.read_text(encoding="utf-8"))
        for path in folder.rglob("*yaml"):
            if path not in wanted and _is_ours(path):
                path.unlink(missing_ok=True)
    except (OSError, SettingsError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise HesnrError(
            f"cannot write into {folder.parent} ({reason}). "
            f"Use --include_path {tasks_path()} or `hesnr eval` instead: neither needs registering."
        ) from None
    return folder


def unregister() -> Path | None:
    """Remove what `register` wrote, and nothing else; returns the folder if there was one."""
    folder = _lm_eval_tasks() / _FOLDER
    if not folder.is_dir():
        return None
    for path in folder.rglob("*"):
        if _is_ours(path):
            path.unlink(missing_ok=True)
    for place in [*(path for path in folder.iterdir() if path.is_dir()), folder]:
        with contextlib.suppress(OSError):  # something of others is in it
            place.rmdir()
    return folder


def _is_ours(path: Path) -> bool:
    """Whether `register` wrote the file, or was stopped while it wrote it."""
    try:
        with open_regular(path) as file:
            return file.read(len(_MARK.encode())) == _MARK.encode()
    except (OSError, DataError):
        return False


def _lm_eval_tasks() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise HesnrError("lm-eval is not installed in this Python. Install it with: pip install 'hesnr-tasks[hf]'")
    return Path(spec.origin).parent / "tasks"
