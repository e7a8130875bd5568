"""A tiny random Llama on disk, passages of real text, and their scores by a plain forward with full logits."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hesnr_tasks.backends.base import TokenSequence
from hesnr_tasks.scores.schema import SequenceScores
from tests import ROOT
from tests.tiny import byte_level, sample_text

CONTEXT = 32768
TOPK = 10


def find_vllm_python():
    """The interpreter that has vLLM, or skip."""
    default = ROOT / ".venv-vllm" / "bin" / "python"
    python = Path(os.environ.get("HESNR_VLLM_PYTHON", default))
    if not python.exists():
        pytest.skip("no environment with vLLM: run `make vllm`, or set HESNR_VLLM_PYTHON to a Python that has it")
    return str(python)


def run_group(command, environment, timeout):
    """Exit code and output of a command; when it takes too long, it and all its children are ended."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
            return process.returncode, output
        finally:
            end_group(process)


def end_group(process):
    """End a process started in a session of its own, with all its children."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)


def save_model(folder, seed=0):
    """Weights are large enough for peaked distributions: flat ones would hide errors."""
    tokenizer = byte_level(vocabulary=2000)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=CONTEXT, initializer_range=0.15,
        bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder):
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def passage(name, start, tokens, every=1):
    """`tokens` tokens of Python source from token `start` on, of which every `every`-th is wanted."""
    ids = byte_level(vocabulary=2000)(sample_text())["input_ids"]
    ids = np.array((ids * 4)[start : start + tokens], dtype=np.int32)
    targets = np.arange(len(ids) - 1, 0, -every, dtype=np.int32)[::-1].copy()
    return TokenSequence(name, ids, targets)


@torch.no_grad()
def reference(model, passage, k=TOPK, logits=None) -> SequenceScores:
    """One forward, all logits at once, log-softmax in float64: an independent, slow reading."""
    if logits is None:
        logits = model(torch.from_numpy(passage.ids).long()[None]).logits[0]
    logprobs = logits[passage.targets - 1].double().log_softmax(dim=-1)
    target = torch.from_numpy(passage.ids[passage.targets]).long()[:, None]
    own = logprobs.gather(1, target)
    top = logprobs.topk(k, dim=-1)
    rank = 1 + (logprobs > own).sum(dim=1)
    return SequenceScores(own[:, 0].numpy(), rank.numpy(), top.values.numpy(), top.indices.numpy())


def entropy(topk_logprobs):
    """Entropy of the renormalised top k, nats."""
    top = np.asarray(topk_logprobs, dtype=np.float64)
    share = np.exp(top) / np.exp(top).sum(axis=1, keepdims=True)
    return -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)


def assert_same(actual: SequenceScores, want: SequenceScores, tolerance=1e-3):
    """Log-probabilities and entropies within `tolerance`; ranks and ids where no two tokens are that close."""
    assert actual.logprob.shape == want.logprob.shape
    assert np.abs(actual.logprob - want.logprob).max() <= tolerance
    assert np.abs(actual.topk_logprobs - want.topk_logprobs).max() <= tolerance
    assert np.abs(entropy(actual.topk_logprobs) - entropy(want.topk_logprobs)).max() <= tolerance
    assert (actual.rank != want.rank).mean() < 0.01  # ties up to rounding
    assert (actual.topk_ids != want.topk_ids).mean() < 0.01
    within = want.rank < want.topk_logprobs.shape[1]
    assert np.abs(actual.rank - want.rank)[within].max(initial=0) <= 1
