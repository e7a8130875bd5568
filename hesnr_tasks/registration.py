"""Where the task files are, and how plain `lm_eval --tasks hesnr_swe` is made to find them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hesnr_tasks.errors import HesnrError

__all__ = ["register", "tasks_path", "unregister"]

_FOLDER = "hesnr_tasks_registered"
_MARK = "# Copied here by `hesnr register`; `hesnr register --undo` removes it.\n"


def tasks_path() -> Path:
    """The folder for lm-eval's `--include_path`: the clone's own, or the one installed with the package."""
    package = Path(__file__).resolve().parent
    candidates = (package.parent / "task_configs", package / "task_configs")
    return next(path for path in candidates if (path / "hesnr_swe.yaml").is_file())


def register() -> Path:
    """Copy the task files into the lm-eval that this Python imports; returns their folder.

    Copies, not links or includes: if this package goes away, lm-eval still reads its task index without an error.
    Running it again refreshes the copies. Nothing that exists is touched.
    """
    folder = _lm_eval_tasks() / _FOLDER
    try:
        unregister()
        folder.mkdir()
        for path in sorted(tasks_path().rglob("*yaml")):  # templates have no suffix, so that lm-eval skips them
            copy = folder / path.relative_to(tasks_path())
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(_MARK + path.read_text())
    except OSError as error:
        raise HesnrError(
            f"cannot write into {folder.parent} ({error.strerror}). "
            f"Use --include_path {tasks_path()} or `hesnr eval` instead: neither needs registering."
        ) from None
    return folder


def unregister() -> Path | None:
    """Remove what `register` wrote, and nothing else; returns the folder if there was one."""
    folder = _lm_eval_tasks() / _FOLDER
    if not folder.is_dir():
        return None
    for path in folder.rglob("*yaml"):
        if path.read_text().startswith(_MARK):
            path.unlink()
    for place in [*(path for path in folder.iterdir() if path.is_dir()), folder]:
        if not any(place.iterdir()):
            place.rmdir()
    return folder


def _lm_eval_tasks() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise HesnrError("lm-eval is not installed in this Python. Install it with: pip install 'hesnr-tasks[hf]'")
    return Path(spec.origin).parent / "tasks"
