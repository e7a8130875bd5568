"""`hesnr behaviours` on logs we plant: counts by hand, matching against all draws, what is said of what is missing."""

import argparse
import csv
import itertools
import json
import math
import random

import numpy as np
import pytest

from hesnr_tasks.cli import answers
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.exploration import Answer, AnswerSet, matched_passk, measure, rarity
from hesnr_tasks.formats import read_trajectories
from hesnr_tasks.trajectory import Kind

PLAIN = ("We add the numbers of the list.", "The sum of the parts is known.", "We take the first of both numbers.")
REFLECTIVE = ("Let me verify the result.", "Wait, that is wrong.")


def row(i, texts, right, **more):
    c = sum(right) / max(1, len(right))
    return {
        "doc_id": i, "doc": {"id": f"p{i}"}, "target": "1", "arguments": {"gen_args_0": {"arg_0": f"Question {i}: "}},
        "resps": [texts], "filtered_resps": [texts], "filter": "none", "metrics": ["pass@1", "right_answers"],
        "doc_hash": f"h{i}", "pass@1": c, "right_answers": right, **more,
    }  # fmt: skip


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples_t_2026-01-01T00-00-00.000001.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in rows))
    return folder


def rows_of(seed, problems=12, n=4, reflects=0.2, longer=0):
    rng = random.Random(seed)

    def text():
        some = (rng.choice(REFLECTIVE if rng.random() < reflects else PLAIN) for _ in range(rng.randint(3, 6) + longer))
        return " ".join(some) + f"\n\nThe answer is {rng.randint(0, 9)}."

    return [row(i, [text() for _ in range(n)], [int(rng.random() < 0.5) for _ in range(n)]) for i in range(problems)]


def ask(*words):
    parser = argparse.ArgumentParser()
    answers.behaviours_arguments(parser)
    results, notes = answers.behaviour_tables(parser.parse_args([*map(str, words), "--resamples", "200"]))
    return {table.name: table for table in results}, notes


