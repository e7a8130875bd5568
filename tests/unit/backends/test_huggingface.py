"""The Hugging Face backend around the numbers: what it reads, refuses, tells, and does when memory runs out."""

import json
import logging
import math
import weakref
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hesnr_tasks.backends import backend_for, hf, refuse_non_finite  # noqa: E402
from hesnr_tasks.backends.base import TokenSequence  # noqa: E402
from hesnr_tasks.backends.hf.engine import Engine, prefix_hashes  # noqa: E402
from hesnr_tasks.backends.hf.forward import (  # noqa: E402
    AllocationTracker,
    ForwardMode,
    is_out_of_memory,
)
from hesnr_tasks.backends.hf.model import CausalLM  # noqa: E402
from hesnr_tasks.errors import ScoringError  # noqa: E402
from hesnr_tasks.metrics import TokenColumns, TrajectorySums  # noqa: E402
from tests import tiny  # noqa: E402
from tests.reference.scoring import TOLERANCE, assert_scores, score_slowly  # noqa: E402

VOCABULARY = 1031
K = 10
CPU = torch.device("cpu")
Llama = transformers.LlamaForCausalLM


def llama(kind=Llama, **changes):
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.2,
    }  # fmt: skip
    return kind(transformers.LlamaConfig(**{**settings, **changes})).eval()


def engine_for(model, batch=1, **settings):
    sample = np.random.default_rng(7).integers(3, VOCABULARY, 150).tolist()
    engine = Engine(CausalLM(model, CPU), sample, batch, **settings)
    assert engine.limits._needs.per_token > 0  # measured now, so that tests which count calls do not count this
    return engine


def passage(n=300, wanted=80, seed=0, start=()):
    rng = np.random.default_rng(seed)
    ids = np.append(start, rng.integers(3, VOCABULARY, n - len(start))).astype(np.int32)
    targets = np.sort(np.append(rng.choice(np.arange(1, n - 1), wanted - 1, replace=False), n - 1))
    return TokenSequence(f"t{seed}", ids, targets.astype(np.int32))


def scores_of(engine, texts, progress=int):
    results = dict(engine.score(texts, K, progress))
    return [results[i] for i in range(len(texts))]


def assert_right(model, text, scores, tolerance=TOLERANCE):
    assert_scores(scores, score_slowly(model, text.ids.tolist(), text.targets.tolist(), K), tolerance)


def tried(model, texts, batch=1):
    """An engine that has seen how long its texts are: what it tries on a model once is behind it."""
    engine = engine_for(model, batch)
    scores_of(engine, texts)
    return engine


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a.padded(), b.padded(), strict=True))


def hflm(model, **settings):
    lm_eval = pytest.importorskip("lm_eval.models.huggingface")
    return lm_eval.HFLM(pretrained=model, tokenizer=tiny.byte_level(), **settings)


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.numbers
def test_ties_favour_the_target():
    """Three identical rows of the head: none of the three is strictly more likely than another."""
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[[5, 900]] = model.lm_head.weight[77].clone()
    text = passage()
    text.ids[text.targets[::3]] = 77
    text.ids[text.targets[1::3]] = 900
    (scores,) = scores_of(engine_for(model), [text])
    assert_right(model, text, scores)


@pytest.mark.numbers
def test_nothing_after_the_last_target_is_read():
    """Neither the number of tokens that the body sees nor the numbers change when text is added."""
    model, text, lengths = llama(), passage(), []
    longer = text._replace(ids=np.append(text.ids, np.arange(3, 500)).astype(np.int32))
    engine = tried(model, [text, longer])
    model.model.register_forward_pre_hook(lambda _, __, kw: lengths.append(kw["input_ids"].shape[1]), with_kwargs=True)
    assert same(*scores_of(engine, [text, longer]))
    assert lengths == [256, text.targets[-1] - 256, text.targets[-1] - 256]  # they share whole blocks of 256


