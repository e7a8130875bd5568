"""`render=native`: every leaf keeps its label in real chat templates, and what cannot be proved is refused."""

import json
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from benchmarks import chat_templates
from benchmarks.chat_templates import SIGNS
from hesnr_tasks.actions import ToolCall, render_call
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.filters import FILTERS, char_codes
from hesnr_tasks.formats import load
from hesnr_tasks.formats.base import split_calls
from hesnr_tasks.testing import byte_tokenizer
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory import chat_templates as chat_templates_module
from hesnr_tasks.trajectory.chat_messages import conversations, native_calls
from hesnr_tasks.trajectory.chat_rendering import NativeTemplate, steady
from hesnr_tasks.trajectory.chat_templates import TemplateLimitError, _peak_memory, compiled, has_power, run_template
from hesnr_tasks.trajectory.rendering import action_code, kind_code, label_mask, render

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
KEPT = label_mask((Kind.ACTION,), tuple(FILTERS), tuple(FILTERS))


def tokenizer(source):
    result = byte_tokenizer()
    result.bos_token, result.chat_template = "<s>", source
    return result


@cache
def native_template(path, calls="stored"):
    """Made once: what it does with reasoning and calls is measured when it is first used."""
    return NativeTemplate(tokenizer(path.read_text()), calls=calls)


def turn(thought, *calls):
    action = "\n\n" + "\n".join(render_call(ToolCall(name, arguments)) for name, arguments in calls) if calls else ""
    segments = (Segment(Kind.THOUGHT, thought), Segment(Kind.ACTION, action))
    return Message("assistant", tuple(s for s in segments if s.text))


def message_of(role, kind, text):
    return Message(role, (Segment(kind, text),))


def run(*turns, reasoning=""):
    messages = [message_of("system", Kind.CONTEXT, "甲 be brief"), message_of("user", Kind.CONTEXT, "甲\n fix it ")]
    for thought, *calls in turns:
        messages.append(turn(reasoning + thought, *calls))
        messages += [message_of("tool", Kind.OBSERVATION, f'乙"{i}"\n') for i, _ in enumerate(calls)]
    return Trajectory("run", tuple(messages), fidelity=Fidelity.RENDERED)


EDIT = (
    "edit",
    {
        "path": "丁/a.py",
        "old_str": ' 丁 = "x"\n\t丁 # no\n',
        "view_range": [1, 20],
        "deep": {"k": ["丁"], "b": {"key_1": 1, "a": [], "z": "丁"}, "e": {}},
    },
)
BASH = ("bash", {"command": "echo '丁' | sed 's/\\n/丁/' <|im_end|>"})
SUBMIT = ("submit", {})


def kept_action(rendered):
    """The characters of the actions that count, as they stand in the trajectory."""
    counts = (np.uint64(1) << char_codes(rendered).astype(np.uint64)) & KEPT != 0
    if rendered.sources is None:
        return "".join(c for c, kept in zip(rendered.text, counts, strict=True) if kept)
    kept = (
        "".join(s.action[i] for i in np.unique(s.action_index[counts[s.text_index]]).tolist()) for s in rendered.sources
    )
    return "".join(kept)


def check(trajectory, rendered):
    """Labels against signs that stand for one kind each: no sign is lost or has another kind."""
    codes = char_codes(rendered)
    kinds = np.empty(len(rendered.text), object)
    end = 0
    for span in rendered.spans:
        assert span.start == end < span.end
        end = span.end
        kinds[span.start : span.end] = span.kind
        assert not (span.control and set(SIGNS.values()) & set(rendered.text[span.start : span.end]))
    assert end == len(rendered.text)
    stored = "".join(m.text for m in trajectory.messages)
    for kind, sign in SIGNS.items():
        places = [i for i, c in enumerate(rendered.text) if c == sign]
        assert all(kinds[i] is kind for i in places)
        if kind is not Kind.THOUGHT:
            assert len(places) == stored.count(sign)
    counted = {rendered.text[i] for i in np.flatnonzero(codes == kind_code(Kind.ACTION))}
    assert not counted & {"甲", "乙", "丙"}