@pytest.fixture(scope="module")
def compared(two):
    return ask(*two, "--reference", two[0])[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    return write(folder / "base", rows_of(1)), write(folder / "tuned", rows_of(2, reflects=0.6, longer=2))


def values_of(text, **more):
    corpus = AnswerSet("x", [Answer("p", text, True, **more)], {"p": "p"}, [])
    measure(corpus)
    return corpus.answers[0].values


def test_the_measures_of_a_text_counted_by_hand():
    text = "Let me verify the sum. It is 4, because two and two are 4.\n\n- first step\n- second step"
    values = values_of(text)
    assert values["words"] == len(text.split())
    assert (values["steps"], values["sentences"]) == (3, 4)
    assert values["reflective"] == 25  # "Let me verify the sum."
    assert values["pivotal"] == pytest.approx(100 * 3 / 16)  # verify, because, first; of 16 words of letters
    assert values["distinct"] == 100
    assert values["repetition"] == 0
    assert math.isnan(values["unlike"])


def test_repetition_and_distinct_pairs():
    values = values_of("a b c d a b c d")
    assert values["repetition"] == pytest.approx(100 * 1 / 5)  # of abcd bcda cdab dabc abcd the last
    assert values["distinct"] == pytest.approx(100 * 4 / 7)
    assert values_of("word")["repetition"] != values_of("word")["repetition"]  # NaN: there are no fours


def test_what_no_other_answer_to_the_problem_has():
    corpus = AnswerSet("x", [Answer("p", t, None) for t in ("a b c d e", "a b c d f", "x")], {"p": "p"}, [])
    measure(corpus)
    assert [answer.values["unlike"] for answer in corpus.answers][:2] == [50, 50]
    assert math.isnan(corpus.answers[2].values["unlike"])


def test_an_empty_answer_has_no_words_and_no_shares():
    values = values_of("")
    assert (values["words"], values["sentences"], values["steps"]) == (0, 0, 0)
    assert math.isnan(values["reflective"])


def test_planted_differences_are_found_and_paired(compared):
    tables = compared
    by = {(r["measure"], r["answers"]): r for r in tables["difference"].rows}
    assert by["reflective", "all"]["difference"].ci_low > 10
    assert by["words", "all"]["difference"].ci_low > 0
    assert by["words", "all"]["problems"] == 12
    assert all(r["p_holm"] >= r["p"] for r in by.values() if not math.isnan(r["p"]))
    means = {(r["run"], r["measure"], r["answers"]): r["mean"].value for r in tables["behaviours"].rows}
    assert by["words", "all"]["difference"].value == pytest.approx(
        means["tuned", "words", "all"] - means["base", "words", "all"]
    )


def test_right_and_wrong_are_apart(tmp_path):
    """Right answers are twice as long as wrong ones."""
    rows = [row(i, ["a b c d", "a b c d e f g h", "a b"], [0, 1, 0]) for i in range(9)]
    tables, _ = ask(write(tmp_path, rows))
    means = {r["answers"]: r["mean"].value for r in tables["behaviours"].rows if r["measure"] == "words"}
    assert means == {"all": pytest.approx(14 / 3), "right": 8, "wrong": 3}
    (apart,) = (r for r in tables["right_less_wrong"].rows if r["measure"] == "words")
    assert (apart["difference"].value, apart["problems"]) == (5, 9)


def test_no_interval_of_fewer_than_eight_problems(tmp_path):
    tables, _ = ask(write(tmp_path, rows_of(1, problems=7)))
    assert all(math.isnan(r["mean"].ci_low) and math.isnan(r["mean"].stderr) for r in tables["behaviours"].rows)


# --- Pass@K at matched length -----------------------------------------------------------------------------------------


def corpus_of(name, answers):
    """(problem, words, right) of each answer."""
    corpus = AnswerSet(name, [Answer(p, "w " * words, right) for p, words, right in answers], {}, [])
    for answer in corpus.answers:
        answer.values["words"] = float(len(answer.text.split()))
    return corpus


def by_all_draws(a, b, k):
    """Pass@k of both with as many answers in every bin: the mean over every choice of answers, and every k of them."""
    bins = [[math.floor(math.log(words + 1) / math.log(1.25)) for words, _ in side] for side in (a, b)]
    kept = {x: min(bins[0].count(x), bins[1].count(x)) for x in set(bins[0]) & set(bins[1])}
    means = []
    for side, place in zip((a, b), bins):
        choices = [
            itertools.combinations([r for (_, r), where in zip(side, place) if where == x], m) for x, m in kept.items()
        ]
        passed = [
            any(some)
            for chosen in itertools.product(*map(list, choices))
            for some in itertools.combinations([right for part in chosen for right in part], k)
        ]
        means.append(np.mean(passed))
    return means[1] - means[0]


@pytest.mark.parametrize("seed", range(6))
def test_matching_is_the_mean_over_all_draws(seed):
    rng = random.Random(seed)
    sides = [[(rng.choice([3, 4, 9, 10, 30]), rng.random() < 0.5) for _ in range(6)] for _ in range(2)]
    corpora = [corpus_of(str(i), [("p", *answer) for answer in side]) for i, side in enumerate(sides)]
    for at_k in matched_passk(*corpora, [1, 2, 3], 200, 1):
        if at_k["problems"]:
            assert at_k["matched"].value == pytest.approx(by_all_draws(*sides, at_k["k"]), abs=1e-12)


def test_a_gain_that_is_all_length_vanishes_at_matched_length():
    """Whether an answer is right depends on its length alone; b writes longer ones."""
    rng = random.Random(4)

    def side(share):
        lengths = [[20 if rng.random() < share else 5 for _ in range(16)] for _ in range(60)]
        return [(f"p{i}", n, rng.random() < (0.8 if n == 20 else 0.2)) for i, some in enumerate(lengths) for n in some]

    (at_k,) = matched_passk(corpus_of("a", side(0.3)), corpus_of("b", side(0.7)), [1], 500, 1)
    assert at_k["difference"].ci_low > 0.1
    assert at_k["matched"].ci_low < 0 < at_k["matched"].ci_high
    assert abs(at_k["words"] - at_k["words_other"]) < 1e-9


def test_problems_without_partners_are_counted(two, tmp_path):
    other = rows_of(3, longer=40)
    tables, _ = ask(two[0], write(tmp_path, other))
    assert all((r["problems"], r["left_out"]) == (0, 12) for r in tables["matched_passk"].rows)


# --- rarity -----------------------------------------------------------------------------------------------------------


def test_rare_is_relative_to_the_reference(tmp_path):
    odd = [[" ".join(f"odd{i}x{j}x{k}" for k in range(5)) + "." for j in range(4)] for i in range(9)]
    usual = rows_of(1, problems=9)
    strange = [row(i, some, [1, 0, 1, 0]) for i, some in enumerate(odd)]
    tables, notes = ask(
        write(tmp_path / "a", usual), write(tmp_path / "b", strange), "--reference", write(tmp_path / "r", rows_of(9))
    )
    rare = {
        r["run"]: r["mean"].value for r in tables["behaviours"].rows if (r["measure"], r["answers"]) == ("rare", "all")
    }
    assert rare["a"] < 20
    assert rare["b"] > 90
    assert any("of its own are" in note for note in notes)


def test_the_reference_itself_has_at_most_a_tenth(compared):
    rng = random.Random(1)
    letters = [" ".join(rng.choice("abcdefghijklmnop") * rng.randint(1, 3) for _ in range(6)) + "." for _ in range(60)]
    corpus = AnswerSet("x", [Answer(f"p{i}", text, None) for i, text in enumerate(letters)], {}, [])
    measure(corpus)
    rarity([corpus], corpus)
    assert np.mean([answer.values["rare"] for answer in corpus.answers]) == pytest.approx(10, abs=2)
    base = next(r for r in compared["behaviours"].rows if (r["run"], r["measure"]) == ("base", "rare"))
    assert base["mean"].value <= 10


def test_a_reference_without_sentences_is_an_error(two, tmp_path):
    with pytest.raises(DataError, match="fewer than 6 sentences"):
        ask(two[0], "--reference", write(tmp_path, [row(0, ["Yes."], [1])]))


# --- what is missing, odd or other ------------------------------------------------------------------------------------


def test_what_is_left_out_is_said(two, tmp_path):
    rows = [*rows_of(2, problems=10), row(50, [], [])]
    rows.append(rows[0])  # there twice
    rows[1] = row(1, ["", "Yes."], [0, 1])
    del rows[2]["right_answers"]
    tables, notes = ask(two[0], write(tmp_path / "odd", rows))
    text = "\n".join([*notes, *tables["difference"].notes])
    for phrase in (
        "1 rows are there twice",
        "no answer to p50",
        "answers are empty",
        "not known whether they are right",
        "only base has p10, p11: not compared",
    ):
        assert phrase in text
    assert tables["difference"].title.endswith("10 problems, paired")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--k", "5"], "k must be between 1 and 4"),
        (["--k", "0"], "k must be between"),
        (["--trajectories", "x.jsonl"], "several were given"),
        (["--task", "u"], "only t"),
    ],
)
def test_settings_that_cannot_be(two, words, why):
    with pytest.raises((SettingsError, DataError), match=why):
        ask(*two, *words)


