"""The page in a real browser: nothing of a trajectory runs, every character is there, and what is shown is right."""

import json
import math

import pytest

from hesnr_tasks.filters import FILTERS, filter_bits
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.viewer import RunSummary, TokenView, render_page, tokenize, totals, view_of
from tests.slow import browser
from tests.unit.viewer import examples

# what the page shows of the trajectory, joined: the text of the elements that hold text, whatever is around it
SHOWN = "[...document.querySelectorAll('#text .chunk')].map((c) => c.textContent).join('')"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def tab():
    if browser.binary() is None:
        pytest.skip("no Chromium is installed (chromium, chromium-browser or google-chrome)")
    opened = browser.Browser()
    yield opened
    opened.close()


@pytest.fixture
def show(tab, tmp_path):
    """Open a page of trajectories; afterwards nothing may have been loaded and nothing may have gone wrong."""
    path = tmp_path / "page.html"

    def opened(trajectories, *tokens, fragment="", **kwargs):
        path.write_text(render_page([view_of(t) for t in trajectories], *tokens, **kwargs), encoding="utf-8")
        tab.open(path, fragment)
        ready(tab)
        return tab

    yield opened
    assert tab.problems == []
    assert tab.requests == [path.as_uri()]


def ready(tab):
    """Wait until the trajectory that is opened has been unpacked and drawn."""
    tab.evaluate(
        "new Promise((done) => { const look = () => document.documentElement.dataset.busy === undefined &&"
        "document.querySelector('.turn') ? done() : setTimeout(look, 10); look(); })"
    )
    tab.settle()


def click(tab, selector):
    tab.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
    ready(tab)


def texts(tab, selector):
    return tab.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")


# --- safety and completeness ------------------------------------------------------------------------------------------


def test_nothing_of_a_hostile_trajectory_runs(show):
    tab = show([examples.hostile()])
    click(tab, "#unfold")
    tab.evaluate("new Promise((done) => setTimeout(done, 300))")  # time for handlers, refreshes and loads to strike
    assert tab.evaluate("typeof window.__hacked") == "undefined"
    assert tab.evaluate("document.title") == f"{examples.hostile().id} – hesnr inspect"
    assert tab.evaluate("location.protocol") == "file:"
    # nor has any of it become an element
    assert tab.evaluate("document.querySelectorAll('img, svg, iframe, base, template, math, textarea').length") == 0
    assert tab.evaluate("document.querySelectorAll('#text script, #text style, #text a, #text meta').length") == 0
    assert tab.evaluate("getComputedStyle(document.body).display") != "none"


def test_the_tests_notice_a_script_that_runs(tab, tmp_path):
    """The watch kept above can fail: without escaping and policy the same attacks do run."""
    path = tmp_path / "unsafe.html"
    path.write_text(f"<title>x</title><p>{examples.ATTACKS[1]}{examples.ATTACKS[4]}<script>missing()</script>")
    tab.open(path)
    assert tab.evaluate("window.__hacked") in (2, 4)
    assert any("missing is not defined" in problem for problem in tab.problems)


@pytest.mark.parametrize(
    "make", [examples.hostile, examples.strange, examples.long], ids=["hostile", "strange", "long"]
)
def test_every_character_is_shown_once_in_order(show, make):
    tab = show([make()])
    wanted = view_of(make()).text
    assert tab.evaluate(SHOWN) == wanted
    click(tab, "#unfold")
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")  # draws everything
    assert tab.evaluate(SHOWN) == wanted
    # and the elements that hold text hold all text of the turns but headings, labels and buttons
    rest = "[...document.querySelectorAll('.turn > header, .label, .fold')].map((e) => e.textContent).join('').length"
    assert tab.evaluate(f"document.getElementById('text').textContent.length - ({rest})") == tab.evaluate(
        f"({SHOWN}).length"
    )


def test_characters_have_the_kind_they_are_labelled_with(show):
    tab = show([examples.hostile()])
    blocks = tab.evaluate(
        "[...document.querySelectorAll('.block')].map((b) => [b.className.match(/k-(\\w+)/)[1],"
        "[...b.querySelectorAll('.chunk')].map((c) => c.textContent).join('')])"
    )
    view = view_of(examples.hostile())
    assert blocks == [[b.kind.value, view.text[b.start : b.end]] for b in view.blocks]
    shown = tab.evaluate(
        "Object.fromEntries(['context', 'observation', 'thought', 'action'].map((k) => {"
        "const s = getComputedStyle(document.querySelector(`.k-${k} > .body`));"
        "return [k, [s.backgroundColor, s.borderLeftStyle + s.borderLeftWidth]] }))"
    )
    assert len({colour for colour, _ in shown.values()}) == 4
    assert len({edge for _, edge in shown.values()}) == 4  # known without colour, too


