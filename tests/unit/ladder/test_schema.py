"""Ladder files: read, checked, written; downstream scores from tables, SWE-bench reports and lm-eval results."""

import json
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.ladder.downstream import add_downstream, outcomes
from hesnr_tasks.ladder.schema import (
    STAGES,
    Checkpoint,
    DownstreamScore,
    Ladder,
    read_ladder_file,
    write_ladder_file,
)

BASES = [Checkpoint(f"lc-{step}", family="m3b", stage="long-context", step=step) for step in (1000, 2000, 3000, 4000)]
SFTS = [Checkpoint(f"{base.name}-sft", stage="sft", family="m3b", sft_of=base.name) for base in BASES]


def written(tmp_path, text):
    path = tmp_path / "ladder.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_written_is_read(tmp_path):
    score = DownstreamScore(31.2, 500, 2.1, "mini-swe-agent 1.1", "sft")
    ladder = Ladder(
        (*BASES, SFTS[0], Checkpoint("last", model="org/m", revision="main", context=32768, downstream={"swe": score})),
        trajectories=("runs/",), tasks=("hesnr_swe", "gsm8k"), model_args={"dtype": "bfloat16"}, gpus=0.5,
    )  # fmt: skip
    assert read_ladder_file(written(tmp_path, write_ladder_file(ladder))) == ladder


names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)
checkpoints = st.builds(
    Checkpoint,
    name=names, model=names, family=names, stage=st.sampled_from(["", *STAGES]),
    step=st.none() | st.integers(0, 10**9), context=st.none() | st.integers(1, 10**7),
    downstream=st.dictionaries(
        names, st.builds(DownstreamScore, st.floats(-100, 100), st.none() | st.integers(1, 9999)), max_size=2
    ),
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(checkpoints, max_size=4, unique_by=lambda c: c.name))
@example([Checkpoint("a", model="org/" + 400 * "x")])
@example([Checkpoint(".", model="."), Checkpoint("..", model="../"), Checkpoint("0700", revision="1.5e3")])
def test_any_ladder_survives_its_file(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("ladder") / "ladder.yaml"
    path.write_text(write_ladder_file(Ladder(tuple(some))), encoding="utf-8")
    # a model that lies beside the file, as the model "." does, is looked for there, whatever the working directory
    beside = [
        replace(c, model=str(path.parent / c.model)) if c.model.strip("./") == "" and c.model else c for c in some
    ]
    assert read_ladder_file(path) == Ladder(tuple(beside))


def test_tables_may_have_any_columns_and_signs(tmp_path):
    rows = {
        "run,date,notes,SWE (%)": "lc-1000,2026-01-01,good,31.2%\nlc-2000,2026-01-02,,n/a\n",
        "family;run;SWE (%)": "m3b;lc-1000;31,2\nm3b;lc-2000;-\n",
        "model\tcheckpoint\tSWE (%)": "org/m\tlc-1000\t31.2\norg/m\tlc-2000\t\n",
    }
    for heading, lines in rows.items():
        table = tmp_path / "scores.csv"
        table.write_text(f"{heading}\n{lines}")
        ladder, remarks = add_downstream(Ladder(tuple(BASES)), [table])
        assert {c.name: dict(c.downstream) for c in ladder.checkpoints if c.downstream} == {
            "lc-1000": {"SWE (%)": DownstreamScore(31.2)}
        }
        assert [remark.split("column ")[1] for remark in remarks] == (
            ["'date'; left out", "'notes'; left out"] if "date" in heading else []
        )
    table.write_text("checkpoint,swe,swe_stderr\nlc-1000,0.4%,0.1%\n")
    ladder, _ = add_downstream(Ladder(tuple(BASES)), [table])
    assert ladder["lc-1000"].downstream["swe"] == DownstreamScore(0.004, None, 0.001)


def test_of_two_scores_neither_counts_and_the_rest_goes_on(tmp_path):
    table = tmp_path / "scores.csv"
    table.write_text("checkpoint,swe\nlc-1000,1\nlc-1000,2\nlc-1000,1\nlc-2000,3\n")
    ladder, remarks = add_downstream(Ladder(tuple(BASES)), [table])
    assert {c.name for c in ladder.checkpoints if c.downstream} == {"lc-2000"}
    assert remarks == [f"{table}:3: a second swe of lc-1000: 1 and 2; neither counts. Keep one."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("checkpoints: 3", ["list", "hesnr ladder init"]),
        ("checkpoints: [{step: 3}]", ["checkpoint 1", "no name"]),
        ("checkpoints: [{name: a, stepp: 3}]", ["a: unknown field 'stepp'", "step"]),
        ("checkpoints: [{name: a}, {name: a}]", ["two checkpoints", "'a'"]),
        ("checkpoints: [{name: a, stage: sfft}]", ["'sfft'", "sft"]),
        ("checkpoints: [{name: a, step: many}]", ["a: step", "'many'"]),
        ("checkpoints: [{name: a, context: 32kb}]", ["a: context", "32k"]),
        ("checkpoints: [{name: a, sft_of: b}]", ["a: sft_of", "'b'", "no checkpoint"]),
        ("checkpoints: [{name: ''}]", ["no name"]),
        ("checkpoints: [{name: true}]", ["name True", "quotes"]),
        ("checkpoints: [{name: a, revision: 1.10}]", ["revision 1.1", "quotes"]),
        ("checkpoints: [{name: a, step: 0x10}]", ["a: step", "'0x10'"]),
        ("checkpoints: [{name: a, trained_on: [1.10]}]", ["trained_on", "quotes"]),
        (
            "checkpoints: [{name: a}]\nmodel_args: {trust_remote_code: no}",
            ["model_args: trust_remote_code 'no'", "false"],
        ),
        ("checkpoints: [{name: a, step: -5}]", ["a: step", "at least 0"]),
        ("checkpoints: [{name: a, context: 0}]", ["a: context", "at least 1"]),
        ("checkpoints: [{name: a, downstream: {swe: {value: 3, n: 0}}}]", ["swe: n", "at least 1"]),
        ("checkpoints: [{name: a, downstream: {swe: {value: 3, stderr: -1}}}]", ["swe: stderr", "at least 0"]),
        ("checkpoints: [{name: a, downstream: {swe: {n: 3}}}]", ["a: downstream: swe", "no value"]),
        ("checkpoints: [{name: a, downstream: {swe: {value: x}}}]", ["a: downstream: swe: value", "number"]),
        ("checkpoints: [{name: a, downstream: {swe: {value: 1, after: tuesday}}}]", ["after", "tuesday"]),
        ("checkpoints: [{name: a}]\ntasks: {a: b}", ["tasks", "list"]),
        ("checkpionts: [{name: a}]", ["list", "checkpoints"]),
        ('checkpoints: [{name: "\\e[2Ja"}]', ["checkpoints[1][name] has U+001B", "' [2Ja'"]),
        ('checkpoints: [{name: a, downstream: {"\\u202e": 1}}]', ["checkpoints[1][downstream], a key has U+202E"]),
    ],
)
def test_what_cannot_be_is_named(tmp_path, text, words):
    with pytest.raises(SettingsError) as error:
        read_ladder_file(written(tmp_path, text))
    assert "ladder.yaml" in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("links", "circle", "left"),
    [
        ([("b", ""), ("a", ""), ("a", "")], "a -> b -> a", [("", ""), ("", ""), ("a", "")]),
        ([("b", "c"), ("", ""), ("", "a")], "a -> c -> a", [("b", ""), ("", ""), ("", "")]),
    ],
)
def test_a_circle_is_said_and_the_rest_goes_on(tmp_path, links, circle, left):
    entries = "".join(
        f"- {{name: {n}, sft_of: '{s}', before: '{b}'}}\n" for n, (s, b) in zip("abc", links, strict=True)
    )
    ladder = read_ladder_file(written(tmp_path, f"checkpoints:\n{entries}"))
    assert [(c.sft_of, c.before) for c in ladder.checkpoints] == left
    (remark,) = add_downstream(ladder, [])[1]
    assert remark.endswith(f"a circle of sft_of or before: {circle}; these links do not count")


