"""What the tests of the search share."""

import pytest

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.forks.process import check_namespaces


@pytest.fixture(scope="session")
def namespaces():
    """Skips where commands cannot be isolated."""
    try:
        check_namespaces()
    except SearchError as error:
        pytest.skip(str(error))
