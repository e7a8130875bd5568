"""A loopback server that speaks OpenAI's chat completions and remembers what it was asked."""

import contextlib

from hesnr_tasks.testing import fake_server


@contextlib.contextmanager
def serve(answer):
    """Yields (base url, requests). `answer(body)` gives a text, or (status, headers) for something else."""
    with fake_server(answer=answer) as server:
        yield server.url, server.requests