def test_names_and_steps_are_what_is_written(tmp_path):
    words = ["0700", "1e3", "on", "no", "1_000", "0x10", "2024-01-01", "12:30", "1234567", "12e4567", "~a"]
    entries = "".join(f"- {{name: {word}, revision: {word}, label: {word}}}\n" for word in words)
    entries += "- {name: x, step: 0700, tokens: 1e12, context: 032k, downstream: {0700: 1_000}}\n"
    ladder = read_ladder_file(written(tmp_path, f"checkpoints:\n{entries}"))
    assert [(c.name, c.revision, c.label) for c in ladder.checkpoints[:-1]] == [(word, word, word) for word in words]
    last = ladder["x"]
    assert (last.step, last.tokens, last.context) == (700, 1e12, 32768)
    assert last.downstream == {"0700": DownstreamScore(1000.0)}


def test_a_wide_table_gives_every_checkpoint_its_scores(tmp_path):
    table = tmp_path / "scores.csv"
    table.write_text(
        "Model,SWE verified,SWE verified_n,LCB,step\n"
        "org/lc-1000-sft,31.2,500,20,1\nLC_2000_SFT,33,500,,2\nother,1,2,3,4\n"
    )
    ladder, remarks = add_downstream(Ladder((*BASES, *SFTS)), [table])
    assert ladder["lc-1000-sft"].downstream == {
        "SWE verified": DownstreamScore(31.2, 500),
        "LCB": DownstreamScore(20.0),
    }
    assert ladder["lc-2000-sft"].downstream == {"SWE verified": DownstreamScore(33.0, 500)}
    assert len(remarks) == 1
    assert "'other'" in remarks[0]
    assert "scores.csv:4" in remarks[0]


