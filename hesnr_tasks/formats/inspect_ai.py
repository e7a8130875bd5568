"""inspect_ai logs: `.eval` archives and `.json`, one trajectory per sample and epoch.

Source: inspect_ai (2024-11 to 2026-08), `log/_log.py`, `log/_recorders/eval.py`, and its test logs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.base import Format, TrajectoryBuilder, Where
from hesnr_tasks.formats.chat import label_messages
from hesnr_tasks.formats.content_blocks import Turn, openai_calls
from hesnr_tasks.formats.json_access import deep, items, left_out, mapping, messages_of, scalar_text
from hesnr_tasks.formats.outcomes import outcome_meta, resolved_of
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

_ATTACHED = "attachment://"


def _samples(record: Any) -> Iterator[dict[str, Any]] | None:
    """One record per sample of a whole log; None when `record` is no log."""
    if not isinstance(record, Mapping) or not isinstance(record.get("eval"), Mapping):
        return None
    if "samples" not in record and "status" not in record:
        return None
    return ({"inspect_sample": sample, "inspect_eval": record["eval"]} for sample in items(record, "samples"))


def _detect(record: Any) -> float:
    """1 for a sample taken from a log, or a whole log."""
    return float(isinstance(record, Mapping) and ("inspect_sample" in record or _samples(record) is not None))


def _read(record: Any, where: Where) -> Trajectory:
    sample = mapping(record, "inspect_sample")
    if not sample:
        raise DataError("the log has no samples (it may have been written without them)")
    builder = TrajectoryBuilder(INSPECT_AI.name, where)
    attachments = mapping(sample, "attachments")

    def turn(message: Mapping[str, Any]) -> Sequence[Segment]:
        blocks = Turn()
        blocks.add_all(message.get("content"), builder)
        blocks.calls.extend(openai_calls(items(message, "tool_calls")))
        return blocks.segments()

    messages = [_with_attachment(message, attachments) for message in messages_of(sample, "messages")]
    label_messages(messages, builder, turn)
    # the value of the first scorer by name decides; all values are kept
    scores = {name: deep(score, "value") for name, score in mapping(sample, "scores").items()}
    instance, epoch = scalar_text(sample.get("id")), scalar_text(sample.get("epoch"))
    return builder.build(
        id=f"{instance}_epoch_{epoch}" if instance and epoch else instance,
        instance_id=instance,
        resolved=resolved_of(scores[min(scores)]) if scores else None,
        fidelity=Fidelity.RENDERED if any(items(m, "tool_calls") for m in messages) else Fidelity.EXACT,
        outcome=outcome_meta(scores) if scores else None,
        exit_status=scalar_text(deep(sample, "limit", "type")) or scalar_text(deep(sample, "error", "message")),
        model=scalar_text(deep(record, "inspect_eval", "model")),
        task=scalar_text(deep(record, "inspect_eval", "task")),
    )


def _with_attachment(message: Mapping[str, Any], attachments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its content put back where the log stores it apart."""
    content = message.get("content")
    if isinstance(content, str) and content.startswith(_ATTACHED):
        stored = attachments.get(content.removeprefix(_ATTACHED))
        if stored is None:
            left_out(attachments, "an attachment is not where the message says")
        else:
            return {**message, "content": stored}
    return message


INSPECT_AI = Format(
    "inspect-ai", "'eval' with 'samples' or 'status', or a zip with header.json", _detect, _read, expand=_samples
)
