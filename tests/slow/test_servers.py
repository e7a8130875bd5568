"""Servers that misbehave: an error that names the trajectory, or the right numbers; never others.

Each case spoils a right answer of a small server around a real model, in the form of vLLM or of OpenAI. Values
that are all smaller by a constant or a factor cannot be told from right ones where the distribution is flat.
"""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval.models.openai_completions")

from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402

from hesnr_tasks.backends import backend_for  # noqa: E402
from hesnr_tasks.backends.base import (  # noqa: E402
    TokenSequence,
    row,
    stack,
    to_scores,
)
from hesnr_tasks.backends.completions import FORMS  # noqa: E402
from hesnr_tasks.errors import ScoringError  # noqa: E402
from hesnr_tasks.testing import fake_server  # noqa: E402
from tests.server_model import load, passage, reference, save_model  # noqa: E402

pytestmark = pytest.mark.slow
K = 10
POSITION = 12  # the position that most cases spoil
TEXT = passage("t-1", 40, 48)
TARGET = int(TEXT.ids[POSITION])
VLLM, OPENAI = FORMS[0], FORMS[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server, a backend for it, and the right numbers."""
    from transformers import AutoTokenizer

    folder = save_model(tmp_path_factory.mktemp("servers") / "model")
    model = load(folder)
    with pytest.MonkeyPatch.context() as patch, fake_server(model, AutoTokenizer.from_pretrained(folder)) as server:
        patch.setenv("NO_PROXY", "127.0.0.1")
        lm = LocalCompletionsAPI(
            model="tiny", base_url=server.address, tokenizer=str(folder), tokenizer_backend="huggingface",
            max_length=4096, max_retries=1, timeout=300,
        )  # fmt: skip
        yield server, backend_for(lm), reference(model, TEXT, logits=server.logprobs(TEXT.ids.tolist()))


def assert_error_or_right(served, form, spoil, *, refused=None):
    server, backend, want = served
    server.spoil = spoil
    try:
        actual = backend._score_text(form, TEXT, K)
        reported = ""
    except ScoringError as error:
        actual, reported = None, str(error)
    finally:
        server.spoil = None
    if refused is not None:
        assert bool(reported) == refused, reported or "a wrong answer was taken"
    if actual is None:
        assert "'t-1'" in reported
        assert reported.isprintable()
        return
    np.testing.assert_allclose(actual.logprob, want.logprob, atol=1e-3)
    np.testing.assert_allclose(actual.topk_logprobs, want.topk_logprobs, atol=1e-3)
    has_rank = actual.rank >= 1
    assert (np.abs(actual.rank - want.rank)[has_rank] <= 1).all()
    assert (want.rank[~has_rank] > K - 1).all()


def test_right_answers_are_taken(served):
    for form in (VLLM, OPENAI):
        assert_error_or_right(served, form, None, refused=False)


# --- vLLM's form ----------------------------------------------------------------------------------------------------


def own(results):
    return results[POSITION][str(TARGET)]


def other(results, place=2):
    """Key of a candidate that is not the target."""
    return [key for key in results[POSITION] if key != str(TARGET)][place]


def renamed(results, name):
    results[POSITION][name] = results[POSITION].pop(other(results))


def each(change):
    """All values of all positions, changed."""

    def spoil(results):
        for entry in filter(None, results):
            for value in entry.values():
                value["logprob"] = change(value["logprob"])

    return spoil


def without_last(results, *, ranks):
    """Nine of the likeliest and the target where it is none of them, as some proxies cut."""
    for i, entry in enumerate(results):
        if entry and len(entry) == K + 1:
            keys = [key for key in entry if key != str(TEXT.ids[i])]
            del entry[min(keys, key=lambda key: entry[key]["logprob"])]
        if entry and not ranks:
            for value in entry.values():
                value.pop("rank")


def reranked(ranks):
    def spoil(results):
        for entry in filter(None, results):
            for place, value in enumerate(entry.values()):
                value["rank"] = ranks(place, value["rank"])

    return spoil


def to_rank(results, beyond):
    """A wrong rank of a target that is beyond the top, or within."""
    for i in range(1, len(results)):
        value = results[i][str(TEXT.ids[i])]
        if (value["rank"] > K) == beyond:
            value["rank"] = 3 if beyond else 900
            return
    raise AssertionError("no such target")


def most_likely_gone(results):
    for entry in filter(None, results):
        best = max(entry, key=lambda key: entry[key]["logprob"])
        if len(entry) == K + 1:
            del entry[best]


def swapped(results):
    a, b = own(results), results[POSITION][other(results, 0)]
    a["logprob"], b["logprob"] = b["logprob"], a["logprob"]


VALUES = {
    "NaN": math.nan, "infinite": math.inf, "minus infinity": -math.inf, "-9999": -9999.0, "-1e30": -1e30, "null": None,
    "text": "-1.5", "true": True, "a list": [-1.5], "an object": {}, "positive": 0.5, "a huge integer": -(10**400),
}  # fmt: skip
NAMES = {
    "07 for 7": "07", "a sign": "+7", "a blank": " 7", "other digits": "７", "an underscore": "1_0", "negative": "-7",
    "beyond the vocabulary": "2000000", "just beyond it": "2000", "no number": "seven", "empty": "",
    "very long": "9" * 5000,
}  # fmt: skip
IN_VLLMS = {
    **{f"target {name}": lambda f, v=v: own(f).update(logprob=v) for name, v in VALUES.items()},
    **{f"candidate {name}": lambda f, v=v: f[POSITION][other(f)].update(logprob=v) for name, v in VALUES.items()},
    **{f"id {name}": lambda f, v=v: renamed(f, v) for name, v in NAMES.items()},
    "an id twice": lambda f: f[POSITION].update({"0" + other(f): dict(f[POSITION][other(f)])}),
    "a candidate less": lambda f: [f[POSITION].pop(other(f)), f[POSITION].pop(other(f))],
    "k entries with the target": lambda f: without_last(f, ranks=True),
    "k entries with the target, no ranks": lambda f: without_last(f, ranks=False),
    "most likely gone": most_likely_gone,
    "ranks reversed": reranked(lambda place, rank: K + 1 - place),
    "ranks all 1": reranked(lambda place, rank: 1),
    "ranks from 0": reranked(lambda place, rank: rank - 1),
    "ranks negative": reranked(lambda place, rank: -rank),
    "ranks as text": reranked(lambda place, rank: str(rank)),
    "ranks with fractions": reranked(lambda place, rank: rank + 0.5),
    "rank within the top, value beyond": lambda f: to_rank(f, beyond=True),
    "rank beyond, value within the top": lambda f: to_rank(f, beyond=False),
    "two values swapped": swapped,
    "a position to the left": lambda f: f.append(f.pop(0) or f.pop(0)),
    "a position to the right": lambda f: f.insert(1, f.pop()),
    "values of the first": lambda f: f.__setitem__(0, f[1]),
    "reversed": lambda f: f.reverse(),
    "cut": lambda f: f.pop(),
    "longer": lambda f: f.append(f[-1]),
    "a position null": lambda f: f.__setitem__(POSITION, None),
    "a position empty": lambda f: f.__setitem__(POSITION, {}),
    "a position a list": lambda f: f.__setitem__(POSITION, list(f[POSITION].values())),
    "an entry a number": lambda f: f[POSITION].__setitem__(other(f), -1.5),
    "an entry without logprob": lambda f: f[POSITION][other(f)].pop("logprob"),
    "all as likely": each(lambda value: -0.1),
    "probabilities": each(math.exp),
    "base 10": each(lambda value: value / math.log(10)),
    "halved": each(lambda value: value / 2),
    "shifted up": each(lambda value: value + 1),
    "positive surprisals": each(lambda value: -value),
}


@pytest.mark.parametrize("case", IN_VLLMS)
def test_prompt_logprobs(served, case):
    assert_error_or_right(served, VLLM, lambda choice: IN_VLLMS[case](choice["prompt_logprobs"]), refused=True)


def renormalised(results, *, target):
    """The top k sum to 1, as after top-k sampling; with the target's own value, or that left as it was."""
    for i, entry in enumerate(results):
        if entry:
            own_value = entry[str(TEXT.ids[i])]
            top = sorted(entry.values(), key=lambda value: -value["logprob"])[:K]
            total = math.log(sum(math.exp(value["logprob"]) for value in top))
            for value in entry.values():
                if target or value is not own_value or value in top:
                    value["logprob"] -= total


SHRUNK = {
    "base 2": each(lambda value: value / math.log(2)),
    "renormalised": lambda f: renormalised(f, target=True),
    "renormalised but for the target": lambda f: renormalised(f, target=False),
}


@pytest.mark.parametrize("case", SHRUNK)
def test_values_of_another_distribution(served, case):
    """Each by itself is possible; ranks, and a text of them, are not."""
    assert_error_or_right(served, VLLM, lambda choice: SHRUNK[case](choice["prompt_logprobs"]), refused=True)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1, 3, 10])
