"""Exact vote counts, every tie rule, and the baselines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hesnr_tasks.errors import JudgeError, SearchError, SettingsError
from hesnr_tasks.search.consolidate import Kept, Rate, Suite, patch_key
from hesnr_tasks.search.judge_chat import JudgeFailed, Reply
from hesnr_tasks.search.prompts import PATCH_DIMENSIONS
from hesnr_tasks.search.select import (
    Ballot,
    Finalist,
    Selection,
    best_of_n,
    changed_lines,
    cut,
    finalists,
    first,
    majority,
    regret,
    select,
    smallest,
)
from hesnr_tasks.search.select_selectors import LLMSelector, RandomSelector, ScriptedSelector, dei, random_choice
from hesnr_tasks.search.types import Leaf, Usage


def patch(text, lines=1):
    body = "".join(f"+{text}{i}\n" for i in range(lines))
    return f"diff --git a/f.py b/f.py\n--- a/f.py\n+++ b/f.py\n@@ -0,0 +1,{lines} @@\n{body}"


def leaf(name, text=None, lines=1, score=0.0):
    return Leaf(name, patch(text or name, lines) if text != "" else "", "Submitted", Path(), (), score)


def finalist(name, rate=None, count=1, score=0.0, lines=1):
    return Finalist(leaf(name, name, lines, score), (name,) * count, rate)


def ballot(*scores):
    return Ballot(scores, Usage(10, 0, 1))


def suite_of(**passes):
    """A suite with one test for each letter of a leaf's text: 1 passes."""
    keys = {name: patch_key(patch(name)) for name in passes}
    count = len(next(iter(passes.values())))
    tests = [Kept(f"t{i}", tuple(passes), {keys[n]: p[i] == "1" for n, p in passes.items()}) for i in range(count)]
    return Suite(tuple(tests), (), keys)


def test_a_leaf_that_nobody_judged_is_not_the_worst():
    both = [leaf("a", lines=1, score=math.nan), leaf("b", lines=3, score=0.1)]
    found = select("task", both, None, [])
    assert (found.leaf.id, found.election.decided_by) == ("a", "size")
    assert best_of_n(both[::-1]).id == "b", "the first, as scores cannot be compared"
    assert best_of_n([leaf("a", score=0.0), leaf("b", score=0.1)]).id == "b"
    many = [leaf(name, score=score) for name, score in (("a", math.nan), ("b", 0.9), ("c", 0.8))]
    left = cut(finalists(many, suite_of(a="10", b="10", c="01")), Selection(top=2))
    assert [one.id for one in left] == ["a", "b"]


# --- votes ---


def test_votes_are_counted_exactly():
    three = [finalist("a"), finalist("b"), finalist("c")]
    found = majority([ballot(0.1, 0.9, 0.2), ballot(0.8, 0.9, 0.1), ballot(1.0, 0.2, 0.3)], three)
    assert found.votes == {"a": 1, "b": 2, "c": 0}
    assert (found.winner, found.decided_by) == (1, "votes")


TIES = [
    ("selectors' scores", {}, {}, [ballot(0.9, 0.5), ballot(0.1, 0.2)]),
    ("pass rate", {"rate": Rate(1, 2)}, {"rate": Rate(2, 2)}, []),
    ("leaves with that patch", {"count": 1}, {"count": 3}, []),
    ("judge score", {"score": 0.2}, {"score": 0.4}, []),
    ("size", {"lines": 9}, {"lines": 2}, []),
]


@pytest.mark.parametrize(("rule", "worse", "better", "ballots"), TIES, ids=[one[0] for one in TIES])
def test_every_tie_rule_decides_when_its_turn_comes(rule, worse, better, ballots):
    two = [finalist("a", **worse), finalist("b", **better)]
    found = majority(ballots, two)
    assert found.decided_by == rule
    assert two[found.winner].id == ("a" if ballots else "b")