RUNS = {
    "calls": run(("丙 look", BASH), ("丙", EDIT), ("", SUBMIT)),
    "parallel": run(("丙 look", BASH, EDIT), ("丙 done",)),
    "reasoning": run(("丙 look", BASH), ("丙", EDIT), ("丙 done",), reasoning="<think>\n丙 why\n\n</think>\n\n"),
    "text": Trajectory(
        "text",
        (
            message_of("user", Kind.CONTEXT, "甲"),
            Message("assistant", (Segment(Kind.THOUGHT, "丙\n"), Segment(Kind.ACTION, "\n```bash\nls 丁\n```"))),
            message_of("user", Kind.OBSERVATION, "乙"),
        ),
    ),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_template_keeps_every_label(path, name):
    trajectory = RUNS[name]
    rendered = native_template(path).render(trajectory)
    check(trajectory, rendered)
    extra = {"'", '"', "[", "]", "{", "}", ",", ":"}  # a template may write lists and objects in its own way
    same = [[c for c in kept_action(r) if c not in extra] for r in (rendered, render(trajectory, "chatml"))]
    assert same[0] == same[1]


LEAF = st.text(st.sampled_from("丁 \n\t\"'\\{}<>&/é😀x"), min_size=1, max_size=12)
NAMES = ["qwen2_5", "qwen3", "llama3_1", "gptoss", "deepseekv3", "glm4moe", "gemma4_v5", "lfm2_v2", "qwen3_6"]

SOME = [path for path in TEMPLATES if path.stem in NAMES]


@settings(max_examples=25)
@given(path=st.sampled_from(SOME), command=LEAF, text=LEAF, number=st.integers())
def test_any_value_in_any_template(path, command, text, number):
    calls = [("bash", {"command": command}), ("edit", {"path": "丁", "new_str": text, "line": number})]
    trajectory = run(("丙", calls[0]), ("丙", calls[1]), ("丙",))
    rendered = native_template(path).render(trajectory)
    check(trajectory, rendered)
    assert kept_action(rendered) == kept_action(render(trajectory, "chatml"))


@pytest.mark.parametrize("text", ["丙 done", " \n"])
def test_a_run_without_actions_has_labels(text):
    trajectory = Trajectory(
        "idle", (message_of("user", Kind.CONTEXT, "甲"), message_of("assistant", Kind.THOUGHT, text))
    )
    rendered = NativeTemplate(tokenizer((TEMPLATES[0].parent / "qwen3.jinja").read_text())).render(trajectory)
    check(trajectory, rendered)
    assert kept_action(rendered) == ""


def test_call_syntax_is_dropped_by_the_filter_xml_alone():
    rendered = NativeTemplate(tokenizer((TEMPLATES[0].parent / "qwen3.jinja").read_text())).render(RUNS["calls"])
    codes = char_codes(rendered)
    only_xml = action_code(np.array([1 << list(FILTERS).index("xml")], np.uint8))[0]
    start = rendered.text.index('<tool_call>\n{"name": "bash", "arguments": {"command": "echo')
    value = rendered.text.index("echo", start)
    assert (codes[start:value] == only_xml).all()
    end = rendered.text.index("</tool_call>", value) + len("</tool_call>")
    assert (codes[end - len('"}}\n</tool_call>') : end] == only_xml).all()
    assert codes[end] == kind_code(Kind.SCAFFOLD) == codes[rendered.text.index("<|im_start|>assistant")]


def test_a_control_token_in_a_value_is_text():
    rendered = NativeTemplate(tokenizer((TEMPLATES[0].parent / "qwen3.jinja").read_text())).render(RUNS["calls"])
    place = rendered.text.index("丁/' <|im_end|>") + 3
    assert next(s for s in rendered.spans if s.start <= place < s.end).control is False


def test_reasoning_is_kept_by_a_switch_counted_or_refused():
    source = (TEMPLATES[0].parent / "nemotron_3_nano.jinja").read_text()
    kept = NativeTemplate(tokenizer(source))
    rendered = kept.render(RUNS["reasoning"])
    assert "why" in rendered.text
    assert rendered.passed.dropped == 0
    assert not kept.dropped_text([rendered.passed])
    assert kept.describe([rendered.passed])["switches"] == {"truncate_history_thinking": False}
    source = (TEMPLATES[0].parent / "qwen3.jinja").read_text()
    counting = NativeTemplate(tokenizer(source))
    trajectory = run(("丙", BASH), ("丙",), reasoning="<think>\n丙 why\n</think>\n\n")
    trajectory = Trajectory(
        "r", (*trajectory.messages, message_of("user", Kind.CONTEXT, "甲")), fidelity=Fidelity.RENDERED
    )
    passed = counting.render(trajectory).passed
    assert passed.dropped == 2 * len("丙 why")
    described = counting.describe([passed, passed])
    assert (described["thoughts_dropped"], described["thoughts_total"]) == (2 * passed.dropped, 2 * passed.thoughts)
    assert "drops" in counting.dropped_text([passed])
    with pytest.raises(DataError, match=r"drops 10 of \d+ characters of thought"):
        NativeTemplate(tokenizer(source), "error").render(trajectory)


PLAIN = "{% for m in messages %}<{{ m.role }}>{{ CONTENT }}{% endfor %}"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("m.content | upper", "rewrites message"),
        ("m.content ~ m.content", "repeats message 1, content"),
        ("'x'", "drops message"),
        ("raise_exception('not today')", "not today"),
        ("m.content ~ (range(1000) | random)", "makes random choices"),
        ("m.content ~ lipsum(1)", "makes random choices"),
    ],
)
def test_what_cannot_be_proved_is_refused(content, match):
    native = NativeTemplate(tokenizer(PLAIN.replace("CONTENT", content)))
    with pytest.raises(DataError, match=match) as error:
        native.render(RUNS["calls"])
    assert "render=chatml" in str(error.value)
    assert "'run'" in str(error.value)


