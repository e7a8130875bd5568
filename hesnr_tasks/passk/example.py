"""The example task `hesnr_passk_arithmetic`: sums of integers, checked by exact match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

__all__ = ["dataset"]


def dataset(**_: Any) -> dict[str, datasets.Dataset]:
    """The 24 problems as lm-eval's `custom_dataset` wants them; arguments (the run's metadata) are not used."""
    lines = Path(__file__).with_name("arithmetic.jsonl").read_text().splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