@pytest.mark.parametrize("make", [examples.hostile, examples.strange], ids=["hostile", "strange"])
def test_filtered_characters_are_struck_and_say_why(show, make):
    tab = show([make()])
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    shown = tab.evaluate(
        "[...document.querySelectorAll('.block.k-action')].map((b) => [...b.querySelectorAll('.chunk')].flatMap((c) =>"
        "[...c.childNodes].map((n) => [n.textContent, Number(n.dataset?.f || 0), n.classList?.contains('ink') &&"
        "getComputedStyle(n).textDecorationLine])))"
    )
    view = view_of(make())
    blocks = [b for b in view.blocks if b.kind is Kind.ACTION]
    for block, nodes in zip(blocks, shown, strict=True):
        bits = [f for text, f, _ in nodes for _ in text]
        assert bits == filter_bits(view.text[block.start : block.end]).tolist()
        assert all(line == "line-through" for text, f, line in nodes if f and text.strip() and "\x1b" not in text)
    first = next(f for nodes in shown for _, f, line in nodes if line)
    tab.hover(".dropped.ink")
    names = [name for i, name in enumerate(FILTERS) if first >> i & 1]
    assert texts(tab, "#tip") == ["dropped by " + ", ".join(names)]


def test_control_and_direction_characters_show_as_signs(show):
    tab = show([examples.strange()])
    signs = tab.evaluate("[...document.querySelectorAll('.k-context .control')].map((e) => e.dataset.c)")
    assert signs == ["U+202E", "U+202C", "U+200B", "␛", "␛", "␀", "␇", "U+009B", "U+FEFF"]
    # and the text after U+202E still reads from left to right
    places = tab.evaluate(
        "(() => { const node = [...document.querySelectorAll('.k-context .chunk')][0].childNodes[2];"
        "return [...node.data].map((_, i) => { const r = new Range(); r.setStart(node, i); r.setEnd(node, i + 1);"
        "return [node.data[i], r.getBoundingClientRect().left] }) })()"
    )
    assert "".join(char for char, _ in sorted(places, key=lambda place: place[1])) == "evil"


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_totals_are_those_of_the_view_and_follow_the_filters(show):
    trajectory = examples.long(9000)
    tab = show([trajectory])
    turns = totals(view_of(trajectory))
    kept = [turn.kept for turn in turns]
    assert texts(tab, ".turn > header b") == [f"{n:,} kept" for n in kept]
    assert texts(tab, "#outline .kept") == [f"{n:,} ch" for n in kept]
    click(tab, "#filters .f2")  # comments stay
    without = [
        sum(1 for b in view_of(trajectory).blocks if b.kind is Kind.ACTION and b.turn == n + 1
            for bits in filter_bits(view_of(trajectory).text[b.start : b.end]) if not bits & 0b011)
        for n in range(len(turns))
    ]  # fmt: skip
    assert without[1] > kept[1]
    assert texts(tab, ".turn > header b") == [f"{n:,} kept" for n in without]
    for name in ("#filters .f0", "#filters .f1"):
        click(tab, name)
    assert texts(tab, ".turn > header b") == [f"{turn.characters[Kind.ACTION]:,} kept" for turn in turns]
    assert tab.evaluate("document.querySelectorAll('.chunk .dropped').length") == 0


def test_kinds_can_be_hidden_and_shown(show):
    tab = show([examples.small()])
    visible = "document.querySelector('.k-thought > .body').checkVisibility()"
    click(tab, "#kinds .k-thought")
    assert tab.evaluate(visible) is False
    click(tab, "#kinds .k-thought")
    assert tab.evaluate(visible) is True


# --- finding one's way ------------------------------------------------------------------------------------------------


def test_search_finds_all_and_goes_round(show):
    tab = show([examples.hostile()], fragment="#q=JAVASCRIPT:WINDOW")
    text = view_of(examples.hostile()).text.lower()
    wanted = text.count("javascript:window")
    assert wanted > 50
    assert tab.evaluate(COUNT) == str(wanted)
    click(tab, "#next")
    assert tab.evaluate(COUNT) == f"1 of {wanted}"
    assert texts(tab, ".match.current") == ["javascript:window"]
    click(tab, "#previous")
    assert tab.evaluate(COUNT) == f"{wanted} of {wanted}"
    before = "(() => { const r = new Range(); r.setStart(document.getElementById('text'), 0);" \
             "r.setEndBefore(document.querySelector('.match.current')); const d = r.cloneContents();" \
             "return [...d.querySelectorAll('.chunk')].map((c) => c.textContent).join('').length })()"  # fmt: skip
    assert tab.evaluate(before) == text.rindex("javascript:window")
    assert tab.evaluate(SHOWN).lower() == text