def test_messages_in_another_order_are_refused():
    native = NativeTemplate(tokenizer("{% for m in messages | reverse %}{{ m.content }}{% endfor %}"))
    with pytest.raises(DataError, match="reorders the messages"):
        native.render(RUNS["calls"])


def test_no_template_is_an_error():
    with pytest.raises(SettingsError, match="has no chat template"):
        NativeTemplate(tokenizer(None)).render(RUNS["calls"])
    with pytest.raises(SettingsError, match="tokenizer"):
        render(RUNS["calls"], "native")


def test_the_date_is_fixed():
    source = PLAIN.replace("CONTENT", "strftime_now('%Y-%m-%d') ~ m.content")
    assert "2025-01-01" in NativeTemplate(tokenizer(source)).render(RUNS["calls"]).text


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_texts_are_those_of_the_tokenizer_s_own_method(path):
    byte = tokenizer(path.read_text().replace("strftime_now(", "str("))  # the date apart
    byte_str = "{% macro str(format) %}{{ format }}{% endmacro %}"
    byte.chat_template = byte_str + byte.chat_template if "str(" in byte.chat_template else byte.chat_template
    native = NativeTemplate(byte)
    variant = native._variants[0]
    for trajectory in RUNS.values():
        calls = native_calls(trajectory)
        conversation = conversations(trajectory, calls, native._reasoning)(variant)
        messages, tools = conversation.chat("value", variant), conversation.tools()
        try:
            ours = native.text(messages, tools, **native._switches)
        except DataError:
            continue
        theirs = byte.apply_chat_template(messages, tools=tools, tokenize=False, **native._switches)
        assert ours == theirs


