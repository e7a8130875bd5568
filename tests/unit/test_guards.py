"""What the suite promises of itself: our own warnings are errors, and unit tests start no process."""

import subprocess
import sys
import warnings

import pytest

from hesnr_tasks.errors import number_of
from tests.unit import conftest


@pytest.mark.parametrize("module", ["hesnr_tasks", "hesnr_tasks.scores.store"])
def test_a_warning_that_our_own_code_causes_is_an_error(module):
    with pytest.raises(RuntimeWarning, match="overflow"):
        warnings.warn_explicit("overflow", RuntimeWarning, "file.py", 1, module=module)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_warning_of_others_is_none():
    warnings.warn_explicit("overflow", RuntimeWarning, "file.py", 1, module="hesnr_tasks_of_others")


def test_a_process_is_noticed():
    subprocess.run([sys.executable, "--version"], capture_output=True, check=True)
    assert conftest.STARTED
    conftest.STARTED.clear()


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "trajectory", "0 trajectories"),
        (1, "trajectory", "1 trajectory"),
        (2_000, "trajectory", "2,000 trajectories"),
        (1, "turn", "1 turn"),
        (2, "array", "2 arrays"),
    ],
)
def test_a_number_and_its_noun_agree(count, noun, text):
    assert number_of(count, noun) == text
