"""The tree file: whole lines or none, one writer, and what is still to be done."""

import errno
import json

import pytest

from hesnr_tasks.errors import DataError, SearchError, SettingsError
from hesnr_tasks.search.tree import Journal, Node, Tree


def node(name, parent=None, draw=-1, **more):
    return Node(name, parent, draw, [{"role": "user", "content": name}], "s", "h", **more)


def draws(name, chosen, n=2):
    drawn = [{"message": {"role": "assistant", "content": f"{name}:{i}"}} for i in range(n)]
    candidates = [{"key": str(i), "votes": 1, "draw": i} for i in range(n)]
    return {"type": "draws", "node": name, "draws": drawn, "candidates": candidates, "chosen": chosen}


def test_what_is_written_is_read_again_and_a_torn_line_is_cut(tmp_path):
    path = tmp_path / "a" / "t.jsonl"
    journal = Journal(path)
    journal.append({"a": "é\ud800\n"})
    journal.append({"b": 2})
    journal.close()
    whole = path.read_bytes()
    for torn in (b"{", b'{"c": 3', b"\xff\xfe"):
        path.write_bytes(whole + torn)
        again = Journal(path)
        assert again.records == [{"a": "é\ud800\n"}, {"b": 2}]
        again.append({"c": 3})
        again.close()
        assert path.read_bytes() == whole + b'{"c":3}\n'


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b"\xff"])
def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path, line):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n{}\n")
    with pytest.raises(DataError, match=r"t\.jsonl:2: damaged"):
        Journal(path)


def test_only_one_process_writes(tmp_path):
    first = Journal(tmp_path / "t.jsonl")
    with pytest.raises(SearchError, match="another run"):
        Journal(tmp_path / "t.jsonl")
    first.close()
    Journal(tmp_path / "t.jsonl").close()


class Full:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, self.room = min(self.room, len(data)), max(0, self.room - len(data))
        return self.file.write(data[:taken])


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    journal = Journal(tmp_path / "t.jsonl")
    journal.append({"a": 1})
    held = (tmp_path / "t.jsonl").read_bytes()
    journal._file = Full(journal._file, 5)
    with pytest.raises(SearchError, match=r"No space left on device\. Nothing before it is lost"):
        journal.append({"b": 2})
    assert (tmp_path / "t.jsonl").read_bytes() == held


def test_conversations_and_what_is_to_be_done(tmp_path):
    tree = Tree.open(tmp_path / "t.jsonl")
    tree.begin({"task": "x", "settings": {"n": 2}})
    tree.add_node(node("r/0"))
    assert [n.id for n in tree.open_nodes()] == ["r/0"]
    tree.add(draws("r/0", [1, 0]))
    assert tree.waiting(tree.nodes["r/0"]) == [(0, 1), (1, 0)]
    tree.add_node(node("r/1", "r/0", 1))
    assert [n.id for n in tree.open_nodes()] == ["r/0", "r/1"]
    assert tree.waiting(tree.nodes["r/0"]) == [(1, 0)]
    tree.add_node(node("r.0x1/1", "r/0", 0, status="Submitted"))
    tree.add(draws("r/1", []))
    assert [n.id for n in tree.open_nodes()] == ["r/1", "r.0x1/1"], "all malformed: one child is to come"
    tree.add({"type": "leaf", "id": "r.0x1", "node": "r.0x1/1"})
    tree.close()
    again = Tree.open(tmp_path / "t.jsonl")
    assert [n.id for n in again.open_nodes()] == ["r/1"]
    assert again.nodes == tree.nodes
    said = [message["content"] for message in again.messages(again.nodes["r.0x1/1"])]
    assert said == ["r/0", "r/0:0", "r.0x1/1"]
    with pytest.raises(SettingsError, match=r"n \(2, now 3\)"):
        again.begin({"task": "x", "settings": {"n": 3}})
    with pytest.raises(SettingsError, match="another task"):
        again.begin({"task": "y", "settings": {"n": 2}})
    again.begin({"task": "x", "settings": {"n": 2}})


def test_names_tell_run_branch_and_depth():
    deep = node("r2.3x1/7")
    assert (deep.run, deep.branch, deep.depth) == ("r2", "r2.3x1", 7)
    assert [deep.child(0), deep.child(2)] == ["r2.3x1/8", "r2.3x1.7x2/8"]


@pytest.mark.parametrize("record", [{"type": "other"}, {"type": "node", "id": "x"}, {"a": 1}, {"type": "draws"}])
def test_records_of_something_else_are_errors(tmp_path, record):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=r"t\.jsonl:1: not a record"):
        Tree.open(path)