@pytest.mark.numbers
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_nan_and_infinite_logits_arrive_as_nan(bad):
    """In the rows they are in (one infinite weight gives +inf or, harmless, -inf): not as numbers that look good."""
    model, text = llama(), passage()
    with torch.no_grad():
        model.lm_head.weight[40, 3] = float(bad)
        logits = model(torch.from_numpy(text.ids).long()[None]).logits[0, text.targets - 1, 40]
    (scores,) = scores_of(engine_for(model), [text])
    expected = (logits.isnan() | (logits == float("inf"))).numpy()
    assert expected.any()
    np.testing.assert_array_equal(np.isnan(scores.logprob), expected)
    np.testing.assert_array_equal(np.isnan(scores.topk_logprobs).all(1), expected)


def test_logits_are_never_held_for_the_whole_text():
    """The most bytes alive while 3000 of 3000 positions of a 20 K vocabulary are scored; all logits are 240 MB."""
    engine, text = engine_for(llama(vocab_size=20_000)), passage(3001, 3000)
    with AllocationTracker() as tracker:
        scores_of(engine, [text])
    assert tracker.peak < 150e6


@pytest.mark.numbers
def test_a_model_that_cuts_its_own_window_out_of_the_mask_is_read_with_masks(monkeypatch):
    """A window longer than the self-check's text would be lost in chunks, as code of a checkpoint may cut one."""
    import transformers.models.llama.modeling_llama as llama_code

    window, of_transformers = 300, llama_code.create_causal_mask

    def windowed(*args, **settings):
        mask = of_transformers(*args, **settings)
        n = settings["inputs_embeds"].shape[1]
        mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril() if mask is None else mask
        new, seen = mask.shape[2:]
        return torch.where(torch.ones_like(mask).tril(seen - new - window), False, mask)

    monkeypatch.setattr(llama_code, "create_causal_mask", windowed)
    model, text = llama(), passage(900, 300)
    engine = engine_for(model)
    engine.limits.longest = 128
    monkeypatch.setattr(engine.limits, "chunk", lambda start, stop: 128)
    (scores,) = scores_of(engine, [text])
    assert_right(model, text, scores)
    assert not engine.mode.maskless_chunks


@pytest.mark.numbers
def test_a_head_that_a_model_calls_piece_by_piece_keeps_all_pieces():
    """Pieces longer than the slices of the self-check, shorter than those of a text."""

    class Pieces(Llama):
        def forward(self, input_ids=None, **given):
            hidden = self.model(input_ids, **given)[0]
            return SimpleNamespace(logits=torch.cat([self.lm_head(piece) for piece in hidden.split(64, 1)], 1))

    model, text = llama(Pieces), passage(400, 300)
    (scores,) = scores_of(engine_for(model), [text])
    assert_right(model, text, scores)


def test_memory_at_the_address_of_an_input_that_is_gone_is_counted():
    """Storages take each other's places."""
    with AllocationTracker() as tracker:
        alive = []
        for _ in range(50):
            _ = torch.from_numpy(np.zeros(5)) + 1
            del _
            alive.append(torch.empty(1000))
    assert tracker.alive >= sum(tensor.nbytes for tensor in alive)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 40_000])
def test_the_estimate_of_memory_is_what_a_pass_needs(vocabulary):
    """Two short passes tell what a longer one allocates, the weights of a large head left out."""
    engine = engine_for(llama(vocab_size=vocabulary))
    needs = engine.limits._needs
    with AllocationTracker() as tracker, torch.inference_mode():
        engine.model.backbone(input_ids=torch.zeros(1, 3000, dtype=torch.long), use_cache=False)
    assert needs.one_pass(3000) == pytest.approx(tracker.peak, rel=0.1)
    assert needs.cached_token == 3 * 2 * 2 * 16 * 4


# --- reading together -----------------------------------------------------------------------------------------------


def tree():
    """Texts of two families with a common start, one family with a longer one, and loners."""
    root = np.random.default_rng(90).integers(3, VOCABULARY, 600)
    branch = np.append(root, np.random.default_rng(91).integers(3, VOCABULARY, 700))
    starts = [root, branch, root, branch, branch, root, (), ()]
    return [passage(len(start) + 100 + 7 * i, 40, i, start) for i, start in enumerate(starts)]


