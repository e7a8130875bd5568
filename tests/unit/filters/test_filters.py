"""What each filter drops: syntax of the call, form, comments, wherever they stand in an action; and the labels."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.filters import FILTERS, LABELS_VERSION, _span_mask, char_codes, filter_bits
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory.rendering import Rendered, Span, action_code, kind_code, label_mask, render
from tests.reference import filters as reference
from tests.unit.filters.corpus import PINNED, entry, labels, lines
from tests.unit.filters.marked import check, positions

xml, formatting, comments = FILTERS["xml"], FILTERS["format"], FILTERS["comments"]


def call(name, **parameters):
    body = "".join(f"<parameter={key}>{value}</parameter>\n" for key, value in parameters.items())
    return f"<function={name}>\n{body}</function>"


# --- the labelled actions of corpus/ ---------------------------------------------------------------------------------


def squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize(("place", "line"), [pytest.param(*pair, id=pair[0]) for pair in lines()])
def test_what_is_kept_of_an_action(place, line):
    case = entry(place, line)
    text = case["text"]
    kept = "".join(text[i] for i in np.flatnonzero(filter_bits(text) == 0))
    assert squeezed(kept) == squeezed(case["kept"]), f"{place}: {case['why']}\n{text}"


def test_labels_change_only_with_their_version():
    """Fails if labels moved and LABELS_VERSION did not: raise it, then `python -m tests.unit.filters.corpus`."""
    pinned, now = json.loads(PINNED.read_text(encoding="utf-8")), labels()
    assert pinned["version"] == LABELS_VERSION, "the labels of this version are not pinned"
    moved = [text for text, label in pinned["labels"].items() if text in now and now[text] != label]
    assert not moved, f"{len(moved)} labels of {len(pinned['labels'])} changed"
    assert len(pinned["labels"]) > 0.5 * len(now), "most of the corpus is not pinned"


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"form": "xml"}', '{"form": 1, "language": "", "text": "", "kept": "", "why": ""}']
)
def test_a_line_that_is_no_case_is_named(line):
    with pytest.raises(AssertionError, match=r"forms\.jsonl:3"):
        entry("forms.jsonl:3", line)


# --- xml -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "marked",
    [
        "⟦<function=bash>⟧\n⟦<parameter=command>⟧ls⟦</parameter>⟧\n⟦</function>⟧",
        "⟦<function=edit>⟧\n⟦<parameter=new_str>⟧\n<div class='x'>List<int></div>\n⟦</parameter>⟧\n⟦</function>⟧",
        "⟦<function=bash>⟧\n⟦<parameter=command>⟧grep '</parameter>' '<function=x>'⟦</parameter>⟧\n⟦</function>⟧",
        "⟦<function=bash>⟧\n⟦<parameter=command>⟧ls\n⟦</⟧",
        "⟦<command>⟧\ngrep '<command>' x\n⟦</command>⟧",
        '⟦<tool_call>\n{"name": "bash", "arguments": {"command": "⟧ls <x>⟦", "timeout": ⟧5⟦}}⟧\n⟦</tool_call>⟧',
        "⟦<tool_call>⟧\n⟦<function=submit>⟧\n⟦</function>⟧\n⟦</tool_call>⟧",
        "ls <in.xml >out.xml",
        "echo '<function=bash>'",
        "cat > a.html <<EOF\n<command>x</command>\nEOF",
        "```bash\necho '<a>'\n```",
    ],
)
def test_tags_of_the_call(marked):
    check(xml, marked)


# --- format ----------------------------------------------------------------------------------------------------------


def create(path, text):
    return call("create", path=path, file_text=f"\n{text}\n")


@given(st.text(st.sampled_from(" \n\t\r\x0b\x0c\x1c\x85\u2028\u3000\u200bab#-=") | st.characters()))
def test_all_white_space_is_found(text):
    assert reference.white_space(text) <= positions(formatting(text))


@pytest.mark.parametrize(
    "marked",
    [
        "print('⟦=====⟧')",
        "# ---",
        "⟦----------⟧",
        "x = a ** b * c == d --e",
        "echo '⟦####⟧ Title ⟦####⟧'",
        "git diff <<< '--- a/x +++ b/x'",
        "def f(*args, **kwargs): pass",
        "a___b ⟦____⟧",
        "~~~ ⟦~~~~⟧ ***",
        "'''⟦===============⟧'''",
    ],
)
def test_runs_of_four_are_decoration_and_operators_are_not(marked):
    check(formatting, f"<function=f>\n<parameter=code>{marked}</parameter>\n</function>")


def test_the_fences_of_the_call():
    check(formatting, "⟦```bash⟧\nls -la **\n⟦```⟧")
    check(formatting, "⟦```python⟧\nx = '`' * 3\n⟦```⟧\n")


MARKDOWN = """\
⟦#⟧ Title
⟦##⟧ Section ⟦##⟧

