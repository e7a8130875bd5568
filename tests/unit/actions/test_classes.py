"""Action keys: against commands labelled by hand, and properties that no command may break."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.actions.classes import CLASSES, action_class, canonical_command, canonical_key

KEYS = (action_class, canonical_key, canonical_command)
LABELLED = [json.loads(line) for line in (Path(__file__).parent / "commands.jsonl").read_text().splitlines()]
WORD = st.text("abcxyz019_./-+,@ '\"\\&|;#()<>", min_size=1, max_size=8).filter(lambda w: not w.startswith("-"))
PLAIN = st.text("abcxyz019_.", min_size=1, max_size=8)
ANY = st.one_of(
    st.text(max_size=80),
    st.text("ab =$()`'\"\\|&;<>#\n{}!*-", max_size=60),
    st.lists(
        st.sampled_from(["cat", "<<EOF", "sed", "-i", "python", "-", "-c", "$(", ")", "'", '"', "|", "xargs", "\n"])
    ).map(" ".join),
)


def test_every_hand_labelled_command_has_its_class_and_key():
    assert len(LABELLED) >= 240
    assert sum(first["source"] != "written" for first in LABELLED) >= 140
    wrong = [
        (first["command"][:80], first["key"], canonical_key(first["command"]))
        for first in LABELLED
        if (action_class(first["command"]), canonical_key(first["command"])) != (first["class"], first["key"])
    ]
    assert wrong == []


@given(ANY)
@settings(max_examples=300)
def test_any_text_has_keys_that_refine_each_other(text):
    kind, file, whole = (key(text) for key in KEYS)
    assert kind in CLASSES
    assert file == kind or file.startswith(f"{kind}:")
    assert 0 < len(whole) <= 240
    assert len(file) <= 240


@given(st.lists(WORD, min_size=1, max_size=5), st.data())
@settings(max_examples=200)
def test_quotes_and_white_space_that_change_nothing_change_no_key(words, data):
    spaces = st.sampled_from([" ", "  ", "\t", " \\\n "])

    def spelled():
        return "cat" + "".join(data.draw(spaces) + quoted(word, data.draw(st.integers(0, 2))) for word in words)

    first, other = spelled(), spelled() + data.draw(st.sampled_from(["", " ", " # why", "\n"]))
    assert all(key(first) == key(other) for key in KEYS)


def quoted(word, style):
    """The same word in single quotes, in double quotes, or with every sign escaped."""
    if style == 0:
        return "'" + word.replace("'", "'\\''") + "'"
    if style == 1:
        return '"' + "".join("\\" + c if c in '"\\' else c for c in word) + '"'
    return "".join(c if c.isalnum() or c in "_./" else "\\" + c for c in word)


@given(st.lists(PLAIN, min_size=1, max_size=3), st.lists(PLAIN, min_size=1, max_size=3))
def test_different_words_have_different_whole_keys(first, other):
    assert (canonical_command("cat " + " ".join(first)) == canonical_command("cat " + " ".join(other))) == (
        first == other
    )


@pytest.mark.parametrize("key_of", KEYS)
@pytest.mark.parametrize(
    "command", ["grep -n foo a.py", "python repro.py | tail -3", "sed -i 's/a/b/' src/a.py", "git diff"]
)
def test_going_to_the_repository_first_is_no_action(command, key_of):
    for place in ("/testbed", "/workspace/django__django__4.2", "/pvlib__pvlib-python"):
        assert key_of(f"cd {place} && {command}") == key_of(command)
    assert canonical_command(f"cd sub && {command}") != canonical_command(command)


def test_a_path_is_the_same_from_wherever_it_is_named():
    keys = {
        canonical_key(command)
        for command in (
            "cat /testbed/src/a.py",
            "cat src/a.py",
            "cat ./src/../src/a.py",
            "cd /testbed/src && cat a.py",
            "cd /testbed; cd src; cat 'a.py'",
            "cat src/a.py | head -20",
            "head -n 20 src/a.py",
            "<function=str_replace_editor>\n<parameter=command>view</parameter>\n"
            "<parameter=path>/testbed/src/a.py</parameter>\n</function>",
        )
    }
    assert keys == {"read:src/a.py"}


@pytest.mark.parametrize("key_of", KEYS)
def test_the_form_of_a_call_does_not_count(key_of):
    command = "sed -i 's/\"a\"/b/' a.py && python -m pytest -q tests/test_a.py"
    forms = [
        command,
        f"```bash\n{command}\n```",
        f"<function=execute_bash>\n<parameter=command>{command}</parameter>\n</function>",
        f"<function=bash>\n<parameter=command>\n{command}\n</parameter>\n</function>",
        f"<tool_call>\n{json.dumps({'name': 'bash', 'arguments': {'command': command}})}\n</tool_call>",
    ]
    assert len({key_of(form) for form in forms}) == 1


def test_the_name_of_a_here_documents_end_does_not_count_but_its_body_does():
    here = "cat > a.py <<'{0}'\n{1}\n{0}"
    assert canonical_command(here.format("EOF", "x = 1")) == canonical_command(here.format("END", "x = 1  "))
    assert canonical_command(here.format("EOF", "x = 1")) != canonical_command(here.format("EOF", "x = 2"))
    assert canonical_key(here.format("EOF", "x = 1")) == canonical_key(here.format("EOF", "x = 2")) == "edit:a.py"


def test_what_a_glob_means_is_not_what_its_quoted_letters_mean():
    assert canonical_command("ls *.py") != canonical_command("ls '*.py'")
    assert canonical_command('echo "$HOME"') != canonical_command("echo '$HOME'")


@pytest.mark.parametrize(
    ("code", "key"),
    [
        ("p = 'a.py'\nq = p\nopen(q, 'w').write('x')", "edit:a.py"),
        ("import io\nio.open('a.py', mode='a')", "edit:a.py"),
        ("from pathlib import Path\nPath('a.py').open('w')", "edit:a.py"),
        ("import os\nos.remove('a.py')", "edit:a.py"),
        ("import shutil\nshutil.copy('b', 'a.py')", "edit:a.py"),
        ("import sys\nopen(sys.argv[1], 'w')", "edit"),
        ("print(open('a.py').read().replace('a', 'b'))", "run:-"),
        ("open('a.py', 'r')", "run:-"),
        ("a = b\nb = a\nopen(a, 'w')", "edit"),
        ("this is not python: open('a.py', 'w')", "edit:a.py"),
    ],
)
def test_a_program_given_on_the_spot_edits_what_it_writes(code, key):
    assert canonical_key(f"python - <<'EOF'\n{code}\nEOF") == key
    assert canonical_key(f"<function=execute_ipython_cell>\n<parameter=code>{code}</parameter>\n</function>") == key


def test_nothing_is_executed(tmp_path):
    mark = tmp_path / "mark"
    for command in (f"touch {mark}", f"$(touch {mark})", f"python -c \"open('{mark}','w')\"", f"`touch {mark}`"):
        assert canonical_key(command)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["$(" * 20_000, "'" * 99_999, "a|" * 20_000, "cat <<E\n" * 10_000, "bash -c '" * 5_000]
)
def test_time_is_bounded_for_hostile_texts(text):
    begun = time.process_time()
    assert all(key(text) for key in KEYS)
    assert time.process_time() - begun < 20  # a minute and more where time grows with the square of the length