@pytest.mark.numbers
def test_shared_prefixes_are_read_once_and_give_the_same_numbers():
    """Fewer tokens go through the body than the texts have; targets within the prefixes included."""
    model, texts, read = llama(), tree(), []
    engine = tried(model, texts)
    model.model.register_forward_pre_hook(lambda _, __, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    results = scores_of(engine, texts)
    total, shared = sum(text.targets[-1] for text in texts), 5 * 512 + 2 * 768
    assert sum(read) == total - shared
    for text, scores in zip(texts, results, strict=True):
        assert_right(model, text, scores)


class FromDisk(Sequence):
    """Texts of which each access makes a new one, as if read from a file; `most` were alive at a time."""

    def __init__(self, texts):
        self.texts, self.alive, self.reads, self.most = texts, weakref.WeakValueDictionary(), 0, 0

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        class Ids(np.ndarray):
            pass

        ids = self.texts[index].ids.copy().view(Ids)
        self.reads += 1
        self.alive[self.reads] = ids
        self.most = max(self.most, len(self.alive))
        return self.texts[index]._replace(ids=ids)


@pytest.mark.parametrize("batch", [1, 3])
def test_texts_that_share_prefixes_are_not_in_memory_together(batch):
    """Few at a time, or a batch of them, and the numbers are those of texts in memory, bit for bit."""
    model, texts = llama(), [*tree(), *(text._replace(name="again") for text in tree())]
    stored = FromDisk(texts)
    results = dict(engine_for(model, batch).score(stored, K))
    assert stored.most <= 2 * batch + 3  # the batch before, too, until the next is read
    expected = scores_of(engine_for(model, batch), texts)
    assert all(same(results[index], scores) for index, scores in enumerate(expected))


@pytest.mark.parametrize("batch", [1, 3, 0])
def test_progress_sums_to_the_tokens_of_the_passages(batch):
    """Whatever is shared or padded."""
    texts, reported = tree(), []
    engine = engine_for(llama(), batch)
    engine.limits.longest = 150
    scores_of(engine, texts, reported.append)
    assert sum(reported) == sum(len(text.ids) for text in texts)
    assert min(reported) > 0


@pytest.mark.numbers
def test_short_texts_are_read_side_by_side():
    """`batch` texts at most go through the body at once, all of them where it is left open."""
    texts = [passage(40 + 5 * i, 10, i) for i in range(7)]
    for batch, expected in ((1, [1] * 7), (3, [3, 3, 1]), (0, [7])):
        model, rows = llama(), []
        engine = tried(model, texts, batch)
        model.model.register_forward_pre_hook(
            lambda _, __, kw, rows=rows: rows.append(len(kw["input_ids"])), with_kwargs=True
        )
        results = scores_of(engine, texts)
        assert rows == expected
        for text, scores in zip(texts, results, strict=True):
            assert_right(model, text, scores)


@pytest.mark.numbers
def test_numbers_do_not_depend_on_which_process_has_which_text():
    """Bit for bit: a prefix is shared or not by what all processes have."""

    model, texts = llama(), tree()
    everyone = [prefix_hashes(text.ids, int(text.targets[-1]), text.full_length) for text in texts]
    alone = scores_of(engine_for(model), texts)
    for part in (slice(0, None, 2), slice(1, None, 2), slice(3, 4)):
        results = scores_of(engine_for(model, gather=lambda own: everyone), texts[part])
        assert all(same(a, b) for a, b in zip(results, alone[part], strict=True))


@pytest.mark.numbers
@pytest.mark.parametrize("batch", [1, 3, 0])
def test_numbers_do_not_depend_on_what_an_earlier_run_finished(batch):
    """Bit for bit: passages to skip are not answered and not counted, but shape what is read together."""
    model, texts, reported = llama(), tree(), []
    alone = scores_of(engine_for(model, batch), texts)
    results = dict(engine_for(model, batch).score(texts, K, reported.append, skip={0, 1, 2, 4, 6}))
    assert sorted(results) == [3, 5, 7]
    assert all(same(results[i], alone[i]) for i in results)
    assert sum(reported) == sum(len(texts[i].ids) for i in results)


def test_nothing_is_read_for_texts_that_are_skipped():
    """Neither they nor a prefix that only they share."""
    model, texts, read = llama(), tree(), []
    engine = tried(model, texts)
    model.model.register_forward_pre_hook(lambda _, __, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    assert dict(engine.score(texts, K, skip=range(8))) == {}
    assert list(dict(engine.score(texts, K, skip=range(7)))) == [7]
    assert sum(read) == texts[7].targets[-1]


# --- memory ---------------------------------------------------------------------------------------------------------


class Room:
    """Makes a model's body run out of memory with more than so many tokens."""

    def __init__(self, model, tokens):
        self.tokens = tokens
        model.model.register_forward_pre_hook(self._check, with_kwargs=True)

    def _check(self, _module, _args, settings):
        if settings["input_ids"].numel() > self.tokens:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 7.00 GiB")


@pytest.mark.numbers
def test_out_of_memory_halves_the_chunk_and_goes_on(caplog):
    """For this text and the next ones, saying so; several texts at once are first read one by one."""
    model, texts = llama(), [passage(900, 80, 1), passage(150, 20, 2), passage(140, 20, 3)]
    engine, room = engine_for(model, 0), Room(model, 200)
    with caplog.at_level(logging.WARNING, "hesnr_tasks"):
        results = scores_of(engine, texts)
    assert caplog.text.count("out of memory with") == 2
    assert "going on with 224" in caplog.text  # 899 tokens are then five chunks of 180
    room.tokens = 10**9
    for text, scores in zip(texts, results, strict=True):
        assert_right(model, text, scores)


def test_too_little_memory_for_anything_is_an_error_that_helps():
    """It names the trajectory and what to change."""
    model = llama()
    engine = engine_for(model)
    Room(model, 40)
    with pytest.raises(ScoringError, match=r"'t1' does not fit into memory \(out of memory.*dtype=bfloat16"):
        scores_of(engine, [passage(900, 80, 1)])


def test_the_allocators_own_message_is_recognised():
    """PyTorch on a CPU raises a bare RuntimeError."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


# --- models out of the ordinary -------------------------------------------------------------------------------------


class Mixing(Llama):
    """Its wrapper mixes the logits of neighbours: only all positions at once give its numbers."""

    def forward(self, input_ids, **settings):
        hidden = self.model(input_ids).last_hidden_state
        logits = self.lm_head(hidden)
        return SimpleNamespace(logits=logits + 0.5 * torch.nn.functional.pad(logits, (0, 0, 1, -1)))


class Scaled(Llama):
    """Its wrapper treats the body's output by position, and takes no cache; but its head can be cut."""

    def forward(self, input_ids):
        hidden = self.model(input_ids).last_hidden_state
        return SimpleNamespace(logits=self.lm_head(hidden * (1 + torch.arange(hidden.shape[1]) % 3)[:, None]))


@pytest.mark.numbers
@pytest.mark.parametrize(("kind", "head"), [(Mixing, "full_logits"), (Scaled, "lm_head_hook")])
def test_where_the_fast_ways_disagree_a_slower_one_is_used_and_named(kind, head, caplog):
    """The numbers stay right."""
    model, text = llama(kind), passage()
    with caplog.at_level(logging.WARNING, "hesnr_tasks"):
        engine = engine_for(model, batch=0)
    assert engine.mode.logits_strategy == head
    assert engine.mode == ForwardMode(head)
    assert (
        f"{kind.__name__}: logits at selected positions by 'replay_lm_head' do not work here (log-prob" in caplog.text
    )
    assert "cannot be read in chunks (its forward takes no cache)" in caplog.text
    assert_right(model, text, *scores_of(engine, [text]))


@pytest.mark.numbers
def test_a_body_that_cannot_be_found_leaves_logits_to_keep():
    """In chunks of so many positions as may have logits at a time."""
    model, text = llama(), passage(800, 300)
    causal = CausalLM(model, CPU)
    causal.backbones = []
    engine = Engine(causal, passage().ids.tolist())
    assert (engine.mode.logits_strategy, engine.mode.use_kv_cache) == ("logits_to_keep", True)
    assert_right(model, text, *scores_of(engine, [text]))


@pytest.mark.numbers
def test_a_model_that_draws_random_numbers_is_refused():
    """It has no log-likelihoods."""
    with pytest.raises(ScoringError, match="other numbers for the same tokens when it is run again"):
        engine_for(llama(attention_dropout=0.5).train())


@pytest.mark.numbers
def test_a_model_that_looks_ahead_is_refused():
    """What it gives a token depends on the text after it."""
    torch.manual_seed(0)
    settings = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32, "initializer_range": 0.3}
    config = transformers.XLNetConfig(vocab_size=VOCABULARY, **settings)
    with pytest.raises(ScoringError, match="or look ahead in the text"):
        engine_for(transformers.XLNetLMHeadModel(config).eval())


def test_adapters_are_scored_as_peft_runs_them():
    """LoRA stays in place; prompt learning shifts positions and is refused."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    text = passage()
    (scores,) = scores_of(engine_for(model), [text])
    assert_right(model, text, scores)
    with model.disable_adapter():
        assert abs(scores.logprob - scores_of(engine_for(model), [text])[0].logprob).max() > 0.1
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ScoringError, match="virtual tokens"):
        engine_for(peft.get_peft_model(llama(), prompts))


def test_weights_that_accelerate_brings_in_as_needed():
    """Its hooks replace every module's forward; they must run, and still be there afterwards."""
    accelerate = pytest.importorskip("accelerate")
    plain, text = llama(), passage()
    model = accelerate.cpu_offload(llama(), execution_device="cpu")
    assert model.lm_head.weight.device.type == "meta"
    before = [module.__dict__.get("forward") for module in model.modules()]
    (scores,) = scores_of(engine_for(model), [text])
    assert_right(plain, text, scores)
    assert [module.__dict__.get("forward") for module in model.modules()] == before
    assert any(before)


@pytest.mark.numbers
def test_mixed_precision_is_lm_evals():
    """Under autocast the numbers are those of autocast, not of float32."""
    model, text = llama(), passage()
    lm = hflm(model, mixed_precision_dtype="bfloat16")
    results = dict(backend_for(lm).score([text], K, int))[0]
    logits = lm._model_call(torch.from_numpy(text.ids).long()[None])[0, text.targets - 1]
    expected = logits.float().log_softmax(1).gather(1, torch.from_numpy(text.ids[text.targets]).long()[:, None])[:, 0]
    assert np.abs(results.logprob - expected.numpy()).mean() < 0.02
    assert np.abs(results.logprob - scores_of(engine_for(model), [text])[0].logprob).mean() > 1e-4


# --- masked vocabularies ----------------------------------------------------------------------------------------------


def phi(masked):
    """A model that gives probability 0 to some ids: a bias of minus infinity in its head."""
    torch.manual_seed(0)
    config = transformers.PhiConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2,
    )  # fmt: skip
    model = transformers.PhiForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.bias[masked] = -math.inf
    return model


