"""Files of others, read within bounds (`bounded`); of users, written whole or not at all (`atomic`); and of the hub.

A hub that cannot be reached costs one request here, not the half minute for which its client tries again for every
file. Shared by what reads models, tokenizers and data sets; huggingface_hub itself is optional, so it is imported late.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SECONDS = 10  # for the one request


@contextlib.contextmanager
def cache_if_unreachable(*names: object) -> Iterator[None]:
    """Within it, a hub that does not answer is not asked again: what it has is looked for in the cache alone.

    Args:
        names: of models, tokenizers or data sets; if all are folders here (or none is given), nothing is requested.
    """
    if not any(isinstance(name, str) and name and not Path(name).expanduser().exists() for name in names) or _answers():
        yield
        return
    from huggingface_hub import constants

    # each keeps its own copy of the setting
    holders: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    try:
        for holder in holders:
            holder.HF_HUB_OFFLINE = True
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value


def _answers() -> bool:
    """Whether the hub answers, whatever its answer is; True without its client, which then reports its own absence."""
    try:
        from huggingface_hub import constants, get_session
    except ImportError:
        return True
    if constants.HF_HUB_OFFLINE:
        return True  # as the user wants it
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # its HTTP client is another with each version of huggingface_hub: requests, httpx, httpx2
        return False
    return True
