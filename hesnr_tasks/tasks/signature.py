"""The signature of a number: every choice behind it. Numbers with different signatures are not comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.filters import LABELS_VERSION
from hesnr_tasks.metrics import Item
from hesnr_tasks.tasks.settings import Settings

__all__ = ["describe", "signature"]


def signature(settings: Settings, rendering: str, items: Sequence[Item], run: Mapping[str, Any]) -> dict[str, Any]:
    """Everything needed to say whether two numbers may be compared, JSON-able."""
    return {
        "hesnr_tasks": __version__,
        "k": settings.k,
        "epsilon": settings.epsilon,
        "kinds": [kind.value for kind in settings.kinds],
        "filters": list(settings.filters),
        "render": rendering,
        "labels": LABELS_VERSION,
        "overflow": settings.overflow,
        "max_length": run.get("max_length"),
        "tokens_cut": sum(item.tokens_cut for item in items),
        "trajectories": len(items),
        "trajectories_cut": sum(item.tokens_cut > 0 for item in items),
        "data": _data_hash(items),
        "resamples": settings.resamples,
        "bootstrap_seed": settings.bootstrap_seed,
        "run": {name: value for name, value in run.items() if name != "max_length"},
    }


def _data_hash(items: Sequence[Item]) -> str:
    return hashlib.sha256("".join(sorted(item.key for item in items)).encode()).hexdigest()


def describe(made: Mapping[str, Any]) -> str:
    """The signature on one line, for logs and tables."""
    kinds = "+".join(made["kinds"])
    parts = [
        f"hesnr-tasks:{made['hesnr_tasks']}",
        f"k:{made['k']}",
        f"eps:{made['epsilon']:.4f}",
        f"kinds:{kinds}",
        f"filters:{'+'.join(made['filters']) or 'none'}",
        f"render:{made['render']}",
        f"max_length:{made['max_length']}({made['overflow']},cut:{made['tokens_cut']})",
        f"data:{made['data'][:10]}({made['trajectories']})",
        f"seed:{made['bootstrap_seed']}",
    ]
    return "|".join(parts + [f"{name}:{made['run'][name]}" for name in ("backend", "dtype") if name in made["run"]])