def test_search_opens_what_is_folded_or_hidden(show):
    tab = show([examples.long(30_000)])
    click(tab, "#kinds .k-observation")
    tab.evaluate("document.getElementById('query').value = 'note 300'")
    tab.call("Runtime.evaluate", expression="document.getElementById('query').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
    tab.settle()
    box = tab.evaluate("document.querySelector('.match.current').getBoundingClientRect().toJSON()")
    assert 90 < box["top"] < 880  # on the screen, below the bars
    assert texts(tab, ".match.current") == ["note 300"]


def test_a_search_without_matches_says_so(show):
    tab = show([examples.small()], fragment="#q=.*")
    assert tab.evaluate(COUNT) == "none"


def test_long_observations_fold_and_unfold(show):
    tab = show([examples.long(30_000)])
    height = "document.querySelector('.block.k-observation').offsetHeight"
    assert 200 < tab.evaluate(height) < 450
    assert texts(tab, ".k-observation .fold")[0].startswith("▾ 319 more lines")
    click(tab, ".k-observation .fold")
    assert tab.evaluate(height) > 5000
    click(tab, ".k-observation .fold")
    assert 200 < tab.evaluate(height) < 450


def test_turns_and_trajectories_can_be_gone_to(show):
    tab = show([examples.small(), examples.long(60_000)], fragment="#t=1&turn=2")
    assert texts(tab, "#name") == ["long"]
    top = "document.getElementById('turn-2').getBoundingClientRect().top"
    assert 80 < tab.evaluate(top) < 130
    assert texts(tab, "#outline .open .n") == ["2"]
    click(tab, "#trajectories li:first-child a")
    assert texts(tab, "#name") == ["small"]
    assert tab.evaluate(SHOWN) == view_of(examples.small()).text


def test_dark_and_light_follow_the_system_and_the_button(show):
    tab = show([examples.small()])
    light = "getComputedStyle(document.body).backgroundColor"
    tab.media(prefers_color_scheme="dark")
    dark = tab.evaluate(light)
    tab.media(prefers_color_scheme="light")
    assert tab.evaluate(light) != dark
    click(tab, "#theme")
    assert tab.evaluate(light) == dark
    tab.evaluate("localStorage.clear()")


def test_copied_text_is_the_trajectorys_own(show):
    tab = show([examples.small()])
    copied = tab.evaluate(
        "(() => { getSelection().selectAllChildren(document.getElementById('text')); "
        "const data = new DataTransfer(); document.dispatchEvent(new ClipboardEvent('copy', {clipboardData: data}));"
        "return data.getData('text/plain') })()"
    )
    assert copied == view_of(examples.small()).text


def test_two_hundred_thousand_characters_do_not_freeze(show):
    """No task takes longer than 0.3 s on an idle machine; and only what is near the screen is drawn in detail."""
    trajectory = examples.long(215_000)
    text = view_of(trajectory).text
    tokens = [TokenView(i, min(i + 4, len(text)), 1.0, 1.0) for i in range(0, len(text), 4)]
    tab = show([trajectory], [tokens], fragment="#colour=surprisal-a")
    click(tab, "#unfold")
    tab.evaluate("window.scrollTo(0, 50000)")
    tab.settle()
    observe = "new PerformanceObserver((list) => done(list.getEntries().map((e) => e.duration)))"
    observe += ".observe({type: 'longtask', buffered: true}); setTimeout(() => done([0]), 500)"
    tasks = f"new Promise((done) => {{ {observe} }})"
    count = "for (let i = 0; i < 3e7; i++) sum += i % 7;"  # some 50 ms on an idle machine: how slow is this one?
    slowness = tab.evaluate(f"(() => {{ let sum = 0, t = performance.now(); {count} return performance.now() - t }})()")
    assert max(tab.evaluate(tasks)) < max(3000, 40 * slowness)
    assert 0 < tab.evaluate("document.querySelectorAll('.token').length") < len(tokens) / 3


# --- tokens -----------------------------------------------------------------------------------------------------------


def owners(tab):
    return tab.evaluate("[...document.querySelectorAll('#text .token')].map((e) => [e.textContent, [...e.classList]])")


def joined(pieces):
    """Pieces of the same token, which filters cut, put together."""
    return [(text, {c for c in classes if c.startswith(("v", "d", "up", "set", "off", "heat"))} - {"dropped"})
            for text, classes in pieces]  # fmt: skip


def test_token_borders_are_the_tokenizers(show):
    from hesnr_tasks.trajectory.alignment import Encoder
    from tests import tiny

    trajectory = examples.small()
    view = view_of(trajectory)
    tokens, turns = tokenize(view, Encoder(tiny.byte_level()))
    tab = show([trajectory], [tokens], fragment="#colour=tokens")
    pieces = tab.evaluate("[...document.querySelectorAll('#text .token')].map((e) => [e.dataset.t, e.textContent])")
    shown = {}
    for owner, text in pieces:
        shown[owner] = shown.get(owner, "") + text
    wanted, position = [], 0  # a character whose bytes lie in several tokens is shown with the first of them
    for token in tokens:
        if token.end > max(position, token.start):
            wanted.append(view.text[max(position, token.start) : token.end])
            position = token.end
    assert list(shown.values()) == wanted
    total = sum(turn.counted for turn in turns)
    assert f"{len(tokens):,} tokens, {total:,} count" in texts(tab, ".turn > header .counts")[0]


def test_tokens_are_coloured_by_surprisal_and_entropy(show):
    trajectory = examples.small()
    tokens = examples.tiny_tokens(view_of(trajectory).text, sure=False)
    tab = show([trajectory], [tokens], fragment="#colour=entropy-a")
    pieces = joined(owners(tab))
    # ln 2, ln 4, ln 5, ln 1; and 😀, whose two tokens have ln 3 and ln 10: the larger shows
    steps = [min(9, int(10 * math.log(n) / math.log(10))) for n in (2, 4, 4, 5, 1, 10)]
    texts_ = [text for text, _ in pieces]
    assert texts_ == ["ls", " ", "-", "a", " ", "😀"]
    assert [f"v{n}" in classes for n, (_, classes) in zip(steps, pieces)] == [True] * 6
    assert ["set-both" in classes for _, classes in pieces] == [False, True, True, True, False, True]
    assert "off" in pieces[4][1]  # a space alone does not count
    tab.evaluate(
        "mode = document.getElementById('mode'); mode.value = 'surprisal-a'; mode.dispatchEvent(new Event('change'))"
    )
    tab.settle()
    # surprisals add up: ln 3 + ln 10 = 3.4 of 6 nats
    assert f"v{int(10 * math.log(30) / 6)}" in joined(owners(tab))[5][1]
    assert "6 tokens, 5 count, 3 in 𝓗" in texts(tab, ".turn > header .counts")[0]


def test_hovering_shows_the_top_10(show):
    trajectory = examples.small()
    tab = show(
        [trajectory], [examples.tiny_tokens(view_of(trajectory).text, sure=False)], fragment="#colour=surprisal-a"
    )
    tab.hover("#text .token")
    assert texts(tab, "#tip .piece") == ["ls"]
    assert texts(tab, "#tip .model p") == ["surprisal 0.693 nats (p = 0.500)", "H_top10 0.693 nats"]
    rows = texts(tab, "#tip tr")
    assert rows[:3] == ["ls0.500", "<1>0.500", "z0< 0.001"]
    assert len(rows) == 10
    assert texts(tab, "#tip .own code") == ["ls"]


def test_two_models_are_shown_as_their_difference(show):
    trajectory = examples.small()
    text = view_of(trajectory).text
    a, b = (examples.tiny_tokens(text, sure=sure) for sure in (False, True))
    tab = show([trajectory], [a], [b[:3]], fragment="#colour=surprisal-difference", names=("step 1", "step 2"))
    pieces = joined(owners(tab))
    # b - a: 0, -ln 4, -ln 5 of 3 nats in five steps; the others are not known of b
    assert [sorted(c for c in classes if c[0] == "d") for _, classes in pieces[:4]] == [
        ["d0", "down"], ["d2", "down"], ["d2", "down"], ["d3", "down"]
    ]  # fmt: skip
    assert "heat" not in pieces[5][1]
    assert ["set-a" in classes for _, classes in pieces] == [False, True, True, True, False, True]
    assert "3 of them have no counterpart in step 2" in texts(tab, "#summary")[0]
    tab.hover("#text .token")
    assert texts(tab, "#tip h4") == ["step 1", "step 2"]


def test_hostile_candidates_and_names_are_text(show):
    trajectory = examples.small()
    start = view_of(trajectory).text.index("ls")
    top = [(attack, 0.05) for attack in examples.ATTACKS[:10]]
    token = TokenView(start, start + 2, 1.0, 2.0, True, top)
    tab = show([trajectory], [[token]], [[token]], fragment="#colour=entropy-difference", names=examples.ATTACKS[3:5])
    tab.hover("#text .token")
    assert tab.evaluate("typeof window.__hacked") == "undefined"
    assert tab.evaluate("document.querySelectorAll('#tip img, #tip script, #scale img').length") == 0
    assert len(texts(tab, "#tip tr")) == 20
    assert texts(tab, "#tip h4") == list(examples.ATTACKS[3:5])


# --- reading with scores ----------------------------------------------------------------------------------------------


def press(tab, key):
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key)
    tab.settle()