def without(text, masked):
    """The passage with id 5 in place of the masked ones."""
    return text._replace(ids=np.where(np.isin(text.ids, masked), 5, text.ids).astype(np.int32))


@pytest.mark.numbers
@pytest.mark.parametrize(
    "masked", [[900], list(range(640, 768)), list(range(512, VOCABULARY)), list(range(1, VOCABULARY, 2))]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_masked_tokens_that_are_neither_target_nor_candidate_change_nothing(masked, batch, caplog):
    """Single ids, whole blocks of the top k, the padding at the end, every other id; the fastest way is kept."""
    model, texts = phi(masked), [without(passage(200 + i, 40, i), masked) for i in range(3)]
    for text, scores in zip(texts, scores_of(engine_for(model, batch), texts), strict=True):
        assert_right(model, text, scores)
        assert not np.isin(scores.topk_ids, masked).any()
    assert not caplog.records


def test_a_masked_target_is_an_error_that_names_trajectory_and_token():
    """Minus infinity is its log-probability, whatever else is masked."""
    masked = list(range(640, 768))
    text = without(passage(), masked)
    place = int(text.targets[5])
    text.ids[place] = 700
    scores = scores_of(engine_for(phi(masked)), [text])[0]
    assert np.isneginf(scores.logprob[5])
    with pytest.raises(ScoringError, match=rf"probability 0 .* at token {place} of trajectory 't0' \(1 of 80 scored"):
        refuse_non_finite(text, scores)


def test_fewer_possible_tokens_than_candidates_are_an_error():
    """Of ten candidates, two would be impossible."""
    masked = list(range(13, VOCABULARY))
    text = passage()
    text.ids[:] = 3 + text.ids % 10
    model = phi(masked)
    refuse_non_finite(text, scores_of(engine_for(model), [text])[0])
    with torch.no_grad():
        model.lm_head.bias[:5] = -math.inf
    text.ids[:] = 5 + text.ids % 8
    with pytest.raises(ScoringError, match=r"one of the k likeliest, at token \d+ of trajectory 't0' \(80 of 80"):
        refuse_non_finite(text, scores_of(engine_for(model), [text])[0])


@pytest.mark.numbers
def test_fewer_than_ten_candidates_and_all_ranks():
    """Ranks are counted over the whole vocabulary, however few candidates are kept: top10_acc is known."""
    model, text = llama(), passage(400, 300)
    top = model(torch.from_numpy(text.ids).long()[None]).logits[0].topk(12).indices
    for place in text.targets[::2]:  # left to right would change what the model says of the next
        text.ids[place] = int(top[place - 1, place % 12])
    scores = dict(engine_for(model).score([text], 5, int))[0]
    rows = score_slowly(model, text.ids.tolist(), text.targets.tolist(), 5)
    assert_scores(scores, rows)
    columns = TokenColumns.of(scores.logprob, scores.rank, scores.topk_logprobs, 5)
    sums = {j: float(TrajectorySums.of(columns, k=5).column(f"top{j}_acc")[0]) for j in (1, 2, 5, 10)}
    for j in (1, 2, 5, 10):
        assert sum(row.ranks[-1] <= j for row in rows) <= sums[j] <= sum(row.ranks[0] <= j for row in rows)
    assert sums[5] < sums[10]


# --- the backend ----------------------------------------------------------------------------------------------------


@pytest.mark.numbers
@pytest.mark.parametrize("size", [1, 4, "auto", "auto:2"])
def test_the_backend_of_an_lm_eval_model(size):
    """Any --batch_size; passages without targets are answered too."""
    model, texts = llama(), [passage(100 + i, 20, i) for i in range(5)]
    texts.append(TokenSequence("none", texts[0].ids, np.zeros(0, np.int32)))
    backend, reported = backend_for(hflm(model, batch_size=size, max_length=900, add_bos_token=True)), []
    assert (backend.max_length, backend.bos) == (900, True)
    results = dict(backend.score(texts, K, reported.append))
    for i, text in enumerate(texts[:5]):
        assert_right(model, text, results[i])
    assert sum(reported) == sum(len(text.ids) for text in texts)
    assert results[5].topk_ids.shape == (0, K)


def test_what_a_signature_says_of_a_model(tmp_path):
    """The same weights give the same identity wherever they lie; any other weights another."""
    model = llama()
    reported = hf.make(hflm(model)).describe()
    model.save_pretrained(tmp_path / "elsewhere")
    loaded = hf.make(hflm(Llama.from_pretrained(tmp_path / "elsewhere"))).describe()
    assert loaded["weights"] == reported["weights"]
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    assert hf.make(hflm(model)).describe()["weights"] != reported["weights"]
    assert json.loads(json.dumps(reported)) == reported
    assert reported["backend"] == "hf"
    assert reported["dtype"] == "float32"
    assert reported["attention"] == "sdpa"
    assert reported["parameters"] == model.num_parameters()


def test_models_that_cannot_be_scored_are_refused():
    """Encoder-decoder models, models without a tokenizer."""
    with pytest.raises(ScoringError, match=r"encoder-decoder.*decoder-only"):
        hf.make(SimpleNamespace(backend="seq2seq"))
    with pytest.raises(ScoringError, match="tokenizer=… in --model_args"):
        hf.make(SimpleNamespace(backend="causal", tokenizer=None))


def test_ids_and_k_beyond_the_vocabulary_are_refused():
    """Before anything is read, naming the trajectory."""
    backend, text = hf.make(hflm(llama())), passage()
    text.ids[17] = VOCABULARY
    with pytest.raises(ScoringError, match="'t0' has token id 1031, the model knows 1031 ids"):
        next(backend.score([text], K, int))
    with pytest.raises(ScoringError, match=r"top 2000 asked for.*1031"):
        next(backend.score([passage()], 2000, int))