def test_other_problems_or_no_answers_are_errors(two, tmp_path):
    other = [row(i + 100, ["Yes."], [1]) for i in range(3)]
    with pytest.raises(DataError, match="no problem in common"):
        ask(two[0], write(tmp_path / "other", other))
    with pytest.raises(DataError, match="there is no answer"):
        ask(write(tmp_path / "none", [row(0, [], [])]))
    with pytest.raises(DataError, match="no file or folder"):
        ask(tmp_path / "nowhere")
    with pytest.raises(DataError, match=":2: no line of an lm-eval sample log"):
        ask(write(tmp_path / "mixed", [row(0, ["Yes."], [1]), {"task_id": 3}]))


def test_trajectories_by_their_thoughts_and_turns():
    from hesnr_tasks import demo

    tables, _ = ask(demo.trajectories_path())
    rows = {r["measure"]: r for r in tables["behaviours"].rows if r["answers"] == "all"}
    trajectories = list(read_trajectories(str(demo.trajectories_path())))
    turns = [sum(message.generated for message in trajectory.messages) for trajectory in trajectories]
    words = [
        len(" ".join(s.text for m in trajectory.messages for s in m.segments if s.kind is Kind.THOUGHT).split())
        for trajectory in trajectories
    ]
    assert rows["steps"]["mean"].value == pytest.approx(np.mean(turns))
    assert rows["words"]["mean"].value == pytest.approx(np.mean(words))
    assert rows["words"]["problems"] == 12


def test_files_and_figure(two, tmp_path):
    parser = argparse.ArgumentParser()
    answers.behaviours_arguments(parser)
    args = parser.parse_args([*map(str, two), "--resamples", "200", "-o", str(tmp_path / "out")])
    assert "Pass@k at matched length, tuned less base" in answers.run_behaviours(args)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "behaviours.csv", "right_less_wrong.csv", "difference.csv", "matched_passk.csv", "behaviours.json",
        "behaviours.svg", "behaviours.png",
    }  # fmt: skip
    first = next(csv.DictReader((tmp_path / "out" / "behaviours.csv").open()))
    assert first["run"] == "base"
    assert float(first["mean_low"]) < float(first["mean"])


def test_answers_become_trajectories(two, tmp_path):
    """Prompt and answer as they were, the answer as thought."""
    path = tmp_path / "own.jsonl"
    _, notes = ask(two[0], "--trajectories", path)
    assert f"48 answers of 48 written to {path}" in notes[-1]
    written = list(read_trajectories(str(path)))
    assert len({trajectory.id for trajectory in written}) == 48
    (message,) = written[0].messages
    assert [segment.kind for segment in message.segments] == [Kind.CONTEXT, Kind.THOUGHT]
    assert message.segments[0].text.startswith("Question ")