def marked(tab):
    return "".join(texts(tab, "#text .cursor"))


def test_scores_open_on_surprisal_and_keys_go_to_decisions_and_large_differences(show):
    trajectory = examples.small()
    text = view_of(trajectory).text
    a, b = (examples.tiny_tokens(text, sure=sure) for sure in (False, True))
    mode = "document.getElementById('mode').value"
    assert show([trajectory], [a]).evaluate(mode) == "surprisal-a"
    tab = show([trajectory], [a], [b])
    assert tab.evaluate(mode) == "surprisal-difference"
    stops = []
    for key in "hhhhH":
        press(tab, key)
        stops.append(marked(tab))
    assert stops == [" -", "a", "😀", " -", "😀"]  # around the end, and back
    tab.settle()
    assert texts(tab, "#tip .piece") == ["😀", "😀"]  # its two tokens
    press(tab, "Escape")
    stops = []
    for key in "ddD":  # after 😀: around to ` -`; `ls` does not differ, the space does not count
        press(tab, key)
        stops.append(marked(tab))
    assert stops == [" -", "a", " -"]
    click(tab, "#filters .f0")
    click(tab, "#difference")
    assert marked(tab) == "a"


def test_the_largest_differences_are_listed_and_lead_to_their_tokens(show):
    others = [examples.long(3000), examples.small()]
    text = view_of(others[1]).text
    a, b = (examples.tiny_tokens(text, sure=sure) for sure in (False, True))
    tab = show(others, [[], a], [[], b])
    assert texts(tab, "#differences .id") == ["😀", "a", "␣-", "😀", "ls"]
    assert texts(tab, "#differences .kept")[:2] == ["−2.30", "−1.61"]
    click(tab, "#differences li:nth-child(2) a")
    assert texts(tab, "#name") == ["small"]
    tab.settle()
    assert marked(tab) == "a"


