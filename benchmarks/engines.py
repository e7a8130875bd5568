"""Does a server agree with the Hugging Face engine? On the demo's last checkpoint, token by token, in float32.

    python -m sglang.launch_server --model-path CKPT --device cpu --attention-backend torch_native --dtype float32
    python -m benchmarks.engines --model sglang-generate --url http://127.0.0.1:30000/generate

CKPT is what `--checkpoint` prints. `--model local-completions` with `/v1/completions` asks any OpenAI-style server;
`--served NAME` is what it calls the model where that is not the path, and `--path FOLDER` another checkpoint.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from hesnr_tasks import demo
from hesnr_tasks.backends import backend_for
from hesnr_tasks.backends.base import TokenSequence
from hesnr_tasks.formats import load
from hesnr_tasks.metrics import EPSILON, topk_entropy
from hesnr_tasks.trajectory.rendering import render

K = 10


def sequences(tokenizer, longest: int, most: int) -> list[TokenSequence]:
    """The miniature's trajectories, the last nine tenths of each wanted, until there are `most` wanted tokens."""
    texts: list[TokenSequence] = []
    for trajectory in load([str(demo.HERE / "miniature" / "trajectories.jsonl")]):
        ids = tokenizer(render(trajectory, "transcript").text, add_special_tokens=False)["input_ids"][:longest]
        targets = np.arange(max(1, len(ids) // 10), len(ids), dtype=np.int32)
        texts.append(TokenSequence(trajectory.id, np.array(ids, np.int32), targets))
        if sum(len(text.targets) for text in texts) > most:
            break
    return texts


def he_snr(scores) -> float:
    """Over all wanted tokens."""
    entropy = topk_entropy(scores.topk_logprobs, K)
    chosen = (entropy > EPSILON) & (scores.rank >= 1) & (scores.rank <= K)
    return float((np.exp(scores.logprob[chosen].astype(float)) / entropy[chosen]).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sglang-generate", help="lm-eval's name of the server")
    parser.add_argument("--url", help="the endpoint")
    parser.add_argument("--tokens", type=int, default=20_000, help="wanted tokens")
    parser.add_argument("--checkpoint", action="store_true", help="print the checkpoint that the server must serve")
    parser.add_argument("--path", help="the checkpoint (the demo's last one)")
    parser.add_argument("--served", help="what the server calls the model, such as vLLM's --served-model-name (PATH)")
    settings = parser.parse_args(arguments)
    path = settings.path or str(demo.ladder_paths()[-1][1])
    if settings.checkpoint or not settings.url:
        print(path)
        return
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    plain = backend_for(HFLM(pretrained=path, dtype="float32", device="cpu"))
    name = settings.served or path
    server = backend_for(get_model(settings.model)(model=name, base_url=settings.url, tokenizer=path))
    texts = sequences(plain.tokenizer, min(plain.max_length, server.max_length), settings.tokens)
    both, seconds = [], []
    for backend in (plain, server):
        start = time.perf_counter()
        answers = dict(backend.score(texts, K, lambda tokens: None))
        columns = zip(*(answers[index][:4] for index in range(len(texts))), strict=True)  # not what hf alone gives
        both.append(type(answers[0])(*(np.concatenate(column) for column in columns)))
        seconds.append(time.perf_counter() - start)
    ours, theirs = both
    entropies = [topk_entropy(scores.topk_logprobs, K) for scores in both]
    within = [np.where(scores.rank <= K, scores.rank, -K) for scores in both]
    print(f"{len(ours.logprob)} tokens of {len(texts)} texts; {seconds[1] / seconds[0]:.2f} of the time of hf")
    print(f"greatest |Δ ln p| {np.abs(ours.logprob - theirs.logprob).max():.1e}")
    print(f"greatest |Δ H_top10| {np.abs(entropies[0] - entropies[1]).max():.1e}")
    print(f"same rank up to ten: {(within[0] == within[1]).mean():.2%}")
    print(f"he_snr differs by {abs(he_snr(theirs) / he_snr(ours) - 1):.1e} of itself")


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main()
