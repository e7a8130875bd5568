"""What holds of every registered form of call; a new one needs an example here, a test fails until it has one.

Where a call is and what it says agree, labels cover the text, filters keep the command, and any text, however hostile,
is read in linear time.
"""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.actions.grammar import CALL_FORMS, GUESSED, find_calls, guess_form, parse_action
from hesnr_tasks.filters import FILTERS, filter_bits
from hesnr_tasks.formats.base import split_calls
from hesnr_tasks.trajectory import Kind

COMMAND = "grep -n 'x' a.py | head"
ARGUMENTS = f'{{"command": "{COMMAND}"}}'
XML = f"<parameter=command>{COMMAND}</parameter>\n"
INVOKE = f'<invoke name="bash">\n<parameter name="command">{COMMAND}</parameter>\n</invoke>'
DEEPSEEK = (
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="bash">\n<｜DSML｜parameter name="command" string="true">'
    f"{COMMAND}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>"
)
EXAMPLES = {  # form → calls with COMMAND for a value
    "function": [f"<function=bash>\n{XML}</function>", f"<function=bash>\n{XML}", INVOKE, DEEPSEEK],
    "tool_call": [
        f'<tool_call>\n{{"name": "bash", "arguments": {ARGUMENTS}}}\n</tool_call>',
        f"<tool_call>\n<function=bash>\n{XML}</function>\n</tool_call>",
        f"<seed:tool_call>\n<function=bash>\n{XML}</function>\n</seed:tool_call>",
        f'<TOOLCALL>[{{"name": "bash", "arguments": {ARGUMENTS}}}]</TOOLCALL>',
        f"<tool_call>\n{{'name': 'bash', 'arguments': {{'command': \"{COMMAND}\"}}}}\n</tool_call>",
        f"<tool_call>bash\n<arg_key>command</arg_key>\n<arg_value>{COMMAND}</arg_value>\n</tool_call>",
        f'<|tool_call|>[{{"name": "bash", "arguments": {ARGUMENTS}}}]<|/tool_call|>',
        f'<|START_ACTION|>[{{"tool_name": "bash", "parameters": {ARGUMENTS}}}]<|END_ACTION|>',
        f"<|tool_call_begin|>functions.bash:0<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|>",
        f"<｜tool▁call▁begin｜>bash<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>",
        f"<|channel|>commentary to=functions.bash <|constrain|>json<|message|>{ARGUMENTS}<|call|>",
        f"[TOOL_CALLS]bash{ARGUMENTS}",
        f'[TOOL_CALLS] [{{"name": "bash", "arguments": {ARGUMENTS}}}]',
    ],
    "keystrokes": [
        f"<commands>\n<keystrokes>{COMMAND}\n</keystrokes>\n</commands>\n<task_complete>false</task_complete>\n</response>"
    ],
    "execute": [f"<execute_bash>\n{COMMAND}\n</execute_bash>", f"<execute_bash>\n{COMMAND}"],
    "command": [f"<command>\n{COMMAND}\n</command>"],
    "mswea": [
        f"```mswea_bash_command\n{COMMAND}\n```",
        f"<mswea_bash_command>{COMMAND}</mswea_bash_command>",
    ],
    "json": [
        f'{{"command": "{COMMAND}"}}',
        f'{{"name": "bash", "arguments": {ARGUMENTS}}}',
        f'```json\n{{"name": "bash", "arguments": {ARGUMENTS}}}\n```',
    ],
    "bash": [f"```bash\n{COMMAND}\n```"],
    "fence": [f"```\n{COMMAND}\n```", f"```sh\n{COMMAND}\n```"],
    "whole": [COMMAND],
    "none": [],
}
CASES = [(form, example) for form, examples in EXAMPLES.items() for example in examples]
every_call = pytest.mark.parametrize(("form", "call"), CASES)
PIECES = (
    *("<function=", "<function=bash>", "</function>", "<parameter=", "<parameter=k>", "</parameter>", "<parameter>"),
    *("<tool_call>", "</tool_call>", "<command>", "</command>", "<think>", "</think>", "```", "```bash\n", "\n```\n"),
    *("```mswea_bash_command\n", "<mswea_bash_command>", "</mswea_bash_command>", '{"thought": "', '", "command": {}}'),
    *(
        "<commands>",
        "<keystrokes>",
        "</keystrokes>",
        "</commands>",
        "<execute_bash>",
        "</execute_bash>",
        "[TOOL_CALLS]",
    ),
    *("<|tool_call_begin|>f:0<|tool_call_argument_begin|>", "<|tool_call_end|>", "<arg_key>k</arg_key>", "<arg_value>"),
    *(
        "\n",
        " ",
        "\t\r\n",
        "x",
        "\\",
        '"',
        "'",
        "\u2028",
        "\x00",
        "é",
        "😀",
        "{",
        "}",
        "[",
        "]",
        ">",
        "<",
        "=",
        ":",
        ",",
    ),
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text()
LONG = (*PIECES, "<function=a><parameter=x></parameter>z", "<function=a>\n<parameter=k>", '\\"', '"thought": "')


def actions(segments):
    return [segment.text for segment in segments if segment.kind is Kind.ACTION]


def test_every_form_has_an_example():
    assert list(EXAMPLES) == list(CALL_FORMS)
    assert set(GUESSED) < set(CALL_FORMS)


@every_call
@pytest.mark.parametrize("after", ["", "\n\nThat should do."])
def test_a_call_in_a_message_is_its_action_with_the_white_space_around_it(form, call, after):
    if form == "whole" or (after and not call.rstrip().endswith((">", "```", "}", "]"))):
        after = ""  # a call that is not closed reaches to the end
    before = "" if form == "whole" else "I could use <tool_call> or <function=bash>.\n\n"
    segments = split_calls(before + call + after, form)
    assert "".join(segment.text for segment in segments) == before + call + after
    assert [action.strip() for action in actions(segments)] == [call.strip()]


@every_call
def test_the_form_of_most_texts_is_guessed(form, call):
    if form in GUESSED:
        guess = guess_form([f"Look.\n\n{call}", f"Again.\n\n{call}", "I am done."])
        assert split_calls(f"Look.\n\n{call}", guess) == split_calls(f"Look.\n\n{call}", form)


@every_call
def test_what_is_found_in_a_message_is_parsed_as_it_says(form, call):
    (action,) = actions(split_calls(call if form == "whole" else f"Look.\n\n{call}", form))
    (parsed,) = parse_action(action)
    (value,) = parsed.parameters
    assert parsed.values(action) == {value.name: COMMAND}
    assert parsed.name == ("" if call == EXAMPLES["json"][0] else "bash")
    assert not action[: parsed.start].strip()
    assert not action[parsed.end :].strip()
    assert action[value.value_start : value.value_end] == COMMAND
    spans = sorted([*parsed.tags, *parsed.fences, (value.value_start, value.value_end)])
    outside = [action[a:b] for (_, a), (b, _) in itertools.pairwise([(0, 0), *spans, (len(action), 0)])]
    assert "".join(outside).strip() in ("", "false")  # the text of Terminus-2's <task_complete>


@every_call
def test_filters_drop_the_syntax_of_a_call_and_keep_its_command(form, call):
    bits = filter_bits(call)
    start = call.index(COMMAND)
    assert not any(bits[start + i] for i, character in enumerate(COMMAND) if not character.isspace())
    around = call[:start] + call[start + len(COMMAND) :]
    if form not in ("whole", "keystrokes") and around.strip():
        dropped = 1 << list(FILTERS).index("xml") | 1 << list(FILTERS).index("format")
        rest = [i for i in range(len(call)) if not start <= i < start + len(COMMAND) and call[i].isalnum()]
        assert all(bits[i] & dropped for i in rest)


@every_call
def test_a_call_that_is_cut_off_anywhere_keeps_its_characters(form, call):
    for end in range(len(call)):
        text = f"Look.\n\n{call[:end]}"
        assert "".join(segment.text for segment in split_calls(text, form)) == text
        check_spans(call[:end])


def check_spans(text):
    position = 0
    for call in parse_action(text):
        assert position <= call.start <= call.end <= len(text)
        for start, end in sorted([*call.tags, *call.fences, *((p.value_start, p.value_end) for p in call.parameters)]):
            assert position <= start <= end <= call.end
            position = end
        position = call.end
        assert all(isinstance(value, str) for value in call.values(text).values())


@settings(max_examples=300)
@given(text=TEXTS)
def test_any_text_is_split_without_loss_in_every_form(text):
    for form in CALL_FORMS:
        segments = split_calls(text, form)
        assert "".join(segment.text for segment in segments) == text
        assert all(segment.text and segment.kind in (Kind.THOUGHT, Kind.ACTION) for segment in segments)
        assert all(a.kind is not b.kind for a, b in itertools.pairwise(segments))


@settings(max_examples=300)
@given(text=TEXTS)
def test_any_text_is_parsed_and_spans_are_in_order_and_apart(text):
    check_spans(text)
    assert all(0 <= call.start <= call.end <= len(text) for call in find_calls(text))


@pytest.mark.parametrize("piece", LONG)
def test_long_runs_of_any_piece_take_linear_time(piece):
    start = time.process_time()
    for form in CALL_FORMS:
        split_calls('{"command": 1, ' + piece * (100_000 // len(piece)), form)
    assert time.process_time() - start < 5  # where time grows with the square of the length, minutes