Some ⟦**⟧bold⟦**⟧, ⟦*⟧soft⟦*⟧, ⟦_⟧under⟦_⟧ and ⟦~~⟧gone⟦~~⟧ text with ⟦`⟧code⟦`⟧ and snake_case_name, 2 * 3.
_private, *args, **kwargs, f(*a)*b, __init__ but ⟦***⟧all ⟦`⟧x⟦`⟧ three⟦***⟧.
class_ and __all__

⟦-⟧ one
  ⟦*⟧ two
⟦10.⟧ ten
⟦>⟧ quoted
⟦>>⟧ twice

| a | b |
⟦|---|:-:|⟧
| 1 | 2 |

⟦---⟧
Heading
⟦=======⟧

⟦```python⟧
# comment
def f(**kwargs): return 2 * x
⟦```⟧
- not closed
""".replace("\n- not", "\n⟦-⟧ not")


@pytest.mark.parametrize("path", ["README.md", "docs/a.markdown", "a.rst", "notes.txt", "CHANGELOG"])
def test_markdown_in_files_that_are_markdown(path):
    check(formatting, create(path, MARKDOWN))


@pytest.mark.parametrize("path", ["a.py", "a.yml", "requirements.txt", "CMakeLists.txt", "a.sh", "a.patch"])
def test_no_markdown_in_other_files(path):
    text = "# comment\n- item\n* b\n> c\n**kw\n1. x\n`y` a_b _c_ --- ***\n"
    check(formatting, create(path, text))


def test_markdown_in_prose_parameters():
    check(
        formatting,
        "<function=finish>\n<parameter=message>⟦##⟧ Done\n⟦-⟧ ⟦**⟧x⟦**⟧ in ⟦`⟧a_b.py⟦`⟧</parameter>\n</function>",
    )
    check(formatting, "<function=think>\n<parameter=thought>⟦1.⟧ look\n⟦2.⟧ fix</parameter>\n</function>")
    check(formatting, "<function=bash>\n<parameter=command>ls *.py\n- x `pwd`</parameter>\n</function>")


def test_markdown_in_here_documents():
    check(formatting, "cat > README.md <<'EOF'\n⟦#⟧ Title\n⟦-⟧ item\nEOF\nls # *")
    check(formatting, "cat > a.yml <<'EOF'\n# Title\n- item\nEOF")


def test_escaped_white_space_of_json_values():
    text = '<tool_call>{"name": "bash", "arguments": {"command": "ls\\n\\tpwd"}}</tool_call>'
    dropped = positions(formatting(text))
    start = text.index("\\n")
    assert {start, start + 1, start + 2, start + 3} <= dropped
    assert start + 4 not in dropped


# --- comments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.py", 'x = "# no"  ⟦# yes⟧'),
        ("a.js", 'x = "// no"; ⟦// yes⟧\n# no'),
        ("a.unknown", "# no\n// no"),
        ("a.json", '{"a": "# no"}'),
        ("bin/tool", "#!/bin/sh\n⟦# yes⟧\nls"),
        ("Dockerfile", "⟦# yes⟧\nFROM x # no"),
        ("a.md", "# no\n\n```python\nx = 1 ⟦# yes⟧\n```\n⟦<!-- yes -->⟧\n"),
        ("a.patch", "--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-x ⟦# old⟧\n+y ⟦# new⟧\n"),
    ],
)
def test_the_file_named_beside_a_value_gives_its_language(path, text):
    for key in ("file_text", "new_str", "old_str", "content", "new_string", "insert_text"):
        check(comments, call("edit", path=path, **{key: text}))
    check(comments, call("Edit", file_path=path, old_string=text))


def test_only_code_parameters_are_code():
    check(comments, call("view", path="a.py", view_range="[1, 2] # no", command="view # no"))
    check(comments, call("grep", pattern="# no", path="a.py"))
    check(comments, call("finish", message="# no"))


def test_editors_without_a_file_name_hold_python_if_it_looks_like_it():
    check(comments, call("edit", search="return 1 ⟦# old⟧", replace="⟦# new⟧\nreturn 2"))
    check(comments, call("insert", text="#include <a.h>\nint x; // no"))
    check(comments, call("insert", text="# a heading"))


@pytest.mark.parametrize("tool", ["bash", "execute_bash", "Bash", "shell", "terminal", "run_command", "local_shell"])
def test_shell_tools(tool):
    check(comments, call(tool, command='ls "# no" ⟦# yes⟧'))


@pytest.mark.parametrize("tool", ["python", "execute_ipython_cell", "ipython", "run_python"])
def test_python_tools(tool):
    check(comments, call(tool, code='print("# no") ⟦# yes⟧\nx = """\n# no\n"""'))


