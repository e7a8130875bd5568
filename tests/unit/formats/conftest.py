"""Where the fixtures and the real files are, and small helpers the reader tests share."""

from pathlib import Path

import pytest

from hesnr_tasks.trajectory import Kind, Trajectory
from tests import SHARED

FIXTURES = Path(__file__).parent / "fixtures"
REAL = SHARED


@pytest.fixture
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip("the folder of real trajectories, ../shared/trajectories, is not here")
    return REAL


@pytest.fixture
def own():
    """What the model wrote, as (kind, text) pairs."""

    def own(trajectory: Trajectory) -> list[tuple[str, str]]:
        kinds = (Kind.THOUGHT, Kind.ACTION)
        return [(s.kind.value, s.text) for m in trajectory.messages for s in m.segments if s.kind in kinds]

    return own
