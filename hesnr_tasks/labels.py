"""Labels: the kind of a character, the filters that drop it, and the tokens that therefore count.

Every character has one *code*: its kind or, for an action, the set of filters that drop it. A token's label is the set
of codes of the characters it covers, one bit each in a uint64. Whether a token counts for some kinds and filters is
then one `&`, so any combination can be selected after scoring, exactly: a token counts iff it covers at least one kept
character (METRICS: "What counts").
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from hesnr_tasks.trajectory import Kind

__all__ = ["MAX_FILTERS", "action_code", "kind_code", "label_mask"]

MAX_FILTERS = 5  # 4 codes for the other kinds + 2**5 for actions fit the 64 bits of a label
_OTHERS = (Kind.CONTEXT, Kind.OBSERVATION, Kind.THOUGHT, Kind.SCAFFOLD)
_ACTION = len(_OTHERS)


def kind_code(kind: Kind) -> int:
    """The code of a character of `kind` that no filter drops."""
    return _ACTION if kind is Kind.ACTION else _OTHERS.index(kind)


def action_code(filter_bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Codes of action characters from the bit set of the filters that drop each; shape of `filter_bits`."""
    return (_ACTION + filter_bits).astype(np.uint8)


def label_mask(kinds: Collection[Kind], filters: Collection[str], known_filters: Sequence[str]) -> np.uint64:
    """The codes that count: `label & mask != 0` iff the token covers a character of `kinds` that no filter drops.

    Args:
        kinds: kinds of characters that count.
        filters: names of the filters that apply to actions.
        known_filters: names in the order of the labels' filter bits (it is stored with score files).
    """
    dropped = sum(1 << known_filters.index(name) for name in filters)
    mask = sum(1 << kind_code(kind) for kind in kinds if kind is not Kind.ACTION)
    if Kind.ACTION in kinds:
        mask |= sum(1 << (_ACTION + bits) for bits in range(1 << len(known_filters)) if not bits & dropped)
    return np.uint64(mask)