@pytest.mark.parametrize("size", [40, 2000, 30_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [True, False])
def test_no_right_answer_is_refused(scale, size, dtype, ranks):
    """Flat and peaked distributions over small and large vocabularies, softmax in half precision, tied logits."""
    logprobs, ids = sample_logprobs(scale, size, dtype)
    actual = answered(logprobs, ids, ranks)
    np.testing.assert_allclose(actual.logprob, logprobs.gather(1, ids[1:, None])[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [-0.1, -1])
@pytest.mark.parametrize("ranks", [True, False])
def test_a_shift_is_refused_where_the_model_is_sure_somewhere(shift, ranks):
    logprobs, ids = sample_logprobs(10, 2000, torch.float32)
    with pytest.raises(ScoringError, match="whole vocabulary cannot sum to 1"):
        answered(logprobs + shift, ids, ranks)


def sample_logprobs(scale, size, dtype):
    """Log-probabilities of 60 positions, and 61 tokens of which every other one is the third likeliest."""
    torch.manual_seed(0)
    logprobs = (scale * torch.randn(60, size)).to(dtype).log_softmax(dim=1).double()
    ids = torch.randint(size, (61,))
    ids[1::2] = logprobs[::2].topk(3, dim=1).indices[:, 2]
    return logprobs, ids


def answered(logprobs, ids, ranks):
    """The scores by an engine that counts ranks as vLLM does, or tells none and one candidate more."""
    text, rows = TokenSequence("t-1", ids.numpy().astype(np.int32), np.arange(1, 61, dtype=np.int32)), []
    for line, target in zip(logprobs, ids[1:].tolist(), strict=True):
        top = line.topk(K + 1 - ranks)
        values = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)) | {target: float(line[target])}
        rank = int((line >= line[target]).sum()) if ranks else None
        rows.append(row(target, [(i, value, rank if i == target else None) for i, value in values.items()], K))
    return to_scores(text, stack(rows), "a server", logprobs.shape[1] + 1024)