def test_plain_commands_fences_and_tags_are_shell():
    check(comments, "ls ⟦# yes⟧\necho a#b")
    check(comments, "```bash\nls ⟦# yes⟧\n```")
    check(comments, "```python\nx = '''# no''' ⟦# yes⟧\n```")
    check(comments, "<command>\nls ⟦# yes⟧\n</command>")
    check(comments, "<execute_ipython>\nx = {} ⟦# yes⟧\n</execute_ipython>")


@pytest.mark.parametrize(
    "command",
    [
        "cat > x.py <<'EOF'\nx = '# no' ⟦# yes⟧\nEOF\nls ⟦# yes⟧",
        "cat <<EOF > a.js\nlet x; ⟦// yes⟧\n# no\nEOF",
        "cat << 'EOF' | tee -a src/a.go\nx := 1 ⟦// yes⟧\nEOF",
        "sudo tee /etc/x.toml > /dev/null <<EOF\na = '# no' ⟦# yes⟧\nEOF",
        "python - <<'PY'\nprint('# no') ⟦# yes⟧\nPY",
        "python3 <<PY\n⟦# yes⟧\nPY",
        "cat <<PY | python3 -\n⟦# yes⟧\nPY",
        "python script.py <<EOF\n# no: this is data\nEOF",
        "python -m json.tool <<EOF\n# no\nEOF",
        "cat <<EOF\n# no: nobody says what this is\nEOF",
        "cat > notes <<EOF\n#!/usr/bin/env python\nx ⟦# yes⟧\nEOF",
        "bash -s <<'EOF'\ncat > a.rb <<X\ny ⟦# yes⟧\nX\nls ⟦# yes⟧\nEOF",
        "cat <<'A' > a.py && cat <<'B' > b.c\nx ⟦# yes⟧\nA\ny; ⟦// yes # too⟧\nB\n",
        "cd x && cat > y.yml <<-EOF\n\ta: '# no' ⟦# yes⟧\n\tEOF\n",
        "psql db <<EOF\nSELECT '-- no'; ⟦-- yes⟧\nEOF",
        "cat > x.py <<'~X'\nx = 1 ⟦# yes⟧\n X\ny = 2 ⟦# yes⟧",
        "cat > x.py <<'EOF'\nx = 1 ⟦# the delimiter never comes⟧",
    ],
)
def test_here_documents(command):
    check(comments, command)
    check(comments, call("bash", command=command))


@pytest.mark.parametrize(
    "command",
    [
        """python -c 'print("# no") ⟦# yes⟧' ⟦# shell⟧""",
        'python3 -c "\nx = \\"# no\\" ⟦# yes⟧\n"',
        "node -e 'let u = \"http://x\"; ⟦// yes⟧'",
        "timeout 10 docker exec c bash -lc 'ls ⟦# yes⟧'",
        "bash -c 'python -c \"x = 1 ⟦# yes⟧\"'",
        "ruby -e 'puts \"#{x}\" ⟦# yes⟧'",
        "psql -c 'SELECT 1 ⟦-- yes⟧'",
        "python -c $'x = \\'# no\\' ⟦# yes⟧\\ny = 1'",
        "grep -c '# no' file",
        "gcc -c '# no'",
        "echo python -c",
        "sed -e 's/# no//' -e '/^# no/d' f",
        "awk '{ print } # no' f",
    ],
)
def test_scripts_on_the_command_line(command):
    check(comments, command)


PATCH = """\
diff --git a/x.py b/x.py
--- a/x.py
+++ b/x.py
@@ -1,4 +1,4 @@ def f(): # no
 x = '''
-# no
+# nor this
 '''
-y = 1 ⟦# old⟧
+y = 2 ⟦# new⟧
 z = 3 ⟦# context⟧
diff --git a/x.c b/x.c
--- a/x.c
+++ b/x.c
@@ -9 +9,2 @@
+⟦/* two⟧
+⟦   lines */⟧
 #include <no>
--- a/data.json
+++ b/data.json
@@ -1 +1 @@
+// no
"""


def test_patches_by_the_file_in_their_header():
    check(comments, f"git apply <<'EOF'\n{PATCH}EOF")
    check(comments, f"cat > fix.patch <<'EOF'\n{PATCH}EOF")
    check(comments, f"patch -p1 <<'EOF'\n{PATCH}EOF")
    check(comments, call("apply_patch", input=PATCH))
    check(comments, call("edit", path="fix.diff", file_text=PATCH))


