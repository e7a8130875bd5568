"""Shared by all tests: where the real trajectories are, and tiny real models and tokenizers."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "trajectories"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real public trajectories, beside a clone; absent for most users."""
    if not SHARED.is_dir():
        pytest.skip("the real trajectories are not beside this clone (../shared/trajectories)")
    return SHARED
