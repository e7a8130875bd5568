"""inspect_ai logs: `.eval` archives and `.json`, one trajectory per sample and epoch.

Source: inspect_ai (2024-11 to 2026-08), `log/_log.py`, `log/_recorders/eval.py`, and its test logs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import canonical, chat
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, deep, items, left_out, mapping, messages_of, scalar_text
from hesnr_tasks.formats.outcome import outcome_meta, resolved_of
from hesnr_tasks.formats.parts import Turn
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

__all__ = ["NAME", "RULE", "detect", "read", "samples"]

NAME = "inspect-ai"
RULE = "'eval' with 'samples' or 'status', or a zip with header.json"
_ATTACHED = "attachment://"


def samples(record: Any) -> Iterator[dict[str, Any]] | None:
    """One record per sample of a whole log; None when `record` is no log."""
    if not isinstance(record, Mapping) or not isinstance(record.get("eval"), Mapping):
        return None
    if "samples" not in record and "status" not in record:
        return None
    return ({"inspect_sample": sample, "inspect_eval": record["eval"]} for sample in items(record, "samples"))


def detect(record: Any) -> float:
    """1 for a sample taken from a log, or a whole log."""
    return float(isinstance(record, Mapping) and ("inspect_sample" in record or samples(record) is not None))


def read(record: Any, where: Where) -> Trajectory:
    """Read one sample."""
    sample = mapping(record, "inspect_sample")
    if not sample:
        raise DataError("the log has no samples (it may have been written without them)")
    draft = Draft(NAME, where)
    attachments = mapping(sample, "attachments")

    def turn(message: chat.Item) -> Sequence[Segment]:
        written = Turn()
        written.add_all(message.get("content"), draft)
        written.calls.extend(canonical.openai_calls(items(message, "tool_calls")))
        return written.segments()

    messages = [_attached(message, attachments) for message in messages_of(sample, "messages")]
    chat.label_messages(messages, draft, turn)
    resolved, stored = _score(sample)
    instance, epoch = scalar_text(sample.get("id")), scalar_text(sample.get("epoch"))
    return draft.build(
        id=f"{instance}_epoch_{epoch}" if instance and epoch else instance,
        instance_id=instance,
        resolved=resolved,
        fidelity=Fidelity.RENDERED if any(items(m, "tool_calls") for m in messages) else Fidelity.EXACT,
        outcome=stored,
        exit_status=scalar_text(deep(sample, "limit", "type")) or scalar_text(deep(sample, "error", "message")),
        model=scalar_text(deep(record, "inspect_eval", "model")),
        task=scalar_text(deep(record, "inspect_eval", "task")),
    )


def _attached(message: Mapping[str, Any], attachments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with long strings put back that the log stores apart."""
    content = message.get("content")
    if isinstance(content, str) and content.startswith(_ATTACHED):
        stored = attachments.get(content.removeprefix(_ATTACHED))
        if stored is None:
            left_out(attachments, "an attachment is not where the message says")
        else:
            return {**message, "content": stored}
    return message


def _score(sample: Mapping[str, Any]) -> tuple[bool | None, Any]:
    """The value of the first scorer by name; all values are kept."""
    scores = {name: deep(score, "value") for name, score in mapping(sample, "scores").items()}
    if not scores:
        return None, None
    return resolved_of(scores[min(scores)]), outcome_meta(scores)
