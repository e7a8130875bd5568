"""The page as a file: one executable script, a policy that admits only it, and data that decode to what went in."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hesnr_tasks import viewer
from hesnr_tasks.errors import DataError
from hesnr_tasks.filters import filter_bits
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.viewer import TokenView, view_of
from tests.unit.viewer import examples


class Parsed(HTMLParser):
    """Elements and the raw text of scripts and styles, as a browser would split them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=False)
        self.elements, self.raw = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements[-1:] and self.elements[-1][0] in ("script", "style"):
            continued = self.raw and self.raw[-1][0] is self.elements[-1]
            before = self.raw.pop()[1] if continued else ""
            self.raw.append((self.elements[-1], before + data))

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.elements.append(("end", {}))


def page_of(*trajectories):
    return viewer.render_page([view_of(trajectory) for trajectory in trajectories])


@pytest.fixture(scope="module")
def hostile():
    return Parsed(page_of(examples.hostile(), examples.strange()))


def data(parsed, name):
    """The index, or a trajectory with its arrays, undone step by step from what `page` documents."""
    text = next(text for (tag, attrs), text in parsed.raw if attrs.get("id") == name)
    if name == "index":
        return json.loads(text)
    raw = gzip.decompress(base64.b64decode(text, validate=True))
    place = 4 + int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4:place])
    columns = {}
    for column, dtype, length in header["arrays"]:
        size = np.dtype(dtype).itemsize
        planes = [raw[place + k * length : place + (k + 1) * length] for k in range(size)]
        columns[column] = np.frombuffer(bytes(b for row in zip(*planes) for b in row), dtype="<" + dtype)
        place += size * length
    assert place == len(raw)
    return header | {"columns": columns}


def test_only_our_script_can_run(hostile):
    scripts = [(attrs, text) for (tag, attrs), text in hostile.raw if tag == "script"]
    assert [attrs.get("type", "executable") for attrs, _ in scripts].count("executable") == 1
    policy = next(a["content"] for t, a in hostile.elements if a.get("http-equiv") == "Content-Security-Policy")
    for kind in ("script", "style"):
        text = next(text for (tag, attrs), text in hostile.raw if tag == kind and "type" not in attrs)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_trajectory_adds_no_markup(hostile):
    harmless = Parsed(page_of(examples.small(), examples.small()))
    assert [(tag, attrs.get("id")) for tag, attrs in hostile.elements] == [
        (tag, attrs.get("id")) for tag, attrs in harmless.elements
    ]


def test_nothing_is_loaded_and_nothing_handles_events_in_markup(hostile):
    names = {name for _, attrs in hostile.elements for name in attrs}
    assert not {name for name in names if name.startswith("on") or name in ("src", "action", "srcset", "style")}
    assert {attrs["href"] for _, attrs in hostile.elements if "href" in attrs} == {"data:,"}
    style = next(text for (tag, _), text in hostile.raw if tag == "style")
    assert not re.search(r"url\(|@import", style)


def test_our_script_never_makes_markup_or_code_from_text(hostile):
    script = next(text for (tag, attrs), text in hostile.raw if tag == "script" and "type" not in attrs)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|\bfetch\b|XMLHttp", script
    )
    assert "<" + "/script" not in script
    assert "<!--" not in script


@pytest.mark.parametrize("i", [0, 1])
def test_the_data_are_the_trajectory(hostile, i):
    trajectory = [examples.hostile(), examples.strange()][i]
    view, shown = view_of(trajectory), data(hostile, f"trajectory-{i}")
    assert shown["text"] == view.text
    units = shown["text"].encode("utf-16-le")
    ends, kinds = shown["blocks"][::3], shown["blocks"][1::3]
    starts = [0, *ends[:-1]]
    blocks = [(list(Kind)[k], units[2 * s : 2 * e].decode("utf-16-le")) for s, e, k in zip(starts, ends, kinds)]
    assert blocks == [(b.kind, view.text[b.start : b.end]) for b in view.blocks]
    hits = shown["hits"]
    dropped = [units[2 * s : 2 * e].decode("utf-16-le") for s, e in zip(hits[::3], hits[1::3])]
    assert dropped == [view.text[h.start : h.end] for h in view.hits]
    actions = "".join(s.text for m in trajectory.messages for s in m.segments if s.kind is Kind.ACTION)
    assert sum(map(len, dropped)) == sum(bool(b) for a in view.blocks if a.kind is Kind.ACTION
                                         for b in filter_bits(view.text[a.start : a.end])) <= len(actions)  # fmt: skip