IN_TEXT = {
    "fence": "丙 look\n\n```bash\nls '丁' | wc -l\n```",
    "function": "丙 look\n\n<function=edit>\n<parameter=path>丁.py</parameter>\n"
    "<parameter=new_str>\n  丁 = 1  # no\n</parameter>\n</function>",
    "json": "丙 look\n<tool_call>\n"
    '{"name": "bash", "arguments": {"command": "echo \\"丁\\"\\n", "n": [1, 2]}}\n</tool_call>',
}


def in_text(text, form):
    segments = split_calls(text, form)
    messages = [
        message_of("user", Kind.CONTEXT, "甲"),
        Message("assistant", segments),
        message_of("user", Kind.OBSERVATION, "乙"),
    ]
    return Trajectory("text", tuple(messages))


@pytest.mark.parametrize("form", IN_TEXT)
@pytest.mark.parametrize("path", SOME, ids=lambda path: path.stem)
def test_calls_in_text_become_structures_where_asked(path, form):
    trajectory = in_text(IN_TEXT[form], {"fence": "bash", "json": "tool_call"}.get(form, form))
    stored = native_template(path).render(trajectory)
    rendered = native_template(path, "native").render(trajectory)
    assert IN_TEXT[form].partition("\n\n")[2] in stored.text
    assert rendered.text != stored.text
    check(trajectory, rendered)
    plain = kept_action(render(trajectory, "chatml"))
    extra = set("\"'[]{},: ")
    assert [c for c in kept_action(rendered) if c not in extra] == [c for c in plain if c not in extra]
    assert kept_action(stored) == plain == kept_action(render(trajectory, "transcript"))


def test_text_beside_calls_keeps_them_as_text():
    trajectory = in_text("丙 look\n\n```bash\nls 丁\n``` and then", "bash")
    assert not any(native_calls(trajectory, "native"))


def test_schemas_are_those_of_the_trajectory():
    stored = [
        {"type": "function", "function": {"name": "bash", "description": "runs 5", "parameters": {"type": "object"}}},
        {"name": "edit", "description": "edits 6", "input_schema": {"type": "object"}},
        {"name": "no name, though"},
        "bash",
    ]
    trajectory = replace(RUNS["calls"], meta={"tools": stored})
    text = NativeTemplate(tokenizer((TEMPLATES[0].parent / "qwen3.jinja").read_text())).render(trajectory).text
    assert "runs 5" in text
    assert "edits 6" in text
    assert '"name": "submit"' in text  # called, without a schema
    assert "no name" not in text


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        (None, '{"text": 42}'),
        ({"type": "string"}, '{"text": "42"}'),
        ({"type": ["string", "null"]}, '{"text": "42"}'),
        ({"type": "integer"}, '{"text": 42}'),
        ("string", '{"text": 42}'),
    ],
)
def test_digits_are_text_where_a_schema_says_so(schema, written):
    properties = {} if schema is None else {"text": schema}
    tool = {"name": "answer", "parameters": {"type": "object", "properties": properties}}
    trajectory = replace(run(("丙", ("answer", {"text": "42"}))), meta={"tools": [tool]})
    rendered = NativeTemplate(tokenizer((TEMPLATES[0].parent / "qwen3.jinja").read_text())).render(trajectory)
    assert written in rendered.text
    assert kept_action(rendered) == kept_action(render(trajectory, "chatml")) == "42"


