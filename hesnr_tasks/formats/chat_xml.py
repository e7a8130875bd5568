"""Chat rows with `<function=…><parameter=…>` in the assistant text: SWE-smith, SWE-Gym SFT, R2E-Gym SFT, Scale-SWE.

The text was written again by whoever made the rows (from tool calls or from parsed calls), so fidelity is synthetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hesnr_tasks.formats import chat, text
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "chat-xml"
RULE = "messages whose assistant text has <function=…> and no tool calls"

# SWE-smith writes this in the place of SWE-agent's "Exit due to cost limit" (swesmith/train/traj_mgr/utils.py).
_REWRITTEN = (
    "Since we have successfully fixed the issue and verified it works, let's submit the changes:\n\n"
    "<function=submit>\n</function>"
)


def detect(record: Any) -> float:
    """1 when most assistant texts with a call have it in XML: one that only speaks of the tag says nothing."""
    texts = list(chat.assistant_texts(chat.peek(record)))
    return float(any("<function=" in t for t in texts) and text.guess_style(texts) == "function")


def read(record: Any, where: Where) -> Trajectory:
    """Read one row."""
    draft = Draft(NAME, where)

    def turn(message: chat.Item) -> Sequence[Segment] | None:
        content = chat.message_text(message, draft)
        return None if content == _REWRITTEN else text.split(content, "function")

    chat.label_messages(chat.messages(record), draft, turn)
    return chat.row_names(record, draft, Fidelity.SYNTHETIC)