def test_the_last_tie_rule_is_the_order():
    found = majority([], [finalist("a"), finalist("b")])
    assert (found.winner, found.decided_by) == (0, "order")
    assert majority([], [finalist("a")]).decided_by == "only candidate"


def test_a_selector_with_equal_scores_votes_by_the_tie_rules():
    two = [finalist("a", rate=Rate(1, 3)), finalist("b", rate=Rate(2, 3))]
    assert majority([ballot(0.5, 0.5)], two).votes == {"a": 0, "b": 1}


@pytest.mark.parametrize("scores", [(0.5,), (0.5, 1.2), (0.5, float("nan"))])
def test_a_ballot_that_is_none_is_an_error(scores):
    with pytest.raises(JudgeError):
        majority([ballot(*scores)], [finalist("a"), finalist("b")])


# --- candidates and cut ---


def test_equal_patches_are_one_candidate_and_empty_ones_none():
    found = finalists([leaf("a", ""), leaf("b", "x"), leaf("c", "x"), leaf("d", "y")])
    assert [one.leaves for one in found] == [("b", "c"), ("d",)]
    assert len(finalists([leaf("a", "")])) == 1
    with pytest.raises(SearchError):
        finalists([])


def test_changes_to_tests_do_not_make_another_patch():
    extra = (
        "diff --git a/test_x.py b/test_x.py\nnew file mode 100644\n--- /dev/null\n+++ b/test_x.py\n@@ -0,0 +1 @@\n+1\n"
    )
    with_test = Leaf("b", patch("x") + extra, "Submitted", Path(), ())
    assert len(finalists([leaf("a", "x"), with_test])) == 1
    assert changed_lines(with_test.patch) == 1


def test_cut_keeps_the_best_by_rate_then_judge():
    rates = {"a": Rate(1, 4), "b": Rate(3, 4), "c": Rate(2, 4), "d": Rate(2, 4)}
    four = [finalist(name, rate=rate, score=0.9 if name == "d" else 0.1) for name, rate in rates.items()]
    assert [one.id for one in cut(four, Selection(top=2))] == ["b", "d"]
    assert [one.id for one in cut(four, Selection(least=0.5, top=9))] == ["b", "c", "d"]
    assert [one.id for one in cut(four, Selection(least=1.0))] == ["b"]  # nobody reaches it: the best rate stays


def test_untested_candidates_rank_last_and_nobody_is_cut_without_a_suite():
    some = [finalist("a"), finalist("b", rate=Rate(0, 4))]
    assert [one.id for one in cut(some, Selection(top=1))] == ["b"]
    assert [one.id for one in cut([finalist("a"), finalist("b")], Selection(top=1))] == ["a", "b"]