@pytest.mark.parametrize("place", [("tools",), ("metadata", "tools"), ("agent", "tool_definitions")])
def test_schemas_are_read_from_records(tmp_path, place):
    tools = [{"type": "function", "function": {"name": "bash", "description": "runs 5", "parameters": {}}}]
    call = {"id": "1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
    messages = [
        {"role": "user", "content": "fix"},
        {"role": "assistant", "content": "look", "tool_calls": [call]},
        {"role": "tool", "content": "a.py", "tool_call_id": "1"},
    ]
    record = {"messages": messages}
    inner = record
    for step in place[:-1]:
        inner = inner.setdefault(step, {})
    inner[place[-1]] = json.dumps(tools) if place == ("tools",) else tools
    (tmp_path / "run.jsonl").write_text(json.dumps(record))
    (trajectory,) = load([str(tmp_path)])
    assert [tool["function"]["description"] for tool in trajectory.meta["tools"]] == ["runs 5"]


class Customised:
    """A tokenizer whose method does more than run its template: here, it counts."""

    chat_template, name_or_path = PLAIN.replace("CONTENT", "m.content"), "counting"

    def __init__(self):
        self.calls = 0

    def apply_chat_template(self, messages, **kwargs):
        self.calls += 1
        return f"[{self.calls}]" + "".join(m["content"] for m in messages)


def test_a_tokenizer_with_a_state_is_refused():
    with pytest.raises(DataError, match=r"another text each time.*render=chatml"):
        NativeTemplate(Customised()).render(RUNS["text"])


@pytest.mark.parametrize("kwargs", [{"messages": []}, {"tools": []}, {"add_generation_prompt": True}])
def test_arguments_that_are_not_the_template_s_are_refused(kwargs):
    source = (TEMPLATES[0].parent / "qwen3.jinja").read_text()
    with pytest.raises(SettingsError, match=f"template_kwargs cannot set {next(iter(kwargs))}"):
        NativeTemplate(tokenizer(source), kwargs=kwargs)


@pytest.mark.parametrize(
    "attack", ["().__class__.__mro__", "m.update({'content': 'x'})", "namespace(a=1).__class__.mro()"]
)
def test_templates_run_in_a_sandbox(attack):
    native = NativeTemplate(tokenizer(PLAIN.replace("CONTENT", f"{attack} ~ m.content")))
    with pytest.raises(DataError, match=r"unsafe|SecurityError"):
        native.render(RUNS["text"])


@pytest.fixture(scope="module")
def real_cases(shared):
    """Real trajectories with and without reasoning, with their calls as stored and as structures; the longest aside."""
    return [c for c in chat_templates.cases(str(shared)) if sum(len(m.text) for m in c.trajectory.messages) < 100_000]


@pytest.mark.parametrize("number", range(len(TEMPLATES)), ids=[path.stem for path in TEMPLATES])
def test_real_trajectories_keep_every_label(real_cases, number):
    """One of the cases for each template, in turn; benchmarks/chat_templates.py does all of them."""
    some = [real_cases[5 * number % len(real_cases)]]
    result = chat_templates.tally(TEMPLATES[number].read_text(), some)
    assert (result.refused, result.differing, result.rendered) == ([], [], len(some))


def test_the_check_of_labels_sees_a_wrong_one():
    trajectory = chat_templates.with_signs(in_text("o look\n\n```bash\necho o\n```", "bash"))
    rendered = NativeTemplate(tokenizer((TEMPLATES[0].parent / "qwen3.jinja").read_text())).render(trajectory)
    assert chat_templates.wrong_labels(trajectory, rendered) == []
    for index, span in enumerate(rendered.spans):
        other = Kind.OBSERVATION if span.kind is not Kind.OBSERVATION else Kind.THOUGHT
        if set(rendered.text[span.start : span.end]) & {"o", *SIGNS.values()}:
            spans = (*rendered.spans[:index], span._replace(kind=other), *rendered.spans[index + 1 :])
            assert chat_templates.wrong_labels(trajectory, replace(rendered, spans=spans))


BODY = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
FOR_EVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GIANT = "giant text in a single step"
REPEATED = "{% set x = [['x' * 9000000]] * 99 %}"
NESTED = "{% set n = namespace(x=['x']) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
HOSTILE = {
    "a loop": (FOR_EVER, "0 seconds"),
    "a recursion": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "0 seconds",
    ),
    "a constant": ("{{ 'x' * 10 ** 11 }}", "power"),
    "a long constant": ("{{ 'x' * 100000000 }}", GIANT),
    "too long a constant": ("{{ 'x' * 1000000000000000 }}", GIANT),
    "doubling": (
        "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        GIANT,
    ),
    "a filter": ("{{ ('x' * 10000)|replace('x', 'y' * 10000) }}", GIANT),
    "a method": ("{{ ('x' * 10000).replace('x', 'y' * 10000) }}", GIANT),
    "a width": ("{{ '%100000000d'|format(1) }}", GIANT),
    "a width of an operator": ("{{ '%*d' % (100000000, 1) }}", GIANT),
    "a width of a method": ("{{ '{:{}}'.format('x', 100000000) }}", GIANT),
    "a centred text": ("{{ 'x'.center(100000000) }}{{ 'x'|center(100000000) }}", GIANT),
    "wide tabs": ("{{ ('\\t' * 9000000).expandtabs(9999)|length }}", GIANT),
    "a wide indent": ("{{ ('\\n' * 9000000)|indent('x' * 9000)|length }}", GIANT),
    "wide wraps": ("{{ ('x' * 900000)|wordwrap(1, wrapstring='x' * 9000)|length }}", GIANT),
    "a wide date": ("{{ strftime_now('%900000000d')|length }}", GIANT),
    "a long date": ("{{ strftime_now('%c' * 8000000)|length }}", GIANT),
    "joined texts": ("{{ (['x' * 1000] * 100000)|join }}", GIANT),
    "powers": ("{{ 9 ** 9 ** 9 }}", "power"),
    "much text": ("{% for i in range(700) %}{{ 'x' * 100000 }}{% endfor %}", GIANT),
    "lists in lists": (NESTED + "{{ n.x }}", GIANT),
    "lists in a text": (REPEATED + "{{ 'a' ~ x }}", GIANT),
    "lists as JSON": (REPEATED + "{{ x|tojson }}", GIANT),
    "lists as a text": (REPEATED + "{{ x|string|length }}", GIANT),
    "lists in capitals": (REPEATED + "{{ x|upper|length }}", GIANT),
    "lists joined": (REPEATED + "{{ x|join|length }}", GIANT),
    "lists in a pattern": (REPEATED + "{{ ('%s'|format(x))|length }}{{ ('%s' % (x,))|length }}", GIANT),
    "lists in a method": (REPEATED + "{{ '{}'.format(x)|length }}", GIANT),
    "a namespace": (REPEATED + "{% set m = namespace(a=x) %}{{ m }}", GIANT),
    "values of a mapping": (REPEATED + "{% set m = {'a': x} %}{{ m.values() }}", GIANT),
    "arguments of a macro": (REPEATED + "{% macro f() %}{{ varargs }}{% endmacro %}{{ f(x) }}", GIANT),
    "lists compared": (NESTED + "{% set m = n.x %}" + NESTED + "{{ n.x == m }}", GIANT),
    "mappings compared": (
        "{% set n = namespace(x=1) %}{% for i in range(40) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}",
        GIANT,
    ),
    "indented JSON": (NESTED.replace("40", "15") + "{{ n.x|tojson(indent=9999)|length }}", GIANT),
    "a text many times in a pattern": ("{% set x = 'x' * 9000000 %}{{ ('%s%s%s' % (x, x, x))|length }}", GIANT),
    "added texts": (
        "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        GIANT,
    ),
    "texts of a block": (
        "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = (n.x, n.x)|join %}{% endfor %}{{ n.x }}",
        GIANT,
    ),
    "a macro's text": (
        "{% set n = namespace(x='x' * 9000000) %}{% macro f() %}{% for i in range(99) %}{{ n.x }}{% endfor %}"
        "{% endmacro %}{{ f()|length }}",
        GIANT,
    ),
    "texts one by one": ("{{ (['x' * 9000000] * 99)|map('upper')|join|length }}", GIANT),
    "texts one by one in a method": ("{{ ''.join((['x' * 9000000] * 99)|map('upper'))|length }}", GIANT),
    "a sum of lists": ("{{ ([[1] * 9] * 9)|sum(start=[])|length }}", GIANT),
    "many texts": (
        "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + ['x' * 9000000 ~ i] %}{% endfor %}",
        "0 GiB",
    ),
}


