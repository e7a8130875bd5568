"""Shared by all tests: where the real trajectories are, and tiny real models and tokenizers."""

from pathlib import Path

import pytest

from tests import ROOT, SHARED


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real public trajectories, beside a clone; absent for most users."""
    if not SHARED.is_dir():
        pytest.skip("the real trajectories are not beside this clone (../shared/trajectories)")
    return SHARED


def pytest_collection_modifyitems(items):
    """What is under tests/slow is marked slow: `make check` leaves it out."""
    for item in items:
        if "slow" in item.path.relative_to(ROOT / "tests").parts:
            item.add_marker(pytest.mark.slow)