def test_reports_and_lm_eval_results_are_scores_too(tmp_path):
    (tmp_path / "r").mkdir()
    report = {"resolved_instances": 150, "total_instances": 500}
    (tmp_path / "r" / "agent.lc-3000-sft.json").write_text(json.dumps(report))
    results = {
        "model_name": "org/lc-4000-sft",
        "results": {
            "gsm8k": {"alias": "gsm8k", "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.01},
            "hesnr_swe": {"ppl,none": 3.0},
        },
        "n-samples": {"gsm8k": {"original": 1319, "effective": 1319}},
    }  # fmt: skip
    (tmp_path / "r" / "results.json").write_text(json.dumps(results))
    ladder, remarks = add_downstream(Ladder((*BASES, *SFTS)), [tmp_path / "r"])
    assert ladder["lc-3000-sft"].downstream["swe_bench"].value == 0.3
    assert ladder["lc-4000-sft"].downstream == {"gsm8k": DownstreamScore(0.5, 1319, 0.01, "lm-eval exact_match")}
    assert not remarks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name\na\n", ["first line", "score"]),
        ("checkpoint,swe\nlc-1000,31,2\n", [":2", "31.2, not 31,2"]),
        ("checkpoint,swe\nlc-1000,high\n", [":2", "swe", "'high'"]),
        ("checkpoint,swe,n\nlc-1000,1,2.5\n", [":2", "n"]),
    ],
)
def test_bad_tables_are_named_with_their_line(tmp_path, text, words):
    table = tmp_path / "scores.csv"
    table.write_text(text)
    with pytest.raises(DataError) as error:
        add_downstream(Ladder((*BASES, *SFTS)), [table])
    for word in words:
        assert word in str(error.value)


def test_a_base_checkpoint_is_judged_by_its_fine_tuned_child():
    scored = [replace(SFTS[i], downstream={"swe": DownstreamScore(30.0 + i, 500)}) for i in range(4)]
    own = replace(BASES[0], downstream={"swe": DownstreamScore(2.0, 500)})
    results = outcomes(Ladder((own, *BASES[1:], *scored)), "swe")
    assert {name: outcome.value for name, outcome in results.items() if not name.endswith("-sft")} == {
        "lc-1000": 30.0, "lc-2000": 31.0, "lc-3000": 32.0, "lc-4000": 33.0,
    }  # fmt: skip
    assert results["lc-2000"].measured == "lc-2000-sft"
    assert results["lc-2000-sft"].measured == "itself"
    assert 1.9 < results["lc-2000"].stderr < 2.2  # per cent, binomial of 500


def test_without_fine_tuned_children_a_base_is_judged_by_its_own_score():
    own = [replace(base, downstream={"swe": DownstreamScore(0.1)}) for base in BASES]
    results = outcomes(Ladder(tuple(own)), "swe")
    assert {outcome.measured for outcome in results.values()} == {"itself"}
    after = replace(BASES[0], downstream={"swe": DownstreamScore(0.3, after="sft")})
    results = outcomes(Ladder((after, *own[1:])), "swe")
    assert list(results) == ["lc-1000"]  # scores before and after fine-tuning are not mixed


def test_several_fine_tunings_of_a_base_judge_it_by_their_mean_and_tell_their_scatter():
    tunings = [("x", "lc-1000", 30.0), ("y", "lc-1000", 33.0), ("z", "lc-2000", 40.0)]
    children = [
        Checkpoint(name, stage="sft", sft_of=base, downstream={"swe": DownstreamScore(value, stderr=2.0)})
        for name, base, value in tunings
    ]
    own = [replace(base, downstream={"swe": DownstreamScore(1.5)}) for base in BASES]
    remarks: list[str] = []
    judged = outcomes(Ladder((*own, *children)), "swe", remarks)
    assert set(judged) == {"x", "y", "z", "lc-1000", "lc-2000"}  # the bases' own scores do not take their place
    variance = ((30 - 31.5) ** 2 + (33 - 31.5) ** 2) / 1
    assert judged["lc-1000"].value == 31.5
    assert judged["lc-1000"].measured == "x, y"
    assert judged["lc-1000"].stderr == pytest.approx((4 + variance / 2) ** 0.5)
    assert judged["lc-2000"].stderr == pytest.approx((4 + variance) ** 0.5)  # it was fine-tuned once
    assert judged["x"].stderr == 2.0
    assert "lc-1000 is judged by the mean of its 2 fine-tunings (x 30, y 33)" in remarks[0]
    assert f"scatters by {variance**0.5:.3g} (standard deviation, 1 degree of freedom)" in remarks[1]


def test_a_chain_of_fine_tunings_judges_the_base_by_its_first_score():
    def judged(*scores):
        chain = [("sft1", "base"), ("sft2", "sft1"), ("rl", "sft2")]
        checkpoints = [
            Checkpoint(
                name, stage="sft", sft_of=parent, downstream={"swe": DownstreamScore(scores[i])} if scores[i] else {}
            )
            for i, (name, parent) in enumerate(chain)
        ]
        of = outcomes(Ladder((Checkpoint("base"), *checkpoints)), "swe")
        return {name: (outcome.value, outcome.measured) for name, outcome in of.items()}

    assert judged(10.0, 20.0, 30.0)["base"] == (10.0, "sft1")
    assert judged(None, 20.0, 30.0)["base"] == (20.0, "sft2")
    assert judged(None, None, 30.0) == {"base": (30.0, "rl"), "rl": (30.0, "itself")}  # it judges nothing between
