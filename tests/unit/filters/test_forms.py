"""The same action in every form of a call keeps the same characters, whatever the language; escapes apart."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.actions.grammar import find_calls, parse_action
from hesnr_tasks.filters import filter_bits


def once(value):
    return json.dumps(value, ensure_ascii=False)[1:-1]


def twice(value):
    return once(once(value))


def tags(opening, parameter, closing):
    def form(tool, values):
        inner = "".join(parameter.replace("KEY", key).replace("VALUE", value) for key, value in values.items())
        return opening.replace("NAME", tool) + inner + closing

    return form


def around(template, encode=lambda arguments: arguments):
    """JSON arguments at ARGUMENTS of a template."""

    def form(tool, values):
        return template.replace("NAME", tool).replace("ARGUMENTS", encode(json.dumps(values, ensure_ascii=False)))

    return form


def beside(tool, values):
    return f"<tool_call>\n{json.dumps({'name': tool, **values}, indent=1, ensure_ascii=False)}\n</tool_call>"


# form: how it is written, and how often its values are inside a string of JSON
FORMS = {
    "xml": (tags("<function=NAME>\n", "<parameter=KEY>VALUE</parameter>\n", "</function>"), 0),
    "xml on lines": (tags("<function=NAME>\n", "<parameter=KEY>\nVALUE\n</parameter>\n", "</function>"), 0),
    "wrapped": (
        tags("<tool_call>\n<function=NAME>\n", "<parameter=KEY>VALUE</parameter>\n", "</function>\n</tool_call>"),
        0,
    ),
    "invoke": (tags('<invoke name="NAME">\n', '<parameter name="KEY">VALUE</parameter>\n', "</invoke>"), 0),
    "arg_key": (
        tags("<tool_call>NAME\n", "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n", "</tool_call>"),
        0,
    ),
    "tool_call": (around('<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>'), 1),
    "name last": (around('<tool_call>{"arguments": ARGUMENTS, "name": "NAME"}</tool_call>'), 1),
    "list": (around('<tool_call>\n[{"name": "NAME", "arguments": ARGUMENTS}]\n</tool_call>'), 1),
    "list of arguments": (around('<tool_call>\n{"name": "NAME", "arguments": [ARGUMENTS]}\n</tool_call>'), 1),
    "string": (around('<tool_call>\n{"name": "NAME", "arguments": "ARGUMENTS"}\n</tool_call>', once), 2),
    "openai": (around('{"type": "function", "function": {"name": "NAME", "arguments": "ARGUMENTS"}}', once), 2),
    "beside": (beside, 1),
    "swe-agent": (around('{"thought": "", "command": {"name": "NAME", "arguments": ARGUMENTS}}'), 1),
    "after a thought": (around('", "command": {"name": "NAME", "arguments": ARGUMENTS}}'), 1),
    "kimi": (
        around("<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>ARGUMENTS<|tool_call_end|>"),
        1,
    ),
    "deepseek": (around("<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>"), 1),
    "harmony": (around("<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGUMENTS<|call|>"), 1),
    "mistral": (around("[TOOL_CALLS]NAMEARGUMENTS"), 1),
    "raw": (around("<function=NAME>\nARGUMENTS\n</function>"), 1),
    "seed": (
        tags(
            "<seed:tool_call>\n<function=NAME>\n",
            "<parameter=KEY>VALUE</parameter>\n",
            "</function>\n</seed:tool_call>",
        ),
        0,
    ),
    "dsml": (
        tags(
            '<｜DSML｜function_calls>\n<｜DSML｜invoke name="NAME">\n',
            '<｜DSML｜parameter name="KEY" string="true">VALUE</｜DSML｜parameter>\n',
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        ),
        0,
    ),
    "fenced tags": (
        tags("```xml\n<function=NAME>\n", "<parameter=KEY>VALUE</parameter>\n", "</function>\n```"),
        0,
    ),
    "fence in tags": (
        around('<tool_call>\n```json\n{"name": "NAME", "arguments": ARGUMENTS}\n```\n</tool_call>'),
        1,
    ),
    "braces": (around('<tool_call>\n{{"name": "NAME", "arguments": ARGUMENTS}}\n</tool_call>'), 1),
    "nemotron": (around('<TOOLCALL>[{"name": "NAME", "arguments": ARGUMENTS}]</TOOLCALL>'), 1),
    "jamba": (around('<tool_calls>[{"name": "NAME", "arguments": ARGUMENTS}]</tool_calls>'), 1),
    "phi": (around('<|tool_call|>[{"name": "NAME", "arguments": ARGUMENTS}]<|/tool_call|>'), 1),
    "command": (around('<|START_ACTION|>[{"tool_name": "NAME", "parameters": ARGUMENTS}]<|END_ACTION|>'), 1),
    "internlm": (around('<|action_start|><|plugin|>\n{"name": "NAME", "parameters": ARGUMENTS}<|action_end|>'), 1),
    "apertus": (around('<|tools_prefix|>[{"NAME": ARGUMENTS}]<|tools_suffix|>'), 1),
    "mistral id": (around("[TOOL_CALLS]NAME[CALL_ID]a1b2c3d4e[ARGS]ARGUMENTS</s>"), 1),
    "end of turn": (around('<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call><|im_end|>'), 1),
    "json fence": (around('```json\n{"name": "NAME", "arguments": ARGUMENTS}\n```'), 1),
}
CODE = ('x = "# // no"', "f(a, 'b')", "y = [1, 2]", 'print("é 😀")', "a\\nb", "z = {}")
LANGUAGES = {  # tool, the parameters before the code, the code's own, and how a comment is written
    "shell": ("bash", {}, "command", "# c"),
    "python": ("python", {}, "code", "# it is"),
    "python file": ("create", {"path": "a.py"}, "file_text", "# c"),
    "javascript": ("str_replace_editor", {"command": "insert", "path": "a.js"}, "new_str", "// c"),
    "ruby": ("write_file", {"path": "a.rb"}, "content", "# c"),
    "java": ("edit", {"file_path": "A.java"}, "old_string", "/* c */"),
    "sql": ("edit", {"path": "a.sql"}, "new_string", "-- c"),
}
LINES = st.lists(st.tuples(st.sampled_from(CODE), st.booleans()), min_size=1, max_size=5)


def squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("language", LANGUAGES)
@given(lines=LINES)
@settings(max_examples=8)
def test_every_form_keeps_the_same(form, language, lines):
    tool, before, key, comment = LANGUAGES[language]
    write, level = FORMS[form]
    value = "\n".join(code + f" {comment}" * commented for code, commented in lines)
    text = write(tool, {**before, key: value})
    kept = "".join([*before.values(), *(code for code, _ in lines)])
    expected = (squeezed, lambda v: once(squeezed(v)), lambda v: twice(squeezed(v)))[level](kept)
    left = "".join(c for c, bits in zip(text, filter_bits(text), strict=True) if not bits)
    assert left == expected
    (call,) = parse_action(text)[-1:]
    assert call.values(text)[key] == value
    if form not in ("swe-agent", "after a thought", "openai", "json fence", "fenced tags"):
        message = f"I use <function={tool}> or a <tool_call>.\n\n{text}\n"
        (inside,) = find_calls(message)
        assert (inside.name, inside.values(message)[key]) == (tool, value)


def test_a_tag_that_is_only_spoken_of_begins_no_call():
    for text in (
        "I'll use <function=bash> to look around.",
        "The format is `<function=bash><parameter=command>ls</parameter></function>`.",
        "A <tool_call> comes next, then </tool_call>.",
        "<function=bash> is what I need.",
    ):
        assert find_calls(text) == []
