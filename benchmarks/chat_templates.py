"""What chat templates do with a trajectory under `render=native`, as a Markdown table (docs/renderings.md).

    python -m benchmarks.chat_templates TRAJECTORIES [TEMPLATE.jinja …]

Without templates, those of TRL's package. Each trajectory is rendered as it is and with reasoning before every turn.
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from hesnr_tasks.chat_rendering import NativeTemplate
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import load
from hesnr_tasks.rendering import Passed
from hesnr_tasks.testing import byte_tokenizer
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory


def with_reasoning(trajectory: Trajectory) -> Trajectory:
    """The trajectory with a few words of reasoning before each turn of the agent."""
    reasoning = Segment(Kind.THOUGHT, "<think>\nWhat is next?\n</think>\n\n")
    messages = (Message(m.role, (reasoning, *m.segments)) if m.generated else m for m in trajectory.messages)
    joined = (replace(m, segments=_joined(m.segments)) for m in messages)
    return replace(trajectory, id=f"{trajectory.id}, with reasoning", messages=tuple(joined))


def _joined(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    if len(segments) > 1 and segments[0].kind is segments[1].kind:
        return (Segment(segments[0].kind, segments[0].text + segments[1].text), *segments[2:])
    return segments


def main(source: str, *templates: str) -> None:
    """Print the table."""
    if not templates:
        import trl

        templates = tuple(map(str, sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))))
    trajectories = load([source])
    trajectories += [with_reasoning(t) for t in trajectories]
    print("| template | rendered | reasoning goes to | switches set | thoughts dropped | passed as |")
    print("| --- | --- | --- | --- | --- | --- |")
    for path in map(Path, templates):
        tokenizer = byte_tokenizer()
        tokenizer.bos_token, tokenizer.chat_template = "<s>", path.read_text()
        native, refused, passed = NativeTemplate(tokenizer), Counter[str](), list[Passed]()
        for trajectory in trajectories:
            try:
                passed += [native.render(trajectory).passed]
            except DataError as error:
                refused[str(error)] += 1
        about = native.describe(passed)
        switches = ", ".join(f"`{name}={value}`" for name, value in about["switches"].items())
        forms = "; ".join(f"{form} ({count})" for form, count in about["forms"].items())
        dropped = f"{about['thoughts_dropped'] / max(1, about['thoughts_total']):.0%}"
        share = f"{len(trajectories) - refused.total()} of {len(trajectories)}"
        print(f"| {path.stem} | {share} | `{about['reasoning']}` | {switches} | {dropped} | {forms} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