@pytest.mark.parametrize("value", [None, [], {}, "text", 7, True, [None] * 48, [[]] * 48, [{}] * 48])
def test_prompt_logprobs_of_another_type(served, value):
    assert_error_or_right(served, VLLM, lambda choice: choice.update(prompt_logprobs=value), refused=True)


def test_an_answer_to_another_prompt(served):
    assert_error_or_right(served, VLLM, lambda choice: choice["prompt_token_ids"].reverse(), refused=True)


def test_more_candidates_than_asked_for_are_welcome(served):
    ask = VLLM._replace(fields=lambda k: VLLM.fields(k + 7))
    assert_error_or_right(served, ask, None, refused=False)


# --- OpenAI's form --------------------------------------------------------------------------------------------------


def top_nine_and_target(results, most):
    """`most` entries, the target always among them."""
    for i in range(1, len(TEXT.ids)):
        name, top = f"token_id:{TEXT.ids[i]}", results["top_logprobs"][i]
        others = sorted((key for key in top if key != name), key=top.__getitem__, reverse=True)[: most - 1]
        results["top_logprobs"][i] = {key: top[key] for key in [*others, name]}


def without_target(results):
    """As SGLang: the top, and the target's value beside it."""
    for i in range(1, len(TEXT.ids)):
        name, top = f"token_id:{TEXT.ids[i]}", results["top_logprobs"][i]
        if len(top) == K + 2:
            del top[name]


def top_other(results, place=2):
    return [key for key in results["top_logprobs"][POSITION] if key != f"token_id:{TARGET}"][place]


def top_renamed(results, name):
    top = results["top_logprobs"][POSITION]
    top[name] = top.pop(top_other(results))


