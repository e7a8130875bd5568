"""Shared by all tests: where the real trajectories are, and tiny real models and tokenizers."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests import ROOT, SHARED

os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="trackio"))  # read when trackio is first imported


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real public trajectories, beside a clone; absent for most users."""
    if not SHARED.is_dir():
        pytest.skip("the real trajectories are not beside this clone (../shared/trajectories)")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def no_environment_report():
    """lm-eval runs `pip list` and ten more programs after each evaluation, for seconds, to describe the machine."""
    with pytest.MonkeyPatch.context() as patch:
        if "torch" in sys.modules:
            patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "not collected")
        yield


def pytest_collection_modifyitems(items):
    """What is under tests/slow is marked slow: `make check` leaves it out."""
    for item in items:
        if "slow" in item.path.relative_to(ROOT / "tests").parts:
            item.add_marker(pytest.mark.slow)
