"""What the scores of one folder have in common: `run.json`, made once, and compared by everybody who comes later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.store.files import StoreError, create_whole

__all__ = ["FORMAT", "SCHEMA", "Difference", "differences", "open_run", "read_run", "scoring_signature"]

FORMAT = "hesnr-scores"
SCHEMA = 1  # raised when an older reader could misread a newer file
_NAME = "run.json"
_PLACES = ("model", "revision", "peft", "delta", "adapter")  # where weights came from, not what they are
_ABSENT = object()


class Difference(NamedTuple):
    """One setting that differs between two runs; `None` where a run does not have it."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """`dtype: float32 → bfloat16`."""
        return f"{self.name}: {_show(self.old)} → {_show(self.new)}"


def scoring_signature(
    run: Mapping[str, Any], *, render: str, overflow: str, k: int, filters: Sequence[str]
) -> dict[str, Any]:
    """Everything that changes token scores, JSON-able. (What changes texts or labels changes the key of a file.)

    `run`: `TokenScores.run` (model, tokenizer, dtype, backend, BOS, max_length …). `filters`: all known filters, in
    the order of their bits in a label.
    """
    return {
        "schema": SCHEMA,
        "k": k,
        "filters": list(filters),
        "render": render,
        "overflow": overflow,
        "run": dict(run),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """The settings in which two signatures differ, in a fixed order.

    A model that was moved is the same model: its place does not count where both runs have a hash of its weights.
    """
    left, right = _flat(old), _flat(new)
    if left.get("weights") and left.get("weights") == right.get("weights"):
        for name in _PLACES:
            left.pop(name, None)
            right.pop(name, None)
    names = dict.fromkeys([*left, *right])
    return [
        Difference(name, left.get(name), right.get(name))
        for name in names
        if left.get(name, _ABSENT) != right.get(name, _ABSENT)
    ]


def open_run(folder: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    """The signature of the run in `folder`, which becomes `signature` if there is none yet.

    The run's k may be larger than the one asked for. Raises `SettingsError` naming every other setting that differs.
    """
    wanted = json.loads(json.dumps(signature))
    content = json.dumps({"format": FORMAT, "schema": SCHEMA, "signature": wanted}, indent=1, sort_keys=True) + "\n"
    if not (folder / _NAME).exists() and create_whole(folder / _NAME, content.encode()):
        return dict(wanted)
    found = read_run(folder)
    larger = {**wanted, "k": max(wanted["k"], found["k"])}
    changed = differences(found, larger)
    if changed:
        listed = "; ".join(map(str, changed))
        raise SettingsError(
            f"{folder} holds scores made with other settings ({listed}), and scores of two kinds must not be mixed. "
            'Go back to those settings, name another folder with "scores": "FOLDER" in --metadata, or move the old '
            "folder away if its scores are no longer wanted."
        )
    return found


def read_run(folder: Path) -> dict[str, Any]:
    """The signature of the run in `folder`; raises `StoreError` where there is none of a kind we know."""
    path = folder / _NAME
    try:
        content = json.loads(path.read_text())
        schema, signature = content["schema"], content["signature"]
        if content["format"] != FORMAT or not {"k", "run"} <= set(signature):
            raise ValueError("another kind of file")
    except FileNotFoundError:
        raise StoreError(
            f"{folder} is no folder of score files (it has no {_NAME}). Name the folder that a scoring run wrote"
            f"{_inner(folder)}."
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read {path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is damaged ({error}). The score files beside it are whole; move them to a new folder together "
            f"with the {_NAME} of a run with the same settings, or score again into another folder."
        ) from None
    if schema != SCHEMA:
        raise StoreError(f"{path} has schema {schema}; this version of hesnr-tasks reads schema {SCHEMA}. Update it.")
    return dict(signature)


def _inner(folder: Path) -> str:
    found = sorted(path.parent.name for path in folder.glob(f"*/{_NAME}"))[:5]
    return f"; below it there are {', '.join(found)}" if found else ""


def _flat(signature: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in signature.items() if name != "run"}
    return rest | dict(signature.get("run") or {})


def _show(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
