"""The sample depends on what there is, not on its order, and hardly changes when rows are added."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.formats import seeded_subset
from hesnr_tasks.formats import trajectory_identity as identity
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory


def choose(ids, n, seed):
    return seeded_subset(ids, n, seed, key=str)


IDS = [f"owner__repo-{i}" for i in range(2000)]


def test_the_order_of_rows_does_not_matter():
    shuffled = random.Random(0).sample(IDS, len(IDS))
    assert choose(IDS, 100, 1234) == choose(shuffled, 100, 1234)


def test_these_are_the_chosen_ones_for_ever():
    """The choice is part of what a result means, so no version may change it."""
    assert choose(IDS, 3, 1234) == ["owner__repo-772", "owner__repo-687", "owner__repo-1552"]


def test_a_smaller_sample_is_the_beginning_of_a_larger_one():
    assert choose(IDS, 500, 1)[:50] == choose(IDS, 50, 1)


def test_new_rows_displace_only_their_share():
    more = [*IDS, *(f"new-{i}" for i in range(200))]  # a tenth more rows
    kept = set(choose(IDS, 500, 1)) & set(choose(more, 500, 1))
    assert 430 <= len(kept) < 500
    assert set(choose(more, 500, 1)) - kept <= {f"new-{i}" for i in range(200)}


def test_another_seed_is_another_sample_and_each_row_is_as_likely():
    counts = dict.fromkeys(IDS[:200], 0)
    for seed in range(400):
        for chosen in choose(IDS[:200], 50, seed):
            counts[chosen] += 1
    # 400 draws at 1/4: mean 100, standard deviation 8.7; six of them on each side
    assert 48 < min(counts.values()) <= max(counts.values()) < 152


def test_fewer_rows_than_wanted_are_all_chosen():
    assert sorted(choose(["b", "a"], 10, 0)) == ["a", "b"]


def test_a_sample_of_none_is_refused():
    with pytest.raises(SettingsError, match="at least 1"):
        choose(IDS, 0, 0)


def test_it_streams():
    """Only n items are alive at a time, so 500 of 80 000 trajectories fit into memory."""
    alive, most = set(), 0

    class Item:
        def __init__(self, name):
            self.name = name
            alive.add(name)

        def __del__(self):
            alive.discard(self.name)

    def items():
        nonlocal most
        for i in range(1000):
            yield Item(f"{i}")
            most = max(most, len(alive))

    names = [item.name for item in seeded_subset(items(), 10, 7, key=lambda item: item.name)]
    assert names == choose(map(str, range(1000)), 10, 7)
    assert most <= 13


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 20), st.integers(0, 5))
def test_the_subset_is_that_of_sorting_by_rank(items, n, seed):
    """Of equal ranks the earlier item comes first."""
    numbered = list(enumerate(items))
    rank = {item: hashlib.sha256(f"{seed}\n{item}".encode()).hexdigest() for item in items}
    expected = sorted(numbered, key=lambda entry: rank[entry[1]])[:n]
    assert seeded_subset(numbered, n, seed, key=lambda entry: str(entry[1])) == expected


def test_only_what_may_be_in_the_subset_is_put_aside():
    """A sample of 10 of 1,000 records writes about 10 (1 + ln 100) = 56 of them to the disk."""
    kept = []
    seeded_subset(range(1000), 10, 7, key=str, keep=kept.append)
    assert 10 <= len(kept) < 120


def trajectory(text, name="x", kind=Kind.ACTION):
    return Trajectory(name, (Message("assistant", (Segment(kind, text),)),), instance_id="i")


def test_identity_is_the_text_not_the_id_or_the_labels():
    assert identity(trajectory("ls", "x")) == identity(trajectory("ls", "x#2"))
    assert identity(trajectory("ls")) == identity(trajectory("ls", kind=Kind.THOUGHT))
    assert identity(trajectory("ls")) != identity(trajectory("ls "))


def test_identity_knows_where_messages_end():
    single = Trajectory("x", tuple(Message("user", (Segment(Kind.CONTEXT, t),)) for t in ("ab", "c")))
    two = Trajectory("x", tuple(Message("user", (Segment(Kind.CONTEXT, t),)) for t in ("a", "bc")))
    assert identity(single) != identity(two)