@pytest.mark.parametrize("wrong", [{"least": -0.1}, {"least": 1.1}, {"top": 0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SettingsError):
        Selection(**wrong)


# --- the whole ---


class Fixed:
    def __init__(self, **scores):
        self.scores, self.asked = scores, []

    def ballot(self, task, candidates):
        self.asked.append([one.id for one in candidates])
        return Ballot(tuple(self.scores[one.id] for one in candidates), Usage(10, 2, 3))


class Broken:
    def ballot(self, task, candidates):
        raise JudgeFailed("nonsense", Usage(7, 0, 7))


def test_selection_cuts_asks_counts_and_adds_up():
    leaves = [leaf(name) for name in "abcd"]
    suite = suite_of(a="111", b="110", c="100", d="000")
    selectors = [Fixed(a=0.1, b=0.9, c=0.5), Fixed(a=0.2, b=0.3, c=0.1), Fixed(a=0.9, b=0.1, c=0.1)]
    found = select("task", leaves, suite, selectors)
    assert found.cut == ("d",)
    assert selectors[0].asked == [["a", "b", "c"]]
    assert found.election.votes == {"a": 1, "b": 2, "c": 0}
    assert found.leaf.id == "b"
    assert found.usage == Usage(30, 6, 9)


def test_a_selector_that_fails_casts_no_vote_and_is_named():
    found = select("task", [leaf("a"), leaf("b")], None, [Broken(), Fixed(a=0.1, b=0.2)])
    assert found.leaf.id == "b"
    assert found.election.votes == {"a": 0, "b": 1}
    assert found.usage == Usage(17, 2, 10)
    assert "selector 1 casts no vote" in found.problems[0]


def test_one_candidate_is_chosen_without_asking():
    selector = Fixed(a=1.0)
    assert select("task", [leaf("a", "x"), leaf("b", "x")], None, [selector]).leaf.id == "a"
    assert selector.asked == []


# --- selectors ---


class Chat:
    def __init__(self, give):
        self.give, self.asked = give, []

    def __call__(self, messages):
        self.asked.append(messages)
        parts = messages[1]["content"].split("===== candidate ")[1:]
        return Reply(json.dumps({part[0]: self.give(part) for part in parts}), Usage(100, 0, 10))


def rubric(part):
    wanted = dict.fromkeys((one.key for one in PATCH_DIMENSIONS), 3 if "+good" in part else 1)
    return {**wanted, "functionality_validation": 0 if "+broken" in part else 3}


def test_llm_selector_scores_of_18_and_the_gate():
    three = [finalist("bad"), finalist("good"), finalist("broken")]
    for seed in range(4):
        chat = Chat(rubric)
        found = LLMSelector(chat, seed).ballot("task", three)
        assert found.scores == pytest.approx((8 / 18, 1.0, 0.0))
        assert len(chat.asked) == 1


def test_llm_selector_shows_measured_pass_rates():
    chat = Chat(rubric)
    LLMSelector(chat).ballot("task", [finalist("good", rate=Rate(3, 4)), finalist("bad")])
    assert "passes 3 of 4 tests" in chat.asked[0][1]["content"]


def test_dei_scores_each_patch_alone_and_may_choose_none():
    chat = Chat(rubric)
    found, usage = dei("task", [leaf("bad"), leaf("good")], [LLMSelector(chat, apart=True)] * 2)
    assert found is not None
    assert found.id == "good"
    assert usage == Usage(400, 0, 40)
    assert dei("task", [leaf("broken")], [LLMSelector(chat, apart=True)])[0] is None


def test_scripted_selectors_find_the_good_patch_as_often_as_they_should():
    two = [finalist("a"), finalist("b")]
    wins = 0
    for seed in range(1500):
        found = ScriptedSelector(lambda one: one.id == "b", 1.0, seed).ballot("t", two)
        wins += found.scores[1] > found.scores[0]
    assert wins / 1500 == pytest.approx(0.760, abs=0.035)  # Φ(1 / √2)


# --- baselines ---


def test_baselines():
    leaves = [leaf("z", ""), leaf("a", "a", 5, 0.1), leaf("b", "b", 2, 0.3), leaf("c", "c", 9, 0.8)]
    assert first(leaves).id == "a"
    assert smallest(leaves).id == "b"
    assert best_of_n(leaves).id == "c"
    drawn = [random_choice("t", leaves, seed).id for seed in range(600)]
    assert set(drawn) == {"a", "b", "c"}
    assert all(drawn.count(name) == pytest.approx(200, abs=45) for name in "abc")


def test_random_selector_is_seeded():
    two = [finalist("a"), finalist("b")]
    assert RandomSelector(3).ballot("t", two) == RandomSelector(3).ballot("t", two)
    assert RandomSelector(3).ballot("t", two) != RandomSelector(4).ballot("t", two)


def test_regret_against_the_oracle():
    assert regret("a", {"a": False, "b": True}) == 1
    assert regret("b", {"a": False, "b": True}) == 0
    assert regret("a", {"a": False, "b": False}) == 0