STOPPED = "(?s)chat template.*({}).*\nUse .*render=chatml or render=transcript"


def impatient(monkeypatch, match):
    """Limits of time and memory that take a moment to reach; the others refuse a step before it is taken."""
    monkeypatch.setattr(chat_templates_module, "_WATCH_SECONDS", 0.02)
    if "seconds" in match:
        monkeypatch.setattr(chat_templates_module, "MAX_SECONDS", 0.1)
    if "GiB" in match:
        monkeypatch.setattr(chat_templates_module, "MAX_BYTES", 1 << 25)
        monkeypatch.setattr(chat_templates_module, "_UNWATCHED_SECONDS", 0.05)


def test_a_list_that_holds_one_text_often_is_refused_where_it_becomes_a_text():
    template = NativeTemplate(tokenizer(REPEATED + "{{ x|length }} times" + BODY))
    assert render(RUNS["text"], "native", template).text.startswith("99 times[user]")


@pytest.mark.parametrize("attack", HOSTILE)
def test_what_a_template_takes_is_bounded(monkeypatch, attack):
    hostile, match = HOSTILE[attack]
    impatient(monkeypatch, match)
    before = _peak_memory()
    with pytest.raises(SettingsError, match=STOPPED.format(match)):
        render(RUNS["text"], "native", NativeTemplate(tokenizer(hostile + BODY)))
    assert _peak_memory() - before < 1 << 30


