"""Shared by the slow tests: processes that need not import PyTorch and lm-eval again."""

import pytest

from tests import processes


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """See `processes.warm_python`."""
    with processes.warm_python(tmp_path_factory.mktemp("warm")) as python:
        yield python