def test_the_index_names_every_trajectory(hostile):
    entries = data(hostile, "index")["trajectories"]
    assert [e["id"] for e in entries] == [examples.hostile().id, examples.strange().id]
    assert [e["resolved"] for e in entries] == [None, True]
    assert entries[0]["warnings"] == list(examples.ATTACKS)


def test_the_same_trajectories_give_the_same_page():
    assert page_of(examples.small()) == page_of(examples.small())


def test_half_a_character_is_shown_as_such():
    text = page_of(examples.Trajectory("\ud800", (examples.message("user", ("context", "a\udc00")),)))
    assert "\ufffd" in text
    text.encode()
    assert "a\ufffd" in data(Parsed(text), "trajectory-0")["text"]


def test_tokens_must_be_given_for_every_trajectory():
    with pytest.raises(DataError, match="2 trajectories but tokens of 1"):
        viewer.render_page([view_of(examples.small())] * 2, [[TokenView(0, 1)]])
    with pytest.raises(DataError, match="compared with"):
        viewer.render_page([view_of(examples.small())], None, [[]])
    with pytest.raises(DataError, match="no trajectory"):
        viewer.render_page([])


def test_a_page_with_two_models_is_small_and_lists_their_largest_differences():
    view = view_of(examples.small())
    a, b = (examples.tiny_tokens(view.text, sure=sure) for sure in (False, True))
    shown = Parsed(viewer.render_page([view], [a], [b]))
    # counted tokens: ` -` and `a` (ln 4 and ln 5 against 0), and the two of 😀; not the space
    listed = [(d["text"], round(d["b"] - d["a"], 4)) for d in data(shown, "index")["differences"]]
    assert listed == [("😀", -2.3026), ("a", -1.6094), (" -", -1.3863), ("😀", -1.0986), ("ls", 0.0)]
    long = view_of(examples.long(60_000))
    rng = np.random.default_rng(0)
    runs = [
        [
            TokenView(i, min(i + 4, len(long.text)), float(rng.exponential()), float(rng.random()), False,
                      [(f"token {n}", 0.1) for n in rng.integers(0, 5000, 10)])
            for i in range(0, len(long.text), 4)
        ]
        for _ in range(2)
    ]  # fmt: skip
    size = len(viewer.render_page([long], *([run] for run in runs)).encode())
    assert size / (2 * len(runs[0])) < 60  # bytes for each token of each model; as JSON it was three times that
    index = data(Parsed(viewer.render_page([long], *([run] for run in runs))), "index")
    assert len(index["differences"]) == 20
    sizes = [abs(d["b"] - d["a"]) for d in index["differences"]]
    assert sizes == sorted(sizes, reverse=True)
    assert all(runs[0][d["token"]].surprisal == d["a"] for d in index["differences"])


def test_a_page_of_many_tokens_keeps_all_candidates_of_actions_and_fewer_of_others(monkeypatch):
    view = view_of(examples.small())
    place = view.text.index("Fix")
    top = [(f"t{k}", 0.1) for k in range(10)]
    tokens = [TokenView(place, place + 3, 2.3, 2.3, top=top)]
    tokens += [t._replace(top=top) for t in examples.tiny_tokens(view.text, sure=False)]

    def held(most):
        monkeypatch.setattr(viewer, "_MOST_CANDIDATES", most)
        parsed = Parsed(viewer.render_page([view], [tokens], [tokens]))
        shown = data(parsed, "trajectory-0")
        names = ("a.top", "a.share", "b.top", "b.share")
        return data(parsed, "index")["candidates"], [shown["columns"][n].reshape(10, -1).T for n in names]

    kept, whole = held(1_000_000)
    assert kept == 10
    assert all((rows > 0).all() for rows in whole)
    kept, fewer = held(2 * len(tokens) * 3)
    assert kept == 3
    for before, now in zip(whole, fewer):
        assert (now[1:] == before[1:]).all()
        assert (now[0] > 0).tolist() == [True] * 3 + [False] * 7
    assert held(0)[0] == 0