@pytest.mark.parametrize("attack", ["a loop", "lists in lists", "doubling", "many texts"])
@pytest.mark.parametrize("rendering", ["native", "template"])
def test_every_limit_holds_on_both_paths_and_each_time(monkeypatch, rendering, attack):
    """What the method of the tokenizer runs for --apply_chat_template is first run in our sandbox."""
    hostile, match = HOSTILE[attack]
    impatient(monkeypatch, match)
    model = tokenizer(hostile + BODY)
    template = NativeTemplate(model)
    if rendering == "template":
        template = steady(partial(model.apply_chat_template, tokenize=False), model, None)
    for _ in range(2):
        with pytest.raises(SettingsError, match=STOPPED.format(match)):
            render(RUNS["text"], rendering, template)
    model.chat_template = BODY  # and the next one runs
    assert render(RUNS["text"], "native", NativeTemplate(model)).text.startswith("[user]")


DATED = "{{ strftime_now('%d %b %Y') }}"
UNSTEADY = {
    "a date": (DATED, "today's date.*render=native"),
    "the hour": ("{{ strftime_now('%I') }}", "today's date"),
    "the weekday": ("{{ strftime_now('%A') }}", "today's date"),
    "a date after a system prompt": ("{% if messages[0].role == 'system' %}" + DATED + "{% endif %}", "today's date"),
    "a date in long chats": ("{% if messages|length > 3 %}" + DATED + "{% endif %}", "today's date"),
    "a date that can be set": (
        "{{ date_string or strftime_now('%Y') }}",
        "today's date.*set its date_string in.*native",
    ),
    "a random choice": ("{{ ['a', 'a']|random }}", "makes random choices.*render=chatml"),
    "random words": ("{{ lipsum(1)[:0] }}", "makes random choices.*render=chatml"),
}


@pytest.mark.parametrize("name", UNSTEADY)
def test_a_text_that_would_be_another_tomorrow_is_refused(name):
    """Through the tokenizer's own method, where neither the date nor a choice can be fixed."""
    source, match = UNSTEADY[name]
    model = tokenizer(source + BODY)
    apply = partial(model.apply_chat_template, tokenize=False)
    with pytest.raises(SettingsError, match=f"(?s){match}"):
        render(RUNS["calls"], "template", steady(apply, model, None))