def both(results, change):
    for name in ("token_logprobs", "top_logprobs"):
        results[name] = change(results[name])


def scaled(results, change):
    results["token_logprobs"] = [value if value is None else change(value) for value in results["token_logprobs"]]
    results["top_logprobs"] = [
        top and {key: change(value) for key, value in top.items()} for top in results["top_logprobs"]
    ]


def own_apart(results):
    results["token_logprobs"][POSITION] -= 0.5


def target_missing(results):
    """The target was within the top, and is not there."""
    for i in range(1, len(TEXT.ids)):
        top, name = results["top_logprobs"][i], f"token_id:{TEXT.ids[i]}"
        if len(top) == K + 1 and sorted(top, key=top.__getitem__).index(name) > 1:
            del top[name]
            return
    raise AssertionError("no such target")


def own_to(results, value):
    results["token_logprobs"][POSITION] = value


def cut_column(results, name):
    results[name] = results[name][:-3]


IN_OPENAIS = {
    **{f"own {name}": lambda f, v=v: own_to(f, v) for name, v in VALUES.items()},
    **{
        f"candidate {name}": lambda f, v=v: f["top_logprobs"][POSITION].update({top_other(f): v})
        for name, v in VALUES.items()
    },
    **{f"id {name}": lambda f, v=v: top_renamed(f, f"token_id:{v}") for name, v in NAMES.items()},
    "own differs from top": own_apart,
    "the target missing from the top": target_missing,
    "ten entries with the target": lambda f: top_nine_and_target(f, K),
    "five entries": lambda f: top_nine_and_target(f, 5),
    "values to the left": lambda f: both(f, lambda column: [*column[1:], column[0]]),
    "values to the right": lambda f: both(f, lambda column: [column[0], column[-1], *column[1:-1]]),
    "own to the left": lambda f: f.update(token_logprobs=[None, *f["token_logprobs"][2:], -1.0]),
    "top to the left": lambda f: f.update(top_logprobs=[None, *f["top_logprobs"][2:], f["top_logprobs"][1]]),
    "tokens to the left": lambda f: f["tokens"].append(f["tokens"].pop(0)),
    "another token": lambda f: f["tokens"].__setitem__(POSITION, "token_id:3"),
    "tokens with zeros": lambda f: f.update(tokens=[name.replace("token_id:", "token_id:0") for name in f["tokens"]]),
    "tokens as numbers": lambda f: f.update(tokens=[int(name.partition(":")[2]) for name in f["tokens"]]),
    "tokens as text": lambda f: f.update(tokens=["x"] * len(f["tokens"])),
    "tokens cut": lambda f: cut_column(f, "tokens"),
    "values cut": lambda f: cut_column(f, "token_logprobs"),
    "tops cut": lambda f: cut_column(f, "top_logprobs"),
    "a top null": lambda f: f["top_logprobs"].__setitem__(POSITION, None),
    "a top a list": lambda f: f["top_logprobs"].__setitem__(POSITION, [1, 2]),
    "no tops": lambda f: f.update(top_logprobs=None),
    "tops an object": lambda f: f.update(top_logprobs={"a": 1}),
    "base 10": lambda f: scaled(f, lambda value: value / math.log(10)),
    "probabilities": lambda f: scaled(f, math.exp),
    "surprisals": lambda f: scaled(f, lambda value: -value),
}


@pytest.mark.parametrize("case", IN_OPENAIS)
def test_echo(served, case):
    assert_error_or_right(served, OPENAI, lambda choice: IN_OPENAIS[case](choice["logprobs"]), refused=True)


@pytest.mark.parametrize("value", [None, [], "text", 7, {"tokens": 5}, {"tokens": ["a"] * 48}])
def test_echo_of_another_type(served, value):
    assert_error_or_right(served, OPENAI, lambda choice: choice.update(logprobs=value), refused=True)


@pytest.mark.parametrize("spoil", [lambda f: top_nine_and_target(f, K + 1), without_target])
def test_other_servers_forms_give_the_same_numbers(served, spoil):
    """The prompt's token in place of the last candidate, as some proxies; never among them, as SGLang."""
    assert_error_or_right(served, OPENAI, lambda choice: spoil(choice["logprobs"]), refused=False)
