"""Labelled fragments (fragments/*.txt): nearly every comment character is found and nearly no code is lost."""

import pytest

from hesnr_tasks.actions.tools import names
from hesnr_tasks.filters.languages import LANGUAGES, comments_of
from tests.unit.filters.marked import FRAGMENTS, fragments, mark, positions

LABELLED = sorted(path.stem for path in FRAGMENTS.glob("*.txt"))
COMMON = ("c", "cpp", "go", "java", "javascript", "php", "python", "ruby", "rust", "shell", "typescript")

LEXED = sorted(name for name, language in LANGUAGES.items() if language.comments)
SMALL = names("dart groovy scala elixir erlang haskell julia lua perl powershell r terraform")


def found_in(text, language):
    return {i for i in positions(comments_of(text, language)) if not text[i].isspace()}


@pytest.mark.parametrize("language", LABELLED)
def test_comment_characters_found_and_code_characters_lost(language):
    wanted = missed = code = lost = 0
    wrong = []
    for title, text, marked in fragments(language):
        expected = {i for i in marked if not text[i].isspace()}
        found = found_in(text, language)
        wanted += len(expected)
        missed += len(expected - found)
        code += sum(not c.isspace() for c in text) - len(expected)
        lost += len(found - expected)
        if found != expected:
            wrong.append(f"{title}:\n{mark(text, found)}")
    assert missed <= 0.01 * wanted, "\n".join(wrong)
    assert lost <= 0.001 * code, "\n".join(wrong)


def test_there_are_twenty_fragments_of_the_common_languages():
    assert all(len(fragments(language)) >= 20 for language in COMMON)
    assert all(len(fragments(language)) >= 8 for language in SMALL)


@pytest.mark.parametrize("language", LABELLED)
def test_every_language_has_fragments_with_and_without_traps(language):
    labelled = fragments(language)
    assert LANGUAGES[language].comments
    assert any(marked for _, _, marked in labelled)
    assert all(text.strip() for _, text, _ in labelled)


@pytest.mark.parametrize("language", LEXED)
def test_cutting_a_file_anywhere_never_raises(language):
    sample = "".join(text for _, text, _ in fragments(language if language in LABELLED else "javascript"))
    for cut in range(0, len(sample), 37):
        for text in (sample[cut : cut + 400], sample[:cut]):
            assert all(0 <= start <= end <= len(text) for start, end in comments_of(text, language))