def test_the_patch_form_of_apply_patch():
    update = "*** Update File: a/x.py\n@@ # no\n-x ⟦# old⟧\n+y ⟦# new⟧"
    patch = f"*** Begin Patch\n{update}\n*** Add File: y.rs\n+⟦// z⟧\n*** End Patch"
    check(comments, f"<function=apply_patch>\n{patch}\n</function>")
    check(comments, call("shell", input=patch))
    check(comments, f"apply_patch <<'EOF'\n{patch}\nEOF")
    check(comments, f"apply_patch '{patch}'")


def test_json_values_are_decoded_before_they_are_lexed():
    shell = 'echo \\"# no\\" ⟦# yes⟧\\nls'
    check(comments, f'<tool_call>\n{{"name": "bash", "arguments": {{"command": "{shell}"}}}}\n</tool_call>')
    code = "x = '\\u0023 no'\\ny = 1 ⟦\\u0023 yes⟧"
    check(comments, f'<tool_call>{{"name": "edit", "arguments": {{"path": "a.py", "new_str": "{code}"}}}}</tool_call>')
    check(comments, call("shell", command='["bash", "-lc", "ls ⟦# yes⟧\\necho \\"# no\\""]'))
    check(
        comments, call("MultiEdit", file_path="a.py", edits='[{"old_string": "x ⟦# a⟧\\ny", "new_string": "\'# no\'"}]')
    )


def test_the_line_editor_of_swe_agent():
    check(comments, "edit 3:4\nx = 1 ⟦# don't⟧\ny = '# no'\nend_of_edit")


def test_several_calls_are_independent():
    check(comments, call("bash", command="echo 'open ⟦⟧").replace("⟦⟧", "") + "\n" + call("bash", command="ls ⟦# yes⟧"))


# --- labels of texts -------------------------------------------------------------------------------------------------


COMMANDS = st.sampled_from(
    ["ls # a", "echo '#' \"x\"", "cat > x.py <<'EOF'\nx = 1 # b\nEOF", "python -c 'y # c'", "====", "it's"]
)


@given(st.lists(COMMANDS, min_size=2, max_size=4))
def test_calls_one_after_another_have_the_bits_of_each(commands):
    calls = [call("bash", command=command) for command in commands]
    bits = filter_bits("\n".join(calls))
    position = 0
    for text in calls:
        assert (bits[position : position + len(text)] == filter_bits(text)).all()
        position += len(text) + 1


def test_codes_of_a_rendered_trajectory():
    action = "<function=bash>\n<parameter=command>ls # x</parameter>\n</function>"
    messages = (
        Message("user", (Segment(Kind.CONTEXT, "# task"),)),
        Message(
            "assistant",
            (
                Segment(Kind.THOUGHT, "Look # first"),
                Segment(Kind.ACTION, action[:20]),
                Segment(Kind.ACTION, action[20:]),
            ),
        ),
        Message("assistant", (Segment(Kind.ACTION, action),)),
        Message("user", (Segment(Kind.OBSERVATION, "# out"),)),
    )
    rendered = render(Trajectory("t", messages))
    codes = char_codes(rendered)
    expected = np.empty(len(rendered.text), np.uint8)
    for span in rendered.spans:
        expected[span.start : span.end] = kind_code(span.kind)
    start = rendered.text.index(action)
    for first in (start, rendered.text.index(action, start + 1)):
        expected[first : first + len(action)] = action_code(filter_bits(action))
    assert (codes == expected).all()
    kept = label_mask([Kind.ACTION], list(FILTERS), list(FILTERS))
    assert "".join(c for c, code in zip(rendered.text, codes, strict=True) if int(kept) >> int(code) & 1) == "lsls"


@given(st.lists(st.text(alphabet="-=# \n\u00a0ax", min_size=1, max_size=12), min_size=1, max_size=6))
def test_rules_end_with_their_action_also_where_another_follows_at_once(actions):
    ends = np.cumsum([len(action) for action in actions])
    spans = tuple(
        Span(end - len(action), end, Kind.ACTION if i % 3 else Kind.THOUGHT, i, False)
        for i, (action, end) in enumerate(zip(actions, ends.tolist()), 1)
    )
    thought = kind_code(Kind.THOUGHT)
    expected = [action_code(filter_bits(a)) if i % 3 else [thought] * len(a) for i, a in enumerate(actions, 1)]
    assert char_codes(Rendered("".join(actions), spans)).tolist() == np.concatenate(expected).tolist()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 6))))
def test_spans_are_drawn_as_one_by_one(placed):
    """Of several actions, each beginning elsewhere; spans overlap, touch, are empty or end before they begin."""
    slowly = np.zeros(20, np.uint8)
    for start, end, shift in placed:
        slowly[shift + start : shift + end] = 1
    shifts = np.array([shift for _, _, shift in placed], np.int64)
    assert _span_mask([(start, end) for start, end, _ in placed], shifts, 20).tolist() == slowly.tolist()
