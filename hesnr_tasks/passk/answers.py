"""Sampled answers on disk as they come: an append-only JSON Lines file, so that a crash costs what was in flight.

The first line says under which settings the answers were sampled; answers of other settings are not mixed in. A line
cut off by a crash is removed by the next run; any other damage is an error. Each process writes a file of its own and
reads all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.keeping import place_of_scores

try:
    import fcntl
except ImportError:  # Windows: two runs on one file are then not kept apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["KeptAnswers", "place_of_answers"]

_FORMAT = 1
_log = logging.getLogger("lm_eval.hesnr_passk")  # below lm-eval's own logger, whose handler prints it


class KeptAnswers:
    """The answers of one task under one set of settings; `get` and `put` by key."""

    def __init__(self, stem: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self._answers: dict[str, str] = {}
        self._settings = json.loads(json.dumps(settings, sort_keys=True))
        self.path = stem.with_name(f"{stem.name}.{rank}.jsonl")
        self._handle = self._locked()
        try:
            self._open(stem)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """The answer kept under `key`, or None."""
        return self._answers.get(key)

    def put(self, answers: Iterable[tuple[str, int | None, str]]) -> None:
        """Keep (key, seed, answer); when this returns they are on disk."""
        new = [(key, seed, text) for key, seed, text in answers if key not in self._answers]
        self._append({"key": key, "seed": seed, "answer": text} for key, seed, text in new)
        self._answers |= {key: text for key, _, text in new}

    def _open(self, stem: Path) -> None:
        _cut_off(self.path)
        for path in sorted(stem.parent.glob(f"{stem.name}.*.jsonl")):
            if path.name[len(stem.name) + 1 : -len(".jsonl")].isdecimal():  # else: of a task called `<stem>.more`
                self._read(path)
        if not self.path.stat().st_size:
            self._append([{"hesnr_passk": _FORMAT, "settings": self._settings}])

    def close(self) -> None:
        """Let other runs write."""
        with contextlib.suppress(OSError):
            os.close(self._handle)

    def _locked(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise HesnrError(f"cannot write answers to {self.path} ({error.strerror})") from None
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise HesnrError(f"another run is writing answers to {self.path}; wait for it, or end it") from None
            except OSError:  # a file system without locks
                pass
        return handle

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        data = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines).encode()
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._handle, view) :]
            os.fsync(self._handle)
        except OSError as error:
            raise HesnrError(
                f"cannot write answers to {self.path} ({error.strerror}). Those before are safe; make room and start "
                "the same command again: it goes on there."
            ) from None

    def _read(self, path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith("\n"):
                    return  # another process is writing it, or died there
                line = _decoded(text, f"{path}:{number}")
                if number == 1:
                    self._refuse_other(line, path)
                elif isinstance(line.get("key"), str) and isinstance(line.get("answer"), str):
                    self._answers.setdefault(line["key"], line["answer"])
                else:
                    raise DataError(f"{path}:{number}: no kept answer (key, answer); {_ADVICE}")

    def _refuse_other(self, line: Mapping[str, Any], path: Path) -> None:
        theirs = line.get("settings")
        if line.get("hesnr_passk") != _FORMAT or not isinstance(theirs, dict):
            raise DataError(f"{path}:1: no file of kept answers; {_ADVICE}")
        changed = list(_changed("", theirs, self._settings))
        if changed:
            raise SettingsError(
                f"{path} holds answers sampled with other settings ({'; '.join(changed[:4])}); mixing them would give "
                'a number of neither. Name another folder with "answers", or run with the settings of the file.'
            )


_ADVICE = 'remove the file, or name another folder with "answers"'


def place_of_answers(setting: str | None, task: str, model: str, settings: Mapping[str, Any]) -> Path | None:
    """Where answers are kept (folder and beginning of the name); None: nowhere.

    A folder that the user names has one file a task, and refuses other settings. Next to lm-eval's --output_path the
    name carries a hash of the settings, so other settings begin another file.
    """
    short = re.sub(r"[^0-9A-Za-z._-]+", "-", task)
    if setting == "none":
        return None
    if setting:
        return Path(setting) / short
    place = place_of_scores(None)
    if place is None:
        return None
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^0-9A-Za-z._-]+", "-", model.rstrip("/").split("/")[-1])[:80]
    return place[0].parent / "answers" / f"{short}-{name}-{digest}"


def _cut_off(path: Path) -> None:
    """Remove a last line without end, which a crash left."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        _log.info("%s: the last line was cut off by a crash and is dropped", path)
        os.truncate(path, whole)


def _decoded(text: str, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict):
        raise DataError(f"{where}: not readable as a kept answer; {_ADVICE}")
    return line


def _changed(name: str, old: Any, new: Any) -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _changed(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif old != new:
        yield f"{name}: {old!r} there, {new!r} here"
