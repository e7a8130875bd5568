"""Calls are found in every form, whole or broken, and never at the cost of their values."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.actions import ToolCall, render_call
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.formats import load
from hesnr_tasks.trajectory import Kind


def parsed(text):
    """Names with the values of their parameters."""
    return [
        (call.name, [(p.name, text[p.value_start : p.value_end]) for p in call.parameters])
        for call in parse_action(text)
    ]


def tags(text):
    return [text[start:end] for call in parse_action(text) for start, end in call.tags]


def test_the_canonical_form_gives_name_parameters_and_tags():
    text = "<function=edit>\n<parameter=path>/a.py</parameter>\n<parameter=new_str>\nx = 1\n</parameter>\n</function>"
    assert parsed(text) == [("edit", [("path", "/a.py"), ("new_str", "x = 1")])]
    assert tags(text) == [
        "<function=edit>",
        "<parameter=path>",
        "</parameter>",
        "<parameter=new_str>",
        "</parameter>",
        "</function>",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<function=bash>\n<parameter=command>ls</parameter>\n", [("bash", [("command", "ls")])]),
        ("<function=bash>\n<parameter=command>ls</parameter>\n</", [("bash", [("command", "ls")])]),
        ("<function=bash>\n<parameter=command>ls\n</function>", [("bash", [("command", "ls")])]),
        ("<function=bash>\n<parameter=command>ls\n</func", [("bash", [("command", "ls")])]),
        ("<function=bash>\n<parameter=command>ls", [("bash", [("command", "ls")])]),
        ("<function=bash>\n<parameter=command=ls -l</parameter>\n</function>", [("bash", [("command", "ls -l")])]),
        ("<function=>\n<parameter>x</parameter>\n</function>", [("", [("", "x")])]),
        ("<function=submit>\n</function>", [("submit", [])]),
        ("<function=submit></function>", [("submit", [])]),
        ("<function=bash>\n<parameter=command", [("bash", [("command", "")])]),
        ("<parameter=command>ls</parameter>\n</function>", [("", [("command", "ls")])]),
        ("<function=f>\n<parameter=a>1\n<parameter=b>2</parameter>\n</function>", [("f", [("a", "1"), ("b", "2")])]),
        ("<function=apply_patch>\n*** Begin Patch\n</function>", [("apply_patch", [("", "*** Begin Patch")])]),
        (
            '<function name="bash">\n<parameter name="command">ls</parameter>\n</function>',
            [("bash", [("command", "ls")])],
        ),
    ],
)
def test_broken_calls_keep_what_they_have(text, expected):
    assert parsed(text) == expected


def test_a_partial_closing_tag_is_a_tag_and_not_part_of_the_value():
    assert tags("<function=bash>\n<parameter=command>ls\n</para\n")[-1] == "</para"


@pytest.mark.parametrize(
    "value",
    [
        "grep -n '</parameter>' x.py",
        "grep '</function>' | grep '<function=bash>'",
        "sed 's#</parameter># #'\nls",
        "x\n<function=bash>\n<parameter=command>ls</parameter>\n</function>\ny",
        "echo '<tool_call>{}</tool_call>'",
        "</",
        "a\n\n\nb",
        "```\nx\n```",
    ],
)
def test_values_that_hold_tags_of_the_call_stay_whole(value):
    text = render_call(ToolCall("bash", {"command": value}))
    assert parsed(text) == [("bash", [("command", value)])]


def test_several_calls_follow_each_other():
    text = "\n".join(render_call(ToolCall("bash", {"command": c})) for c in ("ls", "pwd # </parameter>", "id"))
    assert [values[0][1] for _, values in parsed(text)] == ["ls", "pwd # </parameter>", "id"]


def test_a_call_without_closing_tags_ends_where_the_next_begins():
    text = "<function=a>\n<parameter=x>1\n<function=b>\n<parameter=y>2"
    assert parsed(text) == [("a", [("x", "1")]), ("b", [("y", "2")])]


def test_tool_call_tags_around_functions_belong_to_the_calls():
    text = "<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"
    assert parsed(text) == [("bash", [("command", "ls")])]
    assert tags(text)[0] == "<tool_call>"
    assert tags(text)[-1] == "</tool_call>"


def test_json_calls_give_the_inside_of_their_strings():
    call = {"name": "bash", "arguments": {"command": 'echo "hi"\n# x', "timeout": 5, "env": {"A": ["b", "}"]}}}
    text = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    (results,) = parse_action(text)
    values = {p.name: text[p.value_start : p.value_end] for p in results.parameters}
    assert results.name == "bash"
    assert [p.encoded for p in results.parameters] == [True, False, False]
    assert json.loads(f'"{values["command"]}"') == call["arguments"]["command"]
    assert json.loads(values["env"]) == {"A": ["b", "}"]}
    kept = "".join(text[p.value_start : p.value_end] for p in results.parameters)
    tags = sum(end - start for start, end in results.tags)
    assert len(kept) + tags == len(text) - 1  # the newline before the last tag


@pytest.mark.parametrize("tag", ["command", "mswea_bash_command", "execute_bash"])
def test_a_command_between_tags(tag):
    text = f"<{tag}>\nls </{tag}> x\n</{tag}>"
    assert parsed(text) == [("bash", [("command", f"ls </{tag}> x")])]
    assert tags(text) == [f"<{tag}>", f"</{tag}>"]


def test_fences_give_command_and_language():
    assert parsed("```bash\nls\n```") == [("bash", [("command", "ls")])]
    assert parsed("```\nls\n```\n") == [("bash", [("command", "ls")])]
    assert parsed("```python\nx\n```") == [("python", [("command", "x")])]
    assert parsed("```mswea_bash_command\nls") == [("bash", [("command", "ls")])]
    assert parsed("```bash\nls\n```\n\n```bash\npwd\n```") == [
        ("bash", [("command", "ls")]),
        ("bash", [("command", "pwd")]),
    ]


def test_fences_inside_a_fenced_command_stay_in_it():
    command = "cat > x.md <<'EOF'\n```python\nx\n```\nand\n```\ny\n```\nEOF"
    assert parsed(f"```bash\n{command}\n```") == [("bash", [("command", command)])]


def test_anything_else_is_one_shell_command():
    for text in ("ls -la", "grep '<function=bash>' x", "cat <<EOF\n```\nEOF", "echo '</function>'"):
        assert parsed(text) == [("bash", [("command", text)])]
    assert parse_action("") == []
    assert parse_action(" \n\t") == []


NAMES = st.text("abcdefgh_", min_size=1, max_size=8)
VALUES = st.text(st.sampled_from("ab<>/=\n {}\"'`#") | st.characters(), max_size=40).filter(
    lambda v: "parameter" not in v and not v.startswith(("\n", "\r\n")) and not v.endswith("\n")
)


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3))
def test_what_the_readers_render_is_parsed_back(calls):
    text = "\n".join(render_call(ToolCall(name, arguments)) for name, arguments in calls)
    assert parsed(text) == [(name, list(arguments.items())) for name, arguments in calls]


@pytest.mark.parametrize(
    "name",
    ["swesmith_xml_messages.jsonl", "openhands_events_output.jsonl", "sweagent_function_calling_marshmallow-1867.traj"],
)
def test_every_action_of_the_real_files_is_calls_and_white_space(shared, name):
    actions = [
        segment.text
        for trajectory in load(str(shared / name))
        for message in trajectory.messages
        for segment in message.segments
        if segment.kind is Kind.ACTION
    ]
    assert len(actions) > 5
    for text in actions:
        calls = parse_action(text)
        assert all(call.form == "function" and call.name for call in calls)
        covered = {i for call in calls for i in range(call.start, call.end)}
        assert not "".join(c for i, c in enumerate(text) if i not in covered).strip()