@pytest.mark.parametrize(
    ("source", "kwargs"),
    [
        ("{{ date_string or strftime_now('%Y') }}", {"date_string": "1 May"}),  # as chat_template_args
        ("{% if messages[0].role != 'system' %}" + DATED + "{% endif %}", None),
        ("{# at random #}", None),
        ("", None),
    ],
)
def test_a_date_that_is_set_or_not_printed_is_not_refused(source, kwargs):
    model = tokenizer(source + BODY)
    apply = partial(model.apply_chat_template, tokenize=False, **(kwargs or {}))
    want = render(RUNS["calls"], "template", apply)
    assert render(RUNS["calls"], "template", steady(apply, model, kwargs)) == want


def test_a_run_that_fills_the_memory_is_ended(monkeypatch):
    monkeypatch.setattr(chat_templates_module, "MAX_BYTES", 1 << 26)
    monkeypatch.setattr(chat_templates_module, "_UNWATCHED_SECONDS", 0.0)

    def fill():
        blocks = []
        while True:
            blocks.append(b"x" * (1 << 24))
            time.sleep(0.01)

    with pytest.raises(TemplateLimitError, match="GiB of memory"):
        run_template(fill)


def test_another_thread_may_load_a_model_meanwhile(monkeypatch):
    """A real template that waits long, for the lock of the interpreter say, while the process grows, is no attack."""
    monkeypatch.setattr(chat_templates_module, "MAX_BYTES", 1 << 26)
    monkeypatch.setattr(chat_templates_module, "_WATCH_SECONDS", 0.02)
    peaks = chain([0], repeat(1 << 40))
    monkeypatch.setattr(chat_templates_module, "_peak_memory", lambda: next(peaks))

    def wait():
        time.sleep(0.2)  # the watchdog looks several times
        return "text"

    assert run_template(wait) == "text"


def test_no_exception_comes_after_the_end(monkeypatch):
    monkeypatch.setattr(chat_templates_module, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(chat_templates_module, "_WATCH_SECONDS", 0.01)
    for pause in (0.0, *np.linspace(0.045, 0.065, 11)):  # the watchdog looks about then
        with suppress(TemplateLimitError):
            assert run_template(lambda pause=pause: time.sleep(pause)) is None
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("source", "power"),
    [
        ("**Bold**, {{ f(**kwargs) }}{{ f(1, ** kwargs) }}", False),
        ("{{ 2 ** x }}", True),
        ("{% set a = (9)**9 %}", True),
    ],
)
def test_powers_are_seen_in_the_source(source, power):
    assert has_power(source) is power
    assert not any(has_power(path.read_text()) for path in TEMPLATES)


@pytest.mark.parametrize(
    "source",
    ["{{ m.a }}", "{{ m['a'] }}", "{{ m.b }}", "{{ m['b'] }}", "{{ m['items'] }}", "{{ m.items() | list }}",
     "{{ m.a.b.c is defined }}", "{{ n.a }}", "{{ n['a'] }}", "{{ t.upper() }}", "{{ t[0] }}", "{{ t['upper'] }}",
     "{{ x.a is defined }}", "{{ l[0].a }}", "{{ l[1:] }}", "{{ m.__class__ is defined }}", "{{ m['__class__'] }}",
     "{% for k in l %}{{ k.a }}{{ loop.index }}{% endfor %}", "{% set ns = namespace(a=1) %}{{ ns.a }}{{ ns['a'] }}"],
)  # fmt: skip
def test_keys_are_read_as_jinja_reads_them(source):
    values = {"m": {"a": "1", "items": "2"}, "n": OrderedDict(a="3"), "t": "text", "l": [{"a": 5}, 6]}
    texts = []
    for template in (compiled(source), ImmutableSandboxedEnvironment().from_string(source)):
        try:
            texts.append(template.render(**values))
        except Exception as error:
            texts.append(type(error).__name__)
    assert texts[0] == texts[1]
