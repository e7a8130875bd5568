"""The filter `format`: white space and decoration everywhere, markdown only where the text is markdown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.filters import FILTERS
from tests.reference import filters as reference
from tests.unit.filters.marked import check, positions

format_ = FILTERS["format"]


def file(path, text):
    value = f"<parameter=file_text>\n{text}\n</parameter>"
    return f"<function=create>\n<parameter=path>{path}</parameter>\n{value}\n</function>"


@given(st.text(st.sampled_from(" \n\t\r\x0b\x0c\x1c\x85\u2028\u3000\u200bab#-=") | st.characters()))
def test_all_white_space_is_found(text):
    assert reference.white_space(text) <= positions(format_(text))


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
    check(format_, f"<function=f>\n<parameter=code>{marked}</parameter>\n</function>")


def test_the_fences_of_the_call():
    check(format_, "⟦```bash⟧\nls -la **\n⟦```⟧")
    check(format_, "⟦```python⟧\nx = '`' * 3\n⟦```⟧\n")


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
    check(format_, file(path, MARKDOWN))


@pytest.mark.parametrize("path", ["a.py", "a.yml", "requirements.txt", "CMakeLists.txt", "a.sh", "a.patch"])
def test_no_markdown_in_other_files(path):
    text = "# comment\n- item\n* b\n> c\n**kw\n1. x\n`y` a_b _c_ --- ***\n"
    check(format_, file(path, text))


def test_markdown_in_prose_parameters():
    check(
        format_,
        "<function=finish>\n<parameter=message>⟦##⟧ Done\n⟦-⟧ ⟦**⟧x⟦**⟧ in ⟦`⟧a_b.py⟦`⟧</parameter>\n</function>",
    )
    check(format_, "<function=think>\n<parameter=thought>⟦1.⟧ look\n⟦2.⟧ fix</parameter>\n</function>")
    check(format_, "<function=bash>\n<parameter=command>ls *.py\n- x `pwd`</parameter>\n</function>")


def test_markdown_in_here_documents():
    check(format_, "cat > README.md <<'EOF'\n⟦#⟧ Title\n⟦-⟧ item\nEOF\nls # *")
    check(format_, "cat > a.yml <<'EOF'\n# Title\n- item\nEOF")


def test_escaped_white_space_of_json_values():
    text = '<tool_call>{"name": "bash", "arguments": {"command": "ls\\n\\tpwd"}}</tool_call>'
    found = positions(format_(text))
    at = text.index("\\n")
    assert {at, at + 1, at + 2, at + 3} <= found
    assert at + 4 not in found
