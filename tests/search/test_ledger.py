"""The ledger: every call once, sums exact, kept through anything."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.errors import DataError
from hesnr_tasks.search.ledger import KINDS, Ledger, read_ledger
from hesnr_tasks.search.types import Usage, total

COUNT = st.integers(0, 10**9)
CALL = st.tuples(st.sampled_from(KINDS), st.builds(Usage, COUNT, COUNT, COUNT), st.integers(1, 8))


@given(st.lists(CALL, max_size=20), st.integers(0, 20))
def test_sums_are_the_calls_however_often_it_is_opened(tmp_path_factory, calls, stop):
    path = tmp_path_factory.mktemp("ledger") / "l.jsonl"
    for part in (calls[:stop], calls[stop:]):
        ledger = Ledger(path)
        for kind, usage, n in part:
            ledger.add(kind, usage, n=n, node="r/0", cost=0.5)
        ledger.close()
    wanted = {kind: total(usage for each, usage, _ in calls if each == kind) for kind in {call[0] for call in calls}}
    assert ledger.sums() == wanted
    assert ledger.tokens == sum(usage.prompt + usage.output for _, usage, _ in calls)
    assert ledger.cost == 0.5 * len(calls)
    assert [(e.kind, e.usage, e.n) for e in read_ledger(path)] == calls


def test_a_line_is_plain_json(tmp_path):
    Ledger(tmp_path / "l").add("judge", Usage(3, 2, 1), node="r/4")
    line = {"kind": "judge", "node": "r/4", "n": 1, "prompt": 3, "cached": 2, "output": 1, "cost": 0.0}
    assert json.loads((tmp_path / "l").read_text()) == line


def test_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'wish'"):
        Ledger(tmp_path / "l").add("wish", Usage())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[]", "not a call"),
        ('{"kind": "wish"}', "not a call"),
        ('{"kind": "judge", "prompt": 1, "cached": -1, "output": 0}', "numbers of tokens"),
        ('{"kind": "judge", "prompt": 1, "cached": 1}', "numbers of tokens"),
        ('{"kind": "judge", "prompt": true, "cached": 1, "output": 0}', "numbers of tokens"),
        ('{"kind": "judge", "prompt": 1, "cached": 1, "output": 0, "n": "4"}', "n and cost"),
        ('{"kind": "judge", "prompt": 1, "cached": 1, "output": 0, "cost": null}', "n and cost"),
    ],
)
def test_lines_that_are_no_calls_are_errors_with_their_place(tmp_path, line, told):
    good = '{"kind": "judge", "prompt": 1, "cached": 0, "output": 0}\n'
    (tmp_path / "l").write_text(good + line + "\n")
    with pytest.raises(DataError, match=rf"l:2: .*{told}"):
        read_ledger(tmp_path / "l")
