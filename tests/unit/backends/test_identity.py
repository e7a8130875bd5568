"""Two models or tokenizers that differ in anything that counts have two identities; one that only moved has one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertGenerationTokenizer, LlamaForCausalLM

from hesnr_tasks.backends import identity
from hesnr_tasks.backends.identity import fingerprint, tokenizer_of, weights_of
from hesnr_tasks.errors import ScoringError
from tests import tiny

HEAD = 12  # of tiny.llama: 48 / 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("identity")), seed=1)


def load(place, **kwargs):
    return LlamaForCausalLM.from_pretrained(place, **kwargs)


# --- every change of a model is another identity ----------------------------------------------------------------------


def zero_a_head(model):
    model.model.layers[0].self_attn.o_proj.weight[:, HEAD : 2 * HEAD] = 0


def negate_an_embedding(model):
    model.model.embed_tokens.weight[137].neg_()


def swap_two_rows(model):
    weight = model.model.layers[1].mlp.down_proj.weight
    weight[[3, 20]] = weight[[20, 3]]


def swap_two_values(model):
    weight = model.model.layers[1].mlp.down_proj.weight
    weight[5, [3, 20]] = weight[5, [20, 3]]


def flip_the_last_bit(model):
    model.model.norm.weight.view(torch.int32)[-1] ^= 1


def flip_two_signs(model):
    model.model.layers[1].self_attn.q_proj.weight[7, [1, 3]] *= -1


def swap_two_layers(model):
    layers = model.model.layers
    layers[0].mlp.up_proj, layers[1].mlp.up_proj = layers[1].mlp.up_proj, layers[0].mlp.up_proj


def change_theta(model):
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 500000.0}


def change_frequencies(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


CHANGES = [
    zero_a_head, negate_an_embedding, swap_two_rows, swap_two_values, flip_the_last_bit, flip_two_signs,
    swap_two_layers, change_theta, change_frequencies,
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_in_memory(place, change, dtype):
    model = load(place, dtype=dtype)
    before = weights_of(model)
    with torch.no_grad():
        if change is flip_the_last_bit and dtype is torch.bfloat16:
            model.model.norm.weight.view(torch.int16)[-1] ^= 1
        else:
            change(model)
    assert weights_of(model) != before


@pytest.mark.parametrize("change", CHANGES[:-1], ids=lambda change: change.__name__)
def test_a_changed_model_on_disk(place, tmp_path, change):
    model = load(place)
    model.save_pretrained(tmp_path)
    before = fingerprint(str(tmp_path)), weights_of(load(tmp_path))
    with torch.no_grad():
        change(model)
    model.save_pretrained(tmp_path)
    after = fingerprint(str(tmp_path)), weights_of(load(tmp_path))
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.numbers
def test_a_moved_model_is_the_same(place, tmp_path):
    shutil.copytree(place, tmp_path / "moved")
    assert weights_of(load(tmp_path / "moved")) == weights_of(load(place))
    assert fingerprint(str(tmp_path / "moved")) == fingerprint(place)
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    (tmp_path / "moved" / "config.json").write_text(
        json.dumps(config | {"transformers_version": "9", "dtype": "float16"})
    )
    assert fingerprint(str(tmp_path / "moved")) == fingerprint(place)


def test_one_bit_anywhere_in_a_file_counts(place, tmp_path, monkeypatch):
    """Also where two files have the same size and time, and where blocks are many."""
    monkeypatch.setattr(identity, "_BLOCK", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(place, tmp_path / "a")
    file = next((tmp_path / "a").glob("*.safetensors"))
    data, results = bytearray(file.read_bytes()), {fingerprint(place)}
    for offset in (len(data) - 1, len(data) // 2, 4097, 2 * len(data) // 3):
        data[offset] ^= 1
        file.write_bytes(data)
        results.add(fingerprint(str(tmp_path / "a")))
    assert len(results) == 5


def test_files_are_not_hashed_twice_and_a_lost_cache_changes_nothing(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(identity, "_SETTLED", -1.0)
    first = fingerprint(place)
    hashed = []
    monkeypatch.setattr(identity, "_of_file", lambda path, pool: hashed.append(path) or "x")
    assert fingerprint(place) == first
    assert hashed == []
    (tmp_path / "hesnr-tasks" / "weights.json").write_text("{")
    assert fingerprint(place) != first
    assert len(hashed) == 1


def test_an_edited_adapter_is_another_model(place, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    adapted = get_peft_model(
        load(place), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)

    def identities():
        return weights_of(PeftModel.from_pretrained(load(place), adapter)), fingerprint(place, adapter=str(adapter))

    results = [(weights_of(load(place)), fingerprint(place)), identities()]
    assert identities() == results[-1]
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][5, 1] *= -1
    save_file(tensors, file, metadata={"format": "pt"})
    results.append(identities())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 8}))
    results.append(identities())
    for side in zip(*results, strict=True):
        assert len(set(side)) == 4
    assert fingerprint(place, adapter="nobody/no-such-adapter") is None


def test_offloaded_weights_count_and_missing_ones_are_refused(place, tmp_path):
    from accelerate import cpu_offload, disk_offload

    whole = weights_of(load(place))
    assert weights_of(cpu_offload(load(place), torch.device("cpu"))) == whole
    changed = load(place)
    with torch.no_grad():
        negate_an_embedding(changed)
    other = weights_of(changed)
    assert weights_of(disk_offload(changed, str(tmp_path), torch.device("cpu"))) == other != whole
    with pytest.raises(ScoringError, match=r"parameter [a-z_.]+ of this model has no values on this machine"):
        weights_of(load(place).to("meta"))


def test_a_sharded_tensor_counts_as_a_whole(place):
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        model = load(place)
        whole = weights_of(model)
        mesh = init_device_mesh("cpu", (1,))
        projection = model.model.layers[0].mlp.up_proj
        projection.weight = torch.nn.Parameter(distribute_tensor(projection.weight.detach(), mesh, [Shard(0)]))
        assert weights_of(model) == whole
    finally:
        dist.destroy_process_group()


def test_a_rotary_state_that_the_last_text_left_does_not_count(place):
    """Dynamic NTK: a long text changes the frequencies, not the model."""
    config = LlamaForCausalLM.config_class.from_pretrained(place)
    config.max_position_embeddings = 16
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = load(place, config=config)
    before, state = weights_of(model), model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        model(torch.arange(40)[None])
    assert not torch.equal(model.model.rotary_emb.inv_freq, state)
    assert weights_of(model) == before != weights_of(load(place))


def test_what_is_not_here_has_none(tmp_path):
    assert fingerprint(str(tmp_path)) is None
    assert fingerprint("nobody/no-such-model") is None


# --- the sum ----------------------------------------------------------------------------------------------------------


def slow_sum(data):
    """The same in plain Python."""
    total = 0
    for place in range(0, len(data), 8):
        value = int.from_bytes(data[place : place + 8].ljust(8, b"\0"), "little")
        value = (value + place // 8 * 0x9E3779B97F4A7C15) % 2**64
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            value = (value ^ value >> 33) * factor % 2**64
        total += value ^ value >> 33
    return total % 2**64


@pytest.mark.numbers
@settings(max_examples=60)
@given(st.binary(max_size=700), st.integers(0, 9))
def test_the_sum_is_exact_by_either_way_and_in_any_blocks(data, skipped):
    whole = torch.from_numpy(np.frombuffer(b"\1" * skipped + data, np.uint8).copy()) if skipped + len(data) else None
    if whole is None:
        return
    tensor = whole[skipped:]
    want = slow_sum(data)
    sizes = (identity._WORDS, identity._SPAN, identity._CACHED)
    try:
        for identity._WORDS, identity._SPAN, identity._CACHED in (sizes, (8, 3, 2), (5, 5, 7)):
            assert identity._reduced(tensor) == want
    finally:
        identity._WORDS, identity._SPAN, identity._CACHED = sizes
    if len(data):
        assert identity._sum(identity._as_words(tensor), 0) % 2**64 == want


@pytest.mark.numbers
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.int64, torch.complex64]
)
def test_every_type_and_layout(dtype):
    tensor = (torch.randn(37, 21, 3) * 4).to(dtype)
    want = slow_sum(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert identity._reduced(tensor) == want
    assert identity._reduced(tensor.transpose(0, 2).contiguous().transpose(0, 2)) == want
    assert identity._reduced(tensor[0, 0, 0]) == slow_sum(tensor[0, 0, :1].view(torch.uint8).numpy().tobytes())


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(place, tmp_path):
    """tokenizer.json as a dict, and a function that gives the identity of what it becomes."""
    AutoTokenizer.from_pretrained(place).save_pretrained(tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"

    def of(content):
        path.write_text(json.dumps(content))
        return tokenizer_of(AutoTokenizer.from_pretrained(tmp_path / "t"))

    return json.loads(path.read_text()), of


def test_every_part_of_a_fast_tokenizer_counts(saved):
    content, of = saved
    model = content["model"]
    lower, prefix = {"type": "Lowercase"}, {**content["pre_tokenizer"], "add_prefix_space": True}
    start = tokenizers.processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 3)])
    variants = [
        content,
        {**content, "model": {**model, "merges": model["merges"][:-5]}},
        {**content, "model": {**model, "merges": [*model["merges"][:50], *model["merges"][52:]]}},
        {**content, "normalizer": lower},
        {**content, "pre_tokenizer": prefix},
        {**content, "post_processor": json.loads(start.__getstate__())},
        {**content, "added_tokens": [{**t, "lstrip": True} for t in content["added_tokens"]]},
        {**content, "model": {**model, "ignore_merges": True}},
    ]
    assert len({of(variant) for variant in variants}) == len(variants)
    assert of(content) == of({**content, "truncation": None, "padding": None})


def test_calls_and_folders_do_not_count(place, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(place)
    before = tokenizer_of(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "b c d e"], padding=True, truncation=True, max_length=2)
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_of(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_of(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_slow_tokenizers_count_whole(tmp_path):
    """The pieces are the same; their scores, which decide what is merged first, are not."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    slow = tiny.sentencepiece_slow()
    before = tokenizer_of(slow)
    assert before == tokenizer_of(BertGenerationTokenizer(vocab_file=slow.vocab_file))
    model = proto.ModelProto()
    model.ParseFromString(Path(slow.vocab_file).read_bytes())
    model.pieces[400].score -= 100
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    other = BertGenerationTokenizer(vocab_file=str(tmp_path / "spiece.model"))
    assert other.get_vocab() == slow.get_vocab()
    assert tokenizer_of(other) != before
    assert tokenizer_of(tiny.tiktoken_style()) == tokenizer_of(tiny.tiktoken_style())


def test_the_families_all_differ():
    identities = [tokenizer_of(make()) for make in tiny.FAMILIES.values()]
    assert len(set(identities)) == len(identities)
    assert all(int(word.split()[0]) > 200 for word in identities)
