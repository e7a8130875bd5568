"""Text for pre-training: programs of the closed language, repairs without tools, notes, and prose.

Functions are of the bucket "train" only. A family of models is a mixture of these kinds of documents.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from .agent import call
from .programs import FILES, NAMES, Function, make_function

__all__ = ["FAMILIES", "documents"]

FAMILIES = {  # shares of documents
    "code": {"program": 0.15, "checks": 0.05, "pair": 0.25, "review": 0.2, "list": 0.15, "note": 0.1, "prose": 0.1},
    "prose": {"program": 0.05, "checks": 0.02, "pair": 0.1, "review": 0.1, "list": 0.13, "note": 0.1, "prose": 0.5},
}

PEOPLE = ("Ada", "Ben", "Cleo", "Dora", "Emil", "Finn", "Gus", "Hana")
NOUNS = (
    "apple", "boat", "bread", "chair", "coat", "door", "drum", "field", "garden", "hat", "hill", "horse", "house",
    "lamp", "letter", "mill", "moon", "nest", "river", "road", "shop", "stone", "tower", "tree", "wagon", "well",
)  # fmt: skip
ADJECTIVES = (
    "blue",
    "cold",
    "deep",
    "green",
    "heavy",
    "high",
    "long",
    "new",
    "old",
    "red",
    "round",
    "small",
    "soft",
    "tall",
)
VERBS = (
    "bought", "built", "carried", "cleaned", "followed", "hid", "kept", "liked", "lost", "moved", "painted", "saw",
    "sold", "watched",
)  # fmt: skip
PLACES = ("behind", "near", "under", "beside", "above", "inside")
TIMES = ("In the morning", "Later", "At noon", "That night", "After the rain", "In winter", "One day", "Soon")


def functions(rng: random.Random, number: int, **settings: bool) -> list[Function]:
    return [make_function(name, "train", rng, **settings) for name in rng.sample(NAMES, number)]


def numbered(lines: list[str]) -> str:
    return "\n".join(f"{number} {line}" for number, line in enumerate(lines, 1))


def program(rng: random.Random) -> str:
    lines = [line for f in functions(rng, rng.randint(2, 5)) for line in f.lines(repaired=True)]
    return "\n".join([rng.choice(FILES) + ":", *lines] if rng.random() < 0.5 else lines)


def checks(rng: random.Random) -> str:
    (function,) = functions(rng, 1)
    calls = [f"{function.name}({', '.join(map(str, a))}) is {result}" for a, result in function.tests]
    return "\n".join([*function.lines(repaired=True), *calls])


def pair(rng: random.Random) -> str:
    """One to three wrong functions, each with its right version."""
    parts = []
    for function in functions(rng, rng.randint(1, 3), with_bug=True):
        parts += ["wrong:", *function.lines(repaired=False), "right:", *function.lines(repaired=True)]
    return "\n".join(parts)


def review(rng: random.Random) -> str:
    """A numbered listing with one wrong function, what fails, and the line as it should be."""
    names = rng.sample(NAMES, rng.randint(2, 3))
    place = rng.randrange(len(names))
    listing = [make_function(name, "train", rng, with_bug=index == place) for index, name in enumerate(names)]
    lines = [line for f in listing for line in f.lines(repaired=False)]
    name, line = names[place], 2 * place + 2
    return f"{name} fails in {rng.choice(FILES)}:\n{numbered(lines)}\nline {line}: {listing[place].code(repaired=True)}"


def note(rng: random.Random) -> str:
    """A talk with calls of tools that have nothing to do with programs: how calls are written, not what to do."""
    text, topic = "", rng.choice(NOUNS)
    for _ in range(rng.randint(1, 3)):
        path, line = rng.choice(FILES), str(rng.randint(1, 9))
        thought = rng.choice(("Let me see.", f"I write to {path}.", "Done.", f"I look at {path}."))
        action = rng.choice(
            (
                call("read", path=path),
                call("edit", path=path, line=line, text=sentence(rng, rng.choice(PEOPLE), topic)),
                call("submit"),
            )
        )
        text += (
            f"User:\n{sentence(rng, rng.choice(PEOPLE), topic)} It is in {path}.\n\nAssistant:\n{thought}{action}\n\n"
        )
    return text.rstrip("\n")


def repeated(rng: random.Random) -> str:
    """A list of words that do not belong together, written two to four times."""
    words = [
        rng.choice(rng.choice((NAMES, FILES, NOUNS, PEOPLE, tuple("123456789")))) for _ in range(rng.randint(3, 16))
    ]
    return "\n".join([" ".join(words)] * rng.randint(2, 4))


def sentence(rng: random.Random, person: str, noun: str) -> str:
    what = f"the {rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.5 else f"the {noun}"
    where = f" {rng.choice(PLACES)} the {rng.choice(NOUNS)}" if rng.random() < 0.5 else ""
    start = f"{rng.choice(TIMES)} " if rng.random() < 0.4 else ""
    return f"{start}{person} {rng.choice(VERBS)} {what}{where}."


def prose(rng: random.Random) -> str:
    """A story about two people and three objects that come back."""
    people, nouns = rng.sample(PEOPLE, 2), rng.sample(NOUNS, 3)
    return " ".join(sentence(rng, rng.choice(people), rng.choice(nouns)) for _ in range(rng.randint(3, 9)))


KINDS = {
    "program": program,
    "checks": checks,
    "pair": pair,
    "review": review,
    "list": repeated,
    "note": note,
    "prose": prose,
}


def documents(family: str, seed: int) -> Iterator[str]:
    """The endless text of a family."""
    rng = random.Random(f"{family} {seed}")
    kinds, shares = zip(*FAMILIES[family].items(), strict=True)
    while True:
        yield KINDS[rng.choices(kinds, shares)[0]](rng)
