"""The exploration profile the slow way: plain Python and dense linear algebra. Uses nothing of the package."""

import math
import re

import numpy as np

__all__ = ["extremes", "matched", "neighbours", "raw", "sentence_means"]


def raw(rows):
    """Difference of means of (value, treated, trajectory, cell, copies) rows, each counted `copies` times."""
    sides = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for value, treated, _, _, copies in rows:
        sides[bool(treated)][0] += copies * value
        sides[bool(treated)][1] += copies
    return sides[True][0] / sides[True][1] - sides[False][0] / sides[False][1]


def matched(rows):
    """Coefficient of `treated` in least squares on a dummy for each cell and each trajectory."""
    rows = [row for row in rows if row[4] > 0]
    both = {cell for cell in {row[3] for row in rows} if len({bool(r[1]) for r in rows if r[3] == cell}) == 2}
    rows = [row for row in rows if row[3] in both for _ in range(row[4])]
    cells, runs = sorted({row[3] for row in rows}), sorted({row[2] for row in rows})
    design = np.array(
        [[float(row[1])] + [float(row[3] == c) for c in cells] + [float(row[2] == t) for t in runs] for row in rows]
    )
    return float(np.linalg.lstsq(design, np.array([row[0] for row in rows]), rcond=None)[0][0])


def sentence_means(text, start, end, code, tokens):
    """Mean over the first tokens of the words of text[start:end], and over all tokens there; `code` ranges left out.

    `tokens`: (start, end, value) in order. A word's first token is the one that covers its first character with
    nothing but spaces before it; of several within that character the first. A word inside a token has none.
    """

    def left_out(place):
        return not start <= place < end or any(a <= place < b for a, b in code)

    firsts, everything = [], []
    for a, b, value in tokens:
        solid = next((place for place in range(a, b) if not text[place].isspace()), a)
        if not left_out(solid):
            everything.append(value)
    for word in re.finditer(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text):
        if not left_out(word.start()):
            covering = [t for t in tokens if t[0] <= word.start() < t[1]][:1]
            firsts += [value for a, _, value in covering if not text[a : word.start()].strip()]
    return math.fsum(firsts) / len(firsts), math.fsum(everything) / len(everything)


def extremes(chances, vocabulary):
    """Least and greatest entropy with these largest probabilities, by building both distributions token by token."""
    tail = max(0.0, 1.0 - math.fsum(chances))
    packed, left = list(chances), tail
    while left > 1e-15:
        packed.append(min(chances[-1], left))
        left -= packed[-1]
    spread = [*chances, *([tail / (vocabulary - len(chances))] * (vocabulary - len(chances)))]
    return _entropy(packed), _entropy(spread)


def _entropy(chances):
    return -math.fsum(p * math.log(p) for p in chances if p > 0)


def neighbours(texts, count=5):
    """Mean cosine distance of each text to its nearest others, TF-IDF of words and pairs, all pairs compared."""
    bags = []
    for text in texts:
        words = text.split()
        bag = {}
        for term in words + [" ".join(words[i : i + 2]) for i in range(len(words) - 1)]:
            bag[term] = bag.get(term, 0) + 1
        bags.append(bag)
    results = {}
    for bag in bags:
        for term in bag:
            results[term] = results.get(term, 0) + 1
    vectors = [
        {t: (1 + math.log(n)) * (1 + math.log((1 + len(texts)) / (1 + results[t]))) for t, n in bag.items()}
        for bag in bags
    ]
    norms = [math.sqrt(math.fsum(w * w for w in v.values())) for v in vectors]
    out = []
    for i, left in enumerate(vectors):
        cosines = [
            math.fsum(w * right.get(t, 0.0) for t, w in left.items()) / norms[i] / norms[j]
            for j, right in enumerate(vectors)
            if j != i
        ]
        out.append(1 - math.fsum(sorted(cosines)[-count:]) / count)
    return out
