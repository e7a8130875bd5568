"""The terminal: the same text and marks with colour and without, and nothing that controls the terminal."""

import io
import re
import unicodedata

import pytest

from hesnr_tasks.cli.trajectories import Style, legend, lines, style_of, total_lines
from hesnr_tasks.filters import FILTERS, filter_bits
from hesnr_tasks.trajectory import Kind, Trajectory
from hesnr_tasks.viewer import Totals, totals, view_of
from tests.unit.viewer import examples

SGR = re.compile(r"\x1b\[([\d;]*)m")
SIGNS = {"\t": "    ", "\r": ""}


def written(trajectory, **style):
    view = view_of(trajectory)
    return list(lines(view, totals(view), Style(**style)))


def rows(out, kind, bar):
    """Texts of the rows of the first block of `kind`, without the gutter."""
    gutter = re.compile(rf"( *\w* )(?:\x1b\[[\d;]+m)?{bar}(?:\x1b\[0m)? ?(.*)")
    start = next(i for i, line in enumerate(out) if (m := gutter.match(line)) and m[1].strip() == kind)
    texts = []
    for line in out[start:]:
        match = gutter.match(line)
        if not match or (texts and match[1].strip()):
            break
        texts.append(match[2])
    return texts


def action(text):
    return Trajectory("t", (examples.message("assistant", ("action", text)),))


def test_letters_stand_under_the_characters_that_are_dropped():
    command = "cd a && ls  # look 漢字 around\n====\necho 漢字 # x"
    text = f"<function=bash>\n<parameter=command>{command}</parameter>\n</function>"
    texts = iter(rows(written(action(text), marks=True), "action", "┃"))
    assert rows(written(action(text)), "action", "┃") == text.split("\n")  # piped: the text alone
    bits = filter_bits(text).tolist()
    offset = 0
    for line in text.split("\n"):
        hit = [b if c.strip() else 0 for c, b in zip(line, bits[offset:])]
        offset += len(line) + 1
        assert next(texts) == line
        if any(hit):
            widths = [2 if unicodedata.east_asian_width(c) == "W" else 1 for c in line]
            letters = {0: " ", 1: "x", 2: "f", 4: "c"}
            assert next(texts) == "".join(letters[b & -b] * w for b, w in zip(hit, widths)).rstrip()
    assert next(texts, None) is None
    assert all(f"{name[0]} {name}" in legend(Style(marks=True)) for name in FILTERS)


def test_colours_say_the_same_as_letters():
    out = rows(
        written(action("<function=bash>\n<parameter=command>ls  # look</parameter>"), colour=True), "action", "┃"
    )
    shown = SGR.sub(lambda m: {"0": "", "32": ""}.get(m[1], f"‹{m[1]}›"), out[1])
    assert shown == "‹2;9;37›<parameter=command>ls  ‹2;9;31›# ‹2;9;31›look‹2;9;37›</parameter>"


def test_every_kind_has_a_colour_and_a_bar_of_its_own():
    out = written(examples.hostile(), colour=True)
    bars = {m[2]: m[1] for line in out if (m := re.search(r"^ +\w* ?\x1b\[([\d;]+)m(.)\x1b", line))}
    assert len(bars) == len(set(bars.values())) == len(Kind)


def test_ascii_bars_where_others_cannot_be_written():
    out = "\n".join([legend(Style(ascii=True)), *written(examples.small(), ascii=True)])
    assert "action #" in out
    assert out.replace("😀", "").isascii()


def test_nothing_steers_the_terminal():
    steering = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
    for trajectory in (examples.strange(), examples.hostile()):
        assert not steering.search("\n".join(written(trajectory)))
        assert not steering.search(SGR.sub("", "\n".join(written(trajectory, colour=True))))
    assert rows(written(action("ls \x1b]0;x\x07\u202ea")), "action", "┃") == ["ls ␛]0;x␇\ufffda"]


@pytest.mark.parametrize("width", [40, 80])
def test_wrapped_rows_fit_and_lose_nothing(width):
    text = "ab漢" * 100 + "\n\tend"
    trajectory = Trajectory("t", (examples.message("assistant", ("thought", text)),))
    texts = rows(written(trajectory, width=width), "thought", "╎")
    cells = [sum(2 if c == "漢" else 1 for c in row) for row in texts]
    assert max(cells) <= width - 14
    assert "".join(texts) == text.replace("\n", "").replace("\t", "    ")


def test_long_texts_are_folded_and_say_so():
    trajectory = examples.long(20_000)
    out = rows(written(trajectory), "observation", "│")
    note = re.fullmatch(r"\.\.\. (\d+) lines, ([\d,]+) characters not shown \(--full shows them\) \.\.\.", out[30])
    listing = trajectory.messages[2].text.splitlines(keepends=True)
    assert len(out) == 41
    assert int(note[1]) == len(listing) - 40
    assert (
        int(note[2].replace(",", "")) == len("".join(listing[30:-10])) - 1
    )  # the last line end is not of the text cut
    assert rows(written(trajectory, full=True), "observation", "│")[-1] == listing[-1].rstrip().replace("\t", "    ")


def test_totals_are_printed_by_turn_and_in_all():
    trajectory = examples.long(20_000)
    turns = totals(view_of(trajectory))
    out = written(trajectory)
    heads = [line for line in out if line.startswith("-- turn")]
    for number, (head, turn) in enumerate(zip(heads, turns, strict=True), 1):
        assert head.startswith(f"-- turn {number} --")
        assert f"action {turn.characters[Kind.ACTION]:,}, kept {turn.kept:,} of action" in head
    assert f"kept {sum(turn.kept for turn in turns):,} of action" in out[-2]
    assert out[-1].startswith("dropped from actions: " + ", ".join(
        f"{name} {sum(turn.dropped[name] for turn in turns):,}" for name in FILTERS))  # fmt: skip


def test_what_is_no_terminal_gets_neither_colour_nor_width():
    assert style_of(io.StringIO(), full=True) == Style(full=True, ascii=True)


def test_headings_fit_the_terminal_and_are_one_line_where_they_are_piped():
    turn = Totals()
    turn.characters.update({Kind.OBSERVATION: 123_456, Kind.THOUGHT: 12_345, Kind.ACTION: 123_456})
    turn.tokens, turn.counted = 123_456, 12_345
    piped = next(total_lines("total", [turn], Style()))
    folded = list(total_lines("total", [turn], Style(width=60)))[:-1]
    assert len(folded) > 1
    assert max(map(len, folded)) <= 60
    assert " ".join(" ".join(folded).split()) == piped
