"""`hesnr.score` of a model in memory: the numbers of `lm_eval --model hf` on its files."""

import doctest
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hesnr_tasks as hesnr
from hesnr_tasks.errors import HesnrError, ScoringError
from hesnr_tasks.metrics import METRICS, names_of, unregister
from tests import tiny
from tests.lm_eval_run import call, evaluate, run, write

RUNS = [
    run(f"t{i}", ("Look around.", call(f"cat f{i}.py"), "x"), ("Go – ümläut 😀.", call("ls " * i), ""))
    for i in range(5)
]
RUNS.append(run("twin", *[("Look around.", call("cat f0.py"), "x"), ("Go – ümläut 😀.", call(""), "")]))
TASKS = {
    "hesnr_swe": {},
    "hesnr_swe_unfiltered": {"kinds": "thought+action", "filters": "none"},
    "hesnr_swe_thought": {"kinds": "thought"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("api")), steps=20)


@pytest.fixture
def surprisal():
    """A metric of one's own."""

    @hesnr.metric("surprisal", better="down", unit="nats", average="macro")
    def surprisal(tokens):
        return -tokens.logprob

    yield "surprisal"
    unregister("surprisal")


@pytest.mark.parametrize("overflow", ["right", "skip"])
def test_the_numbers_are_those_of_lm_eval(checkpoint, tmp_path, overflow, surprisal):
    """Of every metric, also of one that was registered a moment ago."""
    length = 150 if overflow == "skip" else 120
    metadata = {"trajectories": write(tmp_path / "t.jsonl", RUNS), "scores": str(tmp_path / "scores")}
    metadata |= {"overflow": overflow, "resamples": 500, "epsilon": 0.5}
    result = evaluate(checkpoint, list(TASKS), metadata, f"dtype=float32,max_length={length}")["results"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    scores = hesnr.score(
        model, tokenizer, iter(hesnr.load(metadata["trajectories"])), overflow=overflow, max_length=length
    )
    assert model.training
    assert len(scores) == len(RUNS)
    assert scores.signature["run"]["weights"] == hesnr.open_scores(metadata["scores"]).signature["run"]["weights"]
    for source in (scores, hesnr.open_scores(metadata["scores"])):
        for task, words in TASKS.items():
            estimates = source.evaluate(**words, epsilon=0.5, min_tokens=0, resamples=500)
            for name in names_of():
                entry = METRICS[name]
                assert estimates[name].value == pytest.approx(result[task][f"{name},none"], rel=0, abs=0, nan_ok=True)
                stderr = result[task].get(f"{name}_stderr,none", "N/A")
                if entry.denominator and isinstance(stderr, float):
                    assert estimates[name].stderr == pytest.approx(stderr, rel=1e-12), (task, name)
    assert result["hesnr_swe"][f"{surprisal},none"] > 0
    same = hesnr.compare(scores, hesnr.open_scores(metadata["scores"]), "ppl", epsilon=0.5, min_tokens=0, resamples=500)
    assert (same.value, same.p) == (0, 1)


def test_a_model_with_nan_is_refused(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    with pytest.raises(ScoringError):
        hesnr.score(model, AutoTokenizer.from_pretrained(checkpoint), RUNS[:1])


def printed(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("statement", "may"),
    [
        ("hesnr_tasks.__version__", set()),
        ("hesnr_tasks.load, hesnr_tasks.compare", {"numpy"}),
        ("import hesnr_tasks.scores", {"numpy"}),
        ("import hesnr_tasks.testing", {"numpy"}),
    ],
)
def test_importing_the_package_imports_nothing_heavy(statement, may):
    loaded = set(printed(f"import sys, hesnr_tasks; {statement}; print(*sys.modules)").split())
    assert loaded & {"torch", "lm_eval", "pandas", "numpy", "transformers", "pyarrow"} <= may


def test_without_pyarrow_the_extra_is_named():
    message = printed(
        "import sys; sys.modules['pyarrow'] = None\n"
        "from hesnr_tasks.scores import ScoreStore\n"
        "try: ScoreStore.open('x', {})\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    assert message.startswith(HesnrError.__name__)
    assert "pip install 'hesnr-tasks[report]'" in message


def test_the_example_of_score_runs():
    (example,) = doctest.DocTestFinder().find(hesnr.score, "score")
    assert doctest.DocTestRunner().run(example).failed == 0
