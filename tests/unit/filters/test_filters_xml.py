"""The filter `xml` finds the syntax of the call and nothing that only looks like it."""

import pytest

from hesnr_tasks.filters import FILTERS
from tests.unit.filters.marked import check

xml = FILTERS["xml"]


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