def test_trajectories_sort_by_he_snr_and_what_is_not_known_comes_last(show):
    shown = [examples.small(), examples.long(2000), examples.hostile(), examples.strange()]
    values = [0.25, None, 0.5, 0.125]
    runs = [RunSummary(10, 0 if v is None else 5, v, 0.5) for v in values]
    tab = show(shown, [[]] * 4, summaries=[runs])
    heads = texts(tab, "#all th")
    assert heads[4:] == ["HE-SNR", "𝓗", "scored"]
    column = "#all td:nth-child(5)"
    assert texts(tab, column) == ["0.2500", "–", "0.5000", "0.1250"]
    assert texts(tab, "#all tr:first-child td:nth-child(6)") == ["50.0 %"]
    for wanted in (["0.5000", "0.2500", "0.1250", "–"], ["0.1250", "0.2500", "0.5000", "–"]):
        click(tab, "#all th:nth-child(5) button")
        assert texts(tab, column) == wanted
        assert texts(tab, "#trajectories .kept") == wanted
    click(tab, "#all tbody tr:nth-child(3) a")
    assert texts(tab, "#name") == [examples.hostile().id]
    assert tab.evaluate("document.querySelectorAll('#all img, #all script, #side img').length") == 0


def test_nothing_is_wider_than_a_phone(show):
    a = examples.tiny_tokens(view_of(examples.small()).text, sure=False)
    tab = show([examples.small(), examples.hostile()], [a, []], [a, []], names=("a-long-name-of-a-run", "another"))
    tab.size(360, 740)
    tab.settle()
    width = tab.evaluate("document.documentElement.scrollWidth")
    click(tab, "#decision")
    box = tab.evaluate("document.getElementById('tip').getBoundingClientRect().toJSON()")
    tab.size(1280, 900)
    assert width <= 360
    assert box["left"] >= 0
    assert box["right"] <= 360
